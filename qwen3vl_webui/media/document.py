"""Pages of a PDF: their text, where words stand, and their pictures, all read in the sandbox.

Pages are 1-based. PyMuPDF is imported where it is used: only the sandbox's child should ever run it on an upload.
"""

from __future__ import annotations

import contextlib
import io
import math
import mmap
import os
import unicodedata
from collections.abc import Generator
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np

from qwen3vl_webui.errors import MediaError
from qwen3vl_webui.media import sandbox
from qwen3vl_webui.media.values import Document, Image

if TYPE_CHECKING:
    import pymupdf

MOST_PAGES = 2_000
MOST_BYTES = 500_000_000  # the file is mapped into the child's address space
MOST_PIXELS = 64_000_000
MOST_CHARACTERS = 200_000  # on one page; a page of small print has 10,000
MOST_CHARACTERS_IN_ALL = 20_000_000
POINTS_PER_INCH = 72
NATURAL_DPI = 144
A4 = (595.0, 842.0)
LONGEST_DISPLAY = 4_096

Box = tuple[int, int, int, int]


def read_text(document: Document, page: int) -> str:
    """The text layer of a page; empty where it is a scan. Raises MediaError."""
    return _read_text(document.path, document.digest, check_page(document, page))


def read_texts(document: Document) -> list[str]:
    """The text layer of every page, in one child; a page that cannot be read has none. Raises MediaError.

    The texts of the last few documents are kept in memory.
    """
    return list(_read_texts(document.path, document.digest, document.pages))


def find_text(document: Document, page: int, words: str) -> list[Box]:
    """Where `words` stand on a page: a box per line, (left, top, right, bottom) in thousandths of the upright page.

    Case, spaces, line breaks, hyphens and punctuation do not matter. Empty where the words are not there.
    """
    found = sandbox.call(find_on_page, document.path, check_page(document, page), words)
    sandbox.check(isinstance(found, list) and all(is_box(box) for box in found))
    return found


def page_image(document: Document, page: int, width: int) -> bytes:
    """A page as WebP, `width` pixels wide."""
    points_wide, points_high = document.page_sizes[check_page(document, page) - 1]
    width = max(1, min(width, LONGEST_DISPLAY))
    height = max(1, min(round(width * points_high / points_wide), 4 * LONGEST_DISPLAY))
    return checked_webp(sandbox.call(draw_page, document.path, page, width, height))


def page_as_image(document: Document, page: int) -> Image:
    """A page as the model is shown it. Width and height are the page's at 144 dpi."""
    width, height = document.page_sizes[check_page(document, page) - 1]
    scale = min(NATURAL_DPI / POINTS_PER_INCH, (MOST_PIXELS / (width * height)) ** 0.5)
    natural = max(1, round(width * scale)), max(1, round(height * scale))
    return Image(document.path, document.digest, *natural, page=page)


def check_page(document: Document, page: int) -> int:
    if not 1 <= page <= document.pages:
        raise MediaError(f"This PDF has no page {page}; it has {document.pages}.")
    return page


def checked_webp(drawn: Any) -> bytes:
    sandbox.check(isinstance(drawn, bytes) and drawn[:4] == b"RIFF" and drawn[8:12] == b"WEBP")
    return drawn


def checked_sizes(sizes: Any) -> tuple[tuple[float, float], ...]:
    sandbox.check(isinstance(sizes, list) and 0 < len(sizes) <= MOST_PAGES)
    sandbox.check(all(isinstance(size, tuple) and len(size) == 2 for size in sizes))
    sandbox.check(all(isinstance(side, float) and 0 < side < math.inf for size in sizes for side in size))
    return tuple(sizes)


def is_box(box: Any) -> bool:
    return isinstance(box, tuple) and len(box) == 4 and all(isinstance(side, int) and 0 <= side <= 1000 for side in box)


@lru_cache(maxsize=64)
def _read_text(path: Path, digest: str, page: int) -> str:
    text = sandbox.call(text_of_page, path, page)
    sandbox.check(isinstance(text, str) and len(text) <= MOST_CHARACTERS)
    return text


@lru_cache(maxsize=4)
def _read_texts(path: Path, digest: str, pages: int) -> tuple[str, ...]:
    texts: list[str] = []
    left = MOST_CHARACTERS_IN_ALL
    with contextlib.closing(
        sandbox.stream(text_of_pages, path, limits=sandbox.Limits(cpu_seconds=20 + pages // 5))
    ) as results:
        for text in results:
            sandbox.check(isinstance(text, str) and len(text) <= MOST_CHARACTERS and len(texts) < pages)
            texts.append(text)
            left -= len(text)
            if left < 0:
                raise MediaError("This PDF holds more than 20 million characters; split it and upload the parts.")
    sandbox.check(len(texts) == pages)
    return tuple(texts)


# In the sandbox.


@contextlib.contextmanager
def open_pdf(file: BinaryIO) -> Generator[pymupdf.Document, None, None]:
    """Raises MediaError with a sentence where the file is not a PDF that can be read."""
    import pymupdf

    pymupdf.TOOLS.mupdf_display_errors(False)
    pymupdf.TOOLS.mupdf_display_warnings(False)
    if os.fstat(file.fileno()).st_size > MOST_BYTES:
        raise MediaError(f"This PDF is larger than {MOST_BYTES // 1_000_000} MB; split it and upload the parts.")
    raw = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
    try:
        document = pymupdf.open(stream=raw, filetype="pdf")
    except MemoryError:
        raise
    except Exception as error:  # RuntimeError, IndexError and MuPDF's own types
        raise MediaError("This PDF is damaged and cannot be opened; save or download it again.") from error
    with document:
        if not document.is_pdf:  # naming the type does not force it: JPEG, SVG and HTML open too
            raise MediaError("This is not a PDF; upload a PDF, a picture or a video.")
        if document.needs_pass:
            raise MediaError("This PDF asks for a password; save a copy without one and upload that.")
        yield document


@contextlib.contextmanager
def open_page(file: BinaryIO, page: int) -> Generator[pymupdf.Page, None, None]:
    with open_pdf(file) as document:
        try:
            yield document[page - 1]
        except (MediaError, MemoryError):
            raise
        except Exception as error:
            raise MediaError(f"Page {page} of this PDF is damaged and cannot be read; the other pages can.") from error


def probe_pdf(file: BinaryIO) -> list[tuple[float, float]]:
    """(width, height) in points of every page. Raises MediaError with a sentence where the PDF cannot be used."""
    with open_pdf(file) as document:
        try:
            pages = document.page_count
        except Exception as error:
            raise MediaError("This PDF is damaged: its pages cannot be counted; save or download it again.") from error
        if pages == 0:
            raise MediaError("This PDF has no pages; save or download it again.")
        if pages > MOST_PAGES:
            raise MediaError(f"This PDF has {pages} pages, more than {MOST_PAGES}; split it and upload the parts.")
        return [size_of_page(document, index) for index in range(pages)]


def size_of_page(document: pymupdf.Document, index: int) -> tuple[float, float]:
    """Upright, in points. A damaged page counts as A4: it must not cost the others."""
    try:
        rect = document[index].rect
        width, height = float(rect.width), float(rect.height)
    except MemoryError:
        raise
    except Exception:
        return A4
    if not (0 < width < math.inf and 0 < height < math.inf):
        return A4
    return width, height


def text_of_page(file: BinaryIO, page: int) -> str:
    with open_page(file, page) as opened:
        return plain_text(opened)


def text_of_pages(file: BinaryIO) -> Generator[str, None, None]:
    with open_pdf(file) as document:
        for index in range(document.page_count):
            try:
                yield plain_text(document[index])
            except (MediaError, MemoryError, OSError):
                raise
            except Exception:  # a damaged page has no text; showing it says so
                yield ""


def plain_text(page: pymupdf.Page) -> str:
    text = page.get_text("text")
    if len(text) > MOST_CHARACTERS:
        raise MediaError("A page of this PDF holds more than 200,000 characters; upload a PDF with normal pages.")
    return text.replace("\0", "").strip()


def render_page(file: BinaryIO, page: int, width: int, height: int) -> np.ndarray:
    """(height, width, 3) uint8 RGB: the whole page at exactly this size, on white."""
    import pymupdf

    if width < 1 or height < 1 or width * height > MOST_PIXELS:
        raise MediaError(f"A page cannot be drawn at {width} x {height} pixels; ask for a smaller size.")
    with open_page(file, page) as opened:
        rect = opened.rect
        scale = pymupdf.Matrix(width / rect.width, height / rect.height)
        pixmap = opened.get_pixmap(matrix=scale, colorspace=pymupdf.csRGB, alpha=False)
        drawn = np.frombuffer(pixmap.samples_mv, np.uint8).reshape(pixmap.height, pixmap.stride)
        drawn = drawn[:height, : pixmap.width * 3].reshape(-1, pixmap.width, 3)[:, :width]
        if drawn.shape[:2] == (height, width):
            return drawn.copy()
        exact = np.full((height, width, 3), 255, np.uint8)  # rounding may cost the last row or column
        exact[: drawn.shape[0], : drawn.shape[1]] = drawn
        return exact


def draw_page(file: BinaryIO, page: int, width: int, height: int) -> bytes:
    """The page as WebP."""
    from PIL import Image as pillow

    drawn = io.BytesIO()
    pillow.fromarray(render_page(file, page, width, height)).save(drawn, "WEBP", quality=85, method=2)
    return drawn.getvalue()


def find_on_page(file: BinaryIO, page: int, words: str) -> list[Box]:
    wanted = "".join(normal(character) for character in words)
    if not wanted:
        return []
    with open_page(file, page) as opened:
        letters, boxes, lines, starts = letters_of(opened)
        found: list[Box] = []
        at = letters.find(wanted)
        while at >= 0:
            end = at + len(wanted)
            if is_border(letters, starts, at) and is_border(letters, starts, end):
                found += line_boxes(opened, boxes[at:end], lines[at:end])
                at = letters.find(wanted, end)
            else:
                at = letters.find(wanted, at + 1)
        return found


def letters_of(page: pymupdf.Page) -> tuple[str, list[tuple[float, ...]], list[int], list[bool]]:
    """Each letter and digit of the page, its box in points, its line, and whether something else stood before it."""
    letters: list[str] = []
    boxes: list[tuple[float, ...]] = []
    lines: list[int] = []
    starts: list[bool] = []
    line = 0
    for block in page.get_text("rawdict")["blocks"]:
        for row in block.get("lines", ()):
            line += 1
            fresh = True
            for character in (character for span in row["spans"] for character in span["chars"]):
                for letter in normal(character["c"]):
                    letters.append(letter)
                    boxes.append(character["bbox"])
                    lines.append(line)
                    starts.append(fresh)
                    fresh = False
                if not normal(character["c"]):
                    fresh = True
    return "".join(letters), boxes, lines, starts


def normal(character: str) -> str:
    """What counts in a comparison: letters and digits, without case, width and ligatures."""
    folded = unicodedata.normalize("NFKC", character).casefold()
    return "".join(letter for letter in folded if letter.isalnum())


def is_border(letters: str, starts: list[bool], at: int) -> bool:
    """Whether a word may begin or end here: never inside a word of an alphabet, anywhere in Chinese or Japanese."""
    if at in (0, len(letters)) or starts[at]:
        return True
    return any(unicodedata.east_asian_width(letter) in "WF" for letter in letters[at - 1 : at + 1])


def line_boxes(page: pymupdf.Page, boxes: list[tuple[float, ...]], lines: list[int]) -> list[Box]:
    import pymupdf

    width, height = page.rect.width, page.rect.height
    found: list[Box] = []
    for line in dict.fromkeys(lines):
        rows = np.array([box for box, number in zip(boxes, lines, strict=True) if number == line])
        corners = rows[:, 0].min(), rows[:, 1].min(), rows[:, 2].max(), rows[:, 3].max()
        rect = pymupdf.Rect(corners) * page.rotation_matrix  # text is measured on the page before it is turned
        thousandths = np.array([rect.x0 / width, rect.y0 / height, rect.x1 / width, rect.y1 / height]) * 1000
        left, top, right, bottom = (int(value) for value in np.clip(thousandths.round(), 0, 1000))
        found.append((left, top, right, bottom))
    return found
