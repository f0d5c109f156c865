"""A long video through the whole server: upload, plan, answer; peak memory of every process beside the idle server.

Starts `app.py`, uploads a generated 1080p lecture through the API, asks twice about it with the official client, and
prints JSON. `growth` is the peak resident memory of the server and all its children together, less what they held
when the model had just been loaded (pages shared between processes count in each, so it errs upward).

    python -m benchmarks.server_memory --hours 2 --model demo
"""

from __future__ import annotations

import argparse
import datetime
import json
import platform
import socket
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import httpx
from openai import OpenAI

from benchmarks.long_video import children_of, make, status

ROOT = Path(__file__).resolve().parent.parent


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def resident(process: int) -> int:
    """Bytes of a process and all below it."""
    return status(process).get("VmRSS", 0) + sum(resident(child) for child in children_of(process))


class Peak:
    def __init__(self, process: int) -> None:
        self.bytes = 0
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._watch, args=(process,), daemon=True)
        self._thread.start()

    def _watch(self, process: int) -> None:
        while not self._stopped.wait(0.05):
            self.bytes = max(self.bytes, resident(process))

    def stop(self) -> int:
        self._stopped.set()
        self._thread.join()
        return self.bytes


def ask(client: OpenAI, model: str, file_id: str, question: str) -> dict[str, Any]:
    began, first, text, usage = time.perf_counter(), None, "", None
    stream = client.chat.completions.create(
        model=model,
        max_tokens=32,
        stream=True,
        stream_options={"include_usage": True},
        messages=[
            {
                "role": "user",
                "content": [
                    {"type": "video_url", "video_url": {"url": file_id}},
                    {"type": "text", "text": question},
                ],
            }
        ],
    )
    for chunk in stream:
        if chunk.usage:
            usage = chunk.usage
        if chunk.choices and chunk.choices[0].delta.content:
            first = first or time.perf_counter()
            text += chunk.choices[0].delta.content
    assert usage is not None
    return {
        "prompt_tokens": usage.prompt_tokens,
        "reused_tokens": usage.prompt_tokens_details.cached_tokens if usage.prompt_tokens_details else 0,
        "first_token_seconds": round((first or time.perf_counter()) - began, 2),
        "seconds": round(time.perf_counter() - began, 2),
        "answer": text,
    }


def measure(hours: float, gop: int, model: str) -> dict[str, Any]:
    port = free_port()
    with tempfile.TemporaryDirectory() as folder:
        film = Path(folder) / "lecture.mp4"
        make(film, hours * 3600, gop, 1920, 1080)
        server = subprocess.Popen(
            [sys.executable, "app.py", "--model", model, "--data-dir", f"{folder}/data", "--port", str(port)],
            cwd=ROOT,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.STDOUT,
        )
        try:
            url = f"http://127.0.0.1:{port}"
            health = wait_until_ready(url)
            idle = resident(server.pid)
            peak = Peak(server.pid)
            client = OpenAI(base_url=f"{url}/v1", api_key="none")
            began = time.perf_counter()
            with film.open("rb") as file:
                uploaded = client.files.create(file=file, purpose="user_data")
            upload_seconds = time.perf_counter() - began
            first = ask(client, health["model"], uploaded.id, "When does the red circle appear?")
            second = ask(client, health["model"], uploaded.id, "When does the blue square appear?")
            highest = peak.stop()
        finally:
            server.terminate()
            server.wait(timeout=60)
        return {
            "date": datetime.date.today().isoformat(),
            "device": f"{health['device']}, {platform.machine()}",
            "file": {"hours": hours, "gop": gop, "bytes": film.stat().st_size},
            "upload_seconds": round(upload_seconds, 1),
            "first": first,
            "second": second,
            "idle_bytes": idle,
            "peak_bytes": highest,
            "growth_gib": round((highest - idle) / 2**30, 2),
        }


def wait_until_ready(url: str, patience: float = 600.0) -> dict[str, Any]:
    end = time.monotonic() + patience
    while time.monotonic() < end:
        try:
            health = httpx.get(f"{url}/healthz").json()
            if health["status"] == "ok":
                return health
        except httpx.HTTPError:
            pass
        time.sleep(0.2)
    raise SystemExit("the server did not become ready")


def main() -> None:
    flags = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    flags.add_argument("--hours", type=float, default=2.0)
    flags.add_argument("--gop", type=int, default=250)
    flags.add_argument("--model", default="demo")
    given = flags.parse_args()
    print(json.dumps(measure(given.hours, given.gop, given.model), indent=2, ensure_ascii=False))


if __name__ == "__main__":
    main()
