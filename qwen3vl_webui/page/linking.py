"""Answers with their evidence linked, for the browser: the evidence room over the files a conversation has shown."""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache
from typing import Any

from qwen3vl_webui.evidence.linker import Linker
from qwen3vl_webui.evidence.links import Source, Sources


def sources_of(files: Iterable[dict[str, Any]]) -> Sources:
    """`files` as views.view_file makes them."""
    return Sources(
        tuple(
            Source(
                file["id"],
                file["kind"],
                file["name"],
                file.get("start", 0.0) + file.get("duration", 0.0),
                file.get("pages", 0),
                file.get("width", 0),
                file.get("height", 0),
            )
            for file in files
            if file["kind"] != "subtitles"
        )
    )


@lru_cache(maxsize=512)
def linked(text: str, sources: Sources) -> str:
    """A whole answer."""
    linker = Linker(sources)
    linker.feed(text)
    linker.finish()
    return linker.markdown


class Linking:
    """A growing answer: reads only what is new, and what it returns only grows."""

    def __init__(self, sources: Sources) -> None:
        self._linker = Linker(sources)
        self._read = 0

    def growing(self, text: str) -> str:
        self._linker.feed(text[self._read :])
        self._read = len(text)
        return self._linker.markdown
