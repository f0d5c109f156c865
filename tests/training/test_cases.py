"""The data is true: what the answers say is what was drawn."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from dataclasses import replace
from itertools import pairwise
from random import Random

import numpy as np
import pytest

from qwen3vl_webui.focus import find_focus
from training import questions
from training.cases import make_case
from training.clips import stamps
from training.encoding import Encoder
from training.evaluate import is_right, overlap
from training.exchanges import Exchange, Moment, Still
from training.level import Level, fit, printed
from training.scenes import PAINT, contrast, draw_text, draw_things, paint
from training.tokenizer import ORDINARY_TOKENS, SPECIAL_TOKENS, build_tokenizer

LEVEL = Level(kinds=(), picture_pixels=(4096, 36_864), frame_pixels=(4096, 9216), moments=(4, 20), pages=(3, 12))


@pytest.mark.parametrize("seed", range(30))
def test_boxes_hold_their_shape(seed: int) -> None:
    random = Random(seed)
    names = [("red", "star"), ("blue", "circle"), ("green", "cross")]
    scene = draw_things(names, 160, 128, random, wear=0.0)
    assert {one.name for one in scene.things} <= set(names)
    for one in scene.things:
        left, top, right, bottom = one.box
        assert 0 <= left < right <= 1000 and 0 <= top < bottom <= 1000
        x, y = (left + right) * 160 // 2000, (top + bottom) * 128 // 2000
        red, green, blue = (int(value) for value in scene.pixels[y, x])
        assert {"red": red, "green": green, "blue": blue}[one.colour] == max(red, green, blue)
    centres = [one.box[0] + one.box[2] for one in scene.things]
    assert centres == sorted(centres)


def test_every_picture_is_as_large_as_asked_and_the_same_seed_draws_the_same() -> None:
    for size in ((64, 64), (192, 192), (128, 96)):
        one, again = (draw_text("HELLO 42", *size, Random(7)) for _ in range(2))
        assert one.pixels.shape == (size[1], size[0], 3)
        assert (one.pixels == again.pixels).all()


def test_a_seed_draws_the_same_in_every_process() -> None:
    """The order of a set of texts changes from process to process."""
    script = (
        "from random import Random; from training.cases import make_case; from training.level import Level\n"
        "for kind in ('pictures', 'video', 'document', 'text'):\n"
        "    for seed in range(3): print(make_case(kind, Level(()), Random(seed)).branches)"
    )
    drawn = {
        subprocess.run(
            [sys.executable, "-c", script], env={**os.environ, "PYTHONHASHSEED": hash_seed}, stdout=subprocess.PIPE
        ).stdout
        for hash_seed in ("1", "2", "3")
    }
    assert len(drawn) == 1 and len(drawn.pop()) > 1000


def test_codes_hold_no_characters_that_look_alike() -> None:
    random = Random(5)
    codes = [printed(random, 8) for _ in range(2000)]
    mixed = [code for code in codes if not code.isalpha() and not code.isdigit()]
    assert len(mixed) > 50 and not set("".join(mixed)) & set("0O1Ilo")


def test_long_clips_are_stamped_to_their_end() -> None:
    lasts = [stamps(40, 7200.0, Random(seed))[-1] for seed in range(200)]
    assert max(lasts) <= 7200 and sum(last > 3600 for last in lasts) > 10 and sum(last < 120 for last in lasts) > 30


def test_text_stands_out() -> None:
    for seed in range(40):
        pixels = draw_text("HELLO", 128, 96, Random(seed), wear=0.0).pixels.astype(int)
        assert pixels.max(axis=(0, 1)).sum() - pixels.min(axis=(0, 1)).sum() > 130


def test_colours_stay_apart() -> None:
    random = Random(1)
    for colour in PAINT:
        for other in PAINT:
            if colour != other:
                assert all(contrast(paint(colour, random), paint(other, random)) > 0.1 for _ in range(50))


@pytest.mark.parametrize("seed", range(40))
def test_stamps_in_answers_are_stamps_of_the_clip(seed: int) -> None:
    case = make_case("video", LEVEL, Random(seed))
    moments = [part for part in case.context if isinstance(part, Moment)]
    stamps = {f"{moment.seconds:.1f}" for moment in moments}
    assert 4 <= len(moments) <= 20
    assert all(a.seconds < b.seconds <= 600.5 for a, b in zip(moments, moments[1:], strict=False))
    for branch in case.branches:
        for exchange in branch:
            found = re.findall(r"(\d+\.\d)(?: seconds|秒)", exchange.answer)
            assert set(found) <= stamps
            if exchange.skill in ("when", "what_at", "all_times", "span", "timeline"):
                assert found


def test_a_span_tells_what_is_on_the_screen_in_it() -> None:
    level = replace(LEVEL, asked_of_clips=(("span", 1.0),), words=0.5, parts=0.3, fades=0.0)
    asked = 0
    for seed in range(60):
        case = make_case("video", level, Random(seed))
        moments = [part for part in case.context if isinstance(part, Moment)]
        for exchange in (branch[0] for branch in case.branches if branch[0].skill == "span"):
            asked += 1
            ((begin, finish),) = find_focus(exchange.question, 700.0).spans  # as the product reads it
            ends = [*(moment.seconds for moment in moments[1:]), moments[-1].seconds + 1]
            seen = [  # a moment stays until the next, as in a file
                moment for moment, end in zip(moments, ends, strict=True) if end > begin and moment.seconds <= finish
            ]
            scenes = [seen[0], *(b for a, b in pairwise(seen) if not np.array_equal(a.pixels, b.pixels))]
            told = [float(stamp) for stamp in re.findall(r"(\d+\.\d)(?: seconds|秒)", exchange.answer)]
            assert told == [scene.seconds for scene in scenes if scene.again], (
                exchange.question
            )  # the cells of what it shows
    assert asked > 40


@pytest.mark.parametrize("seed", range(40))
def test_a_page_named_is_the_page_that_says_it(seed: int) -> None:
    case = make_case("document", LEVEL, Random(seed))
    texts = [part for part in case.context if isinstance(part, str)]
    assert sum(isinstance(part, Still) for part in case.context) == len(texts) - 1
    for branch in case.branches:
        for exchange in branch:
            if exchange.skill == "page":
                page = re.search(r"on page (\d+)|第(\d+)页", exchange.answer)
                said = re.search(r"[\"“](.+?)[\"”]", exchange.answer)
                assert page and said
                before = next(i for i, text in enumerate(texts) if f"Page {page[1] or page[2]}: " in text)
                layer = texts[before + 1]
                assert said[1] in layer or layer.split("Page")[0].strip() == ""  # a page without a text layer


@pytest.mark.parametrize("kind", ["picture", "pictures", "video", "document", "nothing"])
def test_answers_are_in_the_language_asked(kind: str) -> None:
    for seed in range(20):
        for branch in make_case(kind, LEVEL, Random(seed)).branches:
            for exchange in branch:
                hanzi = [bool(re.search(r"[\u4e00-\u9fff]", text)) for text in (exchange.question, exchange.answer)]
                assert hanzi == [exchange.language == "zh"] * 2


def test_counts_are_true() -> None:
    for seed in range(60):
        case = make_case("picture", LEVEL, Random(seed))
        for branch in case.branches:
            for exchange in branch:
                if exchange.skill == "count":
                    number = re.search(r"\d", exchange.answer)
                    assert number and 1 <= int(number[0]) <= 6


def test_sizes_fit_the_pixels() -> None:
    for pixels in (4096, 9216, 36_864):
        for aspect in (0.5, 0.7, 1.0, 1.5, 1.8):
            width, height = fit(aspect, pixels)
            assert width % 32 == height % 32 == 0 and width >= 64 and height >= 64
            assert width * height <= pixels or max(width, height) == 64


def test_digits_and_quoted_words_are_spelled() -> None:
    tokenizer = build_tokenizer()
    assert tokenizer.tokenize("<147.5 seconds>") == ["<", "1", "4", "7", ".", "5", "Ġseconds", ">"]
    for word in ("HELLO", "hello", "Start", "where", "7342"):
        assert tokenizer.tokenize(f'"{word}')[-len(word) :] == list(word)


def test_special_tokens_stand_in_the_order_of_the_real_vocabulary() -> None:
    tokenizer = build_tokenizer()
    ids = [tokenizer.convert_tokens_to_ids(token) for token in (*SPECIAL_TOKENS, *ORDINARY_TOKENS)]
    assert ids == list(range(ids[0], ids[0] + len(ids))) and ids[-1] == len(tokenizer) - 1
    for token in SPECIAL_TOKENS:
        assert tokenizer.decode([tokenizer.convert_tokens_to_ids(token)], skip_special_tokens=True) == ""
    assert tokenizer.eos_token == "<|im_end|>" and tokenizer.pad_token == "<|endoftext|>"


def test_every_text_survives_the_tokenizer() -> None:
    tokenizer = build_tokenizer()
    for text in ("他在什么时候打开电脑？😀", "naïve café\n\n\tx", questions.REFUSAL["zh"], "```json\n[1,2]\n```"):
        assert tokenizer.decode(Encoder(tokenizer).encode(text)) == text


def test_right_is_judged_with_the_tables_tolerances() -> None:
    box = questions.where_answer((100, 100, 300, 300), "red circle")
    exchange = Exchange("where", "en", "?", box)
    assert is_right(exchange, questions.where_answer((110, 90, 310, 290), "red circle"))
    assert not is_right(exchange, questions.where_answer((400, 100, 600, 300), "red circle"))
    when = Exchange("when", "en", "?", questions.when_answer("red circle", 47.0, "en"))
    assert is_right(when, questions.when_answer("red circle", 48.0, "en"))
    assert not is_right(when, questions.when_answer("red circle", 49.0, "en"))
    assert not is_right(when, questions.when_answer("blue circle", 47.0, "en"))
    name = Exchange("name", "zh", "?", "红色圆形和蓝色方形。")
    assert is_right(name, "蓝色方形和红色圆形。") and not is_right(name, "蓝色方形。")
    at = Exchange("what_at", "en", "?", "47.0 seconds: a red circle.")
    assert is_right(at, "48.0 seconds: a red circle.") and not is_right(at, "47.0 seconds: a red star.")
    both = Exchange("timeline", "en", "?", '4.0 seconds: a red star and a blue heart; 9.0 seconds: "AB".')
    assert is_right(both, '4.0 seconds: a blue heart and a red star; 9.0 seconds: "AB".')
    assert not is_right(both, '4.0 seconds: a red star; 9.0 seconds: a blue heart and "AB".')
    assert overlap((0, 0, 10, 10), (5, 0, 15, 10)) == pytest.approx(1 / 3)


def test_a_second_that_is_asked_for_is_the_moments_own() -> None:
    """Rounded, 9.5 s is the tenth second, when the next scene may be on: then it is asked to the tenth."""
    asked_of = (("what_at", 1.0),)
    level = Level((("video", 1.0),), moments=(8, 12), seconds=50.0, asked_of_clips=asked_of, turns=0.0, fades=0.0)
    asked = pointed = 0
    for seed in range(40):
        case = make_case("video", level, Random(seed))
        moments = [part for part in case.context if isinstance(part, Moment)]
        for (exchange,) in case.branches:
            if seconds := re.search(r"(?<![\d:.])(\d+)(?: seconds| s\b|秒)", exchange.question):
                asked += 1
                before = [one for one in moments if one.seconds <= int(seconds[1])] or moments[:1]
                assert np.array_equal(before[-1].pixels, moments[exchange.at].pixels)
            if exchange.pointer:  # as the product writes it behind the question
                assert exchange.pointer == f" (<{moments[exchange.at].seconds:.1f} seconds>)"
                pointed += 1
    assert asked > 20 and pointed > 100


@pytest.mark.parametrize("kind", ["picture", "video"])
def test_of_what_has_no_name_it_says_that_nothing_is_there_or_what_it_can_do(kind: str) -> None:
    level = replace(LEVEL, odd=1.0, turns=0.0)
    skills = {branch[0].skill for seed in range(10) for branch in make_case(kind, level, Random(seed)).branches}
    assert skills == {"absent", "refuse"}
