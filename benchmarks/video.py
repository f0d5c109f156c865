"""The storyboard of long videos: what reading costs against decoding everything, and what it sees.

Makes its own 1080p lectures (`benchmarks/lectures.py`: every change is known), encodes `--part` seconds and repeats
their packets. `clean` is the seed thresholds may have seen; `camera` is another one with camera noise, which they have
not; `film` is cuts and motion in 720p. Prints JSON, and each row to stderr when it is there.

Words: a *state* is what is on screen between two changes; it is seen when a moment lies in it, settled. A *finished*
slide is the last state of a visit. *Redundant* are moments beyond one a state. A patch *straddles* when its two frames
lie in different states.

    python -m benchmarks.video --hours 2

`--peer` reads each file with qwen-vl-utils and torchcodec too (`benchmarks/peer.py`), at their own density: 768 frames
of two hours, as many a second of a shorter file. `--peer PYTHON` names the interpreter in which they are installed.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import av
import numpy as np

from benchmarks import lectures
from benchmarks.long_video import Children, children_of, status
from qwen3vl_webui.media import sandbox, storyboard, video
from qwen3vl_webui.media.sampling import FrameTimes, plan_frames
from qwen3vl_webui.media.segments import Storyboard
from qwen3vl_webui.media.values import Clip, FramePlan

GOPS: dict[str, dict[str, str]] = {"250": {"g": "250"}, "60": {"g": "60", "sc_threshold": "0"}}
SEEDS = {"clean": 11, "camera": 77, "film": 5}
NOISE = {"clean": 0.8, "camera": 2.5, "film": 0.8}
PICTURES: dict[str, dict[str, Any]] = {"clean": {}, "camera": {}, "film": {"size": (1280, 720), "fps": 25}}
FRAME_PIXELS = (4_096, 786_432)
LABEL_TOKENS = 12
BUDGETS = {"32K": 26_000, "128K": 122_000}  # tokens for pictures, 6K kept for text
PEER_EVERY = 2 * 3600 / 768  # seconds between the frames qwen-vl-utils takes of two hours
PEER_SECONDS = 3600.0


class Memory:
    """The most that the decoding children and this process hold above what they began with, in bytes."""

    def __init__(self) -> None:
        self.peak = 0
        self._stopped = threading.Event()
        self._own = status(os.getpid())["VmRSS"]
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def _watch(self) -> None:
        process = sandbox.server.process
        assert process is not None
        while not self._stopped.wait(0.05):
            children = sum(private(child) for child in children_of(process.pid))
            self.peak = max(self.peak, children + max(0, status(os.getpid())["VmRSS"] - self._own))

    def stop(self) -> int:
        self._stopped.set()
        self._thread.join()
        return self.peak


def private(process: int) -> int:
    """Bytes that only this process holds: what a child shares with the server it was forked from does not count."""
    try:
        lines = Path(f"/proc/{process}/smaps_rollup").read_text().splitlines()
    except OSError:
        return 0
    return sum(int(line.split()[1]) * 1024 for line in lines if line.startswith("Private_"))


def full_decode(path: Path) -> float:
    """CPU seconds of decoding every picture with PyAV in one thread, as most readers do."""
    began = time.process_time()
    with av.open(str(path)) as container:
        container.streams.video[0].thread_type = "NONE"
        for _ in container.decode(video=0):
            pass
    return time.process_time() - began


def reading(clip: Clip, children: Children) -> tuple[Storyboard, dict[str, Any]]:
    memory, own, child, wall = Memory(), time.process_time(), children.cpu(), time.perf_counter()
    growing = storyboard.read_storyboard(clip)
    board = next(growing)
    first = time.perf_counter() - wall
    for grown in growing:
        board = grown
    wall = time.perf_counter() - wall
    cpu = time.process_time() - own + children.cpu() - child
    return board, {
        "cpu_seconds": round(cpu, 2),
        "wall_seconds": round(wall, 2),
        "first_segments_seconds": round(first, 2),
        "peak_mb_above_baseline": round(memory.stop() / 1e6),
        "segments": len(board.segments),
    }


def state_at(states: tuple[lectures.State, ...], seconds: np.ndarray) -> np.ndarray:
    starts = np.array([state.start for state in states])
    return np.searchsorted(starts, seconds + 1e-6, side="right") - 1


def seen(states: tuple[lectures.State, ...], moments: np.ndarray) -> dict[str, float]:
    numbers = state_at(states, moments)
    settled = moments >= np.array([states[number].settled for number in numbers]) - 1e-6
    found = set(numbers[settled].tolist())
    finished = [number for number, state in enumerate(states) if state.finished]
    return {
        "moments": len(moments),
        "states": round(len(found) / len(states), 4),
        "finished": round(sum(number in found for number in finished) / len(finished), 4),
        "redundant": round(1 - len(found) / len(moments), 4),
    }


def quality(script: lectures.Script, repeats: int, board: Storyboard) -> dict[str, float]:
    states = script.repeated(repeats)
    starts = np.array([segment.start for segment in board.segments])
    late = np.array([np.abs(starts - state.start).min() for state in states[1:]])
    return {
        **seen(states, np.array([segment.seconds for segment in board.segments])),
        "changes": len(late),
        "within_half_a_second": round(float((late <= 0.5).mean()), 4),
        "within_three_seconds": round(float((late <= 3).mean()), 4),
        "median_error_seconds": round(float(np.median(late)), 3),
    }


def straddling(states: tuple[lectures.State, ...], plan: FramePlan) -> float:
    first, second = (state_at(states, np.array(side)) for side in zip(*plan.patches, strict=True))
    return round(float((first != second).mean()), 4)


def plans(script: lectures.Script, repeats: int, clip: Clip, board: Storyboard) -> dict[str, Any]:
    """What plans show within a budget, beside as many evenly spaced moments."""
    states, times, told = script.repeated(repeats), video.read_times(clip), {}
    for name, budget in BUDGETS.items():
        settings = {"budget": budget, "label_tokens": LABEL_TOKENS, "frame_pixels": FRAME_PIXELS}
        plan = plan_frames(clip, times, storyboard=board, **settings)
        evenly = np.linspace(0, clip.end - 0.1, len(plan.patches))
        told[name] = {
            "size": [plan.width, plan.height],
            **seen(states, np.array([first for first, _ in plan.patches])),
            "straddling": straddling(states, plan),
            "evenly_spaced": seen(states, on_screen(times, evenly)),
        }
    return told


def pictures(clip: Clip, board: Storyboard, children: Children) -> dict[str, Any]:
    """What reading the pictures of a plan costs on top: with them it has done what the peer does."""
    plan = plan_frames(
        clip,
        video.read_times(clip),
        storyboard=board,
        budget=BUDGETS["128K"],
        label_tokens=LABEL_TOKENS,
        frame_pixels=FRAME_PIXELS,
    )
    memory, own, child = Memory(), time.process_time(), children.cpu()
    for _ in video.read_frames(plan):
        pass
    return {
        "moments": len(plan.patches),
        "size": [plan.width, plan.height],
        "cpu_seconds": round(time.process_time() - own + children.cpu() - child, 2),
        "peak_mb_above_baseline": round(memory.stop() / 1e6),
    }


def beside_peer(
    clip: Clip, board: Storyboard, cost: dict[str, Any], children: Children, python: Path
) -> dict[str, Any]:
    """What qwen-vl-utils needs for the same file now, and how many times less this project needed."""
    frames = max(4, round(clip.end / PEER_EVERY / 2) * 2)
    gib = 0.8 * status_of_machine("MemAvailable") / (1 << 30)
    command = [
        str(python),
        str(Path(__file__).with_name("peer.py")),
        str(clip.path),
        str(frames),
        "--gib",
        f"{gib:.1f}",
    ]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=PEER_SECONDS, check=True)
        peer = json.loads(done.stdout)
    except (OSError, subprocess.SubprocessError, ValueError) as error:
        peer = {"error": f"{type(error).__name__}: {error}"[:300]}
    if "decode_cpu_seconds" not in peer:
        return {"peer": "not measured", "why": peer.get("error", "")}
    shown = pictures(clip, board, children)
    with_pictures = cost["cpu_seconds"] + shown["cpu_seconds"]
    memory = max(1, cost["peak_mb_above_baseline"], shown["peak_mb_above_baseline"])
    return {
        "peer": peer,
        "pictures": shown,
        "times_less_cpu_than_its_decoding": round(peer["decode_cpu_seconds"] / cost["cpu_seconds"], 1),
        "times_less_cpu_than_all_of_it": round(peer["whole_cpu_seconds"] / cost["cpu_seconds"], 1),
        "times_less_cpu_pictures_included": round(peer["whole_cpu_seconds"] / with_pictures, 1),
        "times_less_memory": round(peer["peak_mb_above_baseline"] / memory, 1),
    }


def status_of_machine(name: str) -> int:
    """Bytes, from /proc/meminfo."""
    lines = Path("/proc/meminfo").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{name}:"))


def on_screen(times: FrameTimes, seconds: np.ndarray) -> np.ndarray:
    return times.shown[np.searchsorted(times.shown, seconds + 1e-6, side="right") - 1]


def measure(
    hours: float,
    part: float,
    minutes: float,
    kinds: Sequence[str],
    long_kinds: Sequence[str],
    kept: Path | None,
    peer: Path | None = None,
) -> dict[str, Any]:
    children, told = Children(), {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for kind in kinds:
            seed = SEEDS[kind]
            script = (lectures.shots if kind == "film" else lectures.lecture)(seed, part)
            for gop, options in GOPS.items():
                once = (kept or folder) / f"{kind}_{gop}.mp4"
                if not once.exists():
                    unfinished = once.with_name("unfinished.mp4")
                    lectures.write(
                        unfinished, script, noise=NOISE[kind], preset="veryfast", **PICTURES[kind], **options
                    )
                    unfinished.rename(once)
                short, repeats = folder / "short.mp4", max(1, round(minutes * 60 / part))
                lectures.repeat(once, short, part, repeats)
                clip = video.probe(short, f"{kind} {gop} short")
                board, cost = reading(clip, children)
                whole = full_decode(once) * repeats
                row: dict[str, Any] = {
                    "minutes": {
                        "minutes": round(repeats * part / 60, 1),
                        "megabits_per_second": round(short.stat().st_size * 8e-6 / clip.end, 2),
                        "full_decode_cpu_seconds": round(whole, 1),
                        "times_less_cpu": round(whole / cost["cpu_seconds"], 1),
                        **cost,
                        **quality(script, repeats, board),
                        **(beside_peer(clip, board, cost, children, peer) if peer else {}),
                    }
                }
                if kind in long_kinds and hours:
                    long, repeats = folder / "long.mp4", round(hours * 3600 / part)
                    lectures.repeat(once, long, part, repeats)
                    probe_wall = time.perf_counter()
                    clip = video.probe(long, f"{kind} {gop} long")
                    probe_wall = time.perf_counter() - probe_wall
                    board, cost = reading(clip, children)
                    whole = whole / max(1, round(minutes * 60 / part)) * repeats
                    row["hours"] = {
                        "hours": round(repeats * part / 3600, 2),
                        "probe_wall_seconds": round(probe_wall, 2),
                        "full_decode_cpu_seconds_scaled": round(whole),
                        "times_less_cpu": round(whole / cost["cpu_seconds"], 1),
                        **cost,
                        **quality(script, repeats, board),
                        "plans": plans(script, repeats, clip, board),
                        **(beside_peer(clip, board, cost, children, peer) if peer else {}),
                    }
                    long.unlink()
                told[f"{kind}, GOP {gop}"] = row
                print(json.dumps({f"{kind}, GOP {gop}": row}), file=sys.stderr, flush=True)
    children.stop()
    return told


def measure_seeds(seeds: Sequence[int], seconds: float = 150.0) -> dict[str, Any]:
    """What is seen of small lectures of many seeds, clean and with camera noise: no reading is timed."""
    told = {}
    with tempfile.TemporaryDirectory() as folder:
        for kind in ("clean", "camera"):
            for gop, options in GOPS.items():
                for seed in seeds:
                    script, path = lectures.lecture(seed, seconds), Path(folder) / "small.mp4"
                    lectures.write(path, script, size=(640, 360), noise=NOISE[kind], preset="veryfast", **options)
                    *_, board = storyboard.read_storyboard(video.probe(path, f"{kind} {gop} {seed}"))
                    row = {"total": len(script.states), **quality(script, 1, board)}
                    told[f"{kind}, GOP {gop}, seed {seed}"] = row
    return told


def main() -> None:
    flags = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    flags.add_argument("--hours", type=float, default=2.0, help="0 leaves the long files out")
    flags.add_argument("--minutes", type=float, default=10.0)
    flags.add_argument("--part", type=float, default=60.0, help="seconds that are encoded")
    flags.add_argument("--kinds", nargs="*", choices=list(SEEDS), default=list(SEEDS))
    flags.add_argument("--long", nargs="*", choices=list(SEEDS), default=["clean"], help="kinds made hours long too")
    flags.add_argument("--keep", type=Path, help="a folder in which the encoded parts stay for the next run")
    flags.add_argument(
        "--peer",
        type=Path,
        nargs="?",
        const=Path(sys.executable),
        metavar="PYTHON",
        help="read the files with qwen-vl-utils and torchcodec too",
    )
    flags.add_argument("--seeds", type=int, nargs="*", help="instead: what is seen of small lectures of these seeds")
    given = flags.parse_args()
    found = (
        measure_seeds(given.seeds)
        if given.seeds
        else measure(given.hours, given.part, given.minutes, given.kinds, given.long, given.keep, given.peer)
    )
    head = {"date": datetime.date.today().isoformat(), "device": f"{os.cpu_count()} CPU cores, {platform.machine()}"}
    print(json.dumps({**head, **found}, indent=2))


if __name__ == "__main__":
    main()
