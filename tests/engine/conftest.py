"""Engines over tiny checkpoints, and requests whose media is made up from their digest."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
import torch

from qwen3vl_webui.engine.contract import (
    Event,
    FinishEvent,
    GenerationRequest,
    Message,
    SamplingParams,
    TokenEvent,
)
from qwen3vl_webui.engine.local import LocalEngine
from qwen3vl_webui.media.values import Clip, Frame, FramePlan, Image, Part
from qwen3vl_webui.model.loading import LoadedModel, load
from qwen3vl_webui.settings import Decode, KVCacheKind
from tests.tiny import tiny_checkpoint

GREEDY = SamplingParams(temperature=0, presence_penalty=0, max_tokens=24)


@pytest.fixture(autouse=True, scope="session")
def one_thread() -> None:
    torch.set_num_threads(1)


def noise(key: str, width: int, height: int) -> np.ndarray:
    """(height, width, 3) uint8, always the same for a key."""
    seed = int.from_bytes(key.encode().ljust(8, b"0")[:8], "little")
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def read_pixels(image: Image) -> np.ndarray:
    return noise(image.digest, image.width, image.height)


def read_frames(plan: FramePlan) -> Iterator[Frame]:
    for seconds in plan.seconds:
        yield Frame(seconds, noise(f"{plan.clip.digest}{seconds:.1f}", plan.width, plan.height))


def picture(digest: str, width: int = 96, height: int = 64) -> Image:
    return Image(Path(digest), digest, width, height, seen=(width, height))


def video(digest: str, moments: int = 4, width: int = 96, height: int = 64) -> FramePlan:
    clip = Clip(Path(digest), digest, 0.0, moments + 1.0, width, height)
    return FramePlan(clip, tuple((float(t), float(t)) for t in range(moments)), width, height)


def ask(*parts: Part, sampling: SamplingParams = GREEDY, conversation: str = "") -> GenerationRequest:
    return GenerationRequest((Message("user", parts),), sampling, conversation=conversation)


def follow_up(request: GenerationRequest, answer: str, *parts: Part) -> GenerationRequest:
    return replace(request, messages=(*request.messages, Message("assistant", (answer,)), Message("user", parts)))


def text_of(events: list[Event], *, thinking: bool = False) -> str:
    return "".join(event.text for event in events if isinstance(event, TokenEvent) and event.thinking == thinking)


def finish_of(events: list[Event]) -> FinishEvent:
    assert isinstance(events[-1], FinishEvent)
    return events[-1]


Load = Callable[..., LoadedModel]
Open = Callable[..., LocalEngine]


@pytest.fixture(scope="session")
def loaded() -> Load:
    """The tiny model of a variant, loaded once: `loaded(tied=..., thinking=..., experts=...)`."""
    kept: dict[tuple[tuple[str, object], ...], LoadedModel] = {}

    def of(**variant: object) -> LoadedModel:
        key = tuple(sorted(variant.items()))
        if key not in kept:
            kept[key] = load(str(tiny_checkpoint(**variant)), device="cpu")  # type: ignore[arg-type]
        return kept[key]

    return of


@pytest.fixture
def open_engine(loaded: Load) -> Iterator[Open]:
    """Opens engines that are closed with the test: `open_engine(endless=True, kv_cache="int8", tied=False)`."""
    opened: list[LocalEngine] = []

    def of(
        *,
        context_length: int | None = None,
        endless: bool = False,
        kv_cache: KVCacheKind = "auto",
        decode: Decode | Literal["kernels"] = "auto",
        read_pixels: Callable[[Image], np.ndarray] = read_pixels,
        read_frames: Callable[[FramePlan], Iterator[Frame]] = read_frames,
        **variant: object,
    ) -> LocalEngine:
        model = loaded(**variant)
        if endless:
            model = replace(model, eos_ids=frozenset())
        opened.append(
            LocalEngine(
                model,
                context_length,
                kv_cache=kv_cache,
                decode=decode,
                read_pixels=read_pixels,
                read_frames=read_frames,
            )
        )
        return opened[-1]

    yield of
    for engine in opened:
        engine.close()
