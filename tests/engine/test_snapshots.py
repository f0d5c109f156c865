"""A restart keeps the long video warm; a conversation that lost its slot is not read again."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from qwen3vl_webui.engine.local import LocalEngine
from qwen3vl_webui.media.values import Frame, FramePlan
from qwen3vl_webui.model import shelf
from qwen3vl_webui.model.planner import FORMATS, KVFormat
from qwen3vl_webui.model.snapshots import Snapshots
from tests.engine.conftest import Load, ask, follow_up, read_frames, read_pixels, video
from tests.engine.test_local import run

Opened = Callable[..., LocalEngine]


@pytest.fixture
def opened(loaded: Load, tmp_path: Path) -> Iterator[Opened]:
    engines: list[LocalEngine] = []

    def of(
        kv: KVFormat = "bf16",
        *,
        parked_bytes: int = 0,
        snapshots: bool = True,
        frames: Callable[[FramePlan], Iterator[Frame]] = read_frames,
        **variant: object,
    ) -> LocalEngine:
        engines.append(
            LocalEngine(
                loaded(**variant),
                kv_cache=kv,
                parked_bytes=parked_bytes,
                snapshots=Snapshots(tmp_path, 10**9) if snapshots else None,
                read_pixels=read_pixels,
                read_frames=frames,
            )
        )
        return engines[-1]

    yield of
    for engine in engines:
        engine.close()


@pytest.fixture(autouse=True)
def short_prompts_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shelf.Shelf.__init__, "__kwdefaults__", {"least_tokens": 20})


FILM = ask(video("film", 40), "When does he open the computer?", conversation="chat")


@pytest.mark.parametrize("kv", FORMATS)
def test_after_a_restart_the_next_question_is_answered_alike_and_the_video_not_read(
    opened: Opened, kv: KVFormat
) -> None:
    first = opened(kv)
    text, before = run(first, FILM)
    question = follow_up(FILM, text, "And then?")
    fresh = opened(kv, snapshots=False)
    fresh._answers = first._answers
    expected, _ = run(fresh, question)
    first.close()

    def never(_: FramePlan) -> Iterator[Frame]:
        raise AssertionError("the video was decoded again")
        yield

    second = opened(kv, frames=never)
    second._answers = first._answers
    answer, finish = run(second, question)
    assert answer == expected
    assert finish.reused_tokens >= before.prompt_tokens - (64 if kv == "int4" else 0)
    second.close()


def test_a_flipped_byte_costs_time_but_no_answer(
    opened: Opened, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    first = opened()
    text, _ = run(first, FILM)
    first.close()
    for path in tmp_path.rglob("*.snapshot"):
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 1
        path.write_bytes(content)
    second = opened()
    with caplog.at_level(logging.WARNING):
        again, finish = run(second, FILM)
    assert (again, finish.reused_tokens) == (text, 0)
    assert "is dropped" in caplog.text
    second.close()


def test_another_checkpoint_finds_nothing(opened: Opened) -> None:
    first = opened()
    run(first, FILM)
    first.close()
    other = opened(tied=False)
    assert run(other, FILM)[1].reused_tokens == 0
    other.close()
    quantized = opened("int8")
    assert run(quantized, FILM)[1].reused_tokens == 0


@pytest.mark.parametrize("kv", FORMATS)
def test_a_sixth_chat_does_not_cost_the_first_its_video(opened: Opened, kv: KVFormat) -> None:
    engine = opened(kv, parked_bytes=10**9, snapshots=False)
    text, before = run(engine, FILM)
    for name in "abcde":
        run(engine, ask(f"{name} " * 40, conversation=name))
    assert all(slot.conversation != "chat" for slot in engine._cache.slots)
    question = follow_up(FILM, text, "And then?")
    answer, finish = run(engine, question)
    assert finish.reused_tokens >= before.prompt_tokens - (64 if kv == "int4" else 0)
    fresh = opened(kv, snapshots=False)
    fresh._answers = engine._answers
    assert run(fresh, question)[0] == answer


def test_without_snapshots_or_parking_the_first_chat_is_read_again(opened: Opened) -> None:
    engine = opened(snapshots=False)
    run(engine, FILM)
    for name in "abcde":
        run(engine, ask(f"{name} " * 40, conversation=name))
    assert run(engine, FILM)[1].reused_tokens < 20
