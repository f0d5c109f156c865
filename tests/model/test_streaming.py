from __future__ import annotations

import time

import pytest
from tokenizers import Tokenizer

from qwen3vl_webui.engine.contract import TokenEvent
from qwen3vl_webui.model.inputs import WORD_JOINER, Vocabulary
from qwen3vl_webui.model.streaming import MOST_PENDING, AnswerText, Characters, StopStrings
from tests.tiny import tiny_checkpoint


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.from_file(str(tiny_checkpoint() / "tokenizer.json"))


@pytest.fixture
def vocabulary(tokenizer: Tokenizer) -> Vocabulary:
    return Vocabulary.of(tokenizer)


@pytest.fixture
def thinker(tokenizer: Tokenizer) -> Vocabulary:
    return Vocabulary.of(tokenizer, thinking=True)


def ids_of(vocabulary: Vocabulary, text: str) -> list[int]:
    return vocabulary.tokenizer.encode(text, add_special_tokens=False).ids


def bytes_of(vocabulary: Vocabulary, text: str) -> list[int]:
    """One token per byte, so that every character but ASCII is cut."""
    alphabet = {byte: char for byte, char in byte_alphabet()}
    ids = [vocabulary.tokenizer.token_to_id(alphabet[byte]) for byte in text.encode()]
    return [token for token in ids if token is not None]


def byte_alphabet() -> list[tuple[int, str]]:
    """Byte -> the character that stands for it in byte-level BPE."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in plain]
    return [(byte, chr(byte)) for byte in plain] + [(byte, chr(256 + place)) for place, byte in enumerate(others)]


def write(answer: AnswerText, ids: list[int]) -> list[TokenEvent]:
    events = []
    for token in ids:
        events += answer.push(token)
        if answer.stopped:
            break
    return events + answer.end()


def joined(events: list[TokenEvent], *, thinking: bool = False) -> str:
    return "".join(event.text for event in events if event.thinking == thinking)


TEXTS = [
    "The lecturer opens the computer.",
    "他在什么时候打开电脑？第47秒。",
    "👩‍💻 done ✅",
    'a\n\n```json\n{"x": 1}\n```',
]


@pytest.mark.parametrize("text", TEXTS)
def test_pieces_joined_are_the_text_and_hold_whole_characters(vocabulary: Vocabulary, text: str) -> None:
    for ids in (ids_of(vocabulary, text), bytes_of(vocabulary, text)):
        events = write(AnswerText(vocabulary), ids)
        assert joined(events) == text
        assert all(event.text and "\ufffd" not in event.text for event in events)


def test_half_a_character_at_the_end_is_left_out(vocabulary: Vocabulary) -> None:
    assert joined(write(AnswerText(vocabulary), bytes_of(vocabulary, "ab秒")[:-1])) == "ab"


def test_special_tokens_and_the_word_joiner_are_not_text(vocabulary: Vocabulary) -> None:
    box = vocabulary.added["<|box_start|>"]
    ids = [*ids_of(vocabulary, "a"), box, *ids_of(vocabulary, f"b{WORD_JOINER}c")]
    assert joined(write(AnswerText(vocabulary), ids)) == "abc"


def test_bytes_that_are_no_text_do_not_slow_down_what_follows(vocabulary: Vocabulary) -> None:
    broken = bytes_of(vocabulary, "秒")[:1]
    characters = Characters(vocabulary.tokenizer)
    began = time.monotonic()
    for _ in range(20_000):
        characters.push(broken[0])
        assert characters.pending <= MOST_PENDING
    assert time.monotonic() - began < 20  # each step would decode all before it
    assert "b" in characters.push(bytes_of(vocabulary, "a")[0]) + characters.push(bytes_of(vocabulary, "b")[0])


# Stop strings


@pytest.mark.parametrize(
    ("text", "stops", "shown"),
    [
        ("one STOP two", ["STOP"], "one "),
        ("one ST two", ["STOP"], "one ST two"),
        ("aab", ["ab"], "a"),
        ("aaab", ["aab"], "a"),
        ("one END two STOP", ["STOP", "END"], "one "),
        ("ends with ST", ["STOP"], "ends with ST"),
        ("第47秒。然后", ["。"], "第47秒"),
        ("STOP", ["STOP"], ""),
        ("nothing", [], "nothing"),
    ],
)
@pytest.mark.parametrize("size", [1, 2, 3, 100])
def test_text_goes_up_to_the_first_stop_string_whatever_the_pieces(
    text: str, stops: list[str], shown: str, size: int
) -> None:
    cut = StopStrings(stops)
    out = ""
    for start in range(0, len(text), size):
        out += cut.push(text[start : start + size])
        assert not any(stop in out for stop in stops)
        if cut.found:
            break
    assert out + cut.end() == shown
    assert cut.found == any(stop in text for stop in stops)


def test_text_that_cannot_become_a_stop_string_is_not_held_back() -> None:
    cut = StopStrings(["STOP"])
    assert cut.push("one two S") == "one two "
    assert cut.push("he") == "She"


def test_a_stop_string_counts_in_the_answer_and_not_in_the_reasoning(thinker: Vocabulary) -> None:
    assert thinker.end_think is not None
    answer = AnswerText(thinker, ["STOP"])
    ids = [*ids_of(thinker, "I must not say STOP"), thinker.end_think, *ids_of(thinker, "\n\nFine. STOP now")]
    events = write(answer, ids)
    assert joined(events, thinking=True) == "I must not say STOP"
    assert joined(events) == "Fine. " and answer.stopped


# Reasoning


def test_a_thinking_model_starts_inside_its_reasoning(thinker: Vocabulary) -> None:
    assert thinker.end_think is not None
    thoughts = ids_of(thinker, "Hm,\n\nlet me see.\n")
    answer = AnswerText(thinker)
    events = write(answer, [*thoughts, thinker.end_think, *ids_of(thinker, "\n\nIt is a dog.\n\nReally.")])
    assert joined(events, thinking=True) == "Hm,\n\nlet me see."
    assert joined(events) == "It is a dog.\n\nReally."
    assert answer.thinking_tokens == len(thoughts) and not answer.thinking


def test_another_model_may_open_its_reasoning_itself(vocabulary: Vocabulary) -> None:
    assert vocabulary.think is not None and vocabulary.end_think is not None
    ids = [vocabulary.think, *ids_of(vocabulary, "\nHm.\n"), vocabulary.end_think, *ids_of(vocabulary, "\n\nA dog.")]
    events = write(AnswerText(vocabulary), ids)
    assert joined(events, thinking=True) == "Hm."
    assert joined(events) == "A dog."


def test_an_end_mark_without_reasoning_is_not_shown(vocabulary: Vocabulary) -> None:
    assert vocabulary.end_think is not None
    events = write(AnswerText(vocabulary), [vocabulary.end_think, *ids_of(vocabulary, "A dog.")])
    assert events and joined(events) == "A dog."


def test_what_was_held_back_comes_before_the_reasoning_that_follows(vocabulary: Vocabulary) -> None:
    assert vocabulary.think is not None
    events = write(AnswerText(vocabulary, ["STOP"]), [*ids_of(vocabulary, "ST"), vocabulary.think])
    assert joined(events) == "ST"


# Ids of the answer


def test_the_answer_is_known_by_the_ids_it_was_written_as(vocabulary: Vocabulary) -> None:
    ids = bytes_of(vocabulary, "他 sees a dog")  # not how the tokenizer would cut it
    answer = AnswerText(vocabulary)
    assert answer.known is None
    write(answer, ids)
    assert answer.known == ("他 sees a dog", ids)


def test_an_answer_that_differs_from_its_ids_is_not_known(vocabulary: Vocabulary, thinker: Vocabulary) -> None:
    assert thinker.end_think is not None
    half = AnswerText(vocabulary)
    write(half, bytes_of(vocabulary, "ab秒")[:-1])
    stopped = AnswerText(vocabulary, ["STOP"])
    write(stopped, ids_of(vocabulary, "one STOP"))
    reasoned = AnswerText(thinker)
    write(reasoned, [*ids_of(thinker, "Hm."), thinker.end_think, *ids_of(thinker, "A dog.")])
    assert half.known is stopped.known is reasoned.known is None


def test_an_answer_cut_while_text_is_held_back_is_not_known(vocabulary: Vocabulary) -> None:
    answer = AnswerText(vocabulary, ["STOP"])
    for token in ids_of(vocabulary, "one ST"):
        answer.push(token)
    assert answer.known is None  # as when the consumer leaves here
    answer.end()
    assert answer.known is not None and answer.known[0] == "one ST"
