"""Steps drawn ahead by a process beside the training."""

from __future__ import annotations

from typing import Any

import pytest

from training.batches import Packed, draw_ahead, take
from training.level import Level
from training.tokenizer import build_tokenizer

LEVEL = Level((("video", 1.0),), moments=(2, 4), branches=2)


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return build_tokenizer()


def test_steps_come_until_the_drawing_process_ends(tokenizer: Any) -> None:
    process, queue = draw_ahead(tokenizer, lambda step: (f"test:{step}", [(LEVEL, 1.0)], 400, 400, 0), 0, ahead=1)
    batches, sights = take(process, queue)
    assert sights is None and all(isinstance(packed, Packed) for packed in batches)
    process.terminate()
    process.join()
    assert take(process, queue) is None  # instead of waiting for ever, as after a signal to both
