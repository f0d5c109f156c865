"""An answer as it is read while it streams: what is here and undecided, and which code in it may be left alone."""

from __future__ import annotations

import re

from qwen3vl_webui import times
from qwen3vl_webui.evidence.links import JOINER

HOLD = 48  # characters held back, at most, for a decision
_CONTEXT = 64  # characters kept behind the one being read
_DROPPED = {0: None, 13: None, ord(JOINER): None}  # they would change what a line or a breaker is


class Tape:
    """Lives as long as one answer streams: `text[at:]` is not yet shown. `folded` is the text with ASCII digits and
    colons, character by character. `ended` once no more will come."""

    def __init__(self) -> None:
        self.text = ""
        self.folded = ""
        self.at = 0
        self.ended = False
        self.last = ""  # the last character shown
        self.unread: list[str] = []  # what was taken since names were looked for
        self.data: list[str] | None = None  # JSON outside of a fence, as taken so far

    def add(self, piece: str) -> None:
        piece = piece.translate(_DROPPED)
        done = max(0, self.at - _CONTEXT)
        self.text = self.text[done:] + piece
        self.folded = self.folded[done:] + times.fold(piece)
        self.at -= done

    def take(self, count: int) -> str:
        taken = self.text[self.at : self.at + count]
        self.at += len(taken)
        self.unread.append(taken)
        if self.data is not None:
            self.data.append(taken)
        return taken

    def lacks(self, index: int) -> bool:
        """Whether the text up to `index` is still to come."""
        return index > len(self.text) and not self.ended

    def run_end(self, character: str) -> int:
        """Where the run of `character` at `at` ends; -1 when it may go on."""
        end = self.at
        while end < len(self.text) and self.text[end] == character and end - self.at < HOLD:
            end += 1
        return -1 if self.lacks(end + 1) and end - self.at < HOLD else end

    def settled(self, end: int) -> int:
        """`end`, or before the characters there that what follows may turn into a token of code."""
        if end == len(self.text) and not self.ended:
            while end > self.at and self.text[end - 1] in "$\\<]!()[%":
                end -= 1
            if end == self.at and len(self.text) - self.at >= HOLD:
                end = len(self.text) - 1
        return end


FORMULA = r"\\\(\\\)|\\\[\\\]|\${2,}|\\[()\[\]]"  # delimiters; the first two are pairs with nothing inside
_CODE = re.compile(FORMULA + r"|%%%|<(?=[A-Za-z/!?])|\](?=[(:])|!(?=\[)")


class Doubt:
    """Lives as long as one answer streams: whether every reader of markdown takes for code what is read as code here.

    Gradio's cuts formulas out of the whole answer first, code included, and puts them back as raw HTML, so what lies
    between two delimiters is no code to it, wherever they stand.
    """

    def __init__(self) -> None:
        self.open: set[str] = set()  # formulas begun and not ended
        self.lost = False  # for good

    def __bool__(self) -> bool:
        return self.lost or bool(self.open)

    def mark(self, delimiter: str) -> None:
        """Count a delimiter as Gradio will."""
        if len(delimiter) > 3:
            self.lost = True
        elif delimiter[0] == "$":
            self.open ^= {"$"}
        elif delimiter[1] in "([":
            self.open.add(delimiter[1])
        else:
            self.open.discard("(" if delimiter[1] == ")" else "[")

    def verbatim(self, raw: str, doubtful: bool, entity: bool = False) -> str:
        """Code to the letter, with breakers where it may not be read as code; `entity`: the page reads it as HTML."""

        def guard(match: re.Match[str]) -> str:
            token = match[0]
            if token == "<" and entity:
                return "&#60;"
            if doubtful and token[0] in "$\\%":
                return JOINER.join(token)
            if token[0] in "$\\":
                self.mark(token)
                return token
            return token + JOINER if doubtful or self else token

        return _CODE.sub(guard, raw)


def paired(text: str) -> bool:
    """Whether every formula that begins in a text ends in it, as the page will pair them."""
    doubt = Doubt()
    for delimiter in re.findall(FORMULA, text):
        if delimiter in (r"\)", r"\]") and delimiter.translate({41: 40, 93: 91})[1] not in doubt.open:
            return False
        doubt.mark(delimiter)
    return not doubt


def growing(word: str) -> str:
    """A pattern of a word, or of the beginning of one at the end of the text."""
    pattern = ""
    for character in reversed(word):
        pattern = re.escape(character) + (rf"(?:\Z|{pattern})" if pattern else "")
    return pattern
