"""Interleaved MRoPE: cos and sin of three-axis positions, under a plan that is frozen for a whole conversation.

A plan never depends on the length of the prompt it meets: a key in the cache was rotated under the plan of its time, so
a table that moved with the length (transformers' `dynamic`) would rotate today's queries differently from the keys
they look for.
"""

from __future__ import annotations

import math
import threading
from collections import OrderedDict
from dataclasses import dataclass
from typing import Any

import torch

from qwen3vl_webui.errors import Unsupported
from qwen3vl_webui.settings import RopeScaling

REACHES = (1.5, 2.0, 3.0, 4.0)  # x the trained positions; Qwen's own recipe for long context is YaRN 2 or 3
CONVERSATIONS_KEPT = 512


@dataclass(frozen=True)
class RopePlan:
    """One frequency table for three axes.

    `name` tells plans apart: caches made under different names must not be mixed. `attention_scaling` multiplies cos
    and sin (so attention logits get its square). `sections` counts the frequencies of T, H and W.
    """

    name: str
    inv_freq: tuple[float, ...]  # [head_dim / 2]
    sections: tuple[int, int, int]
    attention_scaling: float = 1.0

    @property
    def axes(self) -> list[int]:
        """Which axis (0 T, 1 H, 2 W) turns each frequency: `THW` repeated while H and W last, then T."""
        axes = [0] * len(self.inv_freq)
        for axis in (1, 2):
            for i in range(axis, 3 * self.sections[axis], 3):
                axes[i] = axis
        return axes


def frequencies(theta: float, head_dim: int) -> torch.Tensor:
    """[head_dim / 2] float32, as transformers computes it."""
    return 1.0 / (theta ** (torch.arange(0, head_dim, 2, dtype=torch.float) / head_dim))


def head_dim_of(text_config: Any) -> int:
    return getattr(text_config, "head_dim", None) or text_config.hidden_size // text_config.num_attention_heads


def sections_of(text_config: Any) -> tuple[int, int, int]:
    """Raises Unsupported when the checkpoint is not interleaved or its sections do not fill the head."""
    parameters = text_config.rope_parameters
    half = head_dim_of(text_config) // 2
    sections = tuple(parameters.get("mrope_section", ()))
    if not parameters.get("mrope_interleaved", False) or len(sections) != 3 or sum(sections) != half:
        raise Unsupported(
            f"This checkpoint's rope ({parameters}) is not Qwen3-VL's interleaved MRoPE; use a Qwen3-VL checkpoint."
        )
    return sections


def native(text_config: Any) -> RopePlan:
    """The plan the checkpoint itself asks for: `default`, or `yarn` where its config was edited for long context."""
    parameters = text_config.rope_parameters
    kind = parameters.get("rope_type", "default")
    if kind == "yarn":
        known = {"rope_type", "rope_theta", "factor", "mrope_section", "mrope_interleaved"}
        surplus = set(parameters) - known - {"original_max_position_embeddings"}
        if surplus:
            raise Unsupported(f"The YaRN settings {sorted(surplus)} of this checkpoint are not done here: remove them.")
        return yarn(text_config, float(parameters["factor"]))
    if kind != "default":
        raise Unsupported(f"The rope type {kind!r} of this checkpoint is not done here: use `default` or `yarn`.")
    table = frequencies(parameters["rope_theta"], head_dim_of(text_config))
    return RopePlan("native", tuple(table.tolist()), sections_of(text_config))


def trained_positions(text_config: Any) -> int:
    """Positions the checkpoint was trained on, before any extension."""
    return int(
        text_config.rope_parameters.get("original_max_position_embeddings") or text_config.max_position_embeddings
    )


def yarn(text_config: Any, factor: float, *, beta_fast: float = 32.0, beta_slow: float = 1.0) -> RopePlan:
    """YaRN (arXiv 2309.00071): high frequencies stay, low ones are divided by `factor`, with a ramp between.

    The ramp runs from the frequency that turns `beta_fast` times over the trained positions to the one that turns
    `beta_slow` times. It does not depend on the prompt, so it is consistent with any cache made under the same plan.
    """
    parameters = text_config.rope_parameters
    head_dim, theta = head_dim_of(text_config), parameters["rope_theta"]
    trained = trained_positions(text_config)

    def frequency_that_turns(rotations: float) -> float:
        return head_dim * math.log(trained / (rotations * 2 * math.pi)) / (2 * math.log(theta))

    first = max(math.floor(frequency_that_turns(beta_fast)), 0)
    last = min(math.ceil(frequency_that_turns(beta_slow)), head_dim - 1)
    ramp = (torch.arange(head_dim // 2, dtype=torch.float) - first) / max(last - first, 0.001)
    keep = 1 - ramp.clamp(0, 1)
    powers = theta ** (torch.arange(0, head_dim, 2, dtype=torch.float) / head_dim)
    table = 1.0 / (factor * powers) * (1 - keep) + 1.0 / powers * keep
    scaling = 0.1 * math.log(factor) + 1.0 if factor > 1 else 1.0
    return RopePlan(f"yarn:{factor:g}", tuple(table.tolist()), sections_of(text_config), scaling)


def ntk(text_config: Any, reach: float, *, strength: float = 1.0) -> RopePlan:
    """NTK-aware scaling, frozen for a conversation of at most `reach` x the trained positions.

    The lowest frequency is divided by exactly `alpha = strength * reach - (strength - 1)`. Unlike transformers'
    `dynamic` it does not move with the prompt.
    """
    alpha = strength * reach - (strength - 1.0)
    head_dim = head_dim_of(text_config)
    theta = text_config.rope_parameters["rope_theta"] * alpha ** (head_dim / (head_dim - 2))
    table = frequencies(theta, head_dim)
    return RopePlan(f"ntk:{reach:g}:{strength:g}", tuple(table.tolist()), sections_of(text_config))


def most_positions(text_config: Any, scaling: RopeScaling) -> int:
    """How many positions a conversation may have; a checkpoint edited for long context is not stretched more."""
    own = int(text_config.max_position_embeddings)
    if scaling == "none" or text_config.rope_parameters.get("rope_type", "default") != "default":
        return own
    return int(own * REACHES[-1])


def plan_for(text_config: Any, scaling: RopeScaling, positions: int) -> RopePlan:
    """The checkpoint's own plan while `positions` are within what it was trained on, else the smallest stretch that
    reaches. Buckets keep a growing conversation under one plan, so that its cache stays good. `positions` must not
    exceed `most_positions`."""
    own = int(text_config.max_position_embeddings)
    if positions <= own:
        return native(text_config)
    assert positions <= most_positions(text_config, scaling)
    reach = next(reach for reach in REACHES if positions <= reach * own)
    return ntk(text_config, reach) if scaling == "ntk" else yarn(text_config, reach)


class Rope:
    """A plan on a device: turns positions into cos and sin."""

    def __init__(self, plan: RopePlan, device: torch.device | str, dtype: torch.dtype) -> None:
        self.plan = plan
        self.dtype = dtype
        self.inv_freq = torch.tensor(plan.inv_freq, dtype=torch.float, device=device)  # [head_dim / 2]
        self.axes = torch.tensor(plan.axes, device=device)  # [head_dim / 2]

    def cos_sin(self, positions: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """cos and sin [n, head_dim] in the model's dtype, for int64 `positions` [3, n] on the same device.

        The two halves of the last axis are equal, as `rotate_half` expects. Angles are float32 whatever the dtype.
        """
        turning = positions.index_select(0, self.axes).t()  # [n, head_dim / 2]: each frequency's own axis
        angles = turning.float() * self.inv_freq
        cos = angles.cos() * self.plan.attention_scaling
        sin = angles.sin() * self.plan.attention_scaling
        return torch.cat((cos, cos), -1).to(self.dtype), torch.cat((sin, sin), -1).to(self.dtype)


@dataclass(frozen=True)
class Chosen:
    """The rope one request is read under; `before` is the plan its conversation had until now, if it was another."""

    rope: Rope
    positions: int  # trained
    before: str = ""

    @property
    def sentence(self) -> str:
        """What a person is told when the conversation had to be read again; empty when it had not."""
        if not self.before:
            return ""
        return (
            f"The conversation now needs more positions than before (the model was trained on {self.positions:,}). It "
            f"was read again from its beginning with stretched positions ({self.rope.plan.name}); answers may be less "
            "exact."
        )


class Ropes:
    """One plan per conversation: chosen from the positions it plans, grown when outgrown, never shrunk. Thread-safe."""

    def __init__(self, text_config: Any, scaling: RopeScaling, device: torch.device | str, dtype: torch.dtype) -> None:
        self.config, self.scaling, self.device, self.dtype = text_config, scaling, device, dtype
        self.most_positions = most_positions(text_config, scaling)
        self._made: dict[str, Rope] = {}
        self._held: OrderedDict[str, int] = OrderedDict()  # conversation -> the most positions it ever planned
        self._lock = threading.Lock()

    def choose(self, conversation: str, positions: int) -> Chosen:
        """For prompt and answer of `positions` together. A nameless request has no plan to keep."""
        with self._lock:
            held = self._held.pop(conversation, 0) if conversation else 0
            most = max(held, positions)
            if conversation:
                self._held[conversation] = most
                if len(self._held) > CONVERSATIONS_KEPT:
                    self._held.popitem(last=False)
            rope = self._of(most)
            before = self._of(held).plan.name if held else ""
            own = int(self.config.max_position_embeddings)
            return Chosen(rope, own, before if before != rope.plan.name else "")

    def _of(self, positions: int) -> Rope:
        plan = plan_for(self.config, self.scaling, positions)
        if plan.name not in self._made:
            self._made[plan.name] = Rope(plan, self.device, self.dtype)
        return self._made[plan.name]
