"""Token ids -> the text a person reads while it is written: whole characters, reasoning apart, stop strings cut off."""

from __future__ import annotations

from collections.abc import Sequence

from tokenizers import Tokenizer
from tokenizers.decoders import DecodeStream

from qwen3vl_webui.engine.contract import TokenEvent
from qwen3vl_webui.model.inputs import WORD_JOINER, Vocabulary

MOST_PENDING = 8  # tokens without a whole character; four bytes make one, so more are not text


class Characters:
    """Pieces of text as soon as their characters are whole; special tokens give none."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokenizer = tokenizer
        self.pending = 0
        self.stream = DecodeStream(skip_special_tokens=True)

    def push(self, token: int) -> str:
        piece = self.stream.step(self.tokenizer, token)
        self.pending = 0 if piece else self.pending + 1
        if self.pending <= MOST_PENDING:
            return (piece or "").replace(WORD_JOINER, "")
        # Bytes that are no text; without this the stream decodes an ever longer tail at each step.
        self.pending = 0
        self.stream = DecodeStream(skip_special_tokens=True)
        return ""


class StopStrings:
    """Lets text through up to the first stop string; holds back what may become one."""

    def __init__(self, stops: Sequence[str]) -> None:
        self.stops = tuple(stops)
        self.held = ""
        self.found = False

    def push(self, piece: str) -> str:
        text = self.held + piece
        ends = [at for stop in self.stops if (at := text.find(stop)) >= 0]
        if ends:
            self.found, self.held = True, ""
            return text[: min(ends)]
        keep = max((overlap(text, stop) for stop in self.stops), default=0)
        self.held = text[len(text) - keep :]
        return text[: len(text) - keep]

    def end(self) -> str:
        """What was held back and became no stop string."""
        text, self.held = self.held, ""
        return text


def overlap(text: str, stop: str) -> int:
    """The longest end of `text` that is a true beginning of `stop`."""
    return next((n for n in range(min(len(stop) - 1, len(text)), 0, -1) if text.endswith(stop[:n])), 0)


class AnswerText:
    """The events of one answer, token by token. The marks of reasoning switch `thinking` and are never shown.

    A thinking model starts inside its reasoning; another may open it itself. Stop strings count in the answer only.
    `stopped` turns true when one was met: nothing more is to be pushed.
    """

    def __init__(self, vocabulary: Vocabulary, stop: Sequence[str] = ()) -> None:
        self.vocabulary = vocabulary
        self.thinking = vocabulary.thinking
        self.thinking_tokens = 0
        self._reasoned = vocabulary.thinking
        self._characters = Characters(vocabulary.tokenizer)
        self._stops = StopStrings(stop)
        self._begun = False  # a segment's leading line breaks are layout, not text
        self._line_breaks = ""  # at the end of the reasoning so far: layout too, if `</think>` follows
        self._ids: list[int] = []
        self._pieces: list[str] = []

    @property
    def stopped(self) -> bool:
        return self._stops.found

    @property
    def known(self) -> tuple[str, list[int]] | None:
        """The answer and the ids it was written as; None when the two do not agree to the letter."""
        whole = not (self._reasoned or self._characters.pending or self._stops.held or self._stops.found)
        return ("".join(self._pieces), self._ids) if whole and self._pieces else None

    def push(self, token: int) -> list[TokenEvent]:
        if token in (self.vocabulary.think, self.vocabulary.end_think):
            return self._switch(token == self.vocabulary.think)
        self.thinking_tokens += self.thinking
        self._ids.append(token)
        return self._write(self._characters.push(token))

    def end(self) -> list[TokenEvent]:
        """No token follows: what was held back comes out."""
        held = self._stops.end()
        self._pieces += [held] if held else []
        return [TokenEvent(held)] if held else []

    def _write(self, piece: str) -> list[TokenEvent]:
        if self._reasoned and not self._begun:
            piece = piece.lstrip("\n")
        if not piece:
            return []
        self._begun = True
        if self.thinking:
            text = self._line_breaks + piece
            shown = text.rstrip("\n")
            self._line_breaks = text[len(shown) :]
            return [TokenEvent(shown, thinking=True)] if shown else []
        shown = self._stops.push(piece)
        self._pieces += [shown] if shown else []
        return [TokenEvent(shown)] if shown else []

    def _switch(self, thinking: bool) -> list[TokenEvent]:
        events = [] if self.thinking else self.end()
        self.thinking, self._reasoned, self._begun, self._line_breaks = thinking, True, False, ""
        self._characters = Characters(self.vocabulary.tokenizer)
        return events
