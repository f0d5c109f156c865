"""What qwen-vl-utils needs to read a video at its own density: run by `benchmarks/video.py --peer` in its own process.

It imports nothing of this project, so that any Python in which qwen-vl-utils, torchvision and torchcodec (with
FFmpeg's libraries) are installed can run it. Prints one line of JSON: CPU seconds of decoding and of the whole
`fetch_video`, the most memory above that of the imports, the frames; or `error`.

    python benchmarks/peer.py film.mp4 64 --gib 12
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import resource
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

READER = "torchcodec"
PATCH_SIZE = 16  # of Qwen3-VL; the default of qwen-vl-utils is that of Qwen2.5-VL
GIB = 1 << 30


def size(name: str) -> int:
    """Bytes of `VmRSS` (now) or `VmHWM` (the most so far) of this process."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{name}:"))


def declare_operators() -> Any:
    """A torchvision made for CUDA beside a torch for CPUs misses two of its operators while it is imported. Neither is
    called by qwen-vl-utils: it only resizes."""
    import torch

    library = torch.library.Library("torchvision", "FRAGMENT")
    for name in ("nms", "qnms"):
        if not hasattr(torch.ops.torchvision, name):
            library.define(f"{name}(Tensor boxes, Tensor scores, float iou_threshold) -> Tensor")
    return library


def counted(function: Callable[[], Any], into: dict[str, Any], name: str) -> Any:
    cpu, wall = time.process_time(), time.perf_counter()
    try:
        return function()
    finally:
        into[f"{name}_cpu_seconds"] = round(time.process_time() - cpu, 2)
        into[f"{name}_wall_seconds"] = round(time.perf_counter() - wall, 2)


def measure(path: Path, frames: int, most_bytes: int) -> dict[str, Any]:
    os.environ["FORCE_QWENVL_VIDEO_READER"] = READER
    kept = declare_operators()
    from qwen_vl_utils import vision_process
    from torchcodec.decoders import VideoDecoder  # noqa: F401  it is imported on first use: here, so that it is not timed

    told: dict[str, Any] = {
        name.replace("-", "_"): importlib.metadata.version(name)
        for name in ("qwen-vl-utils", "torchcodec", "torchvision", "torch")
    }
    read = vision_process.VIDEO_READER_BACKENDS[READER]
    vision_process.VIDEO_READER_BACKENDS[READER] = lambda item: counted(lambda: read(item), told, "decode")
    vision_process.VIDEO_READER_BACKENDS["torchvision"] = stop  # what it falls back to would decode everything again
    baseline = size("VmRSS")
    resource.setrlimit(resource.RLIMIT_AS, (size("VmSize") + most_bytes,) * 2)
    told["frames"] = frames
    try:
        video = counted(
            lambda: vision_process.fetch_video({"video": str(path), "nframes": frames}, image_patch_size=PATCH_SIZE),
            told,
            "whole",
        )
        told["size"] = [video.shape[3], video.shape[2]]
    except Exception as error:
        told["error"] = f"{type(error).__name__}: {error}"[:300]
    told["peak_mb_above_baseline"] = round((size("VmHWM") - baseline) / 1e6)
    del kept
    return told


def stop(item: dict[str, Any]) -> Any:
    raise RuntimeError("torchcodec could not read it")


def main() -> None:
    flags = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    flags.add_argument("path", type=Path)
    flags.add_argument("frames", type=int)
    flags.add_argument("--gib", type=float, default=12.0, help="the most memory it may take")
    given = flags.parse_args()
    try:
        told = measure(given.path, given.frames, int(given.gib * GIB))
    except Exception as error:  # not installed, or it cannot be imported
        told = {"error": f"{type(error).__name__}: {error}"[:300]}
    print(json.dumps(told))


if __name__ == "__main__":
    main()
