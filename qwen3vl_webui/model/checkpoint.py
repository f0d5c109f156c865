"""A checkpoint on disk: found by name, fetched when it is not there, and checked before anything is loaded from it.

Only safetensors and text files are fetched, and nothing is asked of a hub when the checkpoint is complete on disk.
"""

from __future__ import annotations

import hashlib
import io
import json
import logging
import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from qwen3vl_webui.errors import EngineError, NotFound, Unsupported
from qwen3vl_webui.model.fp8 import is_fp8
from qwen3vl_webui.model.inputs import MERGE, PATCH
from qwen3vl_webui.settings import DEMO_MODEL, MODELS, Hub

log = logging.getLogger(__name__)

MODEL_TYPES = {"qwen3_vl", "qwen3_vl_moe"}
SAMPLES, SAMPLE_BYTES = 64, 65_536  # of a file of weights, to tell it from another
FILES = ["*.json", "*.safetensors", "*.txt", "*.jinja"]  # what is fetched: never pickles or code


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


class Halt(BaseException):
    """What a listener raised, as it passes through a library: not an Exception, so that no retry loop swallows it."""


class Teller:
    """Passes progress on from inside a library. What the listener raises to stop the work is no failure of the
    library's: it leaves the `with` block as it was raised, whatever the library made of it."""

    def __init__(self, report: Report) -> None:
        self.report = report
        self.stopped: Exception | None = None

    def __call__(self, progress: Progress) -> None:
        try:
            self.report(progress)
        except Exception as stopped:
            self.stopped = stopped
            raise Halt from stopped

    def __enter__(self) -> Teller:
        return self

    def __exit__(self, *_: object) -> None:
        if self.stopped is not None:
            raise self.stopped


def resolve(name: str, hub: Hub = "huggingface", progress: Report = quiet) -> tuple[str, Path]:
    """The model's name for people and the folder of its checkpoint, fetched first when it is not on disk.

    `name` is a short name of `settings.MODELS`, a folder, or a hub id. Raises NotFound or EngineError with a sentence.
    """
    progress(Progress("finding"))
    target = MODELS.get(name, name)
    if name == "demo" and not Path(target).is_dir():
        raise NotFound(f"The bundled demo model is missing ({target}): choose one of {short_names()} with --model.")
    if target and os.path.isdir(os.path.expanduser(target)):
        folder = Path(os.path.expanduser(target)).resolve()
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
    return ", ".join(name for name in MODELS if not name.endswith(("-thinking", "-fp8")))


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
    from huggingface_hub.errors import (
        GatedRepoError,
        HFValidationError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
    )

    try:
        folder = Path(snapshot_download(model_id, allow_patterns=FILES, local_files_only=True))
        if not missing_files(folder):
            return folder
    except HFValidationError as error:
        raise NotFound(f"{model_id!r} is neither a folder nor a hub id such as Qwen/Qwen3-VL-4B-Instruct.") from error
    except LocalEntryNotFoundError:
        log.info("%s is not complete on disk.", model_id)
    progress(Progress("downloading"))
    endpoint = os.environ.get("HF_ENDPOINT") or None
    with Teller(progress) as tell:
        try:
            return Path(
                snapshot_download(model_id, allow_patterns=FILES, endpoint=endpoint, tqdm_class=download_bar(tell))
            )
        except GatedRepoError as error:
            raise EngineError(
                f"{model_id} asks for consent: accept its terms on the hub, then sign in with `hf auth login`."
            ) from error
        except RepositoryNotFoundError as error:
            raise NotFound(
                f"The hub has no model {model_id} (or it is private: sign in with `hf auth login`)."
            ) from error
        except LocalEntryNotFoundError as error:
            raise EngineError(unreachable(model_id, "huggingface")) from error
        except Exception as error:  # whatever the transport raises: a broken connection, a full disk, a proxy
            raise EngineError(
                f"Fetching {model_id} failed ({error}). Start again to go on where it stopped."
            ) from error


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
        def __init__(self, *arguments: Any, **options: Any) -> None:
            super().__init__(*arguments, **options | {"file": io.StringIO()})

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
    tell = Teller(progress)
    sizes: dict[str, int] = {}
    done: dict[str, int] = {}

    class Callback(ProgressCallback):
        def __init__(self, filename: str, file_size: int) -> None:
            super().__init__(filename, file_size)
            sizes[filename], done[filename] = file_size, 0

        def update(self, size: int) -> None:
            done[self.filename] += size
            tell(Progress("downloading", sum(done.values()), sum(sizes.values())))

        def end(self) -> None:
            done[self.filename] = sizes[self.filename]

    with tell:
        try:
            return Path(snapshot_download(model_id, allow_patterns=FILES, progress_callbacks=[Callback]))
        except Exception as error:  # the client has no one error for "cannot reach" and "not there"
            if "404" in str(error) or "not exist" in str(error).lower():
                raise NotFound(f"ModelScope has no model {model_id}.") from error
            raise EngineError(f"{unreachable(model_id, 'modelscope')} ModelScope's client says: {error}") from error


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
    is_fp8(config)  # raises Unsupported for another quantization
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


def damaged(folder: Path, reason: object) -> EngineError:
    return EngineError(f"The weights in {folder} are damaged or incomplete ({reason}): fetch the checkpoint again.")


def revision_of(folder: Path) -> str:
    """Changes whenever the weights or the config do, without reading all of the weights: a hash over config.json and,
    of each file of weights, its name, size, header and samples from beginning to end."""
    whole = hashlib.sha256((folder / "config.json").read_bytes())
    for file in sorted(folder.glob("*.safetensors")):
        size = file.stat().st_size
        whole.update(f"{file.name} {size}".encode())
        with file.open("rb") as stream:
            for index in range(SAMPLES):
                stream.seek(index * max(0, size - SAMPLE_BYTES) // (SAMPLES - 1))
                whole.update(stream.read(SAMPLE_BYTES))
    return whole.hexdigest()
