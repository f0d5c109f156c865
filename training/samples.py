"""Draw the sample files the page offers: `python -m training.samples`. Fixed seeds, none of them a training seed."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path
from random import Random

import av
import numpy as np
import pymupdf
from PIL import Image

from training.scenes import draw_text, draw_things

SLIDES: tuple[tuple[float, tuple[tuple[str, str], ...], str], ...] = (  # until which second, things, text
    (6, (("blue", "square"),), ""),
    (12, (("yellow", "star"),), ""),
    (17, (), "HELLO"),
    (24, (("green", "triangle"),), ""),
    (30, (("purple", "heart"),), ""),
    (35, (), "2026"),
    (41, (("orange", "cross"),), ""),
    (47, (("black", "circle"),), ""),
    (53, (("red", "circle"),), ""),
    (60, (("blue", "heart"),), ""),
)
PAGES = ("WELCOME", "1205", "GARDEN", "7342", "PIANO", "8816")
FRAMES_PER_SECOND = 10


def picture(path: Path) -> None:
    names = [("red", "circle"), ("blue", "square"), ("green", "star")]
    Image.fromarray(draw_things(names, 640, 480, Random("sample picture 3"), wear=0.0).pixels).save(path, optimize=True)


def slides(width: int, height: int) -> Iterator[tuple[float, np.ndarray]]:
    """(last second, pixels) of each slide."""
    random = Random("sample video 2")
    for until, things, text in SLIDES:
        scene = (
            draw_text(text, width, height, random, wear=0.0, page=True)
            if text
            else draw_things(things, width, height, random, wear=0.0)
        )
        yield until, scene.pixels


def video(path: Path, width: int = 640, height: int = 360) -> None:
    with av.open(str(path), "w", options={"movflags": "faststart"}) as container:
        stream = container.add_stream("libx264", rate=FRAMES_PER_SECOND)
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        stream.options = {"crf": "26", "preset": "slow", "g": "50"}
        written = 0
        for until, pixels in slides(width, height):
            while written < until * FRAMES_PER_SECOND:
                for packet in stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")):
                    container.mux(packet)
                written += 1
        for packet in stream.encode():
            container.mux(packet)


def document(path: Path) -> None:
    with pymupdf.open() as pdf:
        for text in PAGES:
            page = pdf.new_page(width=595, height=842)
            page.insert_text((70, 260), text, fontsize=90, fontname="hebo")
        pdf.set_metadata({"title": "Sample pages"})
        pdf.save(path, deflate=True, garbage=4)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--to", type=Path, default=Path("assets/samples"))
    folder = parser.parse_args().to
    folder.mkdir(parents=True, exist_ok=True)
    picture(folder / "sample.png")
    video(folder / "sample.mp4")
    document(folder / "sample.pdf")


if __name__ == "__main__":
    main()
