"""FP8 mixtures of experts: whichever way their matrices are stored, they compute what they say."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode
from transformers.models.qwen3_vl_moe.modeling_qwen3_vl_moe import Qwen3VLMoeTextExperts
from transformers.quantizers.quantizer_finegrained_fp8 import FineGrainedFP8HfQuantizer

from qwen3vl_webui.engine.local import LocalEngine
from qwen3vl_webui.errors import EngineError, Unsupported
from qwen3vl_webui.model import fp8
from qwen3vl_webui.model.experts import Files
from qwen3vl_webui.model.fp8 import Fp8Experts, unpacked_plainly
from qwen3vl_webui.model.loading import LoadedModel, load
from qwen3vl_webui.model.planner import KNOWN, table, weight_bytes, weight_parts
from tests.engine.conftest import ask, picture, read_pixels
from tests.engine.test_local import run_ids
from tests.tiny import pack_fp8, packed_fp8, tiny_checkpoint

torch.set_num_threads(1)

Layout = Literal["turned", "straight", "apart"]
LAYOUTS: tuple[Layout, ...] = ("turned", "straight", "apart")
PREFIX = "model.language_model.layers.1.mlp.experts."


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[Layout, Path]:
    place = tmp_path_factory.mktemp("experts")
    return {each: pack_fp8(tiny_checkpoint(place / each, experts=4), experts=each) for each in LAYOUTS}


@pytest.fixture
def packed(monkeypatch: pytest.MonkeyPatch) -> Callable[[Path], LoadedModel]:
    """Loads as on a card that has FP8."""
    monkeypatch.setattr(FineGrainedFP8HfQuantizer, "validate_environment", lambda *_, **__: None)

    def loads(folder: Path) -> LoadedModel:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(fp8, "stays_packed", lambda device: True)
            return load(str(folder), device="cpu")

    return loads


def stored(hidden: int, inner: int, count: int, layout: Layout) -> tuple[dict[str, torch.Tensor], torch.Tensor, Any]:
    """The tensors of a file, and exact gate_up (E, 2 inner, hidden) and down (E, hidden, inner)."""
    generator = torch.Generator().manual_seed(hidden + inner)
    exact = [torch.randn(count, *size, generator=generator) for size in ((2 * inner, hidden), (hidden, inner))]
    parts = [[packed_fp8(each) for each in matrices] for matrices in exact]
    tensors: dict[str, torch.Tensor] = {}
    for name, experts in zip(("gate_up_proj", "down_proj"), parts, strict=True):
        for ending, index in (("", 0), ("_scale_inv", 1)):
            stack = torch.stack([each[index] for each in experts])
            if layout != "apart":
                tensors[PREFIX + name + ending] = stack.transpose(1, 2).contiguous() if layout == "turned" else stack
            for expert, each in enumerate(stack if layout == "apart" else ()):
                both = name == "gate_up_proj"
                for kind, piece in zip(
                    ("gate_proj", "up_proj") if both else (name,), each.chunk(1 + both), strict=True
                ):
                    tensors[f"{PREFIX}{expert}.{kind}.weight{ending}"] = piece.clone()
    unpacked = [torch.stack([unpacked_plainly(*each, torch.float32) for each in experts]) for experts in parts]
    return tensors, *unpacked


# Loading


@pytest.mark.parametrize("layout", LAYOUTS)
def test_without_fp8_the_experts_are_made_exact(folders: dict[Layout, Path], layout: Layout) -> None:
    loaded, plain = load(str(folders[layout]), device="cpu"), load(str(tiny_checkpoint(experts=4)), device="cpu")
    assert loaded.info.quantization == "fp8 → float32" and loaded.weights == "none"
    own, expected = dict(loaded.model.named_parameters()), dict(plain.model.named_parameters())
    assert own.keys() == expected.keys()
    for name, weight in own.items():
        assert weight.shape == expected[name].shape and weight.dtype == torch.float32
        if ".experts." in name:
            for ours, theirs in zip(weight, expected[name], strict=True):
                assert torch.equal(ours, unpacked_plainly(*packed_fp8(theirs), torch.float32))
        elif ".mlp.gate." in name or ".visual." in name or "norm" in name:
            assert torch.equal(weight, expected[name])
    layer: Any = loaded.model.model.language_model.layers[1]  # type: ignore[union-attr, index]
    assert isinstance(layer.mlp.experts, Qwen3VLMoeTextExperts)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_with_fp8_they_stay_in_8_bits_and_write_the_same(
    folders: dict[Layout, Path], packed: Callable[[Path], LoadedModel], layout: Layout
) -> None:
    held, exact = packed(folders[layout]), load(str(folders[layout]), device="cpu")
    assert held.info.quantization == held.weights == "fp8"
    assert sum(isinstance(module, Fp8Experts) for module in held.model.modules()) == 4
    assert sum(weight.nbytes for weight in held.model.parameters()) == weight_bytes(held.shape, "fp8", 4)
    request = ask("word " * 30, picture("cat"), "What is this?", conversation="a")
    ids = []
    for loaded in (held, exact):
        engine = LocalEngine(loaded, 4096, read_pixels=read_pixels)
        ids.append(run_ids(engine, request)[2])
        engine.close()
    assert ids[0] == ids[1] and len(ids[0]) > 10


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(("hidden", "inner"), [(384, 256), (256, 128), (128, 128)])
def test_every_block_keeps_its_own_scale(tmp_path: Path, layout: Layout, hidden: int, inner: int) -> None:
    """256 x 128: gate_up is square; 128 x 128: down is. The other of the two tells how they stand."""
    tensors, gate_up, down = stored(hidden, inner, 3, layout)
    save_file(tensors, tmp_path / "model.safetensors")
    read = Files(tmp_path).experts(PREFIX, 3, hidden, inner)
    for part, exact in zip(read, (gate_up, down), strict=True):
        for weight, scales, expected in zip(*part, exact, strict=True):
            assert torch.equal(unpacked_plainly(weight, scales, torch.float32), expected)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_what_is_not_whole_is_noticed(tmp_path: Path, layout: Layout) -> None:
    tensors, *_ = stored(256, 256, 2, layout)
    name = PREFIX + ("1.down_proj.weight" if layout == "apart" else "down_proj")
    scales = tensors[f"{name}_scale_inv"]
    wrong: list[dict[str, torch.Tensor | None]] = [
        {f"{name}_scale_inv": None},
        {name: None},
        {f"{name}_scale_inv": scales[..., :1].clone()},
        {name: tensors[name].float()},
        {name: tensors[name][..., :128].clone(), f"{name}_scale_inv": scales[..., :1].clone()},
    ]
    for changes in wrong:
        changed = {name: tensor for name, tensor in (tensors | changes).items() if tensor is not None}
        save_file(changed, tmp_path / "model.safetensors")
        with pytest.raises(EngineError, match="damaged or incomplete"):
            Files(tmp_path).experts(PREFIX, 2, 256, 256)


def test_a_lost_scale_is_noticed_while_loading(tmp_path: Path, packed: Callable[[Path], LoadedModel]) -> None:
    folder = pack_fp8(tiny_checkpoint(tmp_path / "own", experts=4))
    weights = load_file(folder / "model.safetensors")
    del weights[f"{PREFIX}down_proj_scale_inv"]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    for opens in (packed, lambda folder: load(str(folder), device="cpu")):
        with pytest.raises(EngineError, match="damaged or incomplete"):
            opens(folder)


def test_gate_and_up_that_share_a_block_are_refused(tmp_path: Path) -> None:
    tensors = {f"{PREFIX}0.gate_proj.weight": torch.zeros(64, 128).to(torch.float8_e4m3fn)}
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(Unsupported, match="quantized in a way"):
        Files(tmp_path).experts(PREFIX, 1, 128, 64)


def test_quantizing_them_again_is_refused(folders: dict[Layout, Path]) -> None:
    with pytest.raises(Unsupported, match="leave --quantization out"):
        load(str(folders["turned"]), device="cpu", quantization="8bit")


# Memory


def test_the_planner_counts_them() -> None:
    thirty = KNOWN["30b-a3b"]
    experts = 48 * 128 * 3 * 2048 * 768
    parts = weight_parts(thirty, "none")["text"] - weight_parts(thirty, "fp8")["text"]
    attention = 48 * sum(rows * columns for rows, columns in thirty.linears)
    assert parts == pytest.approx(experts + attention, rel=0.001)  # a byte saved of each, but for the scales
    rows = {tuple(line.split()[:2]): line for line in table(48 * 2**30, 32_768).splitlines()}
    assert "fits" in rows["30b-a3b-fp8", "fp8"] and "fits" not in rows["30b-a3b", "none"]


# Layers


def layer(hidden: int, inner: int, count: int, *, triton: bool) -> tuple[Fp8Experts, torch.Tensor, torch.Tensor]:
    tensors, gate_up, down = stored(hidden, inner, count, "straight")
    pairs = [(tensors[PREFIX + name], tensors[f"{PREFIX}{name}_scale_inv"]) for name in ("gate_up_proj", "down_proj")]
    return Fp8Experts(*pairs, functional.silu, triton=triton), gate_up, down


def routed(rows: int, count: int, most: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(rows)
    shares, chosen = torch.rand(rows, count, generator=generator).softmax(-1).topk(most)
    return chosen, shares / shares.sum(-1, keepdim=True)


@pytest.mark.parametrize("triton", [False] + [True] * (sys.platform == "linux"))
@pytest.mark.parametrize(("rows", "hidden", "inner"), [(1, 256, 128), (4, 200, 96), (17, 256, 128)])
def test_rows_go_through_their_experts(triton: bool, rows: int, hidden: int, inner: int) -> None:
    experts, gate_up, down = layer(hidden, inner, 6, triton=triton)
    given = torch.randn(rows, hidden) / hidden**0.5
    chosen, shares = routed(rows, 6, 2)
    expected = torch.zeros(rows, hidden)
    for row in range(rows):
        for expert, share in zip(chosen[row].tolist(), shares[row], strict=True):
            gate, up = functional.linear(given[row], gate_up[expert]).chunk(2)
            expected[row] += share * functional.linear(functional.silu(gate) * up, down[expert])
    torch.testing.assert_close(experts(given, chosen, shares), expected, atol=2e-4, rtol=2e-4)


if sys.platform == "linux":

    def test_a_few_rows_wait_for_nothing() -> None:
        """Else a step could not be recorded as a graph."""

        class Seen(TorchDispatchMode):
            def __init__(self) -> None:
                super().__init__()
                self.names: list[str] = []

            def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
                self.names.append(func.__name__)
                return func(*args, **(kwargs or {}))

        def waits(rows: int) -> set[str]:
            experts, *_ = layer(128, 128, 4, triton=True)
            with pytest.MonkeyPatch.context() as patch, Seen() as seen:
                from qwen3vl_webui.model import fp8_kernels

                patch.setattr(
                    fp8_kernels, "multiply_chosen", lambda rows, weight, *_: rows.new_zeros(len(rows), weight.shape[1])
                )
                experts(torch.zeros(rows, 128), *routed(rows, 4, 2))
            return {name for name in seen.names if name.startswith(("nonzero", "_local_scalar", "_unique", "unique"))}

        assert waits(4) == set()
        assert waits(17) != set()
