"""A server that is away is told once, in the page's own words."""

from collections.abc import Callable

import pytest


@pytest.mark.parametrize(("locale", "words"), [("en-US", "The server does not answer"), ("zh-CN", "服务器没有响应")])
def test_the_page_says_that_the_server_is_away(visit: Callable, locale: str, words: str) -> None:
    here = visit(locale=locale)
    here.page.context.set_offline(True)
    here.page.wait_for_function("document.querySelector('.qv-banner').dataset.kind === 'lost'", timeout=20_000)
    assert words in here.page.inner_text(".qv-banner")
    assert "Connection to the server" not in here.page.inner_text("body")  # Gradio's word for it, in English
    here.page.context.set_offline(False)
    here.page.wait_for_function("document.querySelector('.qv-banner')?.dataset.kind !== 'lost'", timeout=20_000)
    here.page.wait_for_load_state()  # where Gradio's client asked for the page anew
    here.complaints.clear()  # the browser's own, of the requests that failed
