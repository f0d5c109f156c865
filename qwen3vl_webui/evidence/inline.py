"""The inside of a line of markdown: what is dangerous broken, what cites turned into links."""

from __future__ import annotations

import re
import unicodedata

from qwen3vl_webui import times
from qwen3vl_webui.evidence.citing import PAGE, Citations
from qwen3vl_webui.evidence.coordinates import TAGGED, read_tagged
from qwen3vl_webui.evidence.links import JOINER, Mark, target
from qwen3vl_webui.evidence.reading import FORMULA, HOLD, Doubt, Tape, growing, paired

_URLS = ("http://", "https://", "ftp://", "www.")
_BOX = 'data-bbox="'
_WORDS = "|".join(growing(word) for word in (*_URLS, _BOX))
_PAGES = "|".join(growing(word) for word in ("p.", "pp.", "page ", "pages "))
_SPECIAL = re.compile(rf"[\n\\`<\[\]!*_$\d第{times.NUMERALS}]|(?<![A-Za-z0-9_])(?:{_PAGES})|{_WORDS}", re.IGNORECASE)
_SKIP = re.compile(rf"\d+|[{times.NUMERALS}]+|.", re.DOTALL)
_TAG = re.compile(r"<(?=[A-Za-z/!?])")
_LINK_TEXT = re.compile(r"\[[^\[\]\n`]{0,80}(\]\(?)?")
_SAFE_TARGET = re.compile(r"\]\((?:https?://|mailto:|#(?!qv)[\w-]{0,40}\))", re.IGNORECASE)
_URL_END = re.compile(r"[\s<$\\%!`\]()]")
_IN_URL = {"$": "$", "%": "%", "\\": "()[]", "!": "[", "]": "(:"}  # what must not follow in an address
_IN_FORMULA = re.compile(FORMULA + r"|[\n<\]!\\$]")
_TICKS = re.compile("`+")
_TOOL_CALL = "<tool_call>"
_BREAKS = ("<br>", "<br/>", "<br />")  # the only line break a table cell can have
_OPENINGS = (*(f"<{url}" for url in _URLS[:2]), *_BREAKS, _TOOL_CALL, "<!--")
# `$x$`, read as a formula by the page though not by every reader of markdown, and no two prices.
_DOLLARS = re.compile(r"\$(?:(?![\s\d])[^$\n`]{0,44}[^$\s\\`]|\d[^$\n`]{0,22}[\\^_{=][^$\n`]{0,22})\$(?![\d$])")
_BREAKABLE = re.compile(r"<(?=[A-Za-z/!?])|\](?=[(:])|!(?=\[)")


class Inline:
    """Lives as long as one answer streams. Each `step` takes something from the tape and returns what to show for it,
    or None when more of the answer is needed to know."""

    def __init__(self, tape: Tape, doubt: Doubt, citations: Citations) -> None:
        self._tape = tape
        self._doubt = doubt
        self._citations = citations
        self.unsure = False  # until the paragraph ends: which backticks make a pair
        self._backticks = 0  # a code span of so many is open, and may never be closed
        self._formula = ""  # a formula is open, until this
        self._destination = -1  # parentheses open inside the address of a link; -1: not in one
        self._url = False
        self._quiet = False  # inside the text of a link
        self._image = False
        self._bold: set[int] = set()

    @property
    def plain(self) -> bool:
        """Whether the line is ordinary text here, no code and no formula."""
        return not self._backticks and not self._formula

    def end_paragraph(self) -> None:
        self._end_line()
        self._backticks, self._formula, self.unsure = 0, "", False

    def _end_line(self) -> None:
        self.unsure = self.unsure or bool(self._backticks)
        self._destination, self._url, self._quiet, self._image = -1, False, False, False
        self._bold.clear()

    def step(self) -> str | None:
        """Never called at the end of the text. A line break is taken alone."""
        tape = self._tape
        if self._url:
            return self._in_url()
        if tape.text[tape.at] == "\n":
            self._end_line()
            return tape.take(1)
        if self._backticks:
            return self._in_backticks()
        if self._formula:
            return self._in_formula()
        special = _SPECIAL.search(tape.folded, tape.at)
        if special is None or special.start() > tape.at:
            return tape.take((special.start() if special else len(tape.text)) - tape.at)
        character = special[0][0]
        if tape.lacks(tape.at + 2) and not character.isdecimal():
            return None
        match character:
            case "\\":
                return self._backslash()
            case "`":
                return self._backtick()
            case "<":
                return self._less_than()
            case "[":
                return self._bracket()
            case "]":
                return self._closing_bracket()
            case "!":
                self._image = tape.text[tape.at + 1 : tape.at + 2] == "["
                return tape.take(1) + (JOINER if self._image else "")
            case "*" | "_":
                return self._emphasis(character)
            case "$":
                return self._dollars()
            case _ if character.lower() in "hwfd":
                return self._word()
        return self._candidate()

    # Code and formulas

    def _backslash(self) -> str | None:
        tape = self._tape
        following = tape.text[tape.at + 1 : tape.at + 2]
        if following and following in "\\<([" and tape.lacks(tape.at + 4):
            return None
        third = tape.text[tape.at + 2 : tape.at + 3]
        if following == "\\":  # the page finds formulas before it finds escapes
            return tape.take(1 if third and third in "()[]" else 2)
        if following and following in "([":
            return self._open_formula(2, "\\)" if following == "(" else "\\]")
        if following and following in ")]":
            self._doubt.mark("\\" + following)
            self.unsure = True
            return tape.take(2)
        if following == "<":
            return tape.take(2) + (JOINER if _TAG.match(tape.text, tape.at - 1) else "")
        return tape.take(2 if following and following in "`*_!#&-.+|~{}>\"'" else 1)

    def _dollars(self) -> str | None:
        end = self._tape.run_end("$")
        if end < 0:
            return None
        tape, length = self._tape, end - self._tape.at
        if length > 1:
            return self._open_formula(length, "$$")
        if tape.lacks(tape.at + HOLD) and not re.search(r"\$.|[\n`]", tape.text[end:]):
            return None
        if (formula := _DOLLARS.match(tape.text, tape.at, tape.at + HOLD)) and not re.search(FORMULA, formula[0]):
            return _BREAKABLE.sub(r"\g<0>{}", tape.take(len(formula[0])))
        return tape.take(1)

    def _open_formula(self, length: int, closer: str) -> str:
        tape = self._tape
        self._doubt.mark(tape.text[tape.at : tape.at + length])
        self.unsure = True
        if tape.text.startswith(closer, tape.at + length):  # nothing inside: the page goes on to the next closer
            self._doubt.lost = True
        elif length < 4:
            self._formula = closer
        return tape.take(length)

    def _in_formula(self) -> str | None:
        """Broken by `{}`, which is nothing in a formula: Gradio puts it back as HTML, the page shows it as it is."""
        tape = self._tape
        token = _IN_FORMULA.search(tape.text, tape.at)
        if token is None or token.start() > tape.at:
            return tape.take((token.start() if token else len(tape.text)) - tape.at)
        text = token[0]
        if tape.lacks(token.end() + 1) or (text[0] == "\\" and tape.lacks(tape.at + 4)):
            return None
        if len(text) > 1:
            self._doubt.mark(text)
            if text[:2] == self._formula:
                self._formula = ""
            return tape.take(len(text))
        return tape.take(1) + ("{}" if _BREAKABLE.match(tape.text, token.start()) else "")

    def _backtick(self) -> str | None:
        """A code span is left to the letter when it is closed soon, on this line, and surely one."""
        tape = self._tape
        end = tape.run_end("`")
        if end < 0:
            return None
        count, limit = end - tape.at, end + HOLD
        if not self.unsure and not self._doubt:
            newline = tape.text.find("\n", end, limit)
            for run in _TICKS.finditer(tape.text, end, newline if newline >= 0 else limit):
                if tape.lacks(run.end() + 1):
                    return None
                if len(run[0]) == count and run.end() < limit and "|" not in tape.text[end : run.start()]:
                    span = tape.take(run.end() - tape.at)
                    return self._doubt.verbatim(span, doubtful=not paired(span))
                if len(run[0]) == count:
                    break
            else:
                if newline < 0 and tape.lacks(limit):
                    return None
        self._backticks, self.unsure = count, True
        return tape.take(count)

    def _in_backticks(self) -> str | None:
        tape = self._tape
        if tape.text[tape.at] == "`":
            end = tape.run_end("`")
            if end < 0:
                return None
            if end - tape.at == self._backticks:
                self._backticks = 0
            return tape.take(end - tape.at)
        ends = [index for index in (tape.text.find("\n", tape.at), tape.text.find("`", tape.at)) if index >= 0]
        end = tape.settled(min(ends, default=len(tape.text)))
        return self._doubt.verbatim(tape.take(end - tape.at), True) if end > tape.at else None

    # Links

    def _in_url(self) -> str | None:
        """An address, to where the page sees its end: a formula in it would be put back inside an attribute. Not every
        reader of markdown takes a bare address for one, so links and images in it are broken too."""
        tape = self._tape
        end = _URL_END.search(tape.text, tape.at)
        if end is None or end.start() > tape.at:
            return tape.take((end.start() if end else len(tape.text)) - tape.at)
        character = end[0]
        if character in _IN_URL:
            if tape.lacks(tape.at + 2):
                return None
            following = tape.text[tape.at + 1 : tape.at + 2]
            return tape.take(1) + (JOINER if following and following in _IN_URL[character] else "")
        if character == "`":
            self.unsure = True
            return tape.take(1)
        if character in "()" and self._destination < 0:
            return tape.take(1)
        if character == "(":
            self._destination += 1
            return tape.take(1)
        if character == ")" and self._destination > 0:
            self._destination -= 1
            return tape.take(1)
        closed = self._destination < 0 or character == ")"
        self._url, self._destination = False, -1
        return "" if closed else f"){JOINER}{JOINER}"  # ends here: no title

    def _bracket(self) -> str | None:
        tape = self._tape
        found = _LINK_TEXT.match(tape.text, tape.at)
        assert found is not None
        if found[1] != "](" and tape.lacks(found.end() + 1) and found.end() - tape.at < 80:
            return None
        self._quiet = self._quiet or found[1] == "]("
        return tape.take(1)

    def _closing_bracket(self) -> str | None:
        tape = self._tape
        following = tape.text[tape.at + 1 : tape.at + 2]
        if following == ":":
            return tape.take(1) + JOINER
        if following != "(":
            return tape.take(1)
        rest = tape.text[tape.at + 2 : tape.at + 2 + HOLD].lower()
        if tape.lacks(tape.at + 2 + HOLD) and (
            any(safe.startswith(rest) for safe in (*_URLS[:2], "mailto:")) or re.fullmatch(r"#[\w-]*", rest)
        ):
            return None
        safe = _SAFE_TARGET.match(tape.text, tape.at) and not self._image and not self._doubt
        self._image = self._quiet = False
        if not safe:
            return tape.take(1) + JOINER
        self._url, self._destination = True, 0
        return tape.take(2)

    def _word(self) -> str | None:
        """A bare address, or an attribute with a box."""
        tape = self._tape
        rest = tape.text[tape.at : tape.at + len(_BOX)].lower()
        if rest.startswith(_URLS):
            self._url = True
            return tape.take(1)
        if tape.lacks(tape.at + len(rest) + 1) and any(word.startswith(rest) for word in (*_URLS, _BOX)):
            return None
        if rest == _BOX and self._linking:
            if tape.lacks(tape.at + HOLD) and '"' not in tape.text[tape.at + len(_BOX) :]:
                return None
            if attribute := TAGGED.match(tape.text, tape.at, tape.at + HOLD):
                return self._tagged(attribute)
        return tape.take(1)

    def _less_than(self) -> str | None:
        tape = self._tape
        if not _TAG.match(tape.text, tape.at):
            return self._candidate() if times.CANDIDATE.match(tape.folded, tape.at) else tape.take(1)
        rest = tape.text[tape.at : tape.at + len(_TOOL_CALL)].lower()
        if tape.lacks(tape.at + len(_TOOL_CALL)) and any(word.startswith(rest) for word in _OPENINGS):
            return None
        if rest.startswith(_OPENINGS[:2]):
            self._url = True
            return tape.take(1)
        if rest.startswith(_BREAKS):
            return JOINER + tape.take(rest.index(">") + 1)  # never first on its line: there it begins a block of HTML
        if rest.startswith("<!--") and self._linking:
            if tape.lacks(tape.at + 80) and "-->" not in tape.text[tape.at :]:
                return None
            if comment := TAGGED.match(tape.text, tape.at, tape.at + 80):
                return self._tagged(comment)
        tape.take(1)
        if rest == _TOOL_CALL and tape.data is None:
            name = tape.take(len(_TOOL_CALL) - 1)
            tape.data = []
            return "&#60;" + name
        return "&#60;"

    def _tagged(self, match: re.Match[str]) -> str:
        """Link the words that state a box."""
        self._citations.read(self._tape.unread)
        marks = [mark for place in read_tagged(match) for mark in self._citations.place(place)]
        self._citations.keep(marks)
        shown = _TAG.sub("&#60;", self._tape.take(match.end() - match.start()))
        return f"{self._apart()}[{shown}]({target(marks[0])})" if marks else shown

    # Emphasis

    def _emphasis(self, character: str) -> str | None:
        """Beside CJK markdown leaves `**` as it is between punctuation (such as our brackets) and a letter: a time that
        is bold as a whole becomes a link with bold text, other stars get a breaker on that side."""
        tape = self._tape
        end = tape.run_end(character)
        if end < 0:
            return None
        run, count = tape.text[tape.at : end], end - tape.at
        following = tape.text[end : end + 1]
        if following in ("<", "＜") and tape.lacks(end + 2):
            return None
        if character == "*" and count <= 3 and count not in self._bold and self._linking and self._may_cite(end):
            if self._held(end):
                return None
            marks, after = self._cite(end)
            if marks and tape.lacks(after + count + 1):
                return None
            if marks and tape.text.startswith(run, after) and tape.text[after + count : after + count + 1] != "*":
                return self._link(marks, after + count)
        if character == "_":
            return (JOINER if tape.last == ")" else "") + tape.take(count)
        if count in self._bold and not tape.last.isspace():
            self._bold.discard(count)
            return (JOINER if _punctuation(tape.last) and _wordy(following) else "") + tape.take(count)
        if count not in self._bold and following and not following.isspace():
            self._bold.add(count)
            return tape.take(count) + (JOINER if _punctuation(following) and _wordy(tape.last) else "")
        return tape.take(count)

    # Times and pages

    @property
    def _linking(self) -> bool:
        return not self._quiet and self._tape.data is None

    def _may_cite(self, index: int) -> bool:
        folded = self._tape.folded
        return bool(times.CANDIDATE.match(folded, index)) or folded[index : index + 1].lower() == "p"

    def _held(self, index: int) -> bool:
        """Whether the time or page that may begin at `index` may go on beyond what is here."""
        if self._tape.ended:
            return False
        reach = times.REACH.match(self._tape.folded, index, index + times.WINDOW)
        assert reach is not None
        return reach.end() == len(self._tape.text) and reach.end() < index + times.WINDOW

    def _cite(self, index: int) -> tuple[list[Mark], int]:
        """What the time or page at `index` cites (nothing: it is neither, or no attachment has it), where it ends."""
        tape = self._tape
        if page := PAGE.match(tape.folded, index, index + times.WINDOW):
            self._citations.read(tape.unread)
            return self._citations.page(page, tape.text[index : page.end()]), page.end()
        if not times.CANDIDATE.match(tape.folded, index):
            return [], index + 1
        found, after = times.read_time(tape.folded, index)
        if found is None:
            return [], after
        self._citations.read(tape.unread)
        return self._citations.time(found, tape.text[index:after]), after

    def _candidate(self) -> str | None:
        tape = self._tape
        if not self._linking:
            skip = _SKIP.match(tape.folded, tape.at)
            assert skip is not None
            return tape.take(skip.end() - tape.at)
        if self._held(tape.at):
            return None
        marks, after = self._cite(tape.at)
        return self._link(marks, after) if marks else tape.take(after - tape.at).replace("<", "&#60;")

    def _link(self, marks: list[Mark], after: int) -> str:
        self._citations.keep(marks)
        text = self._tape.take(after - self._tape.at).replace("<", "&#60;")
        if len(marks) == 1:
            return f"{self._apart()}[{text}]({target(marks[0])})"
        return text + "".join(" " + self._citations.choice(mark) for mark in marks)

    def _apart(self) -> str:
        """What keeps a bracket from the character before it: `**[` is no emphasis, `![` an image, `\\[` a formula."""
        return JOINER if self._tape.last and self._tape.last in "*_!\\" else ""


def _punctuation(character: str) -> bool:
    return bool(character) and unicodedata.category(character)[0] in "PS"


def _wordy(character: str) -> bool:
    """A letter of a script that puts no spaces between words."""
    return character >= "\u2e80" and unicodedata.category(character)[0] == "L"
