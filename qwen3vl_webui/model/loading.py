"""Checkpoint -> modules on a device, quantized or not, with what the rest must know about them.

Only safetensors are read and no code of a checkpoint runs.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, get_args

import torch
from safetensors import SafetensorError
from tokenizers import Tokenizer
from torch import nn

from qwen3vl_webui.engine.contract import Message, ModelInfo, Role, SamplingParams
from qwen3vl_webui.errors import OutOfMemory, Unsupported
from qwen3vl_webui.model import experts, fp8, rope, tower
from qwen3vl_webui.model.checkpoint import (
    Progress,
    Report,
    Teller,
    check,
    damaged,
    quiet,
    read_json,
    resolve,
    resolve_auto,
)
from qwen3vl_webui.model.inputs import Vocabulary, encode
from qwen3vl_webui.model.planner import Shape, Weights, weight_bytes
from qwen3vl_webui.model.quantization import check_quantized, fp8_config, pick_quantization, quantization_config
from qwen3vl_webui.model.rope import RopePlan
from qwen3vl_webui.settings import DEMO_MODEL, MODELS, Hub, KVCacheKind, Quantization

log = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class LoadedModel:
    """The modules of one checkpoint, in evaluation mode, without gradients.

    `text` takes `inputs_embeds`; `vision` returns merged and DeepStack features; `dtype` is what the text model
    computes in; its linears are held as `weights` says. `shape` is what the memory planner looks at, `rope` the
    checkpoint's own plan, good for `trained_positions`. `eos_ids` end an answer.
    """

    folder: Path
    model: nn.Module
    text: nn.Module
    vision: nn.Module
    embed: nn.Module
    lm_head: nn.Module
    config: Any
    shape: Shape
    vocabulary: Vocabulary
    eos_ids: frozenset[int]
    rope: RopePlan
    trained_positions: int
    device: torch.device
    dtype: torch.dtype
    info: ModelInfo
    weights: Weights = "none"

    @property
    def tokenizer(self) -> Tokenizer:
        return self.vocabulary.tokenizer


def pixel_limits(folder: Path, config: Mapping[str, Any]) -> tuple[tuple[int, int], tuple[int, int]]:
    """Least and most pixels of a picture, and of one video frame.

    From our own key in config.json, else the preprocessor's. A video processor's `size` counts the pixels of the whole
    clip; of one frame the published cap is 768 tokens.
    """
    own = config.get("qwen3vl_webui") or {}
    size = read_json(folder / "preprocessor_config.json").get("size") or {}
    standard = ModelInfo("", "")
    image = (
        int(size.get("shortest_edge", standard.image_pixels[0])),
        int(size.get("longest_edge", standard.image_pixels[1])),
    )
    size = read_json(folder / "video_preprocessor_config.json").get("size") or {}
    frame = (int(size.get("shortest_edge", standard.frame_pixels[0])), standard.frame_pixels[1])
    least_image, most_image = own.get("image_pixels", image)
    least_frame, most_frame = own.get("frame_pixels", frame)
    return (int(least_image), int(most_image)), (int(least_frame), int(most_frame))


def published_sampling(
    generation: Mapping[str, Any], config: Mapping[str, Any], *, thinking: bool, context_length: int
) -> tuple[SamplingParams, SamplingParams]:
    """With pictures or video, and text only: as the Qwen3-VL README gives them for each family.

    generation_config.json has no presence penalty, without which tables and OCR loop. Where sources disagree (the
    temperature of the thinking models) the checkpoint's own file wins. `max_tokens` is cut to a quarter of the context.
    """
    drawn = {key: generation[key] for key in ("temperature", "top_p", "top_k") if generation.get(key) is not None}
    if thinking:
        base = SamplingParams(temperature=0.6, top_p=0.95, top_k=20, presence_penalty=0.0, max_tokens=40_960)
        seen = text = replace(base, **drawn)
    else:
        base = SamplingParams(temperature=0.7, top_p=0.8, top_k=20, presence_penalty=1.5, max_tokens=16_384)
        seen = replace(base, **drawn)
        text = SamplingParams(temperature=1.0, top_p=1.0, top_k=40, presence_penalty=2.0, max_tokens=32_768)
    own = (config.get("qwen3vl_webui") or {}).get("sampling") or {}
    known = {field.name for field in fields(SamplingParams)}
    if surplus := set(own) - known:
        raise Unsupported(f"config.json asks for unknown sampling settings {sorted(surplus)}: remove them.")

    def fitted(params: SamplingParams) -> SamplingParams:
        params = replace(params, **own)
        return replace(params, max_tokens=max(1, min(params.max_tokens, context_length // 4)))

    return fitted(seen), fitted(text)


def opens_thought(tokenizer: Any) -> bool:
    """Whether the chat template puts `<think>` into the generation prompt, as the thinking checkpoints do."""
    if not tokenizer.chat_template:
        return False
    prompt = tokenizer.apply_chat_template(
        [{"role": "user", "content": "?"}], tokenize=False, add_generation_prompt=True
    )
    return prompt.rstrip().endswith("<think>")


def warn_of_another_template(tokenizer: Any, vocabulary: Vocabulary) -> None:
    """We write the published layout whatever the template says; a fine-tune may have been taught another."""
    said: list[tuple[Role, str]] = [("system", "a"), ("user", "b"), ("assistant", "c"), ("user", "d")]
    ours = encode([Message(role, (text,)) for role, text in said], vocabulary).ids.tolist()
    rendered = tokenizer.apply_chat_template(
        [{"role": role, "content": [{"type": "text", "text": text}]} for role, text in said],
        tokenize=False,
        add_generation_prompt=True,
    )
    if tokenizer(rendered, add_special_tokens=False)["input_ids"] != ours:
        log.warning("This checkpoint's chat template is not Qwen3-VL's; the layout of Qwen3-VL is used all the same.")


def pick_device(device: str | None) -> torch.device:
    return torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))


def refuse_too_big(name: str, needed: int, place: torch.device) -> None:
    """Before anything is read: a machine that runs out of memory while loading tells nobody why.

    Counts all of the memory there is, not what is free now, so that it never refuses what could work.
    """
    if place.type == "cuda":
        _, memory = torch.cuda.mem_get_info(place)
    elif not hasattr(os, "sysconf"):  # Windows does not say
        return
    else:
        memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    if needed > memory:
        raise OutOfMemory(
            f"The weights of {name} need {needed / 1e9:.1f} GB and {describe(place)} has {memory / 1e9:.1f} GB: "
            "use --quantization 4bit or a smaller --model."
        )


def name_of(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


@contextmanager
def loading_reports(progress: Report) -> Iterator[None]:
    """Reports each loaded tensor while transformers reads a checkpoint, in place of its own bar."""
    from transformers.utils import logging as transformers_logging

    def hook(factory: Callable[..., Any], arguments: tuple[Any, ...], options: dict[str, Any]) -> Any:
        items = arguments[0] if arguments else options.get("iterable")
        if items is None or options.get("desc") != "Loading weights":
            return factory(*arguments, **options)
        return reported(list(items))

    def reported(items: list[Any]) -> Iterator[Any]:
        for done, item in enumerate(items):
            progress(Progress("loading", done, len(items)))
            yield item
        progress(Progress("loading", len(items), len(items)))

    previous = transformers_logging.set_tqdm_hook(hook)
    try:
        yield
    finally:
        transformers_logging.set_tqdm_hook(previous)


def load(
    name: str,
    *,
    quantization: Quantization = "auto",
    hub: Hub = "huggingface",
    kv_cache: KVCacheKind = "auto",
    context_length: int | None = None,
    device: str | None = None,
    progress: Report = quiet,
) -> LoadedModel:
    """Open a model by short name, hub id, folder, or `auto`. `context_length` is in tokens (None: the trained one);
    it and `kv_cache` tell the quantization `auto` how much room to leave beside the weights.

    Computes in bfloat16 on CUDA and float32 on CPU. Whatever `progress` raises stops the work and comes out. Raises
    NotFound, Unsupported, OutOfMemory or EngineError, each with a sentence.
    """
    if quantization not in get_args(Quantization):
        raise Unsupported(f"There is no quantization {quantization!r}: choose none, 8bit, 4bit or auto.")
    called, folder = resolve_auto(hub, progress) if name == "auto" else resolve(name, hub, progress)
    return load_folder(
        called,
        folder,
        quantization=quantization,
        kv_cache=kv_cache,
        context_length=context_length,
        device=device,
        progress=progress,
    )


def load_folder(
    name: str,
    folder: Path,
    *,
    quantization: Quantization,
    kv_cache: KVCacheKind,
    context_length: int | None,
    device: str | None,
    progress: Report,
) -> LoadedModel:
    raw = check(folder)
    progress(Progress("loading"))
    from transformers import (
        AutoConfig,
        AutoTokenizer,
        Qwen3VLForConditionalGeneration,
        Qwen3VLMoeForConditionalGeneration,
    )

    place = pick_device(device)
    config = AutoConfig.from_pretrained(folder, local_files_only=True)
    plan = rope.native(config.text_config)
    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    vocabulary = Vocabulary.of(tokenizer.backend_tokenizer, thinking=opens_thought(tokenizer))
    if tokenizer.chat_template:
        warn_of_another_template(tokenizer, vocabulary)
    if (config.image_token_id, config.video_token_id) != (vocabulary.image_pad, vocabulary.video_pad):
        raise Unsupported(f"config.json and the tokenizer of {folder.name} disagree: fetch the checkpoint again.")

    shape = Shape.of(config.to_dict())
    mixture, packed = config.model_type == "qwen3_vl_moe", fp8.is_fp8(raw)
    if mixture and not packed and quantization not in ("none", "auto"):
        raise Unsupported(
            f"The experts of {name} cannot be quantized while loading (bitsandbytes reaches linear layers only): "
            "use --quantization none, its FP8 checkpoint, or a dense model."
        )
    if packed and quantization not in ("none", "auto"):
        raise Unsupported(f"{name} is quantized already (FP8): leave --quantization out, or take the plain checkpoint.")
    dtype = torch.bfloat16 if place.type == "cuda" else torch.float32
    wanted: Quantization | Weights = quantization
    if packed:
        wanted = "fp8" if fp8.stays_packed(place) else "none"
    weights: Weights = "none" if wanted == "auto" else wanted
    if place.type == "cuda":
        free, _ = torch.cuda.mem_get_info(place)
        weights = pick_quantization(name, shape, free, wanted, kv_cache, context_length)
    refuse_too_big(name, weight_bytes(shape, weights, dtype.itemsize), place)
    options: dict[str, Any] = {}
    if packed:
        if lost := fp8.unpaired(folder):
            raise damaged(folder, f"one of {lost} and its scales is missing")
        options["quantization_config"] = fp8_config(raw, dequantize=weights == "none")
    elif weights != "none":
        options["quantization_config"] = quantization_config(weights, dtype)
    model_class: Any = Qwen3VLMoeForConditionalGeneration if mixture else Qwen3VLForConditionalGeneration
    if packed and mixture:
        model_class = experts.left_out(model_class)
    with Teller(progress) as tell:
        try:
            with loading_reports(tell):
                model, report = model_class.from_pretrained(
                    folder,
                    config=config,
                    dtype=dtype,
                    device_map={"": str(place)},
                    attn_implementation="sdpa",
                    use_safetensors=True,
                    local_files_only=True,
                    output_loading_info=True,
                    **options,
                )
            if packed and mixture:
                experts.put_in(model, folder, dtype, place, packed=weights == "fp8", progress=tell)
        except torch.cuda.OutOfMemoryError as error:
            raise OutOfMemory(
                f"{name} does not fit in the memory of {describe(place)}: use --quantization 4bit or a smaller --model."
            ) from error
        except (SafetensorError, RuntimeError, OSError) as error:
            raise damaged(folder, error) from error
    if report["missing_keys"]:  # the library would go on with random weights
        raise damaged(folder, f"no {sorted(report['missing_keys'])[0]}")
    tower.fit(model.model.visual)
    model.requires_grad_(False).eval()
    if weights in ("8bit", "4bit"):
        check_quantized(model)
    elif weights == "fp8":
        fp8.take_over(model, dtype, place)
    if packed:
        fp8.cast_rest(model, dtype)
    if packed and weights == "none":
        log.warning("This device has no FP8: the weights of %s were made %s while loading.", name, name_of(dtype))

    generation = read_json(folder / "generation_config.json")
    eos = generation.get("eos_token_id", [])
    length = context_length or int(config.text_config.max_position_embeddings)
    sampling, sampling_text = published_sampling(generation, raw, thinking=vocabulary.thinking, context_length=length)
    image_pixels, frame_pixels = pixel_limits(folder, raw)
    info = ModelInfo(
        name=name,
        checkpoint=MODELS.get(name, name if "/" in name else str(folder)),
        device=describe(place),
        quantization=f"fp8 → {name_of(dtype)}" if packed and weights == "none" else weights,
        context_length=length,
        thinking=vocabulary.thinking,
        demo=folder.resolve() == DEMO_MODEL.resolve(),
        trained=bool((raw.get("qwen3vl_webui") or {}).get("trained", True)),
        image_pixels=image_pixels,
        frame_pixels=frame_pixels,
        most_moments=(raw.get("qwen3vl_webui") or {}).get("most_moments"),
        skills=tuple((raw.get("qwen3vl_webui") or {}).get("skills", {}).items()),
        sampling=sampling,
        sampling_text=sampling_text,
    )
    return LoadedModel(
        folder=folder,
        model=model,
        text=model.model.language_model,
        vision=model.model.visual,
        embed=model.get_input_embeddings(),
        lm_head=model.lm_head,
        config=config,
        shape=shape,
        vocabulary=vocabulary,
        eos_ids=frozenset([vocabulary.im_end, *(eos if isinstance(eos, list) else [eos])]),
        rope=plan,
        trained_positions=int(config.text_config.max_position_embeddings),
        device=place,
        dtype=dtype,
        info=info,
        weights=weights,
    )


def describe(device: torch.device) -> str:
    return f"cuda ({torch.cuda.get_device_name(device)})" if device.type == "cuda" else device.type
