"""A running server with real files, and a client on it."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import FastAPI

from qwen3vl_webui.jobs import Jobs
from qwen3vl_webui.services import Services
from qwen3vl_webui.settings import Settings
from qwen3vl_webui.store.store import Store
from qwen3vl_webui.web.media_routes import media_routes
from qwen3vl_webui.web.protection import protect
from tests import clips
from tests.scripted_engine import ScriptedEngine
from tests.served import served


class Site:
    """A running server with its store and a client on it."""

    def __init__(self, address: str, store: Store) -> None:
        self.address, self.store = address, store
        self.client = httpx.Client(base_url=address, timeout=30)

    def upload(self, path: Path, name: str = "", **kwargs: Any) -> dict[str, Any]:
        response = self.client.post("/upload", params={"name": name or path.name}, content=path.read_bytes(), **kwargs)
        assert response.status_code == 200, response.text
        return response.json()  # type: ignore[no-any-return]

    def error(self, response: httpx.Response, status: int) -> str:
        assert response.status_code == status, response.text
        return str(response.json()["error"]["message"])


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("made")
    clips.colour_clip(folder / "film.mp4", 4, container_options={"movflags": "faststart"})
    clips.pdf(folder / "paper.pdf", ["one", "two"])
    clips.png(folder / "picture.png", 640, 480)
    (folder / "shared").mkdir()
    clips.png(folder / "shared" / "inside.png")
    (folder / "shared" / "way_out").symlink_to(folder / "paper.pdf")
    (folder / "shared" / "way_in").symlink_to(folder / "shared" / "inside.png")
    return folder


@pytest.fixture(scope="module")
def site(made: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    yield from running(Settings(data_dir=tmp_path_factory.mktemp("data"), media_dir=made / "shared"))


def running(settings: Settings, **limits: int) -> Iterator[Site]:
    store, engine = Store(settings.data_dir, **limits), ScriptedEngine()
    app = FastAPI()
    app.include_router(media_routes(Services(settings, engine, store, Jobs(engine, store))))
    with served(protect(app, settings)) as address:
        yield Site(address, store)
    store.close()


@pytest.fixture(scope="module")
def film(site: Site, made: Path) -> dict[str, Any]:
    return site.upload(made / "film.mp4")
