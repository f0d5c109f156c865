"""Functions that the sandbox tests run inside a child: honest ones, and what a hostile file might make of a decoder."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import socket
import stat
import subprocess
import threading
import time
from collections.abc import Generator
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from qwen3vl_webui.errors import MediaError


def first_bytes(file: BinaryIO, count: int) -> bytes:
    return file.read(count)


def echo(file: BinaryIO, value: Any) -> Any:
    return value


def process(file: BinaryIO) -> int:
    return os.getpid()


def environment(file: BinaryIO) -> dict[str, str]:
    return dict(os.environ)


def count(file: BinaryIO, most: int) -> Generator[int, None, None]:
    yield from range(most)


def pictures(file: BinaryIO) -> Generator[tuple[int, np.ndarray], None, None]:
    """The process, and then 3 MB after 3 MB without end."""
    while True:
        yield os.getpid(), np.zeros((1024, 1024, 3), np.uint8)


def sleep(file: BinaryIO, seconds: float) -> None:
    time.sleep(seconds)


def process_then_sleep(file: BinaryIO) -> Generator[int, None, None]:
    yield os.getpid()
    time.sleep(60)


def spin(file: BinaryIO) -> None:
    while True:
        pass


def stubborn_spin(file: BinaryIO) -> None:
    signal.signal(signal.SIGXCPU, signal.SIG_IGN)
    spin(file)


def allocate(file: BinaryIO, size: int) -> int:
    return len(bytearray(size))


def crash(file: BinaryIO) -> None:
    ctypes.string_at(0)


def refuse(file: BinaryIO) -> None:
    raise MediaError("Try\nanother \x1b[31mfile.", code="too_odd")


def fail(file: BinaryIO) -> None:
    raise IndexError("list index out of range")


def secret(file: BinaryIO) -> object:
    return object()


def in_thread(file: BinaryIO) -> list[int]:
    done: list[int] = []
    threads = [threading.Thread(target=done.append, args=(number,)) for number in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return sorted(done)


def descriptors(file: BinaryIO) -> list[str]:
    """What the child still has open, by kind."""
    kinds = []
    for descriptor in range(64):
        with contextlib.suppress(OSError):
            mode = os.fstat(descriptor).st_mode
            kinds.append("socket" if stat.S_ISSOCK(mode) else "file" if stat.S_ISREG(mode) else "null")
    return sorted(kinds)


def write(file: BinaryIO, target: BinaryIO, size: int) -> int:
    for _ in range(size // 1000):
        target.write(b"x" * 1000)
    return size


def write_and_fail(file: BinaryIO, target: BinaryIO) -> None:
    target.write(b"half")
    raise RuntimeError


def forge(file: BinaryIO, raw: bytes) -> None:
    """Send bytes of one's own to the server process, and end well."""
    for descriptor in range(3, 64):
        with contextlib.suppress(OSError):
            if stat.S_ISSOCK(os.fstat(descriptor).st_mode):
                os.write(descriptor, raw)
    os._exit(0)


def _unix_socket() -> None:
    socket.socket(socket.AF_UNIX)


def _udp() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as opened:
        opened.sendto(b"hello", ("127.0.0.1", 9))


def _system_call(number: int, *arguments: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.syscall(number, *(ctypes.c_long(argument) for argument in arguments)) < 0:
        error = ctypes.get_errno()
        raise OSError(error, os.strerror(error))


def _change_limit(process: int) -> None:
    limit = (ctypes.c_ulonglong * 2)(0, 0)
    _system_call(NUMBERS["prlimit64"], process, 1, ctypes.addressof(limit), 0)  # RLIMIT_FSIZE


NUMBERS = {
    "x86_64": {"bpf": 321, "ptrace": 101, "prlimit64": 302},
    "aarch64": {"bpf": 280, "ptrace": 117, "prlimit64": 261},
}[os.uname().machine]

ATTEMPTS = {
    "read a file": lambda path: Path(path).read_bytes(),
    "list a folder": lambda path: os.listdir(os.path.dirname(path)),
    "write a file": lambda path: Path(path + ".new").write_bytes(b""),
    "remove a file": lambda path: os.unlink(path),
    "rename a file": lambda path: os.rename(path, path + ".new"),
    "change a mode": lambda path: os.chmod(path, 0o777),
    "touch a file": lambda path: os.utime(path),
    "cut a file": lambda path: os.truncate(path, 0),
    "make a folder": lambda path: os.mkdir(path + ".folder"),
    "make a link": lambda path: os.symlink(path, path + ".link"),
    "connect by TCP": lambda path: socket.create_connection(("127.0.0.1", 9), 1),
    "send by UDP": lambda path: _udp(),
    "open a unix socket": lambda path: _unix_socket(),
    "run a program": lambda path: os.execv("/bin/true", ["true"]),
    "start a program": lambda path: subprocess.run(["/bin/true"]),
    "fork": lambda path: os.fork(),
    "signal the server": lambda path: os.kill(os.getppid(), 0),
    "signal anyone": lambda path: os.kill(1, 0),
    "hold memory that outlives it": lambda path: os.memfd_create("x"),
    "change its limits": lambda path: _change_limit(0),
    "change the server's limits": lambda path: _change_limit(os.getppid()),
    "trace": lambda path: _system_call(NUMBERS["ptrace"], 0, 0, 0, 0),
    "load a filter program": lambda path: _system_call(NUMBERS["bpf"], 0, 0, 0),
}


def attempt(file: BinaryIO, what: str, path: str) -> str:
    """The name of the error, or "done"."""
    try:
        ATTEMPTS[what](path)
    except Exception as error:
        return type(error).__name__
    return "done"


def anything(file: BinaryIO, *_: Any) -> Any:
    """What a child that was taken over sends instead of a result; the file says what."""
    return ODD_RESULTS[file.read().decode()]


def anything_in_turn(file: BinaryIO, *_: Any) -> Generator[Any, None, None]:
    yield anything(file)


ODD_RESULTS: dict[str, Any] = {
    "nothing": None,
    "text": "text",
    "long text": "x" * 1_000_000,
    "number": -1,
    "list": [1, "two"],
    "kind": ("image", ("wide", 3)),
    "sizes": ("document", [(float("nan"), 1.0)]),
    "size": ("image", (0, 0)),
    "array": np.zeros((2, 2), np.float64),
    "boxes": [(1, 2, 3, 5000)],
    "bytes": b"<html>",
}
