"""How near the second is that a model names, in films of ten minutes and two hours, with and without the closer look.

    python -m benchmarks.moments --seed 7 --films 4
    python -m benchmarks.moments --seed 7 --hours 2 --model 4b

Each film shows one or two coloured shapes at a time, some of them again later, and nothing in between; it is written
as H.264 and goes through the product: sandbox, storyboard, plan, engine, zoom. Prints JSON: the error in seconds of
`when` (median and 95th percentile, and how many were answered with a time at all), recall and precision of `all_times`
within one second. A seed that was used to choose or tune anything proves nothing.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

import av
import numpy as np

from qwen3vl_webui.engine.contract import Engine, Event, TokenEvent
from qwen3vl_webui.media import storyboard
from qwen3vl_webui.media.upload import open_upload
from qwen3vl_webui.media.values import Clip
from qwen3vl_webui.prompt import Attached, Draft, lay_out
from qwen3vl_webui.times import find_times
from qwen3vl_webui.zoom import Closer, look_closer
from training import questions as q
from training.scenes import any_name, draw_things, empty

FRAMES_PER_SECOND = 10
SIZE = (320, 192)
SCENES = 30
NEAR = 1.0  # seconds within which a found time counts


@dataclass(frozen=True)
class Shown:
    """What is on the screen from `start` on."""

    start: float
    name: tuple[str, str] | None
    pixels: np.ndarray


def draw_film(seconds: float, random: Random) -> list[Shown]:
    """Scenes of uneven length; about one in five things comes again."""
    cuts = sorted(random.sample(range(FRAMES_PER_SECOND, round(seconds * FRAMES_PER_SECOND) - 20), SCENES - 1))
    starts = [0.0] + [cut / FRAMES_PER_SECOND for cut in cuts]
    scenes: list[Shown] = []
    seen: list[tuple[str, str]] = []
    for start in starts:
        previous = scenes[-1].name if scenes else None
        if random.random() < 0.1 and previous is not None:
            scenes.append(Shown(start, None, empty(*SIZE, random, wear=0.3).pixels))
            continue
        name = random.choice(seen) if seen and random.random() < 0.2 else any_name(random)
        while name == previous:
            name = any_name(random)
        seen.append(name)
        scenes.append(Shown(start, name, draw_things([name], *SIZE, random, wear=0.3).pixels))
    return scenes


def write_film(path: Path, scenes: list[Shown], seconds: float) -> None:
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=FRAMES_PER_SECOND)
        stream.width, stream.height, stream.pix_fmt = *SIZE, "yuv420p"
        stream.options = {"crf": "26", "preset": "ultrafast", "g": "250"}
        ends = [scene.start for scene in scenes[1:]] + [seconds]
        for scene, end in zip(scenes, ends, strict=True):
            frame = av.VideoFrame.from_ndarray(scene.pixels, format="rgb24").reformat(format="yuv420p")
            for number in range(round(scene.start * FRAMES_PER_SECOND), round(end * FRAMES_PER_SECOND)):
                frame.pts = number
                container.mux(stream.encode(frame))
        container.mux(stream.encode(None))


def answers(engine: Engine, clip: Clip, question: str, zoom: bool) -> tuple[str, bool]:
    """The answer and whether a second reading was made."""
    prompt = lay_out([Draft("user", (Attached(clip, name="film.mp4"), question))], engine)
    events = look_closer(engine, prompt.request, prompt.said) if zoom else engine.generate(prompt.request)
    text, closer = "", False
    event: Event | Closer
    for event in events:
        closer = closer or isinstance(event, Closer)
        text += event.text if isinstance(event, TokenEvent) and not event.thinking else ""
    return text, closer


def measure_film(engine: Engine, clip: Clip, scenes: list[Shown], zoom: bool, random: Random) -> dict[str, Any]:
    starts: dict[tuple[str, str], list[float]] = {}
    for scene in scenes:
        if scene.name is not None:
            starts.setdefault(scene.name, []).append(scene.start)
    errors, silent, closer, found, named, true, told = [], 0, 0, 0, 0, 0, 0
    for name, when in starts.items():
        language = random.choice(("en", "zh"))
        thing = q.thing(*name, language)
        if len(when) == 1:
            text, looked = answers(engine, clip, random.choice(q.ASK["when"][language]).format(thing=thing), zoom)
            times = find_times(text)
            closer += looked
            silent += not times
            errors += [abs(times[0].start - when[0])] if times else []
        else:
            text, looked = answers(engine, clip, random.choice(q.ASK["all_times"][language]).format(thing=thing), zoom)
            times = find_times(text)
            found += sum(any(abs(time.start - start) <= NEAR for time in times) for start in when)
            named += sum(any(abs(time.start - start) <= NEAR for start in when) for time in times)
            true, told = true + len(when), told + len(times)
            closer += looked
            silent += not times
    counts = {"silent": silent, "closer": closer, "found": found, "named": named, "true": true, "told": told}
    return {"errors": errors, **counts}


def measure(engine: Engine, *, seed: str, films: int, hours: list[float]) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    for length in hours:
        for zoom in (False, True):
            sums: Counter[str] = Counter()
            errors: list[float] = []
            began = time.perf_counter()
            for number in range(films):
                random = Random(f"moments:{seed}:{length}:{number}")
                scenes = draw_film(length * 3600, random)
                with tempfile.TemporaryDirectory() as folder:
                    path = Path(folder) / "film.mp4"
                    write_film(path, scenes, length * 3600)
                    clip = open_upload(path)
                    assert isinstance(clip, Clip)
                    storyboard.begin(clip)
                    storyboard.wait(clip, 600.0)
                    row = measure_film(engine, clip, scenes, zoom, random)
                    errors += row.pop("errors")
                    sums.update(row)
            rows.append({"hours": length, "zoom": zoom, **as_row(errors, sums)})
            rows[-1]["seconds"] = round(time.perf_counter() - began, 1)
    return rows


def as_row(errors: list[float], sums: Counter[str]) -> dict[str, Any]:
    cuts = statistics.quantiles(errors, n=20) if len(errors) > 1 else [*errors, 0.0] * 20
    return {
        "when_answered": len(errors),
        "when_error_median": round(statistics.median(errors), 2) if errors else None,
        "when_error_95": round(cuts[18], 2) if errors else None,
        "when_within_1_s": round(sum(error <= NEAR for error in errors) / max(1, len(errors)), 3),
        "all_times_recall": round(sums["found"] / max(1, sums["true"]), 3),
        "all_times_precision": round(sums["named"] / max(1, sums["told"]), 3),
        "without_a_time": sums["silent"],
        "second_readings": sums["closer"],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", required=True)
    parser.add_argument("--films", type=int, default=4)
    parser.add_argument("--hours", type=float, nargs="+", default=[1 / 6, 2])
    parser.add_argument("--model", default="demo")
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    import torch

    from qwen3vl_webui.engine.local import LocalEngine
    from qwen3vl_webui.model.loading import load

    torch.set_num_threads(args.threads)
    engine = LocalEngine(load(args.model, quantization="none"))
    rows = measure(engine, seed=args.seed, films=args.films, hours=args.hours)
    engine.close()
    print(json.dumps({"seed": args.seed, "films": args.films, "rows": rows}, indent=1))


if __name__ == "__main__":
    main()
