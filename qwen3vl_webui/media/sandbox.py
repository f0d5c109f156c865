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
import dataclasses
import json
import logging
import os
import signal
import socket
import stat
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Generator
from pathlib import Path
from typing import Any, BinaryIO

from qwen3vl_webui.errors import MediaError
from qwen3vl_webui.media import confinement, forkserver, wire
from qwen3vl_webui.media.confinement import Limits

__all__ = ["ForkServer", "Limits", "call", "stream"]

log = logging.getLogger(__name__)

SENTENCES = {
    "slow": "Reading this file takes too long, so it was stopped; try a shorter or simpler file.",
    "memory": "This file needs too much memory to open; make it smaller and try again.",
    "room": "There is not enough room to write the result; remove files you no longer need and try again.",
    "damaged": "This file is damaged or incomplete; save or download it again, then upload it once more.",
    "crashed": "The decoder crashed on this file, so it is probably damaged; save it again with another program.",
    "gone": "The media reader stopped while it read this file; please try again.",
    "missing": "This file is no longer there; upload it again.",
}
DEFAULTS = Limits()
STARTUP_SECONDS = 60.0  # imports of the fork server on a busy machine


def call(
    function: Callable[..., Any], path: Path, *arguments: Any, limits: Limits = DEFAULTS, target: Path | None = None
) -> Any:
    """What `function(file, *arguments)` returns, run in a child. Raises MediaError.

    With `target` the function is called as `function(file, target_file, *arguments)`, may write up to
    `limits.file_size` bytes there, and the target is removed again unless it succeeds.
    """
    results = _run(function, path, arguments, limits, target, streamed=False)
    try:
        (value,) = results
    finally:
        results.close()
    return value


def stream(
    function: Callable[..., Any], path: Path, *arguments: Any, limits: Limits = DEFAULTS, target: Path | None = None
) -> Generator[Any, None, None]:
    """What the generator `function(file, *arguments)` yields, one by one, run in a child. Raises MediaError.

    The child waits while the consumer is busy, and that time is not counted. Closing the generator ends the child.
    """
    return _run(function, path, arguments, limits, target, streamed=True)


class ForkServer:
    """The server process and the socket to it; starts on first use, and again whenever it has died.

    `trusted` are the packages whose functions may run: the media room, and in tests the tests.
    """

    def __init__(self, trusted: tuple[str, ...] = ("qwen3vl_webui.media",)) -> None:
        self.trusted = trusted
        self.lock = threading.Lock()
        self.process: subprocess.Popen[bytes] | None = None
        self.control: socket.socket | None = None

    def name(self, function: Callable[..., Any]) -> str:
        module, path = function.__module__, function.__qualname__
        if not any(module == package or module.startswith(package + ".") for package in self.trusted):
            raise ValueError(f"{module} may not run in the sandbox")
        if "<" in path:
            raise ValueError(f"{path} must be a function at module level")
        return f"{module}:{path}"

    def begin(self, name: str, files: list[int], limits: Limits, streamed: bool) -> Job:
        """Fork a child with these descriptors. Raises MediaError where that is not possible."""
        request = json.dumps({"function": name, "limits": dataclasses.asdict(limits), "stream": streamed}).encode()
        for _ in range(2):  # the server may have died since the last call
            channel, child_channel = socket.socketpair()
            status, server_status = socket.socketpair()
            with child_channel, server_status:
                control = self._send(request, [child_channel.fileno(), server_status.fileno(), *files])
            try:
                status.settimeout(STARTUP_SECONDS)
                answer = status.recv(1) if control else b""
            except OSError:
                answer = b""
            if answer == forkserver.STARTED:
                return Job(channel, status, limits.wall)
            channel.close()
            status.close()
            if answer == forkserver.NO_ROOM:
                raise MediaError("This machine has no room for another process; close other programs and try again.")
            self._stop(control)
        raise MediaError(SENTENCES["gone"])

    def _send(self, request: bytes, descriptors: list[int]) -> socket.socket | None:
        """The socket it went through; None where the server is gone."""
        with self.lock:
            if self.control is None:
                self._start()
            control = self.control
            assert control is not None
            try:
                socket.send_fds(control, [request], descriptors)
            except OSError:
                self._forget()
                return None
            return control

    def _start(self) -> None:
        if confinement.landlock_abi() == 0:
            log.warning("This kernel has no Landlock: uploads are decoded under limits and seccomp only.")
        control, server = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with server:
            self.process = subprocess.Popen(
                [sys.executable, "-P", "-m", "qwen3vl_webui.media.forkserver", str(server.fileno())],
                pass_fds=[server.fileno()],
                env=_environment(),
                cwd="/",
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                start_new_session=True,  # Ctrl-C in the terminal is for the web server, which then closes this one
            )
        self.control = control

    def _stop(self, control: socket.socket | None) -> None:
        with self.lock:
            if control is not None and control is self.control:
                self._forget()

    def _forget(self) -> None:
        control, process, self.control, self.process = self.control, self.process, None, None
        if control is not None:
            control.close()
        if process is not None:
            try:
                process.wait(5)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()

    def close(self) -> None:
        """End the server and every child of it."""
        with self.lock:
            self._forget()


class Job:
    """A child at work, as its caller sees it. `seconds_left` runs only while the caller waits."""

    def __init__(self, channel: socket.socket, status: socket.socket, seconds: float) -> None:
        self.channel = channel
        self.status = status
        self.seconds_left = seconds

    def send(self, arguments: tuple[Any, ...]) -> None:
        with self._waiting(), contextlib.suppress(BrokenPipeError, ConnectionResetError):  # then reading says why
            wire.write_message(self.channel, wire.VALUE, arguments)

    def receive(self) -> tuple[bytes, Any]:
        """The next message. Raises MediaError where the child died, was too slow or sent something else."""
        with self._waiting():
            kind, size = wire.HEADER.unpack(self._read(wire.HEADER.size))
            if size > wire.MOST_BYTES:
                raise MediaError(SENTENCES["crashed"])
            body = self._read(size)
        try:
            return kind, wire.decode(body)
        except wire.WireError as error:
            log.warning("a decoding child sent a bad message: %s", error)
            raise MediaError(SENTENCES["crashed"]) from error

    def _read(self, size: int) -> bytearray:
        body = bytearray(size)
        left = memoryview(body)
        while left:
            started = time.monotonic()
            self.channel.settimeout(max(self.seconds_left, 0.001))
            try:
                count = self.channel.recv_into(left)
            except ConnectionResetError:
                count = 0
            self.seconds_left -= time.monotonic() - started
            if count == 0:
                raise MediaError(SENTENCES[self._why_it_died()])
            left = left[count:]
        return body

    @contextlib.contextmanager
    def _waiting(self) -> Generator[None, None, None]:
        self.channel.settimeout(max(self.seconds_left, 0.001))
        try:
            yield
        except TimeoutError as error:
            raise MediaError(SENTENCES["slow"]) from error

    def _why_it_died(self) -> str:
        result = self._wait_status()
        if result is None:
            return "gone"
        if not os.WIFSIGNALED(result):
            return "crashed"
        number = os.WTERMSIG(result)
        log.warning("a decoding child was ended by %s", signal.Signals(number).name)
        return {signal.SIGXCPU: "slow", signal.SIGKILL: "memory"}.get(signal.Signals(number), "crashed")

    def _wait_status(self) -> int | None:
        raw = b""
        with contextlib.suppress(OSError):
            self.status.settimeout(10)
            while len(raw) < 4 and (more := self.status.recv(4 - len(raw))):
                raw += more
        return struct.unpack("<i", raw)[0] if len(raw) == 4 else None

    def close(self) -> None:
        """End the child where it still runs; when this returns the process is gone."""
        with contextlib.suppress(OSError):
            self.status.shutdown(socket.SHUT_WR)
        self._wait_status()
        self.channel.close()
        self.status.close()


server = ForkServer()
atexit.register(lambda: server.close())


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
    with contextlib.ExitStack() as stack:
        files = [stack.enter_context(_open(path)).fileno()]
        if target is not None:
            files.append(stack.enter_context(open(target, "w+b")).fileno())
        job = server.begin(name, files, limits, streamed)
        stack.callback(job.close)
        try:
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


def _open(path: Path) -> BinaryIO:
    """A fresh descriptor, so that two children never share an offset."""
    try:
        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    except (OSError, ValueError) as error:
        raise MediaError(SENTENCES["missing"]) from error
    file = os.fdopen(descriptor, "rb") if stat.S_ISREG(os.fstat(descriptor).st_mode) else None
    if file is None:  # a pipe or a device could wait for ever
        os.close(descriptor)
        raise MediaError("Only files can be opened; upload a picture, a video or a PDF.")
    return file


def _error(described: Any) -> MediaError:
    """The child is not trusted: its sentence is cut to one plain line."""
    fields = described if isinstance(described, dict) else {}
    kind, detail = fields.get("kind"), fields.get("detail")
    if isinstance(detail, str) and detail:
        log.info("a decoding child raised: %s", detail[:2000])
    if kind == "sentence" and isinstance(sentence := fields.get("sentence"), str):
        code = fields.get("code")
        plain = " ".join("".join(c if c.isprintable() else " " for c in sentence[:500]).split())
        return MediaError(plain, code=code if isinstance(code, str) and code.isidentifier() else None)
    return MediaError(SENTENCES[kind if kind in ("memory", "room") else "damaged"])


def _environment() -> dict[str, str]:
    """What the server needs and no more: keys and tokens of this process are none of a decoder's business."""
    kept = {name: os.environ[name] for name in ("PATH", "LANG", "LC_ALL", "LD_LIBRARY_PATH") if name in os.environ}
    paths = [os.path.abspath(entry) for entry in sys.path]
    one_thread = {name: "1" for name in ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS")}
    # Each malloc arena reserves 64 MiB of address space, and each decoder thread would get its own.
    return kept | one_thread | {"PYTHONPATH": os.pathsep.join(paths), "MALLOC_ARENA_MAX": "2"}
