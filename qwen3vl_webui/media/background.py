"""Long work on videos in the background: one video after another, and how far each is, by digest."""

from __future__ import annotations

import logging
import threading
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, Literal, TypeVar

from qwen3vl_webui.errors import UserError

log = logging.getLogger(__name__)

State = Literal["none", "making", "ready", "failed"]
Known = TypeVar("Known")


class Cancelled(Exception):
    """Nobody wants the work on this video any more."""


@dataclass(eq=False)
class Task(Generic[Known]):
    """`work` gives what is known in the end. What it waits for meanwhile is ended by `stop`, if it sets one."""

    digest: str
    work: Callable[[Task[Known]], Known]
    lane: str = ""
    stop: Callable[[], None] = lambda: None


class Background(Generic[Known]):
    """The work of a lane is done one after another, lanes beside each other; the thread of one is there while there is
    work. All is known of videos that wait or are worked on, and of the `kept` others that were asked for last.

    `failed` makes of a sentence what is known of a video whose work failed; `broken` is the sentence of a failure that
    nobody foresaw.
    """

    def __init__(self, name: str, kept: int, failed: Callable[[str], Known], broken: str = "") -> None:
        self._name, self._kept, self._failed, self._broken = name, kept, failed, broken
        self._changed = threading.Condition()
        self._known: OrderedDict[str, Known] = OrderedDict()  # by digest
        self._tasks: dict[str, Task[Known]] = {}  # by digest, in the order of their turns
        self._workers: dict[str, threading.Thread] = {}  # by lane

    def known(self, digest: str) -> Known | None:
        with self._changed:
            if digest in self._known:
                self._known.move_to_end(digest)
            return self._known.get(digest)

    def settle(self, digest: str, known: Known) -> None:
        """What was found without any work; it counts unless the video waits or is worked on."""
        with self._changed:
            if digest not in self._tasks:
                self._set(digest, known)

    def begin(self, digest: str, waiting: Known, work: Callable[[Task[Known]], Known], lane: str = "") -> None:
        """Has the work done in its turn, unless this video waits or is worked on."""
        with self._changed:
            if digest in self._tasks:
                return
            self._tasks[digest] = Task(digest, work, lane)
            self._set(digest, waiting)
            if lane not in self._workers:
                name = "-".join(filter(None, (self._name, lane)))
                self._workers[lane] = threading.Thread(target=self._work, args=(lane,), name=name, daemon=True)
                self._workers[lane].start()

    def tell(self, task: Task[Known], known: Known) -> None:
        """How far the work is. Raises Cancelled, which the work lets through."""
        with self._changed:
            if self._tasks.get(task.digest) is not task:
                raise Cancelled
            self._set(task.digest, known)

    def wait(self, digest: str, seconds: float) -> None:
        """Until the work on this video has ended, at most so long."""
        with self._changed:
            self._changed.wait_for(lambda: digest not in self._tasks, seconds)

    def cancel(self, digest: str) -> None:
        """Ends the work on this video, and forgets how far it was."""
        with self._changed:
            task = self._tasks.get(digest)
            if task is not None:
                self._end(task, None)
        if task is not None:
            task.stop()

    def close(self) -> None:
        """Cancels all work, waits a while for its end, and forgets what is known."""
        with self._changed:
            digests, workers = list(self._tasks), list(self._workers.values())
        for digest in digests:
            self.cancel(digest)
        for worker in workers:
            worker.join(10.0)
        with self._changed:
            self._known.clear()

    def _work(self, lane: str) -> None:
        while (task := self._first(lane)) is not None:
            known: Known | None
            try:
                known = task.work(task)
            except Cancelled:
                known = None
            except UserError as error:
                known = self._failed(error.sentence)
            except Exception:  # the next video must still get its turn
                log.exception("the work on a video failed: %s", self._name)
                known = self._failed(self._broken)
            with self._changed:
                if self._tasks.get(task.digest) is task:
                    self._end(task, known)

    def _first(self, lane: str) -> Task[Known] | None:
        with self._changed:
            task = next((task for task in self._tasks.values() if task.lane == lane), None)
            if task is None:
                del self._workers[lane]
            return task

    def _end(self, task: Task[Known], known: Known | None) -> None:
        del self._tasks[task.digest]
        if known is not None:
            self._set(task.digest, known)
        else:
            del self._known[task.digest]
        self._changed.notify_all()

    def _set(self, digest: str, known: Known) -> None:
        self._known[digest] = known
        self._known.move_to_end(digest)
        settled = [each for each in self._known if each not in self._tasks]
        for each in settled[: max(0, len(settled) - self._kept)]:
            del self._known[each]
