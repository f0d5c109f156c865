"""An answer while it streams, made safe to show as markdown, its times, pages and boxes turned into links.

The answer is hostile text: a document or a frame may have told the model what to write. What may load, run or forge is
broken by a character that shows nothing (`<` of raw HTML becomes an entity). Code is left to the letter only where it
is certain that every reader of markdown takes it for code; where that is in doubt, what is dangerous in it is broken
as well. So the page's own reader is a second wall, not the only one, and the text is safe in Gradio's chat too.
"""

from __future__ import annotations

import re

from qwen3vl_webui.evidence.citing import Citations
from qwen3vl_webui.evidence.coordinates import MOST_CHARACTERS, read_coordinates, read_json
from qwen3vl_webui.evidence.fences import Fence, Lists
from qwen3vl_webui.evidence.inline import Inline
from qwen3vl_webui.evidence.links import JOINER, CodeBlock, Evidence, Source, Sources, ToolCall, plain, target
from qwen3vl_webui.evidence.reading import HOLD, Doubt, Tape

__all__ = ["Evidence", "Linker", "Source", "Sources", "evidence", "plain"]

MOST_CHIPS = 60  # below one block; the evidence has them all
_JSON_HEAD = re.compile(r"\{[ \t]*[\"'}\n]|\[[ \t]*(?:[{\n]|\[[ \t]*[\[{\d])")
_JSON_MAYBE = re.compile(r"[{\[][ \t\[]*\Z")
_STRING = re.compile(r'"(?:[^"\\]|\\.)*+"?')


def evidence(text: str, sources: Sources) -> Evidence:
    """All that a whole answer points at: the same that `Linker` turns into links."""
    linker = Linker(sources)
    linker.feed(text)
    linker.finish()
    return linker.evidence


class Linker:
    """Lives as long as one answer streams: `feed` each piece, `finish` once, `markdown` is what to show.

    What is shown only ever grows, and any cutting of the answer into pieces ends in the same markdown. What may still
    become a time, a page, a link or code is held back, in prose a word or two, at most about 100 characters.
    """

    def __init__(self, sources: Sources) -> None:
        self._tape = Tape()
        self._doubt = Doubt()
        self._citations = Citations(sources)
        self._inline = Inline(self._tape, self._doubt, self._citations)
        self._lists = Lists()
        self._shown: list[str] = []
        self._line_start = True
        self._blank_before = True
        self._fence: Fence | None = None
        self._block: list[str] = []  # inside of the fence
        self._depth = 0  # brackets open in the JSON outside of a fence
        self._counted = 0  # pieces of it they are counted in

    def feed(self, piece: str) -> str:
        """Take the next piece of the answer; returns what that adds to `markdown`, often nothing."""
        self._tape.add(piece)
        return self._advance()

    def finish(self) -> str:
        """The answer is whole: returns the rest of `markdown`."""
        if self._tape.ended:
            return ""
        self._tape.ended = True
        rest = self._advance()
        end = self._close_fence(at_end=True) if self._fence else self._close_json(at_end=True)
        self._shown.append(end)
        return rest + end

    @property
    def markdown(self) -> str:
        """All that is to be shown so far."""
        self._shown = ["".join(self._shown)]
        return self._shown[0]

    @property
    def evidence(self) -> Evidence:
        """What was found so far."""
        return self._citations.evidence

    def _advance(self) -> str:
        tape, shown = self._tape, []
        while tape.at < len(tape.text):
            if self._fence:
                step = self._fence_line() if self._line_start else self._fence_text()
            elif self._line_start:
                step = self._line()
            else:
                step = self._inline.step()
                if step and step[-1] == "\n":
                    self._line_start = True
                    self._count_brackets()
            if step is None:
                break
            if step:
                shown.append(step)
                tape.last = step[-1]
        added = "".join(shown)
        self._shown.append(added)
        return added

    def _line(self) -> str | None:
        """At the start of a line outside of fences: what kind of line it is."""
        tape = self._tape
        head = self._lists.head(tape.text, tape.at, tape.ended)
        if head is None:
            return None
        if head.fence:
            return self._open_fence(head.fence, head.length)
        after = tape.at + head.length
        blank = tape.text[after : after + 1] in ("", "\n") and not head.markers
        closed = self._close_json() if blank or self._depth <= 0 else ""
        if not blank and tape.data is None and self._inline.plain:
            if _JSON_MAYBE.match(tape.text, after) and tape.lacks(after + HOLD):
                return closed or None
            if _JSON_HEAD.match(tape.text, after):
                tape.data, self._depth, self._counted = [], 0, 0
        if blank:
            self._inline.end_paragraph()
        else:
            self._lists.enter(head, self._blank_before)
        self._blank_before = blank
        self._line_start = False
        return closed + tape.take(head.length) + (JOINER if head.refused else "")

    # Fences

    def _open_fence(self, fence: Fence, length: int) -> str:
        self._doubt.lost |= bool(self._doubt.open)  # inside a formula: the page may not see this fence
        fence.doubtful |= self._doubt.lost
        self._inline.end_paragraph()
        closed = self._close_json()
        self._fence, self._block, self._blank_before = fence, [], False
        return closed + self._doubt.verbatim(self._tape.take(length), True)

    def _fence_line(self) -> str | None:
        """At the start of a line inside a fence: whether it ends here."""
        assert self._fence is not None
        tape = self._tape
        kind = self._fence.line(tape.text, tape.at, tape.ended)
        if kind is None:
            return None
        if kind == "inside":
            self._line_start = False
            return ""
        if kind == "left":  # its list or quote ended before it did; the page may see that differently
            self._doubt.lost = True
            return self._close_fence()
        self._doubt.lost |= bool(self._doubt.open)
        newline = tape.text.find("\n", tape.at)
        line = tape.take((newline + 1 if newline >= 0 else len(tape.text)) - tape.at)
        return line + self._close_fence(at_end=newline < 0, closed=True)

    def _fence_text(self) -> str | None:
        assert self._fence is not None
        tape = self._tape
        newline = tape.text.find("\n", tape.at)
        end = newline + 1 if newline >= 0 else tape.settled(len(tape.text))
        if end == tape.at:
            return None
        self._line_start = newline >= 0
        raw = tape.take(end - tape.at)
        self._block.append(raw)
        return self._doubt.verbatim(raw, self._fence.doubtful, entity=self._fence.diagram)

    def _close_fence(self, at_end: bool = False, closed: bool = False) -> str:
        assert self._fence is not None
        fence, text = self._fence, "".join(self._block)
        self._fence, self._block, self._line_start = None, [], True
        self._doubt.lost |= fence.diagram and "```" in text  # where the page takes a diagram to end
        self._citations.code_blocks.append(CodeBlock(fence.language, text))
        indent = " " * fence.column if not fence.quotes else ""
        chips = self._chips(text, indent, at_end)
        if chips and at_end and not closed and not fence.quotes:  # else the chips would be code too
            first, joiners = ("", JOINER) if self._tape.text[-1:] == "\n" else ("\n", JOINER * 2)
            return f"{first}{indent}{fence.mark}\n\n{indent}{joiners}{chips.strip()}"
        return chips

    # JSON outside of a fence

    def _count_brackets(self) -> None:
        if self._tape.data is not None:
            line = _STRING.sub("", "".join(self._tape.data[self._counted :]))
            self._counted = len(self._tape.data)
            self._depth += line.count("{") + line.count("[") - line.count("}") - line.count("]")

    def _close_json(self, at_end: bool = False) -> str:
        if self._tape.data is None:
            return ""
        text = "".join(self._tape.data)
        self._tape.data, self._depth, self._counted = None, 0, 0
        for value in read_json(text[:MOST_CHARACTERS]):
            if isinstance(value, dict) and isinstance(value.get("arguments"), dict):
                self._citations.tool_calls.append(ToolCall(str(value.get("name", "")), value["arguments"]))
        return self._chips(text, "", at_end)

    def _chips(self, text: str, indent: str, at_end: bool) -> str:
        """The line of chips below a block of data, in one of the two forms that links.plain() takes out."""
        self._citations.read(self._tape.unread)
        marks = [mark for place in read_coordinates(text) for mark in self._citations.place(place)]
        self._citations.keep(marks)
        if not marks:
            return ""
        chips = [self._citations.chip(mark) for mark in marks[:MOST_CHIPS]]
        if len(marks) > MOST_CHIPS:
            chips.append(f"[▣ +{len(marks) - MOST_CHIPS}]({target(marks[MOST_CHIPS])})")
        line = indent + " ".join(chips)
        return f"\n\n{line}" if at_end and self._tape.text[-1:] != "\n" else f"\n{line}\n\n"
