"""A file of one owner, and how it comes in: counted, digested and named while it is written."""

from __future__ import annotations

import hashlib
import os
import unicodedata
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from qwen3vl_webui.conversation import Attachment
from qwen3vl_webui.errors import MediaError, StorageError
from qwen3vl_webui.media.values import Media
from qwen3vl_webui.store.records import kind_of

NAME_LENGTH = 120


@dataclass(frozen=True)
class Stored:
    """A file of one owner. `id` is its opaque name in URLs and attachments, `size` in bytes.

    `purpose` is empty for what was attached on the page, else what the API's client said.
    """

    id: str
    digest: str
    name: str
    path: Path
    media: Media
    size: int
    created: float = 0.0
    purpose: str = ""

    @property
    def kind(self) -> str:
        """image, video, document or subtitles."""
        return kind_of(self.media)

    @property
    def attachment(self) -> Attachment:
        return Attachment(self.id, self.digest, self.name, kind_of(self.media))


@dataclass(frozen=True)
class Room:
    """Bytes one file and all files of its owner may have, and how many of those are left (None: no quota)."""

    file_limit: int
    quota: int
    left: int | None

    def check(self, size: int) -> None:
        if size > self.file_limit:
            limit = f"{self.file_limit / 1e9:g} GB"
            raise MediaError(f"The file is larger than {limit}. Cut it, or send a smaller one.", code="file_too_big")
        if self.left is not None and size > self.left:
            quota = f"{self.quota / 1e9:g} GB"
            raise StorageError(f"Your files fill the {quota} you may use. Delete some conversations first.")


class Receiving:
    """A file on its way into the store. `write` and `finish` raise MediaError or StorageError; nothing is left then."""

    def __init__(
        self, path: Path, data_dir: Path, room: Room, keep: Callable[[Path, str, int, str], Stored], purpose: str
    ) -> None:
        """`keep(path, digest, size, purpose)` takes over the whole file; the one at `path` goes in any case."""
        self.purpose = purpose  # may be set until `finish`
        self._path, self._data_dir, self._room, self._keep = path, data_dir, room, keep
        self._size = 0
        self._digest = hashlib.sha256()
        with writable(data_dir):
            self._file = open(path, "xb")  # noqa: SIM115  closed by finish or discard

    def write(self, chunk: bytes) -> None:
        self._size += len(chunk)
        try:
            self._room.check(self._size)
            self._digest.update(chunk)
            with writable(self._data_dir):
                self._file.write(chunk)
        except (MediaError, StorageError):
            self.discard()
            raise

    def finish(self) -> Stored:
        try:
            if self._size == 0:
                raise MediaError("The file is empty. Choose another one.", code="empty_file")
            with writable(self._data_dir):
                self._file.flush()
                os.fsync(self._file.fileno())
                self._file.close()
            return self._keep(self._path, self._digest.hexdigest(), self._size, self.purpose)
        finally:
            self.discard()

    def discard(self) -> None:
        """Leaves nothing behind; harmless after `finish`."""
        with suppress(OSError):  # a full disk refuses the last buffered bytes, which are not wanted any more
            self._file.close()
        self._path.unlink(missing_ok=True)


@contextmanager
def writable(data_dir: Path) -> Iterator[None]:
    """Turns what the disk refuses into a StorageError."""
    try:
        yield
    except OSError as error:
        raise refusal(data_dir, error.strerror or str(error)) from error


def refusal(data_dir: Path, cause: str) -> StorageError:
    return StorageError(
        f"The data folder {data_dir} cannot be written: {cause}. Free some space on that disk, then try again."
    )


def check_unchanged(path: Path, modified: int | None) -> None:
    """A linked file is not ours: what was digested must still be what is read. `modified` is its `st_mtime_ns`."""
    try:
        if path.stat().st_mtime_ns == modified:
            return
    except OSError:
        raise MediaError(f"{path.name} is not in its folder any more. Put it back, or open it again.") from None
    raise MediaError(f"{path.name} has changed since it was opened. Open it again.")


def clean(text: str) -> str:
    """UTF-8 can be made of it: lone surrogates become question marks."""
    return text.encode("utf-8", "replace").decode()


def clean_name(name: str) -> str:
    """A file's name to show: no folders, no control characters, at most 120 characters."""
    last = clean(name).replace("\\", "/").rsplit("/", 1)[-1]
    visible = "".join(" " if unicodedata.category(letter).startswith("C") else letter for letter in last)
    return " ".join(visible.split())[:NAME_LENGTH] or "untitled"


def sync_folder(folder: Path) -> None:
    """Makes a rename in it durable."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
