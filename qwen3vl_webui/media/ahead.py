"""What one thread reads ahead while another is busy with what came before."""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable
from contextlib import closing
from typing import Generic, TypeVar

WORKERS = min(2, os.cpu_count() or 1)  # that read two parts of one file side by side

Item = TypeVar("Item")


def nothing_to_check() -> None:
    """Lets the work go on."""


class Ahead(Generic[Item]):
    """What `items` gives, up to `most` of it read by another thread while its taker is busy.

    `check` is called in that thread between two items and may raise to stop; whatever is raised there comes out of
    `next`. Closing waits until the thread has closed `items`.
    """

    def __init__(self, items: Iterable[Item], most: int, check: Callable[[], None] = nothing_to_check) -> None:
        self._items, self._most, self._check = items, most, check
        self._changed = threading.Condition()
        self._read: deque[Item] = deque()
        self._ended = self._closed = False
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="frames", daemon=True)
        self._thread.start()

    def __iter__(self) -> Ahead[Item]:
        return self

    def __next__(self) -> Item:
        with self._changed:
            self._changed.wait_for(lambda: self._read or self._ended)
            if self._read:
                self._changed.notify_all()
                return self._read.popleft()
            if self._error is not None:
                raise self._error
            raise StopIteration

    def close(self) -> None:
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        self._thread.join()

    def _run(self) -> None:
        try:
            with closing(iter_closing(self._items)) as items:
                for item in items:
                    self._check()
                    with self._changed:
                        self._read.append(item)
                        self._changed.notify_all()
                        self._changed.wait_for(lambda: self._closed or len(self._read) < self._most)
                        if self._closed:
                            return
        except BaseException as error:  # whatever a decoder throws is raised where its frames are waited for
            self._error = error
        finally:
            with self._changed:
                self._ended = True
                self._changed.notify_all()


def iter_closing(items: Iterable[Item]) -> Generator[Item, None, None]:
    """The same items; closing it closes them, where they can be."""
    try:
        yield from items
    finally:
        if isinstance(items, Generator):
            items.close()
