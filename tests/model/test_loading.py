"""Checkpoints become modules: dense and mixed, plain and quantized, with what the page must say about them."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForImageTextToText

from qwen3vl_webui.errors import EngineError, OutOfMemory, Unsupported
from qwen3vl_webui.model import loading
from qwen3vl_webui.model.checkpoint import Progress
from qwen3vl_webui.model.inputs import frame_patches
from qwen3vl_webui.model.loading import LoadedModel, load
from qwen3vl_webui.model.planner import GIB, KNOWN
from qwen3vl_webui.model.quantization import pick_quantization
from tests.tiny import tiny_checkpoint, write_json


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


def compute(text: Any, lm_head: Any, vision: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits of a short text and features [1 + taps, tokens, hidden] of two frames."""
    frames = np.random.default_rng(3).integers(0, 256, (2, 64, 96, 3), np.uint8)
    with torch.no_grad():
        logits = lm_head(text(input_ids=torch.arange(40, 80)[None], use_cache=False).last_hidden_state)[0]
        output = vision(frame_patches(*frames), grid_thw=torch.tensor([[1, 4, 6]]), return_dict=True)
    return logits, torch.stack([output.pooler_output, *output.deepstack_features])


def answers(loaded: LoadedModel) -> tuple[torch.Tensor, torch.Tensor]:
    return compute(loaded.text, loaded.lm_head, loaded.vision)


@pytest.mark.parametrize(
    "variant", [{}, {"tied": False, "thinking": True}, {"experts": 4}], ids=["tied", "untied", "experts"]
)
def test_the_modules_compute_what_the_stock_model_does(variant: dict[str, Any]) -> None:
    folder = tiny_checkpoint(**variant)
    loaded = load(str(folder), device="cpu")
    stock = AutoModelForImageTextToText.from_pretrained(folder).eval()
    assert isinstance(stock.model.visual.patch_embed.proj, torch.nn.Conv3d)
    expected_logits, expected_features = compute(stock.model.language_model, stock.lm_head, stock.model.visual)
    logits, features = answers(loaded)
    torch.testing.assert_close(logits, expected_logits, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(features, expected_features, rtol=1e-5, atol=1e-5)
    assert (loaded.lm_head.weight is loaded.embed.weight) == variant.get("tied", True)
    assert loaded.info.thinking == loaded.vocabulary.thinking == variant.get("thinking", False)
    assert loaded.dtype == torch.float32 and loaded.device.type == "cpu"
    assert not any(weight.requires_grad for weight in loaded.model.parameters()) and not loaded.model.training
    assert loaded.eos_ids == {loaded.vocabulary.im_end, loaded.vocabulary.added["<|endoftext|>"]}


def test_a_bfloat16_checkpoint_computes_in_float32_on_the_cpu(tmp_path: Path) -> None:
    folder = tiny_checkpoint(tmp_path / "tiny")
    weights = load_file(folder / "model.safetensors")
    halved = {name: weight.bfloat16() for name, weight in weights.items()}
    save_file(halved, folder / "model.safetensors", metadata={"format": "pt"})
    write_json(folder / "config.json", dtype="bfloat16")
    loaded = load(str(folder), device="cpu")
    assert {weight.dtype for weight in loaded.model.parameters()} == {torch.float32}
    name = "model.language_model.layers.0.mlp.up_proj.weight"
    assert torch.equal(dict(loaded.model.named_parameters())[name], halved[name].float())


def test_loading_is_told_tensor_by_tensor() -> None:
    told: list[Progress] = []
    load(str(tiny_checkpoint()), device="cpu", progress=told.append)
    stages = [progress.stage for progress in told]
    assert stages[0] == "finding" and set(stages[1:]) == {"loading"}
    done = [progress.done for progress in told[1:]]
    assert done == sorted(done) and told[-1].done == told[-1].total > 100


@pytest.mark.parametrize("error", [KeyError, RuntimeError])
def test_what_the_listener_raises_stops_loading_and_comes_out(error: type[Exception]) -> None:
    def listener(progress: Progress) -> None:
        if progress.done == 5:
            raise error("closing")

    with pytest.raises(error, match="closing"):
        load(str(tiny_checkpoint()), device="cpu", progress=listener)


# What the page says


def test_a_random_checkpoint_is_not_presented_as_an_answering_model(tmp_path: Path) -> None:
    folder = tiny_checkpoint()
    info = load(str(folder), device="cpu").info
    assert not info.trained and not info.demo
    assert (info.name, info.checkpoint, info.device, info.quantization) == (folder.name, str(folder), "cpu", "none")
    assert info.context_length == 262_144
    assert info.image_pixels == (65_536, 16_777_216) and info.frame_pixels == (4_096, 786_432)
    own = tiny_checkpoint(tmp_path / "own")
    config = json.loads((own / "config.json").read_text())
    del config["qwen3vl_webui"]
    (own / "config.json").write_text(json.dumps(config))
    assert load(str(own), device="cpu").info.trained


def test_the_bundled_demo_is_named_and_sets_its_own_limits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tiny_checkpoint(tmp_path / "demo-model")
    own = {
        "trained": True,
        "image_pixels": [1_024, 65_536],
        "frame_pixels": [1_024, 16_384],
        "sampling": {"temperature": 0.0, "max_tokens": 200},
    }
    write_json(folder / "config.json", qwen3vl_webui=own)
    monkeypatch.setattr(loading, "DEMO_MODEL", folder)
    monkeypatch.setattr("qwen3vl_webui.model.checkpoint.DEMO_MODEL", folder)
    monkeypatch.setitem(loading.MODELS, "demo", str(folder))
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    for name in ("demo", "auto"):
        info = load(name, context_length=4_096).info
        assert (info.name, info.demo, info.trained, info.context_length) == ("demo", True, True, 4_096)
        assert info.image_pixels == (1_024, 65_536) and info.frame_pixels == (1_024, 16_384)
        assert info.sampling.temperature == info.sampling_text.temperature == 0.0
        assert info.sampling.max_tokens == 200 and info.sampling.presence_penalty == 1.5
    write_json(folder / "config.json", qwen3vl_webui={"sampling": {"heat": 1}})
    with pytest.raises(Unsupported, match="heat"):
        load("demo", device="cpu")


def test_sampling_is_as_published_for_each_family() -> None:
    instruct = load(str(tiny_checkpoint()), device="cpu").info
    seen, text = instruct.sampling, instruct.sampling_text
    assert (seen.temperature, seen.top_p, seen.top_k, seen.presence_penalty) == (0.7, 0.8, 20, 1.5)
    assert (text.temperature, text.top_p, text.top_k, text.presence_penalty) == (1.0, 1.0, 40, 2.0)
    assert (seen.max_tokens, text.max_tokens) == (16_384, 32_768)
    generation = {"temperature": 1.0, "top_p": 0.95, "top_k": 20}
    seen, text = loading.published_sampling(generation, {}, thinking=True, context_length=262_144)
    assert seen == text
    assert (seen.temperature, seen.top_p, seen.top_k, seen.presence_penalty) == (1.0, 0.95, 20, 0.0)
    assert seen.max_tokens == 40_960
    seen, _ = loading.published_sampling({}, {}, thinking=True, context_length=8_192)
    assert (seen.temperature, seen.max_tokens) == (0.6, 2_048)


# What can be wrong


def test_weights_that_are_not_all_there_are_refused(tmp_path: Path) -> None:
    folder = tiny_checkpoint(tmp_path / "tiny")
    weights = load_file(folder / "model.safetensors")
    del weights["model.language_model.layers.2.mlp.up_proj.weight"]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(EngineError, match="layers.2.mlp.up_proj"):
        load(str(folder), device="cpu")


@pytest.mark.parametrize("keep", [0, 4, 2_000, -1_000])
def test_truncated_weights_are_a_sentence(tmp_path: Path, keep: int) -> None:
    folder = tiny_checkpoint(tmp_path / "tiny")
    weights = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(weights[:keep])
    with pytest.raises(EngineError, match="damaged or incomplete"):
        load(str(folder), device="cpu")


def test_a_matrix_of_another_shape_is_a_sentence(tmp_path: Path) -> None:
    folder = tiny_checkpoint(tmp_path / "tiny")
    weights = load_file(folder / "model.safetensors")
    weights["model.language_model.layers.2.mlp.up_proj.weight"] = torch.zeros(3, 5)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(EngineError, match="damaged or incomplete"):
        load(str(folder), device="cpu")


def test_a_tokenizer_of_another_model_is_refused(tmp_path: Path) -> None:
    folder = tiny_checkpoint(tmp_path / "tiny")
    write_json(folder / "config.json", image_token_id=7)
    with pytest.raises(Unsupported, match="disagree"):
        load(str(folder), device="cpu")


def test_rope_types_not_done_here_are_refused(tmp_path: Path) -> None:
    folder = tiny_checkpoint(tmp_path / "tiny")
    config = json.loads((folder / "config.json").read_text())
    config["text_config"]["rope_parameters"] |= {"rope_type": "dynamic", "factor": 4.0}
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(Unsupported, match="dynamic"):
        load(str(folder), device="cpu")


def test_another_chat_template_is_noticed(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for variant in ({}, {"tied": False, "thinking": True}):
        load(str(tiny_checkpoint(**variant)), device="cpu")
    assert "chat template" not in caplog.text
    folder = tiny_checkpoint(tmp_path / "tiny")
    template = (folder / "chat_template.jinja").read_text()
    (folder / "chat_template.jinja").write_text("{{- '<|im_start|>system\\nBe brief.<|im_end|>\\n' -}}" + template)
    load(str(folder), device="cpu")
    assert "chat template" in caplog.text


def test_loading_from_disk_needs_no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("the network was used")

    monkeypatch.setattr("socket.socket.connect", refuse)
    monkeypatch.setattr("socket.getaddrinfo", refuse)
    load(str(tiny_checkpoint()), device="cpu")


def test_an_unknown_quantization_is_refused() -> None:
    with pytest.raises(Unsupported, match="2bit"):
        load(str(tiny_checkpoint()), quantization="2bit")  # type: ignore[arg-type]


# Quantization


@pytest.mark.parametrize("quantization, most_error", [("8bit", 0.2), ("4bit", 0.8)])
@pytest.mark.parametrize("tied", [True, False])
def test_quantized_text_keeps_vision_and_head_plain(
    quantization: Any, most_error: float, tied: bool, caplog: pytest.LogCaptureFixture
) -> None:
    from bitsandbytes.nn import Linear4bit, Linear8bitLt

    plain = load(str(tiny_checkpoint(tied=tied)), device="cpu")
    with caplog.at_level(logging.INFO):
        loaded = load(str(tiny_checkpoint(tied=tied)), device="cpu", quantization=quantization)
        logits, features = answers(loaded)
    kind = Linear8bitLt if quantization == "8bit" else Linear4bit
    quantized = {name for name, module in loaded.model.named_modules() if isinstance(module, kind)}
    assert len(quantized) == 4 * 7  # every linear of every text layer
    assert all(name.startswith("model.language_model.layers.") for name in quantized)
    assert type(loaded.lm_head) is torch.nn.Linear and type(loaded.embed) is torch.nn.Embedding
    assert loaded.info.quantization == quantization
    expected_logits, expected_features = answers(plain)
    assert torch.equal(features, expected_features)
    error = (logits - expected_logits).norm() / expected_logits.norm()
    assert 0 < error < most_error
    assert not [record for record in caplog.records if "will be cast" in record.message]


def test_a_quantized_vision_tower_or_head_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    for skipped in (["lm_head"], ["model.visual"]):  # either alone leaves the other quantized
        monkeypatch.setattr(
            loading,
            "quantization_config",
            lambda *_, skipped=skipped: __import__("transformers").BitsAndBytesConfig(
                load_in_4bit=True, bnb_4bit_quant_type="nf4", llm_int8_skip_modules=skipped
            ),
        )
        with pytest.raises(EngineError, match="was quantized"):
            load(str(tiny_checkpoint(tied=False)), device="cpu", quantization="4bit")


def test_experts_cannot_be_quantized_and_auto_knows() -> None:
    folder = str(tiny_checkpoint(experts=4))
    with pytest.raises(Unsupported, match="experts"):
        load(folder, device="cpu", quantization="4bit")
    assert load(folder, device="cpu").info.quantization == "none"


def test_auto_takes_the_least_quantization_that_leaves_room() -> None:
    shape = KNOWN["4b"]
    for memory, quantization in ((80, "none"), (24, "none"), (11.5, "8bit"), (8, "4bit"), (0, "4bit")):
        assert pick_quantization("4b", shape, int(memory * GIB), "auto", "auto", None) == quantization
    assert pick_quantization("4b", shape, 23 * GIB, "auto", "auto", 262_144) == "none"  # with int4 keys and values
    assert pick_quantization("4b", shape, 23 * GIB, "auto", "int8", 200_000) == "8bit"
    assert pick_quantization("4b", shape, 0, "8bit", "auto", None) == "8bit"
    assert pick_quantization("30b-a3b", KNOWN["30b-a3b"], 0, "auto", "auto", None) == "none"


def test_a_context_that_can_never_be_held_is_refused_before_loading() -> None:
    with pytest.raises(OutOfMemory, match=r"1,000,000 tokens of context needs at least 46\.7 GB and 25\.8 GB are free"):
        pick_quantization("4b", KNOWN["4b"], 24 * GIB, "auto", "auto", 1_000_000)


def test_a_model_bigger_than_the_machine_is_refused_before_it_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = {"SC_PHYS_PAGES": 500, "SC_PAGE_SIZE": 4096}
    monkeypatch.setattr("os.sysconf", sizes.__getitem__)
    with pytest.raises(OutOfMemory, match="need 0.0 GB and cpu has 0.0 GB.*4bit"):
        load(str(tiny_checkpoint()), device="cpu")
