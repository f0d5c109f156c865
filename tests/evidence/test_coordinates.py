"""Boxes, points and times read out of data a model wrote, whole or cut off."""

import json
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qwen3vl_webui.evidence.coordinates import MOST_MARKS, Coordinates, read_coordinates, read_json

DOG = '{"bbox_2d": [122, 416, 367, 866], "label": "dog"}'
THE_DOG = Coordinates("dog", box=(122, 416, 367, 866))


@pytest.mark.parametrize(
    "text, expected",
    [
        (f"[{DOG}]", [THE_DOG]),
        (DOG, [THE_DOG]),
        (f"[{DOG},]", [THE_DOG]),
        (f"Here: {DOG} and {DOG}", [THE_DOG, THE_DOG]),
        (f'[{DOG}, {{"bbox_2d": [1, 2, 3', [THE_DOG]),
        (f'[{DOG}, {{"bbox_2d": [1, 2, 3, 4], "label": "c', [THE_DOG]),
        (f'{{"objects": [{DOG}', [THE_DOG]),
        ('{"bbox_2d": [300, 40, 30, 400]}', [Coordinates(box=(30, 40, 300, 400))]),
        ('{"bbox_2d": [-5, 0, 30, 2000]}', [Coordinates(box=(0, 0, 30, 1000))]),
        ('{"bbox_2d": [[1, 2, 3, 4], [5, 6, 7, 8]]}', [Coordinates(box=(1, 2, 3, 4)), Coordinates(box=(5, 6, 7, 8))]),
        ('{"point_2d": [447, 81], "label": "ok"}', [Coordinates("ok", point=(447, 81))]),
        ('{"time": 3.0, "bbox_2d": [1, 2, 3, 4]}', [Coordinates(box=(1, 2, 3, 4), start=3)]),
        ('{"page": 2, "bbox_2d": [1, 2, 3, 4]}', [Coordinates(box=(1, 2, 3, 4), page=2)]),
        ('{"start": 12, "end": 15.5, "event": "logo"}', [Coordinates("logo", start=12, end=15.5)]),
        ('{"start_time": "00:23.00", "end_time": "00:48.00"}', [Coordinates(start=23, end=48)]),
        ('{"timestamp": "01:10"}', [Coordinates(start=70)]),
        ('{"00:23.00 - 00:48.00": "speaks"}', [Coordinates("speaks", start=23, end=48)]),
        ('{"name": "click", "arguments": {"coordinate": [5, 6]}}', [Coordinates(point=(5, 6))]),
        ('<p data-bbox="1 2 30 40">', [Coordinates("p", box=(1, 2, 30, 40))]),
        ("<!-- Table (1, 2, 30, 40) -->", [Coordinates("Table", box=(1, 2, 30, 40))]),
    ],
)
def test_what_is_located_is_read(text, expected):
    assert read_coordinates(text) == expected


@pytest.mark.parametrize(
    "text",
    [
        *(
            "",
            "no data",
            "[]",
            "{}",
            "[1, 2, 3, 4]",
            '{"bbox_2d": [1, 2, 3]}',
            '{"bbox_2d": "1,2,3,4"}',
            '{"time": true}',
        ),
        *(
            '{"bbox_2d": [NaN, 1, 2, 3]}',
            '{"bbox_2d": [1, 2, Infinity, 3]}',
            '{"bbox_2d": [5, 5, 5, 9]}',
            '{"time": -3}',
        ),
        *('{"bbox_2d": [1, 2, 1e999, 4]}', '{"bbox_2d": [1, 2, 1' + "0" * 400 + ", 4]}", '{"bbox_2d": [1' + "0" * 5000),
        *('{"bbox_2d": [true, false, 3, 4]}', '{"bbox_2d": [2000, 2000, 3000, 3000]}', '<p data-bbox="1 2 3">'),
    ],
)
def test_what_locates_nothing_is_passed_over(text):
    assert read_coordinates(text) == []


@given(st.integers(0, len(json.dumps(items := [{"bbox_2d": [1, 2, 3, 4 + n], "label": f"n{n}"} for n in range(5)]))))
def test_a_cut_answer_keeps_every_complete_object(cut):
    text = json.dumps(items)[:cut]
    assert read_coordinates(text) == [Coordinates(f"n{n}", box=(1, 2, 3, 4 + n)) for n in range(text.count("}"))]


@given(st.text(alphabet='{}[]",:\\ab1e.-+truenl ', max_size=80))
def test_any_text_is_read_without_error(text):
    read_coordinates(text)


def test_the_number_of_marks_is_bounded():
    assert len(read_coordinates(f"[{','.join([DOG] * (MOST_MARKS + 10))}]")) == MOST_MARKS


@pytest.mark.parametrize(
    "piece", ["{", "[", '{"a":', '"', '\\"', '"\\"', "[]", "{}", ",", ", " * 50, "<a ", "<!-- a", "data-bbox="]
)
def test_hostile_nesting_costs_linear_time(piece):
    text = '{"' + piece * (100_000 // len(piece))
    begin = time.process_time()
    read_coordinates(text)
    read_json(piece * (100_000 // len(piece)))
    assert time.process_time() - begin < 5
