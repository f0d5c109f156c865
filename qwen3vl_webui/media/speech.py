"""What is said in a video, written down by a recogniser of speech: an extra, off until faster-whisper is installed.

Once per file content and model, in the background and only when asked; kept in memory and beside the file. Its lines
are subtitles like any others. The sound is decoded in the sandbox (`media/sound.py`), the recogniser is a process of
its own (`media/recogniser.py`) that gets samples and nothing else.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import logging
import os
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from qwen3vl_webui.errors import MediaError, UserError
from qwen3vl_webui.media import beside
from qwen3vl_webui.media.background import Background, Cancelled, State, Task
from qwen3vl_webui.media.children import python_path
from qwen3vl_webui.media.sound import read_sound
from qwen3vl_webui.media.subtitles import MOST_CUES, Track, checked_cues, plain
from qwen3vl_webui.media.values import Clip, Cue

log = logging.getLogger(__name__)

VERSION = 1  # of what is kept beside the file
KEPT = 16  # transcripts in memory
CHECK_SECONDS = 60.0
MEGABYTES = {"tiny": 80, "base": 150, "small": 490, "medium": 1530, "turbo": 1620, "large": 3090}  # of a download
PACE = {"tiny": 0.1, "base": 0.15, "small": 0.4, "medium": 1.2, "turbo": 0.8, "large": 2.5}  # of the length, guessed
BROKEN = "What is said in this video could not be written down; the log of the server says why."
GONE = "The recogniser of speech stopped; please try again."


@dataclass(frozen=True)
class Hearing:
    """How far the writing down of a video is: `done` 0 to 1, `left` seconds it may still take, `sentence` of a failure.

    `stage` is `waiting` for another video, `opening` (and where needed downloading) the model, or `listening`.
    """

    state: State
    stage: str = ""
    done: float = 0.0
    left: float | None = None
    track: Track | None = None
    sentence: str = ""


@dataclass(frozen=True)
class Offer:
    """What writing down a video takes: megabytes to download first (0: none) and a guess of the seconds."""

    model: str
    megabytes: int
    seconds: float


hearings = Background("speech", KEPT, lambda sentence: Hearing("failed", sentence=sentence), BROKEN)


def why(kind: str, model: str) -> str:
    """The sentence of a failure, by what the recogniser calls it."""
    match kind:
        case "memory":
            return f"There is not enough memory for the speech model {model}; choose a smaller one with --speech-model."
        case "folder":
            return f"The speech model {model} cannot be opened: name a folder with a Whisper model for CTranslate2."
        case "name":
            return f"There is no speech model {model}: name tiny, base, small, medium, large-v3, turbo or a folder."
        case "download":
            return (
                f"The speech model {model} could not be downloaded: check the network, or name a folder that holds one."
            )
    return BROKEN


def installed() -> bool:
    return importlib.util.find_spec("faster_whisper") is not None


def offer(clip: Clip, model: str) -> Offer:
    """What it would take. Looks whether the model is on this machine, nothing is fetched; takes a second or two."""
    with _recogniser({"model": model, "check": True}) as process:
        try:
            raw, _ = process.communicate(timeout=CHECK_SECONDS)
            here = bool(json.loads(raw.splitlines()[-1])["here"])
        except (subprocess.TimeoutExpired, ValueError, LookupError) as error:
            raise MediaError(GONE) from error
    size = next((name for name in PACE if name in Path(model).name), "small")
    return Offer(model, 0 if here else MEGABYTES[size], PACE[size] * clip.end)


def begin(clip: Clip, model: str) -> None:
    """Begins to write down what is said, unless that is done, or being done, with this model."""
    if not installed():
        raise MediaError("Speech is not recognised here: install it with pip install faster-whisper.")
    kept = load(clip)
    if kept is not None and kept[0] == model:
        hearings.settle(clip.digest, Hearing("ready", done=1.0, track=kept[1]))
    else:
        hearings.begin(clip.digest, Hearing("making", "waiting"), partial(_hear, clip, model))


def hearing(clip: Clip) -> Hearing:
    known = hearings.known(clip.digest)
    if known is None and (kept := load(clip)) is not None:
        known = Hearing("ready", done=1.0, track=kept[1])
        hearings.settle(clip.digest, known)
    return known or Hearing("none")


def heard(clip: Clip) -> Track | None:
    """What is said in the whole film of `clip`, where that has been written down."""
    return hearing(clip).track


def cancel(clip: Clip) -> None:
    """Ends the writing down of this video; what was written before stays."""
    hearings.cancel(clip.digest)


def _hear(clip: Clip, model: str, task: Task[Hearing]) -> Hearing:
    """Raises MediaError."""
    track = _listen(clip, model, task)
    keep(clip, model, track)
    return Hearing("ready", done=1.0, track=track)


def _listen(clip: Clip, model: str, task: Task[Hearing]) -> Track:
    cues, language, began = list[Cue](), "", time.monotonic()
    threads = max(1, (os.cpu_count() or 2) // 2)
    now = Hearing("making", "opening")
    with _recogniser({"model": model, "threads": threads}) as process:
        task.stop = process.kill
        feeder = Feeder(process, clip)
        try:
            feeder.start()
            assert process.stdout is not None
            for line in process.stdout:
                if not clip.path.exists():  # its conversation was deleted meanwhile
                    raise Cancelled
                told = json.loads(line)
                if "failed" in told:
                    log.warning("speech: %s: %s", told["failed"], told.get("detail", ""))
                    raise MediaError(why(str(told["failed"]), model))
                if "cue" in told:
                    if len(cues) < MOST_CUES:
                        cues += _cue(told["cue"], clip.end)
                elif "language" in told:
                    language = str(told["language"])[:8]
                elif "stage" in told:
                    began = time.monotonic()
                    now = Hearing("making", told["stage"])
                elif "at" in told:
                    done = min(1.0, float(told["at"]) / max(clip.end, 1e-6))
                    left = (time.monotonic() - began) * (1 - done) / done if done > 0 else None
                    now = Hearing("making", "listening", done, left)
                elif "end" in told:
                    return Track(tuple(cues), language)
                hearings.tell(task, now)
        finally:
            process.kill()
            feeder.join()
    raise feeder.error or MediaError(GONE)


def _cue(told: Any, end: float) -> tuple[Cue, ...]:
    start, stop, said = told
    start, words = min(max(0.0, float(start)), end), plain(str(said))
    return checked_cues([[start, min(max(start, float(stop)), end), words]]) if words else ()


class Feeder(threading.Thread):
    """Gives the sound of a video to a recogniser as fast as it takes it."""

    def __init__(self, process: subprocess.Popen[bytes], clip: Clip) -> None:
        super().__init__(name="sound", daemon=True)
        self.process, self.clip = process, clip
        self.error: UserError | None = None

    def run(self) -> None:
        assert self.process.stdin is not None
        try:
            with contextlib.closing(read_sound(self.clip)) as blocks:
                for block in blocks:
                    raw = block.tobytes()
                    self.process.stdin.write(len(raw).to_bytes(4, "little") + raw)
            self.process.stdin.write(bytes(4))
            self.process.stdin.close()
        except UserError as error:
            self.error = error
            self.process.kill()
        except OSError:  # the recogniser has ended, and its reader says why
            pass


@contextlib.contextmanager
def _recogniser(wanted: dict[str, Any]) -> Any:
    """The process, asked; it is gone when the block ends."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("QWEN3VL_")}  # keys, logins
    process = subprocess.Popen(
        [sys.executable, "-P", "-m", "qwen3vl_webui.media.recogniser"],
        env=kept | {"PYTHONPATH": python_path()},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    assert process.stdin is not None and process.stdout is not None
    try:
        with contextlib.suppress(OSError):
            process.stdin.write(json.dumps(wanted).encode() + b"\n")
            process.stdin.flush()
        yield process
    finally:
        process.kill()
        process.wait()
        for pipe in (process.stdin, process.stdout):
            with contextlib.suppress(OSError):
                pipe.close()


def keep(clip: Clip, model: str, track: Track) -> None:
    cues = [[cue.start, cue.end, cue.text] for cue in track.cues]
    record = {"version": VERSION, "model": model, "language": track.language, "cues": cues}
    beside.keep(clip, "speech", record)


def load(clip: Clip) -> tuple[str, Track] | None:
    """(model, what it wrote down)."""
    record = beside.load(clip, "speech")
    if record.get("version") != VERSION:
        return None
    try:
        return str(record["model"]), Track(checked_cues(record["cues"]), str(record["language"]))
    except (KeyError, MediaError):
        return None
