"""What is said, laid between what is seen."""

from pathlib import Path

from qwen3vl_webui.media.captions import thinned, within, woven, written
from qwen3vl_webui.media.values import Clip, Cue, FramePlan

CUES = (Cue(0.5, 1.5, "one"), Cue(4.0, 6.0, "two"), Cue(6.2, 8.0, "three"), Cue(31.0, 33.0, "four"))


def plan(*stamps: float) -> FramePlan:
    return FramePlan(Clip(Path("a"), "a", 0.0, 40.0, 64, 64), tuple((stamp, stamp) for stamp in stamps), 64, 64)


def test_each_cue_stands_before_the_first_label_later_than_it_begins() -> None:
    spoken, after = woven(plan(0.0, 5.0, 30.0), CUES)
    assert "".join(spoken.labels) == (
        "<0.0 seconds>\n[0.5-1.5] one\n[4.0-6.0] two\n<5.0 seconds>\n[6.2-8.0] three\n<30.0 seconds>"
    )
    assert after == "\n[31.0-33.0] four\n"
    assert spoken.patch_key(0) == plan(0.0, 5.0, 30.0).patch_key(0)  # the same pixels


def test_without_cues_nothing_changes() -> None:
    assert woven(plan(0.0), ()) == (plan(0.0), "")


def test_only_what_is_said_in_the_span_and_nothing_twice() -> None:
    assert [cue.text for cue in within(CUES, 5.0, 31.0)] == ["two", "three"]
    rolling = (Cue(1, 2, "so"), Cue(2, 3, "so we\nbegin"), Cue(3, 4, "so we begin"), Cue(4, 5, "now"))
    assert within(rolling, 0, 9) == (Cue(1, 4, "so we begin"), Cue(4, 5, "now"))


def test_neighbours_share_a_line_and_long_speech_keeps_its_times() -> None:
    speech = [Cue(t, t + 2.0, f"w{t}") for t in range(0, 40, 2)]
    lines = written(speech).splitlines()
    assert lines[0] == "[0.0-12.0] w0 w2 w4 w6 w8 w10"
    assert len(lines) == 4


def test_thinning_is_even_and_ends() -> None:
    many = tuple(Cue(t, t + 1, str(t)) for t in range(100))
    assert [cue.text for cue in thinned(many, 0.1)] == [str(t) for t in range(0, 100, 10)]
    left = many
    while left:
        assert len(thinned(left, 0.9)) < len(left)
        left = thinned(left, 0.9)
    assert thinned(many, 2) == many
