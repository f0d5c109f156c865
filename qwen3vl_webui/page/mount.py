"""The Gradio page on our FastAPI app: panes, their wiring, and the static files they are made of."""

from __future__ import annotations

import os

os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")  # read when gradio is imported

from pathlib import Path
from typing import Any

import gradio as gr
from fastapi import FastAPI

from qwen3vl_webui.page.boot import ASSETS, BootHead, StaticPage
from qwen3vl_webui.page.components import make_pane
from qwen3vl_webui.page.examples import present_examples
from qwen3vl_webui.page.functions import make_functions
from qwen3vl_webui.page.handlers import make_converse
from qwen3vl_webui.page.strings import table
from qwen3vl_webui.services import Services
from qwen3vl_webui.tasks import TASKS

GRADIO_ASSETS = Path(gr.__file__).parent / "templates" / "frontend" / "assets"


def mount_page(app: FastAPI, services: Services) -> FastAPI:
    """Adds the page at `/`, its files at `/ui` and the head of every page load."""
    app.mount("/ui/sample", StaticPage(directory=ASSETS / "samples", check_dir=False), name="samples")
    app.mount("/ui", StaticPage(directory=ASSETS / "page"), name="ui")
    app.add_middleware(BootHead, values=lambda: head_values(services))
    return gr.mount_gradio_app(
        app,
        build_blocks(services),
        path="/",
        footer_links=[],
        run_history=False,
        show_error=False,  # trouble is shown in its place, as a sentence
        max_file_size=1,  # uploads go to our own route
        ssr_mode=False,
        mcp_server=False,
        enable_monitoring=False,
        theme=gr.themes.Base(font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"]),
    )


def build_blocks(services: Services) -> gr.Blocks:
    functions = make_functions(services)

    def chosen(*names: str) -> list[Any]:
        return [functions[name] for name in names]

    with gr.Blocks(title="Qwen3-VL", analytics_enabled=False, fill_width=True) as blocks, gr.Row(elem_id="qv"):
        make_pane("history", functions=chosen("conversations", "rename", "delete", "exported"))
        make_pane("bar", functions=chosen("status"))
        thread = make_pane("thread", events=("command",))
        make_pane("composer", functions=chosen("price", "stop", "take_events"))
        make_pane("evidence")
        make_pane("settings")
        live = make_pane("live")
        thread.command(
            make_converse(services),
            inputs=None,
            outputs=[thread, live],
            show_progress="hidden",
            trigger_mode="multiple",
            concurrency_limit=None,
            api_visibility="private",
        )
    return blocks


def head_values(services: Services) -> dict[str, Any]:
    """What the page knows before it asks anything."""
    return {
        "words": table(),
        "tasks": [
            {"name": task.name, "title": task.title, "question": task.question, "kinds": task.kinds}
            for task in TASKS.values()
        ],
        "examples": present_examples(),
        "mediaFolder": services.settings.media_dir is not None,
        "katex": next((f"assets/{path.name}" for path in sorted(GRADIO_ASSETS.glob("katex-*.js"))), None),
    }
