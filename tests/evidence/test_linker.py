"""An answer while it streams: links to its evidence, safe to show, the same however it is cut into pieces."""

import re
import time
from html.parser import HTMLParser

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from markdown_it import MarkdownIt

from qwen3vl_webui.evidence.linker import Evidence, Linker, Source, Sources, evidence, plain
from qwen3vl_webui.evidence.links import JOINER, Box, CitedPage, CitedTime, CodeBlock, Point, ToolCall

ALL = Sources(
    (
        Source("v0", "video", "lecture.mp4", duration=7200.0),
        Source("d0", "document", "contract.pdf", pages=12),
        Source("i0", "image", "scene.png", width=800, height=600),
    )
)
TWO = Sources((Source("a", "video", "lecture.mp4", duration=7200.0), Source("b", "video", "other.mp4", duration=100.0)))
J = JOINER


def link(text, sources=ALL):
    linker = Linker(sources)
    linker.feed(text)
    linker.finish()
    return linker.markdown


LINKS = [
    ("他在第47秒打开电脑。", "他在[第47秒](#qv?m=v0&t=47)打开电脑。"),
    ("从第45分钟到第50分钟", "从[第45分钟到第50分钟](#qv?m=v0&t=2700&e=3000)"),
    ("At 00:45:10 he smiles.", "At [00:45:10](#qv?m=v0&t=2710) he smiles."),
    ("<12.5 seconds>", "[&#60;12.5 seconds>](#qv?m=v0&t=12.5)"),
    ("[00:10 - 00:20] logo", "[[00:10 - 00:20](#qv?m=v0&t=10&e=20)] logo"),
    ("- 00:10 a\n- 00:20 b", "- [00:10](#qv?m=v0&t=10) a\n- [00:20](#qv?m=v0&t=20) b"),
    ("| 00:10 | a |", "| [00:10](#qv?m=v0&t=10) | a |"),
    ("１２：３０", "[１２：３０](#qv?m=v0&t=750)"),
    ("See p. 3.", "See [p. 3](#qv?m=d0&p=3)."),
    ("(p.3)", "([p.3](#qv?m=d0&p=3))"),
    ("Page 12 and pages 3-5", "[Page 12](#qv?m=d0&p=12) and [pages 3-5](#qv?m=d0&p=3)"),
    ("pp. 3–5", "[pp. 3–5](#qv?m=d0&p=3)"),
    ("第3页、第三页、第 3 页", "[第3页](#qv?m=d0&p=3)、[第三页](#qv?m=d0&p=3)、[第 3 页](#qv?m=d0&p=3)"),
    ("第3-5页", "[第3-5页](#qv?m=d0&p=3)"),
    ("在**第47秒**打开", "在[**第47秒**](#qv?m=v0&t=47)打开"),
    ("*00:10*", "[*00:10*](#qv?m=v0&t=10)"),
    ("**p. 3**", "[**p. 3**](#qv?m=d0&p=3)"),
    ("**打开第47秒**吧", f"**打开[第47秒](#qv?m=v0&t=47){J}**吧"),
    ("在**第47秒：打开**吧", f"在**{J}[第47秒](#qv?m=v0&t=47)：打开**吧"),
    ("在**“引号”**后", f"在**{J}“引号”{J}**后"),
    ("wow!00:10", f"wow!{J}[00:10](#qv?m=v0&t=10)"),
    ("\\12:30", f"\\{J}[12:30](#qv?m=v0&t=750)"),
    ("12:30", "[12:30](#qv?m=v0&t=750)"),
    ("[00:10]: a", f"[[00:10](#qv?m=v0&t=10)]{J}: a"),
]


@pytest.mark.parametrize("text, shown", LINKS, ids=[row[0] for row in LINKS])
def test_times_and_pages_become_links(text, shown):
    assert link(text) == shown


KEPT = [
    *("at 3:00:00", "第9000秒", "p. 13", "page 0", "第13页", "the score 3:1", "1:30 pm", "the ratio 16:10"),
    *(
        "`00:10`",
        "``a`b 00:10``",
        "```\n00:10 <b>\n```\n",
        "~~~\n![x](http://e/x) 00:10\n~~~\n",
        "`<div>` and `a[0](1)`",
    ),
    *(
        "[see 00:10](https://x.com/12:30)",
        "https://x.com/12:30/00:10",
        "[a](https://x.com/a_(b)c)",
        "[mail](mailto:a@b.c)",
    ),
    *("$$ t = 12:30 \\le x_1 $$", "\\( 12:30 \\)", "\\[ a_{1} \\tag{00:10} \\]", "| a | b |\n|---|:--|\n| 1 | *2* |\n"),
    *(
        "# Title\n\n1. one\n2. two\n\n> quote\n\n---\n",
        "2 < 3 and 3 > 2, a & b, snake_case_name",
        "cost: $5 and $6",
        "a ~~b~~",
    ),
    *(
        "1. a\n   ```python\n   x: Array<int> = f(00:10)\n   ```\n2. b",
        "`\\( x \\)`",
        "$t = 12:30$ and $x_1$",
        "- [ ] todo\n- [x] done",
    ),
]


@pytest.mark.parametrize("text", KEPT)
def test_code_links_formulas_and_what_no_attachment_has_stay_as_they_are(text):
    assert link(text) == text


BROKEN = [
    ("<img src=x onerror=alert(1)>", "&#60;img src=x onerror=alert(1)>"),
    ("</div><!-- a --><?x", "&#60;/div>&#60;!-- a -->&#60;?x"),
    ("![a](http://evil/x.png)", f"!{J}[a]{J}(http://evil/x.png)"),
    ("[x](javascript:alert(1))", f"[x]{J}(javascript:alert(1))"),
    ("[x](data:text/html,a)", f"[x]{J}(data:text/html,a)"),
    ("[x](java&#115;cript:a)", f"[x]{J}(java&#115;cript:a)"),
    ("[x](/media/secret)", f"[x]{J}(/media/secret)"),
    ("[x](#qv?m=v0&t=1)", f"[x]{J}(#qv?m=v0&t=1)"),
    ("[x](#&#113;v?m=v0)", f"[x]{J}(#&#113;v?m=v0)"),
    ("[r]: #qv?m=v0\n\n[r]", f"[r]{J}: #qv?m=v0\n\n[r]"),
    ("\\<img>", f"\\<{J}img>"),
    ("$$ a<b $$", "$$ a<{}b $$"),
    ("$f[a](b) <i>x$ 00:10", "$f[a]{}(b) <{}i>x$ [00:10](#qv?m=v0&t=10)"),
    ("| a<br>b |", f"| a{J}<br>b |"),
    ("~~~" + "x" * 120 + "$$", f"{J}~~~" + "x" * 120 + "$$"),
    ("```mermaid\na<br/>b\n```\n", "```mermaid\na&#60;br/>b\n```\n"),
    ("` <img>\n`", f"` <{J}img>\n`"),
    ("> ```\n> <b>\n> ```", f"> ```\n> <{J}b>\n> ```"),
    ("$$\n```\n<img>\n", f"$$\n```\n<{J}img>\n"),
    ("`\\(` and `$$`", f"`\\{J}(` and `${J}$`"),
    ('[x](https://e.com/$$" style=y $$)', f'[x](https://e.com/${J}$"){J}{J} style=y $$)'),
    ('https://e.com/$$" style=y $$', f'https://e.com/${J}$" style=y $$'),
    ("[x](https://e.com 'title')", f"[x](https://e.com){J}{J} 'title')"),
    ("```x$$\n$$\n```\n", f"```x${J}$\n$$\n```\n"),
]


@pytest.mark.parametrize("text, shown", BROKEN, ids=[row[0] for row in BROKEN])
def test_what_would_load_run_or_forge_is_broken(text, shown):
    assert link(text) == shown


DOG = '{"bbox_2d": [122, 416, 367, 866], "label": "dog"}'
DOG_CHIP = "[▣ dog](#qv?m=i0&b=122,416,367,866&l=dog)"
BLOCKS = [
    (f"```json\n[{DOG}]\n```\nDone.", f"```json\n[{DOG}]\n```\n\n{DOG_CHIP}\n\nDone."),
    (f"```json\n[{DOG}]\n```", f"```json\n[{DOG}]\n```\n\n{DOG_CHIP}"),
    (f'```json\n[{DOG}, {{"bbox_2d": [1, 2', f'```json\n[{DOG}, {{"bbox_2d": [1, 2\n```\n\n{J}{J}{DOG_CHIP}'),
    (f"[{DOG}]\nDone.", f"[{DOG}]\n\n{DOG_CHIP}\n\nDone."),
    (f"[{DOG}]", f"[{DOG}]\n\n{DOG_CHIP}"),
    (f"1. a\n   ```\n   {DOG}\n   ```\n", f"1. a\n   ```\n   {DOG}\n   ```\n\n   {DOG_CHIP}\n\n"),
    (
        '{"00:23.00 - 00:48.00": "speaks"}',
        '{"00:23.00 - 00:48.00": "speaks"}\n\n[▸ 00:23–00:48 speaks](#qv?m=v0&t=23&e=48)',
    ),
    (
        '{"time": 3.0, "bbox_2d": [1, 2, 3, 4]}',
        '{"time": 3.0, "bbox_2d": [1, 2, 3, 4]}\n\n[▣ 00:03.0](#qv?m=v0&t=3&b=1,2,3,4)',
    ),
    (
        '{"point_2d": [447.5, 81], "label": "猫 [x]|<b>"}',
        '{"point_2d": [447.5, 81], "label": "猫 [x]|&#60;b>"}\n\n'
        "[◎ 猫 &#91;x&#93;&#124;&#60;b&#62;](#qv?m=i0&x=447.5,81&l=%E7%8C%AB%20%5Bx%5D%7C%3Cb%3E)",
    ),
    (
        '<p data-bbox="1 2 30 40">',
        '&#60;p [data-bbox="1 2 30 40"](#qv?m=i0&b=1,2,30,40)>',
    ),
    ("<!-- Table (1, 2, 30, 40) -->", "[&#60;!-- Table (1, 2, 30, 40) -->](#qv?m=i0&b=1,2,30,40&l=Table)"),
]


@pytest.mark.parametrize("text, shown", BLOCKS, ids=[row[0] for row in BLOCKS])
def test_data_is_followed_by_a_line_of_chips(text, shown):
    assert link(text) == shown


def test_a_time_belongs_to_the_video_named_last_else_each_that_is_long_enough():
    assert link("00:10", TWO) == "00:10 [▸ lecture.mp4](#qv?m=a&t=10) [▸ other.mp4](#qv?m=b&t=10)"
    assert link("01:50", TWO) == "[01:50](#qv?m=a&t=110)"
    assert link("In other.mp4 at 00:10.", TWO) == "In other.mp4 at [00:10](#qv?m=b&t=10)."
    assert link("在第一个视频的第10秒", TWO) == "在第一个视频的[第10秒](#qv?m=a&t=10)"
    assert (
        link("Video 2: 00:10, video 1: 00:20", TWO) == "Video 2: [00:10](#qv?m=b&t=10), video 1: [00:20](#qv?m=a&t=20)"
    )
    assert link("In other.mp4 at 10:00", TWO) == "In other.mp4 at 10:00"


def test_without_attachments_nothing_is_linked():
    assert link("00:10, p. 3", Sources()) == "00:10, p. 3"
    assert link(f"[{DOG}]", Sources()) == f"[{DOG}]"


def test_a_time_rounded_up_to_the_end_opens_the_end():
    short = Sources((Source("v", "video", "a.mp4", duration=44.9),))
    assert link("0:45 and 0:46", short) == "[0:45](#qv?m=v&t=44.9) and 0:46"


def test_evidence_has_what_the_links_open():
    text = (
        "At 00:10 - 00:20, see pages 3-5.\n\n"
        f"```json\n[{DOG}]\n```\n"
        '<tool_call>\n{"name": "computer_use", "arguments": {"action": "click", "coordinate": [447, 81]}}\n</tool_call>'
    )
    assert evidence(text, ALL) == Evidence(
        times=(CitedTime("v0", 10, 20, "00:10 - 00:20"),),
        pages=(CitedPage("d0", 3, 5, "pages 3-5"),),
        boxes=(Box("i0", 122, 416, 367, 866, "dog"),),
        points=(Point("i0", 447, 81, "click"),),
        tool_calls=(ToolCall("computer_use", {"action": "click", "coordinate": [447, 81]}),),
        code_blocks=(CodeBlock("json", f"[{DOG}]\n"),),
    )


def test_a_box_of_a_document_lies_on_the_page_cited_last():
    paper = Sources((Source("d", "document", "a.pdf", pages=9),))
    assert evidence(f"On page 4:\n{DOG}", paper).boxes == (Box("d", 122, 416, 367, 866, "dog", page=4),)
    assert evidence('{"page": 2, "bbox_2d": [1, 2, 3, 4]}', paper).boxes == (Box("d", 1, 2, 3, 4, page=2),)
    assert evidence(DOG, paper).boxes == ()


def test_a_box_lies_in_the_picture_named_else_the_newest():
    pictures = Sources((Source("p", "image", "one.png"), Source("q", "image", "two.png")))
    assert evidence(DOG, pictures).boxes[0].media == "q"
    assert evidence(f"In one.png:\n{DOG}", pictures).boxes[0].media == "p"
    assert evidence('{"image": "one.png", "bbox_2d": [1, 2, 3, 4]}', pictures).boxes[0].media == "p"


def test_the_chips_of_one_block_are_bounded_and_the_evidence_is_whole():
    text = f"[{','.join([DOG] * 100)}]"
    assert link(text).count(DOG_CHIP) == 60 and "[▣ +40](" in link(text)
    assert len(evidence(text, ALL).boxes) == 100
    assert plain(link(text)) == text


def test_finishing_twice_adds_nothing():
    linker = Linker(ALL)
    assert linker.feed("at 00:1") == "at "
    assert linker.feed("0 he") == ""
    assert linker.feed(" is") == "[00:10](#qv?m=v0&t=10) he is"
    assert linker.finish() == linker.finish() == ""


def test_prose_is_held_back_by_a_word_or_two_only():
    linker, text, most = (
        Linker(ALL),
        "In 2024 the people spoke of peace, at 00:45:10 he smiled; p. 3 says so. 一个人在第47秒走过来。" * 5,
        0,
    )
    for end in range(1, len(text) + 1):
        linker.feed(text[end - 1])
        most = max(most, end - len(plain(linker.markdown)))
    assert most <= 20


WORDS = r"""
    ` `` ``` ~~~ < > | ** * _ [ ] ( ) ]( [x]( ! { } [{ ' " : $$ $ \( \) \[ \] \ ## === --- 1 10 h http htt
    data-bb {} &lt; 在 打开 。 word 00:10 第47秒 12:30 p. 3 第3页 三 十 分 2小时 from to between and seconds
    later a.m. o'clock 的视频 后 1980s json mermaid lecture.mp4 other.mp4 http://e.com javascript:a #qv?m=v0&t=1
    <img <b> </b> <tool_call> </tool_call> %%%LATEX_BLOCK_0%%%
"""
PIECES = [
    *re.split(r"\s+", WORDS.strip()),
    *(
        "\n",
        "\n\n",
        " ",
        "  ",
        "    ",
        "\t",
        "- ",
        "1. ",
        "14. ",
        "> ",
        "```\n",
        "\n```json\n",
        "\n```mermaid\n",
        "~~~\n",
    ),
    *("<img src=x>", "<!-- x -->", "[r]: #qv?m=v0&t=1\n", "![a](http://e/x.png)", "| a | b |\n|---|---|\n", DOG),
    *(
        "12:30 - 12:40",
        "<12.5 seconds>",
        'data-bbox="1 2 30 40"',
        "<!-- Table (1, 2, 30, 40) -->",
        "[see 00:10](https://x.com)",
    ),
    *('"bbox_2d": [1,2,3,4]', '" style="x', "[x](http://e.com/$$", '[x](http://e.com/ "a'),
]
answers = st.lists(st.sampled_from(PIECES), max_size=24).map("".join)
inputs = st.sampled_from([ALL, TWO, Sources()])


@pytest.mark.parametrize("text", ["``<````````o'clock<12.5 seconds>%%%LATEX_BLOCK_0%%%"])
def test_found_texts_end_the_same_however_they_are_cut(text):
    whole = Linker(ALL)
    whole.feed(text)
    whole.finish()
    for cut in range(1, len(text)):
        linker = Linker(ALL)
        linker.feed(text[:cut])
        linker.feed(text[cut:])
        linker.finish()
        assert linker.markdown == whole.markdown, cut


@given(answers, inputs, st.data())
@settings(max_examples=400, deadline=None)
def test_any_cutting_ends_the_same_and_what_is_shown_only_grows(text, sources, data):
    whole = Linker(sources)
    whole.feed(text)
    whole.finish()
    linker, shown, index = Linker(sources), "", 0
    while index < len(text):
        size = data.draw(st.integers(1, 9))
        added = linker.feed(text[index : index + size])
        index += size
        assert linker.markdown == shown + added
        shown += added
    shown += linker.finish()
    assert linker.markdown == shown
    assert (linker.markdown, linker.evidence) == (whole.markdown, whole.evidence)


@given(answers, inputs)
@settings(max_examples=400, deadline=None)
def test_no_text_is_lost(text, sources):
    def settled(text):
        return plain(text.replace("#qv?", "#"))

    assert plain(link(text.replace("#qv?", "#"), sources)) == settled(text)


class Page(HTMLParser):
    """What a browser would make of it."""

    SAFE = re.compile(r"p|h[1-6]|ul|ol|li|a|code|pre|em|strong|blockquote|table|thead|tbody|tr|th|td|br|hr|s")

    def __init__(self, html):
        super().__init__()
        self.foreign, self.links = [], []
        self.feed(html)
        self.close()

    def handle_starttag(self, tag, attributes):
        names = {name for name, _ in attributes}
        if not self.SAFE.fullmatch(tag) or names - {"href", "start", "class"} - (
            {"style"} if tag in ("th", "td") else set()
        ):
            self.foreign.append((tag, attributes))
        self.links += [value for name, value in attributes if name == "href"]

    def handle_comment(self, data):
        self.foreign.append(data)

    handle_decl = handle_pi = handle_comment


def as_the_page(markdown):
    """Formulas are cut out first and put back raw, as Gradio does; raw HTML is let through, so nothing hides it."""
    formulas = []

    def cut(match):
        formulas.append(match[0])
        return f"%%%LATEX_BLOCK_{len(formulas) - 1}%%%"

    for left, right in (("$$", "$$"), ("\\(", "\\)"), ("\\[", "\\]")):
        markdown = re.sub(re.escape(left) + r"([\s\S]+?)" + re.escape(right), cut, markdown)
    html = MarkdownIt("commonmark", {"html": True}).enable(["table", "strikethrough"]).render(markdown)
    formulas.append("")
    last = len(formulas) - 1
    return Page(re.sub(r"%%%LATEX_BLOCK_(\d+)%%%", lambda match: formulas[min(int(match[1]), last)], html))


@given(answers, inputs)
@settings(max_examples=600, deadline=None)
def test_no_answer_brings_in_html_pictures_styles_or_links_of_its_own(text, sources):
    page = as_the_page(link(text, sources))
    assert page.foreign == []
    assert all(re.match(r"https?://|mailto:|#", href) for href in page.links)
    found = evidence(text, sources)
    cited = len(found.times) + len(found.pages) + len(found.boxes) + len(found.points)
    assert sum(href.startswith("#qv") for href in page.links) <= cited


@pytest.mark.parametrize(
    "text",
    [
        "在**第47秒**打开",
        "在**第47秒：打开**吧",
        "**打开第47秒**吧",
        "在**“引号”**后",
        "**打开。**然后",
        "在**p. 3**里",
    ],
)
def test_bold_beside_cjk_is_bold(text):
    html = MarkdownIt("commonmark").render(link(text))
    assert "<strong>" in html and "**" not in html


def test_every_link_of_ours_is_a_link_on_the_page():
    for text, shown in LINKS:
        assert len(as_the_page(link(text)).links) == shown.count("](#qv?"), text


PROSE = "The speaker opens the laptop while the audience waits; at 00:45:10 he smiles, 在第47秒他打开电脑，见第三页。"
HOSTILE = [
    "0",
    "一",
    "第",
    "[",
    "[[]",
    "(",
    "`",
    "``` ",
    "\n```\n",
    "**0",
    "<",
    "<a",
    "$$",
    "\\(",
    "![",
    "](http://",
    "p. 1 ",
]
HOSTILE += [
    "<!-- a",
    '{"a":',
    "- ",
    "> ",
    "1. ",
    "\n",
    "{\n",
    "[{",
    "0:",
    "12:30 to ",
    "1h ",
    "第1分",
    "<1",
    "data-bbox=",
    '"\\"',
]


@pytest.mark.parametrize("piece", [PROSE, "00:10 ", DOG + ",\n", "```json\n" + DOG + "\n", *HOSTILE])
def test_a_long_answer_in_small_pieces_costs_linear_time(piece):
    text = piece * (100_000 // len(piece))
    begin = time.process_time()
    linker = Linker(ALL)
    for index in range(0, len(text), 3):
        linker.feed(text[index : index + 3])
    linker.finish()
    assert time.process_time() - begin < 6  # about 0.2 s for prose on a quiet core, 1 s for the worst of these
