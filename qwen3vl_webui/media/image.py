"""Pixels of pictures and PDF pages, always upright RGB, always decoded in the sandbox.

Pillow is imported where it is used: only the sandbox's child should ever run it on an upload.
"""

from __future__ import annotations

import io
import os
import warnings
from typing import TYPE_CHECKING, BinaryIO

import numpy as np

from qwen3vl_webui.errors import MediaError
from qwen3vl_webui.media import sandbox
from qwen3vl_webui.media.document import checked_webp, draw_page, render_page
from qwen3vl_webui.media.values import Image

if TYPE_CHECKING:
    from PIL.Image import Image as Picture

FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "AVIF")  # Pillow reads 43, some of them risky and unused
MOST_PIXELS = 64_000_000
MOST_BYTES = 50_000_000
MOST_RATIO = 200  # of the longer side to the shorter: the model's own limit
DISPLAY_QUALITY = 85

CUT_OFF = "This picture is damaged or incomplete; save or download it again, then upload it once more."
TOO_MANY_PIXELS = (
    f"This picture has more than {MOST_PIXELS // 1_000_000} million pixels; make it smaller and try again."
)


def read_pixels(image: Image) -> np.ndarray:
    """(height, width, 3) uint8 upright RGB. Raises MediaError.

    A picture has its original size, whatever `seen` says; a PDF page is rendered at exactly `image.seen`, or at its
    natural size where that is not planned yet.
    """
    if image.page is not None:
        width, height = image.seen or (image.width, image.height)
        pixels = sandbox.call(render_page, image.path, image.page, width, height)
    else:
        width, height = image.width, image.height
        pixels = sandbox.call(read_picture, image.path)
    sandbox.check(isinstance(pixels, np.ndarray) and pixels.dtype == np.uint8 and pixels.shape == (height, width, 3))
    return pixels


def display_image(image: Image, longest: int) -> bytes:
    """A WebP for the page, its longer side at most `longest` pixels; never larger than the original."""
    if image.page is not None:
        scale = longest / max(image.width, image.height)
        width, height = max(1, round(image.width * scale)), max(1, round(image.height * scale))
        return checked_webp(sandbox.call(draw_page, image.path, image.page, width, height))
    return checked_webp(sandbox.call(draw_picture, image.path, longest))


# In the sandbox.


def probe_picture(file: BinaryIO) -> tuple[int, int]:
    """(width, height) upright. The whole picture is decoded: one that opens now will not fail in a question."""
    return upright(open_picture(file)).size


def read_picture(file: BinaryIO) -> np.ndarray:
    return np.asarray(rgb(upright(open_picture(file))))


def draw_picture(file: BinaryIO, longest: int) -> bytes:
    picture = open_picture(file)
    if picture.format == "JPEG":
        picture.draft(None, (longest, longest))  # decode at half, quarter or eighth where that is enough
    picture = rgb(upright(picture))
    picture.thumbnail((longest, longest))
    return webp(picture)


def webp(picture: Picture) -> bytes:
    """Pixels only: no metadata of the upload comes along."""
    drawn = io.BytesIO()
    picture.info.clear()
    picture.save(drawn, "WEBP", quality=DISPLAY_QUALITY, method=2)
    return drawn.getvalue()


def open_picture(file: BinaryIO) -> Picture:
    """The first frame, not decoded yet. Raises MediaError, and Pillow's UnidentifiedImageError for other files."""
    from PIL import Image as pillow
    from PIL import UnidentifiedImageError

    pillow.MAX_IMAGE_PIXELS = MOST_PIXELS
    warnings.simplefilter("error", pillow.DecompressionBombWarning)  # by default only twice the limit is an error
    try:
        picture = pillow.open(file, formats=FORMATS)
    except (pillow.DecompressionBombWarning, pillow.DecompressionBombError) as error:
        raise MediaError(TOO_MANY_PIXELS) from error
    except (UnidentifiedImageError, MemoryError):
        raise
    except Exception as error:  # a format read here, broken in its header
        raise MediaError(CUT_OFF) from error
    if os.fstat(file.fileno()).st_size > MOST_BYTES:  # asked only now: a film of that size is none of ours
        raise MediaError(f"This picture is larger than {MOST_BYTES // 1_000_000} MB; make it smaller and try again.")
    width, height = picture.size
    if max(width, height) > MOST_RATIO * min(width, height):
        raise MediaError(
            f"This picture is {width} x {height} pixels, more than {MOST_RATIO} times as long as wide; "
            "cut it into parts and upload those."
        )
    return picture


def upright(picture: Picture) -> Picture:
    """The picture decoded, and turned as its EXIF orientation says. Raises MediaError where it is damaged."""
    from PIL import Image as pillow
    from PIL import ImageOps

    try:
        picture.load()
    except (pillow.DecompressionBombWarning, pillow.DecompressionBombError) as error:
        raise MediaError(TOO_MANY_PIXELS) from error
    except MemoryError:
        raise
    except Exception as error:  # decoders raise a dozen types, struct.error and SyntaxError among them
        raise MediaError(CUT_OFF) from error
    try:
        return ImageOps.exif_transpose(picture)
    except MemoryError:
        raise
    except Exception:  # damaged EXIF is common in good pictures: shown as stored, as browsers do
        return picture


def rgb(picture: Picture) -> Picture:
    """8-bit RGB; what is transparent becomes white."""
    from PIL import Image as pillow

    if picture.mode.startswith("I") or picture.mode == "F":
        return pillow.fromarray(eight_bits(np.asarray(picture))).convert("RGB")
    if picture.mode == "LAB":
        return from_lab(picture)
    if picture.has_transparency_data:
        picture = picture.convert("RGBA")
        white = pillow.new("RGB", picture.size, "white")
        white.paste(picture, mask=picture.getchannel("A"))
        return white
    return picture.convert("RGB")


def eight_bits(values: np.ndarray) -> np.ndarray:
    """Grey levels of 16 bits, 32 bits or float as uint8.

    16-bit levels keep their scale (65535 is white), so does float in 0..1; anything wider is stretched to fit, for
    such files say nowhere what white is.
    """
    if values.dtype.itemsize == 2:
        return ((values.astype(np.uint32) + 128) // 257).astype(np.uint8)
    levels = np.nan_to_num(values.astype(np.float32), nan=0.0, posinf=0.0, neginf=0.0)
    low, high = float(levels.min()), float(levels.max())
    if low < 0 or high > 65535:
        levels, white = levels - low, high - low
    elif values.dtype.kind == "f":
        white = next(white for white in (1.0, 255.0, 65535.0) if high <= white)
    else:
        white = 65535.0
    return np.round(levels * (255.0 / (white or 1.0))).astype(np.uint8)


def from_lab(picture: Picture) -> Picture:
    from PIL import ImageCms

    lab, srgb = ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB")
    converted = ImageCms.profileToProfile(picture, lab, srgb, outputMode="RGB")
    assert converted is not None  # None only when converted in place
    return converted
