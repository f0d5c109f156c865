from __future__ import annotations

import math
import struct
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qwen3vl_webui.media import wire

plain = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**63), 2**63 - 1),
    st.floats(allow_nan=False),
    st.text(st.characters(exclude_categories=["Cs"])),
    st.binary(),
)
keys = st.one_of(st.text(st.characters(exclude_categories=["Cs"])), st.integers(-(2**63), 2**63 - 1))
values = st.recursive(
    plain,
    lambda inner: st.one_of(st.lists(inner), st.lists(inner).map(tuple), st.dictionaries(keys, inner, max_size=4)),
    max_leaves=20,
)


def through(value: Any) -> Any:
    return wire.decode(bytearray(b"".join(wire.encode(value))))


@given(values)
def test_values_come_back_equal_and_of_the_same_type(value: Any) -> None:
    assert repr(through(value)) == repr(value)


@pytest.mark.parametrize("dtype", wire.DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(), (0,), (3,), (2, 0, 4), (5, 4, 3)], ids=str)
def test_arrays_come_back_with_shape_and_dtype(dtype: np.dtype, shape: tuple[int, ...]) -> None:
    array = (np.arange(math.prod(shape)) % 2).astype(dtype).reshape(shape)
    back = through([b"one byte off the alignment", array])[1]
    assert back.dtype == dtype and back.shape == shape and np.array_equal(back, array)


def test_a_sliced_array_comes_back_whole() -> None:
    array = np.arange(60, dtype=np.uint8).reshape(4, 5, 3)[::-1, ::2]
    assert np.array_equal(through(array), array)


def test_a_lone_surrogate_becomes_a_question_mark() -> None:
    assert through("a\ud800b") == "a?b"


@pytest.mark.parametrize("value", [object(), {1, 2}, 2**64, np.array(["text"]), np.array([object()])], ids=repr)
def test_anything_else_may_not_cross(value: Any) -> None:
    with pytest.raises(wire.WireError):
        wire.encode(value)


def test_deep_nesting_may_not_cross() -> None:
    value: list[Any] = []
    for _ in range(wire.MOST_DEPTH):
        value = [value]
    with pytest.raises(wire.WireError):
        wire.encode(value)


@settings(max_examples=500)
@given(st.binary(max_size=200))
def test_any_bytes_are_refused_or_a_value_that_could_have_been_sent(raw: bytes) -> None:
    try:
        value = wire.decode(raw)
    except wire.WireError:
        return
    assert repr(through(value)) == repr(value)


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"s" + struct.pack("<Q", 2**63),
        b"l" + struct.pack("<Q", 2**40),
        b"l" + struct.pack("<Q", 2_000_000) + b"N" * 2_000_000,
        b"l\x01\0\0\0\0\0\0\0" * 1000 + b"N",
        b"d\x01\0\0\0\0\0\0\0" + b"l\0\0\0\0\0\0\0\0" + b"N",
        b"a\x01\x02" + struct.pack("<QQ", 2**40, 2**40),
        b"a\x01\x02" + struct.pack("<QQ", 0, 2**62),
        b"a\x63\x00",
        b"s\x01\0\0\0\0\0\0\0\xff",
        b"NN",
    ],
    ids=[
        "nothing",
        "long text",
        "long list",
        "many objects",
        "deep",
        "list as key",
        "large array",
        "empty but wide array",
    ]
    + ["unknown dtype", "not UTF-8", "left over"],
)
def test_a_bomb_is_refused_before_memory_is_taken(raw: bytes) -> None:
    with pytest.raises(wire.WireError):
        wire.decode(raw)
