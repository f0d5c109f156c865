"""Which moments look like a question, asked of every engine through `likeness_of`."""

from __future__ import annotations

import threading

import pytest

from qwen3vl_webui.engine.contract import likeness_of
from qwen3vl_webui.engine.opening import OpeningEngine
from qwen3vl_webui.errors import NotReady
from qwen3vl_webui.media.values import FramePlan
from tests.engine.conftest import Open, ask, read_frames, video
from tests.scripted_engine import ScriptedEngine

QUESTION = "When is the circle red?"


def test_only_what_was_encoded_already_is_looked_at(open_engine: Open) -> None:
    read: list[FramePlan] = []

    def counted(plan: FramePlan):
        read.append(plan)
        return read_frames(plan)

    engine = open_engine(read_frames=counted)
    plan = video("film", 5)
    assert likeness_of(engine, plan, QUESTION) == (0.0,) * 5 and read == []
    list(engine.generate(ask(plan, QUESTION)))
    assert len(read) == 1
    alike = likeness_of(engine, plan, QUESTION)
    assert len(alike) == 5 and all(each >= 0 for each in alike) and max(alike) > 0
    assert alike == likeness_of(engine, plan, QUESTION) and len(read) == 1
    assert alike != likeness_of(engine, plan, "What is said?")
    assert likeness_of(engine, plan, "") == (0.0,) * 5
    assert likeness_of(engine, plan, "<|im_start|><|video_pad|>\ud800") is not None  # hostile words stay words


def test_an_engine_being_opened_passes_it_on_when_it_is_there() -> None:
    go_on = threading.Event()

    def open_slowly(_: object) -> ScriptedEngine:
        assert go_on.wait(20)
        return ScriptedEngine(alike=lambda plan, _: (1.0,) * len(plan.patches))

    engine = OpeningEngine(open_slowly)
    with pytest.raises(NotReady):
        likeness_of(engine, video("film", 3), QUESTION)
    go_on.set()
    assert engine.wait(20)
    assert likeness_of(engine, video("film", 3), QUESTION) == (1.0, 1.0, 1.0)
    engine.close()


def test_an_engine_that_cannot_tell_says_nothing() -> None:
    class Remote:
        """Keeps the contract and no more."""

    assert likeness_of(Remote(), video("film", 3), QUESTION) == ()  # type: ignore[arg-type]
    assert likeness_of(ScriptedEngine(), video("film", 3), QUESTION) == ()
