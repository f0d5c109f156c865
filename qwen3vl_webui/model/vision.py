"""Visual features: pictures and temporal patches through the vision tower in groups, kept by content key.

Attention in the tower never crosses a temporal patch, so encoding in groups equals encoding the whole, bounds memory,
and lets a second request with the same picture or moments encode nothing.
"""

from __future__ import annotations

import hashlib
import threading
from collections import OrderedDict
from collections.abc import Callable, Generator, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import replace
from itertools import groupby, islice

import numpy as np
import torch

from qwen3vl_webui.errors import MediaError
from qwen3vl_webui.media.ahead import Ahead, nothing_to_check
from qwen3vl_webui.media.values import Frame, FramePlan, Image
from qwen3vl_webui.model.inputs import VisualSpan, frame_patches, image_patches
from qwen3vl_webui.model.loading import LoadedModel
from qwen3vl_webui.model.planner import VISION_ROWS
from qwen3vl_webui.model.snapshots import Snapshots

ReadPixels = Callable[[Image], np.ndarray]
ReadFrames = Callable[[FramePlan], Iterable[Frame]]

MOST_SPANS = 16  # pictures or temporal patches of one group
MOST_WRITES = 64  # features that wait for the disk; more are not written
MOST_PATCHES = {"cuda": VISION_ROWS, "cpu": 4_096}  # rows of one group, unless one picture alone is bigger


class FeatureCache:
    """Features [1 + DeepStack taps, tokens, hidden] in CPU memory, the least recently used dropped first.

    With `snapshots` they are kept on disk too, written in another thread; `revision` names what must be the same for
    them to be good. Thread-safe. An entry bigger than `most_bytes` is not kept in memory.
    """

    def __init__(self, most_bytes: int, snapshots: Snapshots | None = None, revision: str = "") -> None:
        self.most_bytes = most_bytes
        self.snapshots = snapshots
        self.prefix = f"features/{hashlib.sha256(revision.encode()).hexdigest()[:24]}"
        self.bytes = 0
        self.entries: OrderedDict[str, torch.Tensor] = OrderedDict()
        self.lock = threading.Lock()
        self._writer = ThreadPoolExecutor(1, "features") if snapshots else None
        self._room = threading.Semaphore(MOST_WRITES)

    def get(self, key: str) -> torch.Tensor | None:
        with self.lock:
            features = self.entries.get(key)
            if features is not None:
                self.entries.move_to_end(key)
        if features is None and self.snapshots is not None and (found := self.snapshots.get(self._name(key))):
            features = found[0]["features"]
            self._keep(key, features)
        return features

    def put(self, key: str, features: torch.Tensor) -> None:
        self._keep(key, features)
        if self._writer is not None and self._room.acquire(blocking=False):  # else the disk is too slow for it
            self._writer.submit(self._write, self._name(key), features)

    def clear(self) -> None:
        """Of memory."""
        with self.lock:
            self.entries.clear()
            self.bytes = 0

    def close(self) -> None:
        """Waits until everything is written."""
        if self._writer is not None:
            self._writer.shutdown(wait=True)

    def _keep(self, key: str, features: torch.Tensor) -> None:
        with self.lock:
            if features.nbytes > self.most_bytes:
                return
            if key in self.entries:
                self.bytes -= self.entries.pop(key).nbytes
            self.entries[key] = features
            self.bytes += features.nbytes
            while self.bytes > self.most_bytes:
                self.bytes -= self.entries.popitem(last=False)[1].nbytes

    def _write(self, name: str, features: torch.Tensor) -> None:
        assert self.snapshots is not None
        try:
            if not self.snapshots.has(name):
                self.snapshots.put(name, {"features": features})
        finally:
            self._room.release()

    def _name(self, key: str) -> str:
        return f"{self.prefix}/{hashlib.sha256(key.encode()).hexdigest()[:32]}"


class Vision:
    """The vision tower with its feature cache.

    `read_pixels` gives a picture (height, width, 3) uint8 at any size; `read_frames` gives the frames of a plan, two
    per temporal patch, at the plan's size, lazily.
    """

    def __init__(
        self,
        loaded: LoadedModel,
        *,
        read_pixels: ReadPixels,
        read_frames: ReadFrames,
        most_bytes: int = 2**30,
        snapshots: Snapshots | None = None,
        revision: str = "",
    ) -> None:
        self.tower = loaded.vision
        self.device = loaded.device
        self.dtype = next(loaded.vision.parameters()).dtype
        self.read_pixels = read_pixels
        self.read_frames = read_frames
        self.cache = FeatureCache(most_bytes, snapshots, f"{revision} {self.dtype}")
        self.running = threading.Lock()

    def features(
        self, spans: Sequence[VisualSpan], *, check: Callable[[], None] = nothing_to_check
    ) -> Generator[tuple[VisualSpan, torch.Tensor], None, None]:
        """Yield each span with its features [1 + DeepStack taps, tokens, hidden] on the CPU, in the order given.

        Works one group ahead of what is taken, and decodes one more: a long video is decoded as the prompt is read.
        `check` is called between frames and groups, also in the decoder's thread, and may raise to stop; closing the
        generator ends the decoder too.
        """
        pending: list[tuple[VisualSpan, torch.Tensor]] = []
        rows = 0
        most_patches = MOST_PATCHES.get(self.device.type, MOST_PATCHES["cpu"])
        with closing(self.read(spans, check)) as reading:
            for span, patches, known in reading:
                check()
                full = rows + (0 if patches is None else len(patches)) > most_patches or len(pending) == MOST_SPANS
                if pending and (full or known is not None):
                    yield from self.encode(pending)
                    pending, rows = [], 0
                if known is not None:
                    yield span, known
                elif patches is not None:
                    pending.append((span, patches))
                    rows += len(patches)
            if pending:
                check()
                yield from self.encode(pending)

    def read(
        self, spans: Sequence[VisualSpan], check: Callable[[], None]
    ) -> Generator[tuple[VisualSpan, torch.Tensor | None, torch.Tensor | None], None, None]:
        """Each span with either its patches or the features already known; frames of one plan are decoded in one go.

        What is known of a plan is looked up before its decoder starts and held while it runs, so that new features
        cannot drop what the decoder was told to leave out.
        """
        for part, group in groupby(spans, key=lambda span: span.part):
            run = list(group)
            if isinstance(part, Image):
                for span in run:
                    known = self.cache.get(span.content_key)
                    patches = None
                    if known is None:
                        assert part.seen is not None, "plan the image first: image.at(width, height)"
                        patches = image_patches(self.read_pixels(part), part.seen)
                    yield span, patches, known
                continue
            held = {span.content_key: self.cache.get(span.content_key) for span in run}
            missing = [span for span in run if held[span.content_key] is None]
            frames = self.moments(part, [part.patches[span.patch] for span in missing], check)
            with closing(frames):
                for span in run:
                    known = held[span.content_key]
                    yield span, next(frames) if known is None else None, known

    def moments(
        self, plan: FramePlan, wanted: Sequence[tuple[float, float]], check: Callable[[], None]
    ) -> Generator[torch.Tensor, None, None]:
        """Patches of each wanted pair of seconds; the next group is decoded while one is encoded. Raises MediaError
        when the file ends early."""
        if not wanted:
            return
        with closing(Ahead(self.read_frames(replace(plan, patches=tuple(wanted))), 2 * MOST_SPANS, check)) as frames:
            for _ in wanted:
                pair = [frame.pixels for frame in islice(frames, 2)]
                if len(pair) < 2:
                    raise MediaError("The video ended before the last planned frame: upload it again.")
                yield frame_patches(*pair)

    @torch.no_grad()
    def run(self, patches: torch.Tensor, grids: Sequence[tuple[int, int, int]]) -> torch.Tensor:
        """[1 + DeepStack taps, tokens, hidden] on the device, of patches [rows, 1536] of the grids in turn."""
        with self.running:  # the memory of one group is what was planned for, however many prompts are read
            output = self.tower(
                patches.to(self.device, self.dtype), grid_thw=torch.tensor(grids, device=self.device), return_dict=True
            )
            return torch.stack([output.pooler_output, *output.deepstack_features])

    def encode(
        self, group: Sequence[tuple[VisualSpan, torch.Tensor]]
    ) -> Generator[tuple[VisualSpan, torch.Tensor], None, None]:
        """Encode a group in one call, keep and yield the features of each span."""
        patches = torch.cat([rows for _, rows in group]) if len(group) > 1 else group[0][1]
        features = self.run(patches, [span.grid_thw for span, _ in group]).cpu()
        pieces = [piece.contiguous() for piece in features.split([span.count for span, _ in group], dim=1)]
        for (span, _), piece in zip(group, pieces, strict=True):
            kept = piece.pin_memory() if self.device.type == "cuda" else piece
            self.cache.put(span.content_key, kept)
            yield span, kept
