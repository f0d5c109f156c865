"""Running answers: a thread drains the engine into the store, pages watch. An answer outlives the page that asked."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from contextlib import closing, suppress
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple, assert_never

from qwen3vl_webui.conversation import State, Turn
from qwen3vl_webui.engine.contract import Engine, FinishEvent, GenerationRequest, PrefillEvent, TokenEvent
from qwen3vl_webui.errors import Conflict, EngineError, NotFound, Overloaded, UserError
from qwen3vl_webui.looks import Look
from qwen3vl_webui.media.values import Cue
from qwen3vl_webui.store.store import Store
from qwen3vl_webui.zoom import Closer, look_closer

log = logging.getLogger(__name__)

SAVE_SECONDS = 1.0  # between two writes of an answer
KEEP_SECONDS = 60.0  # a finished job can still be found
JOBS_PER_OWNER = 8  # running and waiting


class Prefill(NamedTuple):
    """`done` of `total` prompt tokens are read; `waiting` requests stand before this one; `seconds_left` is a guess."""

    done: int = 0
    total: int = 0
    waiting: int = 0
    seconds_left: float | None = None


@dataclass(frozen=True)
class Progress:
    """An answer as it stands. `state` is `partial` while it is written; `note` is the sentence of a failure, or what
    the engine says about a whole answer."""

    text: str = ""
    thinking: str = ""
    thinking_seconds: float = 0.0
    prefill: Prefill = Prefill()
    closer: tuple[Look, ...] = ()  # what is read a second time, finer
    state: State = "partial"
    note: str = ""
    statistics: dict[str, Any] = field(default_factory=dict)


class Job:
    """One answer being written. Made by `Jobs.start`; every method may be called from any thread."""

    def __init__(self, engine: Engine, store: Store, owner: str, conversation_id: str, turn: Turn) -> None:
        self.owner = owner
        self.conversation_id = conversation_id
        self.turn_id = turn.id
        self.finished: float | None = None  # time.monotonic() of the end
        self._engine, self._store, self._turn = engine, store, turn
        self._lock = threading.Lock()
        self._progress = Progress()
        self._pieces: list[str] = []
        self._thoughts: list[str] = []
        self._thinking_since: float | None = None
        self._version = 0
        self._watchers: set[tuple[asyncio.AbstractEventLoop, asyncio.Future[int]]] = set()
        self._stopping = threading.Event()
        self._note = ""
        self._said: tuple[Cue, ...] = ()
        self._saved: float | None = None  # time.monotonic() of the last write
        self._thread: threading.Thread | None = None

    @property
    def running(self) -> bool:
        return self.finished is None

    def stop(self) -> None:
        """Asks; the answer ends `aborted` within one event of the engine."""
        self._stopping.set()

    def join(self, timeout: float | None = None) -> bool:
        """Waits for the end; False when it has not come within `timeout` seconds."""
        assert self._thread is not None
        self._thread.join(timeout)
        return not self._thread.is_alive()

    def snapshot(self) -> Progress:
        with self._lock:
            seconds = self._progress.thinking_seconds
            if self._thinking_since is not None:
                seconds = time.monotonic() - self._thinking_since
            return replace(
                self._progress,
                text="".join(self._pieces),
                thinking="".join(self._thoughts),
                thinking_seconds=seconds,
            )

    async def changed(self, after: int) -> int:
        """Waits until the version is above `after` or the job has ended; the version now. Start with -1."""
        loop = asyncio.get_running_loop()
        with self._lock:
            if self._version > after or not self.running:
                return self._version
            watcher = (loop, loop.create_future())
            self._watchers.add(watcher)
        try:
            return await watcher[1]
        finally:
            with self._lock:
                self._watchers.discard(watcher)

    def start(self, request: GenerationRequest, zoom: bool = False, note: str = "", said: tuple[Cue, ...] = ()) -> None:
        self._note, self._said = note, said
        self._thread = threading.Thread(target=self._write, args=(request, zoom), name="answer", daemon=True)
        self._thread.start()

    def _write(self, request: GenerationRequest, zoom: bool) -> None:
        try:
            self._drain(request, zoom)
        except UserError as error:
            self._end("failed", error.sentence)
        except Exception:
            log.exception("an answer failed")
            self._end("failed", EngineError("The engine failed. Try again; the server's log has the cause.").sentence)

    def _drain(self, request: GenerationRequest, zoom: bool) -> None:
        if self._stopping.is_set():
            return self._end("aborted")
        with closing(
            look_closer(self._engine, request, self._said) if zoom else self._engine.generate(request)
        ) as events:
            for event in events:
                match event:
                    case PrefillEvent():
                        self._news(prefill=Prefill(event.done, event.total, event.waiting, event.seconds_left))
                    case TokenEvent():
                        self._token(event)
                    case Closer():
                        self._news(closer=event.looks)
                    case FinishEvent():
                        closer = self._progress.closer
                        spans = {"closer": [look.record for look in closer]} if closer else {}
                        note = "\n".join(filter(None, (self._note, event.note)))
                        return self._end("done", note, statistics_of(event) | spans)
                    case _:
                        assert_never(event)
                if self._stopping.is_set():
                    break
        if self._stopping.is_set():
            return self._end("aborted")
        raise EngineError("The answer ended early. Try again.")

    def _token(self, event: TokenEvent) -> None:
        now = time.monotonic()
        with self._lock:
            if event.thinking:
                self._thoughts.append(event.text)
                self._thinking_since = self._thinking_since or now
            else:
                self._pieces.append(event.text)
        if not event.thinking:
            self._end_of_thinking()
        self._news()
        if self._saved is None or now - self._saved >= SAVE_SECONDS:
            self._save(self.snapshot())

    def _end_of_thinking(self) -> None:
        with self._lock:
            if self._thinking_since is not None:
                seconds = time.monotonic() - self._thinking_since
                self._progress = replace(self._progress, thinking_seconds=seconds)
                self._thinking_since = None

    def _save(self, progress: Progress) -> None:
        turn = replace(
            self._turn,
            text=progress.text,
            thinking=progress.thinking,
            thinking_seconds=progress.thinking_seconds,
            state=progress.state,
            note=progress.note,
            statistics=progress.statistics,
        )
        self._store.save_turn(self.owner, self.conversation_id, turn)
        self._saved = time.monotonic()

    def _end(self, state: State, note: str = "", statistics: dict[str, Any] | None = None) -> None:
        """Commits the last state before anyone is told of it."""
        self._end_of_thinking()
        progress = replace(self.snapshot(), state=state, note=note, statistics=statistics or {})
        try:
            self._save(progress)
        except NotFound:
            pass  # the conversation was deleted meanwhile: nothing is left to write to
        except UserError as error:
            progress = replace(progress, state="failed", note=error.sentence)
        with self._lock:
            self._progress = progress
            self.finished = time.monotonic()
            self._tell()

    def _news(self, **changes: Any) -> None:
        with self._lock:
            self._progress = replace(self._progress, **changes)
            self._tell()

    def _tell(self) -> None:
        """Wakes every watcher; the lock is held."""
        self._version += 1
        watchers, self._watchers = self._watchers, set()
        for loop, future in watchers:
            with suppress(RuntimeError):  # that event loop is closed: nobody waits there any more
                loop.call_soon_threadsafe(resolve, future, self._version)


def resolve(future: asyncio.Future[int], version: int) -> None:
    if not future.done():
        future.set_result(version)


def statistics_of(event: FinishEvent) -> dict[str, Any]:
    """Tokens, and seconds of each phase: what a turn keeps of its FinishEvent."""
    return {
        "reason": event.reason,
        "prompt_tokens": event.prompt_tokens,
        "reused_tokens": event.reused_tokens,
        "completion_tokens": event.completion_tokens,
        "queued": event.timings.queued,
        "prefill": event.timings.prefill,
        "decode": event.timings.decode,
    }


class Jobs:
    """All running answers: at most one per conversation."""

    def __init__(self, engine: Engine, store: Store) -> None:
        self._engine, self._store = engine, store
        self._lock = threading.Lock()
        self._jobs: dict[str, Job] = {}  # the latest of each conversation

    def start(
        self,
        owner: str,
        conversation_id: str,
        turn_id: str,
        request: GenerationRequest,
        *,
        zoom: bool = False,
        note: str = "",
        said: tuple[Cue, ...] = (),
    ) -> Job:
        """Begins to write the answer turn `turn_id`, which is saved and `partial`, and returns at once. With `zoom`
        the moments a first reading names are read again, and where `said` says what is asked for (`zoom.py`); `note` is
        kept with a whole answer.

        Raises Conflict while another answer is written in this conversation, Overloaded when the owner has too many.
        Whatever the engine refuses ends the job `failed`.
        """
        conversation = self._store.load(owner, conversation_id)
        try:
            turn = conversation.turn(turn_id)
        except KeyError:
            raise NotFound("This answer is not in its conversation any more.", code="turn_not_found") from None
        job = Job(self._engine, self._store, owner, conversation_id, turn)
        with self._lock:
            self._forget_finished()
            running = [other for other in self._jobs.values() if other.running]
            if any(other.conversation_id == conversation_id for other in running):
                refusal: UserError | None = Conflict(
                    "An answer is still being written in this conversation. Stop it first, or wait."
                )
            elif sum(other.owner == owner for other in running) >= JOBS_PER_OWNER:
                refusal = Overloaded(f"{JOBS_PER_OWNER} of your answers are being written. Wait for one, or stop it.")
            else:
                refusal = None
                self._jobs[conversation_id] = job
                job.start(request, zoom, note, said)
        if refusal is not None:
            if not any(other.turn_id == turn_id for other in running):  # else nobody would ever write its end
                failed = replace(turn, state="failed", note=refusal.sentence)
                self._store.save_turn(owner, conversation_id, failed)
            raise refusal
        return job

    def find(self, conversation_id: str) -> Job | None:
        """The running job of a conversation, or the last one for a minute after its end."""
        with self._lock:
            self._forget_finished()
            return self._jobs.get(conversation_id)

    def _forget_finished(self) -> None:
        now = time.monotonic()
        for conversation_id, job in list(self._jobs.items()):
            if job.finished is not None and now - job.finished > KEEP_SECONDS:
                del self._jobs[conversation_id]

    def close(self) -> None:
        """Stops every answer and waits until the last words are written (at most ten seconds each)."""
        with self._lock:
            jobs = list(self._jobs.values())
        for job in jobs:
            job.stop()
        for job in jobs:
            job.join(10.0)
