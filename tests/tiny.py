"""Tiny random Qwen3-VL checkpoints: every file a real one has, about one million parameters, no network.

The weights are random, so answers mean nothing; text matrices are scaled up so that logits are not flat and greedy
choices are stable. `config.json` says so: `{"qwen3vl_webui": {"trained": false}}`.
"""

from __future__ import annotations

import atexit
import functools
import json
import shutil
import tempfile
from pathlib import Path
from typing import Any, Literal

from training.tokenizer import ORDINARY_TOKENS, SPECIAL_TOKENS

CORPUS = [
    "The lecturer opens the computer at 47 seconds and shows the first page of the document.",
    "<0.5 seconds> <12.5 seconds> <128.0 seconds> What happens in this video? Describe the picture.",
    "user\nsystem\nassistant\nYou are a helpful assistant.\n\nAnswer with the time stamp, the page and the box.",
    '```json\n[{"bbox_2d": [122, 416, 367, 866], "label": "dog"}]\n```',
    "他在什么时候打开电脑？第47秒，他打开了电脑。请描述这张图片。第3页写了什么？视频里发生了什么？",
    "1小时2分3秒 第45分钟到第50分钟 00:45:10 47.0 seconds p. 3",
]


def chat_template(thinking: bool) -> str:
    """The layout of the published templates; a thinking one drops past thoughts and opens `<think>` for the answer."""
    past = "(body.text.split('</think>')[-1].lstrip('\\n') if '</think>' in body.text else body.text)"
    past = past if thinking else "body.text"
    lines = [
        "{%- for message in messages -%}",
        "{%- set body = namespace(text='') -%}",
        "{%- if message.content is string -%}{%- set body.text = message.content -%}",
        "{%- else -%}{%- for part in message.content -%}",
        "{%- if part.type == 'image' -%}",
        "{%- set body.text = body.text + '<|vision_start|><|image_pad|><|vision_end|>' -%}",
        "{%- elif part.type == 'video' -%}",
        "{%- set body.text = body.text + '<|vision_start|><|video_pad|><|vision_end|>' -%}",
        "{%- else -%}{%- set body.text = body.text + part.text -%}{%- endif -%}",
        "{%- endfor -%}{%- endif -%}",
        "{%- if message.role == 'assistant' -%}{%- set body.text = " + past + " -%}{%- endif -%}",
        "{{- '<|im_start|>' + message.role + '\\n' + body.text + '<|im_end|>\\n' -}}",
        "{%- endfor -%}",
        "{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\\n"
        + ("<think>\\n" if thinking else "")
        + "' -}}{%- endif -%}",
    ]
    return "\n".join(lines)


def train_tokenizer() -> Any:
    """A byte-level BPE of some 600 entries wrapped as Qwen2Tokenizer, with the real special tokens behind them."""
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
    from transformers import Qwen2Tokenizer
    from transformers.models.qwen2.tokenization_qwen2 import PRETOKENIZE_REGEX

    bpe = Tokenizer(models.BPE())
    bpe.normalizer = normalizers.NFC()
    bpe.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(PRETOKENIZE_REGEX), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    bpe.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    bpe.train_from_iterator(
        CORPUS * 3, trainers.BpeTrainer(vocab_size=600, min_frequency=2, initial_alphabet=alphabet, show_progress=False)
    )
    bpe.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIAL_TOKENS])
    bpe.add_tokens([AddedToken(token, special=False, normalized=False) for token in ORDINARY_TOKENS])
    return Qwen2Tokenizer(
        tokenizer_object=bpe, eos_token="<|im_end|>", pad_token="<|endoftext|>", unk_token=None, bos_token=None
    )


def write_json(path: Path, **changes: Any) -> None:
    """Add or replace keys of a JSON file, which need not exist."""
    content = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps(content | changes, indent=2))


def build(folder: Path, *, tied: bool, thinking: bool, experts: int) -> None:
    import torch
    from transformers import (
        GenerationConfig,
        Qwen3VLConfig,
        Qwen3VLForConditionalGeneration,
        Qwen3VLMoeConfig,
        Qwen3VLMoeForConditionalGeneration,
    )

    tokenizer = train_tokenizer()
    tokenizer.chat_template = chat_template(thinking)
    tokenizer.save_pretrained(folder)

    ids = {name: tokenizer.convert_tokens_to_ids(name) for name in SPECIAL_TOKENS}
    half = 16  # of a head
    rows = half * 20 // 64
    text: dict[str, Any] = dict(
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=2 * half,
        max_position_embeddings=262_144,
        rope_parameters={
            "rope_type": "default",
            "rope_theta": 5_000_000.0,
            "mrope_section": [half - 2 * rows, rows, rows],
            "mrope_interleaved": True,
        },
        tie_word_embeddings=tied,
    )
    if experts:
        text |= {"num_experts": experts, "num_experts_per_tok": 2, "moe_intermediate_size": 128}
    vision = dict(
        depth=4,
        hidden_size=64,
        intermediate_size=128,
        num_heads=4,
        out_hidden_size=64,
        num_position_embeddings=2304,
        deepstack_visual_indexes=[0, 1, 2],
    )
    config_class = Qwen3VLMoeConfig if experts else Qwen3VLConfig
    model_class = Qwen3VLMoeForConditionalGeneration if experts else Qwen3VLForConditionalGeneration
    config = config_class(
        text_config=text,
        vision_config=vision,
        image_token_id=ids["<|image_pad|>"],
        video_token_id=ids["<|video_pad|>"],
        vision_start_token_id=ids["<|vision_start|>"],
        vision_end_token_id=ids["<|vision_end|>"],
        tie_word_embeddings=tied,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        model = model_class(config)
    with torch.no_grad():  # an initial std of 0.02 leaves the logits flat, and greedy answers one repeated token
        for name, weight in model.named_parameters():
            if "layers." in name and weight.ndim >= 2:
                weight.mul_(2.5 * 3)
            elif "q_norm" in name or "k_norm" in name:
                weight.mul_(1.5)
        language_model = model.model.language_model
        language_model.embed_tokens.weight.mul_(2.5)
        language_model.norm.weight.mul_(6)
        if not tied:
            model.lm_head.weight.mul_(2.5)
    model.generation_config = GenerationConfig(
        do_sample=True,
        temperature=0.7,
        top_p=0.8,
        top_k=20,
        eos_token_id=[ids["<|im_end|>"], ids["<|endoftext|>"]],
        pad_token_id=ids["<|endoftext|>"],
    )
    model.save_pretrained(folder)
    write_json(folder / "config.json", qwen3vl_webui={"trained": False})
    pixels: dict[str, Any] = {
        "patch_size": 16,
        "temporal_patch_size": 2,
        "merge_size": 2,
        "image_mean": [0.5, 0.5, 0.5],
        "image_std": [0.5, 0.5, 0.5],
        "processor_class": "Qwen3VLProcessor",
    }
    write_json(
        folder / "preprocessor_config.json",
        size={"shortest_edge": 65_536, "longest_edge": 16_777_216},
        image_processor_type="Qwen2VLImageProcessorFast",
        **pixels,
    )
    write_json(
        folder / "video_preprocessor_config.json",
        size={"shortest_edge": 4_096, "longest_edge": 25_165_824},
        video_processor_type="Qwen3VLVideoProcessor",
        **pixels,
    )


def packed_fp8(weight: Any) -> tuple[Any, Any]:
    """(out, in) as e4m3 numbers, and a float32 scale for each block of 128 x 128."""
    import torch

    rows, columns = weight.shape
    scales = torch.empty(-(-rows // 128), -(-columns // 128))
    packed = torch.empty_like(weight, dtype=torch.float8_e4m3fn)
    for i in range(0, rows, 128):
        for j in range(0, columns, 128):
            block = weight[i : i + 128, j : j + 128].float()
            scales[i // 128, j // 128] = block.abs().max() / 448
            packed[i : i + 128, j : j + 128] = (block / scales[i // 128, j // 128]).to(torch.float8_e4m3fn)
    return packed, scales


def pack_fp8(folder: Path, *, experts: Literal["turned", "straight", "apart"] = "turned") -> Path:
    """Turns a checkpoint into one as Qwen publishes its FP8 ones: matrices of the text layers as e4m3 numbers with a
    float32 `weight_scale_inv` for each block of 128 x 128, everything else as it was. Experts stand together, inputs
    before outputs (turned) or behind them, or apart."""
    import torch
    from safetensors.torch import load_file, save_file

    weights = load_file(folder / "model.safetensors")
    for name, weight in list(weights.items()):
        if "language_model.layers." not in name or weight.ndim < 2 or name.endswith("mlp.gate.weight"):
            continue
        if weight.ndim == 2:
            weights[name], weights[f"{name}_scale_inv"] = packed_fp8(weight)
            continue
        del weights[name]
        parts = [packed_fp8(each) for each in weight]
        if experts == "apart":
            kinds = ("gate_proj", "up_proj") if name.endswith("gate_up_proj") else ("down_proj",)
            for expert, part in enumerate(parts):
                for kind, *own in zip(kinds, *(each.chunk(len(kinds)) for each in part), strict=True):
                    own_name = f"{name.rpartition('.')[0]}.{expert}.{kind}.weight"
                    weights[own_name], weights[f"{own_name}_scale_inv"] = (each.clone() for each in own)
            continue
        for ending, stack in zip(("", "_scale_inv"), map(torch.stack, zip(*parts, strict=True)), strict=True):
            weights[name + ending] = stack.transpose(1, 2).contiguous() if experts == "turned" else stack
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    vision = {name.removesuffix(".weight") for name in weights if ".visual." in name and name.endswith(".weight")}
    quantization = {
        "activation_scheme": "dynamic",
        "fmt": "e4m3",
        "quant_method": "fp8",
        "weight_block_size": [128, 128],
        "modules_to_not_convert": ["lm_head", *sorted(vision)],
    }
    write_json(folder / "config.json", quantization_config=quantization)
    return folder


@functools.cache
def built(tied: bool, thinking: bool, experts: int) -> Path:
    folder = Path(tempfile.mkdtemp(prefix="tiny-qwen3-vl-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    build(folder, tied=tied, thinking=thinking, experts=experts)
    return folder


def tiny_checkpoint(folder: Path | None = None, *, tied: bool = True, thinking: bool = False, experts: int = 0) -> Path:
    """A checkpoint folder, built once per test session and variant.

    With `folder` it is copied there for the test to change; without, the shared one is returned: never write to it.
    `experts` > 0 makes the mixture-of-experts model.
    """
    shared = built(tied, thinking, experts)
    if folder is None:
        return shared
    shutil.copytree(shared, folder, dirs_exist_ok=True)
    return folder
