"""The part of a video that the words of a question point at."""

import pytest

from qwen3vl_webui.focus import Focus, around, find_focus, named_videos, pointer, without_pointer

TWO_HOURS = 7200.0

FOCUSES = [
    ("第45分钟到第50分钟讲了什么？", [(2700, 3000)], []),
    ("Summarise the last ten minutes", [(6600, 7200)], []),
    ("What happens after 1:02:00?", [(3720, 7200)], []),
    ("What is shown between 12:30 and 12:40?", [(750, 760)], []),
    ("前五分钟出现了谁？", [(0, 300)], []),
    ("最后十分钟的结论是什么？", [(6600, 7200)], []),
    ("Compare 12:30-12:40 with 45:00-45:30", [(750, 760), (2700, 2730)], []),
    ("Compare 12:30-12:40 with 12:35-12:50", [(750, 770)], []),
    ("Between 12:30 and 12:40, who speaks at 12:35?", [(750, 760)], [755]),
    ("What is shown at 00:47?", [], [47]),
    ("第47秒和第1分20秒的画面有什么不同？", [], [47, 80]),
    ("他在什么时候打开电脑？", [], []),
    ("When does the circle appear? Answer in the format 00:12-00:15.", [], []),
    ("List every change, e.g. 00:12-00:15: logo", [], []),
    ("列出所有事件，格式如 00:12-00:15", [], []),
    ("What happens at 3:00:00?", [], []),  # the video ends before
    ("", [], []),
]


@pytest.mark.parametrize("question, spans, moments", FOCUSES, ids=[row[0] for row in FOCUSES])
def test_what_a_question_points_at(question, spans, moments):
    assert find_focus(question, TWO_HOURS) == Focus(tuple(spans), tuple(moments))


def test_a_pasted_transcript_narrows_nothing():
    transcript = "\n".join(f"00:0{n}:00,000 --> 00:0{n}:05,000\nline {n}" for n in range(1, 7))
    assert find_focus(f"Is this right?\n{transcript}", TWO_HOURS) == Focus()
    assert find_focus("check " + ", ".join(f"0:{n}" for n in range(10, 30)), TWO_HOURS) == Focus()


def test_a_span_that_is_the_whole_video_narrows_nothing():
    assert find_focus("the last ten minutes", 300) == Focus()
    assert find_focus("from 0:00 to 5:00", 300.2) == Focus()


PATCHES = [(0.0, 0.0), (59.5, 60.5), (99.6, 99.6), (100.2, 100.2), (367.6, 367.6)]
POINTERS = [
    ("What is shown at 06:08?", " (<367.6 seconds>)"),
    ("What appears at 1 minute 40 seconds?", " (<100.2 seconds>)"),  # a change just after is meant
    ("What is shown at 99.6 seconds?", " (<99.6 seconds>)"),  # unless it is named to the tenth
    ("第59秒和第2分钟10秒有什么？", " (<0.0 seconds>, <100.2 seconds>)"),
    ("At 0:02 and at 0:03?", " (<0.0 seconds>)"),
    ("What happens between 01:00 and 02:00?", ""),
    ("When does the red circle appear?", ""),
    ("What is shown at 3:00:00?", ""),  # the video ends before
]


@pytest.mark.parametrize("question, behind", POINTERS, ids=[row[0] for row in POINTERS])
def test_moments_in_words_point_at_what_is_on_the_screen_then(question, behind):
    assert pointer(question, PATCHES, 400.0) == behind
    assert without_pointer(question + behind) == question


def test_until_it_is_known_what_is_shown_a_moment_points_at_itself():
    assert pointer("What is at 01:02:03?", [], TWO_HOURS) == " (<3723.0 seconds>)"


def test_spans_around_moments_are_cut_to_the_video_and_joined():
    assert around([1, 3, 99.5], 2, 100) == ((0, 5), (97.5, 100))


@pytest.mark.parametrize(
    "question, named",
    [
        ("When does lecture.mp4 end?", [0]),
        ("in the holiday video, who swims?", [1]),
        ("Compare video 1 and video 2", [0, 1]),
        ("第二个视频的结尾是什么？", [1]),
        ("视频2里有谁？", [1]),
        ("video 12:30", []),
        ("视频1分20秒", []),
        ("What happens?", []),
    ],
)
def test_the_video_a_question_names(question, named):
    assert named_videos(question, ["lecture.mp4", "holiday.mov"]) == named
