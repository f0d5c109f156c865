"""Takes the README's screenshots: starts the app, asks its three examples in the browser, opens their evidence.

    python docs/take_screenshots.py [--model demo]

Wants Chromium and the test requirements. Writes assets/screenshots/{video,pdf,picture}-{en,zh}.png, a dark and a phone
one, and prints each answer.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from playwright.sync_api import sync_playwright

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks.server_memory import free_port, wait_until_ready  # noqa: E402

SAMPLES = ROOT / "assets" / "samples"
TARGET = ROOT / "assets" / "screenshots"
EXAMPLES = {
    "video": ("sample.mp4", {"en": "When does the red circle appear?", "zh": "红色圆形什么时候出现？"}),
    "pdf": ("sample.pdf", {"en": "Which page says 7342?", "zh": "哪一页写着7342？"}),
    "picture": ("sample.png", {"en": "What is in the picture?", "zh": "图里有什么？"}),
}
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--autoplay-policy=no-user-gesture-required"]


def ask(page: Any, address: str, file: str, question: str) -> str:
    """Asks in a new chat and opens the first link of the answer."""
    page.goto(address)
    page.wait_for_function("() => document.querySelector('.qv-model-name')?.textContent.trim().length > 0")
    page.keyboard.press("Control+Shift+O")
    page.wait_for_selector(".qv-welcome")
    page.set_input_files("#qv-picker", str(SAMPLES / file))
    page.wait_for_selector(".qv-composer .qv-chip:not(.qv-chip-busy)")
    page.fill("#qv-question", question)
    page.press("#qv-question", "Enter")
    page.wait_for_selector(".qv-answer .qv-stats", timeout=120_000)
    answer = str(page.inner_text(".qv-answer .qv-text"))
    links = page.locator(".qv-answer .qv-text a.qv-cite")
    if links.count():
        links.first.click()
    page.wait_for_timeout(2_000)  # the picture under the link settles
    return answer


def main() -> None:
    flags = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    flags.add_argument("--model", default="demo")
    given = flags.parse_args()
    TARGET.mkdir(parents=True, exist_ok=True)
    port = free_port()
    address = f"http://localhost:{port}"
    with tempfile.TemporaryDirectory() as data, sync_playwright() as playwright:
        command = [sys.executable, "app.py", "--model", given.model, "--port", str(port), "--data-dir", data]
        server = subprocess.Popen(command, cwd=ROOT)
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=FLAGS)
        try:
            wait_until_ready(address)
            for language, locale in (("en", "en-US"), ("zh", "zh-CN")):
                context = browser.new_context(locale=locale, viewport={"width": 1440, "height": 900})
                page = context.new_page()
                for name, (file, questions) in EXAMPLES.items():
                    print(f"{name} {language}:", ask(page, address, file, questions[language]))
                    page.screenshot(path=TARGET / f"{name}-{language}.png")
                context.close()
            for name, options in {
                "dark": {"color_scheme": "dark", "viewport": {"width": 1440, "height": 900}},
                "phone": {"viewport": {"width": 390, "height": 844}, "device_scale_factor": 2, "has_touch": True},
            }.items():
                context = browser.new_context(locale="en-US", **options)
                page = context.new_page()
                file, questions = EXAMPLES["video"]
                ask(page, address, file, questions["en"])
                page.screenshot(path=TARGET / f"{name}.png")
                context.close()
        finally:
            browser.close()
            server.terminate()
            server.wait(30)


if __name__ == "__main__":
    main()
