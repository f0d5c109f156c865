"""What people and models write for moments of a video, in both languages, and what only looks like it."""

import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qwen3vl_webui.times import CANDIDATE, NUMERALS, find_span, find_times, fold, format_clock, number, read_seconds

MOMENTS = [
    ("他在第47秒打开电脑", "第47秒", 47, None),
    ("第 47 秒", "第 47 秒", 47, None),
    ("第3秒钟", "第3秒钟", 3, None),
    ("第四十五分钟时", "第四十五分钟", 2700, None),
    ("1小时2分3秒", "1小时2分3秒", 3723, None),
    ("1小时零2分", "1小时零2分", 3720, None),
    ("第1小时第2分", "第1小时第2分", 3720, None),
    ("45分10秒", "45分10秒", 2710, None),
    ("十二分三十秒", "十二分三十秒", 750, None),
    ("第90分钟5秒", "第90分钟5秒", 5405, None),
    ("在10分钟处", "10分钟", 600, None),
    ("第47秒后，他走了", "第47秒", 47, None),
    ("第１０秒", "第１０秒", 10, None),
    ("第45分钟到第50分钟", "第45分钟到第50分钟", 2700, 3000),
    ("第10秒至第20秒", "第10秒至第20秒", 10, 20),
    ("第10-20秒", "第10-20秒", 10, 20),
    ("第10到20秒", "第10到20秒", 10, 20),
    ("10~20秒", "10~20秒", 10, 20),
    ("第五到第十分钟", "第五到第十分钟", 300, 600),
    ("在12:30和12:40之间", "12:30和12:40", 750, 760),
    ("１２：３０", "１２：３０", 750, None),
    ("00:45:10", "00:45:10", 2710, None),
    ("[00:01:00] logo", "00:01:00", 60, None),
    ("0:47.5", "0:47.5", 47.5, None),
    ("It ends around 12:30.", "12:30", 750, None),
    ("125:30", "125:30", 7530, None),
    ("47.0 seconds", "47.0 seconds", 47, None),
    ("at 47s", "47s", 47, None),
    ("t=47s", "47s", 47, None),
    ("at 30s", "30s", 30, None),
    ("At 10 sec he turns", "10 sec", 10, None),
    ("<12.5 seconds>", "<12.5 seconds>", 12.5, None),
    ("2 min 5 s", "2 min 5 s", 125, None),
    ("2 minutes 5 seconds", "2 minutes 5 seconds", 125, None),
    ("1 hour, 2 minutes and 3 seconds", "1 hour, 2 minutes and 3 seconds", 3723, None),
    ("1h02m03s", "1h02m03s", 3723, None),
    ("2m05s", "2m05s", 125, None),
    ("at the 10 minute mark", "10 minute", 600, None),
    ("the 10-minute mark", "10-minute mark", 600, None),
    ("the 47th second", "47th second", 47, None),
    ("at second 47", "47", 47, None),
    ("around minute 12", "12", 720, None),
    ("00:23.00 - 00:48.00", "00:23.00 - 00:48.00", 23, 48),
    ("from 12:30 to 12:40", "12:30 to 12:40", 750, 760),
    ("12:30–12:40", "12:30–12:40", 750, 760),
    ("between 12:30 and 12:40", "12:30 and 12:40", 750, 760),
    ("10-20 seconds", "10-20 seconds", 10, 20),
    ("10 to 20 seconds", "10 to 20 seconds", 10, 20),
    ("<10.0 seconds> - <12.0 seconds>", "<10.0 seconds> - <12.0 seconds>", 10, 12),
    ("00:00:12,345 --> 00:00:15,000", "00:00:12,345 --> 00:00:15,000", 12.345, 15),
]


@pytest.mark.parametrize("text, written, start, end", MOMENTS, ids=[row[0] for row in MOMENTS])
def test_a_written_time_is_found_with_its_seconds(text, written, start, end):
    [found] = find_times(text)
    assert (text[found.start_index : found.end_index], found.start, found.end) == (written, start, end)


NO_MOMENTS = [
    *(
        "3:1",
        "16:9",
        "the ratio 16:10",
        "aspect ratio of 16:10",
        "a score of 21:10",
        "won 21:15",
        "21:15 win",
        "比分21:10",
    ),
    *("1:30 pm", "10:30 a.m.", "11:00 o'clock", "下午1:30", "上午 10:30", "2024-01-02 12:30", "UTC+08:00", "12:30 GMT"),
    *("John 3:16", "Genesis 1:11", "verse 3:16", "约翰福音3:16", "12:75", "1:2:3:4", "12:30:45:10", "192.168.0.1:80"),
    *("localhost:7860", "::1", "v1.2s", "$47s", "10ms", "5m", "2h", "47%", "3 points", "p. 3", "第3页", "1,000:30"),
    *(
        "for 10 seconds",
        "lasts 2 min 5 s",
        "10 seconds long",
        "a 30-second clip",
        "within 5 seconds",
        "10 seconds later",
    ),
    *("every 5 seconds", "the first 30 seconds", "30 seconds ago", "10 minutes", "5 hours", "1980s", "the 90s"),
    *("三分", "十分重要", "一点", "两点", "第一时间", "第一次", "第47个", "第3时", "得了10分", "10点30分", "三秒"),
    *("持续10秒", "每隔5秒", "10秒后", "10秒内", "10秒的视频", "时长为30秒", "最后30秒", "共120秒", "前10秒"),
]


@pytest.mark.parametrize("text", NO_MOMENTS)
def test_what_is_no_moment_of_a_video_is_not_found(text):
    assert find_times(text) == []


def test_several_times_are_found_in_order_and_a_backward_range_is_two_times():
    text = "00:10 logo, 第20秒 he sits, then 12:40 - 12:30"
    assert [(found.start, found.end) for found in find_times(text)] == [
        (10, None),
        (20, None),
        (760, None),
        (750, None),
    ]


SPANS = [
    ("第45分钟到第50分钟讲了什么？", 2700, 3000),
    ("between 12:30 and 12:40", 750, 760),
    ("from 12:30 to 12:40, who speaks?", 750, 760),
    ("from minute 45 to minute 50", 2700, 3000),
    ("what happens in minutes 5 to 10?", 300, 600),
    ("第五到第十分钟", 300, 600),
    ("Summarise the last ten minutes", 6600, 7200),
    ("the final 90 seconds", 7110, 7200),
    ("the last minute", 7140, 7200),
    ("the last half hour", 5400, 7200),
    ("最后十分钟", 6600, 7200),
    ("最后半小时", 5400, 7200),
    ("结尾30秒", 7170, 7200),
    ("最后1小时30分", 1800, 7200),
    ("前五分钟", 0, 300),
    ("开头30秒出现了谁", 0, 30),
    ("first 30 seconds", 0, 30),
    ("the first twenty-five minutes", 0, 1500),
    ("during the first 1:30", 0, 90),
    ("the opening minute", 0, 60),
    ("after 1:02:00", 3720, 7200),
    ("after ten minutes", 600, 7200),
    ("第10分钟之后", 600, 7200),
    ("12:30以后", 750, 7200),
    ("从12:30开始", 750, 7200),
    ("从第十分钟到最后", 600, 7200),
    ("一分半之后", 90, 7200),
    ("from 1:00:00 onwards", 3600, 7200),
    ("before 10:00", 0, 600),
    ("10分钟以前", 0, 600),
    ("the second half", 3600, 7200),
    ("前半段", 0, 3600),
]


@pytest.mark.parametrize("question, start, end", SPANS, ids=[row[0] for row in SPANS])
def test_the_span_a_question_names(question, start, end):
    assert find_span(question, 7200) == (start, end)


@pytest.mark.parametrize(
    "question",
    [
        "What is at 12:30?",
        "他在什么时候打开电脑？",
        "the first time he speaks",
        "最后一次",
        "after the talk",
        "",
        "第47秒",
    ],
)
def test_a_question_without_a_span_names_none(question):
    assert find_span(question, 7200) is None


def test_a_span_is_cut_to_the_video_and_none_outside_of_it():
    assert find_span("the last ten minutes", 300) == (0, 300)
    assert find_span("第45分钟到第50分钟", 2820) == (2700, 2820)
    assert find_span("after 1:02:00", 300) is None


def test_a_clock_shows_hours_only_where_there_are_some_and_never_runs_ahead():
    assert [format_clock(seconds) for seconds in (0, 47.99, 2710, 3661)] == ["00:00", "00:47", "45:10", "01:01:01"]
    assert [format_clock(seconds, 2) for seconds in (12.5, 0.999, 3600)] == ["00:12.50", "00:00.99", "01:00:00.00"]


@given(st.floats(0, 86_399, allow_nan=False))
def test_a_clock_is_read_back_as_the_second_it_shows(seconds):
    [found] = find_times(format_clock(seconds, 2))
    assert abs(found.start - seconds) < 0.011


@pytest.mark.parametrize(
    "text, value", [("四十五", 45), ("十", 10), ("一百二十", 120), ("两", 2), ("二〇", 20), ("4.5", 4.5)]
)
def test_numerals_of_both_kinds_are_read(text, value):
    assert number(text) == value


@pytest.mark.parametrize(
    "value, read",
    [
        (12.5, (12.5, None)),
        ("12.5", (12.5, None)),
        ("00:23.00", (23, None)),
        ("00:23.00 - 00:48.00", (23, 48)),
        ("第47秒", (47, None)),
        ("47s", (47, None)),
        (True, None),
        ("soon", None),
        (-1, None),
        (float("nan"), None),
        ("12:30 pm", None),
        ([1], None),
    ],
)
def test_fields_of_data_are_read_as_seconds(value, read):
    assert read_seconds(value) == read


@given(st.text(alphabet="0123456789:.- 第时分秒小到至hms<>半十p'后前," + NUMERALS, max_size=60))
@settings(max_examples=300, deadline=None)
def test_found_times_lie_in_order_inside_the_text(text):
    last = 0
    for found in find_times(text):
        assert last <= found.start_index < found.end_index <= len(text)
        assert CANDIDATE.match(fold(text), found.start_index)
        assert found.end is None or found.end > found.start >= 0
        last = found.end_index
    find_span(text, 100)


@pytest.mark.parametrize(
    "piece", ["0", "1:", "00:1", "第", "十", "1 ", "10 to ", "1h ", "12:30 - ", "<1", "第1分", "最后", "last "]
)
def test_hostile_repetition_costs_linear_time(piece):
    text = piece * (60_000 // len(piece))
    begin = time.process_time()
    find_times(text)
    find_span(text, 1e6)
    assert time.process_time() - begin < 5
