"""Every knob, read once from flags and `QWEN3VL_*` variables; and the table of models."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import platformdirs

Quantization = Literal["none", "8bit", "4bit", "auto"]
KVCacheKind = Literal["auto", "bf16", "int8", "int4"]
RopeScaling = Literal["auto", "none", "yarn", "ntk"]
Decode = Literal["auto", "eager"]
Hub = Literal["huggingface", "modelscope"]

DEMO_MODEL = Path(__file__).resolve().parent.parent / "assets" / "demo-model"

MODELS: dict[str, str] = {
    "demo": str(DEMO_MODEL),
    "2b": "Qwen/Qwen3-VL-2B-Instruct",
    "2b-thinking": "Qwen/Qwen3-VL-2B-Thinking",
    "4b": "Qwen/Qwen3-VL-4B-Instruct",
    "4b-thinking": "Qwen/Qwen3-VL-4B-Thinking",
    "8b": "Qwen/Qwen3-VL-8B-Instruct",
    "8b-thinking": "Qwen/Qwen3-VL-8B-Thinking",
    "32b": "Qwen/Qwen3-VL-32B-Instruct",
    "32b-thinking": "Qwen/Qwen3-VL-32B-Thinking",
    "2b-fp8": "Qwen/Qwen3-VL-2B-Instruct-FP8",
    "2b-thinking-fp8": "Qwen/Qwen3-VL-2B-Thinking-FP8",
    "4b-fp8": "Qwen/Qwen3-VL-4B-Instruct-FP8",
    "4b-thinking-fp8": "Qwen/Qwen3-VL-4B-Thinking-FP8",
    "8b-fp8": "Qwen/Qwen3-VL-8B-Instruct-FP8",
    "8b-thinking-fp8": "Qwen/Qwen3-VL-8B-Thinking-FP8",
    "32b-fp8": "Qwen/Qwen3-VL-32B-Instruct-FP8",
    "32b-thinking-fp8": "Qwen/Qwen3-VL-32B-Thinking-FP8",
    "30b-a3b": "Qwen/Qwen3-VL-30B-A3B-Instruct",
    "30b-a3b-thinking": "Qwen/Qwen3-VL-30B-A3B-Thinking",
    "235b-a22b": "Qwen/Qwen3-VL-235B-A22B-Instruct",
    "235b-a22b-thinking": "Qwen/Qwen3-VL-235B-A22B-Thinking",
    "30b-a3b-fp8": "Qwen/Qwen3-VL-30B-A3B-Instruct-FP8",
    "30b-a3b-thinking-fp8": "Qwen/Qwen3-VL-30B-A3B-Thinking-FP8",
    "235b-a22b-fp8": "Qwen/Qwen3-VL-235B-A22B-Instruct-FP8",
    "235b-a22b-thinking-fp8": "Qwen/Qwen3-VL-235B-A22B-Thinking-FP8",
}


@dataclass(frozen=True)
class Settings:
    """`model` is a short name, a hub id, a folder or `auto`; `context_length` is in tokens, None: what fits."""

    host: str = "127.0.0.1"
    port: int = 7860
    model: str = "auto"
    quantization: Quantization = "auto"
    context_length: int | None = None
    rope_scaling: RopeScaling = "auto"
    kv_cache: KVCacheKind = "auto"
    decode: Decode = "auto"
    data_dir: Path = Path(platformdirs.user_data_dir("qwen3vl-webui", appauthor=False))
    media_dir: Path | None = None
    hub: Hub = "huggingface"
    api_key: str | None = None
    auth: tuple[str, str] | None = None  # user, password
    open: bool = False
    snapshots: Path | None = None
    snapshots_gb: int = 32
    speech_model: str = "small"  # a size, a hub id or a folder; nothing is fetched before somebody asks for it
    plan: bool = False
    vram: float | None = None  # GiB, for `plan`; None: this machine's card

    @property
    def is_local(self) -> bool:
        """Whether only this machine can reach the server."""
        return self.host in {"127.0.0.1", "localhost", "::1"}

    @property
    def is_protected(self) -> bool:
        return self.auth is not None or self.api_key is not None


def parse_auth(text: str) -> tuple[str, str]:
    user, colon, password = text.partition(":")
    if not (colon and user and password):
        raise argparse.ArgumentTypeError("write --auth as user:password")
    return user, password


def positive(text: str) -> int:
    value = int(text)
    if value <= 0:
        raise argparse.ArgumentTypeError("must be above zero")
    return value


def gibibytes(text: str) -> float:
    value = float(text)
    if not 0 < value < 10_000:
        raise argparse.ArgumentTypeError("write the memory of the card in GiB, such as 24")
    return value


def is_true(text: str) -> bool:
    return text.strip().lower() in {"1", "true", "yes", "on"}


def parser() -> argparse.ArgumentParser:
    flags = argparse.ArgumentParser(
        prog="app.py", description="Chat with pictures, videos and PDFs on your own machine."
    )
    flags.add_argument("--host", help="address to listen on (127.0.0.1: this machine only)")
    flags.add_argument("--port", type=int, help="port to listen on (7860)")
    flags.add_argument("--model", help=f"{', '.join(MODELS)}, a hub id, a folder, or auto")
    flags.add_argument("--quantization", choices=["none", "8bit", "4bit", "auto"], help="weights of the text model")
    flags.add_argument("--context-length", type=positive, help="tokens kept in memory, prompt and answer together")
    flags.add_argument(
        "--rope-scaling",
        choices=["auto", "none", "yarn", "ntk"],
        help="beyond the trained positions: yarn (auto), ntk, or refuse (none)",
    )
    flags.add_argument(
        "--kv-cache",
        choices=["auto", "bf16", "int8", "int4"],
        help="keys and values of the context (auto: the finest that holds it)",
    )
    flags.add_argument(
        "--decode",
        choices=["auto", "eager"],
        help="how tokens are written on CUDA: own kernels (auto), or torch's operations one by one",
    )
    flags.add_argument("--data-dir", type=Path, help="where conversations and files are kept")
    flags.add_argument("--media-dir", type=Path, help="a folder whose files may be opened by path on the page")
    flags.add_argument("--hub", choices=["huggingface", "modelscope"], help="where weights come from")
    flags.add_argument("--api-key", help="key that programs must send")
    flags.add_argument("--auth", type=parse_auth, metavar="USER:PASSWORD", help="who may open the page")
    flags.add_argument("--open", action="store_const", const=True, help="allow anyone to reach a server without key")
    flags.add_argument("--snapshots", type=Path, help="a folder that keeps what the model has read over a restart")
    flags.add_argument("--snapshots-gb", type=positive, metavar="GB", help="most that folder may hold (32)")
    flags.add_argument(
        "--speech-model",
        help="what writes down speech, where faster-whisper is installed: tiny, base, small, large-v3, a folder",
    )
    flags.add_argument("--plan", action="store_const", const=True, help="print what fits this card, and stop")
    flags.add_argument("--vram", type=gibibytes, metavar="GIB", help="memory of the card that --plan is for")
    return flags


def read_settings(arguments: Sequence[str] | None = None, environment: Mapping[str, str] | None = None) -> Settings:
    """Flags win over `QWEN3VL_*` variables, which win over the defaults. Exits with a sentence on a bad value."""
    environment = os.environ if environment is None else environment
    flags = parser()
    from_environment: list[str] = []
    for action in flags._actions:
        name = action.dest
        value = environment.get(f"QWEN3VL_{name.upper()}", "")
        if name == "help" or not value:
            continue
        flag = "--" + name.replace("_", "-")
        if name in ("open", "plan"):
            from_environment += [flag] if is_true(value) else []
        else:
            from_environment += [f"{flag}={value}"]
    if environment.get("SPACE_ID"):
        # A Hugging Face Space is a container behind its own proxy and is public or private as its owner chose there.
        from_environment = ["--host=0.0.0.0", "--open", *from_environment]
    given = vars(flags.parse_args([*from_environment, *(sys.argv[1:] if arguments is None else arguments)]))
    settings = Settings(**{name: value for name, value in given.items() if value is not None})
    if not (settings.is_local or settings.is_protected or settings.open):
        flags.error(
            f"--host {settings.host} lets others reach this server: add --auth user:password or --api-key, "
            "or --open if anyone may use it"
        )
    if settings.media_dir is not None and not settings.media_dir.is_dir():
        flags.error(f"--media-dir {settings.media_dir} is not a folder")
    return settings
