"""Two parts of one file read side by side: the second in a thread of its own, some messages ahead of who takes them."""

from __future__ import annotations

import os
import queue
import threading
from collections.abc import Generator, Iterator
from contextlib import closing, suppress
from typing import Any

from qwen3vl_webui.errors import UserError

WORKERS = min(2, os.cpu_count() or 1)


class Ahead:
    """A stream that is read at most `room` messages ahead. Its error is raised where the messages are taken."""

    def __init__(self, stream: Generator[Any, None, None], room: int) -> None:
        self.stream = stream
        self.heard: queue.Queue[Any] = queue.Queue(room)
        self.closing = threading.Event()
        self.thread = threading.Thread(target=self._read, name="reading-ahead", daemon=True)
        self.thread.start()

    def _read(self) -> None:
        try:
            with closing(self.stream):
                for message in self.stream:
                    if self.closing.is_set():
                        return
                    self._tell(message)
            self._tell(None)
        except UserError as error:
            self._tell(error)

    def _tell(self, message: Any) -> None:
        while not self.closing.is_set():
            with suppress(queue.Full):
                return self.heard.put(message, timeout=0.5)

    def __iter__(self) -> Iterator[Any]:
        while (message := self.heard.get()) is not None:
            if isinstance(message, UserError):
                raise message
            yield message

    def close(self) -> None:
        self.closing.set()
        self.thread.join()
