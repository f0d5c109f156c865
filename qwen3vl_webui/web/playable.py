"""Copies that a browser can play of videos it cannot, made in the background, one at a time."""

from __future__ import annotations

import logging
import queue
import threading
from dataclasses import dataclass, replace
from typing import Literal

from qwen3vl_webui.errors import UserError
from qwen3vl_webui.media.playback import how_to_play, make_playable
from qwen3vl_webui.media.values import Clip
from qwen3vl_webui.store.store import Store

log = logging.getLogger(__name__)


class Cancelled(Exception):
    """Raised out of the progress callback when the server stops."""


@dataclass(frozen=True)
class Playing:
    """How a video is played: the file itself, or a copy that is being made, ready, or cannot be made (`sentence`)."""

    play: Literal["as_is", "making", "ready", "failed"]
    progress: float = 0.0  # 0..1
    sentence: str = ""


class PlayableCopies:
    """Kept beside the media by digest, until the media goes."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._lock = threading.Lock()
        self._states: dict[str, Playing] = {}  # by digest
        self._waiting: queue.SimpleQueue[Clip | None] = queue.SimpleQueue()
        self._closing = threading.Event()
        self._worker: threading.Thread | None = None

    def state(self, clip: Clip) -> Playing:
        """Begins to make the copy when one is needed. Blocks while a file is looked into for the first time."""
        known = self._states.get(clip.digest)
        if known is not None and known.play != "ready":
            return known
        if self._store.playable_path(clip.digest).exists():
            return Playing("ready", 1.0)
        as_is = known is None and how_to_play(clip) == "as_is"
        with self._lock:
            if self._states.get(clip.digest) is known:  # else another thread was faster
                self._states[clip.digest] = Playing("as_is", 1.0) if as_is else Playing("making")
                if not as_is:
                    self._begin(clip)
            return self._states[clip.digest]

    def _begin(self, clip: Clip) -> None:
        self._waiting.put(clip)
        if self._worker is None:
            self._worker = threading.Thread(target=self._work, name="playable", daemon=True)
            self._worker.start()

    def close(self) -> None:
        """Cancels the copy in work; what is half made is removed."""
        self._closing.set()
        self._waiting.put(None)
        if self._worker is not None:
            self._worker.join(10.0)

    def _work(self) -> None:
        while (clip := self._waiting.get()) is not None and not self._closing.is_set():
            try:
                self._make(clip)
                self._set(clip, Playing("ready", 1.0))
            except Cancelled:
                return
            except FileNotFoundError:  # its conversation was deleted meanwhile: who uploads it again gets another try
                self._forget(clip)
            except UserError as error:
                if clip.path.exists():
                    self._set(clip, Playing("failed", sentence=error.sentence))
                else:
                    self._forget(clip)
            except OSError as error:
                sentence = f"The copy to play could not be written: {error.strerror}. Free some space on the disk."
                self._set(clip, Playing("failed", sentence=sentence))
            except Exception:  # the next video must still get its copy
                log.exception("a playable copy failed")
                self._set(clip, Playing("failed", sentence="No playable copy could be made of this video."))

    def _make(self, clip: Clip) -> None:
        target = self._store.playable_path(clip.digest)
        target.parent.mkdir(parents=True, exist_ok=True)
        part = target.with_name(target.name + ".part")

        def progress(share: float) -> None:
            if self._closing.is_set():
                raise Cancelled
            with self._lock:
                self._states[clip.digest] = replace(self._states[clip.digest], progress=min(1.0, max(0.0, share)))

        try:
            make_playable(clip.path, part, progress=progress)
            part.rename(target)
        finally:
            part.unlink(missing_ok=True)

    def _forget(self, clip: Clip) -> None:
        with self._lock:
            self._states.pop(clip.digest, None)

    def _set(self, clip: Clip, playing: Playing) -> None:
        with self._lock:
            self._states[clip.digest] = playing
