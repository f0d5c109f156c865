"""Long work in the background: one after another, cancelled and begun again, and never more kept than asked for."""

import threading
from collections.abc import Iterator

import pytest

from qwen3vl_webui.errors import MediaError
from qwen3vl_webui.media.background import Background, Task
from tests.served import wait_until


@pytest.fixture
def background() -> Iterator[Background[str]]:
    made = Background("test", 2, lambda sentence: f"failed: {sentence}", "Nobody knows why.")
    yield made
    made.close()


class Gated:
    """Work that goes on until it is let."""

    def __init__(self, background: Background[str], result: str = "done") -> None:
        self.background, self.result = background, result
        self.begun, self.going_on, self.stopped = threading.Event(), threading.Event(), threading.Event()

    def __call__(self, task: Task[str]) -> str:
        task.stop = self.stopped.set
        self.background.tell(task, "half")
        self.begun.set()
        assert self.going_on.wait(30)
        self.background.tell(task, "nearly")
        return self.result


def test_one_after_another_in_their_turns(background: Background[str]) -> None:
    first, second = Gated(background, "one"), Gated(background, "two")
    background.begin("a", "waiting", first)
    background.begin("b", "waiting", second)
    assert first.begun.wait(30)
    assert (background.known("a"), background.known("b"), background.known("c")) == ("half", "waiting", None)
    background.begin("a", "again", second)  # it is being worked on
    background.settle("b", "found")
    assert (background.known("a"), background.known("b")) == ("half", "waiting")
    background.wait("a", 0)
    first.going_on.set()
    background.wait("a", 30)
    assert background.known("a") == "one"
    second.going_on.set()
    background.wait("b", 30)
    assert background.known("b") == "two"


def test_work_of_another_lane_waits_for_none_of_this(background: Background[str]) -> None:
    long, short = Gated(background, "one"), Gated(background, "two")
    background.begin("a", "waiting", long)
    background.begin("b", "waiting", short, "short")
    assert long.begun.wait(30) and short.begun.wait(30)
    short.going_on.set()
    background.wait("b", 30)
    assert (background.known("a"), background.known("b")) == ("half", "two")
    long.going_on.set()
    background.wait("a", 30)
    assert background.known("a") == "one"


def test_what_is_cancelled_is_forgotten_and_the_next_goes_on(background: Background[str]) -> None:
    first, waiting, last = Gated(background), Gated(background), Gated(background)
    for digest, work in (("a", first), ("b", waiting), ("c", last)):
        background.begin(digest, "waiting", work)
    assert first.begun.wait(30)
    background.cancel("b")
    background.cancel("a")
    assert first.stopped.is_set() and not waiting.stopped.is_set()
    assert (background.known("a"), background.known("b")) == (None, None)
    for work in (first, last):
        work.going_on.set()
    background.wait("c", 30)
    assert background.known("c") == "done" and background.known("a") is None and not waiting.begun.is_set()


def test_what_is_cancelled_and_begun_again_is_done_anew(background: Background[str]) -> None:
    """The end of the old work is not taken for that of the new one."""
    old, new = Gated(background, "old"), Gated(background, "new")
    background.begin("a", "waiting", old)
    assert old.begun.wait(30)
    background.cancel("a")
    background.begin("a", "again", new)
    assert background.known("a") == "again"
    old.going_on.set()
    assert new.begun.wait(30)
    new.going_on.set()
    background.wait("a", 30)
    assert background.known("a") == "new"


def test_a_failure_is_a_sentence_and_the_next_goes_on(background: Background[str]) -> None:
    def refuse(task: Task[str]) -> str:
        raise MediaError("It is damaged.")

    def break_down(task: Task[str]) -> str:
        raise ZeroDivisionError

    for digest, work in (("a", refuse), ("b", break_down)):
        background.begin(digest, "waiting", work)
    background.wait("b", 30)
    assert (background.known("a"), background.known("b")) == ("failed: It is damaged.", "failed: Nobody knows why.")
    background.begin("a", "waiting", lambda task: "done")  # and it can be tried again
    background.wait("a", 30)
    assert background.known("a") == "done"


def test_the_last_ones_asked_for_are_kept_and_all_that_is_worked_on(background: Background[str]) -> None:
    works = [Gated(background) for _ in range(4)]
    for number, work in enumerate(works):
        background.begin(f"waiting {number}", "waiting", work)
    for digest in "abc":
        background.settle(digest, digest)
        background.known("a")
    assert [background.known(digest) for digest in "abc"] == ["a", None, "c"]
    assert all(background.known(f"waiting {number}") for number in range(4))
    for work in works:
        work.going_on.set()


def test_closing_ends_all_work_and_its_thread(background: Background[str]) -> None:
    first, waiting = Gated(background), Gated(background)
    background.begin("a", "waiting", first)
    background.begin("b", "waiting", waiting)
    assert first.begun.wait(30)
    threading.Timer(0.1, first.going_on.set).start()
    background.close()
    assert first.stopped.is_set() and not waiting.begun.is_set() and background.known("a") is None
    wait_until(lambda: all(thread.name != "test" for thread in threading.enumerate()))
    background.begin("a", "waiting", lambda task: "done")
    background.wait("a", 30)
    assert background.known("a") == "done"
