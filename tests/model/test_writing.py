from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import pytest
import torch

from qwen3vl_webui.engine.contract import SamplingParams, TokenEvent
from qwen3vl_webui.model.inputs import Vocabulary
from qwen3vl_webui.model.writing import AnswerWriting
from tests.tiny import train_tokenizer

GREEDY = SamplingParams(temperature=0, presence_penalty=0, max_tokens=4000)
Model = Callable[[Sequence[int]], list[int]]  # what it wants to write next, the best first


@pytest.fixture(scope="module")
def vocabulary() -> Vocabulary:
    return Vocabulary.of(train_tokenizer()._tokenizer)


@pytest.fixture(scope="module")
def reasoning(vocabulary: Vocabulary) -> Vocabulary:
    return replace(vocabulary, thinking=True)


def write(vocabulary: Vocabulary, model: Model, sampling: SamplingParams = GREEDY) -> tuple[AnswerWriting, str, str]:
    """The answer, its text and its reasoning."""
    size = vocabulary.tokenizer.get_vocab_size()
    writing = AnswerWriting(
        sampling,
        vocabulary,
        frozenset([vocabulary.im_end]),
        most_tokens=sampling.max_tokens,
        vocabulary_size=size,
        device=torch.device("cpu"),
    )
    events: list[TokenEvent] = []
    while not writing.reason:
        logits = torch.zeros(size)
        for place, token in reversed(list(enumerate(model(writing.ids)))):
            logits[token] = 100.0 - place
        events += writing.draw(logits)
        assert len(events) < 10_000
    text = "".join(event.text for event in events if not event.thinking)
    return writing, text, "".join(event.text for event in events if event.thinking)


def ids_of(vocabulary: Vocabulary, text: str) -> list[int]:
    return vocabulary.tokenizer.encode(text, add_special_tokens=False).ids


def looping(vocabulary: Vocabulary, before: str, block: str, after: str) -> Model:
    """Writes `before` and then `block` for ever; kept from it, it writes `after` and ends."""
    start, period = ids_of(vocabulary, before), ids_of(vocabulary, block)
    way_out = [*ids_of(vocabulary, after), vocabulary.im_end]

    def model(ids: Sequence[int]) -> list[int]:
        if len(ids) < len(start):
            return [start[len(ids)]]
        for begun in range(min(len(way_out), len(ids)), 0, -1):
            if list(ids[-begun:]) == way_out[:begun]:
                return [way_out[begun]]
        return [period[(len(ids) - len(start)) % len(period)], way_out[0]]

    return model


def test_a_loop_is_cut_back_and_the_answer_goes_on(vocabulary: Vocabulary) -> None:
    model = looping(vocabulary, "Page ", "the dog opens;", "47 seconds.")
    writing, text, _ = write(vocabulary, model)
    copies = text.count("the dog opens;")
    assert text == "Page " + "the dog opens;" * copies + "47 seconds."
    assert 2 <= copies <= 12
    assert writing.reason == "stop" and "began to repeat itself" in writing.sentence
    assert writing.count == len(writing.ids) + 1 < 100
    assert vocabulary.tokenizer.decode(writing.ids) == text


def test_without_the_guard_it_writes_on(vocabulary: Vocabulary) -> None:
    model = looping(vocabulary, "Page ", "the dog opens;", "47 seconds.")
    writing, text, _ = write(vocabulary, model, replace(GREEDY, loop_guard=False, max_tokens=1500))
    assert (writing.reason, writing.count, writing.sentence) == ("length", 1500, "")
    assert text.count("the dog opens;") > 100


def test_a_loop_that_comes_back_ends_the_answer(vocabulary: Vocabulary) -> None:
    """Whatever is banned, it finds another period."""
    block = ids_of(vocabulary, "abcdefghij")

    def model(ids: Sequence[int]) -> list[int]:
        return [*block[:1], *block[1:]] if len(ids) < 5 else [block[0], block[len(ids) % 3 + 1], block[5]]

    writing, text, _ = write(vocabulary, model)
    assert writing.reason == "stop" and writing.given_up
    assert "ended here" in writing.sentence
    assert len(text) < 1500
    assert vocabulary.tokenizer.decode(writing.ids) == text


def test_counting_rows_end_the_answer(vocabulary: Vocabulary) -> None:
    rows = ids_of(vocabulary, "".join(f"| {n} | the same dog |\n" for n in range(1, 900)))
    writing, text, _ = write(vocabulary, lambda ids: [rows[len(ids)]], replace(GREEDY, max_tokens=len(rows)))
    assert writing.given_up and writing.count < len(rows) / 2
    assert text.startswith("| 1 | the same dog |\n| 2 | the same dog |\n")


@pytest.mark.parametrize(
    "whole",
    [
        "| 0 | 0 | 0 |\n" * 20 + "That is all.",
        "0 " * 100 + "end",
        "他打开了电脑。" * 20 + "完",
        "\n".join(f"{n}. yes" for n in range(1, 80)) + "\nDone.",
    ],
    ids=["table", "zeros", "refrain", "list"],
)
def test_honest_repetition_arrives_whole(vocabulary: Vocabulary, whole: str) -> None:
    ids = [*ids_of(vocabulary, whole), vocabulary.im_end]
    writing, text, _ = write(vocabulary, lambda written: [ids[len(written)]])
    assert (text, writing.reason, writing.sentence) == (whole, "stop", "")


def test_text_that_was_held_back_still_ends_at_a_stop_string(vocabulary: Vocabulary) -> None:
    ids = [*ids_of(vocabulary, "| 0 | 0 |\n" * 20 + "STOP and more"), vocabulary.im_end]
    writing, text, _ = write(vocabulary, lambda written: [ids[len(written)]], replace(GREEDY, stop=("STOP",)))
    assert (text, writing.reason) == ("| 0 | 0 |\n" * 20, "stop")


def test_an_answer_cut_by_its_length_while_held_back_is_shown_to_the_end(vocabulary: Vocabulary) -> None:
    ids = ids_of(vocabulary, "| 0 | 0 |\n" * 100)
    writing, text, _ = write(vocabulary, lambda written: [ids[len(written)]], replace(GREEDY, max_tokens=200))
    assert (writing.reason, writing.count) == ("length", 200)
    assert text == vocabulary.tokenizer.decode(ids[:200])


def test_a_loop_at_the_limit_is_cut_though_it_is_only_half_as_long(vocabulary: Vocabulary) -> None:
    """A short limit must not fill up with what the guard held back."""
    model = looping(vocabulary, "Page ", "the dog opens;", "47 seconds.")
    writing, text, _ = write(vocabulary, model, replace(GREEDY, max_tokens=400))
    assert text.endswith("the dog opens;47 seconds.") and writing.reason == "stop"
    assert "began to repeat itself" in writing.sentence and writing.count < 100


def test_a_loop_at_the_limit_that_comes_back_ends_the_answer(vocabulary: Vocabulary) -> None:
    block = ids_of(vocabulary, "abcdefghij")
    writing, text, _ = write(
        vocabulary, lambda ids: [block[0], block[len(ids) % 3 + 1], block[5]], replace(GREEDY, max_tokens=400)
    )
    assert writing.reason == "stop" and writing.given_up and len(text) < 400
    assert vocabulary.tokenizer.decode(writing.ids) == text


def test_reasoning_that_loops_is_led_to_the_answer(reasoning: Vocabulary) -> None:
    thought, answer = ids_of(reasoning, "Wait, what? "), [*ids_of(reasoning, "At 47 seconds."), reasoning.im_end]
    assert reasoning.end_think is not None

    def model(ids: Sequence[int]) -> list[int]:
        if reasoning.end_think in ids:
            return [answer[len(ids) - ids.index(reasoning.end_think) - 1]]
        return [*thought[len(ids) % len(thought) :], *thought[: len(ids) % len(thought)]]

    writing, text, thoughts = write(reasoning, model)
    assert text == "At 47 seconds." and thoughts.startswith("Wait, what? Wait, what? ")
    assert len(thoughts) < 1000
    assert writing.reason == "stop" and "began to repeat itself" in writing.sentence
