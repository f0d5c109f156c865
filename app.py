"""Opens one engine, mounts the page and the API, and serves them: the only file that knows all rooms."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")  # read when gradio is imported

import uvicorn
from fastapi import FastAPI

from qwen3vl_webui.api.routes import api_routes
from qwen3vl_webui.engine.contract import Engine
from qwen3vl_webui.engine.opening import OpeningEngine, Progress, Step
from qwen3vl_webui.errors import UserError
from qwen3vl_webui.jobs import Jobs
from qwen3vl_webui.page.mount import mount_page
from qwen3vl_webui.services import Services
from qwen3vl_webui.settings import Settings, read_settings
from qwen3vl_webui.store.store import Store
from qwen3vl_webui.web.media_routes import media_routes
from qwen3vl_webui.web.protection import protect

log = logging.getLogger("qwen3vl_webui")


def in_terminal_too(progress: Progress) -> Progress:
    """Logs a line when a stage begins and at every tenth of it, besides telling the page."""
    told = ("", -1)

    def tell(step: Step) -> None:
        nonlocal told
        now = (step.stage, 10 * step.done // step.total if step.total else 0)
        if now != told:
            told = now
            log.info(step.sentence)
        progress(step)

    return tell


def open_engine(settings: Settings, progress: Progress) -> Engine:
    """Loads the model; torch is imported here, seconds after the page is up."""
    from qwen3vl_webui.engine.local import LocalEngine
    from qwen3vl_webui.model.loading import load
    from qwen3vl_webui.model.snapshots import Snapshots

    snapshots = Snapshots(settings.snapshots, settings.snapshots_gb * 10**9) if settings.snapshots else None
    loaded = load(
        settings.model,
        quantization=settings.quantization,
        kv_cache=settings.kv_cache,
        hub=settings.hub,
        context_length=settings.context_length,
        progress=in_terminal_too(progress),
    )
    return LocalEngine(
        loaded,
        settings.context_length,
        rope_scaling=settings.rope_scaling,
        kv_cache=settings.kv_cache,
        decode=settings.decode,
        snapshots=snapshots,
    )


def build(services: Services) -> FastAPI:
    """The whole server over services that are open already."""

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        services.jobs.close()
        services.engine.close()
        services.store.close()

    app = FastAPI(title="Qwen3-VL-WebUI", docs_url=None, redoc_url=None, openapi_url=None, lifespan=lifespan)
    app.include_router(media_routes(services))
    app.include_router(api_routes(services))
    mount_page(app, services)
    return protect(app, services.settings)


def print_plan(settings: Settings) -> None:
    """What fits this machine's card, or the one named with --vram; nothing is loaded or fetched."""
    from qwen3vl_webui.model import planner

    shapes = planner.KNOWN
    if settings.model != "auto":
        name = settings.model.removesuffix("-fp8").removesuffix("-thinking")
        if name not in planner.KNOWN:
            sys.exit(f"--plan knows {', '.join(planner.KNOWN)}; {settings.model!r} is none of them.")
        shapes = {name: planner.KNOWN[name]}
    memory = int(settings.vram * planner.GIB) if settings.vram else device_memory()
    if not memory:
        sys.exit("This machine has no CUDA device: name the memory of the card, such as --plan --vram 24.")
    print(
        planner.table(
            memory,
            settings.context_length or planner.NATIVE,
            quantization=settings.quantization,
            kv=settings.kv_cache,
            shapes=shapes,
        )
    )


def device_memory() -> int:
    import torch

    return torch.cuda.mem_get_info()[1] if torch.cuda.is_available() else 0


def main() -> None:
    settings = read_settings()
    if settings.plan:
        return print_plan(settings)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s  %(message)s", datefmt="%H:%M:%S")
    try:
        store = Store(settings.data_dir)
    except UserError as error:
        sys.exit(error.sentence)
    engine = OpeningEngine(lambda progress: open_engine(settings, progress))
    app = build(Services(settings, engine, store, Jobs(engine, store)))
    log.info("Open http://%s:%d", "localhost" if settings.is_local else settings.host, settings.port)
    uvicorn.run(app, host=settings.host, port=settings.port, log_level="warning", timeout_graceful_shutdown=3)


if __name__ == "__main__":
    main()
