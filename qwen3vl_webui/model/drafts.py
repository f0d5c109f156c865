"""Guesses of what an answer says next, from where its last tokens stood before: in the prompt, or in the answer itself.

Answers about a document quote it, and tables and JSON repeat their own beginnings. A guess costs rows in a forward pass
that is made anyway, and nothing is taken from it but what the model would have written.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

TOKENS = 3  # that must have stood there before
BITS = 21  # of a token id; three fit an int64
MOST = 8  # tokens of one guess
FIRST = 4
MOST_PAUSE = 64  # tokens without a guess after several wrong ones


class Drafts:
    """The guesses for one answer. `prompt` int64 [n]; tokens of `never` (vision, control) end a guess."""

    def __init__(self, prompt: np.ndarray, never: np.ndarray) -> None:
        self.never = never
        self.start = self.count = len(prompt)
        self.ids = np.empty(len(prompt) + 1024, np.int64)
        self.ids[: self.count] = prompt
        self.keys = np.full(len(self.ids), -1, np.int64)  # of the last TOKENS tokens at each place
        self.keys[TOKENS - 1 : self.count] = key_of(prompt)
        self.size = FIRST
        self.wrong = 0  # guesses in a row of which nothing was right
        self.pause = 0

    def guess(self, answer: Sequence[int], most: int) -> list[int]:
        """What may follow `answer`, at most `most` tokens; often nothing."""
        self._follow(answer)
        if self.pause > 0:
            self.pause -= 1
            return []
        if self.count < TOKENS:
            return []
        found = np.flatnonzero(self.keys[: self.count - 1] == self.keys[self.count - 1])
        if not len(found):
            return []
        after = int(found[-1]) + 1
        guess = np.resize(self.ids[after : self.count], min(self.size, most))  # what ends here goes on as it began
        control = np.flatnonzero(np.isin(guess, self.never))
        return guess[: int(control[0]) if len(control) else None].tolist()

    def learn(self, right: int, guessed: int) -> None:
        """`right` of the `guessed` tokens were written."""
        if right == guessed:
            self.size = min(MOST, 2 * self.size)
        elif right < self.size // 2:
            self.size = max(FIRST, self.size // 2)
        self.wrong = 0 if right else self.wrong + 1
        if self.wrong > 1:
            self.pause = min(MOST_PAUSE, 2**self.wrong)

    def _follow(self, answer: Sequence[int]) -> None:
        self.count = min(self.count, self.start + len(answer))  # a loop may have been cut off
        new = answer[self.count - self.start :]
        if self.count + len(new) > len(self.ids):
            more = max(1024, len(self.ids) // 4, len(new))
            self.ids, self.keys = np.resize(self.ids, len(self.ids) + more), np.resize(self.keys, len(self.ids) + more)
        self.ids[self.count : self.count + len(new)] = new
        first = max(0, self.count - TOKENS + 1)
        self.count += len(new)
        keys = key_of(self.ids[first : self.count])
        self.keys[self.count - len(keys) : self.count] = keys


def key_of(ids: np.ndarray) -> np.ndarray:
    """int64 [n - 2]: one number for each three tokens in a row."""
    return (ids[:-2] << 2 * BITS) | (ids[1:-1] << BITS) | ids[2:]
