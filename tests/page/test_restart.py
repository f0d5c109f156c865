"""`python app.py` as a person starts it: the power fails in an answer, and everything said is still there."""

import os
import signal
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.served import wait_until
from tests.tiny import tiny_checkpoint

pytestmark = pytest.mark.browser

ROOT = Path(__file__).resolve().parents[2]


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


@contextmanager
def started(port: int, data: Path, log: Path) -> Iterator[subprocess.Popen]:
    """A server in its own process, ready; killed without warning at the end."""
    command = [sys.executable, "app.py", "--model", str(tiny_checkpoint())]
    command += ["--port", str(port), "--data-dir", str(data)]
    with log.open("ab") as output:
        server = subprocess.Popen(
            command, cwd=ROOT, stdout=output, stderr=output, env=os.environ | {"OMP_NUM_THREADS": "1"}
        )
    try:
        wait_until(lambda: server.poll() is not None or is_ready(port), timeout=120)
        assert server.poll() is None, log.read_text()
        yield server
    finally:
        server.send_signal(signal.SIGKILL)
        server.wait(10)


def is_ready(port: int) -> bool:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/healthz", timeout=5) as reply:
            return b'"ok"' in reply.read()
    except (urllib.error.URLError, OSError):
        return False


def test_what_was_acknowledged_outlives_kill_9(chromium, house, tmp_path):
    port, data, log = free_port(), tmp_path / "data", tmp_path / "log"
    address = f"http://127.0.0.1:{port}"
    context = chromium.new_context(viewport={"width": 1440, "height": 900}, locale="en-US")
    page = context.new_page()
    page.set_default_timeout(30_000)
    with started(port, data, log):
        page.goto(address)
        page.wait_for_selector(".qv-welcome")
        page.wait_for_selector("text=These weights are random")  # noise is not passed off as an answer
        page.set_input_files("#qv-picker", [str(house.files / "colours.mp4")])
        page.wait_for_selector(".qv-composer .qv-chip:not(.qv-chip-busy)")
        page.fill("#qv-question", "When is it the seventh second?")
        page.press("#qv-question", "Enter")
        page.wait_for_selector(".qv-answer.qv-writing .qv-text:not(:empty), .qv-answer[data-turn]")
    with started(port, data, log):
        page.goto(address)
        page.wait_for_selector("text=When is it the seventh second?")
        # What there was of the answer stands, and nothing pretends to go on.
        page.wait_for_function(
            "() => document.querySelector('.qv-answer[data-turn]') && !document.querySelector('.qv-answer.qv-writing')"
        )
        page.wait_for_function("() => document.querySelector('#qv-video')?.readyState >= 2")
        page.fill("#qv-question", "And now?")
        page.press("#qv-question", "Enter")
        page.wait_for_function("() => document.querySelectorAll('.qv-answer').length === 2")
    context.close()
