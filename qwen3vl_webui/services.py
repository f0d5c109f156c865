"""What both doors (the page and the API) are given: opened by app.py, closed by app.py."""

from __future__ import annotations

from dataclasses import dataclass

from qwen3vl_webui.engine.contract import Engine
from qwen3vl_webui.jobs import Jobs
from qwen3vl_webui.settings import Settings
from qwen3vl_webui.store.store import Store


@dataclass(frozen=True)
class Services:
    settings: Settings
    engine: Engine
    store: Store
    jobs: Jobs
