"""Reading video: the pictures prove what is read, not the clock. Picture n of a bars clip shows n."""

import hashlib
import os
import tracemalloc
from collections.abc import Iterable
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from qwen3vl_webui.errors import MediaError
from qwen3vl_webui.media import container as opening
from qwen3vl_webui.media import pictures, sandbox, video
from qwen3vl_webui.media.sampling import plan_frames
from qwen3vl_webui.media.values import Clip, FramePlan
from tests import clips

STEADY = [n / 30 for n in range(75)]
UNEVEN = np.cumsum([0, 0.033, 0.033, 0.1, 2.5, 0.04, 0.04, 0.5, 0.033, 1.7, *[0.033, 0.05, 0.2] * 10]).tolist()
FRAMES = Fraction(1, 30)

CLIPS = {  # name: (seconds, settings)
    "one_keyframe.mp4": (STEADY, {}),
    "short_gop.mp4": (STEADY, {"g": "12"}),
    "no_b_frames.mkv": (STEADY, {"g": "30", "bf": "0"}),
    "open_gop.mp4": (STEADY, {"x264-params": "open-gop=1:keyint=20:scenecut=0"}),
    "uneven.mp4": (UNEVEN, {"g": "10"}),
    "uneven.mkv": (UNEVEN, {"g": "10"}),
    "hevc.mp4": (STEADY, {"codec": "libx265", "x265-params": "keyint=20:log-level=none"}),
    "hevc_open_gop.mkv": (STEADY, {"codec": "libx265", "x265-params": "keyint=20:log-level=none:open-gop=1"}),
    "vp9.webm": (STEADY, {"codec": "libvpx-vp9", "g": "20", "deadline": "realtime", "cpu-used": "8"}),
    "vp8.webm": (STEADY, {"codec": "libvpx", "g": "20", "deadline": "realtime"}),
    "av1.mp4": (STEADY, {"codec": "libsvtav1", "g": "20", "preset": "12", "svtav1-params": "lp=1"}),
    "mpeg4.mp4": (STEADY, {"codec": "mpeg4", "g": "12", "b": "4M", "bf": "2", "clock": FRAMES}),
    "mpeg4.avi": (STEADY, {"codec": "mpeg4", "g": "12", "b": "4M", "clock": FRAMES}),
    "mjpeg.avi": (STEADY, {"codec": "mjpeg", "pixels": "yuvj420p", "clock": FRAMES}),
    "quicktime.mov": (STEADY, {"g": "20", "sound": "aac"}),
    "broadcast.ts": (STEADY, {"g": "20"}),
    "flash.flv": (STEADY, {"g": "20"}),
    "ten_bit.mp4": (STEADY, {"g": "20", "pixels": "yuv420p10le"}),
    "full_colour.mp4": (STEADY, {"g": "20", "pixels": "yuv444p"}),
    "b_frames_without_times.avi": (STEADY, {"g": "20", "clock": FRAMES}),
    "cover.mp4": (STEADY, {"g": "20", "sound": "aac", "cover": True}),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("films")


@pytest.fixture(scope="module")
def film(folder):
    """The clip of that name from `CLIPS`, made once."""

    def make(name: str) -> Path:
        path = folder / name
        if not path.exists():
            seconds, settings = CLIPS[name]
            clips.bars_clip(path, seconds, **settings)
        return path

    return make


def probed(path: Path) -> Clip:
    return video.probe(path, hashlib.sha256(path.read_bytes()).hexdigest())


def plan_of(clip: Clip, seconds: Iterable[float]) -> FramePlan:
    size = (320, 192) if clip.width > clip.height else (192, 320)
    return FramePlan(clip, tuple((float(t), float(t)) for t in seconds), *size)


def numbers_at(clip: Clip, seconds: Iterable[float]) -> list[int]:
    return [clips.read_bars(frame.pixels) for frame in video.read_frames(plan_of(clip, seconds))][::2]


@pytest.mark.parametrize("name", CLIPS)
def test_every_picture_is_found_at_its_own_second(film, name):
    seconds, _ = CLIPS[name]
    clip = probed(film(name))
    times = video.read_times(clip)
    assert times.shown == pytest.approx(seconds, abs=1.1e-3)  # MKV and FLV count milliseconds
    assert set(times.keyframes) <= set(times.shown)
    assert numbers_at(clip, times.shown) == list(range(len(seconds)))


@pytest.fixture(params=["one process", "two processes"])
def processes(request, monkeypatch) -> None:
    """These clips are too short to be read by two."""
    monkeypatch.setattr(video, "WORTH_HALVING", 0.0 if request.param == "two processes" else np.inf)
    monkeypatch.setattr(video, "WORKERS", 2)


def test_a_long_reading_is_halved_where_a_group_begins(film):
    clip = probed(film("short_gop.mp4"))
    shown = video.read_times(clip).shown
    pictures = np.arange(len(shown))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(video, "WORTH_HALVING", 0.0)
        patch.setattr(video, "WORKERS", 2)
        first, second = video.side_by_side(plan_of(clip, shown), video.scan_of(clip), pictures)
    assert (first.start, first.stop, second.stop) == (0, second.start, len(shown))
    assert shown[second.start] in video.read_times(clip).keyframes
    assert abs(second.start - len(shown) / 2) < len(shown) / 5


@pytest.mark.parametrize("name", CLIPS)
def test_keyframes_alone_sparse_pictures_and_mixtures_are_exact(film, name, processes):
    clip = probed(film(name))
    times = video.read_times(clip)
    order = {float(t): n for n, t in enumerate(times.shown)}
    for wanted in (
        times.keyframes,
        times.shown[1::7],
        times.shown[5::31],
        np.union1d(times.keyframes, times.shown[3::19]),
    ):
        assert numbers_at(clip, wanted) == [order[float(t)] for t in wanted]


def test_the_picture_on_screen_is_the_last_that_has_appeared(film):
    clip = probed(film("uneven.mp4"))
    shown = video.read_times(clip).shown
    seconds = np.sort(np.random.default_rng(3).uniform(0, clip.end, 60))
    assert numbers_at(clip, seconds) == (np.searchsorted(shown, seconds, side="right") - 1).tolist()


def test_a_frame_carries_the_second_it_was_asked_for(film):
    clip = probed(film("uneven.mp4"))
    frames = list(video.read_frames(FramePlan(clip, ((0.05, 0.1), (1.5, 1.5)), 320, 160)))
    assert [frame.seconds for frame in frames] == [0.05, 0.1, 1.5, 1.5]
    assert all(frame.pixels.shape == (160, 320, 3) and frame.pixels.dtype == np.uint8 for frame in frames)


def test_a_plan_out_of_order_is_refused(film):
    clip = probed(film("short_gop.mp4"))
    with pytest.raises(ValueError, match="rise"):
        next(video.read_frames(FramePlan(clip, ((1.0, 0.5),), 320, 160)))


def test_probe_says_what_the_file_is(film, folder):
    clip = probed(film("quicktime.mov"))
    assert (clip.width, clip.height, clip.codec, clip.audio) == (320, 180, "h264", True)
    assert clip.start == 0 and clip.end == pytest.approx(2.5, abs=0.04) and clip.fps == pytest.approx(30)
    assert "mov" in clip.container.split(",")
    assert probed(film("av1.mp4")).codec == "av1"
    wide = clips.bars_clip(folder / "wide.mp4", STEADY[:5], aspect=Fraction(4, 3))
    assert (probed(wide).width, probed(wide).height) == (427, 180)


def test_the_length_is_that_of_the_packets_not_of_the_header(film, folder):
    whole = clips.copied(film("short_gop.mp4"), folder / "front.mp4", movflags="faststart")
    clip = probed(clips.truncated(whole, folder / "half.mp4", 0.6))
    with av.open(str(folder / "half.mp4")) as container:
        assert container.duration / 1e6 == pytest.approx(2.5, abs=0.05)  # what the header promises
    assert 1 < clip.end < 2.4
    shown = video.read_times(clip).shown
    assert numbers_at(clip, shown[:-3]) == [round(t * 30) for t in shown[:-3]]


@pytest.mark.parametrize("name", ["no_b_frames.mkv", "broadcast.ts"])
def test_a_file_that_breaks_off_is_read_as_far_as_it_goes(film, folder, name):
    clip = probed(clips.truncated(film(name), folder / f"half_{name}"))
    shown = video.read_times(clip).shown
    assert 20 < len(shown) < 70
    assert numbers_at(clip, shown[:-3]) == [round(t * 30) for t in shown[:-3]]


@pytest.mark.parametrize("rotation", [90, 180, 270])
def test_a_turned_video_is_upright(film, folder, rotation):
    straight = probed(film("short_gop.mp4"))
    turned = probed(clips.copied(film("short_gop.mp4"), folder / f"turned{rotation}.mp4", rotation=rotation))
    swapped = rotation in (90, 270)
    assert (turned.width, turned.height) == ((180, 320) if swapped else (320, 180))
    first = next(video.read_frames(FramePlan(straight, ((1.0, 1.0),), 320, 192))).pixels
    size = (192, 320) if swapped else (320, 192)
    upright = next(video.read_frames(FramePlan(turned, ((1.0, 1.0),), *size))).pixels
    assert np.array_equal(upright, np.rot90(first, rotation // 90))


@pytest.mark.parametrize("name", ["late.mp4", "late.mkv"])
def test_a_picture_that_starts_after_the_sound_keeps_its_time(folder, name):
    clip = probed(clips.bars_clip(folder / name, STEADY, g="20", late=2.0, sound="aac"))
    times = video.read_times(clip)
    assert times.shown == pytest.approx([t + 2 for t in STEADY], abs=2e-3)
    assert numbers_at(clip, times.shown[::10]) == list(range(0, 75, 10))
    assert numbers_at(clip, [0.0, 1.0]) == [0, 0]  # before the first there is nothing else to show


@pytest.mark.parametrize("name", ["from_1.5.mp4", "from_1.5.mkv"])
def test_a_file_that_starts_late_starts_at_zero(film, folder, name):
    clip = probed(clips.copied(film("short_gop.mp4"), folder / name, shift=1.5))
    times = video.read_times(clip)
    assert times.shown == pytest.approx(STEADY, abs=2e-3)
    assert numbers_at(clip, times.shown[::5]) == list(range(0, 75, 5))


def test_of_several_films_in_a_file_the_first_is_read(film, folder):
    path = folder / "two_cameras.mkv"
    with (
        av.open(str(path), "w") as write,
        av.open(str(film("short_gop.mp4"))) as one,
        av.open(str(film("hevc.mp4"))) as two,
    ):
        sources = [(one, write.add_stream_from_template(one.streams.video[0]))]
        sources.append((two, write.add_stream_from_template(two.streams.video[0])))
        for source, target in sources:
            for packet in source.demux(video=0):
                if packet.size:
                    packet.stream = target
                    write.mux(packet)
    clip = probed(path)
    assert clip.codec == "h264"
    assert numbers_at(clip, video.read_times(clip).shown) == list(range(75))


def test_times_before_zero_are_counted_from_the_first_picture(film, folder):
    path = clips.copied(film("broadcast.ts"), folder / "negative.nut.ts", shift=-1)
    clip = probed(path)
    times = video.read_times(clip)
    assert times.shown == pytest.approx(STEADY, abs=2e-3)
    assert numbers_at(clip, times.shown[::5]) == list(range(0, 75, 5))


def test_a_file_of_only_a_cover_says_so(folder):
    path = folder / "cover_only.mp4"
    with av.open(str(path), "w") as container:
        still = clips._cover_stream(container)
        clips._draw_cover(container, still)
    assert "only a cover picture" in refused(path)


def test_pictures_cut_by_an_edit_list_are_not_shown(film, folder):
    path = clips.copied(film("one_keyframe.mp4"), folder / "cut.mp4", shift=-1, avoid_negative_ts="disabled")
    clip = probed(path)
    times = video.read_times(clip)
    assert times.shown == pytest.approx(STEADY[:45], abs=1e-3) and not len(times.keyframes)
    assert numbers_at(clip, times.shown) == list(range(30, 75))


def test_a_file_without_times_counts_its_pictures(film, folder):
    path = clips.copied(film("short_gop.mp4"), folder / "timeless.mkv", shift=-1, avoid_negative_ts="disabled")
    clip = probed(path)
    assert not video.scan_of(clip).seekable
    times = video.read_times(clip)
    assert numbers_at(clip, times.shown) == list(range(75))


def test_parts_joined_into_one_file_follow_each_other(film, folder):
    raw = film("broadcast.ts").read_bytes()
    joined = folder / "joined.ts"
    joined.write_bytes(raw + raw)
    clip = probed(joined)
    times = video.read_times(clip)
    assert (np.diff(times.shown) > 0).all() and clip.end == pytest.approx(5.0, abs=0.2)
    assert numbers_at(clip, times.shown) == [*range(75), *range(75)]


@pytest.mark.parametrize(
    "name", ["short_gop.mp4", "open_gop.mp4", "hevc.mp4", "no_b_frames.mkv", "vp9.webm", "mpeg4.mp4"]
)
def test_damage_never_shows_a_wrong_picture_under_a_true_stamp(film, folder, name, processes):
    clip = probed(clips.damaged(film(name), folder / f"damaged_{name}", part=0.5))
    shown = video.read_times(clip).shown
    frames = list(video.read_frames(plan_of(clip, shown)))[::2]
    assert len(frames) == len(shown)
    for frame in frames:
        assert clips.read_bars(frame.pixels) == round(frame.seconds * 30)
    assert sum(frame.seconds == t for frame, t in zip(frames, shown, strict=True)) > len(shown) / 3


def test_a_span_is_read_inside_its_ends(film):
    clip = probed(film("uneven.mp4"))
    shown = video.read_times(clip).shown
    part = clip.between(float(shown[10]), float(shown[20]))
    assert video.read_times(part).shown.tolist() == shown[10:20].tolist()


def test_a_span_inside_a_still_picture_shows_it(film):
    clip = probed(film("uneven.mp4")).between(1.0, 2.0)  # picture 3 stays from 0.17 to 2.67
    times = video.read_times(clip)
    assert times.shown.tolist() == [1.0]
    plan = plan_frames(clip, times, budget=1000, frame_pixels=(4096, 786_432))
    assert [clips.read_bars(frame.pixels) for frame in video.read_frames(plan)] == [3, 3]


def test_what_is_planned_is_what_is_read(folder):
    clip = probed(clips.colour_clip(folder / "colours.mp4", 20, g="30"))
    plan = plan_frames(clip, video.read_times(clip), budget=2_000, frame_pixels=(4096, 786_432))
    frames = list(video.read_frames(plan))
    assert [frame.seconds for frame in frames] == list(plan.seconds)
    for frame in frames:
        assert np.abs(frame.pixels.mean(axis=(0, 1)) - clips.colour_at(frame.seconds + 1e-6)).max() < 6


def test_times_are_read_once_per_content(film, monkeypatch):
    clip = probed(film("short_gop.mp4"))
    monkeypatch.setattr(sandbox, "call", None)
    assert len(video.read_times(clip).shown) == len(video.read_times(clip.between(0, 1)).shown) + 45


def test_times_come_back_after_they_were_forgotten(film):
    clip = probed(film("short_gop.mp4"))
    before = video.read_times(clip).shown
    for number in range(video.SCANS_KEPT + 1):
        video.probe(film("flash.flv"), f"other {number}")
    assert clip.digest not in video._scans and len(video._scans) <= video.SCANS_KEPT
    assert video.read_times(clip).shown.tolist() == before.tolist()


def running_children() -> list[str]:
    process = sandbox.server.process
    assert process is not None
    return Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()


@pytest.mark.skipif(not os.path.exists("/proc/self/task"), reason="needs /proc")
def test_closing_early_leaves_no_process(film, processes):
    clip = probed(film("short_gop.mp4"))
    frames = video.read_frames(plan_of(clip, video.read_times(clip).shown))
    next(frames)
    assert running_children()
    frames.close()
    assert not running_children()


def test_pictures_are_not_gathered(folder):
    clip = probed(clips.bars_clip(folder / "many.mp4", [n / 10 for n in range(300)], g="50"))
    plan = FramePlan(clip, tuple((t, t) for t in video.read_times(clip).shown.tolist()), 640, 352)
    tracemalloc.start()
    count = sum(1 for _ in video.read_frames(plan))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert count == 600 and peak < 10 * 640 * 352 * 3


def test_an_exact_picture_costs_only_its_own_group(film):
    """A keyframe is decoded alone; anything else from its keyframe, or on from the picture before."""
    path = film("short_gop.mp4")
    scan = video.scan_of(probed(path))
    last = len(scan.starts) - 1
    with path.open("rb") as file, opening.open_container(file) as container:
        reader = pictures.Pictures(container, opening.picture_stream(container))
        pushed = []
        push = reader.push
        reader.push = lambda packet: pushed.append(packet) or push(packet)
        for number, start in enumerate(scan.starts.tolist()):
            found = reader.keyframe(start, number)
            assert found is not None and abs(found[0] - start) < 1e-6
        assert not pushed
        assert reader.at(float(scan.shown[1]), float(scan.starts[0]), 0) is not None
        assert reader.at(float(scan.shown[-1]), float(scan.starts[-1]), last) is not None
        assert len(pushed) < 30  # of 75


def test_pictures_that_need_an_unread_group_are_not_shown(film):
    path = film("open_gop.mp4")
    scan = video.scan_of(probed(path))
    with path.open("rb") as file, opening.open_container(file) as container:
        reader = pictures.Pictures(container, opening.picture_stream(container))
        start = float(scan.starts[2])
        found = reader.at(start - 1 / 30, start, 2)
    assert found is not None and found[0] == pytest.approx(start)


def test_the_nearest_picture_stands_in_for_a_damaged_one(folder):
    whole = clips.bars_clip(folder / "whole.mp4", STEADY, g="30", bf="0")
    clip = probed(clips.damaged(whole, folder / "hole.mp4", part=0.5))
    before, after = (next(video.read_frames(plan_of(clip, [t]))) for t in (1.1, 1.9))
    assert 0.8 < before.seconds < 1.0 and after.seconds == pytest.approx(2.0)
    assert [clips.read_bars(frame.pixels) for frame in (before, after)] == [round(before.seconds * 30), 60]


def test_pictures_cut_at_the_end_by_an_edit_list_are_not_shown(film, folder):
    path = clips.copied(film("flash.flv"), folder / "tail.mp4")  # without durations the last picture falls off
    with av.open(str(path)) as container:
        assert sum(packet.is_discard for packet in container.demux(video=0)) == 1
    clip = probed(path)
    shown = video.read_times(clip).shown
    assert len(shown) == 74 and numbers_at(clip, shown) == list(range(74))


def test_a_recording_that_starts_anywhere_starts_at_its_first_whole_picture(folder):
    options = {"x264-params": "open-gop=1:keyint=20:scenecut=0"}
    raw = clips.bars_clip(folder / "channel.ts", STEADY, **options).read_bytes()
    switched_on = folder / "switched_on.ts"
    switched_on.write_bytes(raw[len(raw) // 3 // 188 * 188 :])
    clip = probed(switched_on)
    numbers = numbers_at(clip, video.read_times(clip).shown)
    assert numbers == list(range(numbers[0], 75)) and 20 <= numbers[0] <= 40


def test_subtitles_and_fonts_beside_the_film_do_no_harm(film, folder):
    clip = probed(clips.with_extras(film("short_gop.mp4"), folder / "extras.mkv"))
    assert numbers_at(clip, video.read_times(clip).shown[::9]) == list(range(0, 75, 9))


@pytest.mark.parametrize(
    "lie",
    [
        {"shown": np.array([1.0, 0.0])},
        {"shown": np.array([np.nan, 1.0])},
        {"shown": np.zeros(0)},
        {"shown": "0 1 2"},
        {"starts": np.zeros((2, 2))},
        {"end": float("inf")},
        {"end": None},
    ],
)
def test_a_child_that_lies_about_times_is_not_believed(film, monkeypatch, lie):
    with film("short_gop.mp4").open("rb") as file:
        found = video.inspect(file)
    monkeypatch.setattr(sandbox, "call", lambda *arguments, **named: found | lie)
    with pytest.raises(MediaError, match="damaged"):
        video.probe(film("short_gop.mp4"), "lie")


@pytest.mark.parametrize(
    "lie", [None, (0.0, np.zeros((9, 9, 3), np.uint8)), (0.0, np.zeros((192, 320, 3))), ("0", b""), (0.0,)]
)
def test_a_child_that_lies_about_pictures_is_not_believed(film, monkeypatch, lie):
    clip = probed(film("short_gop.mp4"))
    monkeypatch.setattr(sandbox, "stream", lambda *arguments, **named: (picture for picture in [lie]))
    with pytest.raises(MediaError, match="damaged"):
        next(video.read_frames(plan_of(clip, [0.0])))


def test_broken_bytes_give_pictures_or_one_sentence(film, folder):
    names = ["short_gop.mp4", "hevc.mp4", "vp9.webm", "no_b_frames.mkv", "broadcast.ts", "mjpeg.avi", "flash.flv"]
    read = refusals = 0
    for seed in range(42):
        random = np.random.default_rng(seed)
        raw = bytearray(film(names[seed % len(names)]).read_bytes())
        limit = len(raw) if seed % 2 else 1500
        for position in random.integers(0, limit, 1 + 3 * seed):
            raw[position] = random.integers(256)
        path = folder / "broken"
        path.write_bytes(raw)
        try:
            clip = video.probe(path, f"broken {seed}")
            plan = plan_frames(clip, video.read_times(clip), budget=900, frame_pixels=(4096, 16_384))
            assert len(list(video.read_frames(plan))) == 2 * len(plan.patches)
            read += 1
        except MediaError as error:
            assert error.sentence.endswith(".")
            refusals += 1
    assert read > 5 and refusals > 5


def refused(path: Path) -> str:
    with pytest.raises(MediaError) as caught:
        video.probe(path, path.name)
    sentence = caught.value.sentence
    assert sentence.endswith(".") and "\n" not in sentence and len(sentence) < 200
    return sentence


def test_what_is_no_video_is_refused_in_one_sentence(film, folder, tmp_path):
    empty = tmp_path / "empty.mp4"
    empty.write_bytes(b"")
    assert "is empty" in refused(empty)
    text = tmp_path / "text.mp4"
    text.write_text("Dear reader, this is no film. " * 99)
    assert "This kind of file is not read as video" in refused(text)
    assert "sound but no picture" in refused(clips.sound_clip(tmp_path / "sound.m4a"))
    assert "sound but no picture" in refused(clips.sound_clip(tmp_path / "sound.mp3", codec="libmp3lame"))
    assert "sound but no picture" in refused(clips.sound_clip(tmp_path / "album.mp4", cover=True))
    assert "cut off" in refused(clips.truncated(film("short_gop.mp4"), tmp_path / "half.mp4"))


def test_a_codec_off_the_list_is_refused_by_name(tmp_path, film):
    lossless = clips.bars_clip(tmp_path / "lossless.mkv", STEADY[:3], codec="ffv1")
    assert "codec ffv1 is not read" in refused(lossless)
    strange = tmp_path / "strange.mp4"
    strange.write_bytes(film("short_gop.mp4").read_bytes().replace(b"avc1", b"xyz1"))
    assert "codec of this video is not known" in refused(strange)


def test_a_film_of_no_pictures_is_refused(tmp_path):
    with av.open(str(tmp_path / "none.mp4"), "w", options={"movflags": "empty_moov+frag_keyframe"}) as container:
        stream = container.add_stream("libx264", rate=10)
        stream.width, stream.height, stream.pix_fmt = 320, 180, "yuv420p"
        container.start_encoding()
    assert "no frames" in refused(tmp_path / "none.mp4")


def test_a_film_of_undecodable_pictures_is_refused(film, tmp_path):
    raw = bytearray(film("no_b_frames.mkv").read_bytes())
    with av.open(str(film("no_b_frames.mkv"))) as container:
        for packet in container.demux(video=0):
            if packet.size:
                raw[packet.pos + 16 : packet.pos + packet.size] = bytes(max(0, packet.size - 16))
    path = tmp_path / "zeros.mkv"
    path.write_bytes(raw)
    assert "damaged" in refused(path)


@pytest.mark.parametrize(
    "name, listing",
    [
        ("list.mp4", "ffconcat version 1.0\nfile '{name}'\n"),
        ("list.ffconcat", "ffconcat version 1.0\nfile '{path}'\n"),
        ("play.mp4", "#EXTM3U\n#EXT-X-TARGETDURATION:3\n#EXTINF:3,\nfile://{path}\n#EXT-X-ENDLIST\n"),
        ("play.m3u8", "#EXTM3U\n#EXT-X-TARGETDURATION:3\n#EXTINF:3,\n{name}\n#EXT-X-ENDLIST\n"),
        ("session.mp4", "v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\nm=video 5004 RTP/AVP 96\n"),
    ],
)
def test_a_list_that_names_another_file_never_reaches_it(film, folder, monkeypatch, name, listing):
    secret = film("broadcast.ts")
    path = folder / name
    path.write_text(listing.format(name=secret.name, path=secret))
    monkeypatch.chdir(folder)
    assert "This kind of file is not read as video" in refused(path)
    with path.open("rb") as file, pytest.raises(MediaError):  # also without the sandbox around it
        video.inspect(file)


def test_a_container_off_the_list_is_refused(tmp_path):
    assert "not read as video" in refused(clips.bars_clip(tmp_path / "raw.h264", STEADY[:10]))


def test_no_other_file_is_opened_even_by_a_demuxer_that_would(film, folder, monkeypatch):
    """The list of formats keeps such demuxers out; were one let in, the list of protocols still holds."""
    secret = film("broadcast.ts")
    path = folder / "list.txt"
    path.write_text(f"ffconcat version 1.0\nfile '{secret.name}'\n")
    monkeypatch.chdir(folder)
    with av.open(str(path), format="concat") as container:
        assert next(container.decode(video=0)).width == 320  # such a file does work elsewhere
    options = opening.OPTIONS | {"format_whitelist": opening.FORMATS + ",concat,hls"}
    monkeypatch.setattr(opening, "OPTIONS", options)
    with path.open("rb") as file, pytest.raises(MediaError):
        video.inspect(file)


def test_limits_are_said_in_the_sentence(film, monkeypatch):
    path = film("short_gop.mp4")
    for limit, value, words in (
        ("LARGEST_FILE", 10, "GB"),
        ("LONGEST_CLIP", 1.0, "12 hours"),
        ("LONGEST_SIDE", 300, "320 x 180 px"),
    ):
        monkeypatch.setattr(opening, limit, value)
        with path.open("rb") as file, pytest.raises(MediaError, match=words):
            video.inspect(file)
        monkeypatch.undo()
