"""Tensors on disk: whole or not at all, checked, bounded; and conversations that are put away and taken back."""

from __future__ import annotations

import logging
import os
from array import array
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open

from qwen3vl_webui.errors import StorageError
from qwen3vl_webui.model.cache import KVCache, Slot
from qwen3vl_webui.model.checkpoint import revision_of
from qwen3vl_webui.model.planner import FORMATS, ROUND, KVFormat
from qwen3vl_webui.model.shelf import Parked, Shelf, common_prefix
from qwen3vl_webui.model.snapshots import SUFFIX, Snapshots, Tensors
from tests.tiny import tiny_checkpoint, write_json


@pytest.fixture
def snapshots(tmp_path: Path) -> Snapshots:
    return Snapshots(tmp_path / "snapshots", 10**6)


def tensors(seed: int = 0, size: int = 100) -> Tensors:
    generator = torch.Generator().manual_seed(seed)
    return {
        "codes": torch.randint(0, 255, (2, size), dtype=torch.uint8, generator=generator),
        "rows": torch.randn(3, size, generator=generator).bfloat16(),
        "empty": torch.empty(0, 4),
    }


def path_of(snapshots: Snapshots, name: str) -> Path:
    return snapshots.folder / (name + SUFFIX)


def test_what_was_put_is_got(snapshots: Snapshots) -> None:
    assert snapshots.get("kv/one") is None
    assert snapshots.put("kv/one", tensors(), {"rope": "native"})
    found = snapshots.get("kv/one")
    assert found is not None
    assert found[1] == {"rope": "native"}
    assert found[0].keys() == tensors().keys()
    assert all(torch.equal(found[0][name], tensor) for name, tensor in tensors().items())
    assert snapshots.names("kv") == ["kv/one"]
    assert [path.name for path in snapshots.folder.rglob("*") if path.is_file()] == ["one.snapshot"]


def test_only_their_owner_may_read_them(snapshots: Snapshots) -> None:
    snapshots.put("kv/one", tensors())
    assert path_of(snapshots, "kv/one").stat().st_mode & 0o077 == 0
    assert snapshots.folder.stat().st_mode & 0o077 == 0


@pytest.mark.parametrize("place", ["first", "header", "metadata", "middle", "last"])
def test_a_flipped_byte_is_dropped_with_a_line_in_the_log(
    snapshots: Snapshots, place: str, caplog: pytest.LogCaptureFixture
) -> None:
    snapshots.put("kv/one", tensors(), {"rope": "native"})
    path = path_of(snapshots, "kv/one")
    content = bytearray(path.read_bytes())
    at = {"first": 0, "header": 9, "metadata": content.index(b"native"), "middle": len(content) - 500, "last": -1}
    content[at[place]] ^= 1
    path.write_bytes(content)
    with caplog.at_level(logging.WARNING):
        assert snapshots.get("kv/one") is None
    assert "kv/one is dropped" in caplog.text
    assert not path.exists()


@pytest.mark.parametrize("kept", [0, 4, 100, -1])
def test_a_file_that_was_cut_is_dropped(snapshots: Snapshots, kept: int) -> None:
    snapshots.put("kv/one", tensors())
    path = path_of(snapshots, "kv/one")
    path.write_bytes(path.read_bytes()[:kept])
    assert snapshots.get("kv/one") is None and not path.exists()


def test_the_least_recently_used_make_room(snapshots: Snapshots) -> None:
    size = 200_000
    for age, name in enumerate("abc"):
        snapshots.put(f"kv/{name}", {"rows": torch.zeros(size, dtype=torch.uint8)})
        os.utime(path_of(snapshots, f"kv/{name}"), (age + 1, age + 1))
    assert snapshots.get("kv/a") is not None  # used now
    snapshots.put("features/d", {"rows": torch.zeros(3 * size, dtype=torch.uint8)})
    assert [name for name in "abc" if snapshots.has(f"kv/{name}")] == ["a"]
    assert not snapshots.put("kv/huge", {"rows": torch.zeros(6 * size, dtype=torch.uint8)})
    assert snapshots.has("features/d")


def test_files_of_others_in_the_folder_are_left_alone(snapshots: Snapshots) -> None:
    weights, partial = snapshots.folder / "model.safetensors", snapshots.folder / "download.partial"
    weights.write_bytes(bytes(2 * 10**6))
    partial.write_bytes(b"half")
    os.utime(weights, (1, 1))
    assert Snapshots(snapshots.folder, 10**6).put("kv/one", tensors(size=100_000))
    assert weights.exists() and partial.exists()


def test_a_full_disk_is_logged_and_leaves_nothing(
    snapshots: Snapshots, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def full(_: object, path: Path, **__: object) -> None:
        path.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("qwen3vl_webui.model.snapshots.save_file", full)
    assert not snapshots.put("kv/one", tensors())
    assert "No space left" in caplog.text
    assert not [path for path in snapshots.folder.rglob("*") if path.is_file()]


def test_a_folder_that_cannot_be_made_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(StorageError, match="folder for snapshots cannot be used"):
        Snapshots(tmp_path / "file" / "snapshots", 10**6)


def test_what_a_dead_process_left_half_written_is_removed(snapshots: Snapshots) -> None:
    left = snapshots.folder / "kv" / "one.snapshot.7.partial"
    left.parent.mkdir()
    left.write_bytes(b"half")
    Snapshots(snapshots.folder, 10**6)
    assert not left.exists()


# A checkpoint's revision


def test_a_revision_changes_with_the_weights_and_the_config(tmp_path: Path) -> None:
    folder = tiny_checkpoint(tmp_path / "tiny")
    revisions = [revision_of(folder)]
    assert revision_of(tiny_checkpoint(tmp_path / "same")) == revisions[0]
    write_json(folder / "config.json", note="changed")
    revisions.append(revision_of(folder))
    weights = folder / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-40_000:] = bytes(byte ^ 1 for byte in content[-40_000:])  # the same header, other numbers
    weights.write_bytes(content)
    revisions.append(revision_of(folder))
    assert len(set(revisions)) == 3


# The shelf


def cache(kv: KVFormat = "bf16", **options: object) -> KVCache:
    return KVCache(
        layers=2,
        kv_heads=2,
        head_dim=32,
        dtype=torch.float32,
        device=torch.device("cpu"),
        kv=kv,
        **options,  # type: ignore[arg-type]
    )


def take(store: KVCache, keys: list[int], conversation: str, rope: str = "") -> tuple[Slot, int]:
    return store.take(np.array(keys, np.int64), conversation, rope)


def read(store: KVCache, keys: list[int], conversation: str, rope: str = "") -> tuple[int, torch.Tensor]:
    """A whole request; how much was reused, and what its last row reads."""
    slot, reused = take(store, keys, conversation, rope)
    store.reserve(slot, len(keys))
    generator = torch.Generator().manual_seed(1)
    table = torch.randn(2000, 2, 32, generator=generator)
    rows = table[torch.tensor(keys[reused:])]
    query = torch.randn(1, 4, 2000, 32, generator=generator)[:, :, reused : len(keys)]
    answers = [store.attend(layer, slot, reused, query, rows, rows + 1)[:, :, -1] for layer in range(2)]
    slot.keys.extend(keys[reused:])
    store.release(slot)
    return reused, torch.stack(answers)


FILM = list(range(300))


@pytest.mark.parametrize("kv", FORMATS)
def test_a_conversation_that_lost_its_slot_comes_back_from_the_shelf(kv: KVFormat) -> None:
    store = cache(kv, most_slots=1, shelf=Shelf(10**8))
    fresh = cache(kv)
    read(store, FILM, "a")
    assert read(store, [7, 8, 9], "b")[0] == 0
    question = [*FILM, 1000, 1001]
    reused, answer = read(store, question, "a")
    assert reused == 300
    torch.testing.assert_close(answer, read(fresh, question, "a")[1], atol=1e-5, rtol=1e-4)
    assert read(store, [7, 8, 9, 10], "b")[0] == 3


def test_idle_conversations_dropped_for_a_long_one_are_on_the_shelf() -> None:
    store = cache(most_tokens=3 * ROUND, shelf=Shelf(10**8))
    for name, first in (("a", 0), ("b", 1), ("c", 2)):
        read(store, [first, *range(50, 150)], name)
    read(store, [3, *range(600)], "d")
    assert len(store.slots) == 1
    assert read(store, [0, *range(50, 160)], "a")[0] == 101


def test_what_is_cleared_when_memory_runs_out_comes_back() -> None:
    store = cache(shelf=Shelf(10**8))
    read(store, FILM, "a")
    store.clear()
    assert not store.slots and store.bytes == 0
    assert read(store, FILM, "a")[0] == 299


def test_another_rope_plan_takes_nothing_from_the_shelf() -> None:
    store = cache(most_slots=1, shelf=Shelf(10**8))
    read(store, FILM, "a", "native")
    read(store, [7], "b", "native")
    assert read(store, FILM, "a", "yarn:2")[0] == 0
    assert read(store, FILM, "a", "native")[0] == 299


def test_the_shelf_keeps_to_its_memory() -> None:
    shelf = Shelf(10**8)
    store = cache(most_slots=1, shelf=shelf)
    read(store, FILM, "a")
    read(store, [7, *FILM], "b")
    one = shelf.bytes
    shelf.most_bytes = int(2.5 * one)
    for first in range(10, 20):
        read(store, [first, *FILM], str(first))
        assert shelf.bytes <= shelf.most_bytes
    assert [parked.keys[0] for parked in shelf.parked] == [17, 18]


def test_what_is_a_beginning_of_another_is_not_kept_twice() -> None:
    shelf = Shelf(10**8)
    store = cache(most_slots=1, shelf=shelf)
    for length in (100, 200, 150):
        read(store, FILM[:length], "a")
        read(store, [1999], "b")
    assert sorted(len(parked.keys) for parked in shelf.parked) == [1, 200]


def test_without_a_shelf_nothing_is_copied(monkeypatch: pytest.MonkeyPatch) -> None:
    store = cache(most_slots=1)
    monkeypatch.setattr(store.shelf, "put", None)
    for name in "abc":
        read(store, [ord(name), *FILM], name)
    store.close()


def test_a_longer_beginning_in_the_slab_is_preferred() -> None:
    store = cache(most_slots=2, shelf=Shelf(10**8))
    read(store, FILM[:100], "a")
    read(store, [1999], "b")
    read(store, [1998], "c")  # takes the slot of a
    read(store, FILM[:200], "b")
    assert read(store, FILM, "d")[0] == 200


@pytest.mark.parametrize("kv", FORMATS)
def test_a_restart_finds_what_was_read(kv: KVFormat, snapshots: Snapshots) -> None:
    def opened(revision: str = "r") -> KVCache:
        return cache(kv, shelf=Shelf(0, snapshots, revision, least_tokens=50))

    first = opened()
    read(first, FILM, "a")
    read(first, [7, 8, 9], "short")
    first.close()
    assert len(snapshots.names(first.shelf.prefix)) == 1  # the short one is read again sooner
    again = opened()
    question = [*FILM, 1000]
    reused, answer = read(again, question, "a")
    assert reused == 300
    torch.testing.assert_close(answer, read(cache(kv), question, "a")[1], atol=1e-5, rtol=1e-4)
    again.close()
    (name,) = snapshots.names(again.shelf.prefix)  # the longer one took its place
    assert len(Shelf(0, snapshots, "r")._on_disk[name].keys) == 301
    assert read(opened("another revision"), question, "a")[0] == 0


def test_a_damaged_snapshot_is_read_again_not_trusted(snapshots: Snapshots, caplog: pytest.LogCaptureFixture) -> None:
    first = cache(shelf=Shelf(0, snapshots, "r", least_tokens=50))
    expected = read(first, FILM, "a")[1]
    first.close()
    path = path_of(snapshots, snapshots.names(first.shelf.prefix)[0])
    content = bytearray(path.read_bytes())
    content[-1000] ^= 64
    path.write_bytes(content)
    again = cache(shelf=Shelf(0, snapshots, "r", least_tokens=50))
    reused, answer = read(again, FILM, "a")
    assert reused == 0 and "dropped" in caplog.text
    torch.testing.assert_close(answer, expected)
    again.close()


def test_a_snapshot_is_plain_safetensors(snapshots: Snapshots) -> None:
    store = cache(shelf=Shelf(0, snapshots, "r", least_tokens=50))
    read(store, FILM, "a")
    store.close()
    with safe_open(path_of(snapshots, snapshots.names(store.shelf.prefix)[0]), framework="pt") as file:
        assert file.get_tensor("keys").tolist() == FILM
        assert file.get_tensor("1.values").shape == (2, 300, 32)


@pytest.mark.parametrize(
    ("kept", "asked", "shared"),
    [([], [1], 0), ([1, 2, 3], [1, 2, 3], 3), ([1, 2, 3], [1, 2], 2), ([1, 2], [1, 2, 3], 2), ([1, 5], [1, 6], 1)],
)
def test_common_prefix(kept: list[int], asked: list[int], shared: int) -> None:
    assert common_prefix(array("q", kept), np.array(asked, np.int64)) == shared


def test_nothing_is_put_for_an_empty_slot() -> None:
    shelf = Shelf(10**8)
    store = cache(shelf=shelf)
    slot, _ = take(store, [1], "a")
    store.release(slot)
    store.close()
    assert shelf.parked == [] and not isinstance(shelf.best(np.array([1]), "")[1](), Parked)
