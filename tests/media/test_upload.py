from __future__ import annotations

import hashlib
import struct
from collections.abc import Iterator
from pathlib import Path

import av
import numpy as np
import pytest

from qwen3vl_webui.errors import MediaError
from qwen3vl_webui.media import children, document, image, sandbox, upload
from qwen3vl_webui.media.upload import digest_of, open_upload
from qwen3vl_webui.media.values import Clip, Document, Image
from tests.clips import colour_clip, pdf, picture, png
from tests.media import confined


def written(path: Path, raw: bytes) -> Path:
    path.write_bytes(raw)
    return path


def brand(name: bytes) -> bytes:
    return struct.pack(">I", 24) + b"ftyp" + name + bytes(4) + name + b"mif1" + bytes(100)


@pytest.mark.parametrize("name", ["a.png", "a.mp4", "a.pdf", "a", "..png\n%d"])
def test_the_name_says_nothing_about_the_kind(name: str, tmp_path: Path) -> None:
    assert isinstance(open_upload(picture(tmp_path / name, "JPEG")), Image)
    assert isinstance(open_upload(pdf(tmp_path / "made", ["text"]).replace(tmp_path / name)), Document)
    assert isinstance(open_upload(colour_clip(tmp_path / "made.mp4", 2).replace(tmp_path / name)), Clip)


def test_the_digest_is_of_the_content(tmp_path: Path) -> None:
    path = png(tmp_path / "a")
    assert open_upload(path).digest == digest_of(path) == hashlib.sha256(path.read_bytes()).hexdigest()
    assert open_upload(path, "known").digest == "known"


@pytest.mark.parametrize(
    ("raw", "says"),
    [
        (b"", "is empty"),
        (b"hello\n", "is a text file"),
        ("你好，世界\n".encode() * 3000, "is a text file"),
        ("你好".encode("utf-16"), "is a text file"),
        (b"BMW, 3 doors\n", "is a text file"),
        (b"<!DOCTYPE html><html><body>", "is a web page"),
        (b"\n <html>", "is a web page"),
        (b'<?xml version="1.0"?>\n<svg xmlns="http://www.w3.org/2000/svg"/>', "SVG"),
        (b"ffconcat version 1.0\nfile other.mp4\n", "is a playlist"),
        (b"#EXTM3U\n#EXTINF:1,\nother.ts\n", "is a playlist"),
        (b"v=0\r\no=- 0 0 IN IP4 127.0.0.1\r\ns=x\r\nc=IN IP4 127.0.0.1\r\n", "is a playlist"),
        (brand(b"heic"), "HEIC"),
        (brand(b"mif1"), "HEIC"),
        (b"\xff\x0a" + bytes(range(256)), "JPEG XL"),
        (b"\0\0\0\x0cJXL \r\n\x87\n" + bytes(100), "JPEG XL"),
        (b"\0\0\0\x0cjP  \r\n\x87\n" + bytes(100), "JPEG 2000"),
        (b"PK\x03\x04" + bytes(100), "office document or an archive"),
        (b"8BPS\0\x01" + bytes(100), "Photoshop"),
        (b"\0\0\x01\0\0\0" + bytes(100), "icon"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n", "PostScript"),
        (b"ID3\x04" + bytes(100), "sound"),
        (b"\x7fELF" + bytes(100), "program"),
        (b"\x89PNG\r\n\x1a\n" + bytes(100), "picture is damaged"),
        (b"\xff\xd8\xff\xe0" + bytes(100), "picture is damaged"),
        (brand(b"avif"), "picture is damaged"),
        (bytes(5000), "upload a picture"),
        (np.random.default_rng(3).bytes(5000), "upload a picture"),
        (b"%PDF-1.7\n%", "PDF"),
    ],
)
@pytest.mark.parametrize("name", ["upload.png", "upload.mp4"])
def test_what_cannot_be_used_is_refused_in_a_sentence(raw: bytes, says: str, name: str, tmp_path: Path) -> None:
    with pytest.raises(MediaError, match=says) as caught:
        open_upload(written(tmp_path / name, raw))
    sentence = caught.value.sentence
    assert sentence[0].isupper() and sentence.endswith(".") and "\n" not in sentence and "Error" not in sentence


def test_sound_alone_is_refused(tmp_path: Path) -> None:
    with av.open(str(tmp_path / "a.mp4"), "w") as container:
        stream = container.add_stream("aac", rate=48_000)
        for start in range(0, 48_000, 1024):
            frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
            frame.sample_rate, frame.pts = 48_000, start
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    with pytest.raises(MediaError, match="sound"):
        open_upload(tmp_path / "a.mp4")


@pytest.mark.parametrize(
    "make",
    [
        lambda other: b"ffconcat version 1.0\nfile %s\n" % other.name.encode(),
        lambda other: b"ffconcat version 1.0\nfile '%s'\n" % str(other).encode(),
        lambda other: b"#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\n%s\n" % other.name.encode(),
        lambda other: b"#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\nfile://%s\n" % str(other).encode(),
        # A binary byte, so that it is not taken for text here and FFmpeg itself must refuse it.
        lambda other: b"ffconcat version 1.0\nfile %s\n#\x00\x01\x02\n" % other.name.encode(),
        lambda other: b"#EXTM3U\n#EXTINF:9,\n%s\n#\x00\x01\x02\n" % other.name.encode(),
    ],
    ids=["ffconcat", "ffconcat by path", "m3u8", "m3u8 by address", "binary ffconcat", "binary m3u8"],
)
def test_a_file_that_names_another_never_reaches_it(
    make: object, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = colour_clip(tmp_path / "other.mp4", 3)
    monkeypatch.chdir(tmp_path)
    assert callable(make)
    for name in ("upload.mp4", "upload.m3u8", "upload"):
        with pytest.raises(MediaError):
            open_upload(written(tmp_path / name, make(other)))


def test_a_picture_that_is_also_a_pdf_is_the_picture_it_begins_with(tmp_path: Path) -> None:
    both = picture(tmp_path / "a", "JPEG").read_bytes() + pdf(tmp_path / "b", ["hidden"]).read_bytes()
    media = open_upload(written(tmp_path / "both.pdf", both))
    assert isinstance(media, Image)
    assert image.read_pixels(media).shape == (48, 64, 3)


def test_a_film_larger_than_any_picture_may_be_is_opened(tmp_path: Path) -> None:
    path = colour_clip(tmp_path / "a.mp4", 2)
    with open(path, "r+b") as file:
        file.truncate(3 << 30)  # sparse, and more than the child's address space
    assert isinstance(open_upload(path, "digest"), Clip)


@pytest.mark.parametrize("path", ["absent", "."])
def test_a_path_without_a_file_is_a_sentence(path: str, tmp_path: Path) -> None:
    with pytest.raises(MediaError):
        open_upload(tmp_path / path)
    with pytest.raises(MediaError):
        digest_of(tmp_path / path)


@pytest.fixture(scope="module")
def trusting() -> Iterator[children.ForkServer]:
    server = children.ForkServer(("qwen3vl_webui.media", "tests.media"))
    yield server
    server.close()


@pytest.mark.parametrize("sent", confined.ODD_RESULTS)
def test_results_of_a_child_that_was_taken_over_are_refused(
    sent: str, trusting: children.ForkServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = written(tmp_path / "a", sent.encode())
    monkeypatch.setattr(sandbox, "server", trusting)
    for room, name in ((upload, "judge"), (image, "read_picture"), (image, "draw_picture"), (document, "draw_page")):
        monkeypatch.setattr(room, name, confined.anything)
    monkeypatch.setattr(document, "find_on_page", confined.anything)
    monkeypatch.setattr(document, "text_of_pages", confined.anything_in_turn)
    picture, paper = Image(path, sent, 2, 2), Document(path, sent, ((10.0, 10.0),))
    asked = [
        lambda: open_upload(path),
        lambda: image.read_pixels(picture),
        lambda: image.display_image(picture, 10),
        lambda: document.page_image(paper, 1, 10),
        lambda: document.find_text(paper, 1, "words"),
    ]
    if sent != "text":  # which is what it should be
        asked.append(lambda: document.read_texts(paper))
    for ask in asked:
        with pytest.raises(MediaError, match="crashed"):
            ask()
