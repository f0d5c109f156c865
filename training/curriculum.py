"""What is trained when: from one thing in one frame to long clips, each stage left when its skills are learnt."""

from __future__ import annotations

from dataclasses import dataclass, replace

from training.level import Level


@dataclass(frozen=True)
class Stage:
    """`until`: the running accuracy per skill at which the next stage begins; `steps`: at the latest."""

    level: Level
    until: dict[str, float]
    steps: int
    step_tokens: int = 2_400
    batch_tokens: int = 2_400
    sights: int = 64  # pictures per step whose cells are asked directly (`sight.py`)
    kept: float = 0.3  # share of every step that stays with the stage before, so that nothing is forgotten


def shares(**kinds: float) -> tuple[tuple[str, float], ...]:
    return tuple(kinds.items())


SIGHT = Level((), picture_pixels=(12_288, 65_536), longest_text=8, wear=0.3)  # the vision tower alone
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
    shares(picture=3, text=0.3, pictures=0.7, video=6, document=1.3, nothing=0.05),
    picture_pixels=(4096, 9216),
    frame_pixels=(4096, 4096),
    moments=(2, 4),
    pages=(1, 3),
    longest_text=2,
    branches=5,
    wear=0.2,
    runs=0.0,
    seconds=60.0,
    words=0.0,
    pairs=0.0,
    things=4,
    turns=0.1,
    asked=(("name", 2), ("is", 0.7), ("colour", 0.7), ("shape", 0.7), ("count", 2), ("where", 0.4), ("absent", 1.3)),
    asked_of_clips=(("when", 6), ("what_at", 5), ("timeline", 0.3), ("absent", 1)),
)
SECOND = replace(
    FIRST,
    kinds=shares(picture=3, text=0.5, pictures=0.7, video=5, document=1, nothing=0.05),
    picture_pixels=(4096, 16_384),
    frame_pixels=(4096, 8192),
    moments=(2, 12),
    pages=(2, 6),
    longest_text=4,
    wear=0.35,
    runs=0.3,
    pairs=0.1,
    things=6,
    asked=Level.asked,
    asked_of_clips=Level.asked_of_clips,
)
THIRD = replace(
    SECOND,
    asked=(
        ("name", 3),
        ("is", 0.7),
        ("colour", 0.7),
        ("shape", 0.5),
        ("count", 3),
        ("where", 7),
        ("absent", 1.5),
        ("refuse", 0.2),
    ),
    asked_of_clips=(
        ("when", 6),
        ("what_at", 6),
        ("all_times", 3),
        ("span", 0.5),  # the product shows only the span that is asked for: `Level.parts`
        ("timeline", 1.5),
        ("absent", 1.5),
        ("refuse", 0.2),
    ),
    kinds=shares(picture=3, text=1.5, pictures=0.7, video=4, document=1.3, nothing=0.05),
    moments=(4, 32),
    pages=(3, 12),
    longest_text=6,
    branches=8,
    wear=0.5,
    runs=0.5,
    seconds=300.0,
    words=0.1,
)
FOURTH = replace(
    THIRD,
    kinds=shares(picture=4, text=9, pictures=0.6, video=6.5, document=2, nothing=0.05),  # a word costs few tokens
    picture_pixels=(16_384, 65_536),  # letters of 10 px and more
    frame_pixels=(15_360, 24_576),  # what the product takes of most clips
    moments=(5, 44),
    pages=(3, 12),
    longest_text=8,
    lines=0.6,
    branches=12,
    seconds=7200.0,
    parts=0.5,
    crowds=0.6,
    odd=0.05,
    words=0.75,
)
FIFTH = replace(
    FOURTH,
    moments=(20, 120),
    branches=16,
    words=0.35,
)

STAGES = (
    Stage(SIGHT, {"shapes": 0.97, "letters": 0.9}, 3000, 0, 0, 112),
    Stage(WARM, {"name": 0.8, "shape": 0.85}, 3000, 3_000, 3_000),
    Stage(FIRST, {"name": 0.85, "when": 0.85, "what_at": 0.8}, 6000),
    Stage(SECOND, {"name": 0.88, "when": 0.85, "what_at": 0.85, "page": 0.8}, 6000, 3_200, 3_200),
    Stage(THIRD, {"name": 0.9, "when": 0.88, "what_at": 0.85, "page": 0.85}, 8000, 4_800, 4_800, 96),
    Stage(
        FOURTH, {"name": 0.95, "when": 0.93, "what_at": 0.9, "page": 0.9, "read": 0.8}, 20_000, 4_000, 4_000, 64, 0.1
    ),
    Stage(FIFTH, {}, 10**9, 12_000, 12_000),
)


def levels_of(stage: int) -> list[tuple[Level, float]]:
    if stage <= 1:
        return [(STAGES[stage].level, 1.0)]
    now = STAGES[stage]
    return [(now.level, 1 - now.kept), (STAGES[stage - 1].level, now.kept)]
