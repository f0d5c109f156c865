"""Ranges as players ask for them."""

import asyncio
import os
from pathlib import Path

import pytest
from starlette.types import Message

from qwen3vl_webui.web.byte_ranges import CHUNK, FileRange, is_known, read_range
from tests.served import in_new_loop


@pytest.mark.parametrize(
    ("header", "span"),
    [
        ("bytes=0-0", (0, 1)),
        ("bytes=0-", (0, 100)),
        ("bytes=10-19", (10, 20)),
        ("bytes=90-1000", (90, 100)),
        ("bytes=99-", (99, 100)),
        ("bytes=-1", (99, 100)),
        ("bytes=-1000", (0, 100)),
        (" bytes = 5 - 6 ", (5, 7)),
        ("", None),
        ("bytes=-", None),
        ("bytes=9-5", None),
        ("bytes=0-1,3-4", None),
        ("items=0-1", None),
        ("bytes=a-b", None),
        ("bytes=" + "9" * 30 + "-", None),
    ],
)
def test_ranges_are_read(header: str, span: tuple[int, int] | None) -> None:
    assert read_range(header, 100) == span


@pytest.mark.parametrize("header", ["bytes=100-", "bytes=100-200", "bytes=-0", "bytes=999999999999999999-"])
def test_ranges_outside_are_refused(header: str) -> None:
    with pytest.raises(ValueError):
        read_range(header, 100)


def test_an_empty_file_has_no_range() -> None:
    with pytest.raises(ValueError):
        read_range("bytes=0-", 0)


def test_known_tags() -> None:
    assert is_known('"a", W/"b"', '"b"') and is_known("*", '"b"')
    assert not is_known("", '"b"') and not is_known('"c"', '"b"')


def test_a_player_that_leaves_ends_the_sending(tmp_path: Path) -> None:
    """Ten gigabytes are asked for; the client leaves after three pieces."""
    path = tmp_path / "large.mp4"
    path.touch()
    os.truncate(path, 10 * 10**9)
    sent: list[Message] = []

    async def scene() -> None:
        left = asyncio.Event()

        async def receive() -> Message:
            await left.wait()
            return {"type": "http.disconnect"}

        async def send(message: Message) -> None:
            sent.append(message)
            if len(sent) == 4:
                left.set()

        scope = {"type": "http", "method": "GET", "headers": [(b"range", b"bytes=5-")]}
        await asyncio.wait_for(FileRange(path, "video/mp4", "tag")(scope, receive, send), 20)

    in_new_loop(scene())
    assert sent[0]["status"] == 206
    assert 4 <= len(sent) < 20 and all(len(message["body"]) == CHUNK for message in sent[1:])
    assert str(path) not in [os.path.realpath(f"/proc/self/fd/{number}") for number in os.listdir("/proc/self/fd")]
