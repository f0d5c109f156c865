"""Visual features: equal to the stock tower, encoded once, read lazily."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForImageTextToText

from qwen3vl_webui.engine.contract import Message
from qwen3vl_webui.errors import MediaError
from qwen3vl_webui.media.ahead import Ahead
from qwen3vl_webui.media.values import Clip, Frame, FramePlan, Image
from qwen3vl_webui.model.inputs import VisualSpan, encode, frame_patches, image_patches
from qwen3vl_webui.model.loading import LoadedModel, load
from qwen3vl_webui.model.snapshots import Snapshots
from qwen3vl_webui.model.vision import MOST_SPANS, FeatureCache, Vision
from tests.tiny import tiny_checkpoint


def pixels_of(name: str, width: int, height: int) -> np.ndarray:
    seed = int.from_bytes(name.encode(), "little") % 2**32
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


class Reader:
    """Stands for the media room: pixels made from names and seconds, and a record of what was read."""

    def __init__(self) -> None:
        self.pictures: list[str] = []
        self.seconds: list[float] = []
        self.closed = 0

    def pixels(self, image: Image) -> np.ndarray:
        self.pictures.append(image.digest)
        return pixels_of(image.digest, image.width, image.height)

    def frames(self, plan: FramePlan) -> Iterator[Frame]:
        try:
            for seconds in plan.seconds:
                self.seconds.append(seconds)
                yield Frame(seconds, pixels_of(f"{seconds:.3f}", plan.width, plan.height))
        finally:
            self.closed += 1


def picture(name: str, width: int = 64, height: int = 96) -> Image:
    return Image(Path(name), name, width, height).at(width, height)


def plan(seconds: list[float], width: int = 64, height: int = 32) -> FramePlan:
    clip = Clip(Path("clip"), "clip", 0.0, 1000.0, 640, 320)
    return FramePlan(clip, tuple((second, second + 0.5) for second in seconds), width, height)


def spans_of(loaded: LoadedModel, *parts: str | Image | FramePlan) -> tuple[VisualSpan, ...]:
    return encode([Message("user", parts)], loaded.vocabulary).spans


@cache
def stock_model() -> Any:
    return AutoModelForImageTextToText.from_pretrained(tiny_checkpoint()).eval().model


def stock_features(span: VisualSpan) -> torch.Tensor:
    """By the stock model alone, one span at a time."""
    if isinstance(span.part, Image):
        assert span.part.seen is not None
        pixels = pixels_of(span.part.digest, span.part.width, span.part.height)
        patches = image_patches(pixels, span.part.seen)
    else:
        pair = span.part.patches[span.patch]
        patches = frame_patches(*(pixels_of(f"{s:.3f}", span.part.width, span.part.height) for s in pair))
    with torch.no_grad():
        output = stock_model().get_image_features(patches, torch.tensor([span.grid_thw]), return_dict=True)
    return torch.stack([output.pooler_output[0], *(taps[0] for taps in output.deepstack_features)])


@pytest.fixture(scope="module")
def loaded() -> LoadedModel:
    torch.set_num_threads(1)
    return load(str(tiny_checkpoint()), device="cpu")


@pytest.fixture
def reader() -> Reader:
    return Reader()


@pytest.fixture
def vision(loaded: LoadedModel, reader: Reader) -> Vision:
    return Vision(loaded, read_pixels=reader.pixels, read_frames=reader.frames)


def test_features_in_groups_equal_the_stock_tower_one_by_one(loaded: LoadedModel, vision: Vision) -> None:
    spans = spans_of(
        loaded, "a", picture("cat"), plan([1.0 * i for i in range(40)]), picture("dog", 128, 64), plan([3.0], 96, 96)
    )
    seen = list(vision.features(spans))
    assert [span for span, _ in seen] == list(spans)
    for span, features in seen:
        assert features.shape == (4, span.count, 64)
        torch.testing.assert_close(features, stock_features(span), rtol=1e-5, atol=1e-5)


def test_a_picture_larger_than_seen_is_resized(loaded: LoadedModel, vision: Vision) -> None:
    image = Image(Path("big"), "big", 200, 310).at(64, 96)
    ((span, features),) = vision.features(spans_of(loaded, image))
    torch.testing.assert_close(features, stock_features(span), rtol=1e-5, atol=1e-5)


def test_a_second_request_reads_and_encodes_nothing(
    loaded: LoadedModel, vision: Vision, reader: Reader, monkeypatch: pytest.MonkeyPatch
) -> None:
    spans = spans_of(loaded, picture("cat"), plan([1.0, 2.0, 3.0]))
    first = list(vision.features(spans))
    read = (list(reader.pictures), list(reader.seconds))

    def refuse(*_: object) -> None:
        raise AssertionError("encoded again")

    monkeypatch.setattr(vision, "run", refuse)
    second = list(vision.features(spans))
    assert (reader.pictures, reader.seconds) == read
    for (span, one), (same, two) in zip(first, second, strict=True):
        assert span == same and torch.equal(one, two)


def test_only_moments_not_seen_before_are_decoded(loaded: LoadedModel, vision: Vision, reader: Reader) -> None:
    list(vision.features(spans_of(loaded, plan([1.0, 2.0, 5.0]))))
    reader.seconds.clear()
    spans = spans_of(loaded, plan([1.0, 3.0, 5.0, 7.0]))
    for span, features in vision.features(spans):
        torch.testing.assert_close(features, stock_features(span), rtol=1e-5, atol=1e-5)
    assert reader.seconds == [3.0, 3.5, 7.0, 7.5]


def test_frames_are_read_two_groups_ahead_and_the_decoder_is_closed(loaded: LoadedModel, reader: Reader) -> None:
    opened: list[Iterator[Frame]] = []  # held, so that only an explicit close ends them

    def read_frames(wanted: FramePlan) -> Iterator[Frame]:
        opened.append(reader.frames(wanted))
        return opened[-1]

    vision = Vision(loaded, read_pixels=reader.pixels, read_frames=read_frames)
    reading = vision.features(spans_of(loaded, plan([float(i) for i in range(200)])))
    next(reading)
    assert len(reader.seconds) <= 4 * (MOST_SPANS + 1)
    assert reader.closed == 0
    reading.close()
    assert reader.closed == len(opened) == 1


def test_check_may_stop_between_frames(loaded: LoadedModel, vision: Vision, reader: Reader) -> None:
    class Stopped(Exception):
        pass

    def check() -> None:
        if len(reader.seconds) >= 5:
            raise Stopped

    with pytest.raises(Stopped):
        list(vision.features(spans_of(loaded, plan([float(i) for i in range(50)])), check=check))
    assert len(reader.seconds) == 5
    assert reader.closed == 1


def test_a_video_that_ends_early_is_a_sentence(loaded: LoadedModel, reader: Reader) -> None:
    def short(wanted: FramePlan) -> Iterator[Frame]:
        return reader.frames(replace(wanted, patches=wanted.patches[:1]))

    vision = Vision(loaded, read_pixels=reader.pixels, read_frames=short)
    with pytest.raises(MediaError, match="ended before"):
        list(vision.features(spans_of(loaded, plan([1.0, 2.0]))))


def test_the_next_group_is_decoded_while_one_is_encoded(loaded: LoadedModel, reader: Reader) -> None:
    decoded = threading.Event()
    encodes = []

    def read_frames(wanted: FramePlan) -> Iterator[Frame]:
        for frame in reader.frames(wanted):
            if len(reader.seconds) >= 4 * MOST_SPANS:
                decoded.set()
            yield frame

    vision = Vision(loaded, read_pixels=reader.pixels, read_frames=read_frames)
    run = vision.run

    def waits(*arguments: Any) -> torch.Tensor:
        encodes.append(decoded.wait(20) if not encodes else True)
        return run(*arguments)

    vision.run = waits  # type: ignore[method-assign]
    spans = spans_of(loaded, plan([float(i) for i in range(3 * MOST_SPANS)]))
    for span, features in vision.features(spans):
        torch.testing.assert_close(features, stock_features(span), rtol=1e-5, atol=1e-5)
    assert encodes == [True] * 3
    assert reader.closed == 1


def test_what_a_decoder_raises_comes_out_after_what_it_gave() -> None:
    def frames() -> Iterator[int]:
        yield from range(3)
        raise MediaError("The file is damaged.")

    ahead = Ahead(frames(), 10)
    assert [next(ahead) for _ in range(3)] == [0, 1, 2]
    with pytest.raises(MediaError, match="damaged"):
        next(ahead)
    ahead.close()


# On disk


def test_a_restart_encodes_nothing_again(
    loaded: LoadedModel, reader: Reader, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def opened(revision: str = "one") -> Vision:
        snapshots = Snapshots(tmp_path, 10**9)
        return Vision(
            loaded, read_pixels=reader.pixels, read_frames=reader.frames, snapshots=snapshots, revision=revision
        )

    first = opened()
    spans = spans_of(loaded, picture("cat"), plan([1.0, 2.0, 3.0]))
    expected = list(first.features(spans))
    first.cache.close()
    again = opened()
    monkeypatch.setattr(again, "run", None)
    reader.seconds.clear()
    for (span, one), (same, two) in zip(again.features(spans), expected, strict=True):
        assert span == same and torch.equal(one, two)
    assert not reader.seconds
    again.cache.close()

    other = opened("another checkpoint")
    list(other.features(spans))
    assert reader.seconds == [1.0, 1.5, 2.0, 2.5, 3.0, 3.5]
    other.cache.close()


def test_damaged_features_are_encoded_again(loaded: LoadedModel, reader: Reader, tmp_path: Path) -> None:
    def opened() -> Vision:
        return Vision(
            loaded, read_pixels=reader.pixels, read_frames=reader.frames, snapshots=Snapshots(tmp_path, 10**9)
        )

    spans = spans_of(loaded, picture("cat"))
    first = opened()
    list(first.features(spans))
    first.cache.close()
    (file,) = tmp_path.rglob("*.snapshot")
    content = bytearray(file.read_bytes())
    content[-5] ^= 1
    file.write_bytes(content)
    again = opened()
    ((_, features),) = again.features(spans)
    torch.testing.assert_close(features, stock_features(spans[0]), rtol=1e-5, atol=1e-5)
    again.cache.close()


def test_a_cache_too_small_for_the_prompt_still_gives_every_feature(loaded: LoadedModel, reader: Reader) -> None:
    one = 4 * 2 * 64 * 4  # bytes of one temporal patch
    vision = Vision(loaded, read_pixels=reader.pixels, read_frames=reader.frames, most_bytes=3 * one)
    spans = spans_of(loaded, plan([float(i) for i in range(20)]), "and", plan([float(i) for i in range(15, 40)]))
    for _ in range(2):
        for span, features in vision.features(spans):
            torch.testing.assert_close(features, stock_features(span), rtol=1e-5, atol=1e-5)
    assert vision.cache.bytes <= 3 * one


def test_the_cache_drops_the_least_recently_used() -> None:
    cache = FeatureCache(3 * 4)
    for name in "abc":
        cache.put(name, torch.zeros(1))
    assert cache.get("a") is not None
    cache.put("d", torch.zeros(1))
    assert [name for name in "abcd" if cache.get(name) is not None] == ["a", "c", "d"]
    cache.put("huge", torch.zeros(100))
    assert cache.get("huge") is None and cache.bytes == 12
    cache.put("d", torch.zeros(2))
    assert cache.bytes == 12 and cache.get("a") is None
    cache.clear()
    assert cache.bytes == 0 and cache.get("d") is None
