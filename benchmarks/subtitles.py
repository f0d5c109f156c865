"""What the words of a long video cost: reading its subtitles, laying them between its moments, and saving a part of it.

Makes its own film (a minute encoded, repeated packet by packet) with a line of speech every two seconds, inside the
file and beside it. Prints JSON: wall seconds of each step, the decoding children included.

    python -m benchmarks.subtitles --hours 2
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np

from qwen3vl_webui.draft import Attached, Draft
from qwen3vl_webui.engine.local import LocalEngine
from qwen3vl_webui.media.cutting import save_clip
from qwen3vl_webui.media.subtitles import read_beside, read_inside
from qwen3vl_webui.media.upload import open_upload
from qwen3vl_webui.media.values import Clip, Subtitles
from qwen3vl_webui.model.loading import load
from qwen3vl_webui.prompt import lay_out

FPS, SIZE, EVERY = 25, (640, 360), 2.0
WORDS = ["so", "what", "we", "see", "in", "this", "figure", "is", "that", "the", "second", "curve", "stays", "below"]


def lines(seconds: float) -> list[tuple[float, float, str]]:
    random = np.random.default_rng(3)
    count = int(seconds / EVERY)
    return [(n * EVERY, n * EVERY + 1.8, " ".join(random.permutation(WORDS)[:9])) for n in range(count)]


def srt(spoken: list[tuple[float, float, str]]) -> str:
    def clock(seconds: float) -> str:
        whole = round(seconds * 1000)
        return f"{whole // 3_600_000:02d}:{whole // 60_000 % 60:02d}:{whole // 1000 % 60:02d},{whole % 1000:03d}"

    return "\n".join(
        f"{n}\n{clock(start)} --> {clock(end)}\n{text}\n" for n, (start, end, text) in enumerate(spoken, 1)
    )


def make(folder: Path, seconds: float) -> Path:
    """The film with its subtitles inside, as ASS in MKV; `film.srt` beside it."""
    minute, path = folder / "minute.mp4", folder / "film.mkv"
    noise = np.random.default_rng(1).integers(90, 160, (SIZE[1] * 3 // 2, SIZE[0]), dtype=np.uint8)
    with av.open(str(minute), "w") as container:
        stream = container.add_stream("libx264", rate=FPS, options={"preset": "ultrafast", "g": "50"})
        stream.width, stream.height, stream.pix_fmt = *SIZE, "yuv420p"
        for number in range(60 * FPS):
            frame = av.VideoFrame.from_ndarray(np.roll(noise, number // FPS * 8, axis=1), format="yuv420p")
            frame.pts, frame.time_base = number, Fraction(1, FPS)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    spoken = iter(lines(seconds))
    with av.open(str(path), "w") as target:
        source = av.open(str(minute))
        written = target.add_stream_from_template(source.streams.video[0])
        words: Any = target.add_stream("ass")
        target.start_encoding()
        for repeat in range(round(seconds / 60)):
            source.seek(0)
            for start, end, text in (next(spoken) for _ in range(int(60 / EVERY))):
                packet = av.Packet(f"0,0,Default,,0,0,0,,{text}".encode())
                packet.pts = packet.dts = round(start * 1000)
                packet.duration, packet.time_base, packet.stream = round((end - start) * 1000), Fraction(1, 1000), words
                target.mux(packet)
            for packet in source.demux(video=0):
                if packet.size and packet.pts is not None and packet.dts is not None:
                    later = round(repeat * 60 / packet.time_base)
                    packet.pts, packet.dts, packet.stream = packet.pts + later, packet.dts + later, written
                    target.mux(packet)
        source.close()
    (folder / "film.srt").write_text(srt(lines(seconds)))
    return path


@contextmanager
def measured(report: dict[str, Any], name: str) -> Iterator[None]:
    began = time.perf_counter()
    yield
    report[f"{name}, s"] = round(time.perf_counter() - began, 3)


def run(seconds: float) -> dict[str, Any]:
    report: dict[str, Any] = {"film_s": seconds}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        clip = open_upload(make(folder, seconds))
        beside = open_upload(folder / "film.srt")
        assert isinstance(clip, Clip) and isinstance(beside, Subtitles)
        with measured(report, "read inside the film"):
            [track] = read_inside(clip).tracks
        with measured(report, "read beside the film"):
            report["lines"] = len(read_beside(beside, clip.fps))
        assert len(track.cues) == report["lines"]
        engine = LocalEngine(load("demo"))
        draft = [Draft("user", (Attached(clip, "f", "film.mkv"), "What is said about the curve?"))]
        price: Callable[[], Any] = lambda: lay_out(draft, engine)  # noqa: E731
        price()
        with measured(report, "price of a question, counted again"):
            prompt = price()
        report["shown_lines"], report["prompt_tokens"] = prompt.shown[0].lines, prompt.budget.tokens
        with measured(report, "save a minute as MP4"):
            save_clip(clip.between(seconds / 2 + 0.3, seconds / 2 + 60.3), folder / "part.mp4", progress=lambda _: None)
        engine.close()
    return report


def main() -> None:
    flags = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    flags.add_argument("--hours", type=float, default=2.0)
    print(json.dumps(run(flags.parse_args().hours * 3600), indent=2))


if __name__ == "__main__":
    main()
