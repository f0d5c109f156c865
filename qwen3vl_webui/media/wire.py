"""How values cross between the server and a decoding child: a small closed format, never pickle.

The child may be hostile once it has decoded a hostile file, so whatever it sends can only become None, bool, int,
float, str, bytes, list, tuple, dict or a numpy array of plain numbers, within limits checked before memory is taken.
"""

from __future__ import annotations

import socket
import struct
from typing import Any, BinaryIO

import numpy as np

MOST_BYTES = 512 << 20  # of one value: a 64-megapixel RGB picture is 192 MB
MOST_OBJECTS = 1_000_000  # of one value: a byte on the wire may become 8 to 64 in memory
MOST_DEPTH = 16
DTYPES = tuple(
    np.dtype(name) for name in ("?", "u1", "<u2", "<u4", "<u8", "i1", "<i2", "<i4", "<i8", "<f2", "<f4", "<f8")
)

Piece = bytes | memoryview


class WireError(ValueError):
    """Bytes that are not a value, or a value that may not cross."""


def encode(value: Any) -> list[Piece]:
    """The value as pieces to be written one after another; arrays are not copied."""
    pieces: list[Piece] = []
    _encode(value, pieces, MOST_DEPTH)
    return pieces


def _encode(value: Any, pieces: list[Piece], depth: int) -> None:
    if depth == 0:
        raise WireError("the value is nested too deeply")
    if value is None:
        pieces.append(b"N")
    elif isinstance(value, (bool, np.bool_)):
        pieces.append(b"T" if value else b"F")
    elif isinstance(value, (int, np.integer)):
        if not -(1 << 63) <= value < 1 << 63:
            raise WireError("an integer needs more than 64 bits")
        pieces.append(struct.pack("<cq", b"i", int(value)))
    elif isinstance(value, (float, np.floating)):
        pieces.append(struct.pack("<cd", b"f", float(value)))
    elif isinstance(value, str):
        text = value.encode("utf-8", "replace")  # lone surrogates become question marks
        pieces += [struct.pack("<cQ", b"s", len(text)), text]
    elif isinstance(value, (bytes, bytearray, memoryview)):
        raw = memoryview(value).cast("B")
        pieces += [struct.pack("<cQ", b"b", len(raw)), raw]
    elif isinstance(value, (list, tuple)):
        pieces.append(struct.pack("<cQ", b"l" if isinstance(value, list) else b"t", len(value)))
        for item in value:
            _encode(item, pieces, depth - 1)
    elif isinstance(value, dict):
        pieces.append(struct.pack("<cQ", b"d", len(value)))
        for key, item in value.items():
            _encode(key, pieces, depth - 1)
            _encode(item, pieces, depth - 1)
    elif isinstance(value, np.ndarray):
        _encode_array(value, pieces)
    else:
        raise WireError(f"{type(value).__name__} may not cross")


def _encode_array(array: np.ndarray, pieces: list[Piece]) -> None:
    array = np.ascontiguousarray(array).reshape(array.shape)  # ascontiguousarray makes a scalar 1-D
    if array.dtype not in DTYPES or array.ndim > 8:
        raise WireError(f"an array of {array.dtype} may not cross")
    pieces.append(struct.pack("<cBB", b"a", DTYPES.index(array.dtype), array.ndim))
    pieces.append(struct.pack(f"<{array.ndim}Q", *array.shape))
    if array.size:
        pieces.append(array.reshape(-1).view(np.uint8).data)


def decode(raw: bytes | bytearray | memoryview) -> Any:
    """The value in `raw`; its arrays share that memory. Raises WireError on anything else."""
    reader = _Reader(memoryview(raw))
    value = reader.value(MOST_DEPTH)
    if reader.position != len(reader.raw):
        raise WireError("bytes are left over")
    return value


class _Reader:
    def __init__(self, raw: memoryview) -> None:
        self.raw = raw
        self.position = 0
        self.objects = 0

    def take(self, size: int) -> memoryview:
        start, end = self.position, self.position + size
        if end > len(self.raw):
            raise WireError("the value is cut off")
        self.position = end
        return self.raw[start:end]

    def number(self, layout: str) -> Any:
        return struct.unpack(layout, self.take(struct.calcsize(layout)))[0]

    def value(self, depth: int) -> Any:
        self.objects += 1
        if depth == 0 or self.objects > MOST_OBJECTS:
            raise WireError("the value is too large or nested too deeply")
        tag = bytes(self.take(1))
        match tag:
            case b"N":
                return None
            case b"T" | b"F":
                return tag == b"T"
            case b"i":
                return self.number("<q")
            case b"f":
                return self.number("<d")
            case b"s":
                try:
                    return str(self.take(self.number("<Q")), "utf-8")
                except UnicodeDecodeError as error:
                    raise WireError("the text is not UTF-8") from error
            case b"b":
                return bytes(self.take(self.number("<Q")))
            case b"l":
                return [self.value(depth - 1) for _ in range(self.count())]
            case b"t":
                return tuple([self.value(depth - 1) for _ in range(self.count())])
            case b"d":
                return {self.key(depth - 1): self.value(depth - 1) for _ in range(self.count())}
            case b"a":
                return self.array()
        raise WireError(f"unknown tag {tag!r}")

    def key(self, depth: int) -> Any:
        key = self.value(depth)
        if not isinstance(key, (str, int, float, bytes, bool, type(None))):
            raise WireError("a key must be a plain value")
        return key

    def count(self) -> int:
        count = self.number("<Q")
        if count > len(self.raw) - self.position:  # each item takes a byte at least
            raise WireError("the value is cut off")
        return count

    def array(self) -> np.ndarray:
        code, dimensions = self.number("<B"), self.number("<B")
        if code >= len(DTYPES) or dimensions > 8:
            raise WireError("unknown kind of array")
        shape = struct.unpack(f"<{dimensions}Q", self.take(8 * dimensions))
        size = DTYPES[code].itemsize
        for side in shape:
            size *= side
        if size == 0:
            if any(side > MOST_BYTES for side in shape):
                raise WireError("the array is too large")
            return np.zeros(shape, DTYPES[code])
        return np.frombuffer(self.take(size), DTYPES[code]).reshape(shape)


# A message: one byte of kind, the length of the value, the value.
HEADER = struct.Struct("<cQ")
VALUE, DONE, FAILED = b"V", b"D", b"E"


def write_message(channel: socket.socket | BinaryIO, kind: bytes, value: Any = None) -> None:
    """Write one message, blocking while the reader is slow. Raises WireError before a byte of a bad value is sent."""
    pieces = encode(value)
    size = sum(len(piece) for piece in pieces)
    if size > MOST_BYTES:
        raise WireError("the value is too large")
    send = channel.sendall if isinstance(channel, socket.socket) else channel.write
    small = bytearray(HEADER.pack(kind, size))
    for piece in pieces:
        if len(piece) < 1 << 16:
            small += piece
            continue
        send(small)
        send(piece)
        small = bytearray()
    send(small)
    if not isinstance(channel, socket.socket):
        channel.flush()
