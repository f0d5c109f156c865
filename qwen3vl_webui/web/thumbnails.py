"""Thumbnails and page images on disk: made once, the least used removed when they fill their room."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from qwen3vl_webui.conversation import new_id

LIMIT = 512 * 2**20  # bytes of all pictures kept
TOUCH_SECONDS = 3600.0  # how exactly the last use is known


class Pictures:
    """A folder `data_dir/pictures/<digest>/<name>`, so that the store can remove what shows a file it forgets."""

    def __init__(self, folder: Path, limit: int = LIMIT) -> None:
        self._folder = folder
        self._limit = limit
        self._lock = threading.Lock()
        self._used: int | None = None  # bytes; counted at the first write

    def read(self, digest: str, name: str, make: Callable[[], bytes]) -> bytes:
        """The picture kept under this name, or a new one. A disk that cannot be written only costs the making."""
        path = self._folder / digest / name
        try:
            picture = path.read_bytes()
            if time.time() - path.stat().st_mtime > TOUCH_SECONDS:
                os.utime(path)
            return picture
        except OSError:
            picture = make()
        with suppress(OSError):  # it is made again next time
            self._keep(path, picture)
        return picture

    def _keep(self, path: Path, picture: bytes) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        new = path.with_name(new_id())
        try:
            new.write_bytes(picture)
            new.rename(path)
        finally:
            new.unlink(missing_ok=True)
        with self._lock:
            if self._used is not None:
                self._used += len(picture)
            if self._used is None or self._used > self._limit:
                self._used = self._make_room()

    def _make_room(self) -> int:
        """Removes the least used until a fifth is free, when the limit is passed; the bytes left."""
        kept = []
        for path in self._folder.glob("*/*"):
            try:
                status = path.stat()
            except OSError:
                continue  # removed meanwhile with its file
            kept.append((status.st_mtime, status.st_size, path))
        used = sum(size for _, size, _ in kept)
        if used > self._limit:
            for _, size, path in sorted(kept):
                if used <= self._limit * 4 // 5:
                    break
                path.unlink(missing_ok=True)
                used -= size
        return used
