from __future__ import annotations

import random

import pytest

from qwen3vl_webui.model.pace import Pace
from qwen3vl_webui.model.planner import KNOWN

TOTAL, CHUNK = 262_144, 2048


def real(start: int, end: int, level: float, slope: float) -> float:
    return level * (end - start) + slope * (end * end - start * start) / 2


def read(pace: Pace, end: int, level: float, slope: float, *, begin: int = 0, noise: float = 0.0) -> None:
    draw = random.Random(0)
    for start in range(begin, end, CHUNK):
        pace.learn(start, start + CHUNK, real(start, start + CHUNK, level, slope) * (1 + draw.uniform(-noise, noise)))


def test_nothing_is_told_before_anything_is_known() -> None:
    assert Pace(1e-4).seconds(0, 100) is None


@pytest.mark.parametrize("error", [0.5, 1.0, 2.0])
def test_the_growth_is_expected_from_the_first_chunk_on_and_then_learnt(error: float) -> None:
    """The device does the pairs `error` times as fast as its other work."""
    growth = KNOWN["4b"].growth
    pace, level = Pace(growth), 1e-4
    slope = level * growth / error
    for done, near in ((CHUNK, 1.1 * max(error, 1 / error)), (TOTAL // 16, 1.2), (TOTAL // 4, 1.1)):
        pace = Pace(growth)
        read(pace, done, level, slope, noise=0.05)
        told, expected = pace.seconds(done, TOTAL), real(done, TOTAL, level, slope)
        assert told is not None and expected / near < told < expected * near
    flat = level * (TOTAL - CHUNK)  # what the first chunk's pace alone would tell
    assert real(CHUNK, TOTAL, level, slope) > 4 * flat


def test_a_prompt_whose_beginning_was_kept_starts_at_the_right_pace() -> None:
    growth = KNOWN["4b"].growth
    pace, level = Pace(growth), 1e-4
    read(pace, 202_048, level, level * growth, begin=200_000)
    assert pace.seconds(202_048, TOTAL) == pytest.approx(real(202_048, TOTAL, level, level * growth), rel=0.05)


def test_when_others_come_the_rest_takes_longer() -> None:
    growth = KNOWN["4b"].growth
    pace, level = Pace(growth), 1e-4
    slope = level * growth
    read(pace, TOTAL // 2, level, slope)
    read(pace, TOTAL // 2 + 12 * CHUNK, 2 * level, 2 * slope, begin=TOTAL // 2)
    rest = TOTAL // 2 + 12 * CHUNK, TOTAL
    told = pace.seconds(*rest)
    assert told is not None and 1.6 < told / real(*rest, level, slope) < 2.6


def test_a_slope_below_zero_is_none() -> None:
    pace = Pace(0.0)
    for start, seconds in ((0, 4.0), (100, 3.0), (200, 1.0)):
        pace.learn(start, start + 100, seconds)
    assert pace.seconds(300, 400) == pytest.approx(2.0, rel=0.7)
    told = pace.seconds(300, 300)
    assert told == 0


def test_the_growth_of_the_published_models() -> None:
    """Of the operations: twice the weights a token meets, and four for each channel of a head and token before it."""
    assert KNOWN["4b"].growth == pytest.approx(8.1e-5, rel=0.03)
    assert KNOWN["30b-a3b"].growth > 1.5 * KNOWN["4b"].growth  # few of its experts work on a token
