"""Greedy answers of a random and of the trained model equal those of transformers' `generate`, which reads every prompt
whole and alone, on every path an answer can take here."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForImageTextToText

from qwen3vl_webui.draft import Attached, Draft
from qwen3vl_webui.engine import scheduler
from qwen3vl_webui.engine.contract import GenerationRequest
from qwen3vl_webui.engine.local import LocalEngine
from qwen3vl_webui.media.image import read_pixels as real_pixels
from qwen3vl_webui.media.upload import open_upload
from qwen3vl_webui.media.video import read_frames as real_frames
from qwen3vl_webui.model import shelf
from qwen3vl_webui.model.loading import LoadedModel, load
from qwen3vl_webui.model.snapshots import Snapshots
from qwen3vl_webui.model.vision import ReadFrames, ReadPixels
from qwen3vl_webui.prompt import lay_out
from qwen3vl_webui.settings import DEMO_MODEL
from tests.engine.conftest import GREEDY, ask, finish_of, follow_up, picture, read_frames, read_pixels, video
from tests.engine.test_local import run, run_ids, slot_of, stock_ids
from tests.engine.test_scheduler import Steps
from tests.tiny import tiny_checkpoint

torch.set_num_threads(1)

SAMPLES = Path(__file__).resolve().parents[2] / "assets" / "samples"


@dataclass(frozen=True)
class Case:
    """A checkpoint, how its media is read, and four conversations about it: a first question and a second."""

    loaded: LoadedModel
    stock: Any
    pixels: ReadPixels
    frames: ReadFrames
    questions: tuple[tuple[GenerationRequest, str], ...]
    known: dict[bytes, list[int]] = field(default_factory=dict)  # what the library has answered, by prompt

    def open(self, **settings: Any) -> LocalEngine:
        return LocalEngine(self.loaded, read_pixels=self.pixels, read_frames=self.frames, **settings)

    def expected(self, engine: LocalEngine, request: GenerationRequest) -> list[int]:
        """The ids of its answer but for the last one, which no cache holds."""
        inputs = engine._encode(request)
        prompt = inputs.keys.tobytes()  # content and ids
        if prompt not in self.known:
            self.known[prompt] = stock_ids(self.stock, self.loaded, inputs, self.pixels, self.frames)[:-1]
        return self.known[prompt]


def tiny_case() -> Case:
    folder = tiny_checkpoint()
    questions = (
        (ask("word " * 40, "What happens at 47 seconds?", conversation="text"), "And then?"),
        (ask(picture("one", 160, 96), "What is this?", conversation="picture"), "Which colour?"),
        (ask(video("film", 5), "When does he open the computer?", conversation="video"), "他在什么时候打开电脑？"),
        (ask(picture("a"), video("film", 3), "compare", picture("b", 320, 256), conversation="mixed"), "Why?"),
    )
    return Case(load(str(folder), device="cpu"), stock_of(folder), read_pixels, read_frames, questions)


def demo_case() -> Case:
    loaded = load("demo", device="cpu")
    engine = LocalEngine(loaded)
    asked = {
        "sample.png": ("What is in the picture?", "图里有什么？"),
        "sample.mp4": ("When does the red circle appear?", "红色圆形什么时候出现？"),
        "sample.pdf": ("Which page says 7342?", "哪一页写着7342？"),
        "": ("What can you do?", "你会什么？"),
    }
    questions = []
    for file, (first, second) in asked.items():
        parts = (Attached(open_upload(SAMPLES / file), name=file), first) if file else (first,)
        request = lay_out([Draft("user", parts)], engine).request
        questions.append((replace(request, sampling=GREEDY, conversation=file or "text"), second))
    engine.close()
    return Case(loaded, stock_of(DEMO_MODEL), real_pixels, real_frames, tuple(questions))


def stock_of(folder: Path) -> Any:
    return AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32).eval()


@pytest.fixture(scope="module", params=[tiny_case, demo_case], ids=["tiny", "demo"])
def case(request: pytest.FixtureRequest) -> Case:
    return request.param()


Opened = Callable[..., LocalEngine]


@pytest.fixture
def opened(case: Case) -> Iterator[Opened]:
    engines: list[LocalEngine] = []

    def of(**settings: Any) -> LocalEngine:
        engines.append(case.open(**settings))
        return engines[-1]

    yield of
    for engine in engines:
        engine.close()


@pytest.fixture
def short_prompts_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """They are put away as well."""
    monkeypatch.setattr(shelf.Shelf.__init__, "__kwdefaults__", {"least_tokens": 20})


def second_turn(case: Case, engine: LocalEngine, request: GenerationRequest, answer: str, question: str) -> None:
    """Its answer is the library's, and the first turn was not read again."""
    again = follow_up(request, answer, question)
    expected = case.expected(engine, again)
    _, finish, ids = run_ids(engine, again)
    assert ids == expected
    assert finish.reused_tokens >= engine._encode(request).tokens


def test_turns_that_reuse_what_was_read(case: Case, opened: Opened) -> None:
    engine = opened()
    for request, question in case.questions:
        answer, _, ids = run_ids(engine, request)
        assert ids == case.expected(engine, request)
        second_turn(case, engine, request, answer, question)


def test_prompts_in_small_chunks(case: Case, opened: Opened, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(scheduler.CHUNK, "cpu", 64)
    engine = opened()
    for request, _ in case.questions:
        assert run_ids(engine, request)[2] == case.expected(engine, request)
    assert engine._scheduler._steps > 4


def test_four_at_once(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scheduler, "WRITING_SHARE", 0)  # else the first may have ended before the last one is read
    endless = replace(case, loaded=replace(case.loaded, eos_ids=frozenset()))
    engine = endless.open()
    expected = [case.expected(engine, request) for request, _ in case.questions]
    steps = Steps(engine, patient=True)
    for consumer in steps.together(*(request for request, _ in case.questions)):
        assert finish_of(consumer.whole()).completion_tokens == GREEDY.max_tokens
    for (request, _), ids in zip(case.questions, expected, strict=True):
        written = slot_of(engine, request.conversation).keys[engine._encode(request).tokens :]
        assert list(written)[: len(ids)] == ids
    assert max(sum(count == 1 for _, count in step) for step in steps.seen) == 4
    engine.close()


def test_a_conversation_that_was_swapped_out(case: Case, opened: Opened, short_prompts_too: None) -> None:
    engine = opened(parked_bytes=10**9)
    answers = [run(engine, request)[0] for request, _ in case.questions]
    for number in range(4):
        run(engine, ask(f"Another {number}.", conversation=f"other {number}"))
    kept = {slot.conversation for slot in engine._cache.slots}
    assert kept == {f"other {number}" for number in range(4)}
    for (request, question), answer in zip(case.questions, answers, strict=True):
        second_turn(case, engine, request, answer, question)


def test_after_a_restart_from_a_snapshot(case: Case, opened: Opened, short_prompts_too: None, tmp_path: Path) -> None:
    engine = opened(snapshots=Snapshots(tmp_path, 10**9))
    answers = [run(engine, request)[0] for request, _ in case.questions]
    engine.close()
    engine = opened(snapshots=Snapshots(tmp_path, 10**9))
    for (request, question), answer in zip(case.questions, answers, strict=True):
        second_turn(case, engine, request, answer, question)


if sys.platform == "linux":

    def test_the_step_that_is_recorded_as_a_graph(case: Case, opened: Opened) -> None:
        """Without recording: Triton's kernels are interpreted, and its operations run one by one."""
        engine = opened(decode="kernels")
        seen = [request for request, _ in case.questions if engine._encode(request).spans]
        request = min(seen, key=lambda request: engine._encode(request).tokens)
        _, _, ids = run_ids(engine, replace(request, sampling=replace(GREEDY, max_tokens=6)))
        assert ids == case.expected(engine, request)[: len(ids)] and len(ids) == 5
        assert engine._cache.kernel is not None
