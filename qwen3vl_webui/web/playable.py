"""Copies that a browser can play of videos it cannot, made in the background, one at a time."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Literal

from qwen3vl_webui.errors import MediaError, UserError
from qwen3vl_webui.media.background import Background, Cancelled, Task
from qwen3vl_webui.media.playback import how_to_play, make_playable
from qwen3vl_webui.media.values import Clip
from qwen3vl_webui.store.store import Store

KEPT = 1000  # videos of which it is known how they are played, or that they cannot be


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
        self._copies = Background(
            "playable",
            KEPT,
            lambda sentence: Playing("failed", sentence=sentence),
            "No playable copy could be made of this video.",
        )

    def state(self, clip: Clip) -> Playing:
        """Begins to make the copy when one is needed. Blocks while a file is looked into for the first time."""
        known = self._copies.known(clip.digest)
        if known is not None and known.play != "ready":
            return known
        if self._store.playable_path(clip.digest).exists():
            return Playing("ready", 1.0)
        if known is None and how_to_play(clip) == "as_is":
            self._copies.settle(clip.digest, Playing("as_is", 1.0))
        else:
            self._copies.begin(clip.digest, Playing("making"), partial(self._make, clip))
        return self._copies.known(clip.digest) or Playing("making")

    def close(self) -> None:
        """Cancels the copy in work; what is half made is removed."""
        self._copies.close()

    def _make(self, clip: Clip, task: Task[Playing]) -> Playing:
        target = self._store.playable_path(clip.digest)
        part = target.with_name(target.name + ".part")

        def progress(share: float) -> None:
            self._copies.tell(task, Playing("making", min(1.0, max(0.0, share))))

        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            make_playable(clip.path, part, progress=progress)
            part.rename(target)
        except FileNotFoundError as error:  # its conversation was deleted meanwhile: who uploads it again may try again
            raise Cancelled from error
        except UserError as error:
            if not clip.path.exists():
                raise Cancelled from error
            raise
        except OSError as error:
            raise MediaError(
                f"The copy to play could not be written: {error.strerror}. Free some space on the disk."
            ) from error
        finally:
            part.unlink(missing_ok=True)
        return Playing("ready", 1.0)
