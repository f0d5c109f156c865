"""What a file is, judged by its content and never by its name, and the value it becomes."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import Any, BinaryIO

from qwen3vl_webui.errors import MediaError
from qwen3vl_webui.media import animation, document, image, sandbox, subtitles
from qwen3vl_webui.media.values import Clip, Document, Image, Subtitles

HEAD = 8192  # bytes looked at to name what a file is
READABLE = "upload a picture (JPEG, PNG, WebP, GIF, BMP, TIFF, AVIF), a video (MP4, MOV, MKV, WebM, ...) or a PDF"

# What people upload by mistake: (offset, bytes there, what it is and what to do).
FOREIGN = (
    (0, b"\xff\x0a", "a JPEG XL picture, which cannot be read here; save it as JPEG or PNG and upload that"),
    (4, b"JXL \r\n", "a JPEG XL picture, which cannot be read here; save it as JPEG or PNG and upload that"),
    (4, b"jP  \r\n", "a JPEG 2000 picture, which cannot be read here; save it as JPEG or PNG and upload that"),
    (0, b"8BPS", "a Photoshop file, which cannot be read here; save it as PNG and upload that"),
    (0, b"\x00\x00\x01\x00", "an icon file, which cannot be read here; save it as PNG and upload that"),
    (0, b"%!PS", "a PostScript file, which cannot be read here; save it as PDF and upload that"),
    (0, b"PK\x03\x04", "an office document or an archive; save it as PDF, or unpack it, and upload that"),
    (0, b"\xd0\xcf\x11\xe0", "an old office document; save it as PDF and upload that"),
    (0, b"Rar!", "an archive; unpack it and upload what is inside"),
    (0, b"7z\xbc\xaf", "an archive; unpack it and upload what is inside"),
    (0, b"\x1f\x8b", "an archive; unpack it and upload what is inside"),
    (0, b"ID3", "a sound file without a picture; upload a video, a picture or a PDF"),
    (0, b"fLaC", "a sound file without a picture; upload a video, a picture or a PDF"),
    (8, b"WAVE", "a sound file without a picture; upload a video, a picture or a PDF"),
    (0, b"\x7fELF", "a program; " + READABLE),
    (0, b"MZ", "a program; " + READABLE),
)
PICTURE_MARKS = (b"\x89PNG\r\n", b"\xff\xd8\xff", b"GIF8", b"BM", b"II*\0", b"MM\0*")
HEIF_BRANDS = (b"heic", b"heix", b"hevc", b"hevx", b"heim", b"heis", b"mif1", b"msf1")


def open_upload(path: Path, digest: str | None = None) -> Image | Clip | Document | Subtitles:
    """The file as a value. Raises MediaError with one sentence that says what to do where it cannot be used."""
    from qwen3vl_webui.media import container, video

    judged = sandbox.call(judge, path)
    digest = digest or digest_of(path)
    match judged:
        case ("image", (int(width), int(height))):
            sandbox.check(0 < width <= image.MOST_PIXELS and 0 < height <= image.MOST_PIXELS)
            return Image(path, digest, width, height)
        case ("document", page_sizes):
            return Document(path, digest, document.checked_sizes(page_sizes))
        case ("subtitles", (str(form), int(cues))):
            return subtitles.open_subtitles(path, digest, form, cues)
        case _:
            sandbox.check(isinstance(judged, tuple) and judged[:1] == ("video",))
    try:
        return video.probe(path, digest)
    except MediaError as error:
        if error.sentence == container.REFUSED:  # true of a video, but here it may have been meant as anything
            raise MediaError(f"This kind of file cannot be read; {READABLE}.") from error
        raise


def digest_of(path: Path) -> str:
    """SHA-256 of the file, in hex."""
    try:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise MediaError(sandbox.SENTENCES["missing"]) from error


# In the sandbox.


def judge(file: BinaryIO) -> tuple[str, Any]:
    """The kind of file and its measures. What is neither picture nor PDF is left to `media.video.probe`."""
    size = os.fstat(file.fileno()).st_size
    head = file.read(HEAD)
    if size == 0:
        raise MediaError("This file is empty; save or download it again, then upload it once more.")
    picture = judge_picture(file)
    if picture is not None:
        return ("video", None) if animation.is_animated(file) else ("image", picture)
    if has_pdf_header(file):
        return "document", document.probe_pdf(file)
    spoken = subtitles.judge(file, head, size)
    if spoken is not None:
        return "subtitles", spoken
    refuse_foreign(head)
    if head.startswith(PICTURE_MARKS) or head[4:12] in (b"ftypavif", b"ftypavis"):
        raise MediaError(image.CUT_OFF)
    return "video", None


def judge_picture(file: BinaryIO) -> tuple[int, int] | None:
    """(width, height), or None where the file is no picture of the formats read here."""
    from PIL import UnidentifiedImageError

    file.seek(0)
    try:
        return image.probe_picture(file)
    except UnidentifiedImageError:
        return None


def has_pdf_header(file: BinaryIO) -> bool:
    """Whether it may be a PDF: junk, even a whole picture, may stand before the header."""
    file.seek(0)
    return b"%PDF-" in file.read(1 << 20)  # hours of film do not fit the address space, so no mmap


def refuse_foreign(head: bytes) -> None:
    """Raise MediaError with a sentence that names what this is, where it is certainly none of what is read here."""
    if head[4:8] == b"ftyp" and head[8:12] in HEIF_BRANDS:
        raise MediaError("This is a HEIC picture, which cannot be read here; save it as JPEG and upload that.")
    for offset, mark, what in FOREIGN:
        if head.startswith(mark, offset):
            raise MediaError(f"This is {what}.")
    text = as_text(head)
    if text is None:
        return
    start = text.lstrip("\ufeff \t\r\n").lower()
    if "<svg" in start[:2000] and start.startswith("<"):
        raise MediaError("This is an SVG drawing, which cannot be read here; save it as PNG and upload that.")
    if start.startswith(("<!doctype html", "<html")):
        raise MediaError("This is a web page, not a picture or video; save the picture itself, or print it to PDF.")
    if start.startswith(("ffconcat", "#extm3u", "v=0")) or "<mpd" in start[:2000]:
        raise MediaError("This is a playlist that names other files; upload the video itself.")
    raise MediaError(f"This is a text file; paste its text into your question, or {READABLE}.")


def as_text(head: bytes) -> str | None:
    """The bytes as text, or None where they are binary."""
    if head.startswith((b"\xff\xfe", b"\xfe\xff")):
        return head.decode("utf-16", "replace")
    if any(byte < 32 and byte not in b"\t\n\f\r\x1b" for byte in head):
        return None
    return head.decode("utf-8", "replace")
