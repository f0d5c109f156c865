"""What is said in a video, laid between the moments the model sees: arithmetic on values, nothing here opens a file."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

from qwen3vl_webui.media.values import Cue, FramePlan

LONGEST_LINE = 12.0  # seconds said in one line: its start is a time the model may cite


def within(cues: Iterable[Cue], start: float, end: float) -> tuple[Cue, ...]:
    """The cues said in [start, end), those that only repeat the words before them left out."""
    kept: list[Cue] = []
    for cue in cues:
        if cue.end < start or cue.start >= end:
            continue
        text = " ".join(cue.text.split())
        if kept and text.startswith(kept[-1].text):  # captions that roll, or stay over several entries
            kept[-1] = Cue(kept[-1].start, max(kept[-1].end, cue.end), text)
        else:
            kept.append(Cue(cue.start, cue.end, text))
    return tuple(kept)


def thinned(cues: Sequence[Cue], share: float) -> tuple[Cue, ...]:
    """About that share of the cues, evenly over the time; all of them from 1 on, none at 0."""
    count = int(len(cues) * share)
    return tuple(cues) if count >= len(cues) else tuple(cues[index * len(cues) // count] for index in range(count))


def written(cues: Sequence[Cue]) -> str:
    """Lines such as `[751.0-763.2] words`, neighbours that follow each other closely on one."""
    lines: list[Cue] = []
    for cue in cues:
        if lines and cue.start - lines[-1].end < 1.0 and cue.end - lines[-1].start <= LONGEST_LINE:
            lines[-1] = Cue(lines[-1].start, max(lines[-1].end, cue.end), f"{lines[-1].text} {cue.text}")
        else:
            lines.append(cue)
    return "".join(f"[{line.start:.1f}-{line.end:.1f}] {line.text}\n" for line in lines)


def woven(plan: FramePlan, cues: Sequence[Cue]) -> tuple[FramePlan, str]:
    """The plan with each cue written before the first label later than its beginning, and what is said after the last
    of them."""
    if not cues:
        return plan, ""
    groups: list[list[Cue]] = [[] for _ in range(len(plan.patches) + 1)]
    stamps, index = plan.stamps, 0
    for cue in sorted(cues, key=lambda cue: cue.start):
        while index < len(stamps) and stamps[index] < cue.start:
            index += 1
        groups[index].append(cue)
    texts = [written(group) for group in groups]
    captions = tuple(("\n" if text and index else "") + text for index, text in enumerate(texts[:-1]))
    return replace(plan, captions=captions), f"\n{texts[-1]}" if texts[-1] else ""
