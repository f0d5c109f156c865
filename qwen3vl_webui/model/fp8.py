"""The published FP8 checkpoints: linear layers and experts of the text model as e4m3 numbers, with a float32 scale for
each block of 128 x 128 of them.

Where the device has FP8 (compute capability 8.9) they stay in 8 bits; what is multiplied is what the checkpoint says,
never rounded again: an answer's few rows by a kernel that reads 8 bits, a prompt's many by the matrix made exact for
the moment. Elsewhere they are made exact once, while loading.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import nn
from torch.nn import functional

from qwen3vl_webui.errors import EngineError, Unsupported
from qwen3vl_webui.model.planner import FP8_BLOCK as BLOCK

log = logging.getLogger(__name__)

FEW = 16  # rows that a kernel reads the matrix once for
CAPABILITY = (8, 9)
UNQUANTIZED = ("model.visual", "lm_head")  # full-name prefixes; "visual" alone would not match
ANOTHER_WAY = (
    "This checkpoint is quantized in a way that is not done here: take the plain one and choose --quantization 8bit or "
    "4bit, or Qwen's own FP8 one."
)

Packed = tuple[torch.Tensor, torch.Tensor]  # of E experts: e4m3 (E, out, in), float32 (E, out / 128, in / 128)


def is_fp8(config: Mapping[str, Any]) -> bool:
    """Of config.json: whether its weights are FP8 in blocks. Raises Unsupported for another quantization."""
    given = config.get("quantization_config")
    if given is None:
        return False
    expected = {"quant_method": "fp8", "fmt": "e4m3", "weight_block_size": [BLOCK, BLOCK]}
    if not isinstance(given, dict) or any(given.get(name, value) != value for name, value in expected.items()):
        raise Unsupported(ANOTHER_WAY)
    return True


def unpaired(folder: Path) -> str:
    """A weight in 8 bits without scales, or scales without their weight; empty when there is none. The library would
    take such a weight as it stands, hundreds of times too large, and say nothing."""
    packed, scaled = set(), set()
    for file in folder.glob("*.safetensors"):
        try:
            with safe_open(file, "pt") as weights:
                for name in weights.keys():  # noqa: SIM118, not a dict
                    if name.endswith("_scale_inv"):
                        scaled.add(name.removesuffix("_scale_inv"))
                    elif weights.get_slice(name).get_dtype() == "F8_E4M3":
                        packed.add(name)
        except SafetensorError:
            continue  # loading it says what is wrong
    return min(packed ^ scaled, default="")


def stays_packed(device: torch.device) -> bool:
    return device.type == "cuda" and torch.cuda.get_device_capability(device) >= CAPABILITY


def unpacked_plainly(weight: torch.Tensor, scales: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """(out, in) in `dtype`, by torch's operations."""
    rows, columns = weight.shape
    scales = scales.repeat_interleave(BLOCK, 0)[:rows].repeat_interleave(BLOCK, 1)[:, :columns]
    return (weight.float() * scales).to(dtype)


def times(rows: torch.Tensor, weight: torch.Tensor, scales: torch.Tensor, *, triton: bool) -> torch.Tensor:
    """(..., out) of rows (..., in), the matrix made exact for the moment."""
    if not triton:
        return functional.linear(rows, unpacked_plainly(weight, scales, rows.dtype))
    from qwen3vl_webui.model.fp8_kernels import unpack

    return functional.linear(rows, unpack(weight, scales, rows.dtype))


class Fp8Linear(nn.Module):
    """weight float8_e4m3fn (out, in), scales float32 (out / 128, in / 128), both rounded up."""

    def __init__(self, weight: torch.Tensor, scales: torch.Tensor, *, triton: bool) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight.contiguous(), requires_grad=False)
        self.scales = nn.Parameter(scales.float().contiguous(), requires_grad=False)
        self.triton = triton

    def forward(self, rows: torch.Tensor) -> torch.Tensor:  # (..., in) -> (..., out)
        flat = rows.reshape(-1, rows.shape[-1])
        if not self.triton or len(flat) > FEW:
            return times(rows, self.weight, self.scales, triton=self.triton)
        from qwen3vl_webui.model.fp8_kernels import multiply

        return multiply(flat, self.weight, self.scales).view(*rows.shape[:-1], -1)


class Fp8Experts(nn.Module):
    """In place of the library's module. gate_up (E, 2 inner, hidden) and down (E, hidden, inner) stay in 8 bits.

    Few rows are multiplied by a kernel that reads which experts they go to on the device; for many the matrices of one
    expert after the other are made exact for the moment.
    """

    def __init__(
        self, gate_up: Packed, down: Packed, activation: Callable[[torch.Tensor], torch.Tensor], *, triton: bool
    ) -> None:
        super().__init__()
        self.gate_up, self.gate_up_scales = (nn.Parameter(part, requires_grad=False) for part in gate_up)
        self.down, self.down_scales = (nn.Parameter(part, requires_grad=False) for part in down)
        self.activation, self.triton = activation, triton

    def forward(self, rows: torch.Tensor, chosen: torch.Tensor, shares: torch.Tensor) -> torch.Tensor:
        """rows (n, hidden); k experts of each, int64 (n, k), and what they count, (n, k) -> (n, hidden)."""
        count, most = chosen.shape
        chosen = chosen.flatten()
        if self.triton and count <= FEW:
            from qwen3vl_webui.model.fp8_kernels import multiply_chosen

            inner = multiply_chosen(rows.repeat_interleave(most, 0), self.gate_up, self.gate_up_scales, chosen)
            answers = multiply_chosen(self.gated(inner), self.down, self.down_scales, chosen)
        else:
            answers = rows.new_empty(count * most, rows.shape[1])
            for expert in chosen.unique().tolist():
                own = (chosen == expert).nonzero()[:, 0]
                gate_up, down = self.gate_up[expert], self.down[expert]
                inner = times(rows[own // most], gate_up, self.gate_up_scales[expert], triton=self.triton)
                answers[own] = times(self.gated(inner), down, self.down_scales[expert], triton=self.triton)
        return torch.bmm(shares.to(rows.dtype)[:, None], answers.view(count, most, -1))[:, 0]

    def gated(self, inner: torch.Tensor) -> torch.Tensor:
        gate, up = inner.chunk(2, -1)
        return self.activation(gate) * up


def joined(modules: Sequence[Any]) -> Fp8Linear | None:
    """One layer in place of several that read the same rows, where the blocks of their outputs end together with them.

    The modules keep working: their weights become views of the joined one.
    """
    if not all(isinstance(module, Fp8Linear) and len(module.weight) % BLOCK == 0 for module in modules):
        return None
    weight, scales = (torch.cat([getattr(module, name) for module in modules]) for name in ("weight", "scales"))
    whole = Fp8Linear(weight, scales, triton=modules[0].triton)
    at = 0
    for module in modules:
        rows, blocks = len(module.weight), len(module.scales)
        module.weight = nn.Parameter(whole.weight[at : at + rows], requires_grad=False)
        module.scales = nn.Parameter(whole.scales[at // BLOCK : at // BLOCK + blocks], requires_grad=False)
        at += rows
    return whole


def take_over(model: nn.Module, dtype: torch.dtype, device: torch.device) -> None:
    """Puts an Fp8Linear in place of each FP8 layer that the library loaded: its own wants code from a hub.

    Raises EngineError when the vision tower or the head is quantized, or nothing is.
    """
    from transformers.integrations.finegrained_fp8 import FP8Linear

    found = {name: module for name, module in model.named_modules() if isinstance(module, FP8Linear)}
    if not found or any(name.startswith(UNQUANTIZED) for name in found):
        raise EngineError("The FP8 weights of this checkpoint are not where they belong: fetch it again.")
    triton = has_kernels(dtype, device)
    for name, module in found.items():
        model.set_submodule(name, Fp8Linear(module.weight.detach(), module.weight_scale_inv.detach(), triton=triton))


def cast_rest(model: nn.Module, dtype: torch.dtype) -> None:
    """To what the model computes in: of a quantized checkpoint the library leaves them as they are stored."""
    for module in model.modules():
        if not isinstance(module, Fp8Linear | Fp8Experts):
            for weight in module.parameters(recurse=False):
                weight.data = weight.data.to(dtype)


def has_kernels(dtype: torch.dtype, device: torch.device) -> bool:
    if device.type != "cuda":
        return False
    try:
        from qwen3vl_webui.model import fp8_kernels
    except ImportError as error:
        log.info("FP8 weights go without Triton: %s", error)
        return False
    return fp8_kernels.is_trusted(dtype, device)
