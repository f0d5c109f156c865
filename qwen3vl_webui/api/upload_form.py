"""multipart/form-data with one file, streamed to disk while it arrives: Starlette's own parser would keep it twice."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from anyio import to_thread
from python_multipart.exceptions import MultipartParseError
from python_multipart.multipart import MultipartParser, parse_options_header
from starlette.requests import Request

from qwen3vl_webui.errors import UserError
from qwen3vl_webui.store.store import Receiving

FIELD_LIMIT = 10_000  # bytes of one plain field
FIELDS = 20
HEADER_LIMIT = 10_000  # bytes of one part's headers
BROKEN = "The form is broken or was cut short. Send it again."


class Form:
    """What has arrived so far: plain `fields`, and the file part `file_field` in `receiving`."""

    def __init__(self, file_field: str, open_file: Callable[[str], Receiving]) -> None:
        self.fields: dict[str, str] = {}
        self.receiving: Receiving | None = None
        self.whole = False  # the closing boundary has come
        self._file_field, self._open_file = file_field, open_file
        self._headers: dict[bytes, bytes] = {}
        self._header_name, self._header_value = bytearray(), bytearray()
        self._name = ""
        self._is_file = False
        self._value = bytearray()

    def parser(self, boundary: bytes) -> MultipartParser:
        callbacks: Any = {
            "on_part_begin": self._begin,
            "on_header_field": lambda data, start, end: self._header(self._header_name, data[start:end]),
            "on_header_value": lambda data, start, end: self._header(self._header_value, data[start:end]),
            "on_header_end": self._end_header,
            "on_headers_finished": self._open_part,
            "on_part_data": lambda data, start, end: self._data(data[start:end]),
            "on_part_end": self._end_part,
            "on_end": self._end,
        }
        return MultipartParser(boundary, callbacks)

    def _begin(self) -> None:
        self._headers = {}
        self._value.clear()

    def _header(self, into: bytearray, data: bytes) -> None:
        into += data
        if len(into) > HEADER_LIMIT:
            raise UserError("A part of the form has too long headers.")

    def _end_header(self) -> None:
        self._headers[bytes(self._header_name).lower()] = bytes(self._header_value)
        self._header_name.clear()
        self._header_value.clear()

    def _open_part(self) -> None:
        _, options = parse_options_header(self._headers.get(b"content-disposition", b""))
        self._name = options.get(b"name", b"").decode("utf-8", "replace")
        self._is_file = b"filename" in options
        if not self._is_file:
            if self._name == self._file_field:
                raise UserError(f"Send the field `{self._file_field}` as a file with a name.", param=self._name)
            if len(self.fields) >= FIELDS:
                raise UserError("The form has too many fields.")
            return
        if self._name != self._file_field or self.receiving is not None:
            raise UserError(f"Send one file, in the field `{self._file_field}`.", param=self._name)
        self.receiving = self._open_file(options[b"filename"].decode("utf-8", "replace"))

    def _data(self, data: bytes) -> None:
        if self._is_file:
            assert self.receiving is not None
            self.receiving.write(data)
            return
        self._value += data
        if len(self._value) > FIELD_LIMIT:
            raise UserError(f"The field `{self._name}` is too long.", param=self._name)

    def _end(self) -> None:
        self.whole = True

    def _end_part(self) -> None:
        if not self._is_file:
            self.fields[self._name] = self._value.decode("utf-8", "replace")


async def receive_form(request: Request, file_field: str, open_file: Callable[[str], Receiving]) -> Form:
    """Reads the whole form; its file is written, not yet finished. On an error nothing of it is left."""
    kind, options = parse_options_header(request.headers.get("content-type", ""))
    if kind != b"multipart/form-data" or not options.get(b"boundary"):
        raise UserError("Send the file as multipart/form-data.")
    form = Form(file_field, open_file)
    parser = form.parser(options[b"boundary"])
    finished = False
    try:
        waiting = bytearray()
        async for chunk in request.stream():
            waiting += chunk
            if len(waiting) >= 1 << 20:
                await to_thread.run_sync(parser.write, bytes(waiting))
                waiting.clear()
        await to_thread.run_sync(parser.write, bytes(waiting))
        if not form.whole:
            raise UserError(BROKEN)
        finished = True
        return form
    except MultipartParseError as error:
        raise UserError(BROKEN) from error
    finally:
        if not finished and form.receiving is not None:
            form.receiving.discard()
