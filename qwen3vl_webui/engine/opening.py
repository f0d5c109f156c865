"""An engine that is still being opened: the server answers at once, the model arrives when it is ready."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Generator
from dataclasses import dataclass
from typing import Literal, Protocol

from qwen3vl_webui.engine.contract import Budget, Engine, Event, GenerationRequest, ModelInfo, likeness_of
from qwen3vl_webui.errors import NotReady, UserError
from qwen3vl_webui.media.values import FramePlan

log = logging.getLogger(__name__)


class Step(Protocol):
    """How far the opening is, as `model.loading.Progress` tells it; `total` 0 when it is not known yet."""

    @property
    def stage(self) -> str: ...
    @property
    def done(self) -> int: ...
    @property
    def total(self) -> int: ...
    @property
    def sentence(self) -> str: ...


Progress = Callable[[Step], None]


class Closed(Exception):
    """Raised out of the progress callback when the server stops before the model is there."""


@dataclass(frozen=True)
class Opening:
    """How far the model is. `sentence` is for a person in every state."""

    state: Literal["loading", "ready", "failed"]
    sentence: str
    stage: str = ""
    done: int = 0
    total: int = 0


class OpeningEngine:
    """Runs `open` in a background thread and becomes the engine it returns.

    Until then `plan` and `generate` raise NotReady with `status.sentence`, and `model` is `expected` (NotReady when
    none was given). When `open` raises, the state is `failed` for good: the sentence says why.
    """

    def __init__(self, open: Callable[[Progress], Engine], expected: ModelInfo | None = None) -> None:
        self._open = open
        self._expected = expected
        self._lock = threading.Lock()
        self._engine: Engine | None = None
        self._status = Opening("loading", "The model is being opened. Try again in a moment.")
        self._closed = False
        self._settled = threading.Event()
        self._thread = threading.Thread(target=self._run, name="open-model", daemon=True)
        self._thread.start()

    @property
    def status(self) -> Opening:
        with self._lock:
            return self._status

    def wait(self, timeout: float | None = None) -> bool:
        """Blocks until the model is ready or has failed; False when `timeout` seconds passed first."""
        return self._settled.wait(timeout)

    @property
    def model(self) -> ModelInfo:
        engine = self._engine
        if engine is not None:
            return engine.model
        if self._expected is not None:
            return self._expected
        raise NotReady(self.status.sentence)

    @property
    def context_length(self) -> int:
        return self._ready().context_length if self._expected is None or self._engine else self._expected.context_length

    def plan(self, request: GenerationRequest) -> Budget:
        return self._ready().plan(request)

    def generate(self, request: GenerationRequest) -> Generator[Event, None, None]:
        return self._ready().generate(request)

    def likeness(self, plan: FramePlan, question: str) -> tuple[float, ...]:
        return likeness_of(self._ready(), plan, question)

    def close(self) -> None:
        """Stops an opening at its next progress call; an engine that is open is closed."""
        with self._lock:
            self._closed = True
            engine = self._engine
        if engine is not None:
            engine.close()

    def _ready(self) -> Engine:
        with self._lock:
            if self._engine is None:
                raise NotReady(self._status.sentence)
            return self._engine

    def _progress(self, step: Step) -> None:
        sentence = f"The model is not ready yet. {step.sentence}"
        with self._lock:
            if self._closed:
                raise Closed
            self._status = Opening("loading", sentence, step.stage, step.done, step.total)

    def _run(self) -> None:
        try:
            engine = self._open(self._progress)
        except Closed:
            self._settle(Opening("failed", "The server is closing."))
        except UserError as error:
            log.error("the model could not be opened: %s", error.sentence)
            self._settle(Opening("failed", error.sentence))
        except Exception as error:  # whatever a checkpoint or a driver throws must reach the page, not only the log
            log.exception("the model could not be opened")
            reason = str(error).strip() or type(error).__name__
            self._settle(Opening("failed", f"The model could not be opened: {reason}"))
        else:
            self._settle(Opening("ready", "The model is ready."), engine)

    def _settle(self, status: Opening, engine: Engine | None = None) -> None:
        with self._lock:
            self._status, self._engine = status, engine
            too_late = self._closed and engine is not None
        self._settled.set()
        if too_late and engine is not None:
            engine.close()
