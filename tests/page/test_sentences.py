"""Every sentence a person may meet on the page has its Chinese, and the browser finds it."""

from __future__ import annotations

import ast
import errno
import json
import os
import re
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from qwen3vl_webui import errors
from qwen3vl_webui.errors import OutOfMemory
from qwen3vl_webui.page.boot import ASSETS
from qwen3vl_webui.page.options import FRACTIONS, TEXTS, WHOLE
from tests.page.conftest import House

SOURCE = Path(errors.__file__).parent
SILENT = ("api", "settings.py", "export.py")  # what programs and the command line are told
ERRORS = {name for name, value in vars(errors).items() if isinstance(value, type)}
TOLD = {"Opening": 1, "refuse": 1, "Playing": 2, "Background": 3}  # other calls that take a sentence, and where
CAUSES = ("ENOSPC", "EACCES", "EROFS", "EDQUOT", "EIO", "ENOENT", "EISDIR", "ENOTDIR", "EPERM", "EMFILE", "EEXIST")
WORDS = re.compile(r"[A-Za-z]+[ ,;]+[a-z]+")  # else a template is names and numbers only


@cache
def rooms() -> dict[str, ast.Module]:
    paths = [path.relative_to(SOURCE) for path in sorted(SOURCE.rglob("*.py"))]
    return {str(path): ast.parse((SOURCE / path).read_text()) for path in paths if path.parts[0] not in SILENT}


class Reader:
    """Which texts an expression of one module may become: templates with `{}` for what is only known later."""

    def __init__(self, room: str) -> None:
        self.room = room
        self.seen: set[int] = set()

    def texts(self, node: ast.AST | None) -> set[str]:
        """And the texts that may fill its holes."""
        if node is None or id(node) in self.seen:
            return set()
        self.seen.add(id(node))
        match node:
            case ast.Constant(value=str(text)):
                return {text}
            case ast.JoinedStr(values=values):
                holes = [value.value for value in values if isinstance(value, ast.FormattedValue)]
                return {self.template(node)}.union(*map(self.texts, holes))
            case ast.BinOp(op=ast.Add(), left=left, right=right):
                whole = self.template(left) + self.template(right)
                return {whole}.union(*(self.texts(side) for side in (left, right) if self.template(side) == "{}"))
            case ast.IfExp(body=body, orelse=other):
                return self.texts(body) | self.texts(other)
            case ast.BoolOp(values=nodes) | ast.Tuple(elts=nodes) | ast.List(elts=nodes) | ast.Dict(values=nodes):
                return set().union(*map(self.texts, nodes))
            case ast.Subscript(value=value):
                return self.texts(value)
            case ast.Name(id=name) | ast.Attribute(attr=name):
                return set().union(*map(self.texts, self.bound(name, isinstance(node, ast.Attribute))))
            case ast.Call(func=ast.Name(id=name)) if name not in ERRORS:
                return set().union(*map(self.texts, self.returned(name)))
        return set()

    def template(self, node: ast.AST) -> str:
        match node:
            case ast.Constant(value=str(text)):
                return text
            case ast.JoinedStr(values=values):
                return "".join(map(self.template, values))
        return "{}"

    def bound(self, name: str, elsewhere: bool) -> Iterator[ast.AST]:
        """What that name is given, in this module or, for a constant of another, anywhere."""
        trees = rooms().values() if name.isupper() else [] if elsewhere else [rooms()[self.room]]
        for node in (node for tree in trees for node in ast.walk(tree)):
            match node:
                case ast.Assign(targets=[ast.Name(id=target)], value=value) if target == name:
                    yield value
                case ast.AnnAssign(target=ast.Name(id=target), value=ast.AST() as value) if target == name:
                    yield value
                case ast.For(target=target, iter=source):
                    if any(isinstance(each, ast.Name) and each.id == name for each in ast.walk(target)):
                        yield source

    def returned(self, name: str) -> Iterator[ast.AST]:
        for node in ast.walk(rooms()[self.room]):
            if isinstance(node, ast.FunctionDef) and node.name == name:
                yield from (each.value for each in ast.walk(node) if isinstance(each, ast.Return) and each.value)


def said(room: str) -> Iterator[ast.AST]:
    """Every expression of a module that a person is told."""
    for node in ast.walk(rooms()[room]):
        if isinstance(node, ast.Call):
            name = node.func.id if isinstance(node.func, ast.Name) else getattr(node.func, "attr", "")
            at = 0 if name in ERRORS else TOLD.get(name)
            if at is not None and len(node.args) > at:
                yield node.args[at]
            if name in TOLD:
                yield from (keyword.value for keyword in node.keywords if keyword.arg == "sentence")
        elif isinstance(node, ast.FunctionDef) and re.fullmatch("sentence|[a-z_]+_sentence", node.name):
            yield from (each.value for each in ast.walk(node) if isinstance(each, ast.Return) and each.value)


@cache
def spoken() -> dict[str, str]:
    """Template -> where it is said."""
    found: dict[str, str] = {}
    for room in rooms():
        for node in said(room):
            for text in Reader(room).texts(node):
                if WORDS.search(text):
                    found.setdefault(text, f"{room}:{getattr(node, 'lineno', 0)}")
    return found


@cache
def table() -> dict[str, str]:
    """assets/page/sentences.js: comments and one object in JSON."""
    source = (ASSETS / "page" / "sentences.js").read_text()
    lines = [line for line in source.splitlines() if not line.lstrip().startswith("//")]
    whole = "\n".join(lines).strip().removeprefix("export const SENTENCES = ").removesuffix(";")
    pairs = json.loads(whole, object_pairs_hook=list)
    assert len(pairs) == len(dict(pairs)), "a sentence stands twice"
    return dict(pairs)


def disk_says() -> set[str]:
    """What a system, or SQLite, gives as the cause; it fills a hole of ours."""
    sqlite = {
        "database or disk is full",
        "disk I/O error",
        "attempt to write a readonly database",
        "unable to open database file",
    }
    return {os.strerror(getattr(errno, name)) for name in CAUSES} | sqlite


def settings() -> set[str]:
    return {key.replace("_", " ") for key in (*FRACTIONS, *WHOLE, *TEXTS)}


def test_what_is_said_is_found_in_the_source() -> None:
    found = spoken()
    assert len(found) > 150
    assert "This PDF has no page {}; it has {}." in found
    assert {"free some of the context", "a program; {}", "Shorten the text"} <= set(found)


def test_nothing_else_is_said() -> None:
    """What cannot be read off the source passes on a sentence that was read elsewhere."""
    unread = {ast.unparse(node) for room in rooms() for node in said(room) if not Reader(room).texts(node)}
    assert {text for text in unread if not re.search(r"\bsentence\b", text)} == set()


def test_every_sentence_has_its_chinese() -> None:
    missing = {text: place for text, place in spoken().items() if text not in table()}
    assert missing == {}


def test_no_chinese_is_left_over() -> None:
    assert set(table()) - set(spoken()) - disk_says() - settings() == set()
    assert (disk_says() | settings()) - set(table()) == set()


@pytest.mark.parametrize("english", table())
def test_the_chinese_fills_every_hole_once(english: str) -> None:
    holes = re.findall(r"\{(\d)\}", table()[english])
    assert sorted(holes) == [str(n + 1) for n in range(english.count("{}"))]
    assert "{}{}" not in english, "where one ends and the other begins could not be told"
    assert "{}" not in table()[english]


TRANSLATE = "async (texts) => { const { inChinese } = await import('./ui/translate.js'); return texts.map(inChinese); }"


def test_the_browser_finds_each_sentence(visit: Callable) -> None:
    fillings = ["7", "b-8.mp4", "1,234", "0.5"]
    told = [(text, [fillings[n] for n in range(text.count("{}"))]) for text in table()]
    spoken_now = [text.replace("{}", "%s") % tuple(values) if values else text for text, values in told]
    answers = visit().page.evaluate(TRANSLATE, spoken_now)
    wanted = [re.sub(r"\{(\d)\}", lambda hole, v=values: v[int(hole[1]) - 1], table()[text]) for text, values in told]
    assert answers == wanted


READABLE = "upload a picture (JPEG, PNG, WebP, GIF, BMP, TIFF, AVIF), a video (MP4, MOV, MKV, WebM, ...) or a PDF"
COMPOSED = (
    ("The model is not ready yet. Loading the weights: 3 of 7 tensors.", "模型尚未就绪。正在载入权重：3 / 7 个张量。"),
    (f"This is a program; {READABLE}.", f"这是程序文件；{table()[READABLE]}。"),
    (
        "9 pages need at least 4700 tokens and 900 are free: ask about at most 1 pages at once.",
        "9 页至少需要 4700 tokens，目前剩余 900：请一次最多问 1 页。",
    ),
    (
        "The data folder /d cannot be written: No space left on device. Free some space on that disk, then try again.",
        "无法写入数据文件夹 /d：磁盘空间不足。请在该磁盘上释放一些空间，然后重试。",
    ),
    ("The setting top p goes from 0.01 to 1.", "“Top-p”的取值范围是 0.01 到 1。"),
    ("Something nobody wrote down.", None),
)


def test_what_fills_a_hole_is_translated_too(visit: Callable) -> None:
    answers = visit().page.evaluate(TRANSLATE, [english for english, _ in COMPOSED])
    assert answers == [chinese for _, chinese in COMPOSED]


def english_words(sentence: str) -> list[str]:
    """`tokens` is the word of the trade in Chinese too; names of formats are written large."""
    return [word for word in re.findall(r"(?<![\w.])[a-z]{2,}(?![\w.])", sentence) if word != "tokens"]


def test_a_broken_upload_is_told_in_chinese(visit: Callable, house: House) -> None:
    here = visit(locale="zh-CN")
    page = here.page
    page.set_input_files("#qv-picker", str(house.files / "broken.mp4"))
    page.wait_for_selector(".qv-trouble:not([hidden])")
    here.complaints[:] = [each for each in here.complaints if "400" not in each]  # the browser's own word for it
    words = page.inner_text(".qv-trouble")
    assert words == "broken.mp4：这个视频被截断，或其索引已损坏：请重新上传完整文件。"
    page.click("#qv-language")  # told already, and told again in the other language
    assert page.inner_text(".qv-trouble") == (
        "broken.mp4: This video is cut off, or its index is damaged: upload the whole file again."
    )


def test_a_prompt_that_is_too_long_is_told_in_chinese(visit: Callable, house: House, monkeypatch: Any) -> None:
    page = visit(locale="zh-CN").page
    monkeypatch.setattr(house.engine, "context_length", 40)
    page.fill("#qv-question", "长 " * 100)
    page.press("#qv-question", "Enter")
    page.wait_for_selector(".qv-trouble:not([hidden])")
    words = page.inner_text(".qv-trouble")
    assert words.startswith("提问共 ")
    assert english_words(words) == []


def test_a_kept_note_follows_the_language(visit: Callable, house: House) -> None:
    house.engine.fail = OutOfMemory(
        "There is not enough memory for this prompt now. Choose a shorter span or fewer pages, or try again when other "
        "answers are done."
    )
    here = visit(locale="zh-CN")
    here.ask("问题")
    here.page.wait_for_selector(".qv-note.qv-bad")
    assert english_words(here.page.inner_text(".qv-note")) == []
    here.page.click("#qv-language")
    assert here.page.inner_text(".qv-note").startswith("There is not enough memory")
    here.page.click("#qv-language")
    here.reload()
    assert here.page.inner_text(".qv-note").startswith("目前内存不足")
