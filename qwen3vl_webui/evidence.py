"""An answer while it streams, made safe to show as markdown, its times, pages and boxes turned into links.

The answer is hostile text: a document or a frame may have told the model what to write. What may load, run or forge is
broken by one character that shows nothing (`<` of raw HTML becomes an entity). Code is left to the letter only where
it is certain that the page will read it as code too; where that is in doubt, what is dangerous in it is broken as well.
One page rule makes doubt common: formulas (`$$`, `\\(`, `\\[`) are cut out before anything else is read, even in code.
"""

from __future__ import annotations

import re
import unicodedata

from qwen3vl_webui import times
from qwen3vl_webui.coordinates import MOST_CHARACTERS, TAGGED, Coordinates, read_coordinates, read_json, read_tagged
from qwen3vl_webui.fences import Fence, Lists
from qwen3vl_webui.links import (
    JOINER,
    Box,
    CitedPage,
    CitedTime,
    CodeBlock,
    Evidence,
    Mark,
    Point,
    Source,
    Sources,
    ToolCall,
    chip,
    plain,
    target,
)

__all__ = ["Evidence", "Linker", "Source", "Sources", "evidence", "plain"]

MOST_CHIPS = 60  # of one block; the pane shows them all
_CONTEXT = 64  # characters kept behind what is being read
_HOLD = 48  # characters held back for a decision that is no time
_DROPPED = {0: None, 13: None, ord(JOINER): None}

_SPECIAL = re.compile(
    rf"[\n\\`<\[\]!*_$\d第{times.NUMERALS}]|(?<![A-Za-z0-9_])(?:[pP](?=p?\.|ages?[ ]|p?\Z|ag?\Z|age\Z|ages\Z)|[hHwWd])"
)
_SKIP = re.compile(rf"\d+|[{times.NUMERALS}]+|.", re.DOTALL)
_TAG = re.compile(r"<(?=[A-Za-z/!?])")
_CODE = re.compile(r"\\\(\\\)|\\\[\\\]|\${2,}|\\[()\[\]]|<(?=[A-Za-z/!?])|\](?=[(:])|!(?=\[)")
_LINK_TEXT = re.compile(r"\[[^\[\]\n`]{0,80}(\]\(?)?")
_SAFE_TARGET = re.compile(r"\]\((?:<?(?:https?://|mailto:)|#(?!qv)[\w-]{0,40}\))", re.IGNORECASE)
_URL = re.compile(r"[!#%&+,\-./0-9:;=?@A-Z_a-z~(]+")
_PAGE_NUMBER = rf"(\d{{1,5}}|[{times.NUMERALS}]{{1,5}})"
_PAGE = re.compile(
    rf"(?:pp?\. ?|pages? )(\d{{1,5}})(?: ?(?:-|–|—) ?(\d{{1,5}})| to (\d{{1,5}}))?(?![\d:]|\.\d)"
    rf"|第 ?{_PAGE_NUMBER} ?(?:(?:[-–—~至到]) ?(?:第 ?)?{_PAGE_NUMBER} ?)?[页頁](?: ?[-–—~至到] ?第 ?{_PAGE_NUMBER} ?[页頁])?",
    re.IGNORECASE,
)
_WORDS = ("http://", "https://", "www.", 'data-bbox="')
_JSON_HEAD = re.compile(r"\{[ \t]*[\"'}\n]|\[[ \t]*(?:[{\n]|\[[ \t]*[\[{\d])")
_STRING = re.compile(r'"(?:[^"\\]|\\.)*+"?')


def evidence(text: str, sources: Sources) -> Evidence:
    """All that a whole answer points at: the same that `Linker` turns into links."""
    linker = Linker(sources)
    linker.feed(text)
    linker.finish()
    return linker.evidence


class Linker:
    """Lives as long as one answer streams: `feed` each piece, `finish` once, `markdown` is what to show.

    What is shown only ever grows, and any cutting of the answer into pieces ends in the same markdown. A piece that
    may still become a time, a page or a link is held back, at most about WINDOW characters.
    """

    def __init__(self, sources: Sources) -> None:
        self._sources = sources
        self._text = ""  # what is held, behind up to _CONTEXT characters of what is done
        self._folded = ""
        self._at = 0
        self._ended = False
        self._shown: list[str] = []
        self._last = ""  # the last character shown
        # Blocks
        self._line_start = True
        self._blank_before = True
        self._lists = Lists()
        self._fence: Fence | None = None
        self._block: list[str] = []  # inside of the fence
        self._json: list[str] | None = None  # JSON outside of a fence, as written so far
        self._json_depth = self._json_line = 0
        # Inline
        self._backticks = 0  # a code span is open, of so many; whether it will be closed is not known
        self._formula = ""  # a formula is open, until this
        self._url = False
        self._quiet = False  # inside the text of a link
        self._image = False
        self._bold: set[int] = set()
        # Doubt
        self._open_formulas: set[str] = set()
        self._unsure = False  # until the paragraph ends: which backticks pair
        self._lost = False  # for good: which fences pair
        # Media
        self._names = _names(sources)
        self._unread: list[str] = []  # text not yet searched for names
        self._named: dict[str, Source] = {}
        self._page: dict[str, int] = {}  # last page cited, by document
        self._times: list[CitedTime] = []
        self._pages: list[CitedPage] = []
        self._boxes: list[Box] = []
        self._points: list[Point] = []
        self._calls: list[ToolCall] = []
        self._code_blocks: list[CodeBlock] = []

    # What callers see

    def feed(self, piece: str) -> str:
        """Take the next piece of the answer; returns what to append to what is shown (may be empty)."""
        return self._advance(piece.translate(_DROPPED))

    def finish(self) -> str:
        """The answer is whole: returns the rest of what to show."""
        if self._ended:
            return ""
        self._ended = True
        shown = self._advance("")
        end = self._close_fence(at_end=True) if self._fence else self._close_json(at_end=True)
        if end:
            self._shown.append(end)
        return shown + end

    @property
    def markdown(self) -> str:
        """All that is shown so far."""
        if len(self._shown) > 1:
            self._shown = ["".join(self._shown)]
        return self._shown[0] if self._shown else ""

    @property
    def evidence(self) -> Evidence:
        """What was found so far."""
        return Evidence(
            tuple(self._times),
            tuple(self._pages),
            tuple(self._boxes),
            tuple(self._points),
            tuple(self._calls),
            tuple(self._code_blocks),
        )

    # Reading on

    def _advance(self, piece: str) -> str:
        done = max(0, self._at - _CONTEXT)
        self._text = self._text[done:] + piece
        self._folded = self._folded[done:] + times.fold(piece)
        self._at -= done
        shown = []
        while self._at < len(self._text):
            if self._line_start:
                step = self._fence_line() if self._fence else self._line()
            else:
                step = self._fence_text() if self._fence else self._inline()
            if step is None:
                break
            if step:
                shown.append(step)
                self._last = step[-1]
        added = "".join(shown)
        if added:
            self._shown.append(added)
        return added

    def _take(self, count: int) -> str:
        taken = self._text[self._at : self._at + count]
        self._at += len(taken)
        self._unread.append(taken)
        if self._json is not None:
            self._json.append(taken)
        return taken

    def _short_of(self, index: int) -> bool:
        """Whether the text up to `index` is not here yet."""
        return index > len(self._text) and not self._ended

    @property
    def _doubt(self) -> bool:
        return self._lost or bool(self._open_formulas)

    def _formula_mark(self, mark: str) -> None:
        """Keep count of formula delimiters as the page will pair them: anywhere, code included."""
        if len(mark) > 3:
            self._lost = True
        elif mark[0] == "$":
            self._open_formulas ^= {"$$"}
        elif mark[1] in "([":
            self._open_formulas.add(mark[1])
        else:
            self._open_formulas.discard("(" if mark[1] == ")" else "[")

    def _verbatim(self, raw: str, doubtful: bool, entity: bool = False) -> str:
        """Code as it is, but broken where the page may read it as something else."""

        def guard(match: re.Match[str]) -> str:
            token = match[0]
            if token[0] in "$\\":
                self._formula_mark(token)
                return token
            if token == "<" and entity:
                return "&#60;"
            return token + JOINER if doubtful or self._doubt else token

        return _CODE.sub(guard, raw)

    # Lines and fences

    def _line(self) -> str | None:
        """At the start of a line outside of fences: what kind of line it is."""
        head = self._lists.head(self._text, self._at, self._ended)
        if head is None:
            return None
        if head.fence is not None:
            if self._open_formulas:
                self._lost = True
            self._end_paragraph()
            self._fence = head.fence
            self._fence.doubtful |= self._lost
            self._block = []
            self._blank_before = False
            return self._verbatim(self._take(head.length), True)
        after = self._at + head.length
        blank = self._text[after : after + 1] in ("", "\n") and not head.marked
        ended = self._close_json() if self._json is not None and (blank or self._json_depth <= 0) else ""
        if not blank and self._json is None and not (self._backticks or self._formula):
            if re.compile(r"[{\[][ \t\[]*\Z").match(self._text, after) and not self._ended and not self._short(after):
                if not ended:
                    return None
                self._json = None
                return ended
            if _JSON_HEAD.match(self._text, after):
                self._json, self._json_line, self._json_depth = [], 0, 0
        if blank:
            self._end_paragraph()
        else:
            self._lists.enter(head, self._blank_before)
        self._blank_before = blank
        self._line_start = False
        return ended + self._take(head.length)

    def _short(self, index: int) -> bool:
        return len(self._text) - index > _HOLD

    def _end_paragraph(self) -> None:
        self._backticks, self._formula, self._unsure = 0, "", False
        self._url = self._quiet = self._image = False
        self._bold.clear()

    def _fence_line(self) -> str | None:
        """At the start of a line inside a fence: whether it ends here."""
        assert self._fence is not None
        kind = self._fence.line(self._text, self._at, self._ended)
        if kind is None:
            return None
        if kind == "inside":
            self._line_start = False
            return ""
        if kind == "left":  # its list or quote ended before it did; the page may see that differently
            self._lost = True
            return self._close_fence()
        end = self._text.find("\n", self._at)
        line = self._take((end if end >= 0 else len(self._text)) + (end >= 0) - self._at)
        if self._open_formulas:
            self._lost = True
        if end < 0:
            return line  # the answer ends; finish() closes it
        return line + self._close_fence()

    def _fence_text(self) -> str | None:
        assert self._fence is not None
        end = self._text.find("\n", self._at) + 1
        if not end:
            end = len(self._text)
            if not self._ended:  # a token of _CODE may go on
                while end > self._at and self._text[end - 1] in "$\\<]!()[":
                    end -= 1
                if end == self._at:
                    if len(self._text) - self._at < _HOLD:
                        return None
                    end = len(self._text) - 1
        else:
            self._line_start = True
        raw = self._take(end - self._at)
        self._block.append(raw)
        return self._verbatim(raw, self._fence.doubtful, entity=self._fence.language == "mermaid")

    def _close_fence(self, at_end: bool = False) -> str:
        assert self._fence is not None
        fence, text = self._fence, "".join(self._block)
        self._fence, self._block = None, []
        self._line_start = True
        self._code_blocks.append(CodeBlock(fence.language, text))
        return self._chips(text, " " * fence.column if not fence.quotes else "", at_end)

    def _close_json(self, at_end: bool = False) -> str:
        if self._json is None:
            return ""
        text = "".join(self._json)
        self._json = None
        for value in read_json(text[:MOST_CHARACTERS]):
            if isinstance(value, dict) and isinstance(value.get("arguments"), dict):
                self._calls.append(ToolCall(str(value.get("name", "")), value["arguments"]))
        return self._chips(text, "", at_end)

    def _chips(self, text: str, indent: str, at_end: bool) -> str:
        """The line of chips below a block; links.plain() knows these two forms."""
        chips = [chip(mark, label) for place in read_coordinates(text) for mark, label in self._place(place)]
        if len(chips) > MOST_CHIPS:
            rest = f"[▣ +{len(chips) - MOST_CHIPS}]"
            chips = chips[:MOST_CHIPS] + [rest + chips[MOST_CHIPS][chips[MOST_CHIPS].rindex("](") + 1 :]]
        if not chips:
            return ""
        if at_end and (self._text[-1:] != "\n"):
            return f"\n\n{indent}{' '.join(chips)}"
        return f"\n{indent}{' '.join(chips)}\n\n"

    # Inside a line

    def _inline(self) -> str | None:
        if self._backticks:
            return self._in_backticks()
        if self._formula:
            return self._in_formula()
        if self._url:
            url = _URL.match(self._text, self._at)
            if url:
                return self._take(url.end() - self._at)
            self._url = False
        special = _SPECIAL.search(self._folded, self._at)
        if special is None:
            return self._take(len(self._text) - self._at)
        if special.start() > self._at:
            return self._take(special.start() - self._at)
        character = special[0][0]
        if character == "\n":
            return self._newline()
        if self._short_of(self._at + 2) and character in "\\`<!]*_$":
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
                if self._text[self._at + 1 : self._at + 2] == "[":
                    self._image = True
                    return self._take(1) + JOINER
                return self._take(1)
            case "*" | "_":
                return self._emphasis(character)
            case "$":
                return self._dollars()
            case _ if character in "hHwWd":
                return self._word()
        return self._candidate()

    def _newline(self) -> str:
        shown = self._take(1)
        if self._json is not None:
            line = _STRING.sub("", "".join(self._json[self._json_line :]))
            self._json_line = len(self._json)
            self._json_depth += line.count("{") + line.count("[") - line.count("}") - line.count("]")
        self._line_start = True
        self._unsure = self._unsure or bool(self._backticks)
        self._url = self._quiet = self._image = False
        self._bold.clear()
        return shown

    def _backslash(self) -> str | None:
        following = self._text[self._at + 1 : self._at + 2]
        if following == "\\":
            if self._short_of(self._at + 3):
                return None
            formula = self._text[self._at + 2 : self._at + 3] in ("(", "[", ")", "]")
            return self._take(1 if formula else 2)
        if following in ("(", "["):
            if self._short_of(self._at + 4):
                return None
            return self._open_formula(2, "\\)" if following == "(" else "\\]")
        if following in (")", "]"):
            self._formula_mark("\\" + following)
            self._unsure = True
            return self._take(2)
        if following == "<":
            if self._short_of(self._at + 3):
                return None
            tag = _TAG.match(self._text, self._at + 1)
            return self._take(2) + (JOINER if tag else "")
        return self._take(2 if following and following in "`*_!#&-.+|~{}>\"'" else 1)

    def _dollars(self) -> str | None:
        end = self._at
        while end < len(self._text) and self._text[end] == "$":
            end += 1
        if self._short_of(end + 1) and end - self._at < 4:
            return None
        if end - self._at == 1:
            return self._take(1)
        return self._open_formula(end - self._at, "$$")

    def _open_formula(self, length: int, closer: str) -> str:
        mark = self._text[self._at : self._at + length]
        self._formula_mark(mark)
        self._unsure = True
        if self._text.startswith(closer, self._at + length):  # nothing inside: the page goes on to the next closer
            self._lost = True
        elif length < 4:
            self._formula = closer
        return self._take(length)

    def _in_formula(self) -> str | None:
        """To the end of the formula or the line; raw HTML is escaped (the page reads entities before formulas)."""
        if self._text[self._at] == "\n":
            return self._newline()
        token = re.compile(r"\n|\\\(\\\)|\\\[\\\]|\${2,}|\\[()\[\]]|<|\]|!|\\|\$").search(self._text, self._at)
        if token is None:
            return self._take(len(self._text) - self._at)
        if token.start() > self._at:
            return self._take(token.start() - self._at)
        if self._short_of(token.end() + 1) or (token[0][0] in "\\" and self._short_of(self._at + 4)):
            return None
        text = token[0]
        if text[0] == "$" and len(text) > 1 or text[0] == "\\" and len(text) > 1:
            self._formula_mark(text)
            if text[:2] == self._formula:
                self._formula = ""
            return self._take(len(text))
        following = self._text[token.end() : token.end() + 1]
        if text == "<" and _TAG.match(self._text, self._at):
            self._take(1)
            return "&#60;"
        breaks = (text == "]" and following in ("(", ":")) or (text == "!" and following == "[")
        return self._take(1) + ("{}" if breaks and following else "")

    def _backtick(self) -> str | None:
        """A code span is left alone when it is closed soon, on this line, and surely one."""
        end = self._at
        while end < len(self._text) and self._text[end] == "`":
            end += 1
        if self._short_of(end + 1) and end - self._at < _HOLD:
            return None
        count, limit = end - self._at, end + _HOLD
        if not self._unsure and not self._doubt:
            newline = self._text.find("\n", end, limit)
            stop = newline if newline >= 0 else min(limit, len(self._text))
            for run in re.compile("`+").finditer(self._text, end, stop):
                if self._short_of(run.end() + 1):
                    return None
                if len(run[0]) == count and run.end() < limit:
                    if "|" in self._text[end : run.start()]:
                        break
                    return self._verbatim(self._take(run.end() - self._at), False)
            else:
                if newline < 0 and len(self._text) < limit and not self._ended:
                    return None
        self._backticks, self._unsure = count, True
        return self._take(count)

    def _in_backticks(self) -> str | None:
        newline = self._text.find("\n", self._at)
        if newline == self._at:
            return self._newline()
        end = newline if newline >= 0 else len(self._text)
        tick = self._text.find("`", self._at, end)
        if tick == self._at:
            run = tick
            while run < len(self._text) and self._text[run] == "`":
                run += 1
            if self._short_of(run + 1):
                return None
            if run - tick == self._backticks:
                self._backticks = 0
            return self._take(run - tick)
        end = tick if tick >= 0 else end
        if end == len(self._text) and not self._ended:
            while end > self._at and self._text[end - 1] in "$\\<]!()[":
                end -= 1
            if end == self._at:
                return None
        return self._verbatim(self._take(end - self._at), True)

    def _less_than(self) -> str | None:
        if not _TAG.match(self._text, self._at):
            return self._candidate() if self._folded[self._at + 1 : self._at + 2].isdigit() else self._take(1)
        rest = self._text[self._at : self._at + 9].lower()
        if (
            not self._ended
            and len(rest) < 9
            and any(tag.startswith(rest) for tag in ("<tool_cal", "<http://", "<https:/"))
        ):
            return None
        if not self._ended and len(rest) < 4 and "<!--".startswith(rest):
            return None
        if rest.startswith(("<http://", "<https:/")):
            self._url = True
            return self._take(1)
        if self._text.startswith("<!--", self._at) and self._linking:
            end = self._text.find("-->", self._at, self._at + 80)
            if end < 0 and not self._ended and len(self._text) - self._at < 80:
                return None
            if comment := TAGGED.match(self._text, self._at):
                return self._tagged(comment)
        self._take(1)
        if rest == "<tool_cal" and self._json is None:
            if self._short_of(self._at + 10):
                self._at -= 1
                self._unread.pop()
                return None
            if self._text.startswith("tool_call>", self._at):
                self._json, self._json_line, self._json_depth = [], 0, 0
                return "&#60;" + self._take(10)
        return "&#60;"

    @property
    def _linking(self) -> bool:
        return not self._quiet and self._json is None

    def _bracket(self) -> str | None:
        found = _LINK_TEXT.match(self._text, self._at)
        assert found is not None
        undecided = found.end() == len(self._text) and found[1] != "](" and found.end() - self._at < 80
        if undecided and not self._ended:
            return None
        self._quiet = self._quiet or found[1] == "]("
        return self._take(1)

    def _closing_bracket(self) -> str | None:
        following = self._text[self._at + 1 : self._at + 2]
        if following == ":":
            return self._take(1) + JOINER
        if following != "(":
            return self._take(1)
        rest = self._text[self._at + 2 :][:_HOLD].lower()
        if len(rest) < _HOLD and not self._ended and self._at + 2 + len(rest) == len(self._text):
            scheme = rest.removeprefix("<")
            if any(safe.startswith(scheme) for safe in ("http://", "https://", "mailto:")) or re.fullmatch(
                r"#[\w-]*", rest
            ):
                return None
        safe = _SAFE_TARGET.match(self._text, self._at) and not self._image and not self._doubt
        self._image = self._quiet = False
        if not safe:
            return self._take(1) + JOINER
        self._url = True
        return self._take(2)

    def _emphasis(self, character: str) -> str | None:
        """Bold beside CJK: markdown leaves `**` as it is between punctuation (such as our brackets) and a letter."""
        end = self._at
        while end < len(self._text) and self._text[end] == character and end - self._at < 8:
            end += 1
        if self._short_of(end + 1):
            return None
        run, count = self._text[self._at : end], end - self._at
        following = self._text[end : end + 1]
        if (
            character == "*"
            and count <= 3
            and count not in self._bold
            and self._linking
            and times.CANDIDATE.match(self._folded, end)
        ):
            if self._held(end):
                return None
            cited, after = self._cite(end)
            if cited and self._short_of(after + count + 1):
                return None
            if (
                cited
                and self._text.startswith(run, after)
                and self._text[after + count : after + count + 1] != character
            ):
                return self._link(cited, after + count)
        if character == "_":
            return (JOINER if self._last == ")" else "") + self._take(count)
        if count in self._bold:
            if self._last.isspace():
                return self._take(count)
            self._bold.discard(count)
            return (JOINER if _punctuation(self._last) and _wordy(following) else "") + self._take(count)
        if following and not following.isspace():
            self._bold.add(count)
            return self._take(count) + (JOINER if _punctuation(following) and _wordy(self._last) else "")
        return self._take(count)

    def _word(self) -> str | None:
        """A word that may begin a bare URL or an attribute with a box."""
        rest = self._text[self._at : self._at + 11].lower()
        if (
            not self._ended
            and self._at + len(rest) == len(self._text)
            and any(word.startswith(rest) for word in _WORDS)
        ):
            return None
        if rest.startswith(_WORDS[:3]):
            self._url = True
            return self._take(4)
        if rest.startswith(_WORDS[3]) and self._linking:
            if len(self._text) - self._at < _HOLD and not self._ended and '"' not in self._text[self._at + 11 :]:
                return None
            if attribute := TAGGED.match(self._text, self._at):
                return self._tagged(attribute)
        return self._take(1)

    def _tagged(self, match: re.Match[str]) -> str:
        """Link the words that state a box."""
        marks = [mark for place in read_tagged(match) for mark, _ in self._place(place)]
        raw = self._take(match.end() - match.start())
        shown = _TAG.sub("&#60;", raw)
        return f"[{shown}]({target(marks[0])})" if marks else shown

    # Times and pages

    def _held(self, index: int) -> bool:
        """Whether what begins at `index` may go on beyond what is here."""
        if self._ended:
            return False
        reach = times.REACH.match(self._folded, index, index + times.WINDOW)
        assert reach is not None
        return reach.end() == len(self._text) and reach.end() < index + times.WINDOW

    def _cite(self, index: int) -> tuple[list[Mark], int]:
        """The marks of the time or page that begins at `index` (none: it is neither, or nothing here has it) and where
        it ends."""
        if page := _PAGE.match(self._folded, index, index + times.WINDOW):
            return self._cite_page(page), page.end()
        if not times.CANDIDATE.match(self._folded, index):
            return [], index + 1
        found, after = times.read_time(self._folded, index)
        return (self._cite_time(found) if found else []), after

    def _candidate(self) -> str | None:
        if not self._linking:
            skip = _SKIP.match(self._folded, self._at)
            assert skip is not None
            return self._take(skip.end() - self._at)
        if self._held(self._at):
            return None
        marks, after = self._cite(self._at)
        return self._link(marks, after) if marks else self._take(after - self._at)

    def _link(self, marks: list[Mark], after: int) -> str:
        text = self._take(after - self._at)
        for mark in marks:
            if isinstance(mark, CitedTime):
                self._times.append(mark)
            elif isinstance(mark, CitedPage):
                self._pages.append(mark)
                self._page[mark.media] = mark.page
        text = text.replace("<", "&#60;")
        if len(marks) == 1:
            return f"{JOINER if self._last in ('*', '_') else ''}[{text}]({target(marks[0])})"
        names = {source.id: source.name for source in self._sources.items}
        return text + "".join(" " + chip(mark, names[mark.media][:24]) for mark in marks)

    def _cite_time(self, found: times.FoundTime) -> list[Mark]:
        text = self._text[found.start_index : found.end_index].strip("*")
        return [_cited(video, found.start, found.end, text) for video in self._candidates("video", found.start)]

    def _cite_page(self, found: re.Match[str]) -> list[Mark]:
        numbers = [int(times.number(group)) for group in found.groups() if group]
        page, last = numbers[0], (numbers[1] if len(numbers) > 1 and numbers[1] > numbers[0] else None)
        text = self._text[found.start() : found.end()]
        marks: list[Mark] = []
        for document in self._candidates("document", page) if page else ():
            marks.append(CitedPage(document.id, page, last if last and last <= document.pages else None, text))
        return marks

    def _candidates(self, kind: str, place: float) -> list[Source]:
        """Which attachments a second or page is of: the last named if it has it, else every one that has."""
        self._read_names()
        if named := self._named.get(kind):
            return [named] if _has(named, place) else []
        return [source for source in self._sources.of(kind) if _has(source, place)]

    def _read_names(self) -> None:
        if not self._unread or not self._names:
            return
        text = "".join(self._unread)
        self._unread = [text[-160:]]
        pattern, by_name = self._names
        for match in pattern.finditer(text):
            source = by_name[match[0].lower()]
            self._named[source.kind] = source

    def _place(self, place: Coordinates) -> list[tuple[Mark, str]]:
        """The marks of what a block of data located, each with the words of its chip."""
        if place.box is None and place.point is None:
            start = place.start
            assert start is not None
            videos = self._candidates("video", start)
            cited = [_cited(video, start, place.end, place.label) for video in videos]
            self._times.extend(cited)
            return [(mark, f"{_clock(mark)} {mark.text}".strip()) for mark in cited]
        media, seconds, page = self._media_of(place)
        if media is None:
            return []
        words = f"{place.label} {times.format_clock(seconds, 1)}".strip() if seconds is not None else place.label
        if place.box is not None:
            box = Box(media.id, *place.box, place.label, seconds, page)
            self._boxes.append(box)
            return [(box, words)]
        assert place.point is not None
        point = Point(media.id, *place.point, place.label, seconds, page)
        self._points.append(point)
        return [(point, words)]

    def _media_of(self, place: Coordinates) -> tuple[Source | None, float | None, int | None]:
        """Where a box lies: a moment of a video, a page of a document, or a picture (the one named, else the newest)."""
        self._read_names()
        if place.start is not None and (videos := self._candidates("video", place.start)):
            return videos[-1], min(place.start, videos[-1].duration), None
        images, documents = self._sources.of("image"), self._sources.of("document")
        if place.page is not None and (pages := self._candidates("document", place.page)):
            return pages[-1], None, place.page
        if isinstance(place.image, int) and 0 <= place.image < len(images):
            return images[place.image], None, None
        if isinstance(place.image, str):
            for image in images:
                if image.name and image.name.lower() == place.image.lower():
                    return image, None, None
        if images:
            return self._named.get("image") or images[-1], None, None
        if documents:
            document = self._named.get("document") or documents[-1]
            page = self._page.get(document.id, 1 if document.pages == 1 else 0)
            return (document, None, page) if page else (None, None, None)
        return None, None, None


def _has(source: Source, place: float) -> bool:
    """Whether a video has that second (a model rounds the end up) or a document that page."""
    return place <= -(-source.duration // 1) if source.kind == "video" else 1 <= place <= source.pages


def _cited(video: Source, start: float, end: float | None, text: str) -> CitedTime:
    inside = end is not None and _has(video, end)
    return CitedTime(video.id, min(start, video.duration), min(end, video.duration) if inside and end else None, text)


def _clock(mark: CitedTime) -> str:
    digits = 1 if mark.start % 1 or (mark.end or 0) % 1 else 0
    end = f"–{times.format_clock(mark.end, digits)}" if mark.end is not None else ""
    return times.format_clock(mark.start, digits) + end


def _names(sources: Sources) -> tuple[re.Pattern[str], dict[str, Source]] | None:
    """A pattern of all the names an answer may call an attachment by: file name, `Video 2`, `视频2`, `第2个视频`."""
    called = {
        "video": ("video {}", "视频{}", "视频 {}", "第{}个视频"),
        "image": ("image {}", "picture {}", "图{}", "图片{}", "图片 {}", "第{}张图"),
        "document": ("document {}", "文档{}", "文档 {}", "第{}个文档"),
    }
    by_name: dict[str, Source] = {}
    for kind, forms in called.items():
        for count, source in enumerate(sources.of(kind), 1):
            for form in forms:
                by_name[form.format(count)] = source
                if count < 10 and form.startswith("第"):
                    by_name[form.format("一二三四五六七八九"[count - 1])] = source
    for source in sources.items:
        if source.name:
            by_name[source.name.lower()] = source
            stem = source.name.rpartition(".")[0].lower()
            if len(stem) > 3:
                by_name.setdefault(stem, source)
    if not by_name:
        return None
    longest_first = sorted(by_name, key=len, reverse=True)
    pattern = "|".join(re.escape(name) for name in longest_first)
    return re.compile(rf"(?<![A-Za-z0-9_])(?:{pattern})(?![A-Za-z0-9_])", re.IGNORECASE), by_name


def _punctuation(character: str) -> bool:
    return bool(character) and unicodedata.category(character)[0] in "PS"


def _wordy(character: str) -> bool:
    """A CJK letter: where no space stands between words."""
    return character >= "\u2e80" and unicodedata.category(character)[0] == "L"
