from __future__ import annotations

import io
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pymupdf
import pytest
from PIL import Image as Pillow

from qwen3vl_webui.errors import MediaError
from qwen3vl_webui.media import document, image, sandbox
from qwen3vl_webui.media.upload import open_upload
from qwen3vl_webui.media.values import Document
from tests.clips import pdf

LECTURE = "第三讲 注意力机制\n他在什么时候打开电脑？"


def opened(path: Path) -> Document:
    media = open_upload(path)
    assert isinstance(media, Document)
    return media


@pytest.fixture
def paper(tmp_path: Path) -> Document:
    return opened(pdf(tmp_path / "paper", ["Attention is all\nyou need, said the exam-\nple.", LECTURE, ""]))


def raw_pdf(*objects: bytes, trailer: bytes = b"") -> bytes:
    """A PDF of these objects, numbered from 1; the first is the catalogue."""
    raw, places = b"%PDF-1.7\n", []
    for number, body in enumerate(objects, 1):
        places.append(len(raw))
        raw += b"%d 0 obj\n%s\nendobj\n" % (number, body)
    table = b"".join(b"%010d 00000 n \n" % place for place in places)
    return raw + (
        b"xref\n0 %d\n0000000000 65535 f \n%strailer\n<</Size %d/Root 1 0 R%s>>\nstartxref\n%d\n%%%%EOF"
        % (len(objects) + 1, table, len(objects) + 1, trailer, len(raw))
    )


def stream(body: bytes, extra: bytes = b"") -> bytes:
    return b"<<%s/Length %d>>\nstream\n%s\nendstream" % (extra, len(body), body)


def one_page(box: bytes = b"0 0 200 100", content: bytes = b"", extra: bytes = b"", *more: bytes) -> bytes:
    page = b"<</Type/Page/Parent 2 0 R/MediaBox[%s]/Contents 4 0 R%s>>" % (box, extra)
    pages = b"<</Type/Pages/Kids[3 0 R]/Count 1>>"
    return raw_pdf(b"<</Type/Catalog/Pages 2 0 R>>", pages, page, content or stream(b""), *more)


def test_a_pdf_is_opened_unread(paper: Document) -> None:
    assert paper.pages == 3 and paper.page_sizes[0] == (595, 842)
    assert len(paper.digest) == 64


def test_each_page_has_its_text(paper: Document) -> None:
    assert document.read_text(paper, 2) == LECTURE
    assert document.read_text(paper, 3) == ""
    assert document.read_texts(paper) == [document.read_text(paper, page) for page in (1, 2, 3)]


def test_texts_are_read_in_one_child_and_once(paper: Document, monkeypatch: pytest.MonkeyPatch) -> None:
    begun: list[str] = []
    server = sandbox.server
    begin = server.begin
    monkeypatch.setattr(server, "begin", lambda name, *rest: begun.append(name) or begin(name, *rest))
    texts = document.read_texts(paper)
    assert document.read_texts(paper) == texts and len(begun) == 1
    texts.clear()
    assert len(document.read_texts(paper)) == 3  # whoever changes the list has changed its own


@pytest.mark.parametrize(
    ("page", "words", "lines"),
    [
        (1, "attention IS all", 1),
        (1, "all you need", 2),
        (1, "an example.", 0),
        (1, "the example", 2),
        (1, "tention", 0),
        (1, "nee", 0),
        (2, "什么时候打开电脑", 1),
        (2, "机制", 1),
        (2, "注意力 机制", 1),
        (3, "anything", 0),
        (1, " ,. ", 0),
    ],
)
def test_words_are_found_whatever_case_breaks_and_hyphens(paper: Document, page: int, words: str, lines: int) -> None:
    assert len(document.find_text(paper, page, words)) == lines


def test_each_place_of_repeated_words_is_found(tmp_path: Path) -> None:
    media = opened(pdf(tmp_path / "a", ["key key\nkeyhole key"]))
    assert len(document.find_text(media, 1, "Key")) == 3


@pytest.mark.parametrize("turn", [0, 90, 180, 270])
@pytest.mark.parametrize("cropped", [False, True])
def test_a_box_lies_on_the_ink_of_the_upright_page(turn: int, cropped: bool, tmp_path: Path) -> None:
    drawn = pymupdf.open()
    page = drawn.new_page(width=400, height=300)
    page.insert_text((150, 160), "evidence", fontsize=20)
    if cropped:
        page.set_cropbox(pymupdf.Rect(100, 100, 300, 250))
    page.set_rotation(turn)
    drawn.save(str(tmp_path / "a"))
    media = opened(tmp_path / "a")
    assert (media.page_sizes[0][0] > media.page_sizes[0][1]) is (turn % 180 == 0)
    (box,) = document.find_text(media, 1, "evidence")
    pixels = image.read_pixels(document.page_as_image(media, 1).at(1024, 1024))
    rows, columns = np.nonzero(pixels.min(axis=2) < 128)
    ink = np.array([columns.min(), rows.min(), columns.max(), rows.max()]) * 1000 / 1024
    left, top, right, bottom = box
    assert left - 5 <= ink[0] and top - 5 <= ink[1] and ink[2] <= right + 5 and ink[3] <= bottom + 5
    assert (right - left) * (bottom - top) < 5 * (ink[2] - ink[0]) * (ink[3] - ink[1])


@pytest.mark.parametrize("size", [(32, 32), (640, 896), (896, 640), (1184, 1664), (4000, 32), (1, 1), (33, 1457)])
def test_a_page_is_rendered_at_exactly_the_size_asked(paper: Document, size: tuple[int, int]) -> None:
    pixels = image.read_pixels(document.page_as_image(paper, 1).at(*size))
    assert pixels.shape == (size[1], size[0], 3) and pixels.dtype == np.uint8
    assert pixels[0, 0].tolist() == [255] * 3


@pytest.mark.parametrize("points", [(595.276, 841.89), (612, 792), (333.333, 777.777), (14_400, 14_400), (3, 5)])
def test_odd_page_sizes_are_rendered_exactly_too(points: tuple[float, float], tmp_path: Path) -> None:
    media = opened(pdf(tmp_path / "a", [""], size=points))
    assert image.read_pixels(document.page_as_image(media, 1).at(1056, 1376)).shape == (1376, 1056, 3)


def test_the_page_image_is_a_webp_of_the_width_asked(paper: Document) -> None:
    drawn = Pillow.open(io.BytesIO(document.page_image(paper, 1, 600)), formats=["WEBP"])
    assert drawn.size == (600, 849)


def test_a_page_too_large_to_draw_is_a_sentence(paper: Document) -> None:
    with pytest.raises(MediaError, match="smaller size"):
        image.read_pixels(document.page_as_image(paper, 1).at(10_000, 10_000))


@pytest.mark.parametrize("page", [0, -1, 4])
def test_a_page_that_is_not_there_is_a_sentence(paper: Document, page: int) -> None:
    for ask in (document.read_text, document.page_as_image):
        with pytest.raises(MediaError, match="has 3"):
            ask(paper, page)


def test_a_pdf_with_an_owner_s_password_opens_and_with_a_user_s_does_not(tmp_path: Path) -> None:
    strong = pymupdf.PDF_ENCRYPT_AES_256
    media = opened(pdf(tmp_path / "owner", ["open to read"], encryption=strong, owner_pw="o"))
    assert document.read_text(media, 1) == "open to read"
    with pytest.raises(MediaError, match="asks for a password"):
        open_upload(pdf(tmp_path / "user", ["closed"], encryption=strong, user_pw="u", owner_pw="o"))


def many_pages(count: int) -> bytes:
    kids = b" ".join(b"%d 0 R" % number for number in range(5, 5 + count))
    page = b"<</Type/Page/Parent 2 0 R/MediaBox[0 0 200 100]/Contents 3 0 R/Resources<</Font<</F 4 0 R>>>>>>"
    return raw_pdf(
        b"<</Type/Catalog/Pages 2 0 R>>",
        b"<</Type/Pages/Kids[%s]/Count %d>>" % (kids, count),
        stream(b"BT /F 12 Tf 10 50 Td (same) Tj ET"),
        b"<</Type/Font/Subtype/Type1/BaseFont/Helvetica>>",
        *[page] * count,
    )


def test_2000_pages_are_read_and_one_more_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(many_pages(2000))
    assert document.read_texts(opened(tmp_path / "a")) == ["same"] * 2000
    (tmp_path / "b").write_bytes(many_pages(2001))
    with pytest.raises(MediaError, match="more than 2000"):
        open_upload(tmp_path / "b")


@pytest.mark.parametrize("kept", [0.05, 0.5, 0.9])
def test_a_pdf_that_is_cut_off_is_read_in_part_or_refused(kept: float, tmp_path: Path) -> None:
    raw = pdf(tmp_path / "whole", ["page"] * 20).read_bytes()
    (tmp_path / "cut").write_bytes(raw[: round(len(raw) * kept)])
    try:
        media = opened(tmp_path / "cut")
    except MediaError as error:
        assert error.sentence.startswith("This PDF")
    else:
        assert len(document.read_texts(media)) == media.pages


@pytest.mark.parametrize("junk", [b"junk\n" * 180, b"\0" * 2000], ids=["text", "zeros"])
def test_junk_before_the_header_does_not_matter(junk: bytes, tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(junk + pdf(tmp_path / "whole", ["after junk"]).read_bytes())
    assert document.read_text(opened(tmp_path / "a"), 1) == "after junk"


def test_a_pdf_without_pages_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(raw_pdf(b"<</Type/Catalog/Pages 2 0 R>>", b"<</Type/Pages/Kids[]/Count 0>>"))
    with pytest.raises(MediaError, match="no pages"):
        open_upload(tmp_path / "a")


def test_a_damaged_page_does_not_cost_the_others(tmp_path: Path) -> None:
    raw = many_pages(3).replace(b"6 0 obj\n<</Type/Page", b"6 0 obj\n<</Type/Pag_", 1)
    (tmp_path / "a").write_bytes(raw.replace(b"6 0 R", b"9 9 R", 1))
    media = opened(tmp_path / "a")
    assert document.read_texts(media) == ["same", "", "same"]
    assert image.read_pixels(document.page_as_image(media, 3).at(64, 32)).min() < 200


def double_flate() -> bytes:
    """1.3 kB that unpack to 280 MB of content: one array."""
    packer = zlib.compressobj(9)
    inner = packer.compress(b"[")
    inner += b"".join(packer.compress(b"1 " * (1 << 19)) for _ in range(280)) + packer.flush()
    return one_page(content=stream(zlib.compress(inner, 9), b"/Filter[/FlateDecode/FlateDecode]"))


def many_kids() -> bytes:
    return raw_pdf(
        b"<</Type/Catalog/Pages 2 0 R>>",
        b"<</Type/Pages/Kids[%s]/Count 200000>>" % (b"3 0 R " * 200_000),
        b"<</Type/Page/Parent 2 0 R/MediaBox[0 0 9 9]>>",
    )


def form_that_draws_itself() -> bytes:
    loop = stream(b"/X Do", b"/Type/XObject/Subtype/Form/BBox[0 0 9 9]/Resources<</XObject<</X 5 0 R>>>>")
    return one_page(b"0 0 200 100", stream(b"/X Do"), b"/Resources<</XObject<</X 5 0 R>>>>", loop)


def huge_image() -> bytes:
    picture = stream(
        b"", b"/Type/XObject/Subtype/Image/Width 60000/Height 60000/ColorSpace/DeviceRGB/BitsPerComponent 8"
    )
    return one_page(b"0 0 200 100", stream(b"200 0 0 100 0 0 cm /X Do"), b"/Resources<</XObject<</X 5 0 R>>>>", picture)


@pytest.mark.parametrize(
    "make",
    [
        many_kids,
        form_that_draws_itself,
        huge_image,
        lambda: one_page(b"0 0 2000000 2000000"),
        lambda: one_page(b"0 0 0 0"),
        lambda: one_page(b"200 100 0 0"),
        lambda: one_page(b"0 0 1e30 1"),
        lambda: one_page(b"/a /b /c /d"),
        lambda: one_page(b"0 0 100 100", stream(b"[" * 200_000)),
        lambda: one_page(b"0 0 100 100", b"", b"/UserUnit 100000"),
        lambda: raw_pdf(b"<</Type/Catalog/Pages 2 0 R>>", b"<</Type/Pages/Kids[2 0 R]/Count 1>>"),
        lambda: raw_pdf(b"[" * 200_000),
        lambda: b"%PDF-1.7\n" + bytes(range(256)) * 20,
    ],
    ids=["many kids", "form that draws itself", "huge image", "huge page", "page without size"]
    + ["box from right to left", "endless page", "box of names", "nested content", "huge unit", "circular tree"]
    + ["nested arrays", "no objects"],
)
def test_a_pdf_bomb_is_read_or_refused_in_time(make: Callable[[], bytes], tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(make())
    try:
        media = opened(tmp_path / "a")
        assert all(0 < side < float("inf") for size in media.page_sizes for side in size)
        page = document.page_as_image(media, 1)
        assert page.width >= 1 and page.height >= 1
        assert image.read_pixels(page.at(64, 64)).shape == (64, 64, 3)
        document.read_texts(media)
    except MediaError as error:
        assert error.sentence.endswith(".")


def test_the_1300_byte_bomb_is_refused_when_drawn(tmp_path: Path) -> None:
    raw = double_flate()
    assert len(raw) < 2000
    (tmp_path / "a").write_bytes(raw)
    page = document.page_as_image(opened(tmp_path / "a"), 1)
    with pytest.raises(MediaError):
        image.read_pixels(page.at(64, 64))


def test_damaged_pdfs_are_read_or_refused_in_a_sentence(tmp_path: Path) -> None:
    raw = pdf(tmp_path / "whole", ["page one", "page two"]).read_bytes()
    random = np.random.default_rng(7)
    for _ in range(30):
        damaged = bytearray(raw)
        for at in random.integers(0, len(raw), 20):
            damaged[at] = random.integers(256)
        (tmp_path / "a").write_bytes(damaged)
        try:
            media = opened(tmp_path / "a")
            assert len(document.read_texts(media)) == media.pages
            assert image.read_pixels(document.page_as_image(media, 1).at(64, 96)).shape == (96, 64, 3)
        except MediaError as error:
            assert error.sentence.endswith(".") and "\n" not in error.sentence
