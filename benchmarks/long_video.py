"""What a long video costs before the model sees it: probe, frame times, plan and the pictures of the plan.

Makes its own file (a lecture of slides with a moving corner, 30 s encoded, then repeated packet by packet), reads it as
the page would, and prints JSON: seconds of wall and CPU (this process, and the decoding children) of each step, and
the peak memory of both. `--copy` also makes the copy browsers play.

    python -m benchmarks.long_video --hours 2 --gop 250
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np

from qwen3vl_webui.media import playback, sampling, sandbox, video

FPS = 30
SLIDE_SECONDS = 12
BUDGET = 120_000  # tokens: most of a 128K context
FRAME_PIXELS = (4_096, 786_432)


def slides(seconds: int, width: int, height: int) -> Iterator[np.ndarray]:
    """Pictures as I420: blocks of "text" that change every `SLIDE_SECONDS`, a moving corner, weak noise."""
    random = np.random.default_rng(7)
    noise = random.integers(-2, 3, (8, height, width), dtype=np.int8)
    page = np.full((height, width), 235, np.uint8)
    for number in range(seconds * FPS):
        if number % (SLIDE_SECONDS * FPS) == 0:
            page[:] = 235
            for line in range(6):
                top = height // 8 + line * height // 9
                text = random.integers(0, 2, (height // 54, width // 3)).repeat(2, 0).repeat(2, 1) * 200
                page[top : top + text.shape[0], width // 12 : width // 12 + text.shape[1]] = 235 - text
        picture = np.full((height * 3 // 2, width), 128, np.uint8)
        picture[:height] = np.clip(page.astype(np.int16) + noise[number % 8], 0, 255)
        left = width * 3 // 4 + int(width / 16 * np.sin(number / 9))
        picture[height * 3 // 4 : height * 7 // 8, left : left + width // 12] = 90
        yield picture


def make(path: Path, seconds: float, gop: int, width: int, height: int) -> None:
    """30 seconds encoded, then the same packets again and again with later times."""
    short = path.with_name("short.mp4")
    part = 30
    with av.open(str(short), "w") as container:
        stream = container.add_stream(
            "libx264", rate=FPS, options={"preset": "veryfast", "crf": "26", "g": str(gop), "sc_threshold": "40"}
        )
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        for number, picture in enumerate(slides(part, width, height)):
            frame = av.VideoFrame.from_ndarray(picture, format="yuv420p")
            frame.pts, frame.time_base = number, Fraction(1, FPS)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    repeats = max(1, round(seconds / part))
    with av.open(str(path), "w") as target:
        for repeat in range(repeats):
            with av.open(str(short)) as source:
                read = source.streams.video[0]
                if not repeat:
                    written = target.add_stream_from_template(read)
                shift = round(repeat * part / read.time_base)
                for packet in source.demux(read):
                    if packet.size:
                        packet.pts, packet.dts = packet.pts + shift, packet.dts + shift
                        packet.stream = written
                        target.mux(packet)


class Children:
    """Peak memory of the decoding children, looked at every 20 ms, and their CPU seconds."""

    def __init__(self) -> None:
        self.peak = 0
        self.stopped = threading.Event()
        self.thread = threading.Thread(target=self._watch, daemon=True)
        self.thread.start()

    def _watch(self) -> None:
        while not self.stopped.wait(0.02):
            process = sandbox.server.process
            for child in children_of(process.pid) if process else []:
                self.peak = max(self.peak, status(child).get("VmHWM", 0))

    def cpu(self) -> float:
        """Of the server and all children it has waited for."""
        process = sandbox.server.process
        if process is None:
            return 0.0
        fields = Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()
        return sum(int(field) for field in fields[11:15]) / os.sysconf("SC_CLK_TCK")

    def stop(self) -> None:
        self.stopped.set()
        self.thread.join()


def children_of(process: int) -> list[int]:
    """Of every thread: a process is the child of the thread that started it."""
    found: list[int] = []
    for thread in Path(f"/proc/{process}/task").glob("*"):
        with suppress(OSError):
            found += map(int, (thread / "children").read_text().split())
    return found


def status(process: int) -> dict[str, int]:
    """The sizes in /proc/PID/status, in bytes; empty when the process has gone."""
    try:
        lines = Path(f"/proc/{process}/status").read_text().splitlines()
    except OSError:
        return {}
    return {line.split(":")[0]: int(line.split()[1]) * 1024 for line in lines if line.endswith(" kB")}


def measure(hours: float, gop: int, width: int, height: int, copy: bool) -> dict[str, Any]:
    steps: dict[str, dict[str, float]] = {}
    children = Children()

    @contextmanager
    def step(name: str) -> Iterator[None]:
        wall, own, child = time.perf_counter(), time.process_time(), children.cpu()
        yield
        steps[name] = {
            "wall_seconds": round(time.perf_counter() - wall, 3),
            "cpu_seconds": round(time.process_time() - own, 3),
            "child_cpu_seconds": round(children.cpu() - child, 2),
        }

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "long.mp4"
        make(path, hours * 3600, gop, width, height)
        sandbox.call(video.inspect, path.with_name("short.mp4"))  # starts the fork server
        before = status(os.getpid()).get("VmHWM", 0)
        with step("probe"):
            clip = video.probe(path, "long")
        with step("times"):
            times = video.read_times(clip)
        with step("plan"):
            plan = sampling.plan_frames(clip, times, budget=BUDGET, frame_pixels=FRAME_PIXELS)
        with step("read"):
            frames = sum(1 for _ in video.read_frames(plan))
        if copy:
            with step("copy"):
                playback.make_playable(path, path.with_name("copy.mp4"), progress=lambda done: None)
        size = path.stat().st_size
    children.stop()
    return {
        "file": {"seconds": round(clip.duration, 1), "pixels": [clip.width, clip.height], "gop": gop, "bytes": size},
        "pictures": len(times.shown),
        "keyframes": len(times.keyframes),
        "plan": {
            "moments": len(plan.patches),
            "frames": frames,
            "size": [plan.width, plan.height],
            "tokens": plan.tokens,
        },
        "steps": steps,
        "peak_bytes": {"parent": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024, "child": children.peak},
        "parent_growth_bytes": status(os.getpid()).get("VmHWM", 0) - before,
    }


def main() -> None:
    flags = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    flags.add_argument("--hours", type=float, default=2.0)
    flags.add_argument("--gop", type=int, default=250)
    flags.add_argument("--size", type=int, nargs=2, default=(1920, 1080), metavar=("WIDTH", "HEIGHT"))
    flags.add_argument("--copy", action="store_true", help="also make the copy browsers play")
    given = flags.parse_args()
    print(json.dumps(measure(given.hours, given.gop, *given.size, given.copy), indent=2))


if __name__ == "__main__":
    main()
