"""How soon a person sees what is in a long video: seconds from choosing the file to its pictures on the page.

A real server (scripted engine: no model takes part), a real Chromium, a lecture of 1080p30 made here. Prints JSON: wall
seconds until the upload has ended, until the first picture is drawn, the third, and until the video is looked through.

    python -m benchmarks.first_frames --hours 2
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import tempfile
import time
from pathlib import Path
from typing import Any

from app import build
from benchmarks.lectures import lecture, write
from qwen3vl_webui.jobs import Jobs
from qwen3vl_webui.services import Services
from qwen3vl_webui.settings import Settings
from qwen3vl_webui.store.store import Store
from tests.scripted_engine import ScriptedEngine
from tests.served import served

PART = 60  # seconds encoded, then repeated
DRAWN = (
    "n => [...document.querySelectorAll('.qv-board-moment img')]"
    ".filter((each) => each.complete && each.naturalWidth).length >= n"
)


def measure(folder: Path, hours: float, gop: int) -> dict[str, Any]:
    from playwright.sync_api import sync_playwright

    script = lecture(1, PART)
    film = write(folder / "film.mp4", script, repeats=max(1, round(hours * 3600 / PART)), preset="veryfast", g=str(gop))
    engine, store = ScriptedEngine(), Store(folder / "data")
    services = Services(Settings(data_dir=folder / "data"), engine, store, Jobs(engine, store))
    report: dict[str, Any] = {"hours": hours, "gop": gop, "megabytes": round(film.stat().st_size / 1e6)}
    with served(build(services)) as address, sync_playwright() as playwright:
        chromium = shutil.which("chromium") or shutil.which("chromium-browser")
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        page = browser.new_page()
        page.goto(address)
        page.wait_for_selector(".qv-welcome")
        page.wait_for_function("document.querySelector('.qv-model-name')?.textContent === 'scripted'")
        began = time.perf_counter()

        def after(name: str) -> None:
            report[f"{name}, s"] = round(time.perf_counter() - began, 2)

        page.set_input_files("#qv-picker", str(film))
        page.wait_for_selector(".qv-board", timeout=300_000)
        after("uploaded")
        page.wait_for_function(DRAWN, arg=1, timeout=300_000)
        after("first picture")
        page.wait_for_function(DRAWN, arg=3, timeout=300_000)
        after("third picture")
        page.wait_for_selector(".qv-board-words:has-text('Looked through')", timeout=600_000)
        after("looked through")
        browser.close()
    report["load_average"] = round(os.getloadavg()[0], 1)
    return report


def main() -> None:
    flags = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    flags.add_argument("--hours", type=float, default=2.0)
    flags.add_argument("--gop", type=int, default=250)
    given = flags.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        print(json.dumps(measure(Path(folder), given.hours, given.gop), indent=2))


if __name__ == "__main__":
    main()
