"""How far a model finds its way beyond the positions it was trained on: no scaling, frozen NTK and YaRN.

    python -m benchmarks.positions --seed 7 [--model demo] [--trained 512] [--plot docs/positions.svg]

Long films in which something is to be seen at twelve of their seconds only: asked when each thing appears and what is
shown at its second, in English and Chinese. The films are as long as it takes to fill a half, the whole, twice and four
times the trained positions; each is read under each plan (within the trained positions there is only one). `--trained`
counts as trained what a model really saw, where that is less than what its configuration says. Real files, decoded and
laid out by the product. Prints JSON: right answers per plan and reach; `--plot` draws them.
"""

from __future__ import annotations

import argparse
import copy
import datetime
import json
import tempfile
from collections.abc import Sequence
from pathlib import Path
from random import Random
from typing import Any

import torch

from benchmarks.accuracy import write_clip
from benchmarks.reuse import device_name
from qwen3vl_webui.draft import Attached, Draft, Options
from qwen3vl_webui.engine.contract import TokenEvent
from qwen3vl_webui.engine.local import LocalEngine
from qwen3vl_webui.media.upload import open_upload
from qwen3vl_webui.model.loading import load
from qwen3vl_webui.model.rope import Chosen, Rope, RopePlan, native, ntk, trained_positions, yarn
from qwen3vl_webui.prompt import lay_out
from training import questions
from training.clips import clock
from training.evaluate import is_right
from training.exchanges import Exchange, Moment, ask, called
from training.scenes import any_name, draw_things, empty

REACHES = (0.5, 1.0, 2.0, 4.0)
EVENTS = 12
SIDE = 96  # pixels: nine cells a moment
FULL = 0.95  # share of the reach a film fills; the rest is for the question and the answer
COLOURS = {"none": "#c0392b", "ntk": "#2471a3", "yarn": "#1e8449"}


class OnePlan:
    """Stands where the engine's own choice of a plan stands, and knows no limit."""

    most_positions = 1 << 30

    def __init__(self, plan: RopePlan, engine: LocalEngine, trained: int) -> None:
        self.chosen = Chosen(Rope(plan, engine._loaded.device, engine._loaded.dtype), trained)

    def choose(self, conversation: str, positions: int) -> Chosen:
        return self.chosen


def film(path: Path, seconds: int, seed: str) -> list[Exchange]:
    """Written to `path`; what may be asked about it."""
    random = Random(seed)
    names = set()
    while len(names) < EVENTS:
        names.add(any_name(random))
    places = sorted(random.sample(range(seconds), EVENTS))
    blank = empty(SIDE, SIDE, random, wear=0.2).pixels
    things = dict(zip(places, random.sample(sorted(names), EVENTS), strict=True))
    moments = [
        Moment(float(second), draw_things([things[second]], SIDE, SIDE, random, wear=0.2).pixels)
        if second in things
        else Moment(float(second), blank)
        for second in range(seconds)
    ]
    write_clip(path, moments)
    asked = []
    for number, (second, name) in enumerate(things.items()):
        language = ("en", "zh")[number % 2]
        told = questions.thing(*name, language)
        stamp = second + 0.25  # between the two frames of its patch
        answer = questions.when_answer(told, stamp, language)
        asked.append(ask("when", random, language, answer, thing=called(name, language, random)))
        item = told if language == "zh" else questions.a(told)
        answer = questions.moments_answer([(stamp, item)], language)
        asked.append(ask("what_at", random, language, answer, time=clock(second, language, random)))
    return asked


def measure(model: str, seed: str, films: int, threads: int, trained: int | None = None) -> dict[str, Any]:
    torch.set_num_threads(threads)
    loaded = load(model)
    text = copy.deepcopy(loaded.config.text_config)
    if trained:
        text.max_position_embeddings = trained
    trained = trained_positions(text)
    engine = LocalEngine(loaded, context_length=trained * 64)
    points: list[dict[str, Any]] = []
    for reach in REACHES:
        plans = {"none": native(text)}
        if reach > 1:
            plans |= {"ntk": ntk(text, reach), "yarn": yarn(text, reach)}
        right = {name: {"when": [0, 0], "what_at": [0, 0]} for name in plans}
        used = seconds = 0
        for number in range(films):
            with tempfile.TemporaryDirectory() as folder:
                path = Path(folder) / "film.mp4"
                seconds = seconds or seconds_for(engine, Path(folder), trained, reach)
                exchanges = film(path, seconds, f"positions:{seed}:{reach}:{number}")
                clip = Attached(open_upload(path), name=path.name)
                for name, plan in plans.items():
                    engine._ropes = OnePlan(plan, engine, trained)  # type: ignore[assignment]
                    for exchange in exchanges:
                        # As one conversation per film and plan: the film is read once.
                        answer, used = answered(engine, clip, exchange.question, seconds, f"{reach}:{number}:{name}")
                        cell = right[name][exchange.skill]
                        cell[0] += is_right(exchange, answer)
                        cell[1] += 1
        points.append({"reach": reach, "moments": seconds, "positions": used, "right": right})
    return {
        "model": model,
        "trained_positions": trained,
        "device": device_name(loaded.device),
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "seed": seed,
        "points": points,
    }


def seconds_for(engine: LocalEngine, folder: Path, trained: int, reach: float) -> int:
    """How long a film must be: from what one minute costs."""
    path = folder / "minute.mp4"
    film(path, 60, "minute")
    engine._ropes = OnePlan(native(engine._loaded.config.text_config), engine, trained)  # type: ignore[assignment]
    clip = Attached(open_upload(path), name=path.name)
    request = lay_out([Draft("user", (clip, "?"))], engine, Options(most_moments=60, video_tokens=1 << 20)).request
    return int(FULL * reach * trained / (engine.plan(request).positions / 60))


def answered(engine: LocalEngine, clip: Attached, question: str, moments: int, conversation: str) -> tuple[str, int]:
    options = Options(most_moments=moments, video_tokens=1 << 20)
    request = lay_out([Draft("user", (clip, question))], engine, options, conversation=conversation).request
    events = engine.generate(request)
    text = "".join(event.text for event in events if isinstance(event, TokenEvent) and not event.thinking)
    return text, engine.plan(request).positions


def share(counts: dict[str, list[int]]) -> float:
    return sum(right for right, _ in counts.values()) / max(1, sum(asked for _, asked in counts.values()))


def plot(report: dict[str, Any]) -> str:
    """An SVG: share of right answers over the reach, a line per plan."""
    width, height, left, top = 560, 320, 60, 40
    right, bottom = width - 130, height - 50
    points: Sequence[dict[str, Any]] = report["points"]

    def x(number: int) -> float:
        return left + (right - left) * number / (len(points) - 1)

    def y(value: float) -> float:
        return bottom - (bottom - top) * value

    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" font-family="sans-serif" '
        'font-size="13">',
        f'<rect width="{width}" height="{height}" fill="white"/>',
        f'<text x="{left}" y="22">Right answers by positions, {report["model"]}, {report["date"]}</text>',
    ]
    for tick in (0.0, 0.25, 0.5, 0.75, 1.0):
        lines.append(f'<line x1="{left}" x2="{right}" y1="{y(tick):.0f}" y2="{y(tick):.0f}" stroke="#ddd"/>')
        lines.append(f'<text x="{left - 8}" y="{y(tick) + 4:.0f}" text-anchor="end">{tick:.0%}</text>')
    for number, point in enumerate(points):
        label = f"{point['reach']:g}x"
        lines.append(f'<text x="{x(number):.0f}" y="{bottom + 20}" text-anchor="middle">{label}</text>')
    lines.append(
        f'<text x="{(left + right) / 2:.0f}" y="{bottom + 40}" text-anchor="middle">'
        f"times the {report['trained_positions']:,} trained positions</text>"
    )
    for row, (name, colour) in enumerate(COLOURS.items()):
        known = [(n, share(p["right"].get(name, p["right"]["none"]))) for n, p in enumerate(points)]
        path = " ".join(f"{x(n):.1f},{y(value):.1f}" for n, value in known)
        lines.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2"/>')
        lines.extend(f'<circle cx="{x(n):.1f}" cy="{y(value):.1f}" r="3.5" fill="{colour}"/>' for n, value in known)
        lines.append(f'<text x="{right + 14}" y="{top + 20 * row + 4}" fill="{colour}">{name}</text>')
    return "\n".join([*lines, "</svg>\n"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", required=True)
    parser.add_argument("--model", default="demo")
    parser.add_argument("--trained", type=int, help="positions to count as trained; default: the checkpoint's")
    parser.add_argument("--films", type=int, default=3, help="per reach; 24 questions each")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--plot", type=Path, help="an SVG file to write")
    args = parser.parse_args()
    report = measure(args.model, args.seed, args.films, args.threads, args.trained)
    if args.plot:
        args.plot.write_text(plot(report))
    print(json.dumps(report))


if __name__ == "__main__":
    main()
