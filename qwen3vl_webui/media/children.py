"""Decoding children as the server process sees them: where they come from, and one of them at work."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import json
import logging
import os
import socket
import stat
import struct
import subprocess
import sys
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO, cast

from qwen3vl_webui.errors import MediaError
from qwen3vl_webui.media import confinement, forkserver, wire
from qwen3vl_webui.media.confinement import Limits

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
STARTUP_SECONDS = 60.0  # imports of the fork server on a busy machine


class Server(ABC):
    """Where children come from. `trusted` are the packages whose functions may run: in tests, the tests too."""

    def __init__(self, trusted: tuple[str, ...] = ("qwen3vl_webui.media",)) -> None:
        self.trusted = trusted

    @abstractmethod
    def begin(self, name: str, path: Path, target: Path | None, limits: Limits, streamed: bool) -> Job:
        """Start a child on these files. Raises MediaError where that is not possible."""

    @abstractmethod
    def close(self) -> None:
        """End the server and every child of it."""

    def name(self, function: Callable[..., Any]) -> str:
        module, path = function.__module__, function.__qualname__
        if not any(module == package or module.startswith(package + ".") for package in self.trusted):
            raise ValueError(f"{module} may not run in the sandbox")
        if "<" in path:
            raise ValueError(f"{path} must be a function at module level")
        return f"{module}:{path}"


class ForkServer(Server):
    """The server process and the socket to it; starts on first use, and again whenever it has died."""

    def __init__(self, trusted: tuple[str, ...] = ("qwen3vl_webui.media",)) -> None:
        super().__init__(trusted)
        self.lock = threading.Lock()
        self.process: subprocess.Popen[bytes] | None = None
        self.control: socket.socket | None = None

    def begin(self, name: str, path: Path, target: Path | None, limits: Limits, streamed: bool) -> Job:
        request = json.dumps({"function": name, "limits": dataclasses.asdict(limits), "stream": streamed}).encode()
        with contextlib.ExitStack() as stack:
            files = [stack.enter_context(_open(path))]
            if target is not None:
                files.append(stack.enter_context(open(target, "w+b")))
            return self._fork(request, [file.fileno() for file in files], limits)

    def _fork(self, request: bytes, files: list[int], limits: Limits) -> Job:
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
                return ForkedJob(channel, status, limits.wall)
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
        with self.lock:
            self._forget()


class PlainServer(Server):
    """A fresh process per call, for systems that cannot fork safely: slow to start, and limited but not confined."""

    def begin(self, name: str, path: Path, target: Path | None, limits: Limits, streamed: bool) -> Job:
        _open(path).close()  # for its errors
        request = {
            "function": name,
            "limits": dataclasses.asdict(limits),
            "stream": streamed,
            "files": [os.path.abspath(file) for file in (path, target) if file is not None],
        }
        process = subprocess.Popen(
            [sys.executable, "-P", "-m", "qwen3vl_webui.media.forkserver", "alone"],
            env={**os.environ, "PYTHONPATH": python_path()},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        return PlainJob(process, json.dumps(request).encode() + b"\n", limits.wall + STARTUP_SECONDS)

    def close(self) -> None:
        """Nothing stays between calls: each child ends with its job."""


class Job(ABC):
    """A child at work, as its caller sees it. `seconds_left` runs only while the caller waits."""

    def __init__(self, seconds: float) -> None:
        self.seconds_left = seconds

    @abstractmethod
    def send(self, arguments: tuple[Any, ...]) -> None: ...

    @abstractmethod
    def fill(self, body: memoryview) -> int:
        """Read some bytes, 0 where the child has ended. Raises TimeoutError when `seconds_left` are over."""

    @abstractmethod
    def result(self) -> int | None:
        """Wait for the end of the child: its exit status, below zero for a signal, None where it is not known."""

    @abstractmethod
    def close(self) -> None:
        """End the child where it still runs; when this returns the process is gone."""

    def receive(self) -> tuple[bytes, Any]:
        """The next message. Raises MediaError where the child died, was too slow or sent something else."""
        try:
            kind, size = wire.HEADER.unpack(self._read(wire.HEADER.size))
            if size > wire.MOST_BYTES:
                raise wire.WireError(f"{size} bytes")
            return kind, wire.decode(self._read(size))
        except TimeoutError as error:
            raise MediaError(SENTENCES["slow"]) from error
        except wire.WireError as error:
            log.warning("a decoding child sent a bad message: %s", error)
            raise MediaError(SENTENCES["crashed"]) from error

    def _read(self, size: int) -> bytearray:
        body = bytearray(size)
        left = memoryview(body)
        while left:
            started = time.monotonic()
            count = self.fill(left)
            self.seconds_left -= time.monotonic() - started
            if count == 0:
                raise MediaError(SENTENCES[self._why_it_died()])
            left = left[count:]
        return body

    def _why_it_died(self) -> str:
        result = self.result()
        if result is None:
            return "gone"
        log.warning("a decoding child ended with %s", result)
        return {-24: "slow", -9: "memory"}.get(result, "crashed")  # SIGXCPU; SIGKILL: the kernel's last resort


class ForkedJob(Job):
    def __init__(self, channel: socket.socket, status: socket.socket, seconds: float) -> None:
        super().__init__(seconds)
        self.channel = channel
        self.status = status

    def send(self, arguments: tuple[Any, ...]) -> None:
        self.channel.settimeout(self.seconds_left)
        with contextlib.suppress(OSError):  # then reading says why
            wire.write_message(self.channel, wire.VALUE, arguments)

    def fill(self, body: memoryview) -> int:
        self.channel.settimeout(max(self.seconds_left, 0.001))
        try:
            return self.channel.recv_into(body)
        except ConnectionResetError:
            return 0

    def result(self) -> int | None:
        raw = b""
        with contextlib.suppress(OSError):
            self.status.settimeout(10)
            while len(raw) < 4 and (more := self.status.recv(4 - len(raw))):
                raw += more
        return os.waitstatus_to_exitcode(struct.unpack("<i", raw)[0]) if len(raw) == 4 else None

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self.status.shutdown(socket.SHUT_WR)  # the server kills the child when it sees this
        self.result()
        self.channel.close()
        self.status.close()


class PlainJob(Job):
    def __init__(self, process: subprocess.Popen[bytes], request: bytes, seconds: float) -> None:
        super().__init__(seconds)
        self.process = process
        self.request = request
        assert process.stdin is not None and isinstance(process.stdout, io.BufferedReader)
        self.stdin, self.stdout = cast(BinaryIO, process.stdin), process.stdout
        self.late = False

    def send(self, arguments: tuple[Any, ...]) -> None:
        with contextlib.suppress(OSError):
            self.stdin.write(self.request)
            wire.write_message(self.stdin, wire.VALUE, arguments)

    def fill(self, body: memoryview) -> int:
        watch = threading.Timer(max(self.seconds_left, 0), self._stop)
        watch.start()
        try:
            raw = self.stdout.read1(len(body))
        finally:
            watch.cancel()
        if self.late:
            raise TimeoutError
        body[: len(raw)] = raw
        return len(raw)

    def _stop(self) -> None:
        self.late = True
        self.process.kill()

    def result(self) -> int | None:
        return self.process.wait()

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        for pipe in (self.stdin, self.stdout):
            with contextlib.suppress(OSError):
                pipe.close()


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


def _environment() -> dict[str, str]:
    """What the server needs and no more: keys and tokens of this process are none of a decoder's business."""
    kept = {name: os.environ[name] for name in ("PATH", "LANG", "LC_ALL", "LD_LIBRARY_PATH") if name in os.environ}
    one_thread = {name: "1" for name in ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS")}
    # Each malloc arena reserves 64 MiB of address space, and each decoder thread would get its own.
    return kept | one_thread | {"PYTHONPATH": python_path(), "MALLOC_ARENA_MAX": "2"}


def python_path() -> str:
    """What a process of ours may import: the same as this one."""
    return os.pathsep.join(os.path.abspath(entry) for entry in sys.path)
