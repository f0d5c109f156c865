"""One request while it is answered: what it costs, where it stands, what is still to be read and written."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

import torch

from qwen3vl_webui.engine.contract import Budget
from qwen3vl_webui.engine.queue import Work
from qwen3vl_webui.model.cache import Slot
from qwen3vl_webui.model.drafts import Drafts
from qwen3vl_webui.model.inputs import Inputs
from qwen3vl_webui.model.reading import PromptReading
from qwen3vl_webui.model.rope import Chosen
from qwen3vl_webui.model.writing import AnswerWriting

AHEAD = 256  # positions whose cos and sin are computed at once while writing


@dataclass(frozen=True)
class Prepared:
    inputs: Inputs
    budget: Budget
    chosen: Chosen

    @property
    def tokens(self) -> int:
        """Prompt and answer together."""
        return self.inputs.tokens + self.budget.answer_tokens


@dataclass(eq=False)
class Running:
    """One request in its slot: read while `reading` is set, then written."""

    work: Work[Prepared]
    slot: Slot
    reused: int
    reading: PromptReading | None
    writing: AnswerWriting
    started: float = field(default_factory=time.monotonic)
    read: float = 0.0  # time.monotonic() when the whole prompt was
    served: int = 0  # the step that last read of its prompt
    waits_since: float = field(default_factory=time.monotonic)  # when that was
    retried: bool = False
    ahead: tuple[int, torch.Tensor, torch.Tensor] | None = None  # cos and sin from an answer token on
    drafts: Drafts | None = None

    @property
    def priority(self) -> int:
        """The smaller is served first. Who writes is served at every step and never waits."""
        return self.work.rank if self.reading is None else self.work.rank_since(self.waits_since)

    def turns(self, count: int) -> tuple[torch.Tensor, torch.Tensor]:
        """cos and sin (count, head_dim) from the answer's last token on, which stands after the prompt on all axes."""
        index, rope = len(self.writing.ids) - 1, self.work.plan.chosen.rope
        if self.ahead is None or not 0 <= index - self.ahead[0] <= AHEAD - count:
            first = self.work.plan.inputs.next_position + index
            positions = torch.arange(first, first + AHEAD, device=rope.inv_freq.device).expand(3, -1)
            self.ahead = (index, *rope.cos_sin(positions))
        first, cos, sin = self.ahead
        return cos[index - first : index - first + count], sin[index - first : index - first + count]
