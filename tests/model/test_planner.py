"""The planner counts real tensors to the byte, agrees with the published sizes, and needs no torch."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from qwen3vl_webui.model.loading import LoadedModel, load
from qwen3vl_webui.model.planner import (
    CHOICES,
    FORMATS,
    GIB,
    KNOWN,
    allowed,
    choose,
    choose_kv,
    kv_bytes,
    kv_bytes_per_token,
    most_tokens,
    plan,
    table,
    weight_bytes,
    weight_parts,
    working_bytes,
)
from qwen3vl_webui.settings import DEMO_MODEL
from tests.tiny import tiny_checkpoint

ROOT = Path(__file__).resolve().parents[2]


def held(loaded: LoadedModel) -> dict[str, int]:
    """Bytes of the real parameters, those held by bitsandbytes with their scales; what is shared is counted once."""
    parts = {"text": 0, "embeddings": 0, "head": 0, "vision": 0}
    model: Any = loaded.model
    for name, weight in model.named_parameters():  # tied weights come once
        part = "vision" if "visual" in name else "embeddings" if "embed_tokens" in name else "text"
        parts["head" if name.startswith("lm_head") else part] += weight.nbytes
        state = getattr(weight, "quant_state", None)
        parts[part] += state.absmax.nbytes if state is not None else 0
        scales = getattr(weight, "SCB", None)
        parts[part] += scales.nbytes if scales is not None else 0
    return parts


@pytest.mark.parametrize("variant", [{}, {"tied": False}, {"experts": 4}, {"tied": False, "experts": 4}], ids=str)
def test_the_weights_of_a_tiny_checkpoint_are_counted_to_the_byte(variant: dict[str, Any]) -> None:
    loaded = load(str(tiny_checkpoint(**variant)), device="cpu")
    assert weight_parts(loaded.shape, "none", 4) == held(loaded)


@pytest.mark.parametrize("quantization", ["8bit", "4bit"])
def test_quantized_weights_are_counted_to_the_byte(quantization: Any) -> None:
    loaded = load(str(tiny_checkpoint(tied=False)), device="cpu", quantization=quantization)
    assert weight_parts(loaded.shape, quantization, 4) == held(loaded)


def test_the_weights_of_the_demo_model_are_counted_to_the_byte() -> None:
    loaded = load(str(DEMO_MODEL), device="cpu")
    assert weight_parts(loaded.shape, "none", 4) == held(loaded)
    assert weight_bytes(loaded.shape, "none", 4) == sum(weight.nbytes for weight in loaded.model.parameters())


def test_the_published_sizes() -> None:
    billions = {"2b": 2.13, "4b": 4.44, "8b": 8.77, "32b": 33.4, "30b-a3b": 31.1, "235b-a22b": 235.7}
    for name, shape in KNOWN.items():
        assert shape.parameters / 1e9 == pytest.approx(billions[name], rel=0.003)


def test_bytes_of_a_token() -> None:
    published = {
        "2b": (114_688, 58_240, 32_256),
        "4b": (147_456, 74_880, 41_472),
        "8b": (147_456, 74_880, 41_472),
        "32b": (262_144, 133_120, 73_728),
        "30b-a3b": (98_304, 49_920, 27_648),
    }
    for name, expected in published.items():
        assert tuple(kv_bytes_per_token(KNOWN[name], kv) for kv in FORMATS) == expected


def test_a_quarter_million_tokens_on_a_workstation_card() -> None:
    """4B with 262,144 tokens: out of reach in bf16, within 21.3 GB with int4 keys and values."""
    four = KNOWN["4b"]
    assert kv_bytes(four, "bf16", 262_144) == 36 * GIB
    assert plan(four, "none", 262_144, "bf16").bytes / GIB == pytest.approx(45.6, abs=0.3)
    assert plan(four, "none", 262_144, "int8").bytes / GIB == pytest.approx(28.0, abs=0.3)
    assert plan(four, "none", 262_144, "int4").bytes <= 21.3e9
    assert plan(four, "8bit", 262_144, "int4").bytes <= 17.8e9
    assert plan(four, "4bit", 262_144, "int4").bytes <= 16.2e9
    assert 1.3 * GIB < working_bytes(four, "bf16") < working_bytes(four, "int4") < 2.2 * GIB


@pytest.mark.parametrize(("quantization", "kv"), CHOICES)
def test_the_most_tokens_fit_and_a_block_more_do_not(quantization: Any, kv: Any) -> None:
    four, memory = KNOWN["4b"], 22 * GIB
    most = most_tokens(four, quantization, kv, memory)
    assert most > 30_000
    assert plan(four, quantization, most, kv).bytes <= memory < plan(four, quantization, most + 256, kv).bytes
    assert most_tokens(four, quantization, kv, GIB) == 0


@pytest.mark.parametrize(
    ("memory", "tokens", "settings", "expected"),
    [
        (80, None, {}, ("none", "bf16")),
        (16, None, {}, ("none", "int8")),
        (23, 262_144, {}, ("none", "int4")),
        (23, 262_144, {"quantization": "4bit"}, ("4bit", "int4")),
        (23, 200_000, {"kv": "int8"}, ("8bit", "int8")),
        (23, 1_000_000, {}, None),
        (4, None, {}, None),
    ],
)
def test_the_least_loss_that_fits_is_chosen(memory: int, tokens: int, settings: Any, expected: Any) -> None:
    found = choose(KNOWN["4b"], memory * GIB, tokens, **settings)
    assert (found and (found.quantization, found.kv)) == expected


def test_experts_are_never_quantized() -> None:
    assert {weights for weights, _ in allowed(KNOWN["30b-a3b"], "auto", "auto")} == {"none"}
    assert list(allowed(KNOWN["30b-a3b"], "4bit", "auto")) == []


def test_the_finest_keys_and_values_that_hold_the_context() -> None:
    four = KNOWN["4b"]
    for tokens in (None, 200_000):
        wanted = tokens or 65_536
        for kv in FORMATS:
            assert choose_kv(four, kv_bytes(four, kv, wanted), tokens) == kv
        assert choose_kv(four, kv_bytes(four, "int8", wanted) - 1, tokens) == "int4"
    assert choose_kv(four, 0, 1000) == "int4"


def test_the_table_says_what_fits_what_does_not_and_the_best() -> None:
    printed = table(24 * GIB, 262_144)
    rows = {tuple(line.split()[:2]): line for line in printed.splitlines()}
    four = rows["4b", "none"]
    assert "45.6 97K" in four and "28.0 190K" in four and "19.8 fits" in four
    assert rows["235b-a22b", "none"].count("does not") == 3
    assert ("30b-a3b", "4bit") not in rows
    assert "--model 8b --quantization 8bit --kv-cache int4 --context-length 262144" in printed
    only = table(24 * GIB, 32_768, quantization="4bit", kv="int8")
    assert "KV bf16" not in only and ("4b", "none") not in {tuple(line.split()[:2]) for line in only.splitlines()}
    assert "Nothing fits" in table(GIB, 32_768)


def test_the_app_prints_the_plan_of_a_card_and_stops() -> None:
    flags = ["--plan", "--vram", "24", "--context-length", "262144", "--model", "4b"]
    printed = subprocess.run([sys.executable, "app.py", *flags], cwd=ROOT, capture_output=True, text=True)
    assert printed.returncode == 0 and "19.8 fits" in printed.stdout and "\n8b " not in printed.stdout


def test_planning_imports_no_torch() -> None:
    code = "import sys, qwen3vl_webui.model.planner; sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


def test_an_element_is_as_large_as_the_models_own() -> None:
    shape = KNOWN["2b"]
    assert kv_bytes_per_token(shape, "bf16", torch.float32.itemsize) == 2 * kv_bytes_per_token(shape, "bf16")
    assert kv_bytes_per_token(shape, "int4", 4) == kv_bytes_per_token(shape, "int4", 2)
