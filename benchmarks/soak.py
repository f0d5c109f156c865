"""Four users at once for a long time: text, pictures, videos and PDFs, follow-ups, answers that are broken off.

    python -m benchmarks.soak --minutes 60 [--model demo]

Starts `app.py` and talks to it through its API with the official client. Each user asks one thing after another; three
in ten answers are left before their end. Now and then a fifth client asks the same greedy question, whose answer must
not change. Memory of the server process is sampled all the while; `growth` compares the median of the last fifth of
the time with that of the second fifth (the first fills caches). Prints one JSON object.
"""

from __future__ import annotations

import argparse
import base64
import datetime
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

from openai import OpenAI

from benchmarks.long_video import children_of, status
from benchmarks.reuse import device_name
from benchmarks.server_memory import ROOT, free_port, resident, wait_until_ready
from tests import clips

USERS = 4
LEFT = 0.3  # share of answers that are broken off
SAMPLE_SECONDS = 2.0
PROBE_SECONDS = 15.0
SHAPES = ("red circle", "blue square", "green triangle", "yellow star")
Message = dict[str, Any]


def make_files(folder: Path) -> list[Path]:
    pictures = [clips.png(folder / f"{n}.png", 160 + 80 * n, 120 + 40 * n) for n in range(6)]
    films = [clips.colour_clip(folder / f"{n}.mp4", 8.0 + 12 * n) for n in range(3)]
    texts = [[f"Page {page}: the number is {seed * 1000 + page}." for page in range(1, 6)] for seed in (7, 8)]
    return [*pictures, *films, *(clips.pdf(folder / f"{n}.pdf", pages) for n, pages in enumerate(texts))]


def part_of(path: Path, file_id: str) -> Message:
    if path.suffix == ".pdf":
        return {"type": "file", "file": {"file_id": file_id}}
    kind = "image_url" if path.suffix == ".png" else "video_url"
    return {"type": kind, kind: {"url": file_id}}


class User(threading.Thread):
    """One who asks and asks; `counts` and `errors` are its own."""

    def __init__(self, url: str, model: str, name: str, files: dict[Path, str], until: float) -> None:
        super().__init__(name=name)
        self.client = OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0, timeout=300)
        self.model, self.files, self.until = model, files, until
        self.draw = random.Random(name)
        self.history: list[Message] = []
        self.counts: Counter[str] = Counter()
        self.errors: Counter[str] = Counter()
        self.first_tokens: list[float] = []

    def run(self) -> None:
        while time.monotonic() < self.until:
            try:
                self.ask()
            except Exception as error:  # it is counted, and the soak goes on
                self.errors[f"{type(error).__name__}: {str(error)[:120]}"] += 1
                self.history = []

    def question(self) -> tuple[str, Message]:
        kind = self.draw.choice(["text", "long text", "file", "file", "file", "inline", "follow-up", "follow-up"])
        words = f"Where is the {self.draw.choice(SHAPES)}?"
        if kind == "follow-up" and 0 < len(self.history) < 6:
            return kind, {"role": "user", "content": words}
        self.history = []
        if kind == "file":
            path = self.draw.choice(list(self.files))
            part = part_of(path, self.files[path])
            return path.suffix[1:], {"role": "user", "content": [part, {"type": "text", "text": words}]}
        if kind == "inline":
            path = self.draw.choice([path for path in self.files if path.suffix == ".png"])
            data = base64.b64encode(path.read_bytes()).decode()
            part = {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{data}"}}
            return kind, {"role": "user", "content": [part, {"type": "text", "text": words}]}
        if kind == "long text":
            return kind, {"role": "user", "content": f"{' '.join(self.draw.choices(SHAPES, k=150))} {words}"}
        return "text", {"role": "user", "content": words}

    def ask(self) -> None:
        kind, message = self.question()
        leave_after = self.draw.randrange(12) if self.draw.random() < LEFT else None
        messages = [*self.history, message]
        began, text = time.monotonic(), ""
        stream = self.client.chat.completions.create(
            model=self.model,
            messages=messages,  # type: ignore[arg-type]
            stream=True,
            max_tokens=self.draw.choice([8, 32, 96]),
            temperature=self.draw.choice([0.0, 0.7, 1.2]),
            user=self.name,
            extra_body={"priority": self.draw.choice(["interactive", "chat", "chat", "batch"])},
        )
        with stream:
            for place, chunk in enumerate(stream):
                if leave_after is not None and place >= leave_after:
                    self.counts["left"] += 1
                    self.history = []
                    return
                if chunk.choices and chunk.choices[0].delta.content:
                    if not text:
                        self.first_tokens.append(time.monotonic() - began)
                    text += chunk.choices[0].delta.content
        self.counts[kind] += 1
        self.history = [*messages, {"role": "assistant", "content": text or "Nothing."}]


def probe(client: OpenAI, model: str, part: Message) -> str:
    answer = client.chat.completions.create(
        model=model,
        messages=[{"role": "user", "content": [part, {"type": "text", "text": "Where is the blue square?"}]}],  # type: ignore[list-item, misc]
        max_tokens=48,
        temperature=0,
        presence_penalty=0,
    )
    return answer.choices[0].message.content or ""


def device_bytes() -> int | None:
    """Used on the first CUDA device, by everyone."""
    query = ["nvidia-smi", "--query-gpu=memory.used", "--format=csv,noheader,nounits", "-i", "0"]
    try:
        return int(subprocess.run(query, capture_output=True, check=True, text=True).stdout) * 2**20
    except (OSError, subprocess.CalledProcessError, ValueError):
        return None


def growth(samples: list[int]) -> dict[str, Any]:
    fifth = max(1, len(samples) // 5)
    early, late = statistics.median(samples[fifth : 2 * fifth]), statistics.median(samples[-fifth:])
    return {
        "early_mib": round(early / 2**20, 1),
        "late_mib": round(late / 2**20, 1),
        "peak_mib": round(max(samples) / 2**20, 1),
        "growth_percent": round(100 * (late - early) / early, 2),
    }


def measure(minutes: float, model: str, folder: Path) -> dict[str, Any]:
    port = free_port()
    command = [sys.executable, "app.py", "--model", model, "--data-dir", f"{folder}/data", "--port", str(port)]
    with (folder / "server.log").open("wb") as log:
        server = subprocess.Popen(command, cwd=ROOT, stdout=log, stderr=subprocess.STDOUT)
    try:
        url = f"http://127.0.0.1:{port}"
        health = wait_until_ready(url)
        client = OpenAI(base_url=f"{url}/v1", api_key="none")
        paths = make_files(folder)
        files = {path: client.files.create(file=path.open("rb"), purpose="user_data").id for path in paths}
        part = part_of(paths[0], files[paths[0]])
        expected = probe(client, health["model"], part)
        until = time.monotonic() + minutes * 60
        users = [User(url, health["model"], f"user{n}", files, until) for n in range(USERS)]
        for user in users:
            user.start()
        host: list[int] = []
        everything: list[int] = []
        device: list[int] = []
        probes = wrong = 0
        next_probe = time.monotonic() + PROBE_SECONDS
        while any(user.is_alive() for user in users):
            time.sleep(SAMPLE_SECONDS)
            host.append(status(server.pid)["VmRSS"])
            everything.append(resident(server.pid))
            if (used := device_bytes()) is not None:
                device.append(used)
            if next_probe < time.monotonic() < until:
                probes += 1
                wrong += probe(client, health["model"], part) != expected
                next_probe = time.monotonic() + PROBE_SECONDS
        for user in users:
            user.join()
        threads = len(os.listdir(f"/proc/{server.pid}/task"))
        children = len(children_of(server.pid))
    finally:
        server.terminate()
        server.wait(timeout=60)
    counts = sum((user.counts for user in users), Counter[str]())
    first_tokens = sorted(second for user in users for second in user.first_tokens)
    return {
        "benchmark": "soak",
        "date": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "device": health["device"],
        "machine": device_name_of(health["device"]),
        "load_average": round(os.getloadavg()[0], 1),
        "minutes": minutes,
        "users": USERS,
        "answers": dict(counts),
        "errors": dict(sum((user.errors for user in users), Counter[str]())),
        "first_token_seconds": {
            "median": round(statistics.median(first_tokens), 2),
            "p95": round(first_tokens[int(0.95 * len(first_tokens))], 2),
            "longest": round(first_tokens[-1], 2),
        },
        "probes": probes,
        "probes_that_changed": wrong,
        "server": growth(host),
        "server_and_children_peak_mib": round(max(everything) / 2**20, 1),
        "device_memory": growth(device) if device else None,
        "threads_at_the_end": threads,
        "children_at_the_end": children,
    }


def device_name_of(device: str) -> str:
    import torch

    return device_name(torch.device("cuda" if device.startswith("cuda") else "cpu"))


def main() -> None:
    flags = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    flags.add_argument("--minutes", type=float, default=60.0)
    flags.add_argument("--model", default="demo")
    given = flags.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        print(json.dumps(measure(given.minutes, given.model, Path(folder)), indent=2))


if __name__ == "__main__":
    main()
