"""Tensors on disk that outlive the process: checked when they are read, dropped when they are damaged.

Each entry is one safetensors file whose header holds a checksum of everything else in it. The least recently used go
when a new one does not fit. What is written here is a cache: losing it costs time, trusting a wrong one would cost a
wrong answer.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
import shutil
import threading
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from qwen3vl_webui.errors import StorageError

log = logging.getLogger(__name__)

SUFFIX = ".snapshot"  # safetensors inside; a name of our own, so that making room never removes anyone's weights
CHECKSUM = "checksum"
NAME = re.compile(r"[\w.-]+(/[\w.-]+)*")
FREE = 2**30  # bytes of the disk that are left to others

Tensors = dict[str, torch.Tensor]
About = dict[str, str]


def checksum(tensors: Mapping[str, torch.Tensor], about: Mapping[str, str]) -> str:
    """SHA-256 over names, shapes, types, bytes and what is said about them."""
    whole = hashlib.sha256(json.dumps(dict(about), sort_keys=True).encode())
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        whole.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        whole.update(tensor.view(-1).view(torch.uint8).numpy().data if tensor.numel() else b"")
    return whole.hexdigest()


class Snapshots:
    """A folder of entries, at most `most_bytes` together. Thread-safe; a full disk is logged, never raised.

    Raises StorageError when the folder cannot be made.
    """

    def __init__(self, folder: Path, most_bytes: int) -> None:
        self.folder = folder
        self.most_bytes = most_bytes
        self._lock = threading.Lock()
        try:
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            for left in folder.rglob(f"*{SUFFIX}.*.partial"):  # of a process that died while writing
                left.unlink(missing_ok=True)
        except OSError as error:
            raise StorageError(f"The folder for snapshots cannot be used: {error.strerror}. Choose another.") from error

    def names(self, prefix: str) -> list[str]:
        """Of the entries below the folder `prefix`."""
        found = (self.folder / prefix).glob("*" + SUFFIX)
        return sorted(f"{prefix}/{path.name.removesuffix(SUFFIX)}" for path in found)

    def has(self, name: str) -> bool:
        return self._path(name).exists()

    def put(self, name: str, tensors: Tensors, about: About | None = None) -> bool:
        """Writes an entry whole or not at all; False when it was too big or the disk would not take it."""
        size = sum(tensor.nbytes for tensor in tensors.values())
        path = self._path(name)
        partial = path.with_name(f"{path.name}.{threading.get_ident()}.partial")
        about = dict(about or {})
        with self._lock:
            if size > self.most_bytes or not self._make_room(size):
                return False
            try:
                path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
                save_file(
                    {key: tensor.detach().cpu().contiguous() for key, tensor in tensors.items()},
                    partial,
                    metadata={**about, CHECKSUM: checksum(tensors, about)},
                )
                partial.chmod(0o600)
                partial.rename(path)
            except (OSError, SafetensorError) as error:
                log.warning("a snapshot was not written: %s", error)
                partial.unlink(missing_ok=True)
                return False
        return True

    def get(self, name: str) -> tuple[Tensors, About] | None:
        """The entry, if it is there and is what was written."""
        path = self._path(name)
        try:
            with safe_open(path, framework="pt") as file:
                about = dict(file.metadata() or {})
                tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (it is no mapping)
        except FileNotFoundError:
            return None
        except (OSError, SafetensorError, ValueError) as error:
            self.drop(name, str(error))
            return None
        expected = about.pop(CHECKSUM, "")
        if checksum(tensors, about) != expected:
            self.drop(name, "its checksum is wrong")
            return None
        try:
            os.utime(path)  # used now
        except OSError:
            log.debug("%s went away", path)
        return tensors, about

    def peek(self, name: str, tensor: str) -> tuple[torch.Tensor, About] | None:
        """One tensor and what is said, unchecked: good for choosing an entry, not for using it."""
        try:
            with safe_open(self._path(name), framework="pt") as file:
                about = dict(file.metadata() or {})
                return file.get_tensor(tensor), about
        except FileNotFoundError:
            return None
        except (OSError, SafetensorError, ValueError) as error:
            self.drop(name, str(error))
            return None

    def drop(self, name: str, reason: str = "") -> None:
        if reason:
            log.warning("the snapshot %s is dropped: %s", name, reason)
        self._path(name).unlink(missing_ok=True)

    def _path(self, name: str) -> Path:
        assert NAME.fullmatch(name) and ".." not in name, name
        return self.folder / (name + SUFFIX)

    def _make_room(self, size: int) -> bool:
        entries = []
        for path in self.folder.rglob("*" + SUFFIX):
            try:
                state = path.stat()
            except FileNotFoundError:
                continue
            entries.append((state.st_mtime_ns, state.st_size, path))
        room = self.most_bytes - sum(each for _, each, _ in entries)
        room = min(room, shutil.disk_usage(self.folder).free - FREE)
        for _, each, path in sorted(entries):
            if room >= size:
                break
            path.unlink(missing_ok=True)
            room += each
        return room >= size
