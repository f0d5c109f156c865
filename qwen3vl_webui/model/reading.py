"""A prompt while it is read: embedded rows chunk by chunk, with the features of its pictures made ahead in a thread.

Decoders and the vision tower run beside the text model, so that a video that is slow to open holds up nobody else.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Sequence
from contextlib import closing
from dataclasses import dataclass

import numpy as np
import torch

from qwen3vl_webui.model.forward import DeepStack
from qwen3vl_webui.model.inputs import Inputs, VisualSpan
from qwen3vl_webui.model.pace import Pace

AHEAD = 4096  # prompt tokens whose features may be made before they are read; above the largest chunk

Made = Generator[tuple[VisualSpan, torch.Tensor], None, None]
MakeFeatures = Callable[[Sequence[VisualSpan], Callable[[], None]], Made]


class Dropped(Exception):
    """Nobody needs these features any more."""


class FeatureThread:
    """Makes the features of `spans`, in order, never much further than what is read.

    `make(spans, check)` is `Vision.features`; `news` is called, in this thread, whenever more is there or it failed.
    """

    def __init__(self, spans: Sequence[VisualSpan], make: MakeFeatures, news: Callable[[], None]) -> None:
        self._spans, self._make, self._news = list(spans), make, news
        self._changed = threading.Condition()
        self._made: deque[tuple[VisualSpan, torch.Tensor]] = deque()
        self._count = 0  # made so far
        self._read = 0  # prompt tokens read so far
        self._dropped = False
        self._error: BaseException | None = None
        self.thread = threading.Thread(target=self._run, name="vision", daemon=True)
        self.thread.start()

    @property
    def failed(self) -> bool:
        return self._error is not None

    def ready(self, end: int) -> bool:
        """Whether the features of prompt tokens before `end` are there, or will never be."""
        with self._changed:
            made = self._count == len(self._spans) or self._spans[self._count].start >= end
            return made or self._error is not None

    def take(self, start: int, end: int) -> list[tuple[VisualSpan, torch.Tensor]]:
        """The features that lie in prompt tokens [start, end). Raises what failed."""
        with self._changed:
            if self._error is not None:
                raise self._error.with_traceback(None)
            return [(span, features) for span, features in self._made if start < span.end and span.start < end]

    def let_go(self, end: int) -> None:
        """Prompt tokens before `end` are read."""
        with self._changed:
            self._read = end
            while self._made and self._made[0][0].end <= end:
                self._made.popleft()
            self._changed.notify()

    def drop(self) -> None:
        """Stops between two frames or groups; does not wait for it."""
        with self._changed:
            self._dropped = True
            self._changed.notify()

    def _check(self) -> None:
        if self._dropped:
            raise Dropped

    def _run(self) -> None:
        try:
            with closing(self._make(self._spans, self._check)) as features:
                for made in features:
                    self._keep(made)
        except Dropped:
            return
        except BaseException as error:  # whatever a decoder or a device throws is raised where it is waited for
            with self._changed:
                self._error = error
            self._news()

    def _keep(self, made: tuple[VisualSpan, torch.Tensor]) -> None:
        with self._changed:
            self._made.append(made)
            self._count += 1
        self._news()
        with self._changed:
            coming = self._spans[self._count].start if self._count < len(self._spans) else 0
            self._changed.wait_for(lambda: self._dropped or coming < self._read + AHEAD)
        self._check()


@dataclass(frozen=True)
class Chunk:
    """Prompt tokens [start, end): embedded `rows` (n, hidden) with features in place, `positions` int64 (3, n)."""

    start: int
    end: int
    rows: torch.Tensor
    positions: torch.Tensor
    keys: np.ndarray
    deepstack: DeepStack | None


class PromptReading:
    """One prompt from its token `reused` on. `embed` is the model's embedding, `growth` how much slower each token
    makes one after it (`Shape.growth`). Close it when it is read or given up."""

    def __init__(
        self,
        inputs: Inputs,
        reused: int,
        *,
        embed: Callable[[torch.Tensor], torch.Tensor],
        make: MakeFeatures,
        news: Callable[[], None],
        device: torch.device,
        growth: float,
    ) -> None:
        self.inputs = inputs
        self.at = reused
        self._embed, self._make, self._news, self._device = embed, make, news, device
        self._features: FeatureThread | None = None
        self._pace = Pace(growth)
        self._marked = time.monotonic()  # when the last chunk was read
        self.restart()

    @property
    def left(self) -> int:
        return self.inputs.tokens - self.at

    @property
    def thread(self) -> threading.Thread | None:
        return self._features.thread if self._features is not None else None

    @property
    def failed(self) -> bool:
        """Whether a picture or a video could not be made features of."""
        return self._features is not None and self._features.failed

    def restart(self) -> None:
        """Makes the features that are still missing anew, after they failed."""
        self.close()
        missing = [span for span in self.inputs.spans if span.end > self.at]
        self._features = FeatureThread(missing, self._make, self._news) if missing else None

    def ready(self, count: int) -> bool:
        """Whether the next `count` tokens can be read without waiting for features."""
        return self._features is None or self._features.ready(self.at + count)

    def chunk(self, count: int) -> Chunk:
        """The next `count` tokens; asking again gives them again, until `advance`."""
        start, end = self.at, min(self.inputs.tokens, self.at + count)
        rows = self._embed(torch.from_numpy(self.inputs.ids[start:end]).to(self._device))  # (n, hidden)
        held = self._features.take(start, end) if self._features is not None else []
        positions = torch.from_numpy(self.inputs.positions[:, start:end]).to(self._device)
        return Chunk(start, end, rows, positions, self.inputs.keys[start:end], place(rows, held, start, end))

    @property
    def seconds_left(self) -> float | None:
        """As the chunks so far went, with whatever else was done between them."""
        return self._pace.seconds(self.at, self.at + self.left)

    def advance(self, end: int) -> None:
        now = time.monotonic()
        self._pace.learn(self.at, end, now - self._marked)
        self._marked = now
        self.at = end
        if self._features is not None:
            self._features.let_go(end)

    def close(self) -> None:
        if self._features is not None:
            self._features.drop()


def place(
    rows: torch.Tensor, held: Sequence[tuple[VisualSpan, torch.Tensor]], start: int, end: int
) -> DeepStack | None:
    """Writes features into the embedded rows (n, hidden) of prompt tokens [start, end); what is added later.

    A span may cross the border of two chunks.
    """
    pieces, indexes = [], []
    for span, features in held:
        first, after = max(start, span.start), min(end, span.end)
        if first < after:
            pieces.append(features[:, first - span.start : after - span.start])
            indexes.append(torch.arange(first - start, after - start))
    if not pieces:
        return None
    visual = torch.cat(pieces, 1).to(rows.device, rows.dtype)  # (1 + taps, visual rows, hidden)
    where = torch.cat(indexes).to(rows.device)
    rows.index_copy_(0, where, visual[0])
    return DeepStack(where, list(visual[1:]))
