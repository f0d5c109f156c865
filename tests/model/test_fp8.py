"""FP8 checkpoints as Qwen publishes them: held in 8 bits or made exact while loading, they compute what they say."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.nn import functional
from transformers.quantizers.quantizer_finegrained_fp8 import FineGrainedFP8HfQuantizer

from qwen3vl_webui.engine.local import LocalEngine
from qwen3vl_webui.errors import EngineError, Unsupported
from qwen3vl_webui.media.upload import open_upload
from qwen3vl_webui.model import fp8
from qwen3vl_webui.model.forward import Joined
from qwen3vl_webui.model.fp8 import Fp8Linear, joined, unpacked_plainly
from qwen3vl_webui.model.loading import LoadedModel, load
from qwen3vl_webui.model.planner import KNOWN, linear_bytes, plan, weight_bytes
from qwen3vl_webui.model.quantization import pick_quantization
from qwen3vl_webui.prompt import Attached, Draft, lay_out
from qwen3vl_webui.settings import DEMO_MODEL
from tests.engine.conftest import ask, picture, read_pixels
from tests.engine.test_local import run, run_ids
from tests.model.test_loading import answers
from tests.tiny import pack_fp8, tiny_checkpoint

torch.set_num_threads(1)

SAMPLES = Path(__file__).resolve().parents[2] / "assets" / "samples"
UP = "model.language_model.layers.1.mlp.up_proj.weight"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return pack_fp8(tiny_checkpoint(tmp_path_factory.mktemp("fp8") / "tiny-fp8"))


@pytest.fixture
def packed(monkeypatch: pytest.MonkeyPatch) -> Callable[[Path], LoadedModel]:
    """Loads as on a card that has FP8."""
    monkeypatch.setattr(fp8, "stays_packed", lambda device: True)
    monkeypatch.setattr(FineGrainedFP8HfQuantizer, "validate_environment", lambda *_, **__: None)
    return lambda folder: load(str(folder), device="cpu")


def packed_linear(outputs: int, inputs: int, *, triton: bool = False, seed: int = 0) -> Fp8Linear:
    generator = torch.Generator().manual_seed(seed)
    weight = (torch.randn(outputs, inputs, generator=generator) * 100).to(torch.float8_e4m3fn)
    scales = torch.rand(-(-outputs // 128), -(-inputs // 128), generator=generator) / 100
    return Fp8Linear(weight, scales, triton=triton)


# Loading


def test_without_fp8_the_weights_are_made_exact_and_it_is_said(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    loaded = load(str(folder), device="cpu")
    assert "This device has no FP8" in caplog.text
    assert loaded.info.quantization == "fp8 → float32" and loaded.weights == "none"
    stored, own = load_file(folder / "model.safetensors"), dict(loaded.model.named_parameters())
    assert stored[UP].dtype == torch.float8_e4m3fn
    expected = unpacked_plainly(stored[UP], stored[f"{UP}_scale_inv"], torch.float32)
    assert torch.equal(own[UP], expected)
    plain = load_file(tiny_checkpoint() / "model.safetensors")[UP]
    assert 0 < float((own[UP] - plain).norm() / plain.norm()) < 0.04
    assert {weight.dtype for weight in own.values()} == {torch.float32}


def test_answers_are_near_those_of_the_plain_checkpoint(folder: Path) -> None:
    logits, features = answers(load(str(folder), device="cpu"))
    expected, expected_features = answers(load(str(tiny_checkpoint()), device="cpu"))
    assert torch.equal(features, expected_features)  # the vision tower is not quantized
    # Random weights magnify what a step of 1/16 changes in each; trained ones stand far from such edges: see below.
    assert float((logits - expected).norm() / expected.norm()) < 0.3
    assert float((logits.argmax(-1) == expected.argmax(-1)).float().mean()) > 0.5


def test_a_trained_model_answers_the_same(tmp_path: Path) -> None:
    packed = pack_fp8(Path(shutil.copytree(DEMO_MODEL, tmp_path / "demo-fp8")))
    engines = [LocalEngine(load(name, device="cpu")) for name in ("demo", str(packed))]
    try:
        for file, question in (
            ("sample.png", "What is in the picture?"),
            ("sample.png", "图里有什么？"),
            ("sample.mp4", "When does the red circle appear?"),
        ):
            attached = Attached(open_upload(SAMPLES / file), name=file)
            request = lay_out([Draft("user", (attached, question))], engines[0]).request
            exact, given = (run(engine, request)[0] for engine in engines)
            assert given == exact
    finally:
        for engine in engines:
            engine.close()


def test_with_fp8_the_weights_stay_in_8_bits_and_compute_the_same(
    folder: Path, packed: Callable[[Path], LoadedModel]
) -> None:
    exact = load(str(tiny_checkpoint()), device="cpu")
    held = packed(folder)
    assert held.info.quantization == held.weights == "fp8"
    modules = {name for name, module in held.model.named_modules() if isinstance(module, Fp8Linear)}
    assert len(modules) == 4 * 7 and all(".language_model.layers." in name for name in modules)
    stored = {*held.model.parameters(), *held.model.buffers()} - {*held.model.buffers()}
    assert sum(weight.nbytes for weight in stored) == weight_bytes(held.shape, "fp8", 4)
    assert weight_bytes(held.shape, "fp8", 4) < weight_bytes(exact.shape, "none", 4)

    request = ask("word " * 30, picture("cat"), "What is this?", conversation="a")
    ids = []
    for loaded in (held, load_unpacked(folder)):
        engine = LocalEngine(loaded, 4096, read_pixels=read_pixels)
        ids.append(run_ids(engine, request)[2])
        engine.close()
    assert ids[0] == ids[1] and len(ids[0]) > 10


def load_unpacked(folder: Path) -> LoadedModel:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fp8, "stays_packed", lambda device: False)
        return load(str(folder), device="cpu")


def test_a_lost_scale_is_noticed(folder: Path, tmp_path: Path, packed: Callable[[Path], LoadedModel]) -> None:
    """Without it the numbers would be hundreds of times too large, and nothing would say so."""
    own = pack_fp8(tiny_checkpoint(tmp_path / "own"))
    weights = load_file(own / "model.safetensors")
    scale = weights.pop(f"{UP}_scale_inv")
    save_file(weights, own / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(EngineError, match="damaged or incomplete"):
        packed(own)
    with pytest.raises(EngineError, match="damaged or incomplete"):
        load_unpacked(own)
    weights[f"{UP}_scale_inv"] = scale
    weights["model.language_model.layers.1.mlp.lost.weight_scale_inv"] = scale.clone()
    save_file(weights, own / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(EngineError, match="damaged or incomplete"):
        load_unpacked(own)


def test_what_is_not_done_with_them_is_refused(folder: Path) -> None:
    with pytest.raises(Unsupported, match="leave --quantization out"):
        load(str(folder), device="cpu", quantization="4bit")


@pytest.mark.parametrize(("capability", "packed"), [((8, 0), False), ((8, 6), False), ((8, 9), True), ((9, 0), True)])
def test_only_a_card_with_fp8_keeps_them_packed(
    monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int], packed: bool
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    assert fp8.stays_packed(torch.device("cuda")) is packed
    assert not fp8.stays_packed(torch.device("cpu"))


# Memory


def test_the_planner_counts_them() -> None:
    assert linear_bytes(2560, 9728, "fp8", 2) == 2560 * 9728 + 4 * 20 * 76
    assert linear_bytes(100, 129, "fp8", 2) == 100 * 129 + 4 * 1 * 2
    four = KNOWN["4b"]
    assert weight_bytes(four, "8bit") * 0.99 < weight_bytes(four, "fp8") < weight_bytes(four, "none") * 0.65
    assert plan(four, "fp8", 262_144, "int4").parts["unpacked"] == 2 * 9728 * 2560 * 2
    assert pick_quantization("4b-fp8", four, 24 * 10**9, "fp8", "auto", 262_144) == "fp8"


# Layers


@pytest.mark.parametrize("shape", [(384, 256), (160, 200), (128, 64)], ids=str)
def test_a_packed_layer_is_the_exact_one(shape: tuple[int, int]) -> None:
    layer = packed_linear(*shape)
    rows = torch.randn(2, 5, shape[1])
    weight = layer.weight.float()
    for i in range(0, shape[0], 128):
        for j in range(0, shape[1], 128):
            weight[i : i + 128, j : j + 128] *= layer.scales[i // 128, j // 128]
    torch.testing.assert_close(layer(rows), functional.linear(rows, weight))


def test_layers_that_read_the_same_rows_are_joined_where_their_blocks_allow_it() -> None:
    layers = [packed_linear(outputs, 200, seed=outputs) for outputs in (256, 128, 128)]
    rows = torch.randn(3, 200)
    expected = [layer(rows) for layer in layers]
    both = Joined(layers)
    assert isinstance(both.packed, Fp8Linear)
    torch.testing.assert_close(both(rows), torch.cat(expected, -1))
    for layer, answer in zip(layers, expected, strict=True):
        torch.testing.assert_close(layer(rows), answer)
        assert layer.weight.untyped_storage().data_ptr() == both.packed.weight.untyped_storage().data_ptr()
    odd: list[Any] = [packed_linear(outputs, 200) for outputs in (100, 128)]
    assert joined(odd) is None
    torch.testing.assert_close(Joined(odd)(rows), torch.cat([layer(rows) for layer in odd], -1))


if sys.platform == "linux":

    @pytest.mark.parametrize("shape", [(384, 256), (160, 200), (128, 64)], ids=str)
    @pytest.mark.parametrize("count", [1, 4, 16, 17])
    def test_the_kernels_equal_torch(shape: tuple[int, int], count: int) -> None:
        rows = torch.randn(count, shape[1])
        plain, ours = (packed_linear(*shape, triton=triton) for triton in (False, True))
        torch.testing.assert_close(ours(rows), plain(rows), atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(ours(rows.half()).float(), plain(rows), atol=0.05, rtol=0.05)

    def test_the_kernels_are_trusted_where_they_agree(
        monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        from qwen3vl_webui.model import fp8_kernels

        trusted = fp8_kernels.is_trusted.__wrapped__
        assert trusted(torch.float32, torch.device("cpu"))
        monkeypatch.setattr(fp8_kernels, "multiply", lambda rows, weight, scales: rows[:, :1] * weight.float()[:, 0])
        assert not trusted(torch.float32, torch.device("cpu"))
        assert "do not agree" in caplog.text
