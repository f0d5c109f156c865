"""Decoders run here: each call in a child process of its own, under limits, with no file, network or process in reach.

`call` and `stream` fork a child from a small server process (`media/forkserver.py`, started on first use), hand it the
open file and run one function of the media room in it. About 5 ms per call beyond the work itself. The function gets
the open binary file first (and the open target, where there is one), then the arguments; arguments and results are
None, bool, int, float, str, bytes, list, tuple, dict and numpy arrays (`media/wire.py`). Whatever goes wrong in the
child, a hostile file included, is one MediaError here.

Where there is no fork (Windows) or no way to confine (macOS) each call is a plain process of its own: slower by a
second, with the limits the system has, which still keeps a crash or a bomb away from the server.
"""

from __future__ import annotations

import atexit
import contextlib
import itertools
import logging
import os
import sys
import threading
from collections.abc import Callable, Generator
from pathlib import Path
from typing import Any

from qwen3vl_webui.errors import MediaError
from qwen3vl_webui.media import wire
from qwen3vl_webui.media.children import SENTENCES, ForkServer, PlainServer, Server
from qwen3vl_webui.media.confinement import Limits

__all__ = ["SENTENCES", "Limits", "call", "check", "stream"]

log = logging.getLogger(__name__)

DEFAULTS = Limits()
_places = threading.BoundedSemaphore(2 * (os.cpu_count() or 1) + 2)  # calls at once; each may take `Limits.memory`

server: Server = ForkServer() if sys.platform.startswith("linux") else PlainServer()
atexit.register(lambda: server.close())


def call(
    function: Callable[..., Any], path: Path, *arguments: Any, limits: Limits = DEFAULTS, target: Path | None = None
) -> Any:
    """What `function(file, *arguments)` returns, run in a child. Raises MediaError.

    With `target` the function is called as `function(file, target_file, *arguments)`, may write up to
    `limits.file_size` bytes there, and the target is removed again unless it succeeds.
    """
    with _places, contextlib.closing(_run(function, path, arguments, limits, target, streamed=False)) as results:
        values = list(itertools.islice(results, 2))
    check(len(values) == 1)
    return values[0]


def stream(
    function: Callable[..., Any], path: Path, *arguments: Any, limits: Limits = DEFAULTS, target: Path | None = None
) -> Generator[Any, None, None]:
    """What the generator `function(file, *arguments)` yields, one by one, run in a child. Raises MediaError.

    The child waits while the consumer is busy, and that time is not counted. Closing the generator ends the child.
    """
    return _run(function, path, arguments, limits, target, streamed=True)


def check(honest: bool) -> None:
    """Raise MediaError unless a result is what an honest child returns: one that was taken over sends anything."""
    if not honest:
        raise MediaError(SENTENCES["crashed"])


def _run(
    function: Callable[..., Any],
    path: Path,
    arguments: tuple[Any, ...],
    limits: Limits,
    target: Path | None,
    *,
    streamed: bool,
) -> Generator[Any, None, None]:
    name = server.name(function)
    succeeded = False
    try:
        with contextlib.closing(server.begin(name, path, target, limits, streamed)) as job:
            job.send(arguments)
            while True:
                kind, value = job.receive()
                if kind == wire.DONE:
                    break
                if kind != wire.VALUE:
                    raise _error(value)
                yield value
        succeeded = True
    finally:
        if target is not None and not succeeded:
            target.unlink(missing_ok=True)


def _error(described: Any) -> MediaError:
    """The child is not trusted: its words are cut and made plain, for the page and for the log."""
    fields = described if isinstance(described, dict) else {}
    kind, sentence, code, detail = (str(fields.get(name, "")) for name in ("kind", "sentence", "code", "detail"))
    if detail:
        log.info("a decoding child raised:\n%s", "\n".join("| " + _plain(line) for line in detail[:2000].split("\n")))
    if kind == "sentence":
        return MediaError(_plain(sentence[:500]), code=code if code.isidentifier() else None)
    return MediaError(SENTENCES[kind if kind in ("memory", "room") else "damaged"])


def _plain(text: str) -> str:
    return "".join(character if character.isprintable() else " " for character in text)
