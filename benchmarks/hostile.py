"""Hostile and broken videos through the running server: what each is answered, and what it leaves behind.

Starts `app.py`, uploads one generated file after the other, and of each that is taken does what a person would: copy
to play, storyboard, tracks, pictures, a part saved, a question. Each is a picture or one sentence; afterwards the
file is deleted, and processes, open files, the data folder and the folder for temporary files must be as they were.
Prints JSON: per file what came, the seconds, and `left` where something stayed.

    python -m benchmarks.hostile
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from fractions import Fraction
from pathlib import Path
from typing import Any

import httpx

from benchmarks.breaking import STEADY
from benchmarks.hostile_files import NAMES, kinds
from benchmarks.long_video import children_of, status
from benchmarks.server_memory import ROOT, Peak, free_port, resident, wait_until_ready
from tests import clips

QUESTION = "When does the red circle appear?"
PATIENCE = 120.0  # seconds, for one file
SETTLING = 20.0  # seconds in which what was begun must have ended
SQLITE = {"store.sqlite", "store.sqlite-wal", "store.sqlite-shm"}  # they keep their room


class Server:
    """`app.py` at work in folders of its own."""

    def __init__(self, folder: Path, model: str) -> None:
        self.data, self.temporary = folder / "data", folder / "tmp"
        self.temporary.mkdir()
        self.log = (folder / "log.txt").open("w+")
        port = free_port()
        self.process = subprocess.Popen(
            [sys.executable, "app.py", "--model", model, "--data-dir", str(self.data), "--port", str(port)],
            cwd=ROOT,
            env={**os.environ, "TMPDIR": str(self.temporary)},
            stdout=self.log,
            stderr=subprocess.STDOUT,
        )
        self.address = f"http://127.0.0.1:{port}"
        self.model = wait_until_ready(self.address)["model"]
        self.client = httpx.Client(base_url=self.address, timeout=PATIENCE)

    def state(self) -> dict[str, Any]:
        """What must be as it was: processes, open files, and the files on disk with their sizes."""
        return {
            "processes": processes_below(self.process.pid),
            "descriptors": len(os.listdir(f"/proc/{self.process.pid}/fd")),
            "decoder_descriptors": [
                len(os.listdir(f"/proc/{child}/fd")) for child in children_of(self.process.pid) if alive(child)
            ],
            "data": {
                str(path.relative_to(self.data)): path.stat().st_size
                for path in self.data.rglob("*")
                if path.is_file() and path.name not in SQLITE
            },
            "temporary": sorted(str(path.relative_to(self.temporary)) for path in self.temporary.rglob("*")),
        }

    def settled(self, before: dict[str, Any]) -> dict[str, Any]:
        """What differs from `before`, looked at again until nothing does or the time is over."""
        end = time.monotonic() + SETTLING
        while (left := difference(before, self.state())) and time.monotonic() < end:
            time.sleep(0.1)
        return left

    def stop(self) -> None:
        self.process.send_signal(signal.SIGTERM)
        self.process.wait(60)
        self.log.close()


def alive(process: int) -> bool:
    return Path(f"/proc/{process}/fd").exists()


def processes_below(process: int) -> int:
    return sum(1 + processes_below(child) for child in children_of(process))


def difference(before: dict[str, Any], after: dict[str, Any]) -> dict[str, Any]:
    """Idle connections come and go: a few descriptors more are not a leak, and are counted over the whole run."""
    left = {}
    for name, value in before.items():
        if name.endswith("descriptors"):
            continue
        if after[name] != value:
            left[name] = f"{value} -> {after[name]}"[:400]
    return left


def sentence_of(response: httpx.Response) -> str:
    """The one sentence of a refusal; raises ValueError where it is none."""
    message = str(response.json()["error"]["message"])
    plain = message[:1].isupper() and message.endswith(".") and "\n" not in message and len(message) < 250
    if response.status_code >= 500 or not plain or re.search(r"Error\b|Traceback|/tmp|0x[0-9a-f]{4}", message):
        raise ValueError(f"{response.status_code} {message[:300]}")
    return message


def upload(server: Server, path: Path, name: str | None = None) -> tuple[str | None, str]:
    """(id, "") of a file that is taken, (None, sentence) of one that is not."""
    with path.open("rb") as file:
        response = server.client.post(
            "/v1/files", files={"file": (path.name if name is None else name, file)}, data={"purpose": "user_data"}
        )
    if response.status_code == 200:
        return response.json()["id"], ""
    return None, sentence_of(response)


def wait_for(server: Server, path: str, field: str, busy: set[str]) -> dict[str, Any]:
    end = time.monotonic() + PATIENCE
    while time.monotonic() < end:
        told = server.client.get(path).raise_for_status().json()
        if told[field] not in busy:
            return told
        time.sleep(0.1)
    raise TimeoutError(f"{path} did not come to an end")


def walk(server: Server, name: str) -> dict[str, Any]:
    """What a person does with a video that was taken; every answer is what was asked for or one sentence."""
    known, told = name.removeprefix("file-"), {}
    playing = wait_for(server, f"/media/{known}/state", "play", {"making"})
    told["play"] = playing["sentence"] or playing["play"]
    looked = wait_for(server, f"/storyboard/{known}", "state", {"making"})
    told["storyboard"] = looked["sentence"] or len(looked["segments"])
    end = max((segment[1] for segment in looked["segments"]), default=1.0)
    for what, address in {
        "tracks": f"/media/{known}/tracks",
        "first": f"/thumb/{known}/0.webp",
        "last": f"/thumb/{known}/{end}.webp",
        "frame": f"/media/{known}/frame.png?t={end / 2}",
        "around": f"/media/{known}/around?t={end / 2}",
        "part": f"/media/{known}/clip.mp4?start=0.2&end=1.2",
        "original": f"/media/{known}?original=1",
    }.items():
        response = server.client.get(address)
        told[what] = "ok" if response.status_code == 200 else sentence_of(response)
    return told


def ask(server: Server, name: str) -> str:
    response = server.client.post(
        "/v1/chat/completions",
        json={
            "model": server.model,
            "max_tokens": 2,
            "messages": [
                {
                    "role": "user",
                    "content": [
                        {"type": "video_url", "video_url": {"url": name}},
                        {"type": "text", "text": QUESTION},
                    ],
                }
            ],
        },
    )
    return "answered" if response.status_code == 200 else sentence_of(response)


def remove(server: Server, name: str) -> None:
    server.client.delete(f"/v1/files/{name}").raise_for_status()


def one(server: Server, path: Path, before: dict[str, Any], name: str | None = None) -> dict[str, Any]:
    began = time.perf_counter()
    told: dict[str, Any] = {}
    try:
        file, sentence = upload(server, path, name)
        told["came"] = sentence or "read"
        if file is not None and path.suffix != ".srt":
            try:
                told.update(walk(server, file))
                told["question"] = ask(server, file)
            finally:
                remove(server, file)
        elif file is not None:
            remove(server, file)
    except (ValueError, KeyError, TimeoutError, httpx.HTTPError) as error:
        told["wrong"] = f"{type(error).__name__}: {error}"[:400]
    told["seconds"] = round(time.perf_counter() - began, 2)
    told["server_mb"] = round(status(server.process.pid)["VmRSS"] / 1e6)
    if left := server.settled(before):
        told["left"] = left
    return told


@contextmanager
def broken_off(server: Server, address: str) -> Iterator[None]:
    """A request whose client leaves after the block."""
    with httpx.Client(base_url=server.address, timeout=0.5) as client:
        with suppress(httpx.TimeoutException):
            client.get(address)
        yield


def leave_while_working(server: Server, path: Path, before: dict[str, Any]) -> dict[str, Any]:
    """The file is deleted while it is looked through, copied and cut, and the clients have left."""
    told: dict[str, Any] = {}
    file, told["came"] = upload(server, path)
    assert file is not None
    known = file.removeprefix("file-")
    for address in (f"/media/{known}/state", f"/storyboard/{known}"):
        server.client.get(address)
    with broken_off(server, f"/media/{known}/clip.mp4?start=0&end=50"):
        remove(server, file)
    if left := server.settled(before):
        told["left"] = left
    return told


def break_off_upload(server: Server, before: dict[str, Any]) -> dict[str, Any]:
    def half() -> Iterator[bytes]:
        yield bytes(4 << 20)
        raise httpx.ReadError("gone")

    with suppress(httpx.ReadError):
        httpx.post(f"{server.address}/upload?name=film.mp4", content=half())
    left = server.settled(before)
    return {"came": "broken off", **({"left": left} if left else {})}


def measure(model: str, only: str) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        server = Server(folder, model)
        try:
            return {"device": f"{os.cpu_count()} CPU cores, {platform.machine()}", **run(server, folder, only)}
        finally:
            server.stop()


def run(server: Server, folder: Path, only: str) -> dict[str, Any]:
    films = folder / "films"
    films.mkdir()
    secret = clips.bars_clip(folder / "secret.ts", STEADY, g="20")
    listener = socket.create_server(("127.0.0.1", 0))
    listener.setblocking(False)
    good = clips.bars_clip(folder / "good.mp4", STEADY, g="20", sound="aac")
    one(server, good, server.state())  # what is imported on first use is there afterwards
    before, memory = server.state(), resident(server.process.pid)
    peak, told, bad = Peak(server.process.pid), dict[str, Any](), list[str]()

    def note(kind: str, expected: str, row: dict[str, Any]) -> None:
        taken = row["came"] == "read" if "came" in row else None
        if expected != "either" and taken is not None and taken != (expected == "read"):
            row["wrong"] = f"it should have been {expected}"
        if "left" in row or "wrong" in row:
            bad.append(kind)
        told[kind] = row
        print(json.dumps({kind: row}, ensure_ascii=False), file=sys.stderr, flush=True)

    for kind, (expected, make) in kinds(secret, listener.getsockname()[1]).items():
        if only in kind:
            place = films / str(len(told))
            place.mkdir()
            note(kind, expected, one(server, make(place), before))
    for kind, called in NAMES.items():
        if only in (kind := f"a name with {kind}"):
            note(kind, "either", one(server, good, before, called))
    if not only:
        busy = clips.colour_clip(folder / "busy.avi", 60, fps=25, size=(640, 360), codec="mpeg4", clock=Fraction(1, 25))
        note("deleted while it is read", "either", leave_while_working(server, busy, before))
        note("an upload that breaks off", "either", break_off_upload(server, before))
    last = one(server, good, before)
    note("a good film afterwards", "read", last)
    after = server.state()
    with listener, suppress(BlockingIOError):
        listener.accept()[0].close()
        bad.append("the address in a playlist was asked")
    return {
        "date": datetime.date.today().isoformat(),
        "files": len(told),
        "read": sum(row.get("came") == "read" for row in told.values()),
        "bad": bad,
        "memory_before_mb": round(memory / 1e6),
        "memory_after_mb": round(resident(server.process.pid) / 1e6),
        "peak_above_before_mb": round((peak.stop() - memory) / 1e6),
        "server_mb": round(status(server.process.pid)["VmRSS"] / 1e6),
        "descriptors": [before["descriptors"], after["descriptors"]],
        "decoder_descriptors": [before["decoder_descriptors"], after["decoder_descriptors"]],
        "results": told,
    }


def main() -> None:
    flags = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    flags.add_argument("--model", default="demo")
    flags.add_argument("--only", default="", help="kinds whose name has these letters")
    given = flags.parse_args()
    print(json.dumps(measure(given.model, given.only), indent=2, ensure_ascii=False))


if __name__ == "__main__":
    main()
