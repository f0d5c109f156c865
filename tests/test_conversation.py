"""A conversation is a tree; every change makes a new value."""

import pytest

from qwen3vl_webui.conversation import Attachment, Conversation

FILM = Attachment("a1", "0" * 64, "lecture.mp4", "video")


def said(conversation: Conversation) -> list[str]:
    return [turn.text for turn in conversation.path]


def ask_and_answer(conversation: Conversation, question: str, answer: str) -> Conversation:
    conversation = conversation.ask(question).answer()
    assert conversation.leaf is not None
    return conversation.update(conversation.leaf, text=answer, state="done")


def test_asking_leaves_the_old_value_as_it_was() -> None:
    before = Conversation()
    after = before.ask("When?", (FILM,))
    assert before.turns == ()
    assert after.path[-1].attachments == (FILM,)


def test_the_title_is_the_first_question_or_the_first_file() -> None:
    assert Conversation().ask("  When does\nit start?  ").title == "When does it start?"
    assert Conversation().ask("", (FILM,)).title == "lecture.mp4"
    assert Conversation().ask("first").ask("second").title == "first"
    assert len(Conversation().ask("x" * 200).title) == 60


def test_an_edit_makes_a_branch_and_keeps_the_other() -> None:
    conversation = ask_and_answer(ask_and_answer(Conversation(), "q1", "a1"), "q2", "a2")
    second = conversation.path[2]
    edited = ask_and_answer(conversation.ask("q2 better", instead_of=second.id), "", "")
    assert said(edited)[:3] == ["q1", "a1", "q2 better"]
    assert [turn.text for turn in edited.siblings(second.id)] == ["q2", "q2 better"]
    assert said(edited.show(second.id)) == ["q1", "a1", "q2", "a2"]


def test_a_retry_is_another_version_of_the_answer() -> None:
    conversation = ask_and_answer(Conversation(), "q", "first")
    answer = conversation.path[-1]
    again = conversation.answer(instead_of=answer.id)
    assert again.path[-1].state == "partial"
    assert again.path[-1].parent == answer.parent
    assert len(again.siblings(answer.id)) == 2


def test_unknown_turns_are_an_error() -> None:
    with pytest.raises(KeyError):
        Conversation().ask("q").update("nobody", text="x")
    with pytest.raises(KeyError):
        Conversation().show("nobody")
