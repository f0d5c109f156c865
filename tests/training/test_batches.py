"""Steps drawn ahead by a process beside the training."""

from __future__ import annotations

from training.batches import Packed, draw_ahead, take
from training.level import Level
from training.tokenizer import build_tokenizer

LEVEL = Level((("video", 1.0),), moments=(2, 4), branches=2)


def test_steps_come_until_the_drawing_process_ends() -> None:
    def plan(step: int) -> tuple[str, list[tuple[Level, float]], int, int, int]:
        return f"test:{step}", [(LEVEL, 1.0)], 400, 400, 0

    process, queue = draw_ahead(build_tokenizer(), plan, 0, ahead=1)
    batches, sights = take(process, queue)
    assert sights is None and all(isinstance(packed, Packed) for packed in batches)
    process.terminate()
    process.join()
    assert take(process, queue) is None  # instead of waiting for ever, as after a signal to both
