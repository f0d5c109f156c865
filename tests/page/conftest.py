"""A real server with a scripted engine and a real Chromium, shared by the tests of this folder."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from app import build
from qwen3vl_webui.jobs import Jobs
from qwen3vl_webui.services import Services
from qwen3vl_webui.settings import Settings
from qwen3vl_webui.store.store import Store
from tests.clips import colour_at, colour_clip, film, pdf, png
from tests.scripted_engine import Gate, ScriptedEngine
from tests.served import served

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
REQUIRED = os.environ.get("CI") == "true" or bool(os.environ.get("QWEN3VL_REQUIRE_BROWSER"))
FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-dev-shm-usage",
    "--autoplay-policy=no-user-gesture-required",
]
WATCH = """
window.violations = [];
addEventListener('securitypolicyviolation',
  (event) => violations.push(event.violatedDirective + ' ' + event.blockedURI));
"""


@dataclass
class House:
    """A running server and what it is made of."""

    address: str
    engine: ScriptedEngine
    services: Services
    files: Path

    def reset(self) -> None:
        """The engine as new; what an earlier test left running is stopped."""
        engine = self.engine
        engine.gate.release()
        for summary in self.services.store.conversations("local"):
            job = self.services.jobs.find(summary.id)
            if job is not None and job.running:
                job.stop()
                job.join(10)
            self.services.store.delete("local", summary.id)
        engine.script, engine.thinking, engine.endless = "Hello from the script.", "", False
        engine.gate, engine.pace, engine.fail, engine.refuse = Gate(), 0.0, None, None
        engine.note, engine.alike = "", None
        engine.requests.clear()
        engine.stopped.clear()
        engine.finished.clear()


@pytest.fixture(scope="session")
def house(tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    files = tmp_path_factory.mktemp("files")
    colour_clip(files / "colours.mp4", 30)
    film(
        files / "old.avi",
        (n / 10 for n in range(300)),
        lambda _, seconds: np.full((180, 320, 3), colour_at(seconds + 1e-6), np.uint8),
        codec="mpeg4",
        fps=10,
        clock=Fraction(1, 10),
    )
    pdf(files / "contract.pdf", [f"Agreement, page {page}" for page in range(1, 8)])
    png(files / "scene.png", 640, 480)
    (files / "broken.mp4").write_bytes(b"\0\0\0\x18ftypmp42 but nothing more")
    with opened(tmp_path_factory.mktemp("data"), files) as house:
        yield house


@contextmanager
def opened(data: Path, files: Path, **settings: Any) -> Iterator[House]:
    engine, store = ScriptedEngine(), Store(data)
    services = Services(Settings(data_dir=data, **settings), engine, store, Jobs(engine, store))
    with served(build(services)) as address:
        yield House(address, engine, services, files)


@pytest.fixture(scope="session")
def chromium(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    if CHROMIUM is None:
        if REQUIRED:
            pytest.fail("Chromium is not installed, and this run requires it")
        pytest.skip("Chromium is not installed")
    sync_api = pytest.importorskip("playwright.sync_api")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, headless=True, args=FLAGS)
        yield browser
        browser.close()


@dataclass
class Visit:
    """One open page, and whatever it complained about or asked of other servers."""

    page: Any
    house: House
    complaints: list[str] = field(default_factory=list)
    outside: list[str] = field(default_factory=list)

    def open(self) -> Visit:
        self.page.goto(self.house.address)
        self.page.wait_for_selector(".qv-welcome, .qv-row", timeout=30_000)
        self.page.wait_for_function("document.querySelector('.qv-model-name')?.textContent === 'scripted'")
        return self

    def reload(self) -> None:
        """Gradio's own client complains of the streams that a reload cuts; that is not the page's fault."""
        before = len(self.complaints)
        self.page.reload()
        self.page.wait_for_selector(".qv-welcome, .qv-row", timeout=30_000)
        cut = ("AbortError", "Connection errored out", "BodyStreamBuffer was aborted")
        self.complaints[before:] = [each for each in self.complaints[before:] if not any(word in each for word in cut)]

    def attach(self, *names: str) -> None:
        self.page.set_input_files("#qv-picker", [str(self.house.files / name) for name in names])
        self.page.wait_for_function(
            "count => document.querySelectorAll('.qv-composer .qv-chip').length === count"
            " && !document.querySelector('.qv-composer .qv-chip-busy')",
            arg=len(names),
            timeout=30_000,
        )

    def ask(self, text: str, *names: str) -> None:
        if names:
            self.attach(*names)
        self.page.fill("#qv-question", text)
        self.page.press("#qv-question", "Enter")

    def settled(self, answers: int = 1) -> None:
        """Until that many answers stand whole (or ended)."""
        self.page.wait_for_function(
            "count => document.querySelectorAll('.qv-answer[data-turn]').length === count"
            " && !document.querySelector('.qv-writing') && !document.querySelector('.qv-is-stop')",
            arg=answers,
            timeout=30_000,
        )

    def answer(self) -> str:
        return str(self.page.locator(".qv-answer .qv-text").last.inner_text())

    def player_colour(self) -> list[int]:
        """The colour in the middle of the picture the player shows."""
        return list(
            self.page.evaluate(
                """() => {
                  const video = document.querySelector('#qv-video'), canvas = document.createElement('canvas');
                  [canvas.width, canvas.height] = [video.videoWidth, video.videoHeight];
                  const pen = canvas.getContext('2d');
                  pen.drawImage(video, 0, 0);
                  return [...pen.getImageData(canvas.width / 2, canvas.height / 2, 1, 1).data].slice(0, 3);
                }"""
            )
        )

    def sees_second(self, seconds: float) -> None:
        """Waits for the player to stand at that second, then proves it by the picture: a black player would pass."""
        self.page.wait_for_function(
            "at => { const v = document.querySelector('#qv-video');"
            " return v && v.readyState >= 2 && !v.seeking && Math.abs(v.currentTime - at) < 0.2; }",
            arg=seconds,
            timeout=30_000,
        )
        wanted = list(colour_at(seconds))
        self.page.wait_for_timeout(50)
        seen = self.player_colour()
        assert all(abs(have - want) <= 8 for have, want in zip(seen, wanted, strict=True)), (seen, wanted)


def violations(page: Any) -> list[str]:
    """What the page's policy forbade. Gradio's client may ask for the page anew when its server is back: then the
    question is put to the new page."""
    from playwright.sync_api import Error

    while True:
        page.wait_for_load_state()
        try:
            return list(page.evaluate("window.violations || []"))
        except Error as trouble:
            if "navigation" not in str(trouble):
                raise


def stopped(here: Visit, request: Any) -> None:
    """A request that the page's policy stopped never went out."""
    if request.failure in {"csp", "net::ERR_BLOCKED_BY_CSP"} and request.url in here.outside:
        here.outside.remove(request.url)


@pytest.fixture
def visit(house: House, chromium: Any) -> Iterator[Callable[..., Visit]]:
    """`visit(**context options)` opens the page of `house` (or of `at`), or with `beside` another tab of that visit's
    browser; at the end nothing may have gone wrong or out."""
    house.reset()
    visits: list[Visit] = []
    contexts: list[Any] = []

    def begin(*, at: House = house, beside: Visit | None = None, **options: Any) -> Visit:
        if beside is None:
            settings = {"viewport": {"width": 1440, "height": 900}, "locale": "en-US", **options}
            context = chromium.new_context(**settings)
            context.add_init_script(WATCH)
            contexts.append(context)
        else:
            context = beside.page.context
        page = context.new_page()
        page.set_default_timeout(30_000)
        here = Visit(page, at)
        page.on("console", lambda message: here.complaints.append(message.text) if message.type == "error" else None)
        page.on("pageerror", lambda error: here.complaints.append(str(error)))
        page.on(
            "request",
            lambda request: (
                None
                if request.url.startswith((at.address, "data:", "blob:", "about:"))
                else here.outside.append(request.url)
            ),
        )
        page.on("requestfailed", lambda request: stopped(here, request))
        visits.append(here)
        return here.open()

    yield begin
    for each in visits:
        each.complaints += violations(each.page)
    for context in contexts:
        context.close()
    house.engine.gate.release()
    assert [each.outside for each in visits if each.outside] == []
    assert [each.complaints for each in visits if each.complaints] == []
