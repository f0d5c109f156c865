"""A streamed update must stay cheap for the server, whatever lies in the conversation."""

from benchmarks.page import measure


def test_an_update_does_not_touch_the_video(tmp_path):
    measured = measure(tmp_path, megabytes=64, messages=40, tokens=200, pace=0.01)
    assert measured["updates"] >= 5
    assert measured["cpu_ms_per_update"] < 25, measured  # 3 on a quiet machine; hashing the file would take over 100
