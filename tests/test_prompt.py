"""What the model is shown of a conversation: layout, sizes, and what is refused."""

import itertools
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from qwen3vl_webui.conversation import Attachment, Conversation
from qwen3vl_webui.draft import Attached, Draft, Options
from qwen3vl_webui.engine.contract import Message, ModelInfo
from qwen3vl_webui.errors import MediaError, TooLong, Unsupported
from qwen3vl_webui.media import storyboard, video
from qwen3vl_webui.media.upload import open_upload
from qwen3vl_webui.media.values import Clip, FramePlan, Image, Media, Part
from qwen3vl_webui.media.video import read_frames
from qwen3vl_webui.prompt import Prompt, build, lay_out
from qwen3vl_webui.showing import Named, read_pages
from tests.clips import colour_clip, pdf, png, srt, with_subtitles
from tests.clips import film as clip_file
from tests.scripted_engine import ScriptedEngine


@pytest.fixture(scope="module")
def media(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Media]:
    folder = tmp_path_factory.mktemp("media")
    return {
        "picture": open_upload(png(folder / "a.png", 320, 200)),
        "film": open_upload(colour_clip(folder / "b.mp4", 8)),
        "paper": open_upload(pdf(folder / "c.pdf", ["first page", "second page 7342", ""])),
    }


@pytest.fixture
def lookup(media: dict[str, Media]) -> Callable[[Attachment], Media]:
    return lambda attachment: media[attachment.id]


def attachment(kind: str) -> Attachment:
    kinds = {"picture": "image", "film": "video", "paper": "document"}
    return Attachment(kind, media_digest(kind), f"{kind}.bin", kinds[kind])  # type: ignore[arg-type]


def media_digest(kind: str) -> str:
    return kind.ljust(64, "0")


def outline(message: Message) -> list[str]:
    return [part if isinstance(part, str) else type(part).__name__ for part in message.parts]


def ask(*files: str, text: str = "What?") -> Conversation:
    return Conversation().ask(text, tuple(attachment(kind) for kind in files))


def test_one_picture_stands_before_the_words_without_a_label(lookup: Callable[[Attachment], Media]) -> None:
    prompt = build(ask("picture"), ScriptedEngine(), lookup)
    assert outline(prompt.request.messages[-1]) == ["Image", "What?"]
    picture = prompt.parts[0]
    assert isinstance(picture, Image)
    assert picture.seen is not None
    assert all(side % 32 == 0 for side in picture.seen)
    assert prompt.shown[0].tokens == picture.tokens


def test_several_pictures_are_numbered(lookup: Callable[[Attachment], Media]) -> None:
    prompt = build(ask("picture", "picture"), ScriptedEngine(), lookup)
    assert outline(prompt.request.messages[-1]) == ["Picture 1: ", "Image", "Picture 2: ", "Image", "What?"]


def test_pages_come_with_their_number_and_text_layer(lookup: Callable[[Attachment], Media]) -> None:
    prompt = build(ask("paper"), ScriptedEngine(), lookup)
    assert outline(prompt.request.messages[-1]) == [
        "Page 1: ",
        "Image",
        "\nfirst page\nPage 2: ",
        "Image",
        "\nsecond page 7342\nPage 3: ",
        "Image",
        "\nWhat?",
    ]
    assert prompt.shown[0].pages == (1, 2, 3)


def test_chosen_pages_only(lookup: Callable[[Attachment], Media]) -> None:
    prompt = build(ask("paper"), ScriptedEngine(), lookup, Options(pages="2"))
    assert outline(prompt.request.messages[-1]) == ["Page 2: ", "Image", "\nsecond page 7342\nWhat?"]


def test_a_video_is_stamped_within_its_span(lookup: Callable[[Attachment], Media]) -> None:
    prompt = build(ask("film"), ScriptedEngine(), lookup, Options(start=2.0, end=5.0))
    plan = prompt.parts[0]
    assert isinstance(plan, FramePlan)
    assert all(2.0 <= second < 5.0 for second in plan.seconds)
    assert prompt.shown[0].moments == plan.stamps


def test_a_small_model_is_shown_no_more_moments_than_it_is_good_with(lookup: Callable[[Attachment], Media]) -> None:
    engine = ScriptedEngine(model=ModelInfo("small", "small", most_moments=3))
    assert len(build(ask("film"), engine, lookup).shown[0].moments) == 3
    assert len(build(ask("film"), engine, lookup, Options(fps=1.0)).shown[0].moments) > 3  # by hand


def test_an_empty_span_is_a_sentence(lookup: Callable[[Attachment], Media]) -> None:
    with pytest.raises(MediaError, match="8.0 seconds long"):
        build(ask("film"), ScriptedEngine(), lookup, Options(start=100.0))


def test_later_turns_repeat_what_was_shown_to_the_letter(lookup: Callable[[Attachment], Media]) -> None:
    engine = ScriptedEngine()
    first = build(ask("picture", "film"), engine, lookup)
    conversation = ask("picture", "film")
    conversation = conversation.update(conversation.path[0].id, parts=first.parts).answer()
    conversation = conversation.update(conversation.path[1].id, text="A square.", state="done")
    second = build(conversation.ask("And this?", (attachment("picture"),)), engine, lookup)
    assert second.request.messages[0].parts == first.parts
    assert outline(second.request.messages[1]) == ["A square."]
    assert outline(second.request.messages[2]) == ["Picture 2: ", "Image", "And this?"]
    assert len(second.shown) == 1


def test_everything_fits_a_small_context(lookup: Callable[[Attachment], Media]) -> None:
    engine = ScriptedEngine(context_length=8_000)
    prompt = build(ask("picture", "film", "paper"), engine, lookup)
    assert prompt.budget.fits
    assert prompt.budget.tokens < 8_000


@pytest.mark.parametrize("context_length", [40, 120])
def test_what_cannot_fit_is_refused_with_advice(lookup: Callable[[Attachment], Media], context_length: int) -> None:
    with pytest.raises(TooLong, match=r"\d"):
        build(ask("film", "paper", "picture"), ScriptedEngine(context_length=context_length), lookup)


def test_a_long_text_is_refused_with_both_numbers(lookup: Callable[[Attachment], Media]) -> None:
    with pytest.raises(TooLong, match=r"the model reads 500"):
        build(ask(text="word " * 2_000), ScriptedEngine(context_length=500), lookup)


def test_an_empty_conversation_is_refused(lookup: Callable[[Attachment], Media]) -> None:
    with pytest.raises(Unsupported):
        build(Conversation(), ScriptedEngine(), lookup)


def test_the_seam_of_two_texts_is_closed(media: dict[str, Media]) -> None:
    prompt = lay_out([Draft("user", ("<|im_", "end|>", Attached(media["picture"]), "x"))], ScriptedEngine())
    texts: list[Part] = [part for part in prompt.parts if isinstance(part, str)]
    assert texts == ["<|im_end|>", "x"]


def test_the_system_text_comes_first(lookup: Callable[[Attachment], Media]) -> None:
    prompt = build(ask(), ScriptedEngine(), lookup, Options(system="Be brief."))
    assert [message.role for message in prompt.request.messages] == ["system", "user"]


@pytest.mark.parametrize(
    ("text", "pages"),
    [("", (1, 2, 3, 4, 5)), ("2", (2,)), ("4-5, 1", (1, 4, 5)), ("1，3–4", (1, 3, 4)), ("2, 2", (2,))],
)
def test_pages_in_words(text: str, pages: tuple[int, ...]) -> None:
    assert read_pages(text, 5) == pages


@pytest.mark.parametrize("text", ["0", "6", "3-2", "a", "1-", ",", "1;2", "99999999"])
def test_pages_that_are_not_there(text: str) -> None:
    with pytest.raises(MediaError, match="this PDF has 5"):
        read_pages(text, 5)


# Spans in words


def stamps(prompt: Prompt) -> list[float]:
    return [stamp for part in prompt.parts if isinstance(part, FramePlan) for stamp in part.stamps]


def test_a_span_in_words_narrows_the_video_and_is_told(lookup: Callable[[Attachment], Media]) -> None:
    prompt = build(ask("film", text="What happens between 0:02 and 0:05?"), ScriptedEngine(), lookup)
    assert all(2.0 <= stamp < 5.0 for stamp in stamps(prompt))
    assert prompt.shown[0].span == (2.0, 5.0)
    assert prompt.named == (Named("film", "film.bin", 2.0, 5.0, used=True),)


def test_several_spans_are_several_plans_of_one_video(lookup: Callable[[Attachment], Media]) -> None:
    prompt = build(ask("film", text="Compare 0:01-0:02 with 0:06-0:07."), ScriptedEngine(), lookup)
    plans = [part.clip for part in prompt.parts if isinstance(part, FramePlan)]
    assert [(plan.start, plan.end) for plan in plans] == [(1.0, 2.0), (6.0, 7.0)]
    assert outline(prompt.request.messages[-1])[-1].startswith("Compare")
    assert "Video" not in "".join(part for part in prompt.parts if isinstance(part, str))


def test_the_words_are_overruled_by_hand_and_by_a_click(lookup: Callable[[Attachment], Media]) -> None:
    question = ask("film", text="What happens between 0:02 and 0:05?")
    whole = build(question, ScriptedEngine(), lookup, Options(whole=True))
    assert max(stamps(whole)) > 6
    assert [(named.start, named.used) for named in whole.named] == [(2.0, False)]
    by_hand = build(question, ScriptedEngine(), lookup, Options(start=6.0))
    assert min(stamps(by_hand)) >= 6
    chosen = build(question, ScriptedEngine(), lookup, Options(moments={"film": ((1.0, 1.0), (7.0, 7.5))}))
    assert stamps(chosen) == [1.0, 7.25]


def test_only_the_video_that_is_named_is_narrowed(media: dict[str, Media]) -> None:
    items = (
        Attached(media["film"], "a", "lecture.mp4"),
        Attached(other(media), "b", "holiday.mp4"),
        "holiday 0:02-0:05?",
    )
    prompt = lay_out([Draft("user", items)], ScriptedEngine())
    assert [shown.span for shown in prompt.shown] == [None, (2.0, 5.0)]


def other(media: dict[str, Media]) -> Media:
    """The same film under another digest."""
    film = media["film"]
    assert isinstance(film, Clip)
    video._scans["other"] = video.scan_of(film)
    return replace(film, digest="other")


def told(*questions: str, lookup: Callable[[Attachment], Media], engine: ScriptedEngine) -> tuple[Prompt, Conversation]:
    """A conversation about the film that was asked and answered but for its last question."""
    conversation = ask("film", text=questions[0])
    for question in questions[1:]:
        parts = build(conversation, engine, lookup).parts
        conversation = conversation.update(conversation.path[-1].id, parts=parts).answer()
        conversation = conversation.update(conversation.path[-1].id, text="Yes.", state="done")
        conversation = conversation.ask(question)
    return build(conversation, engine, lookup), conversation


def test_a_span_in_a_later_question_is_read_again_behind_an_unchanged_prefix(
    lookup: Callable[[Attachment], Media],
) -> None:
    engine = ScriptedEngine(model=ModelInfo("small", "small", most_moments=3))
    first = build(ask("film", text="What?"), engine, lookup)
    prompt, _ = told("What?", "And between 0:02 and 0:04?", lookup=lookup, engine=engine)
    assert prompt.request.messages[0].parts == first.parts
    assert stamps(prompt)
    assert all(2.0 <= stamp < 4.0 for stamp in stamps(prompt))
    assert prompt.shown[0].id == "film"
    again, _ = told("What?", "And between 0:02 and 0:04?", "Why?", lookup=lookup, engine=engine)
    assert again.request.messages[2].parts == prompt.parts  # and the third question shows nothing again
    assert again.shown == ()


def test_a_moment_in_a_later_question_is_looked_at_only_where_it_was_not_seen(
    lookup: Callable[[Attachment], Media],
) -> None:
    dense = ScriptedEngine()
    prompt, _ = told("What?", "What is at 0:04?", lookup=lookup, engine=dense)
    assert prompt.shown == ()
    sparse = ScriptedEngine(model=ModelInfo("small", "small", most_moments=2))
    prompt, _ = told("What?", "What is at 0:04?", lookup=lookup, engine=sparse)
    assert [shown.span for shown in prompt.shown] == [(2.0, 6.0)]
    assert any(abs(stamp - 4.0) <= 1.0 for stamp in stamps(prompt))


def test_a_moment_in_the_first_question_is_among_those_shown(lookup: Callable[[Attachment], Media]) -> None:
    engine = ScriptedEngine(model=ModelInfo("small", "small", most_moments=2))
    prompt = build(ask("film", text="What is at 0:03?"), engine, lookup)
    assert 3.0 in stamps(prompt)
    assert len(stamps(prompt)) == 2


def test_behind_a_question_that_names_a_moment_stands_its_label(lookup: Callable[[Attachment], Media]) -> None:
    engine = ScriptedEngine(model=ModelInfo("small", "small", most_moments=2))
    prompt, conversation = told("What is at 0:03?", "And at second 3?", "And at 0:06?", lookup=lookup, engine=engine)
    words = [[part for part in message.parts if isinstance(part, str)] for message in prompt.request.messages[::2]]
    assert words[0][-1] == "What is at 0:03? (<3.0 seconds>)"
    assert words[1] == ["And at second 3? (<3.0 seconds>)"]
    assert prompt.shown  # 0:06 was not seen before
    shown = min(stamps(prompt), key=lambda stamp: abs(stamp - 6.0))
    assert words[2][-1] == f"And at 0:06? (<{shown:.1f} seconds>)"
    assert [turn.text for turn in conversation.path if turn.role == "user"][0] == "What is at 0:03?"


def test_of_several_videos_a_moment_says_nothing(media: dict[str, Media]) -> None:
    files = (Attached(media["film"], "a", "lecture.mp4"), Attached(other(media), "b", "holiday.mp4"))
    prompt = lay_out([Draft("user", (*files, "What is at 0:03?"))], ScriptedEngine())
    assert outline(prompt.request.messages[-1])[-1] == "What is at 0:03?"


def test_a_video_shown_again_keeps_its_number(media: dict[str, Media]) -> None:
    engine = ScriptedEngine()
    files = (Attached(media["film"], "a", "lecture.mp4"), Attached(other(media), "b", "holiday.mp4"))
    first = lay_out([Draft("user", (*files, "What?"))], engine)
    later = [
        Draft("user", files, first.parts),
        Draft("assistant", ("Yes.",)),
        Draft("user", ("And video 2 from 0:02 to 0:04?",)),
    ]
    assert outline(lay_out(later, engine).request.messages[-1])[:2] == ["Video 2: ", "FramePlan"]


def test_no_two_frames_of_a_short_clip_that_go_together_are_of_two_scenes(tmp_path: Path) -> None:
    changes = (2.3, 5.4, 6.2, 9.0)

    def picture(number: int, time: float) -> np.ndarray:
        return np.full((90, 160, 3), 40 * sum(time >= change - 1e-6 for change in changes) + 30, np.uint8)

    path = clip_file(tmp_path / "short.mp4", (n / 10 for n in range(120)), picture, size=(160, 90), fps=10)
    plan = lay_out([Draft("user", (Attached(open_upload(path)), "What?"))], ScriptedEngine()).parts[0]
    assert isinstance(plan, FramePlan)
    shades = [int(frame.pixels.mean()) for frame in read_frames(plan)]
    assert shades[::2] == shades[1::2] and len(set(shades)) == len(changes) + 1
    assert 12 <= len(plan.patches) <= 16  # a second apart, and both sides of each change


@pytest.fixture(scope="module")
def long_film(tmp_path_factory: pytest.TempPathFactory) -> Clip:
    """Three minutes and a half that change at 20, 80, 130 and 131.5 seconds."""
    changes = (20, 80, 130, 131.5)

    def picture(number: int, time: float) -> np.ndarray:
        return np.full((90, 160, 3), 40 * sum(time >= change for change in changes) + 30, np.uint8)

    path = tmp_path_factory.mktemp("long") / "long.mp4"
    film = open_upload(clip_file(path, (n / 5 for n in range(5 * 210)), picture, size=(160, 90), fps=5, g="40"))
    assert isinstance(film, Clip)
    return film


def test_a_long_video_is_shown_where_it_changes(long_film: Clip) -> None:
    prompt = lay_out([Draft("user", (Attached(long_film), "What?"))], ScriptedEngine(), Options(patience=60.0))
    plan = prompt.parts[0]
    assert isinstance(plan, FramePlan) and prompt.shown[0].looked is None
    assert all(first == second for first, second in plan.patches)
    for start, end in itertools.pairwise((0, 20, 80, 130, 131.5, 210)):
        assert any(start <= first < end for first, _ in plan.patches)
    assert len(plan.patches) < 15 and max(np.diff([first for first, _ in plan.patches])) <= 31


def test_until_it_is_looked_through_moments_are_even_and_that_is_said(
    long_film: Clip, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(storyboard, "wait", lambda clip, patience: None)
    monkeypatch.setattr(storyboard, "reading", lambda clip: storyboard.Reading("making", 0.4))
    prompt = lay_out([Draft("user", (Attached(long_film), "What?"))], ScriptedEngine())
    assert prompt.shown[0].looked == 0.4 and len(prompt.shown[0].moments) > 40


@pytest.mark.parametrize("options", [Options(fps=0.5), Options(most_moments=30), Options(start=10, end=60)])
def test_what_is_set_by_hand_needs_no_storyboard(
    long_film: Clip, options: Options, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(storyboard, "wait", None)
    prompt = lay_out([Draft("user", (Attached(long_film), "What?"))], ScriptedEngine(), options)
    assert prompt.shown[0].looked is None and len(prompt.shown[0].moments) >= 25


# What is said in a video

LINES = [(1.0, 2.0, "Hello there"), (5.0, 6.0, "Good bye")]


@pytest.fixture(scope="module")
def talk(tmp_path_factory: pytest.TempPathFactory) -> Media:
    folder = tmp_path_factory.mktemp("talk")
    film = colour_clip(folder / "film.mp4", 8)
    tracks = [("subrip", "eng", LINES), ("subrip", "chi", [(1.0, 2.0, "你好")])]
    return open_upload(with_subtitles(film, folder / "talk.mkv", tracks, [(0, 4, "Intro"), (4, 8, "The end")]))


@pytest.fixture(scope="module")
def spoken(tmp_path_factory: pytest.TempPathFactory) -> Media:
    path = tmp_path_factory.mktemp("spoken") / "a.srt"
    path.write_text(srt([(0.5, 1.0, "beside one"), (4.0, 5.0, "beside two")]))
    return open_upload(path)


def read(prompt: Prompt) -> str:
    """What the model reads, a dot for each patch."""
    return "".join(
        part if isinstance(part, str) else "".join(f"{label}." for label in part.labels)
        for part in prompt.parts
        if isinstance(part, str | FramePlan)
    )


def test_what_is_said_stands_between_what_is_seen(talk: Media) -> None:
    prompt = lay_out([Draft("user", (Attached(talk, "t", "talk.mkv"), "What?"))], ScriptedEngine(), Options(fps=0.5))
    text = read(prompt)
    assert text.startswith(
        "Chapters: 00:00 Intro; 00:04 The end\n<0.0 seconds>.\n[1.0-2.0] Hello there\n<2.0 seconds>."
    )
    assert "[5.0-6.0] Good bye\n<6.0 seconds>." in text
    assert text.endswith("What?")
    assert prompt.shown[0].lines == (2, 2)


def test_the_language_of_the_question_is_preferred_and_words_can_be_left_out(talk: Media) -> None:
    drafts = [Draft("user", (Attached(talk, "t", "talk.mkv"), "他说了什么？"))]
    assert "[1.0-2.0] 你好" in read(lay_out(drafts, ScriptedEngine()))
    silent = lay_out(drafts, ScriptedEngine(), Options(subtitles=False))
    assert "你好" not in read(silent) and "Chapters" not in read(silent)


def test_a_span_has_only_its_own_words(talk: Media) -> None:
    prompt = lay_out([Draft("user", (Attached(talk, "t", "talk.mkv"), "What is said after 0:04?"))], ScriptedEngine())
    assert "Good bye" in read(prompt) and "Hello" not in read(prompt)
    assert "The end" in read(prompt) and "Intro" not in read(prompt)


def test_a_file_beside_the_video_is_read_with_it(media: dict[str, Media], spoken: Media) -> None:
    items = (Attached(media["film"], "f", "film.mp4"), Attached(spoken, "s", "film.zh.srt"), "What?")
    prompt = lay_out([Draft("user", items)], ScriptedEngine(), Options(fps=0.5))
    assert "<0.0 seconds>.\n[0.5-1.0] beside one\n<2.0 seconds>." in read(prompt)
    assert [shown.id for shown in prompt.shown] == ["f"]


def test_of_two_videos_the_one_it_is_named_after(media: dict[str, Media], spoken: Media) -> None:
    files = (Attached(media["film"], "a", "lecture.mp4"), Attached(other(media), "b", "holiday.mp4"))
    named = lay_out([Draft("user", (*files, Attached(spoken, "s", "holiday.srt"), "What?"))], ScriptedEngine())
    assert [shown.lines for shown in named.shown] == [(0, 0), (2, 2)]
    unnamed = lay_out([Draft("user", (*files, Attached(spoken, "s", "words.srt"), "What?"))], ScriptedEngine())
    assert [(shown.id, shown.lines) for shown in unnamed.shown] == [("a", (0, 0)), ("b", (0, 0)), ("s", (2, 2))]


def test_one_that_comes_later_is_shown_by_itself_and_kept_for_what_is_read_again(
    media: dict[str, Media], spoken: Media
) -> None:
    engine = ScriptedEngine()
    film, words = Attached(media["film"], "f", "film.mp4"), Attached(spoken, "s", "film.srt")
    first = lay_out([Draft("user", (film, "What?"))], engine)
    later = [Draft("user", (film,), first.parts), Draft("assistant", ("Yes.",)), Draft("user", (words, "And now?"))]
    second = lay_out(later, engine)
    assert read(second) == "Subtitles (film.srt):\n[0.5-1.0] beside one\n[4.0-5.0] beside two\nAnd now?"
    third = [*later[:2], Draft("user", (words,), second.parts), later[1], Draft("user", ("And after 0:03?",))]
    assert "[4.0-5.0] beside two" in read(lay_out(third, engine))


def test_long_speech_is_thinned_evenly_to_its_share(media: dict[str, Media], tmp_path: Path) -> None:
    path = tmp_path / "long.srt"
    path.write_text(srt([(n * 0.005, n * 0.005 + 0.004, f"word {n} " * 8) for n in range(1_600)]))
    items = (Attached(media["film"], "f", "film.mp4"), Attached(open_upload(path), "s", "film.srt"), "What?")
    prompt = lay_out([Draft("user", items)], ScriptedEngine())
    shown, every = prompt.shown[0].lines
    assert every == 1_600 and 100 < shown < 400
    assert "word 0 " in read(prompt) and any(f"word {n} " in read(prompt) for n in range(1_580, 1_600))
    assert prompt.budget.tokens < 8_192 + 4_096 + 400
    tight = lay_out([Draft("user", items)], ScriptedEngine(context_length=3_000))
    assert tight.budget.fits and tight.shown[0].lines[0] < shown


SMALL_PAGES = ModelInfo(name="small", checkpoint="", image_pixels=(4096, 16_384), context_length=4096)


def test_of_a_pdf_longer_than_the_context_the_pages_nearest_to_the_question_are_shown(tmp_path: Path) -> None:
    texts = ["\n".join([f"Page number {page} tells of subject {page * 11}."] * 20) for page in range(1, 61)]
    texts[40] += "\nThe pump 7342 fails first."
    document = open_upload(pdf(tmp_path / "long.pdf", texts))
    engine = ScriptedEngine(context_length=4096, model=SMALL_PAGES)
    prompt = lay_out([Draft("user", (Attached(document, name="long.pdf"), "Why does pump 7342 fail?"))], engine)
    (shown,) = prompt.shown
    assert 41 in shown.pages and 1 < len(shown.pages) < shown.of_pages == 60
    assert prompt.budget.fits and "60 pages of long.pdf" in prompt.note and "41" in prompt.note
    text = "".join(part for part in prompt.parts if isinstance(part, str))
    assert text.startswith("Document: pages ") and "of 60." in text and "pump 7342 fails first" in text


def test_pages_named_by_hand_are_never_left_out(tmp_path: Path) -> None:
    document = open_upload(pdf(tmp_path / "long.pdf", ["\n".join(["word " * 10] * 30)] * 30))
    engine = ScriptedEngine(context_length=4096, model=SMALL_PAGES)
    with pytest.raises(TooLong):
        lay_out([Draft("user", (Attached(document), "What?"))], engine, Options(pages="1-30"))


# A conversation that has outgrown the context


def talked(*questions: str, answer: str = "word " * 400) -> Conversation:
    """Each question answered at length, some five hundred tokens together; the last one is still to be answered."""
    conversation = Conversation()
    for question in questions[:-1]:
        conversation = conversation.ask(question)
        conversation = conversation.update(conversation.path[-1].id, parts=(question,)).answer()
        conversation = conversation.update(conversation.path[-1].id, text=f"{question} {answer}", state="done")
    return conversation.ask(questions[-1])


def asked(prompt: Prompt) -> list[str]:
    return [str(message.parts[-1]) for message in prompt.request.messages if message.role == "user"]


TALK = [f"Tell me of subject {n}." for n in range(1, 9)]


def test_the_question_before_and_what_shares_its_words_stay_and_the_rest_is_told(
    lookup: Callable[[Attachment], Media],
) -> None:
    talk = [*TALK[:2], "What does the pump 7342 do?", *TALK[3:], "And why does pump 7342 fail?"]
    prompt = build(talked(*talk), ScriptedEngine(context_length=2_500), lookup)
    assert asked(prompt) == [talk[2], talk[6], talk[7], talk[-1]]
    assert prompt.budget.fits and prompt.budget.answer_tokens >= 2_500 // 4
    assert prompt.note == (
        "5 of your 8 earlier questions (no. 1-2, 4-6) and their answers have no room and are not looked at. "
        "Say again what matters of them."
    )
    assert [message.role for message in prompt.request.messages] == ["user", "assistant"] * 3 + ["user"]


def test_nothing_is_left_out_while_there_is_room(lookup: Callable[[Attachment], Media]) -> None:
    prompt = build(talked(*TALK), ScriptedEngine(context_length=20_000), lookup)
    assert asked(prompt) == TALK and prompt.note == "" and prompt.left_out == ()


def test_programs_are_refused_instead(media: dict[str, Media]) -> None:
    drafts = [Draft("user", ("word " * 900,)), Draft("assistant", ("Yes.",)), Draft("user", ("And?",))]
    with pytest.raises(TooLong, match="the model reads 1,000"):
        lay_out(drafts, ScriptedEngine(context_length=1_000))
    assert lay_out(drafts, ScriptedEngine(context_length=1_000), forget=True).left_out


def test_a_question_that_is_too_long_by_itself_is_still_refused(lookup: Callable[[Attachment], Media]) -> None:
    with pytest.raises(TooLong, match=r"the model reads 1,000"):
        build(talked(*TALK[:3], "word " * 2_000), ScriptedEngine(context_length=1_000), lookup)


def test_an_answer_is_never_squeezed_to_a_few_words(lookup: Callable[[Attachment], Media]) -> None:
    conversation = talked(*TALK)
    whole = build(conversation, ScriptedEngine(context_length=20_000), lookup).budget.tokens
    prompt = build(conversation, ScriptedEngine(context_length=whole + 10), lookup)
    assert prompt.left_out and prompt.budget.answer_tokens > 300


def test_files_of_what_is_left_out_are_named_and_numbers_stay(lookup: Callable[[Attachment], Media]) -> None:
    engine = ScriptedEngine(context_length=3_000)
    conversation = talked("First.", "Second.", answer="word " * 1_600)
    first = conversation.path[0]
    parts = build(ask("picture", text="First."), engine, lookup).parts
    conversation = conversation.update(first.id, parts=parts, attachments=(attachment("picture"),))
    for question in TALK[:5]:
        conversation = conversation.update(conversation.path[-1].id, parts=(conversation.path[-1].text,)).answer()
        conversation = conversation.update(conversation.path[-1].id, text="word " * 800, state="done")
        conversation = conversation.ask(question, (attachment("picture"),) if question == TALK[4] else ())
    prompt = build(conversation, engine, lookup)
    assert "files (picture.bin)" in prompt.note and "(no. 1-" in prompt.note
    assert "Picture 2: " in outline(prompt.request.messages[-1])


def test_what_is_left_out_can_be_asked_about_again(media: dict[str, Media]) -> None:
    engine = ScriptedEngine(context_length=2_500)
    film = Attached(media["film"], "f", "film.mp4")
    first = lay_out([Draft("user", (film, "What?"))], engine)
    drafts = [Draft("user", (film,), (*first.parts, "word " * 1_600)), Draft("assistant", ("Yes.",))]
    prompt = lay_out([*drafts, Draft("user", ("What is shown between 0:02 and 0:05?",))], engine, forget=True)
    assert prompt.left_out and [shown.span for shown in prompt.shown] == [(2.0, 5.0)]


def test_a_new_video_is_not_squeezed_by_old_talk(media: dict[str, Media]) -> None:
    by_itself = lay_out([Draft("user", (Attached(media["film"], "f"), "What?"))], ScriptedEngine(context_length=4_000))
    old = [Draft("user", ("word " * 2_330,)), Draft("assistant", ("Yes.",))]
    drafts = [*old, Draft("user", (Attached(media["film"], "f"), "What?"))]
    prompt = lay_out(drafts, ScriptedEngine(context_length=4_000), forget=True)
    assert prompt.left_out and not prompt.crowded
    assert len(prompt.shown[0].moments) >= len(by_itself.shown[0].moments) // 2


def test_a_video_with_room_for_few_moments_shows_those_the_question_is_about_and_says_how_few(
    media: dict[str, Media], tmp_path: Path
) -> None:
    path = tmp_path / "film.srt"
    path.write_text(srt([(0.0, 1.0, "welcome"), (5.3, 6.0, "here the dragon wakes"), (7.0, 8.0, "bye")]))
    engine = ScriptedEngine(context_length=160, model=replace(SMALL_PAGES, frame_pixels=(4096, 16_384)))
    items = (Attached(media["film"], "f", "film.mp4"), Attached(open_upload(path), "s", "film.srt"), "The dragon?")
    prompt = lay_out([Draft("user", items)], engine)
    (plan,) = [part for part in prompt.parts if isinstance(part, FramePlan)]
    assert 1 < len(plan.patches) < 4 and any(abs(stamp - 5.3) < 0.3 for stamp in plan.stamps)
    assert f"room for {len(plan.patches)} moments of 00:08 of video" in prompt.note and prompt.crowded


def test_lines_nearest_to_the_question_stay_when_many_are_thinned(media: dict[str, Media], tmp_path: Path) -> None:
    path = tmp_path / "long.srt"
    lines = [(n * 0.005, n * 0.005 + 0.004, f"word {n} " * 8) for n in range(1_600)]
    lines[777] = (777 * 0.005, 777 * 0.005 + 0.004, "the dragon wakes")
    path.write_text(srt(lines))
    items = (Attached(media["film"], "f", "film.mp4"), Attached(open_upload(path), "s", "film.srt"), "The dragon?")
    prompt = lay_out([Draft("user", items)], ScriptedEngine())
    assert "the dragon wakes" in read(prompt)
    assert f"Of the 1,600 subtitle lines of film.mp4, the model is shown {prompt.shown[0].lines[0]}," in prompt.note
