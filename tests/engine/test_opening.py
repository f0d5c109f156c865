from __future__ import annotations

import threading

import pytest

from qwen3vl_webui.engine.contract import Engine, ModelInfo
from qwen3vl_webui.engine.opening import OpeningEngine, Progress
from qwen3vl_webui.errors import NotFound, NotReady
from qwen3vl_webui.model.loading import Progress as Step
from tests.engine.conftest import ask, finish_of
from tests.scripted_engine import ScriptedEngine


class Slow:
    """An opening that stops after its first step until `go_on` is set."""

    def __init__(self, engine: ScriptedEngine) -> None:
        self.engine = engine
        self.stepped, self.go_on = threading.Event(), threading.Event()
        self.ended = threading.Event()

    def __call__(self, progress: Progress) -> Engine:
        try:
            progress(Step("downloading", 3_000_000_000, 8_000_000_000))
            self.stepped.set()
            assert self.go_on.wait(20)
            progress(Step("loading", 1, 2))
            return self.engine
        finally:
            self.ended.set()


def test_until_the_model_is_there_requests_are_told_how_far_it_is() -> None:
    slow = Slow(ScriptedEngine("Hello."))
    engine = OpeningEngine(slow)
    assert slow.stepped.wait(20)
    status = engine.status
    assert (status.state, status.stage, status.done, status.total) == (
        "loading",
        "downloading",
        3_000_000_000,
        8_000_000_000,
    )
    assert "3.0 of 8.0 GB" in status.sentence
    for refused in (lambda: engine.plan(ask("?")), lambda: engine.generate(ask("?")), lambda: engine.model):
        with pytest.raises(NotReady, match="3.0 of 8.0 GB"):
            refused()
    slow.go_on.set()
    assert engine.wait(20)
    assert engine.status.state == "ready"
    assert finish_of(list(engine.generate(ask("?"))))
    assert engine.model is slow.engine.model
    assert engine.plan(ask("?")) == slow.engine.plan(ask("?"))
    assert engine.context_length == slow.engine.context_length
    engine.close()
    assert slow.engine.closed


def test_the_model_that_is_expected_is_named_while_it_loads() -> None:
    expected = ModelInfo("4b", "Qwen/Qwen3-VL-4B-Instruct")
    slow = Slow(ScriptedEngine())
    engine = OpeningEngine(slow, expected)
    assert engine.model is expected and engine.context_length == expected.context_length
    slow.go_on.set()
    assert engine.wait(20)
    assert engine.model is slow.engine.model
    engine.close()


@pytest.mark.parametrize(
    ("error", "sentence"),
    [
        (NotFound("There is no model 'x': choose 4b."), "There is no model 'x': choose 4b."),
        (RuntimeError("driver too old"), "The model could not be opened: driver too old"),
        (ValueError(), "The model could not be opened: ValueError"),
    ],
)
def test_a_model_that_cannot_be_opened_says_why(error: Exception, sentence: str) -> None:
    def fail(progress: Progress) -> Engine:
        raise error

    engine = OpeningEngine(fail)
    assert engine.wait(20)
    assert (engine.status.state, engine.status.sentence) == ("failed", sentence)
    with pytest.raises(NotReady) as refusal:
        engine.generate(ask("?"))
    assert refusal.value.sentence == sentence
    engine.close()


def test_closing_ends_an_opening_at_its_next_step() -> None:
    slow = Slow(ScriptedEngine())
    engine = OpeningEngine(slow)
    assert slow.stepped.wait(20)
    engine.close()
    slow.go_on.set()
    assert slow.ended.wait(20) and engine.wait(20)
    assert engine.status.state == "failed"


def test_a_model_that_arrives_after_closing_is_closed() -> None:
    scripted, closed = ScriptedEngine(), threading.Event()

    def open_late(progress: Progress) -> Engine:
        assert closed.wait(20)
        return scripted

    engine = OpeningEngine(open_late)
    engine.close()
    closed.set()
    assert engine.wait(20)
    engine._thread.join(20)
    assert scripted.closed
