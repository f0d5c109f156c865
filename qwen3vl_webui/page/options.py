"""What the drawer and the preset of a message ask for, from the browser's JSON; nothing in it is trusted."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import fields, replace
from typing import Any

from qwen3vl_webui.draft import Options
from qwen3vl_webui.engine.contract import ModelInfo, SamplingParams
from qwen3vl_webui.errors import Unsupported
from qwen3vl_webui.tasks import TASKS

# Key -> (least, most): the ranges of the drawer.
FRACTIONS: dict[str, tuple[float, float]] = {
    "temperature": (0.0, 2.0),
    "top_p": (0.01, 1.0),
    "min_p": (0.0, 1.0),
    "presence_penalty": (-2.0, 2.0),
    "repetition_penalty": (0.5, 2.0),
    "fps": (0.001, 60.0),
    "start": (0.0, 1e7),
    "end": (0.0, 1e7),
}
WHOLE: dict[str, tuple[int, int]] = {
    "top_k": (0, 1000),
    "seed": (0, 2**63 - 1),
    "max_tokens": (1, 1_048_576),
    "thinking_budget": (1, 1_048_576),
    "most_moments": (1, 100_000),
}
TEXTS: dict[str, int] = {"system": 100_000, "pages": 1000}  # characters
MOST_CHOSEN = 2000  # moments of one video
SAMPLING = {field.name for field in fields(SamplingParams)}


def clean(values: Any) -> dict[str, Any]:
    """The known settings with their ranges kept; raises Unsupported on anything else."""
    if values is None:
        return {}
    if not isinstance(values, Mapping):
        raise Unsupported("The settings of this message cannot be read. Reload the page.")
    return {key: _checked(key, value) for key, value in values.items() if value is not None and value != ""}


def _checked(key: str, value: Any) -> Any:
    if key in TEXTS:
        if not isinstance(value, str) or len(value) > TEXTS[key]:
            raise Unsupported(f"The setting {key} is a text of at most {TEXTS[key]:,} characters.", param=key)
        return value
    if key in {"whole", "subtitles", "zoom"}:
        return value is True
    if key == "moments":
        return _moments(value)
    if key not in FRACTIONS and key not in WHOLE:
        raise Unsupported(f"There is no setting {key[:40]!r} here.", param=key[:40])
    least, most = FRACTIONS.get(key) or WHOLE[key]
    is_number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    if not is_number or not least <= value <= most or (key in WHOLE and value != int(value)):
        raise Unsupported(f"The setting {key.replace('_', ' ')} goes from {least:g} to {most:g}.", param=key)
    return int(value) if key in WHOLE else float(value)


def _moments(value: Any) -> dict[str, list[list[float]]]:
    """File id -> the seconds of the two frames of each moment chosen by hand."""

    def is_second(number: Any) -> bool:
        return isinstance(number, int | float) and not isinstance(number, bool) and 0 <= number < 1e7

    def is_pair(pair: Any) -> bool:
        return isinstance(pair, list) and len(pair) == 2 and all(map(is_second, pair))

    pairs = list(value.values()) if isinstance(value, Mapping) and len(value) <= 64 else [None]
    if not all(isinstance(each, list) and len(each) <= MOST_CHOSEN and all(map(is_pair, each)) for each in pairs):
        raise Unsupported(f"Choose at most {MOST_CHOSEN:,} moments of a video.", param="moments")
    return {str(file)[:80]: [[float(first), float(second)] for first, second in each] for file, each in value.items()}


def read_options(values: Mapping[str, Any], model: ModelInfo, *, task: str = "", has_media: bool = True) -> Options:
    """`values` as `clean` leaves them: the model's own sampling, then the preset's, then the person's."""
    sampling = model.sampling if has_media else model.sampling_text
    if task in TASKS:
        sampling = replace(sampling, **TASKS[task].sampling)
    sampling = replace(sampling, **{key: value for key, value in values.items() if key in SAMPLING})
    others = {key: value for key, value in values.items() if key not in {*SAMPLING, "zoom"}}
    if "moments" in others:
        chosen = others["moments"].items()
        others["moments"] = {file: tuple((first, second) for first, second in pairs) for file, pairs in chosen}
    return Options(sampling=sampling, **others)
