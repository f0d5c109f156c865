"""What was found out about a video once, kept as JSON beside our copy of its file, and gone with it.

That copy is named by its digest, and what begins with the digest is removed with it; nothing is written beside a file
of somebody else.
"""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import Any

from qwen3vl_webui.media.values import Clip


def place(clip: Clip, what: str) -> Path | None:
    return clip.path.with_name(f"{clip.digest}.{what}.json") if clip.path.name == clip.digest else None


def keep(clip: Clip, what: str, record: dict[str, Any]) -> None:
    """A disk that cannot be written only costs the work, next time."""
    path = place(clip, what)
    if path is None:
        return
    part = path.with_suffix(".part")
    with contextlib.suppress(OSError):
        part.write_text(json.dumps(record))
        part.rename(path)
    if not clip.path.exists():  # removed meanwhile
        for each in (part, path):
            each.unlink(missing_ok=True)


def load(clip: Clip, what: str) -> dict[str, Any]:
    """Empty where there is nothing, or nothing that can be read."""
    path = place(clip, what)
    try:
        record = json.loads(path.read_text()) if path is not None else {}
    except (OSError, ValueError):
        return {}
    return record if isinstance(record, dict) else {}
