"""What is said in a video, over HTTP."""

from pathlib import Path
from random import Random

import pytest

from qwen3vl_webui.media import speech
from tests import clips
from tests.served import wait_until
from tests.web.conftest import Site
from tests.whisper import spoken_clip, stand_in, tones


def test_subtitles_chapters_and_neighbours_of_a_second(site: Site, made: Path, tmp_path: Path) -> None:
    path = clips.with_subtitles(
        made / "film.mp4",
        tmp_path / "talk.mkv",
        [("subrip", "eng", [(1.0, 2.0, "a < b")])],
        [(0, 2, "One"), (2, 4, "二")],
    )
    talk, words = site.upload(path), tmp_path / "a.srt"
    words.write_bytes(clips.srt([(0.5, 1.0, "你好")]).encode("gbk"))
    beside = site.upload(words)
    assert (beside["kind"], beside["lines"]) == ("subtitles", 1)
    known = site.client.get(f"/media/{talk['id']}/tracks").json()
    assert known["tracks"] == [{"language": "eng", "title": "", "default": False, "lines": 1}]
    assert [(each["t"], each["title"]) for each in known["chapters"]] == [(0.0, "One"), (2.0, "二")]
    track = site.client.get(f"/media/{talk['id']}/tracks/0.vtt")
    assert track.headers["content-type"].startswith("text/vtt")
    assert track.text == "WEBVTT\n\n00:00:01.000 --> 00:00:02.000\na &lt; b\n"
    assert "你好" in site.client.get(f"/media/{talk['id']}/beside/{beside['id']}.vtt").text
    for wrong in (
        f"{talk['id']}/tracks/1.vtt",
        f"{talk['id']}/tracks/-1.vtt",
        f"{beside['id']}/tracks",
        f"{beside['id']}/tracks/0.vtt",
        f"{talk['id']}/beside/{talk['id']}.vtt",
        f"{talk['id']}/beside/nobody.vtt",
        f"{beside['id']}/around?t=1",
    ):
        assert site.client.get(f"/media/{wrong}").status_code == 404, wrong
    around = site.client.get(f"/media/{talk['id']}/around", params={"t": 1.25}).json()
    assert (around["before"], around["at"], around["after"]) == pytest.approx((1.1, 1.2, 1.3), abs=0.002)
    first = site.client.get(f"/media/{talk['id']}/around", params={"t": 0}).json()
    assert first["before"] is None
    last = site.client.get(f"/media/{talk['id']}/around", params={"t": 99}).json()
    assert last["after"] is None


def test_what_is_said_is_written_down_when_asked(site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    talk = site.upload(spoken_clip(tmp_path / "talk.mp4", tones(5, {1: 0.3, 3: 0.6})))
    silent = site.upload(clips.colour_clip(tmp_path / "silent.mp4", 1))
    tracks = f"/media/{talk['id']}/tracks"
    with monkeypatch.context() as without:
        without.setattr(speech, "installed", lambda: False)
        assert site.client.get(tracks).json()["speech"] is None
    monkeypatch.syspath_prepend(stand_in(tmp_path / "libraries"))
    assert site.client.get(tracks).json()["speech"]["state"] == "none"
    assert site.client.get(f"/media/{silent['id']}/tracks").json()["speech"] is None
    path = f"/media/{talk['id']}/speech"
    offer = site.client.get(f"{path}/offer").json()
    assert offer == {"model": "small", "megabytes": 0, "seconds": pytest.approx(2, abs=0.2)}
    assert site.client.get(path).json()["state"] == "none"  # looking begins nothing
    assert "no such" in site.error(site.client.get(f"{path}.vtt"), 404)
    assert site.client.post(path).json()["state"] == "making"
    wait_until(lambda: site.client.get(path).json()["state"] == "ready", 60)
    assert site.client.get(path).json()["lines"] == 2
    vtt = site.client.get(f"{path}.vtt")
    assert vtt.headers["content-type"].startswith("text/vtt") and "00:00:03.000 --> 00:00:04.000\ntone 0.6" in vtt.text
    assert site.client.delete(path).json()["state"] == "ready"  # what is written stays
    assert "no sound" in site.error(site.client.post(f"/media/{silent['id']}/speech"), 400)
    site.store.remove_file("local", talk["id"])
    assert not list((site.store.data_dir / "media").glob(f"??/{talk['digest']}*"))


@pytest.mark.parametrize("codec", ["aac", "libopus", "pcm_s16le", "libmp3lame"])
def test_broken_sound_is_written_down_or_one_sentence(
    site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, codec: str
) -> None:
    """Whatever bytes of the sound are broken: the state ends, says one sentence, and the next file is heard."""
    monkeypatch.syspath_prepend(stand_in(tmp_path / "libraries"))
    whole = spoken_clip(tmp_path / "whole.mkv", tones(4, {1: 0.5}), codec=codec)
    raw = whole.read_bytes()
    states = []
    for seed in range(4):
        random = Random(f"{codec}:{seed}")
        broken = bytearray(raw[: len(raw) // 2] if seed == 3 else raw)  # breaks off, or has wrong bytes
        for _ in range(20 * seed):
            broken[random.randrange(len(broken) // 4, len(broken))] = random.randrange(256)
        (tmp_path / f"broken{seed}.mkv").write_bytes(broken)
        talk = site.upload(tmp_path / f"broken{seed}.mkv")
        path = f"/media/{talk['id']}/speech"
        answer = site.client.post(path)
        if answer.status_code == 400:
            assert answer.json()["error"]["message"].endswith(".")
            continue

        def ended(path: str = path) -> bool:
            return site.client.get(path).json()["state"] in ("ready", "failed")

        wait_until(ended, 60)
        now = site.client.get(path).json()
        states.append(now["state"])
        assert now["state"] == "ready" or (now["sentence"].endswith(".") and "Traceback" not in now["sentence"])
        site.store.remove_file("local", talk["id"])
        assert not list((site.store.data_dir / "media").glob(f"??/{talk['digest']}*"))
    assert states[0] == "ready"  # the one that is whole
