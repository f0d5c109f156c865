from __future__ import annotations

import numpy as np
import pytest
import torch

from qwen3vl_webui.model.cache import ROUND, KVCache, SlabFull, Slot


def cache(**options: int) -> KVCache:
    return KVCache(layers=2, kv_heads=2, head_dim=4, dtype=torch.float32, device=torch.device("cpu"), **options)


def fill(cache: KVCache, slot: Slot, keys: list[int]) -> None:
    """Writes tokens whose KV is their content key, so that it can be recognized."""
    cache.reserve(slot, slot.length + len(keys))
    rows = torch.tensor(keys, dtype=torch.float32)[:, None, None].expand(-1, 2, 4)
    query = torch.zeros(1, 2, len(keys), 4)
    for layer in range(2):
        cache.attend(layer, slot, slot.length, query, rows + layer, -rows - layer)
    slot.keys.extend(keys)


def held(cache: KVCache, slot: Slot) -> list[list[float]]:
    """Keys of layer 0 and negated values of layer 1 less 1, one number a token: all must be the content keys."""
    slabs = [cache.layers[0]["keys"][slot.row], -cache.layers[1]["values"][slot.row] - 1]
    rows = [slab[:, : slot.length] for slab in slabs]
    assert all((row == row[:1, :, :1]).all() for row in rows)
    return [row[0, :, 0].tolist() for row in rows]


def take(cache: KVCache, keys: list[int], conversation: str = "") -> tuple[Slot, int]:
    return cache.take(np.array(keys, np.int64), conversation)


def read(cache: KVCache, keys: list[int], conversation: str = "") -> tuple[Slot, int]:
    """A whole request: take, read what is missing, release."""
    slot, reused = take(cache, keys, conversation)
    fill(cache, slot, keys[reused:])
    cache.release(slot)
    return slot, reused


def test_the_last_token_is_always_read_again() -> None:
    store = cache()
    read(store, [1, 2, 3], "a")
    assert read(store, [1, 2, 3], "a")[1] == 2


def test_what_is_shared_is_kept_and_the_rest_cropped() -> None:
    store = cache()
    read(store, [1, 2, 3, 4], "a")
    slot, reused = take(store, [1, 2, 9, 9, 9], "a")
    assert (reused, list(slot.keys)) == (2, [1, 2])
    fill(store, slot, [9, 9, 9])
    assert held(store, slot) == [[1, 2, 9, 9, 9]] * 2


def test_growing_keeps_every_conversation_and_doubles() -> None:
    store = cache()
    first, _ = read(store, list(range(1, 101)), "a")
    second, _ = read(store, list(range(201, 221)), "b")
    assert store.capacity == ROUND
    fill(store, first, list(range(1001, 1001 + ROUND)))
    assert store.capacity == 2 * ROUND
    assert held(store, first) == [[*range(1, 101), *range(1001, 1001 + ROUND)]] * 2
    assert held(store, second) == [list(range(201, 221))] * 2


def test_new_rows_read_all_tokens_so_far() -> None:
    store = cache()
    slot, _ = read(store, [1, 2, 3], "a")
    store.reserve(slot, 5)
    answer = store.attend(0, slot, 3, torch.zeros(1, 2, 2, 4), torch.zeros(2, 2, 4), torch.full((2, 2, 4), 10.0))
    torch.testing.assert_close(answer[0, :, 0], torch.full((2, 4), (-1 - 2 - 3 + 10) / 4))
    torch.testing.assert_close(answer[0, :, 1], torch.full((2, 4), (-1 - 2 - 3 + 20) / 5))


def test_each_named_chat_has_its_own_slot_even_with_a_common_beginning() -> None:
    store = cache()
    first, _ = read(store, [1, 2, 3, 4], "a")
    second, reused = read(store, [1, 2, 7, 8], "b")
    assert second is not first and reused == 2
    assert held(store, first) == [[1, 2, 3, 4]] * 2
    assert held(store, second) == [[1, 2, 7, 8]] * 2


def test_a_nameless_request_continues_the_nameless_one_it_extends() -> None:
    store = cache()
    first, _ = read(store, [1, 2, 3, 4])
    other, _ = read(store, [1, 7, 8, 9])
    assert other is not first
    again, reused = read(store, [1, 2, 3, 4, 5])
    assert again is first and reused == 4


def test_nothing_is_reused_under_another_rope_plan() -> None:
    store = cache()
    asked = np.array([1, 2, 3, 4], np.int64)
    for rope, reused in (("native", 0), ("yarn:2", 0), ("yarn:2", 3), ("native", 0)):
        slot, shared = store.take(asked, "a", rope)
        assert shared == slot.length == reused and slot.rope == rope
        fill(store, slot, [1, 2, 3, 4][shared:])
        store.release(slot)
    assert len(store.slots) == 1
    other, shared = store.take(asked, "b", "native")
    assert other is not store.slots[0] and shared == 3


def test_the_slot_used_longest_ago_is_taken_when_all_are() -> None:
    store = cache(most_slots=2)
    read(store, [1, 2], "a")
    kept, _ = read(store, [3, 4], "b")
    read(store, [1, 2], "a")
    taken, reused = read(store, [5, 6], "c")
    assert taken is kept and reused == 0
    assert sorted(slot.conversation for slot in store.slots) == ["a", "c"]


def test_a_busy_slot_is_never_taken() -> None:
    store = cache(most_slots=1)
    take(store, [1, 2], "a")
    with pytest.raises(SlabFull):
        take(store, [3, 4], "b")


def test_idle_conversations_make_room_for_a_long_one() -> None:
    store = cache(most_tokens=3 * ROUND)
    for name in "abc":
        read(store, [ord(name)] * 10, name)
    assert len(store.slots) == 3
    slot, _ = read(store, list(range(1, 3 * ROUND + 1)), "b")
    assert store.slots == [slot] and store.capacity == 3 * ROUND
    assert held(store, slot) == [[float(key) for key in range(1, 3 * ROUND + 1)]] * 2


def test_those_used_longest_ago_go_first() -> None:
    store = cache(most_tokens=4 * ROUND)
    for name in "abcd":
        read(store, [ord(name)] * 10, name)
    read(store, [1] * (ROUND + 1), "a")
    assert {slot.conversation for slot in store.slots} == {"a", "d"}
    assert all(held(store, slot) == [[float(key) for key in slot.keys]] * 2 for slot in store.slots)


def test_more_than_all_memory_is_refused_with_the_numbers() -> None:
    store = cache(most_tokens=ROUND)
    slot, _ = take(store, [1], "a")
    with pytest.raises(SlabFull) as refusal:
        store.reserve(slot, ROUND + 1)
    assert (refusal.value.needed, refusal.value.most) == (ROUND + 1, ROUND)
    fill(store, slot, [1])
    assert held(store, slot) == [[1]] * 2


def test_clearing_gives_memory_back_but_keeps_what_is_busy() -> None:
    store = cache()
    read(store, list(range(1, 1001)), "a")
    busy, _ = take(store, [1, 2, 3], "b")
    fill(store, busy, [1, 2, 3][busy.length :])
    before = store.bytes
    store.clear()
    assert store.slots == [busy] and store.bytes < before / 4
    assert held(store, busy) == [[1, 2, 3]] * 2


def test_bytes_count_keys_and_values_of_all_layers() -> None:
    store = cache()
    assert store.bytes_per_token == 2 * 2 * 2 * 4 * 4
    read(store, [1], "a")
    assert (
        store.bytes
        == ROUND * store.bytes_per_token
        == sum(part.nbytes for layer in store.layers for part in layer.values())
    )


@pytest.mark.parametrize("fails_at", range(4))
@pytest.mark.parametrize("shrink", [False, True])
def test_memory_that_runs_out_while_the_slab_is_resized_harms_nobody(fails_at: int, shrink: bool) -> None:
    """Slots move down to the places of others that leave, and half the layers have the new size: still all is there."""
    store = cache(most_tokens=3 * ROUND)
    read(store, [1, 2, 3], "leaves")
    first, second = take(store, [4, 5, 6, 7], "first")[0], take(store, [8, 9], "second")[0]
    fill(store, first, [4, 5, 6, 7])
    fill(store, second, [8, 9])
    make, made = store._empty, []

    def empty(*given: object) -> torch.Tensor:
        made.append(given)
        if len(made) == fails_at + 1:
            raise torch.OutOfMemoryError
        return make(*given)  # type: ignore[arg-type]

    store._empty = empty  # type: ignore[method-assign]
    with pytest.raises(torch.OutOfMemoryError):
        if shrink:
            store.clear()
        else:
            store.most_tokens = 4 * ROUND
            store.reserve(first, ROUND + 1)
    assert [held(store, slot) for slot in (first, second)] == [[[4, 5, 6, 7]] * 2, [[8, 9]] * 2]
    fill(store, first, [10])
    store.most_tokens = None
    store.reserve(second, 3 * ROUND)
    fill(store, second, list(range(20, 20 + 2 * ROUND)))
    assert held(store, first) == [[4, 5, 6, 7, 10]] * 2
    assert held(store, second) == [[8, 9, *range(20, 20 + 2 * ROUND)]] * 2
    third, _ = take(store, [30, 31], "third")
    fill(store, third, [30, 31])
    assert held(store, third) == [[30, 31]] * 2
