"""Functions that the sandbox tests run inside a child."""

from __future__ import annotations

from typing import Any, BinaryIO


def first_bytes(file: BinaryIO, count: int) -> bytes:
    return file.read(count)


def echo(file: BinaryIO, value: Any) -> Any:
    return value
