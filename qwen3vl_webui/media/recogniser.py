"""Recognition of speech in a process of its own, by faster-whisper: `media/speech.py` starts it and talks to it.

It never meets a file of a person: samples come in, lines of text go out. stdin: one line of JSON {model, threads,
check}, then the sound, int16 at 16 kHz, each block behind its length in bytes (four bytes, little endian), and a length
of 0 at the end. stdout, a line of JSON each: {"stage": "opening" | "listening"}, {"cue": [start, end, text]},
{"at": seconds}, {"language": code}, and at last {"end": true} or {"failed": kind}.

With `check` it only says {"here": whether the model need not be downloaded}.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from qwen3vl_webui.media import confinement
from qwen3vl_webui.media.values import SOUND_RATE

WINDOW = 300 * SOUND_RATE  # samples recognised at once, so that hours of sound need no more memory than minutes
SEAM = 20 * SOUND_RATE  # samples before the end of a window in which it is parted, where it is quietest
HUSH = SOUND_RATE // 5
SURE = 0.5  # probability from which the language of a window is that of the rest

Say = Callable[[dict[str, Any]], None]


def main() -> None:
    if sys.platform.startswith("linux"):
        confinement.die_with_parent(os.getppid())
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # libraries print

    def say(message: dict[str, Any]) -> None:
        print(json.dumps(message), file=answers, flush=True)

    wanted = json.loads(sys.stdin.buffer.readline())
    try:
        if wanted.get("check"):
            say({"here": is_here(wanted["model"])})
            return
        if hasattr(os, "nice"):
            os.nice(10)  # answers come first
        say({"stage": "opening"})
        model = open_model(wanted["model"], wanted["threads"])
        say({"stage": "listening"})
        listen(model, windows(blocks(sys.stdin.buffer)), say)
        say({"end": True})
    except MemoryError:
        say({"failed": "memory"})
    except EOFError:  # whoever wanted it has gone
        return
    except OpenFailed as error:
        say({"failed": error.kind, "detail": str(error.__cause__)[:500]})
    except Exception as error:
        say({"failed": "broken", "detail": f"{type(error).__name__}: {error}"[:500]})


class OpenFailed(Exception):
    """`kind` is `folder`, `name` or `download`."""

    def __init__(self, kind: str) -> None:
        super().__init__(kind)
        self.kind = kind


def is_here(model: str) -> bool:
    from faster_whisper.utils import download_model

    if Path(model).is_dir():
        return True
    try:
        download_model(model, local_files_only=True)
    except Exception:
        return False
    return True


def open_model(model: str, threads: int) -> Any:
    """A size, a hub id or a folder. On the processor: the graphics card is the language model's."""
    from faster_whisper import WhisperModel

    try:
        return WhisperModel(model, device="cpu", compute_type="int8", cpu_threads=threads)
    except MemoryError:
        raise
    except Exception as error:
        known = Path(model).is_dir() or os.sep in model and Path(model).is_absolute()
        unknown = isinstance(error, ValueError) and "model size" in str(error)
        raise OpenFailed("folder" if known else "name" if unknown else "download") from error


def blocks(source: BinaryIO) -> Iterator[np.ndarray]:
    """Raises EOFError where the sound breaks off without its end."""
    while True:
        size = int.from_bytes(exactly(source, 4), "little")
        if not size:
            return
        yield np.frombuffer(exactly(source, size), np.int16)


def exactly(source: BinaryIO, size: int) -> bytes:
    raw = source.read(size)
    if len(raw) < size:
        raise EOFError
    return raw


def windows(pieces: Iterator[np.ndarray]) -> Iterator[np.ndarray]:
    """The sound in parts of at most `WINDOW` samples, parted where it is quiet."""
    held, size = list[np.ndarray](), 0
    for piece in pieces:
        held.append(piece)
        size += len(piece)
        while size >= WINDOW:
            whole = np.concatenate(held)
            seam = quietest(whole[:WINDOW])
            yield whole[:seam]
            held, size = [whole[seam:]], len(whole) - seam
    if size:
        yield np.concatenate(held)


def quietest(window: np.ndarray) -> int:
    """The sample in the middle of the quietest fifth of a second near the end of a window."""
    begin = len(window) - SEAM
    tail = np.abs(window[begin:].astype(np.int32))
    loudness = np.add.reduceat(tail, np.arange(0, len(tail), HUSH // 2))
    pairs = loudness[:-1] + loudness[1:]
    return begin + int(np.argmin(pairs)) * (HUSH // 2) + HUSH // 2


def listen(model: Any, parts: Iterator[np.ndarray], say: Say) -> None:
    done, language = 0, None
    for part in parts:
        offset = done / SOUND_RATE
        if np.abs(part.astype(np.int32)).max() > 0:  # a model hears words in silence
            segments, told = model.transcribe(
                part.astype(np.float32) / 32768.0,
                language=language,
                vad_filter=True,
                condition_on_previous_text=False,  # a loop in one window would go on in the next
            )
            heard = False
            for segment in segments:
                heard = True
                say({"cue": [offset + segment.start, offset + segment.end, segment.text.strip()]})
                say({"at": offset + segment.end})
            if heard and language is None and told.language_probability >= SURE:
                language = told.language
                say({"language": language})
        done += len(part)
        say({"at": done / SOUND_RATE})


if __name__ == "__main__":
    main()
