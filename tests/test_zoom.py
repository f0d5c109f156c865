"""Zoom in time with the scripted engine: two readings of a real file, one answer."""

from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest

from qwen3vl_webui.engine.contract import (
    FinishEvent,
    GenerationRequest,
    Message,
    ModelInfo,
    PrefillEvent,
    SamplingParams,
    TokenEvent,
)
from qwen3vl_webui.errors import EngineError
from qwen3vl_webui.looks import Look, find_looks, joined, spans_of, wants_closer
from qwen3vl_webui.media.sampling import plan_frames
from qwen3vl_webui.media.segments import Segment, Storyboard
from qwen3vl_webui.media.upload import open_upload
from qwen3vl_webui.media.values import Clip, Cue, FramePlan
from qwen3vl_webui.media.video import read_times
from qwen3vl_webui.zoom import Closer, look_closer
from tests.clips import colour_clip
from tests.scripted_engine import Gate, ScriptedEngine

LONG = ModelInfo(name="scripted", checkpoint="", frame_pixels=(4096, 16_384), most_moments=12)


@pytest.fixture(scope="module")
def film(tmp_path_factory: pytest.TempPathFactory) -> Clip:
    path: Path = tmp_path_factory.mktemp("zoom") / "film.mp4"
    opened = open_upload(colour_clip(path, 60.0))
    assert isinstance(opened, Clip)
    return opened


@pytest.fixture
def plan(film: Clip) -> FramePlan:
    return plan_frames(film, read_times(film), budget=2_000, frame_pixels=(4096, 16_384), most_moments=12)


def asking(plan: FramePlan, question: str) -> GenerationRequest:
    return GenerationRequest((Message("user", (plan, question)),), SamplingParams(), conversation="chat")


def read(
    engine: ScriptedEngine, request: GenerationRequest, said: tuple[Cue, ...] = ()
) -> tuple[str, list[Closer], FinishEvent]:
    events = list(look_closer(engine, request, said))
    text = "".join(event.text for event in events if isinstance(event, TokenEvent) and not event.thinking)
    (finish,) = [event for event in events if isinstance(event, FinishEvent)]
    assert events[-1] is finish and isinstance(events[0], PrefillEvent)
    return text, [event for event in events if isinstance(event, Closer)], finish


def twice(first: str, second: str) -> ScriptedEngine:
    answers = iter((first, second))
    return ScriptedEngine(lambda request: next(answers), model=LONG)


@pytest.mark.parametrize(
    "question", ["When does it turn?", "红色圆形什么时候出现？", "List every time it is shown.", "出现了几次？"]
)
def test_the_neighbourhood_of_a_named_time_is_read_again_and_answers(plan: FramePlan, question: str) -> None:
    engine = twice("It turns at 27.3 seconds.", "It turns at 25.5 seconds.")
    text, closer, _ = read(engine, asking(plan, question))
    assert text == "It turns at 25.5 seconds."
    (look,) = closer[0].looks
    start, end = look.start, look.end
    assert look.ways == ("named",)
    before = max(stamp for stamp in plan.stamps if stamp < 27.3)
    after = min(stamp for stamp in plan.stamps if stamp > 27.3)
    assert start <= before and after <= end < after + 1
    again = engine.requests[1].messages[-1].parts
    assert again[1] == question
    assert isinstance(again[0], FramePlan)
    assert start <= again[0].stamps[0] and again[0].stamps[-1] <= end
    finest = max(b - a for a, b in zip(again[0].stamps, again[0].stamps[1:], strict=False))
    assert finest <= 1.01 and len(again[0].patches) <= 12
    assert again[0].width * again[0].height >= plan.width * plan.height
    assert again[0].tokens <= plan.tokens + 12 * 16


@pytest.mark.parametrize(
    "question, first",
    [
        ("Describe the film.", "It turns at 27.3 seconds."),  # wants no time
        ("When does it turn?", "It never turns."),  # names none
        ("When does it turn?", "It turns at 400 seconds."),  # beyond the film
    ],
)
def test_one_reading_is_all_when_a_second_would_find_nothing(plan: FramePlan, question: str, first: str) -> None:
    engine = twice(first, "Never asked.")
    text, closer, _ = read(engine, asking(plan, question))
    assert text == first and not closer and len(engine.requests) == 1


def test_a_film_seen_finely_is_read_once(film: Clip) -> None:
    short = film.between(10.0, 18.0)
    plan = plan_frames(short, read_times(short), budget=4_000, frame_pixels=(4096, 16_384))
    engine = twice("It turns at 12.5 seconds.", "Never asked.")
    assert read(engine, asking(plan, "When does it turn?"))[0] == "It turns at 12.5 seconds."


def test_a_second_answer_without_a_time_does_not_hide_the_first(plan: FramePlan) -> None:
    text, closer, _ = read(twice("It turns at 27.3 seconds.", "There is no turn."), asking(plan, "When does it turn?"))
    assert text == "It turns at 27.3 seconds." and closer


def test_a_second_reading_that_fails_before_its_answer_leaves_the_first(plan: FramePlan) -> None:
    engine = twice("It turns at 27.3 seconds.", "It turns")
    plain = engine.generate

    def failing(request):
        engine.fail = EngineError("Gone.") if engine.requests else None
        return plain(request)

    engine.generate = failing  # type: ignore[method-assign]
    assert read(engine, asking(plan, "When does it turn?"))[0] == "It turns at 27.3 seconds."


def test_what_is_said_is_known_to_the_second_reading(plan: FramePlan) -> None:
    spoken = replace(plan, captions=("", "[3.0-4.0] hello\n", *[""] * (len(plan.patches) - 2)))
    engine = twice("At 0:30.", "At 0:31.")
    read(engine, asking(spoken, "When?"))
    parts = engine.requests[1].messages[0].parts
    assert parts[0] == "[3.0-4.0] hello\n" and isinstance(parts[1], FramePlan)


def test_several_times_are_read_in_order_and_neighbours_together(plan: FramePlan) -> None:
    spans = spans_of("At 50.1 seconds, 3.0 seconds and 3.5 seconds.", plan)
    first, last = joined([Look(*span) for span in spans])
    assert first.start <= 3.0 <= first.end < last.start <= 50.1 <= last.end


def test_a_known_change_narrows_the_second_reading(plan: FramePlan) -> None:
    before = plan.stamps[5]
    cut, named = before + 1.0, before + 2.0
    storyboard = Storyboard((Segment(0.0, cut, 1.0, 1.0), Segment(cut, 60.0, named, 1.0)), 60.0, film=False)
    ((start, end),) = spans_of(f"It turns at {named:.1f} seconds.", plan, storyboard)
    assert before - 0.3 <= start < cut < end <= cut + 1.3


def test_closing_stops_the_reading_that_runs(plan: FramePlan) -> None:
    engine = twice("It turns at 27.3 seconds.", "It turns at 25.5 seconds.")
    engine.gate = Gate(prefill=True, only=lambda request: len(engine.requests) == 2)
    with closing(look_closer(engine, asking(plan, "When does it turn?"))) as events:
        for event in events:
            if isinstance(event, Closer):
                break
        next(events)
    engine.wait_for(lambda: engine.running is None)
    assert len(engine.stopped) == 1 and len(engine.finished) == 1


def test_what_wants_a_closer_look() -> None:
    assert wants_closer("At what second does he open the door?") and wants_closer("他在什么时候打开电脑？")
    assert not wants_closer("Summarise the talk.") and not wants_closer("总结一下")


@pytest.mark.parametrize("seconds", [7.3, 30.0, 60.0])
def test_a_short_film_at_two_pictures_a_second_is_read_once(tmp_path: Path, seconds: float) -> None:
    film = open_upload(colour_clip(tmp_path / "film.mp4", seconds))
    assert isinstance(film, Clip)
    plan = plan_frames(film, read_times(film), budget=100_000, frame_pixels=(4096, 16_384))
    engine = ScriptedEngine("It begins at 0:03.")
    read(engine, asking(plan, "When does it begin?"))
    assert len(engine.requests) == 1


# What the first reading cannot see: where it is said, and what looks like it

LINES = (Cue(6.0, 8.0, "welcome to the show"), Cue(41.0, 43.0, "and here the dragon wakes"), Cue(50.0, 52.0, "bye"))


@pytest.mark.parametrize(
    "question, lines",
    [
        ("When does the dragon appear?", LINES),
        ("巨龙什么时候出现？", (LINES[0], Cue(41.0, 43.0, "这时巨龙醒了"), LINES[2])),
    ],
)
def test_where_the_words_are_said_is_read_again_with_what_is_said(
    plan: FramePlan, question: str, lines: tuple[Cue, ...]
) -> None:
    engine = twice("I do not see it.", "At 41.5 seconds.")
    text, closer, _ = read(engine, asking(plan, question), lines)
    assert text == "At 41.5 seconds."
    assert closer[0].looks == (Look(39.0, 45.0, ("said",)),)
    (again,) = [part for part in engine.requests[1].messages[-1].parts if isinstance(part, FramePlan)]
    assert again.stamps[0] >= 39.0 and again.stamps[-1] <= 45.0
    assert lines[1].text in "".join(again.captions) and "bye" not in "".join(again.captions)


@pytest.mark.parametrize("question", ["When does the ship appear?", "When is the?", "When?"])
def test_words_that_are_not_said_find_no_line(plan: FramePlan, question: str) -> None:
    engine = twice("I do not see it.", "Never asked.")
    text, closer, _ = read(engine, asking(plan, question), LINES)
    assert text == "I do not see it." and not closer


CHAPTERS = "00:12 - The chain rule\n00:41 - Photosynthesis in a leaf\n00:55 - Thank you"


def after(plan: FramePlan, answer: str, question: str) -> GenerationRequest:
    earlier = (Message("user", (plan, "Make chapters.")), Message("assistant", (answer,)))
    return replace(asking(plan, question), messages=(*earlier, Message("user", (question,))))


@pytest.mark.parametrize(
    "question", ["When does photosynthesis appear?", "When is a leaf shown at the photosynthesis part?"]
)
def test_where_an_earlier_answer_tells_of_the_words_is_read_again(plan: FramePlan, question: str) -> None:
    engine = twice("I do not see it.", "At 41.5 seconds.")
    text, closer, _ = read(engine, after(plan, CHAPTERS, question))
    (look,) = closer[0].looks
    assert text == "At 41.5 seconds." and look.ways == ("told",) and look.start < 41 < look.end


def test_an_earlier_answer_with_one_word_of_several_in_common_finds_nothing(plan: FramePlan) -> None:
    engine = twice("I do not see it.", "Never asked.")
    earlier = "The red circle appears at 41.0 seconds."
    assert read(engine, after(plan, earlier, "When does the red star appear?"))[1] == []


def test_an_earlier_answer_finds_nothing_where_it_may_be_about_another_film(plan: FramePlan) -> None:
    other = replace(plan, clip=replace(plan.clip, digest="f" * 64))
    request = after(plan, CHAPTERS, "When does photosynthesis appear?")
    messages = (Message("user", (other, "And this?")), Message("assistant", ("Nothing.",)), *request.messages)
    engine = twice("I do not see it.", "Never asked.")
    assert read(engine, replace(request, messages=messages))[1] == []


def test_moments_that_look_like_the_question_are_read_beside_what_was_named(plan: FramePlan) -> None:
    engine = twice("At 50.1 seconds.", "At 10.2 seconds.")
    near = min(range(len(plan.stamps)), key=lambda index: abs(plan.stamps[index] - 10))
    asked = []

    def alike(shown: FramePlan, question: str) -> tuple[float, ...]:
        assert len(engine.finished) == 1  # when its features are there
        asked.append((shown, question))
        return tuple(2.0 if index == near else 0.5 for index in range(len(shown.patches)))

    engine.alike = alike
    text, closer, _ = read(engine, asking(plan, "When does it turn?"))
    assert text == "At 10.2 seconds." and asked == [(plan, "When does it turn?")]
    first, second = closer[0].looks
    assert first.ways == ("alike",) and first.start < plan.stamps[near] < first.end
    assert second.ways == ("named",) and second.start < 50.1 < second.end
    views = [part for part in engine.requests[1].messages[-1].parts if isinstance(part, FramePlan)]
    assert [view.clip.start for view in views] == [first.start, second.start]
    assert sum(len(view.patches) for view in views) <= 12


def test_what_is_named_and_looks_like_it_is_one_span_and_both_are_told(plan: FramePlan) -> None:
    engine = ScriptedEngine(model=LONG, alike=lambda plan, _: tuple(float(abs(s - 30) < 3) for s in plan.stamps))
    looks = find_looks(engine, "When?", "At 0:30.", plan)
    assert any(look.start <= 30 <= look.end and set(look.ways) == {"named", "alike"} for look in looks)


def test_likeness_alone_starts_no_second_reading(plan: FramePlan) -> None:
    engine = twice("It never turns.", "Never asked.")
    engine.alike = lambda plan, question: (1.0,) * len(plan.patches)
    assert read(engine, asking(plan, "When does it turn?"))[1] == []


def test_an_engine_that_cannot_tell_what_is_alike_answers_as_before(plan: FramePlan) -> None:
    class Plain:
        def __init__(self, engine: ScriptedEngine) -> None:
            self.model, self.context_length, self.plan = engine.model, engine.context_length, engine.plan
            self.generate, self.close = engine.generate, engine.close

    text, closer, _ = read(Plain(twice("At 0:30.", "At 0:31.")), asking(plan, "When?"))  # type: ignore[arg-type]
    assert text == "At 0:31." and closer[0].looks[0].ways == ("named",)


def test_never_more_spans_than_can_be_read_finely(plan: FramePlan) -> None:
    lines = tuple(Cue(t, t + 1.0, "dragon") for t in (2.0, 12.0, 22.0, 32.0, 42.0, 52.0))
    engine = ScriptedEngine(model=LONG, alike=lambda plan, _: (1.0,) * len(plan.patches))
    named = " ".join(f"{second} seconds." for second in (4, 14, 24, 34))
    assert 4 <= len(find_looks(engine, "When does the dragon wake?", named, plan, lines)) <= 8


def test_closing_between_the_readings_stops_what_was_found_by_words(plan: FramePlan) -> None:
    engine = twice("I do not see it.", "At 41.5 seconds.")
    engine.gate = Gate(prefill=True, only=lambda request: len(engine.requests) == 2)
    with closing(look_closer(engine, asking(plan, "When does the dragon wake?"), LINES)) as events:
        for event in events:
            if isinstance(event, Closer):
                break
        next(events)
    engine.wait_for(lambda: engine.running is None)
    assert len(engine.stopped) == 1 and len(engine.finished) == 1
