"""The experts of FP8 mixtures, read from their files: the library reads such matrices without their scales.

All experts of a layer stand in two tensors of three axes, gate_up_proj and down_proj, inputs before outputs as in the
plain checkpoints or turned round; or each expert has matrices of its own. E experts, `inner` their inner width.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import nn

from qwen3vl_webui.errors import Unsupported
from qwen3vl_webui.model.checkpoint import Progress, Report, damaged
from qwen3vl_webui.model.fp8 import ANOTHER_WAY, BLOCK, Fp8Experts, Packed, has_kernels, unpacked_plainly

NAME = "mlp.experts"


def left_out(model_class: Any) -> Any:
    """The class of a mixture whose experts are not loaded: `put_in` reads them."""

    class WithoutExperts(model_class):
        _keys_to_ignore_on_load_unexpected = [rf"\.{NAME}\."]

        def __init__(self, config: Any) -> None:
            super().__init__(config)
            for layer in self.model.language_model.layers:
                if hasattr(layer.mlp, "experts"):
                    layer.mlp.experts = nn.Module()

    return WithoutExperts


def put_in(
    model: Any, folder: Path, dtype: torch.dtype, device: torch.device, *, packed: bool, progress: Report
) -> None:
    """Reads the experts of every layer, which stay in 8 bits if `packed` and are made exact in `dtype` if not.

    Raises EngineError when they are not there as they should be.
    """
    from transformers.activations import ACT2FN
    from transformers.models.qwen3_vl_moe.modeling_qwen3_vl_moe import Qwen3VLMoeTextExperts

    config = model.config.text_config
    triton = packed and has_kernels(dtype, device)
    files, layers = Files(folder), model.model.language_model.layers
    for index, layer in enumerate(layers):
        progress(Progress("loading", 2 * index, 2 * len(layers)))
        if not hasattr(layer.mlp, "experts"):
            continue  # a dense layer between them
        prefix = f"model.language_model.layers.{index}.{NAME}."
        parts = files.experts(prefix, config.num_experts, config.hidden_size, config.moe_intermediate_size)
        gate_up, down = ((weight.to(device), scales.to(device)) for weight, scales in parts)
        if packed:
            layer.mlp.experts = Fp8Experts(gate_up, down, ACT2FN[config.hidden_act], triton=triton)
            continue
        with torch.device("meta"):
            exact = Qwen3VLMoeTextExperts(config)
        exact.gate_up_proj, exact.down_proj = (made_exact(part, dtype) for part in (gate_up, down))
        layer.mlp.experts = exact


def made_exact(part: Packed, dtype: torch.dtype) -> nn.Parameter:
    """(E, out, in), one expert after the other, for what it takes in between is four times as large."""
    exact = torch.empty(part[0].shape, dtype=dtype, device=part[0].device)
    for into, weight, scales in zip(exact, *part, strict=True):
        into.copy_(unpacked_plainly(weight, scales, dtype))
    return nn.Parameter(exact, requires_grad=False)


class Files:
    """The tensors of a checkpoint, by their names."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        opened = [safe_open(file, "pt") for file in sorted(folder.glob("*.safetensors"))]
        self.places = {name: file for file in opened for name in file.keys()}  # noqa: SIM118, not a dict

    def experts(self, prefix: str, count: int, hidden: int, inner: int) -> tuple[Packed, Packed]:
        """gate_up (E, 2 inner, hidden) and down (E, hidden, inner), on the CPU."""
        wanted = {"gate_up_proj": (count, 2 * inner, hidden), "down_proj": (count, hidden, inner)}
        if prefix + "gate_up_proj" not in self.places:
            return self.apart(prefix, count, hidden, inner)
        found = {name: self.packed(prefix + name) for name in wanted}
        told = set()  # whether inputs stand before outputs; a square matrix does not tell, the other does
        for name, (experts, outputs, inputs) in wanted.items():
            shape = tuple(found[name][0].shape)
            if shape not in ((experts, outputs, inputs), (experts, inputs, outputs)):
                raise damaged(self.folder, f"{prefix}{name} has shape {shape}")
            if outputs != inputs:
                told.add(shape == (experts, inputs, outputs))
        if len(told) != 1:
            raise damaged(self.folder, f"the matrices of {prefix.rstrip('.')} do not go together")
        if not told.pop():
            return found["gate_up_proj"], found["down_proj"]
        gate_up, down = ((turned(weight), turned(scales)) for weight, scales in found.values())
        return gate_up, down

    def apart(self, prefix: str, count: int, hidden: int, inner: int) -> tuple[Packed, Packed]:
        """Of matrices that stand for themselves, (out, in) each."""
        if inner % BLOCK:  # the blocks of gate and up would not stand below each other
            raise Unsupported(ANOTHER_WAY)
        shapes = {"gate_proj": (inner, hidden), "up_proj": (inner, hidden), "down_proj": (hidden, inner)}
        stacks: dict[str, Packed] = {}
        for name, shape in shapes.items():
            names = [f"{prefix}{expert}.{name}.weight" for expert in range(count)]
            single = [self.packed(each) for each in names]
            for each, (weight, _) in zip(names, single, strict=True):
                if tuple(weight.shape) != shape:
                    raise damaged(self.folder, f"{each} has shape {tuple(weight.shape)}")
            stacks[name] = torch.stack([weight for weight, _ in single]), torch.stack([scales for _, scales in single])
        gate, up = stacks["gate_proj"], stacks["up_proj"]
        return (torch.cat((gate[0], up[0]), 1), torch.cat((gate[1], up[1]), 1)), stacks["down_proj"]

    def packed(self, name: str) -> Packed:
        for each in (name, f"{name}_scale_inv"):
            if each not in self.places:
                raise damaged(self.folder, f"no {each}")
        weight = self.places[name].get_tensor(name)
        scales = self.places[f"{name}_scale_inv"].get_tensor(f"{name}_scale_inv").float()
        blocks = (*weight.shape[:-2], *(-(-size // BLOCK) for size in weight.shape[-2:]))
        if weight.dtype != torch.float8_e4m3fn or tuple(scales.shape) != blocks:
            raise damaged(self.folder, f"{name} and its scales do not go together")
        return weight, scales


def turned(part: torch.Tensor) -> torch.Tensor:
    """The last two axes changed, laid out anew."""
    return part.transpose(-2, -1).contiguous()
