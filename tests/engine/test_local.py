from __future__ import annotations

import functools
import logging
import re
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from qwen3vl_webui.engine import local
from qwen3vl_webui.engine.contract import (
    FinishEvent,
    GenerationRequest,
    Message,
    PrefillEvent,
    SamplingParams,
    TokenEvent,
)
from qwen3vl_webui.engine.local import LocalEngine, forbidden_ids
from qwen3vl_webui.errors import EngineError, OutOfMemory, TooLong, Unsupported, UserError
from qwen3vl_webui.media import image
from qwen3vl_webui.media import video as media_video
from qwen3vl_webui.media.upload import open_upload
from qwen3vl_webui.media.values import Clip, Frame, FramePlan, Image, Part
from qwen3vl_webui.model.cache import Slot
from qwen3vl_webui.model.inputs import Inputs, encode, frame_patches, image_patches
from qwen3vl_webui.model.loading import LoadedModel, load
from qwen3vl_webui.model.vision import ReadFrames, ReadPixels
from qwen3vl_webui.settings import Quantization
from tests import clips
from tests.engine.conftest import (
    GREEDY,
    Load,
    Open,
    ask,
    finish_of,
    follow_up,
    picture,
    read_frames,
    read_pixels,
    text_of,
    video,
)
from tests.tiny import tiny_checkpoint

VARIANTS: list[dict[str, Any]] = [{}, {"tied": False}, {"experts": 4}, {"thinking": True}]
PROMPTS: dict[str, tuple[Part, ...]] = {
    "text": ("What happens at 47 seconds?",),
    "picture": (picture("one", 160, 96), "What is this?"),
    "several pictures": ("First", picture("a"), "then", picture("b", 64, 128), picture("c", 96, 96), "compare."),
    "video": (video("film", 5), "When does he open the computer?"),
    "mixed": (picture("a"), video("film", 3), "Is the picture in the video?", video("other", 2, 64, 64)),
    "longer than a chunk": ("word " * 300, picture("big", 640, 512), "and " * 200),
}


@functools.cache
def stock_model(**variant: Any) -> Any:
    from transformers import AutoModelForImageTextToText

    folder = tiny_checkpoint(**variant)
    return AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32).eval()


def stock_ids(
    stock: Any,
    loaded: LoadedModel,
    inputs: Inputs,
    pixels_of: ReadPixels = read_pixels,
    frames_of: ReadFrames = read_frames,
) -> list[int]:
    """What transformers' own `generate` writes, greedily, for this prompt; it may write what the engine may."""
    pictures = [span for span in inputs.spans if isinstance(span.part, Image)]
    moments = [span for span in inputs.spans if isinstance(span.part, FramePlan)]
    given: dict[str, torch.Tensor] = {}
    kinds = np.zeros_like(inputs.ids)
    for kind, name, spans in ((1, "image", pictures), (2, "video", moments)):
        if not spans:
            continue
        rows, grids = [], []
        for span in spans:
            kinds[span.start : span.end] = kind
            if isinstance(span.part, Image):
                assert span.part.seen is not None
                rows.append(image_patches(pixels_of(span.part), span.part.seen))
                grids.append(span.grid_thw)
            else:
                frames = [frame.pixels for frame in frames_of(span.part)]
                rows.append(frame_patches(*frames[2 * span.patch : 2 * span.patch + 2]))
                if span.patch == 0:
                    grids.append((len(span.part.patches), *span.grid_thw[1:]))
        pixels = "pixel_values" if kind == 1 else "pixel_values_videos"
        given |= {pixels: torch.cat(rows), f"{name}_grid_thw": torch.tensor(grids)}
    ids = torch.from_numpy(inputs.ids)[None]
    written = stock.generate(
        input_ids=ids,
        attention_mask=torch.ones_like(ids),
        mm_token_type_ids=torch.from_numpy(kinds)[None],
        do_sample=False,
        max_new_tokens=GREEDY.max_tokens,
        suppress_tokens=forbidden_ids(loaded).tolist(),
        **given,
    )
    return written[0, ids.shape[1] :].tolist()


def slot_of(engine: LocalEngine, conversation: str) -> Slot:
    (slot,) = [slot for slot in engine._cache.slots if slot.conversation == conversation]
    return slot


def run(engine: LocalEngine, request: GenerationRequest) -> tuple[str, FinishEvent]:
    events = list(engine.generate(request))
    return text_of(events), finish_of(events)


def run_ids(engine: LocalEngine, request: GenerationRequest) -> tuple[str, FinishEvent, list[int]]:
    """Also the ids of the answer as the cache holds them: all but the last one, which no later token needed."""
    text, finish = run(engine, request)
    return text, finish, list(slot_of(engine, request.conversation).keys[finish.prompt_tokens :])


@pytest.mark.parametrize("variant", VARIANTS, ids=str)
@pytest.mark.parametrize("prompt", PROMPTS)
def test_greedy_equals_stock_generate(open_engine: Open, loaded: Load, variant: dict[str, Any], prompt: str) -> None:
    engine, model = open_engine(**variant), loaded(**variant)
    request = ask(*PROMPTS[prompt], conversation="chat")
    _, finish, ids = run_ids(engine, request)
    expected = stock_ids(stock_model(**variant), model, encode(request.messages, model.vocabulary))
    assert finish.completion_tokens == len(expected)
    assert ids == expected[:-1]
    assert len(set(expected)) > 1, "an answer of one repeated token would prove little"


@pytest.mark.parametrize("quantization", ["8bit", "4bit"])
def test_greedy_equals_stock_generate_with_quantized_weights(quantization: Quantization) -> None:
    model = load(str(tiny_checkpoint()), quantization=quantization, device="cpu")
    request = ask(picture("a"), "What is this?", conversation="chat")
    expected = stock_ids(model.model, model, encode(request.messages, model.vocabulary))
    engine = LocalEngine(model, read_pixels=read_pixels, read_frames=read_frames)
    try:
        _, _, ids = run_ids(engine, request)
    finally:
        engine.close()
    assert ids == expected[:-1]


def test_greedy_equals_stock_generate_on_real_files(loaded: Load, tmp_path: Path) -> None:
    photo = open_upload(clips.png(tmp_path / "photo.png", 100, 70))
    film = open_upload(clips.colour_clip(tmp_path / "film.mp4", 3.0))
    assert isinstance(photo, Image) and isinstance(film, Clip)
    moments = FramePlan(film, ((0.0, 0.0), (1.0, 1.0), (2.0, 2.0)), 160, 96)
    model = loaded()
    request = ask(photo.at(96, 64), "and", moments, "What is this?", conversation="chat")
    engine = LocalEngine(model)
    try:
        _, _, ids = run_ids(engine, request)
    finally:
        engine.close()
    inputs = encode(request.messages, model.vocabulary)
    expected = stock_ids(stock_model(), model, inputs, image.read_pixels, media_video.read_frames)
    assert ids == expected[:-1]


# Several turns


def turns(conversation: str, first: Part) -> Iterator[tuple[Part, ...]]:
    yield (first, f"What is this, {conversation}?")
    yield ("And this?", picture(f"second {conversation}", 64, 64))
    yield (video(f"film {conversation}", 3), "And now?")


@pytest.mark.parametrize("variant", VARIANTS, ids=str)
def test_every_turn_of_a_chat_equals_stock_and_reads_only_what_is_new(
    open_engine: Open, loaded: Load, variant: dict[str, Any]
) -> None:
    engine, model = open_engine(**variant), loaded(**variant)
    request, text, before = None, "", 0
    for parts in turns("chat", picture("first", 128, 96)):
        request = ask(*parts, conversation="chat") if request is None else follow_up(request, text, *parts)
        text, finish, ids = run_ids(engine, request)
        known = {text: ids for (_, text), ids in engine._answers.items()}
        inputs = encode(request.messages, model.vocabulary, known_answers=known)
        assert inputs.tokens == finish.prompt_tokens
        assert ids == stock_ids(stock_model(**variant), model, inputs)[:-1]
        assert finish.reused_tokens >= before - 4  # a thinking model's `<think>` is not in the history
        before = finish.prompt_tokens


def test_two_chats_by_turns_do_not_disturb_each_other(open_engine: Open) -> None:
    alone: dict[str, list[str]] = {}
    for name in ("a", "b"):
        engine, request, text = open_engine(), None, ""
        for parts in turns(name, video(f"long {name}", 4)):
            request = ask(*parts, conversation=name) if request is None else follow_up(request, text, *parts)
            text, _ = run(engine, request)
            alone.setdefault(name, []).append(text)

    engine = open_engine()
    requests: dict[str, GenerationRequest] = {}
    texts: dict[str, list[str]] = {"a": [], "b": []}
    for both in zip(turns("a", video("long a", 4)), turns("b", video("long b", 4)), strict=True):
        for name, parts in zip("ab", both, strict=True):
            given = requests.get(name)
            requests[name] = follow_up(given, texts[name][-1], *parts) if given else ask(*parts, conversation=name)
            text, finish = run(engine, requests[name])
            texts[name].append(text)
            assert not given or finish.reused_tokens > 50
    assert texts == alone


def test_an_answer_is_continued_with_the_ids_it_was_written_as(open_engine: Open) -> None:
    """Tokenizing the answer again would end the shared prefix inside it."""
    engine = open_engine(endless=True)
    for seed in range(40):  # random weights also write half characters and `<think>`; such an answer is not kept
        request = ask("Tell me.", sampling=SamplingParams(seed=seed, max_tokens=12), conversation=str(seed))
        text, finish = run(engine, request)
        again = encode([Message("assistant", (text,))], engine._loaded.vocabulary).ids
        kept = engine._answers.get((str(seed), text))
        if kept is not None and list(again[2:]) != kept and len(text) > 4:
            break
    else:
        raise AssertionError("no such answer in 40")
    _, second = run(engine, follow_up(request, text, "Go on."))
    assert second.reused_tokens == finish.prompt_tokens + finish.completion_tokens - 1


def test_a_fifth_chat_takes_the_place_of_the_one_used_longest_ago(open_engine: Open) -> None:
    engine = open_engine()
    words = ["apples", "boats", "clouds", "doors", "engines"]
    requests = [ask(f"{word} " * 30, conversation=word) for word in words]
    for request in requests:
        run(engine, request)
    assert [slot.conversation for slot in engine._cache.slots] == ["engines", *words[1:4]]
    reused = [run(engine, follow_up(request, "Yes.", "More?"))[1].reused_tokens for request in requests[1:]]
    assert min(reused) > 50


def test_a_new_chat_about_the_same_video_starts_from_what_was_read(open_engine: Open) -> None:
    engine = open_engine()
    first = ask(video("film", 6), "What?", conversation="first")
    second = ask(video("film", 6), "Where does it end?", conversation="second")
    fresh, _ = run(open_engine(), second)
    run(engine, first)
    text, finish = run(engine, second)
    assert finish.reused_tokens >= video("film", 6).tokens
    assert text == fresh
    assert run(engine, first)[1].reused_tokens == finish_of(list(engine.generate(first))).prompt_tokens - 1


def test_another_picture_of_the_same_size_is_read(open_engine: Open) -> None:
    engine = open_engine()
    run(engine, ask("Look:", picture("cat"), "Name it.", conversation="chat"))
    swapped = ask("Look:", picture("dog"), "Name it.", conversation="chat")
    inputs = encode(swapped.messages, engine._loaded.vocabulary)
    text, finish = run(engine, swapped)
    assert finish.reused_tokens == inputs.spans[0].start
    assert text == run(open_engine(), swapped)[0]


def test_an_edited_question_reads_only_from_the_edit_on(open_engine: Open) -> None:
    engine = open_engine()
    run(engine, ask(picture("cat"), "Name it, please.", conversation="chat"))
    edited = ask(picture("cat"), "Describe it.", conversation="chat")
    text, finish = run(engine, edited)
    assert finish.reused_tokens > picture("cat").tokens
    assert text == run(open_engine(), edited)[0]


# Stopping


def test_closing_in_prefill_stops_within_a_chunk_and_keeps_what_was_read(open_engine: Open) -> None:
    engine = open_engine()
    request = ask("word " * 1500, conversation="chat")
    whole, finish = run(open_engine(), request)
    answer = engine.generate(request)
    done = 0
    for event in answer:
        assert isinstance(event, PrefillEvent)
        if event.done > 0:
            done = event.done
            break
    answer.close()
    run(engine, ask("Are you free?", conversation="other"))
    read = slot_of(engine, "chat").length
    assert done <= read < finish.prompt_tokens / 2
    text, second = run(engine, request)
    assert (text, second.reused_tokens) == (whole, read)


def test_closing_while_a_video_is_read_stops_the_reader(open_engine: Open) -> None:
    seen, stopped, go_on = [], threading.Event(), threading.Event()

    def read(plan: FramePlan) -> Iterator[Frame]:
        try:
            for frame in read_frames(plan):
                seen.append(frame.seconds)
                if len(seen) == 6:
                    assert go_on.wait(20)
                yield frame
        finally:
            stopped.set()

    engine = open_engine(read_frames=read)
    answer = engine.generate(ask(video("film", 200), "What?"))
    while len(seen) < 6:
        assert isinstance(next(answer), PrefillEvent)
    answer.close()
    go_on.set()
    assert stopped.wait(20)
    assert len(seen) <= 8
    assert run(engine, ask("Are you free?"))[1].completion_tokens


def test_closing_in_decode_stops_within_a_token(open_engine: Open) -> None:
    engine = open_engine(endless=True)
    answer = engine.generate(ask("Sing.", sampling=replace(GREEDY, max_tokens=100_000), conversation="song"))
    taken = 0
    while taken < 3:
        taken += isinstance(next(answer), TokenEvent)
    answer.close()
    run(engine, ask("Are you free?", conversation="other"))
    prompt = engine.plan(ask("Sing.")).tokens
    assert slot_of(engine, "song").length - prompt < 50_000


# Length and trouble


def test_decoding_ends_when_the_context_is_full(open_engine: Open) -> None:
    engine = open_engine(endless=True, context_length=100)
    request = ask("Sing.", sampling=replace(GREEDY, max_tokens=5000))
    prompt = engine.plan(request).tokens
    finish = run(engine, request)[1]
    assert (finish.reason, prompt + finish.completion_tokens) == ("length", 100)


def test_a_plan_counts_exactly_and_reads_nothing(open_engine: Open) -> None:
    def never(_: Image | FramePlan) -> Iterator[Frame]:
        raise AssertionError("a plan reads no media")
        yield

    engine = open_engine(read_pixels=never, read_frames=never)
    request = ask(picture("a", 96, 64), video("film", 10, 96, 64), "What?")
    budget = engine.plan(request)
    inputs = encode(request.messages, engine._loaded.vocabulary)
    assert (budget.tokens, budget.positions) == (len(inputs.ids), inputs.positions.max() + 1)
    assert budget.positions < budget.tokens
    assert (budget.context_length, budget.answer_tokens) == (engine.context_length, GREEDY.max_tokens)


def test_too_many_positions_are_refused_with_their_number(open_engine: Open, loaded: Load) -> None:
    engine = open_engine(context_length=1000)
    engine._ropes.most_positions = 50
    assert not engine.plan(ask("word " * 100)).fits
    with pytest.raises(TooLong, match=r"positions; the model knows 50\."):
        next(engine.generate(ask("word " * 100)))


def test_the_default_context_is_what_was_trained_or_fits_in_memory(open_engine: Open) -> None:
    engine = open_engine()
    assert 0 < engine.context_length <= 262_144
    assert engine.model.context_length == engine.context_length
    assert open_engine(context_length=1000).model.sampling.max_tokens <= 250


@pytest.mark.parametrize(
    ("setting", "value"),
    [("temperature", -1.0), ("top_p", 0.0), ("top_p", 1.5), ("min_p", 2.0), ("max_tokens", 0), ("stop", ("",))],
)
def test_a_setting_without_meaning_is_refused_by_name(open_engine: Open, setting: str, value: object) -> None:
    engine = open_engine()
    with pytest.raises(Unsupported, match=setting):
        next(engine.generate(ask("?", sampling=replace(GREEDY, **{setting: value}))))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("cause", "error", "sentence"),
    [
        (ZeroDivisionError(), EngineError, "failed on this request"),
        (MemoryError(), OutOfMemory, "not enough memory"),
        (torch.OutOfMemoryError(), OutOfMemory, "not enough memory"),
    ],
)
def test_a_failure_ends_one_request_only(
    open_engine: Open, cause: Exception, error: type[UserError], sentence: str
) -> None:
    def read(image: Image) -> np.ndarray:
        if image.digest == "bad":
            raise cause
        return read_pixels(image)

    engine = open_engine(read_pixels=read)
    request = ask(picture("good"), "What?", conversation="chat")
    whole, _ = run(engine, request)
    with pytest.raises(error, match=sentence):
        list(engine.generate(follow_up(request, whole, picture("bad"), "And this?")))
    assert run(engine, request)[0] == whole


def test_a_prompt_beyond_the_slab_is_out_of_memory(open_engine: Open) -> None:
    engine = open_engine()
    engine._cache.most_tokens = 256
    with pytest.raises(OutOfMemory, match="shorter span or fewer pages"):
        list(engine.generate(ask("word " * 500)))
    assert run(engine, ask("short"))[1].completion_tokens


def test_each_request_leaves_one_line_in_the_log(open_engine: Open, caplog: pytest.LogCaptureFixture) -> None:
    engine = open_engine(endless=True)
    with caplog.at_level(logging.INFO, logger="qwen3vl_webui.engine.scheduler"):
        run(engine, ask("word " * 300))
        engine.close()
    (line,) = caplog.messages
    assert re.fullmatch(r"in 1,\d\d\d \(0 kept\)  prefill [\d,]+ tok/s  out 24  [\d,]+ tok/s  length", line)


# What is written


def test_the_same_seed_writes_the_same_and_another_does_not(open_engine: Open) -> None:
    engine = open_engine()
    drawn = [run(engine, ask("Tell me.", sampling=SamplingParams(temperature=1.5, seed=seed)))[0] for seed in (7, 7, 8)]
    assert drawn[0] == drawn[1] != drawn[2]


def test_a_stop_string_ends_the_answer_and_is_not_shown(open_engine: Open) -> None:
    engine = open_engine(endless=True)
    sampling = SamplingParams(seed=3, max_tokens=60)
    whole, _ = run(engine, ask("Tell me.", sampling=sampling))
    stop = whole[10:16]
    text, finish = run(engine, ask("Tell me.", sampling=replace(sampling, stop=("never there", stop))))
    assert text == whole[: whole.index(stop)]
    assert finish.reason == "stop" and finish.completion_tokens < 60


def test_an_answer_ends_where_the_model_ends_it(open_engine: Open) -> None:
    engine = open_engine(endless=True)
    whole, _, ids = run_ids(engine, ask("Tell me.", conversation="chat"))
    last = next(place for place in range(3, len(ids)) if ids[place] not in ids[:place])
    engine._scheduler.eos_ids = frozenset([ids[last]])
    text, finish = run(engine, ask("Tell me.", conversation="chat"))
    assert (finish.reason, finish.completion_tokens) == ("stop", last + 1)
    assert whole.startswith(text) and text != whole


def test_control_tokens_are_never_written(open_engine: Open, loaded: Load) -> None:
    model = loaded()
    engine = open_engine(endless=True)
    sampling = SamplingParams(temperature=100.0, top_p=1.0, top_k=0, max_tokens=1500, presence_penalty=0, seed=1)
    _, _, ids = run_ids(engine, ask("Tell me.", sampling=sampling, conversation="chat"))
    names = model.vocabulary
    control = {names.im_start, names.vision_start, names.vision_end, names.image_pad, names.video_pad}
    assert not control & set(ids)
    assert len(set(ids)) > 400  # nearly everything else is


# Reasoning


def test_reasoning_comes_apart_and_without_its_marks(open_engine: Open) -> None:
    engine = open_engine(thinking=True, endless=True)
    events = list(engine.generate(ask("Why?", sampling=replace(GREEDY, max_tokens=40, thinking_budget=10))))
    tokens = [event for event in events if isinstance(event, TokenEvent) and event.text]
    thinking = [event.thinking for event in tokens]
    assert thinking == sorted(thinking, reverse=True) and set(thinking) == {True, False}
    assert text_of(events) and text_of(events, thinking=True)
    assert "think>" not in text_of(events) + text_of(events, thinking=True)


@pytest.mark.parametrize("budget", [0, 1, 10])
def test_a_thinking_budget_forces_the_end_of_reasoning(open_engine: Open, loaded: Load, budget: int) -> None:
    model = loaded(thinking=True)
    engine = open_engine(thinking=True, endless=True)
    free = run_ids(engine, ask("Why?", conversation="free"))[2]
    assert model.vocabulary.end_think not in free[:11]
    sampling = replace(GREEDY, thinking_budget=budget)
    ids = run_ids(engine, ask("Why?", sampling=sampling, conversation="short"))[2]
    assert ids[: budget + 1] == [*free[:budget], model.vocabulary.end_think]


def test_a_model_that_does_not_think_is_not_bound_by_a_thinking_budget(open_engine: Open) -> None:
    engine = open_engine()
    assert run(engine, ask("Why?"))[0] == run(engine, ask("Why?", sampling=replace(GREEDY, thinking_budget=0)))[0]


def test_past_reasoning_is_not_read_again(open_engine: Open) -> None:
    engine = open_engine(thinking=True, endless=True)
    request = ask(picture("cat"), "Why?", sampling=replace(GREEDY, thinking_budget=5), conversation="chat")
    text, first = run(engine, request)
    _, second = run(engine, follow_up(request, text, "And then?"))
    assert picture("cat").tokens < second.reused_tokens < first.prompt_tokens


def test_memory_is_what_the_container_leaves(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(local, "CGROUP", f"{tmp_path}/memory.")
    unlimited = local.host_memory_free()
    assert unlimited > 2**20
    (tmp_path / "memory.current").write_text("600000\n")
    (tmp_path / "memory.max").write_text("1000000\n")
    assert local.host_memory_free() == 400_000
    (tmp_path / "memory.max").write_text("max\n")
    assert local.host_memory_free() > 2**20
