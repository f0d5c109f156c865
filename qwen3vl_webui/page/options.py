"""What the drawer and the preset of a message ask for, from the browser's JSON; nothing in it is trusted."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import fields, replace
from typing import Any

from qwen3vl_webui.engine.contract import ModelInfo, SamplingParams
from qwen3vl_webui.errors import Unsupported
from qwen3vl_webui.prompt import Options
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
    if key not in FRACTIONS and key not in WHOLE:
        raise Unsupported(f"There is no setting {key[:40]!r} here.", param=key[:40])
    least, most = FRACTIONS.get(key) or WHOLE[key]
    is_number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    if not is_number or not least <= value <= most or (key in WHOLE and value != int(value)):
        raise Unsupported(f"The setting {key.replace('_', ' ')} goes from {least:g} to {most:g}.", param=key)
    return int(value) if key in WHOLE else float(value)


def read_options(values: Mapping[str, Any], model: ModelInfo, *, task: str = "", has_media: bool = True) -> Options:
    """`values` as `clean` leaves them: the model's own sampling, then the preset's, then the person's."""
    sampling = model.sampling if has_media else model.sampling_text
    if task in TASKS:
        sampling = replace(sampling, **TASKS[task].sampling)
    sampling = replace(sampling, **{key: value for key, value in values.items() if key in SAMPLING})
    return Options(sampling=sampling, **{key: value for key, value in values.items() if key not in SAMPLING})
