"""Panes of the page: a Gradio HTML component each, whose code is a static module under assets/page.

Nothing is ever written into a template: Gradio evaluates `${...}` in values as JavaScript. A module fills its element
through the DOM, with text as text.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import gradio as gr

# `Function(...)` runs this outside any module, so the import is resolved against the page's base address.
LOAD = """
import(new URL('./ui/{module}.js', document.baseURI)).then((pane) => pane.mount({{
  element, server, value: () => props.value,
  watch: (call) => watch('value', () => call(props.value)),
  trigger: (name, detail) => trigger(name, detail),
}}));
"""


class Pane(gr.HTML):
    """gr.HTML with a JSON object as its value. Its constructor stays Gradio's: at each update Gradio makes a copy."""

    def postprocess(self, value: Any) -> Any:
        return value

    def api_info(self) -> dict[str, Any]:
        return {"type": "object"}


def make_pane(module: str, *, events: tuple[str, ...] = (), functions: list[Callable] | None = None) -> Pane:
    """`module` is the file in assets/page that fills the element, `events` what it may trigger, `functions` what it may
    call on the server."""
    declared = "".join(f"// '{event}'\n" for event in events)  # Gradio learns event names from quoted words
    return Pane(
        html_template=f'<div class="qv-{module}"></div>',
        js_on_load=declared + LOAD.format(module=module),
        apply_default_css=False,
        elem_id=f"qv-{module}",
        server_functions=functions,
    )
