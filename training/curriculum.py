"""What is trained when: from one thing in one frame to long clips, each stage left when its skills are learnt."""

from __future__ import annotations

from dataclasses import dataclass, replace

from training.cases import Level


@dataclass(frozen=True)
class Stage:
    """`until`: the running accuracy per skill at which the next stage begins; `steps`: at the latest."""

    level: Level
    until: dict[str, float]
    steps: int
    step_tokens: int = 4_000
    batch_tokens: int = 4_000
    sights: int = 48  # pictures per step whose cells are asked directly (`sight.py`)


def shares(**kinds: float) -> tuple[tuple[str, float], ...]:
    return tuple(kinds.items())


SIGHT = Level((), picture_pixels=(4096, 12_288), longest_text=6, wear=0.3)  # the vision tower alone
WARM = Level(  # one thing, large: attention to pictures and the features of colour and shape come first
    shares(picture=6, text=0.5, video=1),
    picture_pixels=(4096, 4096),
    frame_pixels=(4096, 4096),
    moments=(1, 2),
    longest_text=1,
    branches=4,
    wear=0.1,
    runs=0.0,
    turns=0.0,
    asked=(("name", 3), ("is", 0.5), ("colour", 2), ("shape", 2), ("absent", 0.5)),
    things=1,
)
FIRST = Level(
    shares(picture=4, text=2, pictures=0.5, video=4, document=1, nothing=0.05),
    picture_pixels=(4096, 9216),
    frame_pixels=(4096, 4096),
    moments=(1, 3),
    pages=(1, 3),
    longest_text=2,
    branches=3,
    wear=0.2,
    runs=0.0,
    turns=0.1,
)
SECOND = replace(
    FIRST, picture_pixels=(4096, 16384), frame_pixels=(4096, 6144), moments=(2, 6), pages=(2, 5), runs=0.15
)
SECOND = replace(
    SECOND,
    longest_text=4,
    wear=0.35,
    branches=4,
    kinds=shares(picture=3, text=3, pictures=0.7, video=4, document=1, nothing=0.05),
)
THIRD = replace(
    SECOND, picture_pixels=(4096, 25600), frame_pixels=(4096, 9216), moments=(4, 16), pages=(3, 8), runs=0.3
)
THIRD = replace(THIRD, longest_text=6, wear=0.5, branches=6)
FOURTH = replace(
    THIRD, picture_pixels=(4096, 36864), frame_pixels=(4096, 9216), runs=0.5, moments=(6, 40), pages=(4, 12)
)
FOURTH = replace(
    FOURTH,
    longest_text=8,
    branches=8,
    kinds=shares(picture=3, text=4, pictures=0.7, video=3, document=0.7, nothing=0.05),
)
FIFTH = replace(FOURTH, moments=(20, 120), branches=12, runs=0.7)

STAGES = (
    Stage(SIGHT, {"shapes": 0.97, "letters": 0.9}, 2500, 0, 0, 128),
    Stage(WARM, {"name": 0.9}, 3000, 3_000, 3_000),
    Stage(FIRST, {"name": 0.85, "when": 0.85, "what_at": 0.8}, 6000),
    Stage(SECOND, {"name": 0.9, "when": 0.85, "what_at": 0.85, "page": 0.8}, 6000),
    Stage(THIRD, {"name": 0.93, "when": 0.88, "what_at": 0.85, "page": 0.85}, 8000),
    Stage(FOURTH, {"name": 0.95, "when": 0.93, "what_at": 0.9, "page": 0.9, "read": 0.8}, 20_000, 8_000, 8_000),
    Stage(FIFTH, {}, 10**9, 12_000, 12_000),
)
KEPT = 0.3  # share of every step that stays with the stage before, so that nothing is forgotten


def levels_of(stage: int) -> list[tuple[Level, float]]:
    if stage <= 1:
        return [(STAGES[stage].level, 1.0)]
    return [(STAGES[stage].level, 1 - KEPT), (STAGES[stage - 1].level, KEPT)]
