"""Ranges as players ask for them."""

import pytest

from qwen3vl_webui.byte_ranges import is_known, read_range


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
