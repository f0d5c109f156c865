"""Chapters and events of an answer: found beside its times, written, and read back."""

import csv
import io
import json

import pysubs2
import pytest

from qwen3vl_webui.events import FORMATS, Event, closed, find_events, harmless, write_events
from qwen3vl_webui.evidence.linker import Linker
from qwen3vl_webui.evidence.links import Source, Sources

SOURCES = Sources((Source("v", "video", "talk.mp4", 3700.0),))


def events(answer: str) -> list[tuple[float, float | None, str]]:
    linker = Linker(SOURCES)
    linker.feed(answer)
    linker.finish()
    return [(event.start, event.end, event.title) for event in find_events(linker.markdown)]


RAIN = "It begins at 0:07 and stops at 0:12"
ANSWERS = [
    (
        "- 0:12 **Logo** appears\n- 00:47 – He opens the *laptop*",
        [(12, None, "Logo appears"), (47, None, "He opens the laptop")],
    ),
    ("1. Intro (0:00)\n2. Setup: 1:30-2:00", [(0, None, "Intro"), (90, 120, "Setup")]),
    (
        "| Time | What |\n|---|---|\n| 0:10 | a cat |\n| 0:20 - 0:30 | a dog, running |",
        [(10, None, "a cat"), (20, 30, "a dog, running")],
    ),
    ("| start | end | what |\n|---|---|---|\n| 0:10 | 0:20 | a cat |", [(10, 20, "a cat")]),
    (f"It rains first. {RAIN}. Then sun.", [(7, None, RAIN), (12, None, RAIN)]),
    ("先下雨。第47秒出现红色圆形。之后没有。", [(47, None, "第47秒出现红色圆形")]),
    ('```json\n[{"start": "00:12", "end": "00:15", "event": "a & b"}]\n```\n', [(12, 15, "a & b")]),
    ("Nothing with a time.", []),
    ("At 0:12.", [(12, None, "At")]),
    ("0:12", [(12, None, "")]),
]


@pytest.mark.parametrize("answer, found", ANSWERS, ids=[row[0][:20] for row in ANSWERS])
def test_events_stand_beside_their_times(answer, found):
    assert events(answer) == found


def test_an_event_said_twice_is_one_and_they_are_in_order():
    assert events("- 0:47 end\n- 0:12 begin\n\nSo 0:12") == [(12, None, "begin"), (47, None, "end")]


THREE = [Event("v", 0.5, None, "one"), Event("v", 61.25, 70.0, "two <b> --> x"), Event("v", 3601.0, None, "三")]


def test_an_event_without_an_end_lasts_until_the_next():
    assert [event.end for event in closed(THREE, 3700.0)] == [61.25, 70.0, 3700.0]
    assert closed([Event("v", 5.0, None, "")], 4.0)[0].end > 5.0


@pytest.mark.parametrize("form", ["srt", "vtt"])
def test_subtitles_are_read_back(form):
    text = write_events(THREE, form, video="talk.mp4", duration=3700.0)
    lines = list(pysubs2.SSAFile.from_string(text, format_=form))
    assert [(line.start, line.end) for line in lines] == [(500, 61250), (61250, 70000), (3601000, 3700000)]
    assert lines[2].plaintext == "三"
    assert text.count("-->") == 3


def test_youtube_chapters_begin_at_zero():
    late = [Event("v", 12.7, None, "logo"), Event("v", 3601.0, None, "end")]
    assert write_events(late, "youtube", video="", duration=3700) == "0:00 Start\n0:12 logo\n1:00:01 end\n"
    assert write_events(THREE[:1], "youtube", video="", duration=9) == "0:00 one\n"


def test_a_table_is_read_back_and_computes_nothing():
    hostile = [Event("v", 1.0, 2.0, '=HYPERLINK("http://evil","x")'), Event("v", 3.0, 4.0, 'a, "b"\nc')]
    text = write_events(hostile, "csv", video="@talk.mp4", duration=9)
    rows = list(csv.reader(io.StringIO(text.removeprefix("\ufeff"))))
    assert rows[0] == ["start", "end", "start_seconds", "end_seconds", "title", "video"]
    assert rows[1][:4] == ["00:00:01.000", "00:00:02.000", "1.000", "2.000"]
    assert rows[1][4:] == ['\'=HYPERLINK("http://evil","x")', "'@talk.mp4"]
    assert rows[2][4] == 'a, "b"\nc'


@pytest.mark.parametrize("cell", ["=1", "+1", "-1", "@x", "\t=1", " =1", "|x", "%x", "\r=1"])
def test_a_cell_that_would_be_computed_is_text(cell):
    assert harmless(cell) == "'" + cell
    assert harmless("a" + cell) == "a" + cell


def test_json_is_read_back():
    rows = json.loads(write_events(THREE, "json", video="talk.mp4", duration=3700.0))
    assert rows[2] == {"start": 3601.0, "end": 3700.0, "title": "三", "video": "talk.mp4"}


def test_every_form_is_written_for_no_events():
    assert all(isinstance(write_events([], form, video="", duration=1), str) for form in FORMATS)
