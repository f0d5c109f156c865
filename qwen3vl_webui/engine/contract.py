"""The waist of the house: what a door asks of an engine, and what an engine answers.

The contract every engine keeps (tests/engine/test_contract.py runs it against each):

- The first event is a PrefillEvent, sent when the prompt is accepted; a prompt that is not accepted raises a
  `UserError` before any event.
- Then an event comes at least every half second while the engine waits or reads (a PrefillEvent is repeated when
  there is nothing new), so that whoever consumes them can stop.
- One FinishEvent comes last, and only when the answer is whole. The TokenEvent texts with `thinking=False`, joined,
  are the answer; those with `thinking=True` the reasoning: whole characters, never a tag, never a statistic.
- To stop, close the generator (or let its consumer be cancelled): the work ends within one prefill chunk or one
  token, and its slot is free.
- Trouble is raised as an error of `errors.py`, never written into the answer.
- `generate` may be called from several threads at once; requests wait their turn.
"""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass, field
from typing import Literal, Protocol

from qwen3vl_webui.media.values import FramePlan, Part

Role = Literal["system", "user", "assistant"]
Priority = Literal["interactive", "chat", "batch"]


@dataclass(frozen=True)
class SamplingParams:
    """How tokens are drawn. Penalties count generated tokens only. `temperature` 0 is greedy.

    `loop_guard` cuts an answer that repeats itself without end; the FinishEvent's note says so.
    """

    temperature: float = 0.7
    top_p: float = 0.8
    top_k: int = 20  # 0: no limit
    min_p: float = 0.0
    presence_penalty: float = 1.5
    repetition_penalty: float = 1.0
    seed: int | None = None
    stop: tuple[str, ...] = ()
    max_tokens: int = 4096
    thinking_budget: int | None = None  # tokens of reasoning before `</think>` is forced; None: no limit
    loop_guard: bool = True


@dataclass(frozen=True)
class Message:
    role: Role
    parts: tuple[Part, ...]


@dataclass(frozen=True)
class GenerationRequest:
    """`messages` end with the user's; every Image in them has its `seen` size set.

    `conversation` names the chat for affinity and fairness; it never selects content.
    """

    messages: tuple[Message, ...]
    sampling: SamplingParams = SamplingParams()
    priority: Priority = "chat"
    conversation: str = ""


@dataclass(frozen=True)
class PrefillEvent:
    """`done` of `total` prompt tokens are read; `waiting` requests stand before this one (0: it is being read).

    `seconds_left` until the prompt is read is an estimate from the speed so far; None before there is one.
    """

    done: int
    total: int
    waiting: int = 0
    seconds_left: float | None = None


@dataclass(frozen=True)
class TokenEvent:
    text: str
    thinking: bool = False


@dataclass(frozen=True)
class Timings:
    """Seconds of one request, each counted from the one before: queued, then first token, then the rest."""

    queued: float = 0.0
    prefill: float = 0.0
    decode: float = 0.0


@dataclass(frozen=True)
class FinishEvent:
    """`reason`: `stop` (the model ended or a stop string came) or `length` (max_tokens or the context is full).

    `note` holds sentences the person should read with this answer, one to a line, or is empty.
    """

    reason: Literal["stop", "length"]
    prompt_tokens: int
    reused_tokens: int
    completion_tokens: int
    timings: Timings = Timings()
    note: str = ""


Event = PrefillEvent | TokenEvent | FinishEvent


@dataclass(frozen=True)
class Budget:
    """What a request costs before anything is read. `tokens` fill memory, `positions` are what rope sees."""

    tokens: int
    positions: int
    context_length: int  # in tokens, prompt and answer together
    answer_tokens: int  # what is kept free for the answer (sampling.max_tokens, cut to what is left)
    memory_bytes: int | None = None  # device memory the prompt and answer need; None where it is not counted
    memory_free: int | None = None
    most_positions: int | None = None  # None where they are not counted

    @property
    def fits(self) -> bool:
        """Whether the prompt and at least one token of answer fit."""
        enough = self.memory_bytes is None or self.memory_free is None or self.memory_bytes <= self.memory_free
        known = self.most_positions is None or self.positions < self.most_positions
        return self.tokens < self.context_length and known and enough


@dataclass(frozen=True)
class ModelInfo:
    """Which model answers, for the page's banner, `/v1/models` and the prompt's limits."""

    name: str  # the short name or the hub id, as the API calls it
    checkpoint: str  # hub id or folder
    device: str = "cpu"  # "cpu", "cuda (NVIDIA GeForce RTX 4090)"
    quantization: str = "none"
    kv_cache: str = ""  # how keys and values are held: float32, bfloat16, int8, int4; empty where it is not known
    context_length: int = 262_144  # tokens
    thinking: bool = False
    demo: bool = False  # the bundled demo model: it knows a few skills and says so
    skills: tuple[tuple[str, float], ...] = ()  # measured share of right answers, where the checkpoint tells it
    trained: bool = True  # False: random weights, it must not be presented as an answering model
    image_pixels: tuple[int, int] = (65_536, 16_777_216)  # least and most pixels of one picture
    frame_pixels: tuple[int, int] = (4_096, 786_432)  # least and most pixels of one video frame
    most_moments: int | None = None  # temporal patches of one video it is good with; None: as many as fit
    sampling: SamplingParams = field(default_factory=SamplingParams)  # with pictures or video, as published
    sampling_text: SamplingParams = field(default_factory=SamplingParams)  # text only


class Engine(Protocol):
    """One model behind one door. Opened and closed by app.py."""

    @property
    def model(self) -> ModelInfo: ...

    @property
    def context_length(self) -> int:
        """In tokens, prompt and answer together."""
        ...

    def plan(self, request: GenerationRequest) -> Budget:
        """The exact cost of a request, without reading any media. Never raises for length: look at `fits`."""
        ...

    def generate(self, request: GenerationRequest) -> Generator[Event, None, None]: ...

    def close(self) -> None: ...


class LikeningEngine(Engine, Protocol):
    """An engine that can also say which moments look like the words of a question. Ask through `likeness_of`."""

    def likeness(self, plan: FramePlan, question: str) -> tuple[float, ...]:
        """One number, 0 or more, for each temporal patch of `plan`: only their order and ratios mean something.

        Only what is known of the plan already is looked at (0 where nothing is): nothing is decoded or encoded, so it
        is asked after the plan was read. Empty where the model cannot tell.
        """
        ...


def likeness_of(engine: Engine, plan: FramePlan, question: str) -> tuple[float, ...]:
    """`LikeningEngine.likeness`, and empty for every other engine."""
    tell = getattr(engine, "likeness", None)
    return tuple(tell(plan, question)) if tell is not None else ()
