"""Presets are usable as they stand."""

from dataclasses import replace

from qwen3vl_webui.engine.contract import SamplingParams
from qwen3vl_webui.tasks import TASKS


def test_every_preset_speaks_both_languages_and_sets_known_fields() -> None:
    for name, task in TASKS.items():
        assert task.name == name
        assert set(task.title) == set(task.question) == {"en", "zh"}
        assert task.kinds
        replace(SamplingParams(), **task.sampling)
