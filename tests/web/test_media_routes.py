"""Uploads, byte ranges, pictures and playable copies, over HTTP with real files."""

import asyncio
import io
import os
import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import httpx
import pytest
from PIL import Image as Picture

from qwen3vl_webui.media.playback import how_to_play
from qwen3vl_webui.media.values import Clip
from qwen3vl_webui.settings import Settings
from qwen3vl_webui.store.store import Store
from qwen3vl_webui.web.playable import PlayableCopies
from tests import clips
from tests.served import in_new_loop, wait_until
from tests.web.conftest import Site, running

# Upload


def test_an_upload_is_described(site: Site, made: Path, film: dict[str, Any]) -> None:
    assert (film["kind"], film["name"], film["width"], film["height"]) == ("video", "film.mp4", 320, 180)
    assert film["duration"] == pytest.approx(4.0, abs=0.2) and film["pages"] is None
    assert film["size"] == (made / "film.mp4").stat().st_size and len(film["digest"]) == 64
    paper = site.upload(made / "paper.pdf", "总结.pdf")
    assert (paper["kind"], paper["name"], paper["pages"], paper["playable"]) == ("document", "总结.pdf", 2, True)
    picture = site.upload(made / "picture.png", "a/../<b>.png")
    assert (picture["kind"], picture["name"], picture["width"], picture["duration"]) == ("image", "<b>.png", 640, None)


@pytest.mark.parametrize(
    ("content", "name"),
    [
        (b"", "a.png"),
        (b"<html><script>alert(1)</script>", "a.png"),
        (b"#EXTM3U\n", "a.mp4"),
        (b"\x89PNG\r\n\x1a\n", ""),
    ],
    ids=["empty", "html", "playlist", "cut"],
)
def test_a_refused_upload_is_one_sentence_and_leaves_nothing(site: Site, content: bytes, name: str) -> None:
    before = len(site.store.files("local"))
    sentence = site.error(site.client.post("/upload", params={"name": name}, content=content), 400)
    assert sentence.endswith(".") and "\n" not in sentence and "/" + "tmp" not in sentence
    assert len(site.store.files("local")) == before
    wait_until(lambda: not list((site.store.data_dir / "media" / "incoming").iterdir()))


def test_an_upload_over_the_limit_is_refused_while_it_comes(tmp_path: Path) -> None:
    for site in running(Settings(data_dir=tmp_path), file_limit=3_000_000):
        response = site.client.post("/upload", content=(b"x" * 100_000 for _ in range(40)))
        assert "larger than" in site.error(response, 400)
        assert list((tmp_path / "media" / "incoming").iterdir()) == []


def test_an_upload_that_breaks_off_leaves_nothing(site: Site) -> None:
    incoming = site.store.data_dir / "media" / "incoming"
    host, port = site.address.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port))) as connection:
        head = "POST /upload?name=a.png HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9000000\r\n\r\n"
        connection.sendall(head.encode() + b"x" * 2_500_000)
        wait_until(lambda: any(path.stat().st_size for path in incoming.iterdir()))
    wait_until(lambda: not list(incoming.iterdir()))


def test_a_large_upload_costs_no_memory(made: Path, tmp_path: Path) -> None:
    """A film of 200 MB: more than any picture may have, far more than a server may hold of it."""
    film = (made / "film.mp4").read_bytes()
    for site in running(Settings(data_dir=tmp_path / "data")):

        def pieces() -> Iterator[bytes]:
            yield film + (200_000_008).to_bytes(4) + b"free"
            for _ in range(200):
                yield bytes(1_000_000)

        before = resident_bytes()
        response = site.client.post("/upload", content=pieces())
        assert response.status_code == 200 and response.json()["size"] > 200_000_000
        assert resident_bytes() - before < 60_000_000


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


# Files by path


def test_a_file_below_media_dir_is_opened_where_it_is(site: Site, made: Path) -> None:
    for path in ("inside.png", str(made / "shared" / "inside.png"), "./way_in"):
        response = site.client.post("/upload/path", json={"path": path})
        assert response.status_code == 200 and response.json()["kind"] == "image"
    assert site.client.get(f"/media/{response.json()['id']}").content == (made / "shared" / "inside.png").read_bytes()


@pytest.mark.parametrize("path", ["../paper.pdf", "way_out", "/etc/passwd", "missing", "", ".", "a\0b", "x" * 5000])
def test_nothing_outside_media_dir_is_opened(site: Site, path: str) -> None:
    assert "no such file" in site.error(site.client.post("/upload/path", json={"path": path}), 404)


def test_opening_by_path_is_off_unless_set_and_needs_a_login(made: Path, tmp_path: Path) -> None:
    for site in running(Settings(data_dir=tmp_path / "off")):
        assert "--media-dir" in site.error(site.client.post("/upload/path", json={"path": "inside.png"}), 404)
    for site in running(Settings(data_dir=tmp_path / "open", open=True, media_dir=made / "shared")):
        assert "Log in" in site.error(site.client.post("/upload/path", json={"path": "inside.png"}), 404)


def test_unknown_fields_are_refused(site: Site) -> None:
    assert "link" in site.error(site.client.post("/upload/path", json={"path": "a", "link": False}), 400)
    site.error(site.client.post("/upload/path", content=b"not json"), 400)


# Ranges


def test_a_film_is_served_in_ranges(site: Site, made: Path, film: dict[str, Any]) -> None:
    content, url = (made / "film.mp4").read_bytes(), f"/media/{film['id']}"
    size = len(content)
    whole = site.client.get(url)
    assert (whole.status_code, whole.content) == (200, content)
    assert whole.headers["content-type"] == "video/mp4" and whole.headers["accept-ranges"] == "bytes"
    assert "content-disposition" not in whole.headers
    for asked, first, end in (("0-99", 0, 100), (f"{size - 10}-", size - 10, size), ("-7", size - 7, size)):
        part = site.client.get(url, headers={"Range": f"bytes={asked}"})
        assert (part.status_code, part.content) == (206, content[first:end])
        assert part.headers["content-range"] == f"bytes {first}-{end - 1}/{size}"
    outside = site.client.get(url, headers={"Range": f"bytes={size}-"})
    assert outside.status_code == 416 and outside.headers["content-range"] == f"bytes */{size}"
    assert site.client.get(url, headers={"Range": "bytes=0-1,4-5"}).content == content


def test_a_known_film_is_not_sent_again(site: Site, film: dict[str, Any]) -> None:
    url = f"/media/{film['id']}"
    tag = site.client.get(url).headers["etag"]
    again = site.client.get(url, headers={"If-None-Match": tag})
    assert (again.status_code, again.content, again.headers["etag"]) == (304, b"", tag)
    assert site.client.get(url, headers={"Range": "bytes=0-1", "If-Range": tag}).status_code == 206
    assert site.client.get(url, headers={"Range": "bytes=0-1", "If-Range": '"old"'}).status_code == 200


def test_head_tells_the_size_and_request_headers_do_not_come_back(site: Site, film: dict[str, Any]) -> None:
    head = site.client.head(f"/media/{film['id']}", headers={"Cookie": "a=b", "X-Secret": "1"})
    assert head.headers["content-length"] == str(film["size"]) and head.content == b""
    assert not {"cookie", "x-secret", "authorization", "x-qwen3vl-owner"} & set(head.headers)


def test_a_player_that_leaves_frees_its_file(site: Site, tmp_path: Path) -> None:
    large = tmp_path / "large.mp4"
    clips.colour_clip(large, 1, container_options={"movflags": "faststart"})
    with open(large, "ab") as file:
        file.write((40_000_008).to_bytes(4) + b"free" + bytes(40_000_000))
    stored = site.upload(large)
    for _ in range(5):
        with site.client.stream("GET", f"/media/{stored['id']}") as response:
            assert next(response.iter_raw(1000))
    wait_until(lambda: stored["digest"] not in open_files())


def open_files() -> str:
    names = []
    for descriptor in os.listdir("/proc/self/fd"):
        try:
            names.append(os.readlink(f"/proc/self/fd/{descriptor}"))
        except OSError:
            continue
    return "\n".join(names)


def test_the_type_comes_from_the_content_never_from_the_name(site: Site, made: Path) -> None:
    picture = site.upload(made / "picture.png", "page.html")
    response = site.client.get(f"/media/{picture['id']}")
    assert response.headers["content-type"] == "image/png" and response.headers["x-content-type-options"] == "nosniff"
    paper = site.client.get(f"/media/{site.upload(made / 'paper.pdf', 'a.html')['id']}")
    assert paper.headers["content-type"] == "application/pdf"
    assert paper.headers["content-disposition"].startswith("attachment")
    tiff = made / "scan.tif"
    Picture.new("RGB", (40, 40)).save(tiff)
    assert site.client.get(f"/media/{site.upload(tiff)['id']}").headers["content-type"] == "application/octet-stream"


def test_visitors_do_not_see_each_others_files(made: Path, tmp_path: Path) -> None:
    for site in running(Settings(data_dir=tmp_path, open=True)):
        paper = site.upload(made / "paper.pdf")
        assert site.client.get(f"/page/{paper['id']}/1.webp").status_code == 200
        stranger = httpx.Client(base_url=site.address)
        paths = ["media/{}", "media/{}/state", "page/{}/1.webp", "picture/{}.webp", "thumb/{}/1.webp"]
        paths += [
            f"media/{{}}/{rest}"
            for rest in ("tracks", "tracks/0.vtt", "around?t=1", "frame.png?t=1", "speech", "speech.vtt")
        ]
        for path in [*paths, "media/{}/beside/{}.vtt", "media/{}/clip.mp4?start=0&end=1"]:
            assert "no such file" in site.error(stranger.get("/" + path.replace("{}", paper["id"])), 404)


def test_the_login_covers_the_media(made: Path, tmp_path: Path) -> None:
    for site in running(Settings(data_dir=tmp_path, auth=("me", "secret"))):
        assert site.client.post("/upload", content=b"x").status_code == 401
        site.client.auth = ("me", "secret")
        film = site.upload(made / "film.mp4")
        assert site.client.get(f"/media/{film['id']}").status_code == 200
        assert httpx.get(f"{site.address}/media/{film['id']}").status_code == 401


# Pictures


def webp(response: httpx.Response) -> Picture.Image:
    assert response.status_code == 200, response.text
    assert response.headers["content-type"] == "image/webp" and "immutable" in response.headers["cache-control"]
    return Picture.open(io.BytesIO(response.content)).convert("RGB")


def test_a_thumbnail_shows_its_second(site: Site, film: dict[str, Any]) -> None:
    for second in (0, 1.5, 3):
        picture = webp(site.client.get(f"/thumb/{film['id']}/{second}.webp?width=160"))
        assert picture.size == (160, 90)
        pixel = picture.getpixel((80, 45))
        assert isinstance(pixel, tuple)
        assert all(abs(seen - right) <= 8 for seen, right in zip(pixel, clips.colour_at(second), strict=True))
    beyond = webp(site.client.get(f"/thumb/{film['id']}/9999.webp"))
    assert beyond.size == (320, 180)


def test_the_words_of_a_page_are_found_where_they_stand(site: Site, made: Path) -> None:
    paper = site.upload(clips.pdf(made / "words.pdf", ["first", "the code is 7342"]))
    boxes = site.client.get(f"/page/{paper['id']}/2/words", params={"find": "7342"}).json()["boxes"]
    assert len(boxes) == 1
    left, top, right, bottom = boxes[0]
    assert 0 <= left < right <= 1000 and 0 <= top < bottom <= 1000
    assert site.client.get(f"/page/{paper['id']}/1/words", params={"find": "7342"}).json() == {"boxes": []}
    assert site.client.get(f"/page/{paper['id']}/3/words", params={"find": "7342"}).status_code == 404
    assert site.client.get(f"/page/{paper['id']}/1/words", params={"find": "x" * 300}).status_code == 400


def test_pages_and_pictures_come_at_the_size_asked(site: Site, made: Path) -> None:
    paper, picture = site.upload(made / "paper.pdf"), site.upload(made / "picture.png")
    assert webp(site.client.get(f"/page/{paper['id']}/2.webp?width=300")).width == 300
    assert webp(site.client.get(f"/picture/{picture['id']}.webp?longest=100")).size == (100, 75)
    response = site.client.get(f"/page/{paper['id']}/2.webp?width=300")
    known = site.client.get(
        f"/page/{paper['id']}/2.webp?width=300", headers={"If-None-Match": response.headers["etag"]}
    )
    assert known.status_code == 304


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("thumb/{film}/nan.webp", 400),
        ("thumb/{film}/x.webp", 400),
        ("thumb/{film}/1.webp?width=99999", 400),
        ("thumb/{paper}/1.webp", 404),
        ("page/{paper}/0.webp", 404),
        ("page/{paper}/3.webp", 404),
        ("page/{film}/1.webp", 404),
        ("picture/{film}.webp", 404),
        ("picture/{paper}.webp?longest=0", 400),
        ("media/..%2f..%2fstore.sqlite", 404),
    ],
)
def test_what_is_not_there_is_a_sentence(site: Site, made: Path, film: dict[str, Any], path: str, status: int) -> None:
    paper = site.upload(made / "paper.pdf")
    response = site.client.get("/" + path.format(film=film["id"], paper=paper["id"]))
    assert response.status_code == status, response.text


def test_many_thumbnails_at_once(site: Site, film: dict[str, Any]) -> None:
    """What scrolling a timeline does; each is made once and then read from disk."""
    urls = [f"/thumb/{film['id']}/{second / 10}.webp?width=64" for second in range(12)]
    with ThreadPoolExecutor(12) as pool:
        first = [response.content for response in pool.map(site.client.get, urls)]
    made = list((site.store.data_dir / "pictures" / film["digest"]).glob("*-64.webp"))
    assert len(made) == 12
    assert [site.client.get(url).content for url in urls] == first


# Playable copies


def state_of(site: Site, file_id: str) -> dict[str, Any]:
    return site.client.get(f"/media/{file_id}/state").json()  # type: ignore[no-any-return]


def test_what_a_browser_plays_is_played_as_it_is(site: Site, film: dict[str, Any]) -> None:
    assert film["playable"] is True and film["looked_through"] is False  # too short to pay
    assert state_of(site, film["id"]) == {
        "play": "as_is",
        "progress": 1.0,
        "url": f"/media/{film['id']}",
        "sentence": "",
    }


def test_a_copy_is_made_of_what_a_browser_cannot_play(site: Site, made: Path) -> None:
    path = clips.colour_clip(made / "old.avi", 3, codec="mpeg4", clock=Fraction(1, 10))
    stored = site.upload(path)
    assert stored["playable"] is False
    assert state_of(site, stored["id"])["play"] in {"making", "ready"}
    wait_until(lambda: state_of(site, stored["id"])["play"] == "ready", 60)
    copy = site.client.get(state_of(site, stored["id"])["url"])
    assert copy.headers["content-type"] == "video/mp4" and copy.content != path.read_bytes()
    with av.open(io.BytesIO(copy.content)) as container:
        assert container.streams.video[0].codec_context.name == "h264"
    original = site.client.get(f"/media/{stored['id']}?original=1")
    assert original.content == path.read_bytes() and "attachment" in original.headers["content-disposition"]
    assert original.headers["etag"] != copy.headers["etag"]


def test_a_server_that_stops_cancels_the_copy(tmp_path: Path) -> None:
    path = clips.colour_clip(tmp_path / "long.avi", 120, codec="mpeg4", clock=Fraction(1, 10), size=(640, 360))
    for site in running(Settings(data_dir=tmp_path / "data")):
        stored = site.upload(path)
        assert state_of(site, stored["id"])["play"] == "making"
    left = [path.name for path in (tmp_path / "data" / "media").rglob("*.play.mp4*")]
    assert left in ([], [f"{stored['digest']}.play.mp4"])


def test_a_frame_and_a_part_are_saved(site: Site, made: Path) -> None:
    film = site.upload(made / "film.mp4", "我的 film.mp4")
    frame = site.client.get(f"/media/{film['id']}/frame.png", params={"t": 2.5})
    assert frame.headers["content-type"] == "image/png"
    assert "%E6%88%91%E7%9A%84%20film%2000-02.500.png" in frame.headers["content-disposition"]
    assert Picture.open(io.BytesIO(frame.content)).getpixel((160, 90)) == pytest.approx(clips.colour_at(2), abs=8)
    assert site.client.get(f"/media/{film['id']}/frame.jpg", params={"t": 99}).headers["content-type"] == "image/jpeg"
    part = site.client.get(f"/media/{film['id']}/clip.mp4", params={"start": 1, "end": 3})
    assert "attachment" in part.headers["content-disposition"] and "00-01.000" in part.headers["content-disposition"]
    with av.open(io.BytesIO(part.content)) as container:
        assert float(container.duration) / av.time_base == pytest.approx(2.0, abs=0.11)
    wait_until(lambda: not list((site.store.data_dir / "media" / "incoming").iterdir()))
    assert "nothing between" in site.error(
        site.client.get(f"/media/{film['id']}/clip.mp4", params={"start": 9, "end": 10}), 400
    )
    picture = site.upload(made / "picture.png")
    assert site.client.get(f"/media/{picture['id']}/frame.png", params={"t": 0}).status_code == 404
    assert site.client.get(f"/media/{film['id']}/frame.png", params={"t": "nan"}).status_code == 400


def test_a_copy_whose_film_was_deleted_is_made_again_when_it_comes_back(tmp_path: Path) -> None:
    path = clips.colour_clip(tmp_path / "film.avi", 3, codec="mpeg4", clock=Fraction(1, 10))
    store = Store(tmp_path / "data")
    film = store.add_file("local", "film.avi", path)
    clip = film.media
    assert isinstance(clip, Clip)
    how_to_play(clip)  # known, so that the copy begins at once
    copies = PlayableCopies(store)
    store.remove_file("local", film.id)
    copies.state(clip)
    wait_until(lambda: copies._copies.known(clip.digest) is None)
    store.add_file("local", "film.avi", path)
    wait_until(lambda: copies.state(clip).play == "ready", 60)
    copies.close()
    store.close()


def test_asyncio_is_not_blocked_by_an_upload(site: Site, made: Path) -> None:
    """Small requests answer while a slow client uploads."""

    async def scene() -> None:
        async def slowly():  # type: ignore[no-untyped-def]
            for _ in range(20):
                yield b"x" * 1000
                await asyncio.sleep(0.01)

        async with httpx.AsyncClient(base_url=site.address, timeout=30) as client:
            upload = asyncio.create_task(client.post("/upload", content=slowly()))
            for _ in range(10):
                assert (await client.get("/media/unknown")).status_code == 404
            assert (await upload).status_code == 400

    in_new_loop(scene())


def test_what_happens_in_a_video_is_told_as_far_as_it_is_known(site: Site, made: Path) -> None:
    film = site.upload(made / "film.mp4")
    wait_until(lambda: site.client.get(f"/storyboard/{film['id']}").json()["state"] == "ready")
    told = site.client.get(f"/storyboard/{film['id']}").json()
    assert told["progress"] == 1 and told["segments"][0][0] == 0
    assert site.store.path_of(film["digest"]).with_name(f"{film['digest']}.storyboard.json").exists()
    paper = site.upload(made / "paper.pdf")
    assert "not a video" in site.error(site.client.get(f"/storyboard/{paper['id']}"), 404)
