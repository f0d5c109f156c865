"""In how many bits the weights are held: which of the choices, and what the library is told to make it so."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from qwen3vl_webui.errors import EngineError, OutOfMemory
from qwen3vl_webui.model import experts
from qwen3vl_webui.model.fp8 import UNQUANTIZED
from qwen3vl_webui.model.planner import Shape, Weights, allowed, choose
from qwen3vl_webui.model.planner import plan as plan_memory
from qwen3vl_webui.settings import KVCacheKind, Quantization


def pick_quantization(
    name: str,
    shape: Shape,
    memory_free: int,
    quantization: Quantization | Weights,
    kv_cache: KVCacheKind,
    context_length: int | None,
) -> Weights:
    """On CUDA, by the planner. Raises OutOfMemory when the context that was asked for cannot be held at all."""
    found = choose(shape, memory_free, context_length, quantization, kv_cache)
    if found is not None:
        return found.quantization
    smallest = min(
        (
            plan_memory(shape, weights, context_length or 0, kv)
            for weights, kv in allowed(shape, quantization, kv_cache)
        ),
        key=lambda each: each.bytes,
    )
    if context_length is not None:
        raise OutOfMemory(
            f"{name} with {context_length:,} tokens of context needs at least {smallest.bytes / 1e9:.1f} GB and "
            f"{memory_free / 1e9:.1f} GB are free: lower --context-length; `python app.py --plan` shows what fits."
        )
    return smallest.quantization


def quantization_config(quantization: Weights, dtype: torch.dtype) -> Any:
    from transformers import BitsAndBytesConfig

    if quantization == "8bit":
        # it casts every input to float16 itself, and says so at every call
        logging.getLogger("bitsandbytes.autograd._functions").setLevel(logging.ERROR)
        return BitsAndBytesConfig(load_in_8bit=True, llm_int8_skip_modules=list(UNQUANTIZED))
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_compute_dtype=dtype,
        llm_int8_skip_modules=list(UNQUANTIZED),
    )


def fp8_config(config: Mapping[str, Any], *, dequantize: bool) -> Any:
    from transformers import FineGrainedFP8Config

    kept = config["quantization_config"].get("modules_to_not_convert") or []
    return FineGrainedFP8Config(modules_to_not_convert=[*kept, *UNQUANTIZED, experts.NAME], dequantize=dequantize)


def check_quantized(model: nn.Module) -> None:
    """By module type: some linears of the text layers are quantized, none of the vision tower and not the head."""
    from bitsandbytes.nn import Linear4bit, Linear8bitLt

    quantized = {name for name, module in model.named_modules() if isinstance(module, Linear4bit | Linear8bitLt)}
    wrong = sorted(name for name in quantized if name.startswith(UNQUANTIZED))
    if wrong:
        raise EngineError(f"The vision tower or the head was quantized ({wrong[0]}): use --quantization none.")
    if not quantized:
        raise EngineError("No weight was quantized: use --quantization none.")
