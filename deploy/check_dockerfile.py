"""Runs the Dockerfile's own install and start commands in a fresh virtual environment, and waits for `/healthz`.

    python deploy/check_dockerfile.py

No container engine is needed; the base image and its Debian packages are not checked. Exits 1 with the reason when the
server does not come up.
"""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
HOME = "/home/qwen"
PORT = 17860
PATIENCE = 180.0  # seconds until the page must be healthy


def instructions(dockerfile: str) -> list[tuple[str, str]]:
    """(`RUN`, text) and so on, continuation lines joined, comments dropped."""
    lines = [line for line in dockerfile.splitlines() if line.strip() and not line.lstrip().startswith("#")]
    joined = re.sub(r"\\\n\s*", " ", "\n".join(lines))
    return [(line.split(None, 1)[0], line.split(None, 1)[1]) for line in joined.splitlines()]


def main() -> None:
    steps = instructions((ROOT / "Dockerfile").read_text(encoding="utf-8"))
    install = next(text for name, text in steps if name == "RUN" and "pip install" in text)
    start = shlex.split(next(text for name, text in steps if name == "CMD").translate(str.maketrans("[],", "   ")))
    variables = dict(
        pair.split("=", 1) for name, text in steps if name == "ENV" for pair in shlex.split(text) if "=" in pair
    )
    with tempfile.TemporaryDirectory() as home:
        environment = os.environ | {
            name: value.replace("/data", f"{home}/data").replace("/weights", f"{home}/weights")
            for name, value in variables.items()
        }
        environment |= {"QWEN3VL_OPEN": "1", "QWEN3VL_PORT": str(PORT)}
        subprocess.run(install.replace(HOME, home), shell=True, check=True, cwd=ROOT)
        server = subprocess.Popen([part.replace(HOME, home) for part in start], cwd=ROOT, env=environment)
        try:
            answer = wait_until_healthy(server)
        finally:
            server.terminate()
            server.wait(timeout=30)
    print(answer)


def wait_until_healthy(server: subprocess.Popen[bytes]) -> str:
    end = time.monotonic() + PATIENCE
    answer = "no answer"
    while time.monotonic() < end and server.poll() is None:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{PORT}/healthz", timeout=5) as reply:
                answer = reply.read().decode()
                if '"ok"' in answer:
                    return answer
        except OSError as error:
            answer = str(error)
        time.sleep(0.5)
    sys.exit(f"the server did not become healthy: {answer}")


if __name__ == "__main__":
    main()
