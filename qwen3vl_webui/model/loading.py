"""Checkpoint -> modules: find or fetch the weights, check that they are Qwen3-VL's, load them, quantized or not.

Only safetensors are read, no code of a checkpoint runs, and everything works offline once the weights are on disk.
"""

from __future__ import annotations

import json
import logging
import os
import re
import struct
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, get_args

import torch
from tokenizers import Tokenizer
from torch import nn

from qwen3vl_webui.engine.contract import ModelInfo, SamplingParams
from qwen3vl_webui.errors import EngineError, NotFound, OutOfMemory, Unsupported
from qwen3vl_webui.model import rope
from qwen3vl_webui.model.inputs import MERGE, PATCH, Vocabulary
from qwen3vl_webui.model.rope import RopePlan
from qwen3vl_webui.settings import DEMO_MODEL, MODELS, Hub, Quantization

log = logging.getLogger(__name__)

MODEL_TYPES = {"qwen3_vl", "qwen3_vl_moe"}
FILES = ["*.json", "*.safetensors", "*.txt", "*.jinja"]  # what is fetched: never pickles or code
UNQUANTIZED = ["model.visual", "lm_head"]  # full-name prefixes; "visual" alone would not match
OVERHEAD = 1.6 * 2**30  # bytes beside weights and KV: CUDA context, a prefill chunk, fragmentation (calculated)
ROOM_FOR_TOKENS = 32_768  # what `auto` keeps room for beside the weights
QUANTIZED_SIZE = {"none": 1.0, "8bit": 0.51, "4bit": 0.29}  # of bf16, scales included; per quantized matrix


@dataclass(frozen=True)
class Progress:
    """`done` of `total` are bytes while downloading and tensors while loading; `total` 0 when it is not known yet."""

    stage: str  # "finding", "downloading", "loading"
    done: int = 0
    total: int = 0

    @property
    def sentence(self) -> str:
        if self.stage == "downloading":
            if not self.total:
                return "Downloading the weights."
            return f"Downloading the weights: {self.done / 1e9:.1f} of {self.total / 1e9:.1f} GB."
        if self.stage == "loading":
            return (
                f"Loading the weights: {self.done} of {self.total} tensors." if self.total else "Loading the weights."
            )
        return "Looking for the weights."


Report = Callable[[Progress], None]


def quiet(progress: Progress) -> None:
    """Tells nobody."""


@dataclass(frozen=True, eq=False)
class LoadedModel:
    """The modules of one checkpoint, in evaluation mode, without gradients.

    `text` takes `inputs_embeds`; `vision` returns merged and DeepStack features; `dtype` is what the text model
    computes in (its linears may be quantized). `rope` is the checkpoint's own plan, good for `trained_positions`.
    `eos_ids` end an answer.
    """

    folder: Path
    model: nn.Module
    text: nn.Module
    vision: nn.Module
    embed: nn.Module
    lm_head: nn.Module
    config: Any
    vocabulary: Vocabulary
    eos_ids: frozenset[int]
    rope: RopePlan
    trained_positions: int
    device: torch.device
    dtype: torch.dtype
    info: ModelInfo

    @property
    def tokenizer(self) -> Tokenizer:
        return self.vocabulary.tokenizer


# Finding and fetching


def resolve(name: str, hub: Hub = "huggingface", progress: Report = quiet) -> tuple[str, Path]:
    """The model's name for people and the folder of its checkpoint, fetched first when it is not on disk.

    `name` is a short name of `settings.MODELS`, a folder, or a hub id. Raises NotFound or EngineError with a sentence.
    """
    progress(Progress("finding"))
    target = MODELS.get(name, name)
    if name == "demo" and not Path(target).is_dir():
        raise NotFound(f"The bundled demo model is missing ({target}): choose one of {short_names()} with --model.")
    if Path(target).expanduser().is_dir():
        folder = Path(target).expanduser().resolve()
        return name if name in MODELS else folder.name, folder
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", target):
        raise NotFound(f"There is no model {name!r}: choose {short_names()}, a hub id such as Qwen/..., or a folder.")
    if hub == "modelscope":
        return name, fetch_from_modelscope(target, progress)
    return name, fetch_from_huggingface(target, progress)


def resolve_auto(hub: Hub = "huggingface", progress: Report = quiet) -> tuple[str, Path]:
    """The 4B instruct model where there is CUDA and its weights can be had, else the bundled demo model."""
    if torch.cuda.is_available():
        try:
            return resolve("4b", hub, progress)
        except (NotFound, EngineError) as error:
            log.warning("%s The demo model answers instead.", error.sentence)
    if not DEMO_MODEL.is_dir():
        raise NotFound(
            f"The bundled demo model is missing ({DEMO_MODEL}), and the 4B model needs a CUDA device and its weights: "
            f"choose one of {short_names()} with --model."
        )
    return "demo", DEMO_MODEL


def short_names() -> str:
    return ", ".join(name for name in MODELS if not name.endswith("-thinking"))


def missing_files(folder: Path) -> list[str]:
    """Names of the files a checkpoint needs and this folder lacks."""
    missing = [] if (folder / "config.json").is_file() else ["config.json"]
    if not (folder / "tokenizer.json").is_file():
        missing += [name for name in ("vocab.json", "merges.txt") if not (folder / name).is_file()]
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        shards = sorted(set(read_json(index)["weight_map"].values()))
        missing += [shard for shard in shards if not (folder / shard).is_file()]
    elif not (folder / "model.safetensors").is_file():
        missing.append("model.safetensors")
    return missing


def read_json(path: Path) -> dict[str, Any]:
    """Empty when the file is not there. Raises Unsupported when it is not JSON."""
    if not path.is_file():
        return {}
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise Unsupported(f"{path} is damaged ({error}): fetch the checkpoint again.") from error
    if not isinstance(content, dict):
        raise Unsupported(f"{path} is damaged: fetch the checkpoint again.")
    return content


def fetch_from_huggingface(model_id: str, progress: Report) -> Path:
    """The snapshot's folder; nothing is asked of the hub when it is complete on disk. Honours HF_ENDPOINT."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import GatedRepoError, LocalEntryNotFoundError, RepositoryNotFoundError

    try:
        folder = Path(snapshot_download(model_id, allow_patterns=FILES, local_files_only=True))
        if not missing_files(folder):
            return folder
    except LocalEntryNotFoundError:
        log.info("%s is not complete on disk.", model_id)
    progress(Progress("downloading"))
    endpoint = os.environ.get("HF_ENDPOINT") or None
    try:
        return Path(
            snapshot_download(model_id, allow_patterns=FILES, endpoint=endpoint, tqdm_class=download_bar(progress))
        )
    except GatedRepoError as error:
        raise EngineError(
            f"{model_id} asks for consent: accept its terms on the hub, then sign in with `hf auth login`."
        ) from error
    except RepositoryNotFoundError as error:
        raise NotFound(f"The hub has no model {model_id} (or it is private: sign in with `hf auth login`).") from error
    except LocalEntryNotFoundError as error:
        raise EngineError(unreachable(model_id, "huggingface")) from error
    except Exception as error:  # whatever the transport raises: a broken connection, a full disk, a proxy
        raise EngineError(f"Fetching {model_id} failed ({error}). Start again to go on where it stopped.") from error


def unreachable(model_id: str, hub: Hub) -> str:
    other = "set HF_ENDPOINT to a mirror, use --hub modelscope" if hub == "huggingface" else "use --hub huggingface"
    return (
        f"The weights of {model_id} are not on this machine and the hub cannot be reached: check the network, {other}, "
        "or start with --model demo."
    )


def download_bar(progress: Report) -> type:
    """A silent stand-in for a progress bar of huggingface_hub: reports bytes, whichever of its bars moves first."""
    from tqdm.auto import tqdm

    seen = {"done": 0, "total": 0}

    class DownloadBar(tqdm):
        def display(self, *_: Any, **__: Any) -> bool:
            return True

        def update(self, n: float | None = 1) -> bool | None:
            moved = super().update(n)
            if self.unit == "B":
                seen["done"] = max(seen["done"], int(self.n))
                seen["total"] = max(seen["total"], int(self.total or 0))
                progress(Progress("downloading", seen["done"], max(seen["done"], seen["total"])))
            return moved

    return DownloadBar


def fetch_from_modelscope(model_id: str, progress: Report) -> Path:
    try:
        from modelscope import snapshot_download
        from modelscope.hub.callback import ProgressCallback
    except ImportError as error:
        raise Unsupported("--hub modelscope needs its client: run `pip install modelscope`.") from error
    try:
        folder = Path(snapshot_download(model_id, allow_patterns=FILES, local_files_only=True))
        if not missing_files(folder):
            return folder
    except Exception as error:  # its client raises ValueError, its own errors and others for "not here"
        log.info("%s is not complete on disk (%s).", model_id, error)
    progress(Progress("downloading"))
    sizes: dict[str, int] = {}
    done: dict[str, int] = {}

    class Callback(ProgressCallback):
        def __init__(self, filename: str, file_size: int) -> None:
            super().__init__(filename, file_size)
            sizes[filename], done[filename] = file_size, 0

        def update(self, size: int) -> None:
            done[self.filename] += size
            progress(Progress("downloading", sum(done.values()), sum(sizes.values())))

        def end(self) -> None:
            done[self.filename] = sizes[self.filename]

    try:
        return Path(snapshot_download(model_id, allow_patterns=FILES, progress_callbacks=[Callback]))
    except Exception as error:  # the client has no one error for "cannot reach" and "not there"
        if "404" in str(error) or "not exist" in str(error).lower():
            raise NotFound(f"ModelScope has no model {model_id}.") from error
        raise EngineError(f"{unreachable(model_id, 'modelscope')} ({error})") from error


# Checking


def check(folder: Path) -> dict[str, Any]:
    """The checkpoint's config.json, once it is certain that everything it asks for is done here.

    Raises NotFound for missing files, Unsupported for anything that is not the Qwen3-VL we compute.
    """
    config = read_json(folder / "config.json")
    kind = config.get("model_type")
    if config and kind not in MODEL_TYPES:
        raise Unsupported(f"{folder.name} is not a Qwen3-VL checkpoint (its type is {kind!r}): choose {short_names()}.")
    if missing := missing_files(folder):
        raise NotFound(f"The checkpoint in {folder} lacks {', '.join(missing)}: fetch it again.")
    vision = config.get("vision_config") or {}
    fixed = {"patch_size": PATCH, "spatial_merge_size": MERGE, "temporal_patch_size": 2, "in_channels": 3}
    for name, value in fixed.items():
        if vision.get(name, value) != value:
            raise Unsupported(f"{folder.name} has vision {name} {vision[name]}; only {value} is done here.")
    text = config.get("text_config") or {}
    ropes = [text, text.get("rope_parameters") or {}, text.get("rope_scaling") or {}]
    if not any("rope_theta" in place for place in ropes):  # the library's default would be wrong without a word
        raise Unsupported(f"The config.json of {folder.name} has lost its rope_theta: fetch the checkpoint again.")
    for name in ("preprocessor_config.json", "video_preprocessor_config.json"):
        pixels = read_json(folder / name)
        for key in ("image_mean", "image_std"):
            if pixels.get(key, [0.5] * 3) != [0.5] * 3:
                raise Unsupported(f"{name} of {folder.name} has {key} {pixels[key]}; only 0.5 is done here.")
    return config


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


# Loading


def pick_device(device: str | None) -> torch.device:
    return torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))


def weight_bytes(folder: Path) -> tuple[int, int]:
    """Bytes of all tensors and of the quantizable ones (matrices of the text layers), from the safetensors headers."""
    everything = quantizable = 0
    for file in folder.glob("*.safetensors"):
        with file.open("rb") as stream:
            (length,) = struct.unpack("<Q", stream.read(8))
            header = json.loads(stream.read(length))
        header.pop("__metadata__", None)
        for name, tensor in header.items():
            start, end = tensor["data_offsets"]
            everything += end - start
            if ".layers." in name and len(tensor["shape"]) == 2 and "visual" not in name:
                quantizable += end - start
    return everything, quantizable


def kv_bytes_per_token(text_config: Any, element_size: int = 2) -> int:
    """Of keys and values over all layers."""
    per_layer = 2 * text_config.num_key_value_heads * rope.head_dim_of(text_config) * element_size
    return int(text_config.num_hidden_layers * per_layer)


def pick_quantization(folder: Path, text_config: Any, memory_free: int | None) -> Quantization:
    """The least quantization whose weights leave room for 32K tokens; `none` where memory is not counted (CPU)."""
    if memory_free is None:
        return "none"
    everything, quantizable = weight_bytes(folder)
    for choice in ("none", "8bit", "4bit"):
        weights = everything - quantizable * (1 - QUANTIZED_SIZE[choice])
        if weights + OVERHEAD + ROOM_FOR_TOKENS * kv_bytes_per_token(text_config) <= memory_free:
            return choice
    return "4bit"


def quantization_config(quantization: Quantization, dtype: torch.dtype) -> Any:
    from transformers import BitsAndBytesConfig

    if quantization == "8bit":
        return BitsAndBytesConfig(load_in_8bit=True, llm_int8_skip_modules=UNQUANTIZED)
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_compute_dtype=dtype,
        llm_int8_skip_modules=UNQUANTIZED,
    )


def check_quantized(model: nn.Module) -> None:
    """By module type: some linears of the text layers are quantized, none of the vision tower and not the head."""
    from bitsandbytes.nn import Linear4bit, Linear8bitLt

    quantized = {name for name, module in model.named_modules() if isinstance(module, Linear4bit | Linear8bitLt)}
    wrong = sorted(name for name in quantized if name.startswith(tuple(UNQUANTIZED)))
    if wrong:
        raise EngineError(f"The vision tower or the head was quantized ({wrong[0]}): use --quantization none.")
    if not quantized:
        raise EngineError("No weight was quantized: use --quantization none.")


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
    context_length: int | None = None,
    device: str | None = None,
    progress: Report = quiet,
) -> LoadedModel:
    """Open a model by short name, hub id, folder, or `auto`. `context_length` is in tokens (None: the trained one).

    Computes in bfloat16 on CUDA (float16 with 8bit, which bitsandbytes casts to anyway) and float32 on CPU. Raises
    NotFound, Unsupported, OutOfMemory or EngineError, each with a sentence.
    """
    if quantization not in get_args(Quantization):
        raise Unsupported(f"There is no quantization {quantization!r}: choose none, 8bit, 4bit or auto.")
    called, folder = resolve_auto(hub, progress) if name == "auto" else resolve(name, hub, progress)
    return load_folder(
        called, folder, quantization=quantization, context_length=context_length, device=device, progress=progress
    )


def load_folder(
    name: str,
    folder: Path,
    *,
    quantization: Quantization,
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
    if (config.image_token_id, config.video_token_id) != (vocabulary.image_pad, vocabulary.video_pad):
        raise Unsupported(f"config.json and the tokenizer of {folder.name} disagree: fetch the checkpoint again.")

    memory_free = torch.cuda.mem_get_info(place)[0] if place.type == "cuda" else None
    mixture = config.model_type == "qwen3_vl_moe"
    if quantization == "auto":
        quantization = "none" if mixture else pick_quantization(folder, config.text_config, memory_free)
    if mixture and quantization != "none":
        raise Unsupported(
            f"The experts of {name} cannot be quantized while loading (bitsandbytes reaches linear layers only): "
            "use --quantization none, or a dense model."
        )
    dtype = torch.float32
    if place.type == "cuda":
        dtype = torch.float16 if quantization == "8bit" else torch.bfloat16
    options: dict[str, Any] = {}
    if quantization != "none":
        options["quantization_config"] = quantization_config(quantization, dtype)
    model_class = Qwen3VLMoeForConditionalGeneration if mixture else Qwen3VLForConditionalGeneration
    try:
        with loading_reports(progress):
            model = model_class.from_pretrained(
                folder,
                config=config,
                dtype=dtype,
                device_map={"": str(place)},
                attn_implementation="sdpa",
                fusion_config={"patch_embeddings": True},  # Conv3d is slow on some GPUs; a linear layer is the same
                use_safetensors=True,
                local_files_only=True,
                **options,
            )
    except torch.cuda.OutOfMemoryError as error:
        raise OutOfMemory(
            f"{name} does not fit in the memory of {describe(place)}: use --quantization 4bit or a smaller --model."
        ) from error
    model.requires_grad_(False).eval()
    if quantization != "none":
        check_quantized(model)

    generation = read_json(folder / "generation_config.json")
    eos = generation.get("eos_token_id", [])
    length = context_length or int(config.text_config.max_position_embeddings)
    sampling, sampling_text = published_sampling(generation, raw, thinking=vocabulary.thinking, context_length=length)
    image_pixels, frame_pixels = pixel_limits(folder, raw)
    info = ModelInfo(
        name=name,
        checkpoint=MODELS.get(name, name if "/" in name else str(folder)),
        device=describe(place),
        quantization=quantization,
        context_length=length,
        thinking=vocabulary.thinking,
        demo=folder.resolve() == DEMO_MODEL.resolve(),
        trained=bool((raw.get("qwen3vl_webui") or {}).get("trained", True)),
        image_pixels=image_pixels,
        frame_pixels=frame_pixels,
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
        vocabulary=vocabulary,
        eos_ids=frozenset([vocabulary.im_end, *(eos if isinstance(eos, list) else [eos])]),
        rope=plan,
        trained_positions=int(config.text_config.max_position_embeddings),
        device=place,
        dtype=dtype,
        info=info,
    )


def describe(device: torch.device) -> str:
    return f"cuda ({torch.cuda.get_device_name(device)})" if device.type == "cuda" else device.type
