"""Copies browsers play: the same pictures at the same seconds; and thumbnails of the right picture."""

import hashlib
import io
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from qwen3vl_webui.errors import MediaError
from qwen3vl_webui.media import playback, sandbox, video, writing
from qwen3vl_webui.media.values import Clip, FramePlan
from tests import clips

STEADY = [n / 30 for n in range(60)]
UNEVEN = np.cumsum([0, 0.033, 0.033, 0.1, 2.5, 0.04, 0.04, 0.5, 0.033, 1.7, *[0.033, 0.05, 0.2] * 10]).tolist()
FRAMES = Fraction(1, 30)
FAST_START = {"movflags": "faststart"}
VP9 = {"codec": "libvpx-vp9", "g": "20", "deadline": "realtime", "cpu-used": "8"}

CLIPS = {  # name: (what browsers need, seconds, settings)
    "plain.mp4": ("as_is", STEADY, {"g": "20", "sound": "aac", "container_options": FAST_START}),
    "silent.mp4": ("as_is", STEADY, {"g": "20", "container_options": FAST_START}),
    "vp9.webm": ("as_is", STEADY, {**VP9, "sound": "libopus"}),
    "vp8.webm": ("as_is", STEADY, {"codec": "libvpx", "deadline": "realtime"}),
    "index_last.mp4": ("remux", STEADY, {"g": "20", "sound": "aac"}),
    "open_gop.mp4": ("remux", STEADY, {"x264-params": "open-gop=1:keyint=20:scenecut=0"}),
    "uneven.mkv": ("remux", UNEVEN, {"g": "10"}),
    "opus.mkv": ("remux", STEADY, {"g": "20", "sound": "libopus"}),
    "dolby.mkv": ("remux", STEADY, {"g": "20", "sound": "ac3"}),
    "late.mkv": ("remux", STEADY, {"g": "20", "late": 2.0, "sound": "aac"}),
    "vp9.mkv": ("remux", STEADY, {**VP9, "sound": "libopus"}),
    "av1.mkv": ("remux", STEADY, {"codec": "libsvtav1", "g": "20", "preset": "12", "svtav1-params": "lp=1"}),
    "quicktime.mov": ("remux", STEADY, {"g": "20", "sound": "pcm_s16le"}),
    "broadcast.ts": ("remux", STEADY, {"g": "20", "sound": "aac"}),
    "flash.flv": ("remux", STEADY, {"g": "20"}),
    "plain.avi": ("remux", STEADY, {"g": "20", "bf": "0", "clock": FRAMES, "sound": "libmp3lame"}),
    "b_frames.avi": ("transcode", STEADY, {"g": "20", "clock": FRAMES}),
    "hevc.mp4": ("transcode", STEADY, {"codec": "libx265", "sound": "aac", "x265-params": "keyint=20:log-level=none"}),
    "mpeg4.mp4": ("transcode", STEADY, {"codec": "mpeg4", "g": "12", "b": "4M", "bf": "2", "clock": FRAMES}),
    "ten_bit.mp4": ("transcode", STEADY, {"pixels": "yuv420p10le"}),
    "full_colour.mp4": ("transcode", STEADY, {"pixels": "yuv444p"}),
    "vp8.mkv": ("transcode", UNEVEN, {"codec": "libvpx", "deadline": "realtime", "sound": "flac"}),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("playback")


@pytest.fixture(scope="module")
def film(folder):
    def make(name: str) -> Path:
        path = folder / name
        if not path.exists():
            _, seconds, settings = CLIPS[name]
            clips.bars_clip(path, seconds, **settings)
        return path

    return make


def probed(path: Path) -> Clip:
    return video.probe(path, hashlib.sha256(path.read_bytes()).hexdigest())


def numbers(clip: Clip) -> list[int]:
    shown = video.read_times(clip).shown.tolist()
    size = (320, 192) if clip.width > clip.height else (192, 320)
    plan = FramePlan(clip, tuple((t, t) for t in shown), *size)
    return [clips.read_bars(frame.pixels) for frame in video.read_frames(plan)][::2]


def boxes(path: Path) -> list[bytes]:
    """The kinds of an MP4's outer boxes, in order."""
    raw, position, kinds = path.read_bytes(), 0, []
    while position < len(raw):
        kinds.append(raw[position + 4 : position + 8])
        position += int.from_bytes(raw[position : position + 4], "big") or len(raw)
    return kinds


@pytest.mark.parametrize("name", CLIPS)
def test_what_browsers_need_is_judged_by_the_content(film, name):
    assert playback.how_to_play(probed(film(name))) == CLIPS[name][0]


@pytest.mark.parametrize("name", [name for name in CLIPS if CLIPS[name][0] != "as_is"])
def test_a_copy_shows_the_same_pictures_at_the_same_seconds(film, folder, name):
    _, seconds, settings = CLIPS[name]
    source, target = probed(film(name)), folder / f"copy of {name}.mp4"
    told: list[float] = []
    playback.make_playable(source.path, target, progress=told.append)
    assert told == sorted(told) and told[-1] == 1.0 and len(told) > 5
    copy = probed(target)
    assert playback.how_to_play(copy) == "as_is"
    assert boxes(target).index(b"moov") < boxes(target).index(b"mdat") and b"moof" not in boxes(target)
    assert video.read_times(copy).shown == pytest.approx(video.read_times(source).shown, abs=1.1e-3)
    assert numbers(copy) == numbers(source) == list(range(len(seconds)))
    with av.open(str(target)) as container:
        assert container.streams.video[0].codec_context.codec.canonical_name in ("h264", "vp9", "av1")
        assert len(container.streams.audio) == ("sound" in settings)
        if "sound" in settings:
            tone = np.concatenate([frame.to_ndarray()[0] for frame in container.decode(audio=0)])
            rate = container.streams.audio[0].rate
            assert len(tone) / rate == pytest.approx(source.end, abs=0.15)
            assert np.abs(tone[rate // 10 : -rate // 10]).max() > 0.1  # and it is not silence
            pitch = np.abs(np.fft.rfft(tone[rate // 4 : rate // 4 + rate])).argmax()
            assert pitch == pytest.approx(440, abs=2)


@pytest.mark.parametrize("codec", ["libx264", "mpeg4"])
@pytest.mark.parametrize("rotation", [90, 270])
def test_a_turned_video_stays_turned(folder, codec, rotation):
    straight = clips.bars_clip(folder / f"{codec}.mp4", STEADY[:20], codec=codec, clock=FRAMES, b="4M")
    source = probed(clips.copied(straight, folder / f"{codec}{rotation}.mp4", rotation=rotation))
    target = folder / f"{codec}{rotation} copy.mp4"
    playback.make_playable(source.path, target, progress=lambda done: None)
    copy = probed(target)
    assert (copy.width, copy.height) == (source.width, source.height) == (180, 320)
    first, second = (
        next(video.read_frames(FramePlan(clip, ((0.5, 0.5),), 192, 320))).pixels.astype(int) for clip in (source, copy)
    )
    assert np.abs(first - second).mean() < 8


def test_a_cut_by_an_edit_list_survives(film, folder):
    long = clips.bars_clip(folder / "long.mp4", STEADY, g="250")
    source = probed(clips.copied(long, folder / "cut.mov", shift=-1, avoid_negative_ts="disabled"))
    playback.make_playable(source.path, folder / "cut copy.mp4", progress=lambda done: None)
    copy = probed(folder / "cut copy.mp4")
    assert video.read_times(copy).shown == pytest.approx(video.read_times(source).shown, abs=1e-3)
    assert numbers(copy) == numbers(source) == list(range(30, 60))


def test_a_file_that_starts_late_is_copied_to_start_at_zero(film, folder):
    source = probed(clips.copied(film("silent.mp4"), folder / "from_1.5.mp4", shift=1.5, movflags="faststart"))
    assert playback.how_to_play(source) == "remux"
    playback.make_playable(source.path, folder / "from_0.mp4", progress=lambda done: None)
    with av.open(str(folder / "from_0.mp4")) as container:
        assert container.start_time == 0
    assert numbers(probed(folder / "from_0.mp4")) == list(range(60))


def test_damage_is_skipped_and_the_rest_is_encoded(film, folder):
    source = probed(clips.damaged(film("hevc.mp4"), folder / "damaged.mp4", part=0.5))
    playback.make_playable(source.path, folder / "mended.mp4", progress=lambda done: None)
    copy = probed(folder / "mended.mp4")
    shown = video.read_times(copy).shown
    assert 20 <= len(shown) < 60
    assert numbers(copy) == [round(t * 30) for t in shown]


def test_parts_joined_into_one_file_play_one_after_the_other(folder):
    raw = clips.bars_clip(folder / "part.ts", STEADY, g="20").read_bytes()
    (folder / "joined.ts").write_bytes(raw + raw)
    source = probed(folder / "joined.ts")
    assert playback.how_to_play(source) == "transcode"
    playback.make_playable(source.path, folder / "joined.mp4", progress=lambda done: None)
    assert numbers(probed(folder / "joined.mp4")) == [*range(60), *range(60)]


def test_sound_that_starts_late_is_heard_late(film, folder):
    source = clips.copied(film("dolby.mkv"), folder / "late sound.mkv", sound_shift=1.0)
    playback.make_playable(source, folder / "late sound.mp4", progress=lambda done: None)
    with av.open(str(folder / "late sound.mp4")) as container:
        audio = container.streams.audio[0]
        loud = next(frame for frame in container.decode(audio) if np.abs(frame.to_ndarray()).max() > 0.05)
        assert float(loud.pts * audio.time_base) == pytest.approx(1.0, abs=0.06)
    assert numbers(probed(folder / "late sound.mp4")) == list(range(60))


def test_keyframes_of_a_copy_are_its_own(folder):
    stills = clips.bars_clip(folder / "stills.avi", STEADY, codec="mjpeg", pixels="yuvj420p", clock=FRAMES)
    playback.make_playable(stills, folder / "stills.mp4", progress=lambda done: None)
    assert len(video.read_times(probed(folder / "stills.mp4")).keyframes) < 10  # in the source all 60 are


def test_decoding_times_rise_and_none_is_missing(film):
    with av.open(str(film("index_last.mp4"))) as container:
        stream = container.streams.video[0]
        packets = [packet for packet in container.demux(stream) if packet.size][:6]
        for packet, times in zip(
            packets, ((300, None), (900, None), (500, 400), (700, 400), (800, 390), (950, None)), strict=True
        ):
            packet.pts, packet.dts = times
        flush = av.Packet()
        rising = writing.Rising(stream, 0.0)
        ready = [done for packet in [*packets, flush] for done in rising.add(packet)]
    assert [packet.pts for packet in ready] == [300, 900, 500, 700, 800, 950]
    decoding = [packet.dts for packet in ready]
    assert decoding == sorted(set(decoding)) and decoding[2] == 400
    assert all(packet.dts <= packet.pts and packet.duration > 0 for packet in ready)


def test_packets_that_mp4_does_not_take_are_encoded_instead(film, folder, monkeypatch):
    begun = []
    stream = sandbox.stream

    def refuse_copies(function, *arguments, **named):
        begun.append(function)
        if function is writing.copy:
            raise MediaError("These packets are no good.")
        return stream(function, *arguments, **named)

    monkeypatch.setattr(sandbox, "stream", refuse_copies)
    playback.make_playable(film("open_gop.mp4"), folder / "encoded.mp4", progress=lambda done: None)
    assert begun == [writing.copy, writing.encode]
    monkeypatch.undo()
    assert numbers(probed(folder / "encoded.mp4")) == list(range(60))


def test_subtitles_and_fonts_are_left_out_of_a_copy(film, folder):
    source = clips.with_extras(film("silent.mp4"), folder / "extras.mkv")
    playback.make_playable(source, folder / "extras.mp4", progress=lambda done: None)
    assert playback.how_to_play(probed(folder / "extras.mp4")) == "as_is"
    assert numbers(probed(folder / "extras.mp4")) == list(range(60))


def test_large_pictures_become_720p(folder):
    path = clips.colour_clip(folder / "large.mp4", 1, size=(1920, 1080), codec="mpeg4", clock=Fraction(1, 10))
    playback.make_playable(path, folder / "small.mp4", progress=lambda done: None)
    copy = probed(folder / "small.mp4")
    assert (copy.width, copy.height) == (1280, 720)


@pytest.mark.parametrize("name", ["opus.mkv", "hevc.mp4"])
def test_cancelling_ends_the_work_and_removes_the_target(film, folder, name):
    target = folder / "cancelled.mp4"

    class Cancelled(Exception):
        pass

    def cancel(done: float) -> None:
        assert target.exists()
        raise Cancelled

    with pytest.raises(Cancelled):
        playback.make_playable(film(name), target, progress=cancel)
    assert not target.exists()
    process = sandbox.server.process
    assert process is not None
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    assert not children.exists() or not children.read_text().split()


def test_what_cannot_be_read_leaves_no_target(folder):
    path = folder / "letter.mkv"
    path.write_text("Dear reader,")
    with pytest.raises(MediaError):
        playback.make_playable(path, folder / "letter.mp4", progress=lambda done: None)
    assert not (folder / "letter.mp4").exists()


def test_an_index_larger_than_its_room_is_written_once_more(film, folder, monkeypatch):
    opened = []

    def narrow(target, packets, bytes_each=48):
        opened.append(bytes_each)
        room = "100" if bytes_each == 20 else "60000"
        return av.open(target, "w", format="mp4", options={"moov_size": room})

    monkeypatch.setattr(writing, "open_mp4", narrow)
    with film("opus.mkv").open("rb") as source, (folder / "again.mp4").open("w+b") as target:
        list(writing.copy(source, target, 2.0))
    assert opened == [20, 48]
    assert numbers(probed(folder / "again.mp4")) == list(range(60))


def test_a_thumbnail_is_the_picture_on_screen_then(film):
    clip = probed(film("uneven.mkv"))
    shown = video.read_times(clip).shown
    for seconds in (0.0, 1.5, float(shown[20]), clip.end - 0.01):
        picture = Image.open(io.BytesIO(playback.thumbnail(clip, seconds, 320)))
        assert picture.format == "WEBP" and picture.size == (320, 180)
        expected = np.searchsorted(shown, seconds + 1e-6, side="right") - 1
        assert clips.read_bars(np.asarray(picture.convert("RGB"))) == expected


def test_a_thumbnail_outside_the_clip_is_the_nearest_picture(film):
    clip = probed(film("silent.mp4"))
    for seconds, expected in ((-5.0, 0), (99.0, 59)):
        picture = Image.open(io.BytesIO(playback.thumbnail(clip, seconds, 160)))
        assert clips.read_bars(np.asarray(picture.convert("RGB"))) == expected
