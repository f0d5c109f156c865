from __future__ import annotations

import io
import struct
import time
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image as Pillow
from PIL import ImageCms

from qwen3vl_webui.errors import MediaError
from qwen3vl_webui.media import document, image
from qwen3vl_webui.media.upload import open_upload
from qwen3vl_webui.media.values import Image
from tests.clips import BLUE, GREEN, RED, YELLOW, pdf, picture, png, quarters

FLIP, MIRROR = Pillow.Transpose.FLIP_TOP_BOTTOM, Pillow.Transpose.FLIP_LEFT_RIGHT
TURN = Pillow.Transpose.ROTATE_90  # counterclockwise
# What a camera held like this stores: the steps from the upright picture to the stored one.
STORED = {
    1: [],
    2: [MIRROR],
    3: [MIRROR, FLIP],
    4: [FLIP],
    5: [TURN, FLIP],
    6: [TURN],
    7: [TURN, MIRROR],
    8: [TURN] * 3,
}


def opened(path: Path) -> Image:
    media = open_upload(path)
    assert isinstance(media, Image)
    return media


def pixels(path: Path) -> np.ndarray:
    media = opened(path)
    read = image.read_pixels(media)
    assert read.dtype == np.uint8 and read.shape == (media.height, media.width, 3)
    return read


def corners(read: np.ndarray) -> list[list[int]]:
    """The middles of the quarters: red, green, blue, yellow where the picture is upright."""
    height, width = read.shape[:2]
    return [read[height * y // 4, width * x // 4].tolist() for y in (1, 3) for x in (1, 3)]


def assert_quarters(read: np.ndarray, tolerance: int = 12) -> None:
    assert np.abs(np.array(corners(read)) - [RED, GREEN, BLUE, YELLOW]).max() <= tolerance, corners(read)


def save(path: Path, array: np.ndarray, form: str = "PNG", **options: Any) -> Path:
    Pillow.fromarray(array).save(path, form, **options)
    return path


@pytest.mark.parametrize("form", image.FORMATS)
def test_each_format_is_read_whatever_its_name(form: str, tmp_path: Path) -> None:
    path = picture(tmp_path / "upload.jpg", form, 70, 50)
    assert (opened(path).width, opened(path).height) == (70, 50)
    assert_quarters(pixels(path))


@pytest.mark.parametrize("form", ["PNG", "JPEG", "WEBP", "TIFF", "AVIF"])
@pytest.mark.parametrize("orientation", STORED)
def test_pictures_are_upright(form: str, orientation: int, tmp_path: Path) -> None:
    drawn = Pillow.fromarray(quarters(96, 64))
    for step in STORED[orientation]:
        drawn = drawn.transpose(step)
    exif = Pillow.Exif()
    exif[0x0112] = orientation
    drawn.save(tmp_path / "a", form, exif=exif)
    media = opened(tmp_path / "a")
    assert (media.width, media.height) == (96, 64)
    assert_quarters(image.read_pixels(media))
    assert_quarters(shown(image.display_image(media, 48)))


@pytest.mark.parametrize(
    "exif", [b"Exif\0\0", b"Exif\0\0MM\0*\0\0\0\x08\0\x05", b"Exif\0\0II*\0\xff\xff\xff\xff", b"nonsense"]
)
def test_broken_exif_does_not_cost_the_picture(exif: bytes, tmp_path: Path) -> None:
    assert_quarters(pixels(picture(tmp_path / "a", "JPEG", exif=exif)))


def in_mode(mode: str) -> Pillow.Image:
    drawn = Pillow.fromarray(quarters())
    if mode == "P":
        return drawn.quantize(16)
    if mode != "LAB":
        return drawn.convert(mode)
    srgb, lab = ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB")
    converted = ImageCms.profileToProfile(drawn, srgb, lab, outputMode="LAB")
    assert converted is not None
    return converted


@pytest.mark.parametrize(
    ("mode", "form", "options"),
    [
        ("CMYK", "JPEG", {}),
        ("CMYK", "TIFF", {}),
        ("YCbCr", "TIFF", {"compression": "jpeg"}),
        ("P", "PNG", {}),
        ("P", "GIF", {}),
        ("P", "BMP", {}),
        ("RGBA", "WEBP", {}),
        ("LAB", "TIFF", {}),
    ],
)
def test_colours_of_every_mode_become_rgb(mode: str, form: str, options: dict[str, Any], tmp_path: Path) -> None:
    in_mode(mode).save(tmp_path / "a", form, **options)
    assert_quarters(pixels(tmp_path / "a"))


@pytest.mark.parametrize(
    ("array", "form"),
    [
        (np.array([[0, 257, 32896, 65535]], np.uint16), "PNG"),
        (np.array([[0, 257, 32896, 65535]], np.uint16), "TIFF"),
        (np.array([[0, 257, 32896, 65535]], ">u2"), "TIFF"),
        (np.array([[0, 257, 32896, 65535]], np.int32), "TIFF"),
        (np.array([[0, 1 / 255, 128 / 255, 1]], np.float32), "TIFF"),
        (np.array([[0, 1, 128, 255]], np.float32), "TIFF"),
        (np.array([[-1000, -996, -488, 20]], np.float32), "TIFF"),
    ],
    ids=["16-bit PNG", "16-bit TIFF", "big-endian TIFF", "32-bit TIFF", "float to 1", "float to 255", "below zero"],
)
def test_deep_grey_levels_keep_their_scale(array: np.ndarray, form: str, tmp_path: Path) -> None:
    read = pixels(save(tmp_path / "a", array, form))
    assert read[0].tolist() == [[0] * 3, [1] * 3, [128] * 3, [255] * 3]


def test_grey_that_is_not_a_number_is_black(tmp_path: Path) -> None:
    read = pixels(save(tmp_path / "a", np.array([[np.nan, np.inf, 1.0]], np.float32), "TIFF"))
    assert read[0, :, 0].tolist() == [0, 0, 255]


@pytest.mark.parametrize("form", ["PNG", "WEBP", "TIFF", "AVIF"])
def test_what_is_transparent_is_white(form: str, tmp_path: Path) -> None:
    array = np.zeros((8, 8, 4), np.uint8)
    array[:, 4:] = (10, 20, 30, 255)
    options = {} if form in ("PNG", "TIFF") else {"lossless": True} if form == "WEBP" else {"quality": 100}
    read = pixels(save(tmp_path / "a", array, form, **options)).astype(int)
    assert np.abs(read[0, 0] - 255).max() <= 3 and np.abs(read[0, 7] - [10, 20, 30]).max() <= 6


def test_half_transparent_is_half_white(tmp_path: Path) -> None:
    read = pixels(save(tmp_path / "a", np.full((2, 2, 4), (0, 0, 0, 128), np.uint8)))
    assert 125 <= read[0, 0, 0] <= 129


def test_a_transparent_colour_of_a_palette_or_of_grey_is_white(tmp_path: Path) -> None:
    drawn = Pillow.new("P", (4, 4), 1)
    drawn.putpalette([0, 0, 0, 200, 0, 0, 0, 0, 200])
    drawn.putpixel((0, 0), 2)
    drawn.save(tmp_path / "palette", "PNG", transparency=2)
    Pillow.new("L", (4, 4), 7).save(tmp_path / "grey", "PNG", transparency=7)
    Pillow.new("LA", (4, 4), (7, 0)).save(tmp_path / "grey with alpha", "PNG")
    assert pixels(tmp_path / "palette")[0, :2].tolist() == [[255] * 3, [200, 0, 0]]
    assert pixels(tmp_path / "grey").min() == pixels(tmp_path / "grey with alpha").min() == 255


def test_one_bit_pictures_are_black_and_white(tmp_path: Path) -> None:
    drawn = Pillow.new("1", (4, 4), 1)
    drawn.putpixel((1, 0), 0)
    drawn.save(tmp_path / "a", "TIFF", compression="group4")
    assert pixels(tmp_path / "a")[0, :2, 0].tolist() == [255, 0]


@pytest.mark.parametrize("form", ["PNG", "TIFF", "AVIF"])  # GIF and WebP: tests/media/test_animation.py
def test_an_animation_is_its_first_frame(form: str, tmp_path: Path) -> None:
    frames = [Pillow.fromarray(quarters()), *(Pillow.new("RGB", (64, 48), (n, n, n)) for n in range(0, 250, 50))]
    frames[0].save(tmp_path / "a", form, save_all=True, append_images=frames[1:])
    assert_quarters(pixels(tmp_path / "a"))


def test_a_stereo_camera_s_mpo_is_its_first_picture(tmp_path: Path) -> None:
    second = Pillow.new("RGB", (64, 48))
    picture(tmp_path / "a", "MPO", save_all=True, append_images=[second])
    assert_quarters(pixels(tmp_path / "a"))


@pytest.mark.parametrize("size", [(1, 1), (1, 200), (200, 1), (2, 399)])
def test_tiny_and_narrow_pictures_are_read(size: tuple[int, int], tmp_path: Path) -> None:
    assert pixels(png(tmp_path / "a", *size)).shape == (size[1], size[0], 3)


@pytest.mark.parametrize("size", [(1, 201), (4020, 20), (65_500, 16)])
def test_pictures_over_200_times_as_long_as_wide_are_refused(size: tuple[int, int], tmp_path: Path) -> None:
    with pytest.raises(MediaError, match="cut it into parts"):
        open_upload(png(tmp_path / "a", *size))


@pytest.mark.parametrize("form", image.FORMATS)
@pytest.mark.parametrize("kept", [0.02, 0.3, 0.9])
def test_a_picture_that_is_cut_off_is_refused(form: str, kept: float, tmp_path: Path) -> None:
    noise = np.random.default_rng(1).integers(0, 255, (200, 300, 3), np.uint8)
    raw = save(tmp_path / "whole", noise, form).read_bytes()
    (tmp_path / "cut").write_bytes(raw[: round(len(raw) * kept)])
    with pytest.raises(MediaError) as caught:
        image.read_pixels(opened(tmp_path / "cut"))
    assert caught.value.sentence.endswith(".")


def blank_png(width: int, height: int, *chunks: tuple[bytes, bytes]) -> bytes:
    """A black 1-bit picture without holding its pixels."""
    packer, row = zlib.compressobj(9), bytes(1 + (width + 7) // 8)
    rows = b"".join(packer.compress(row * 1000) for _ in range(height // 1000))
    rows += packer.compress(row * (height % 1000)) + packer.flush()
    head = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    raw = b"\x89PNG\r\n\x1a\n"
    for kind, body in ((b"IHDR", head), *chunks, (b"IDAT", rows), (b"IEND", b"")):
        raw += struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
    return raw


def huge_gif() -> bytes:
    small = io.BytesIO()
    Pillow.new("L", (10, 10)).save(small, "GIF")
    raw = bytearray(small.getvalue())
    raw[6:10] = struct.pack("<HH", 60_000, 60_000)
    return bytes(raw)


@pytest.mark.parametrize(
    "make",
    [lambda: blank_png(30_000, 30_000), lambda: blank_png(8_001, 8_000), huge_gif],
    ids=["900 MP", "64 MP", "GIF"],
)
def test_a_picture_of_too_many_pixels_is_refused_before_it_is_decoded(
    make: Callable[[], bytes], tmp_path: Path
) -> None:
    (tmp_path / "a").write_bytes(make())
    started = time.monotonic()
    with pytest.raises(MediaError, match="64 million pixels"):
        open_upload(tmp_path / "a")
    assert time.monotonic() - started < 5


def test_a_picture_of_just_enough_pixels_is_read(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(blank_png(8_000, 8_000))
    assert pixels(tmp_path / "a").max() == 0


def test_a_large_picture_with_alpha_and_a_turn_fits_in_memory(tmp_path: Path) -> None:
    exif = Pillow.Exif()
    exif[0x0112] = 6
    Pillow.new("RGBA", (8_000, 7_999), (0, 0, 0, 0)).save(tmp_path / "a", "PNG", compress_level=1, exif=exif)
    assert image.read_pixels(opened(tmp_path / "a")).shape == (8_000, 7_999, 3)


def test_a_text_chunk_that_unpacks_to_64_mb_is_refused(tmp_path: Path) -> None:
    chunk = b"Comment\0\0" + zlib.compress(bytes(64 << 20))
    (tmp_path / "a").write_bytes(blank_png(8, 8, (b"zTXt", chunk)))
    with pytest.raises(MediaError, match="damaged"):
        open_upload(tmp_path / "a")


def test_a_picture_file_over_50_mb_is_refused(tmp_path: Path) -> None:
    path = png(tmp_path / "a")
    with open(path, "r+b") as file:
        file.truncate(image.MOST_BYTES + 1)
    with pytest.raises(MediaError, match="larger than 50 MB"):
        open_upload(path)


def shown(raw: bytes) -> np.ndarray:
    drawn = Pillow.open(io.BytesIO(raw), formats=["WEBP"])
    return np.asarray(drawn.convert("RGB"))


def test_the_page_gets_a_small_webp_without_metadata(tmp_path: Path) -> None:
    exif = Pillow.Exif()
    exif[0x010E] = "where I live"
    path = picture(tmp_path / "a", "JPEG", 800, 600, exif=exif, icc_profile=b"profile", comment=b"secret")
    raw = image.display_image(opened(path), 200)
    assert_quarters(shown(raw))
    assert shown(raw).shape == (150, 200, 3)
    assert not Pillow.open(io.BytesIO(raw)).info.get("exif") and b"profile" not in raw and b"live" not in raw


def test_the_page_never_gets_more_pixels_than_there_are(tmp_path: Path) -> None:
    assert shown(image.display_image(opened(png(tmp_path / "a", 64, 48)), 1600)).shape == (48, 64, 3)


def test_a_narrow_picture_can_be_shown_small(tmp_path: Path) -> None:
    assert shown(image.display_image(opened(png(tmp_path / "a", 2, 400)), 100)).shape == (100, 1, 3)


def test_a_page_of_a_pdf_is_read_at_the_size_seen(tmp_path: Path) -> None:
    media = open_upload(pdf(tmp_path / "a", ["one"]))
    assert not isinstance(media, Image)
    page = document.page_as_image(media, 1)
    assert (page.width, page.height) == (1190, 1684)
    assert image.read_pixels(page.at(64, 96)).shape == (96, 64, 3)
    assert image.read_pixels(page).shape == (1684, 1190, 3)
    assert shown(image.display_image(page, 421)).shape == (421, 298, 3)


def test_a_file_that_has_gone_is_a_sentence(tmp_path: Path) -> None:
    media = opened(png(tmp_path / "a"))
    media.path.unlink()
    with pytest.raises(MediaError, match="upload it again"):
        image.read_pixels(media)


@pytest.mark.parametrize("form", image.FORMATS)
def test_damaged_pictures_are_read_or_refused_in_a_sentence(form: str, tmp_path: Path) -> None:
    raw = picture(tmp_path / "whole", form).read_bytes()
    random = np.random.default_rng(7)
    for _ in range(12):
        damaged = bytearray(raw)
        for at in random.integers(0, len(raw), 6):
            damaged[at] = random.integers(256)
        (tmp_path / "a").write_bytes(damaged)
        try:
            media = open_upload(tmp_path / "a")
        except MediaError as error:
            assert error.sentence.endswith(".") and "\n" not in error.sentence
            continue
        if isinstance(media, Image):  # a damaged AVIF may be a video of one picture
            assert image.read_pixels(media).shape == (media.height, media.width, 3)
