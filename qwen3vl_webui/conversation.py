"""What was said and shown: a tree of turns, so an edit or a retry makes a branch; each change makes a new value."""

from __future__ import annotations

import time
import uuid
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from qwen3vl_webui.media.values import Part

State = Literal["done", "partial", "aborted", "failed"]


@dataclass(frozen=True)
class Attachment:
    """A file a person attached: `id` is the opaque name under which the media routes serve it."""

    id: str
    digest: str
    name: str  # as the person called it, cut to 120 characters
    kind: Literal["image", "video", "document", "subtitles"]


@dataclass(frozen=True)
class Turn:
    """One thing said. A user's turn keeps `parts`, exactly what the model was shown (None until it was asked), so that
    later turns repeat them to the letter and the engine's prefix is reused.

    `state` of an answer: `partial` while it is written, `done`, `aborted` (stopped or the server died) or `failed`
    (`note` has the sentence; of a `done` answer it is what the engine says about it, or empty).
    """

    id: str
    parent: str | None
    role: Literal["user", "assistant"]
    text: str = ""
    thinking: str = ""
    thinking_seconds: float = 0.0
    attachments: tuple[Attachment, ...] = ()
    parts: tuple[Part, ...] | None = None
    task: str = ""
    options: dict[str, Any] = field(default_factory=dict)  # what the drawer was set to, kept for retry
    state: State = "done"
    note: str = ""
    statistics: dict[str, Any] = field(default_factory=dict)  # of the FinishEvent
    created: float = 0.0


def new_id() -> str:
    return uuid.uuid4().hex


@dataclass(frozen=True)
class Conversation:
    """`turns` is the whole tree in order of creation, `leaf` the last turn of the branch shown (None: empty)."""

    id: str = field(default_factory=new_id)
    title: str = ""
    turns: tuple[Turn, ...] = ()
    leaf: str | None = None
    version: int = 0  # what the store compares before it writes

    def turn(self, turn_id: str) -> Turn:
        """Raises KeyError when there is no such turn."""
        for turn in self.turns:
            if turn.id == turn_id:
                return turn
        raise KeyError(turn_id)

    @property
    def path(self) -> tuple[Turn, ...]:
        """The branch shown, from the first turn to the leaf."""
        by_id = {turn.id: turn for turn in self.turns}
        path: list[Turn] = []
        current = self.leaf
        while current is not None:
            path.append(by_id[current])
            current = by_id[current].parent
        return tuple(reversed(path))

    def siblings(self, turn_id: str) -> tuple[Turn, ...]:
        """All versions of a turn (itself among them), oldest first: what `‹ 2/3 ›` counts."""
        turn = self.turn(turn_id)
        return tuple(other for other in self.turns if other.parent == turn.parent and other.role == turn.role)

    def ask(
        self,
        text: str,
        attachments: tuple[Attachment, ...] = (),
        *,
        task: str = "",
        options: dict[str, Any] | None = None,
        instead_of: str | None = None,
    ) -> Conversation:
        """A new user turn at the leaf, or as another version of the user turn `instead_of` (an edit)."""
        parent = self.leaf if instead_of is None else self.turn(instead_of).parent
        turn = Turn(
            new_id(),
            parent,
            "user",
            text,
            attachments=attachments,
            task=task,
            options=options or {},
            created=time.time(),
        )
        title = self.title or title_of(text, attachments)
        return replace(self, turns=(*self.turns, turn), leaf=turn.id, title=title)

    def answer(self, *, instead_of: str | None = None) -> Conversation:
        """An empty answer in state `partial` under the leaf, or beside the answer `instead_of` (a retry)."""
        parent = self.leaf if instead_of is None else self.turn(instead_of).parent
        turn = Turn(new_id(), parent, "assistant", state="partial", created=time.time())
        return replace(self, turns=(*self.turns, turn), leaf=turn.id)

    def update(self, turn_id: str, **changes: Any) -> Conversation:
        """The same tree with fields of one turn changed."""
        self.turn(turn_id)
        turns = tuple(replace(turn, **changes) if turn.id == turn_id else turn for turn in self.turns)
        return replace(self, turns=turns)

    def show(self, turn_id: str) -> Conversation:
        """The branch through `turn_id`, down to its newest descendant."""
        leaf = self.turn(turn_id).id
        while children := [turn for turn in self.turns if turn.parent == leaf]:
            leaf = children[-1].id
        return replace(self, leaf=leaf)


def title_of(text: str, attachments: tuple[Attachment, ...] = ()) -> str:
    """The first words of a question, or the first file's name, at most 60 characters."""
    words = " ".join(text.split())
    return (words or (attachments[0].name if attachments else ""))[:60]
