"""Keys and values in 8 and 4 bits: how far from exact, and the same whatever the chunks, crops and repeats."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.nn import functional

from qwen3vl_webui.model.attention import Partial, attend_piece, attend_plainly, is_trusted
from qwen3vl_webui.model.cache import KVCache, Slot
from qwen3vl_webui.model.formats import BLOCK, Int4, from_int8, own_group, pack, to_int4, to_int8, unpack
from qwen3vl_webui.model.planner import FORMATS, GROUP, KNOWN, KVFormat, Shape, kv_bytes

torch.set_num_threads(1)

HEADS, KV_HEADS, SIZE = 4, 2, 32
QUANTIZED: list[KVFormat] = ["int8", "int4"]


def rows_of(count: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """query (1, H, n, d), key and value (n, K, d); some channels of the keys are outliers, as in real models."""
    generator = torch.Generator().manual_seed(seed)
    key = torch.randn(count, KV_HEADS, SIZE, generator=generator)
    key[..., ::7] = key[..., ::7] * 4 + 3
    value = torch.randn(count, KV_HEADS, SIZE, generator=generator)
    return torch.randn(1, HEADS, count, SIZE, generator=generator), key, value


def cache(kv: KVFormat, **options: int) -> KVCache:
    return KVCache(
        layers=1,
        kv_heads=KV_HEADS,
        head_dim=SIZE,
        dtype=torch.float32,
        device=torch.device("cpu"),
        kv=kv,
        **options,
    )


class Reading:
    """A slot that reads the rows of one made-up prompt, whose content keys are their indexes."""

    def __init__(self, kv: KVFormat, tokens: int = 400) -> None:
        self.cache = cache(kv)
        self.query, self.key, self.value = rows_of(tokens)
        self.slot, _ = self.cache.take(np.arange(1), "a")

    def read(self, count: int, *, fails: bool = False) -> torch.Tensor:
        """The next rows; a read that fails is forgotten, as the scheduler does before it tries again."""
        start = self.slot.length
        here = slice(start, start + count)
        self.cache.reserve(self.slot, start + count)
        answer = self.cache.attend(0, self.slot, start, self.query[:, :, here], self.key[here], self.value[here])
        if not fails:
            self.slot.keys.extend(range(start, start + count))
        return answer

    def whole(self, counts: list[int]) -> torch.Tensor:
        return torch.cat([self.read(count) for count in counts if count], 2)


def exact(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    key, value = (rows.transpose(0, 1)[None] for rows in (key, value))
    return functional.scaled_dot_product_attention(query, key, value, is_causal=True, enable_gqa=True)


def distance(one: torch.Tensor, other: torch.Tensor) -> float:
    return float((one - other).norm() / other.norm())


# Numbers


def test_int8_is_within_half_a_step() -> None:
    rows = rows_of(100)[1]
    codes, scales = to_int8(rows)
    assert codes.dtype == torch.int8 and scales.shape == (100, KV_HEADS, 1)
    error = (from_int8(codes, scales, torch.float32) - rows).abs()
    assert bool((error <= rows.abs().amax(-1, keepdim=True) / 127 * 0.57).all())  # the scale itself is rounded


def test_int4_is_within_half_a_step() -> None:
    rows = rows_of(100)[1]
    codes, scales = to_int4(rows)
    assert int(codes.min()) == 0 and int(codes.max()) == 15
    error = (codes * scales[..., :1].float() + scales[..., 1:].float() - rows).abs()
    step = (rows.amax(-1) - rows.amin(-1)) / 15
    assert bool((error.amax(-1) <= step * 0.57).all())


def test_rows_of_one_number_survive() -> None:
    rows = torch.tensor([[0.0] * 8, [2.5] * 8, [-1e-6] * 8])
    codes, scales = to_int8(rows)
    torch.testing.assert_close(from_int8(codes, scales, torch.float32), rows, atol=0.01, rtol=0.01)
    codes, scales = to_int4(rows)
    back = codes * scales[:, :1].float() + scales[:, 1:].float()
    torch.testing.assert_close(back, rows, atol=0.01, rtol=0.01)


def test_two_codes_a_byte() -> None:
    codes = torch.randint(0, 16, (3, 10, 8), dtype=torch.uint8)
    assert pack(codes).shape == (3, 10, 4)
    assert torch.equal(unpack(pack(codes), torch.uint8), codes)


@pytest.mark.parametrize("kv", FORMATS)
@pytest.mark.parametrize("head_dim", [32, 128])
def test_a_slot_has_the_bytes_that_were_planned(kv: KVFormat, head_dim: int) -> None:
    store = KVCache(layers=3, kv_heads=2, head_dim=head_dim, dtype=torch.bfloat16, device=torch.device("cpu"), kv=kv)
    slot, _ = store.take(np.arange(1))
    store.reserve(slot, 1000)
    real = sum(part.nbytes for layer in store.layers for part in layer.values())
    few = {"layers": 3, "kv_heads": 2, "head_dim": head_dim}
    shape = Shape(**{**vars(KNOWN["4b"]), **few})
    assert real == store.bytes == kv_bytes(shape, kv, 1000)


# Attention


def test_pieces_are_joined_exactly() -> None:
    query, key, value = rows_of(300)
    key, value = key.transpose(0, 1), value.transpose(0, 1)
    partial = Partial(query[:, :, -7:], KV_HEADS)
    for piece in (slice(0, 1), slice(1, 200), slice(200, 293)):
        partial.add(key[:, piece], value[:, piece])
    partial.add(key[:, 293:], value[:, 293:], torch.ones(7, 7, dtype=torch.bool).tril())
    expected = exact(query, key.transpose(0, 1), value.transpose(0, 1))[:, :, -7:]
    torch.testing.assert_close(partial.answer, expected, atol=2e-6, rtol=1e-5)


@pytest.mark.parametrize("masked", [False, True])
def test_plain_products_equal_the_fused_kernel(masked: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("qwen3vl_webui.model.attention.SCORES", 5 * KV_HEADS * 90)  # several steps
    query = torch.randn(KV_HEADS, 33, SIZE)
    key, value = torch.randn(KV_HEADS, 90, SIZE), torch.randn(KV_HEADS, 90, SIZE)
    mask = torch.rand(33, 90) < 0.3 if masked else None
    if mask is not None:
        mask[:, 0] = True
    for one, other in zip(attend_plainly(query, key, value, mask), attend_piece(query, key, value, mask), strict=True):
        torch.testing.assert_close(one, other, atol=2e-6, rtol=1e-5)


def test_a_kernel_is_tried_before_it_is_trusted(caplog: pytest.LogCaptureFixture) -> None:
    def right(*rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return attend_piece(*rows, None)

    def another_base(*rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        answer, log_sum = attend_piece(*rows, None)
        return answer, log_sum / np.log(2)

    def missing(*_: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        raise AttributeError("no such kernel")

    cpu = torch.device("cpu")
    assert is_trusted(right, cpu, torch.float32, SIZE) and not caplog.messages
    assert not is_trusted(another_base, cpu, torch.float32, SIZE) and "does not agree" in caplog.text
    assert not is_trusted(missing, cpu, torch.float32, SIZE) and "no such kernel" in caplog.text


def test_a_new_row_reads_its_own_group_exactly_and_earlier_ones_as_stored() -> None:
    mask = own_group(GROUP - 2, 5, GROUP, torch.device("cpu"))  # rows 62 to 66 of the first two groups
    assert mask.shape == (5, GROUP + GROUP + 3)
    stored, own = mask[:, :GROUP], mask[:, GROUP:]
    assert stored.sum(1).tolist() == [0, 0, GROUP, GROUP, GROUP]
    assert own.sum(1).tolist() == [GROUP - 1, GROUP, 1, 2, 3]


@pytest.mark.parametrize(("kv", "most"), [("bf16", 1e-6), ("int8", 0.02), ("int4", 0.15)])
def test_attention_is_close_to_exact(kv: KVFormat, most: float) -> None:
    reading = Reading(kv)
    expected = exact(reading.query, reading.key, reading.value)
    error = distance(reading.whole([400]), expected)
    assert error < most
    if kv != "bf16":
        assert error > most / 20, "nothing was quantized"


def test_channel_outliers_of_the_keys_cost_int4_little() -> None:
    """Against the same four bits with one scale a token, as for the values."""
    _, key, _ = rows_of(4 * GROUP)
    codes, scales = to_int4(key)
    by_token = codes * scales[..., :1].float() + scales[..., 1:].float()
    format, reading = Int4(SIZE, torch.float32), Reading("int4")
    reading.read(4 * GROUP)
    held = {name: tensor[0] for name, tensor in reading.cache.layers[0].items()}
    by_channel = format.exact(held, 0, 4 * GROUP)[0].transpose(0, 1)
    others = [channel for channel in range(SIZE) if channel % 7]
    assert distance(by_channel[..., others], key[..., others]) < 0.5 * distance(by_token[..., others], key[..., others])


def test_the_first_group_of_an_int4_prompt_is_exact() -> None:
    reading = Reading("int4", GROUP)
    torch.testing.assert_close(reading.whole([GROUP]), exact(reading.query, reading.key, reading.value))


CHUNKS = [
    [400],
    [64, 64, 128, 144],
    [1] * 130 + [270],
    [63, 1, 1, 63, 65, 207],
    [200, 1, 1, 1, 1, 52, 1, 143],
    [130, *[1] * 70, 200],
]


@pytest.mark.parametrize("kv", QUANTIZED)
@pytest.mark.parametrize("counts", CHUNKS[1:], ids=lambda counts: str(counts[:5]))
def test_what_is_read_and_stored_is_the_same_in_any_chunks(kv: KVFormat, counts: list[int]) -> None:
    whole, pieces = Reading(kv), Reading(kv)
    torch.testing.assert_close(pieces.whole(counts), whole.whole([400]), atol=2e-5, rtol=1e-4)
    same_store(pieces, whole)


def same_store(one: Reading, other: Reading) -> None:
    assert one.slot.keys == other.slot.keys
    for part in one.cache.format.parts:
        if not part.tokens:
            continue  # the ring's order depends on the chunks; what it holds is seen by what is read next
        tokens = one.slot.length // GROUP * GROUP if part.name.startswith("key") else one.slot.length
        rows = [each.cache.layers[0][part.name][each.slot.row, :, : tokens // part.tokens] for each in (one, other)]
        assert torch.equal(rows[0], rows[1]), part.name


@pytest.mark.parametrize("kv", FORMATS)
def test_a_prompt_longer_than_a_block(kv: KVFormat) -> None:
    count = BLOCK["cpu"] + 3 * GROUP + 5
    whole, pieces = Reading(kv, count + 2), Reading(kv, count + 2)
    expected = whole.whole([count + 2])
    answers = [pieces.read(each) for each in (count, 1, 1)]
    torch.testing.assert_close(torch.cat(answers, 2), expected, atol=2e-5, rtol=1e-4)
    assert distance(expected, exact(whole.query, whole.key, whole.value)) < 0.15


# Taking back, trying again, sharing


@pytest.mark.parametrize("kv", FORMATS)
@pytest.mark.parametrize("counts", CHUNKS[:4], ids=lambda counts: str(counts[:5]))
@pytest.mark.parametrize("length", [0, 1, 63, 64, 65, 100, 127, 128, 255, 319, 320, 383, 384, 390, 399])
def test_after_a_crop_everything_is_as_if_it_had_never_been_longer(
    kv: KVFormat, counts: list[int], length: int
) -> None:
    once = Reading(kv)
    expected = once.whole([400])
    cropped = Reading(kv)
    cropped.whole(counts)
    kept = cropped.slot.crop(length)
    assert kept == cropped.slot.length <= length < kept + GROUP
    assert kv == "int4" or kept == length
    again = cropped.whole([1, 400 - kept - 1])
    torch.testing.assert_close(again, expected[:, :, kept:], atol=2e-5, rtol=1e-4)
    same_store(cropped, once)


def test_the_last_tokens_of_an_int4_slot_can_be_taken_back_one_by_one() -> None:
    """As drafts that were wrong, or a loop that is begun anew."""
    reading = Reading("int4")
    reading.whole([200, *[1] * 60])
    for length in range(259, 191, -1):
        assert reading.slot.crop(length) == length
    assert reading.slot.crop(150) == 128


@pytest.mark.parametrize("kv", FORMATS)
@pytest.mark.parametrize("length", [5, 64, 150, 290, 399])
def test_an_answer_is_rewound_to_the_very_token(kv: KVFormat, length: int) -> None:
    once, rewound = Reading(kv), Reading(kv)
    expected = once.whole([400])
    rewound.whole([130, 70, *[1] * 200])
    rewound.cache.rewind(rewound.slot, length)
    assert rewound.slot.length == length
    rest = rewound.whole([*[1] * 10, 400 - length - 10] if length < 390 else [1])
    assert distance(rest, expected[:, :, length:]) < (0.1 if kv == "int4" else 1e-5)


@pytest.mark.parametrize("kv", FORMATS)
def test_a_failed_read_can_be_repeated_with_less(kv: KVFormat) -> None:
    once, tried = Reading(kv), Reading(kv)
    expected = once.whole([100, 300])
    answers = [tried.read(100)]
    tried.read(300, fails=True)
    tried.read(150, fails=True)
    answers += [tried.read(30), tried.read(1)]
    tried.read(64, fails=True)
    answers += [tried.read(1), tried.read(268)]
    torch.testing.assert_close(torch.cat(answers, 2), expected, atol=2e-5, rtol=1e-4)
    same_store(tried, once)


@pytest.mark.parametrize("kv", FORMATS)
@pytest.mark.parametrize(("asked", "in_groups"), [(280, 279), (150, 128), (257, 256), (100, 64)])
def test_another_conversation_goes_on_from_a_copied_prefix(kv: KVFormat, asked: int, in_groups: int) -> None:
    once, first = Reading(kv), Reading(kv)
    expected = once.whole([400])
    first.whole([300])
    other, reused = first.cache.take(np.arange(asked), "b")
    assert other is not first.slot and reused == other.length == (in_groups if kv == "int4" else asked - 1)
    first.slot = other
    rest = first.whole([400 - reused])
    torch.testing.assert_close(rest, expected[:, :, reused:], atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("kv", FORMATS)
def test_growing_keeps_what_is_stored(kv: KVFormat) -> None:
    once, grown = Reading(kv), Reading(kv)
    expected = once.whole([400])
    answers = [grown.read(200)]
    capacity = grown.cache.capacity
    beside, _ = grown.cache.take(np.array([-1]), "b")
    assert isinstance(beside, Slot)
    answers.append(grown.read(200))
    assert grown.cache.capacity > capacity
    torch.testing.assert_close(torch.cat(answers, 2), expected, atol=2e-5, rtol=1e-4)
    same_store(grown, once)
