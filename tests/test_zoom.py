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
from qwen3vl_webui.media.sampling import plan_frames
from qwen3vl_webui.media.segments import Segment, Storyboard
from qwen3vl_webui.media.upload import open_upload
from qwen3vl_webui.media.values import Clip, FramePlan
from qwen3vl_webui.media.video import read_times
from qwen3vl_webui.zoom import Closer, look_closer, spans_of, wants_closer
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


def read(engine: ScriptedEngine, request: GenerationRequest) -> tuple[str, list[Closer], FinishEvent]:
    events = list(look_closer(engine, request))
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
    ((start, end),) = closer[0].spans
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
    assert len(spans) == 2 and spans[0][0] <= 3.0 <= spans[0][1] < spans[1][0] <= 50.1 <= spans[1][1]


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
