"""What one streamed update of an answer costs the server, with a large video and a long history in the conversation.

A real server with a scripted engine (no model: its cost is not the page's), a client that speaks Gradio's own wire in
another process. CPU time of the whole server process, less what it uses when nobody asks anything, over the updates
that the client received. A page that hands media to Gradio pays for hashing the file at every update (page file of
200 MB: about 400 ms); the goal is below 5 ms.

    python -m benchmarks.page
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from app import build
from qwen3vl_webui.conversation import Conversation
from qwen3vl_webui.jobs import Jobs
from qwen3vl_webui.services import Services
from qwen3vl_webui.settings import Settings
from qwen3vl_webui.store.store import Store
from tests.clips import colour_clip
from tests.scripted_engine import ScriptedEngine
from tests.served import served

GOAL = 5.0  # CPU milliseconds per update
IDLE_SECONDS = 3.0
SENTENCE = "At 第{n}秒 the colour turns and the page says so (0:{s:02d}), which is **worth** a look. "

CLIENT = r"""
import json, sys, time, urllib.request
address, function, payload = sys.argv[1], int(sys.argv[2]), json.loads(sys.argv[3])
def post(path, body):
    request = urllib.request.Request(address + path, json.dumps(body).encode(), {"Content-Type": "application/json"})
    return json.load(urllib.request.urlopen(request))
sent = time.perf_counter()
post("/gradio_api/queue/join", {"data": [], "event_data": payload, "fn_index": function, "session_hash": "benchmark"})
updates, size, first = 0, 0, None
with urllib.request.urlopen(address + "/gradio_api/queue/data?session_hash=benchmark") as stream:
    for line in stream:
        if not line.startswith(b"data:"):
            continue
        message = json.loads(line[5:])
        if message["msg"] == "process_generating":
            updates, size, first = updates + 1, size + len(line), first or time.perf_counter() - sent
        if message["msg"] == "process_completed":
            assert message["success"], message
            break
print(json.dumps({"updates": updates, "bytes": size, "first": first, "seconds": time.perf_counter() - sent}))
"""


def padded_clip(path: Path, megabytes: int) -> Path:
    """A short clip followed by a `free` box of MP4: a valid video of any size."""
    colour_clip(path, 60)
    padding = max(0, megabytes * 1_000_000 - path.stat().st_size)
    with open(path, "ab") as file:
        file.write(padding.to_bytes(4, "big") + b"free")
        file.write(os.urandom(1 << 20) * (padding >> 20))
        file.write(b"\0" * (padding - 8 - ((padding >> 20) << 20)))
    return path


def filled(store: Store, video: Path, messages: int) -> Conversation:
    """A conversation about the video with that many messages, on disk."""
    stored = store.add_file("local", video.name, video)
    conversation = Conversation()
    text = "".join(SENTENCE.format(n=n, s=n) for n in range(14))  # about 300 tokens
    for number in range(messages // 2):
        conversation = conversation.ask(f"Question {number}?", (stored.attachment,) if number == 0 else ())
        question = conversation.leaf
        assert question is not None
        conversation = conversation.update(question, parts=(f"Question {number}?",)).answer()
        answer = conversation.leaf
        assert answer is not None
        conversation = conversation.update(answer, text=text, state="done")
    return store.save("local", replace(conversation, title="Benchmark"))


def measure(folder: Path, *, megabytes: int, messages: int, tokens: int, pace: float) -> dict[str, Any]:
    words = [SENTENCE.format(n=n % 60, s=n % 60) for n in range(tokens)]
    pieces = [piece for word in words for piece in word.split(" ")]
    engine = ScriptedEngine([piece + " " for piece in pieces[:tokens]], pace=pace)
    store = Store(folder / "data")
    services = Services(Settings(data_dir=folder / "data"), engine, store, Jobs(engine, store))
    conversation = filled(store, padded_clip(folder / "large.mp4", megabytes), messages)
    app = build(services)
    with served(app) as address:
        payload = {"do": "open", "conversation": conversation.id, "command": "warm"}
        run_client(address, payload)
        began, cpu = time.perf_counter(), time.process_time()
        time.sleep(IDLE_SECONDS)
        idle = (time.process_time() - cpu) / (time.perf_counter() - began)
        payload = {"do": "send", "conversation": conversation.id, "text": "Go on.", "files": [], "command": "go"}
        began, cpu = time.perf_counter(), time.process_time()
        client = run_client(address, payload)
        used, wall = time.process_time() - cpu, time.perf_counter() - began
    updates = client["updates"]
    per_update = 1000 * (used - idle * wall) / updates
    return {
        "cpu_ms_per_update": round(per_update, 2),
        "goal_ms": GOAL,
        "below_goal": per_update < GOAL,
        "updates": updates,
        "updates_per_second": round(updates / client["seconds"], 1),
        "bytes_per_update": round(client["bytes"] / updates),
        "first_update_ms": round(1000 * client["first"], 1),
        "idle_cpu_percent": round(100 * idle, 1),
        "busy_cpu_percent": round(100 * used / wall, 1),
        "answer_tokens": tokens,
        "messages": messages,
        "video_megabytes": megabytes,
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
        "load_average": round(os.getloadavg()[0], 1),
    }


def run_client(address: str, payload: dict[str, Any]) -> dict[str, Any]:
    arguments = [sys.executable, "-c", CLIENT, address, "0", json.dumps(payload)]
    return json.loads(subprocess.run(arguments, capture_output=True, text=True, check=True).stdout)


def main() -> None:
    flags = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    flags.add_argument("--megabytes", type=int, default=200, help="size of the video in the conversation")
    flags.add_argument("--messages", type=int, default=40, help="messages before the answer")
    flags.add_argument("--tokens", type=int, default=1000, help="length of the answer")
    flags.add_argument("--pace", type=float, default=0.015, help="seconds between tokens")
    given = flags.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        measured = measure(
            Path(folder), megabytes=given.megabytes, messages=given.messages, tokens=given.tokens, pace=given.pace
        )
    print(json.dumps(measured, indent=2))


if __name__ == "__main__":
    main()
