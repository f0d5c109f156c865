"""Subtitles inside and beside a video, chapters, encodings, hostile files."""

from pathlib import Path
from typing import Any

import av
import pysubs2
import pytest

from qwen3vl_webui.errors import MediaError
from qwen3vl_webui.media.subtitles import Inside, as_text, as_vtt, plain, read_beside, read_inside
from qwen3vl_webui.media.upload import open_upload
from qwen3vl_webui.media.values import Clip, Cue, Subtitles
from tests.clips import colour_clip, copied, srt, with_picture_subtitles, with_subtitles

LINES = [(1.0, 2.0, "Hello <i>there</i>"), (2.5, 4.25, "你好，世界")]
SAID = (Cue(1.0, 2.0, "Hello there"), Cue(2.5, 4.25, "你好，世界"))


@pytest.fixture(scope="module")
def film(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return colour_clip(tmp_path_factory.mktemp("film") / "film.mp4", 6)


def clip(path: Path) -> Clip:
    opened = open_upload(path)
    assert isinstance(opened, Clip)
    return opened


def opened(path: Path, content: str | bytes) -> Subtitles:
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    found = open_upload(path)
    assert isinstance(found, Subtitles)
    return found


@pytest.mark.parametrize(
    "codec, name", [("subrip", "a.mkv"), ("webvtt", "a.mkv"), ("mov_text", "a.mp4"), ("ass", "a.mkv")]
)
def test_text_tracks_are_read_with_their_seconds(film: Path, tmp_path: Path, codec: str, name: str) -> None:
    path = with_subtitles(film, tmp_path / name, [(codec, "eng", LINES)])
    [track] = read_inside(clip(path)).tracks
    assert [(cue.start, cue.end) for cue in track.cues] == [(1.0, 2.0), (2.5, 4.25)]
    assert [cue.text for cue in track.cues] == ["Hello there", "你好，世界"]
    assert track.language == "eng"


def test_chapters_and_several_languages(film: Path, tmp_path: Path) -> None:
    tracks = [("subrip", "eng", LINES[:1]), ("subrip", "chi", LINES[1:])]
    path = with_subtitles(film, tmp_path / "a.mkv", tracks, [(0, 3, "Intro"), (3, 6, "结尾")])
    inside = read_inside(clip(path))
    assert [track.language for track in inside.tracks] == ["eng", "chi"]
    assert [(each.start, each.end, each.title) for each in inside.chapters] == [(0, 3, "Intro"), (3, 6, "结尾")]


def test_one_clock_where_the_file_does_not_start_at_zero(film: Path, tmp_path: Path) -> None:
    source = with_subtitles(film, tmp_path / "a.mkv", [("subrip", "eng", LINES)])
    late = copied(source, tmp_path / "late.mkv", shift=1.5)
    [track] = read_inside(clip(late)).tracks
    assert [cue.start for cue in track.cues] == pytest.approx([1.0, 2.5], abs=0.002)


def test_a_video_without_any_has_none(film: Path) -> None:
    assert read_inside(clip(film)) == Inside()


@pytest.mark.parametrize("kind", ["VobSub", "DVB", "PGS"])
def test_picture_subtitles_are_named_and_not_read(film: Path, tmp_path: Path, kind: str) -> None:
    talk = clip(with_picture_subtitles(film, tmp_path / "talk.mkv", kind, "ger"))
    assert read_inside(talk) == Inside(pictures=(f"{kind} ger",))


def test_text_is_read_beside_picture_subtitles(film: Path, tmp_path: Path) -> None:
    path = with_picture_subtitles(film, tmp_path / "both.mkv", lines=LINES)
    with av.open(str(path)) as container:  # they are pictures indeed
        packets = [packet for packet in container.demux(subtitles=0) if packet.size]
        pictures: Any = [shown for packet in packets for shown in packet.stream.decode(packet)]
    assert [(shown.type, shown.width, shown.height) for shown in pictures] == [(b"bitmap", 64, 16)] * 2
    inside = read_inside(clip(path))
    assert inside.pictures == ("VobSub eng",) and [track.cues for track in inside.tracks] == [SAID]


VTT = "WEBVTT\n\n00:01.000 --> 00:02.000 align:start\nHello &amp; <v Ann>you\n\n00:00:02.500 --> 00:00:04.000\nBye\n"
ASS = (
    "[Script Info]\nScriptType: v4.00+\n\n[Events]\n"
    "Format: Layer, Start, End, Style, Name, MarginL, MarginR, MarginV, Effect, Text\n"
    "Dialogue: 0,0:00:01.00,0:00:02.00,Default,,0,0,0,,{\\b1}Hello{\\b0}\\Nworld\n"
    "Comment: 0,0:00:03.00,0:00:04.00,Default,,0,0,0,,not said\n"
)


@pytest.mark.parametrize(
    "form, content, cues",
    [
        ("srt", srt(LINES), SAID),
        ("vtt", VTT, (Cue(1.0, 2.0, "Hello & you"), Cue(2.5, 4.0, "Bye"))),
        ("ass", ASS, (Cue(1.0, 2.0, "Hello\nworld"),)),
        ("microdvd", "{25}{50}Hello|world\n", (Cue(1.0, 2.0, "Hello\nworld"),)),
        ("microdvd", "{1}{1}50\n{50}{100}Hello\n", (Cue(1.0, 2.0, "Hello"),)),
    ],
)
def test_a_file_beside_the_video_is_known_by_its_content(
    tmp_path: Path, form: str, content: str, cues: tuple[Cue, ...]
) -> None:
    found = opened(tmp_path / "named.bin", content)
    assert found.form == form
    assert read_beside(found) == cues


def test_a_file_that_counts_frames_takes_the_rate_of_its_video(tmp_path: Path) -> None:
    found = opened(tmp_path / "a.sub", "{50}{100}Hello\n")
    assert read_beside(found, 50.0) == (Cue(1.0, 2.0, "Hello"),)
    assert read_beside(found, 25.0) == (Cue(2.0, 4.0, "Hello"),)


GERMAN = srt([(1, 2, "Grüße aus Köln, schöne Straße"), (3, 4, "naïve façade, déjà vu")])
CHINESE = srt([(1, 2, "今天我们讲注意力机制"), (3, 4, "第二点：梯度消失")])


@pytest.mark.parametrize(
    "content, encoding",
    [
        (GERMAN, "utf-8"),
        (GERMAN, "utf-8-sig"),
        (GERMAN, "cp1252"),
        (GERMAN, "utf-16"),
        (CHINESE, "utf-8"),
        (CHINESE, "gbk"),
        (CHINESE, "gb18030"),
        (CHINESE, "utf-16"),
        (GERMAN, "utf-16-le"),
        (GERMAN, "utf-16-be"),
    ],
)
def test_common_encodings_are_read(tmp_path: Path, content: str, encoding: str) -> None:
    assert as_text(content.encode(encoding)) == content
    cues = read_beside(opened(tmp_path / f"{encoding}.srt", content.encode(encoding)))
    assert cues[0].text in content and cues[1].text in content


HOSTILE = [
    (b"", "empty"),
    (b"WEBVTT\n\n", "no lines"),
    (b"1\n00:00:01,000 --> 00:00:02,000\n\n", "no lines"),
    (srt([(n, n + 1, "x" * 50) for n in range(170_000)]).encode(), "larger than 10 MB"),
    (srt([(n / 10, n / 10 + 0.1, "x") for n in range(60_000)]).encode(), "50,000 lines"),
    (bytes(range(256)) * 100, "cannot be read"),
    (b"[Script Info]\n" + b"{" * 100_000, "no lines|cannot be read"),
    (b"{1}{2}" + b"{" * 200_000 + b"\n", "no lines|cannot be read|Subtitles"),
    (b"just a letter to a friend\n", "text file"),
]


@pytest.mark.parametrize("content, sentence", HOSTILE, ids=[str(n) for n in range(len(HOSTILE))])
def test_hostile_files_get_one_sentence(tmp_path: Path, content: bytes, sentence: str) -> None:
    path = tmp_path / "a.srt"
    path.write_bytes(content)
    try:
        found = open_upload(path)
    except MediaError as error:
        assert any(words in error.sentence for words in sentence.split("|")), error.sentence
        assert "\n" not in error.sentence
    else:
        assert "Subtitles" in sentence and isinstance(found, Subtitles)


def test_the_player_gets_plain_webvtt() -> None:
    text = as_vtt((Cue(1.0, 2.5, "a < b & c --> d\n\nsecond"), Cue(3661.25, 3662.0, "你好")))
    assert "01:01:01.250 --> 01:01:02.000\n你好" in text
    lines = [(each.start, each.end, each.plaintext) for each in pysubs2.SSAFile.from_string(text)]
    assert [(start, end) for start, end, _ in lines] == [(1000, 2500), (3661250, 3662000)]
    assert "-->" not in text.split("\n")[3]


def test_markup_and_styles_are_left_out() -> None:
    assert plain("{\\an8}<b>Hi</b>\\N<font color='red'>you</font>  there &gt; 3 < 4") == "Hi\nyou there > 3 < 4"
