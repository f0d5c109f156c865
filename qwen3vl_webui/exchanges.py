"""Earlier questions with their answers: which give way where a conversation outgrows the context.

The question before, the newest files and what shares the question's words stay; the rest is left out and told.
"""

from __future__ import annotations

import itertools
from collections.abc import Collection, Sequence
from dataclasses import replace

from qwen3vl_webui.draft import Draft
from qwen3vl_webui.relevance import choose_exchanges, written_pages

Exchange = range  # indexes of a question's draft and those of its answers


def exchanges(drafts: Sequence[Draft]) -> list[Exchange]:
    """All before the last question."""
    asked = [index for index, draft in enumerate(drafts) if draft.role == "user"]
    return [range(start, end) for start, end in itertools.pairwise(asked)]


def without(drafts: Sequence[Draft], left: Collection[Exchange]) -> list[Draft]:
    gone = {index for exchange in left for index in exchange}
    return [
        replace(
            draft,
            items=draft.files,
            parts=() if draft.parts is None else draft.parts,
            left_out=True,
        )
        if index in gone
        else draft
        for index, draft in enumerate(drafts)
    ]


def by_need(drafts: Sequence[Draft], earlier: Sequence[Exchange]) -> list[int]:
    """The indexes of `earlier`, what the last question needs most first."""
    texts = ["\n".join(_text_of(drafts[index]) for index in exchange) for exchange in earlier]
    with_files = [bool(drafts[exchange[0]].files) for exchange in earlier]
    return choose_exchanges(drafts[-1].words, texts, with_files)


def _text_of(draft: Draft) -> str:
    names = [file.name for file in draft.files]
    words = draft.items if draft.parts is None else draft.parts
    return "\n".join([*names, *(item for item in words if isinstance(item, str))])


def forgotten_sentence(drafts: Sequence[Draft], earlier: Sequence[Exchange], left: Collection[int]) -> str:
    numbers = written_pages([number + 1 for number in left])
    files = [file for number in left for index in earlier[number] for file in drafts[index].files]
    names = list(dict.fromkeys(file.name or file.id for file in files))
    if not names:
        return (
            f"{len(left)} of your {len(earlier)} earlier questions (no. {numbers}) and their answers have no room and "
            "are not looked at. Say again what matters of them."
        )
    return (
        f"{len(left)} of your {len(earlier)} earlier questions (no. {numbers}), their answers and files "
        f"({', '.join(names)}) have no room and are not looked at. Attach again what matters of them."
    )
