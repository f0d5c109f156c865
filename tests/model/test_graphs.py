"""One token of several answers over buffers that stay: what a CUDA graph may record, and when it records again."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import AutoModelForImageTextToText

from qwen3vl_webui.engine.contract import SamplingParams
from qwen3vl_webui.model.cache import KVCache, Slot
from qwen3vl_webui.model.decode import Sampler, draw_together
from qwen3vl_webui.model.formats import Places
from qwen3vl_webui.model.forward import Run, TextModel
from qwen3vl_webui.model.graphs import GUESSING, Decoder, Next
from qwen3vl_webui.model.planner import FORMATS, KVFormat
from qwen3vl_webui.model.rope import Rope, native
from tests.tiny import tiny_checkpoint

if sys.platform != "linux":
    pytest.skip("Triton is made for Linux", allow_module_level=True)

torch.set_num_threads(1)

CPU = torch.device("cpu")
FORBIDDEN = torch.tensor([3, 5])
GREEDY = SamplingParams(temperature=0, presence_penalty=0)


# Drawing

SAMPLINGS = [
    GREEDY,
    SamplingParams(temperature=0, presence_penalty=1.5, repetition_penalty=1.2),
    SamplingParams(temperature=0.7, top_p=0.8, top_k=20, presence_penalty=1.5),
    SamplingParams(temperature=1.0, top_p=1.0, top_k=40, presence_penalty=2.0),
    SamplingParams(temperature=1.7, top_p=0.95, top_k=64, min_p=0.02, repetition_penalty=0.9, presence_penalty=0),
    SamplingParams(temperature=0.3, top_p=0.2, top_k=1, presence_penalty=0),
]


def test_drawing_together_draws_what_each_sampler_draws_alone() -> None:
    """Many tokens in a row, so that penalties gather; the same seeds on both sides."""
    vocabulary, generator = 300, torch.Generator().manual_seed(0)
    sides = [
        [Sampler(sampling, vocabulary, CPU, FORBIDDEN) for sampling in SAMPLINGS],
        [Sampler(sampling, vocabulary, CPU) for sampling in SAMPLINGS],
    ]
    for place, pair in enumerate(zip(*sides, strict=True)):
        for sampler in pair:
            sampler.generator.manual_seed(place)
    forbidden = torch.zeros(vocabulary, dtype=torch.bool)
    forbidden[FORBIDDEN] = True
    different = set()
    for _ in range(60):
        logits = torch.randn(len(SAMPLINGS), vocabulary, generator=generator) * 4
        logits[:, FORBIDDEN] = 50
        expected = [sampler.draw(row.clone()) for sampler, row in zip(sides[0], logits, strict=True)]
        noise = torch.ones(len(SAMPLINGS), 64)
        for sampler, row in zip(sides[1], noise, strict=True):
            if sampler.sampling.temperature:
                sampler.noise(row[: sampler.sampling.top_k])
        drawn = torch.stack([sampler.drawn for sampler in sides[1]])
        settings = torch.tensor([sampler.settings for sampler in sides[1]]).t()
        given = draw_together(logits, forbidden, drawn, settings, noise).tolist()
        assert given == expected
        for sampler, token in zip(sides[1], given, strict=True):
            sampler.note(token)
        different |= set(given)
    assert len(different) > 50 and not different & set(FORBIDDEN.tolist())


@pytest.mark.parametrize(
    ("sampling", "few"),
    [
        (GREEDY, True),
        (SamplingParams(temperature=1, top_k=64), True),
        (SamplingParams(temperature=1, top_k=65), False),
        (SamplingParams(temperature=1, top_k=0), False),
        (SamplingParams(temperature=0, top_k=0), True),
    ],
)
def test_only_few_candidates_are_drawn_together(sampling: SamplingParams, few: bool) -> None:
    assert Sampler(sampling, 100, CPU).few is few


# The step


class Answers:
    """A tiny model, and a decoder over slots that have read made-up prompts of these lengths."""

    def __init__(self, kv: KVFormat, lengths: list[int], kernel: Any, **variant: Any) -> None:
        network = AutoModelForImageTextToText.from_pretrained(tiny_checkpoint(**variant), dtype=torch.float32)
        network.requires_grad_(False).eval()
        config = network.config.text_config
        self.text, self.embed = TextModel(network), network.get_input_embeddings()
        self.rope = Rope(native(config), CPU, torch.float32)
        self.cache = KVCache(
            layers=config.num_hidden_layers,
            kv_heads=config.num_key_value_heads,
            head_dim=config.head_dim,
            dtype=torch.float32,
            device=CPU,
            kv=kv,
            kernel=kernel,
        )
        self.decoder = Decoder(
            self.text,
            self.embed,
            self.cache,
            vocabulary_size=config.vocab_size,
            forbidden=FORBIDDEN,
            dtype=torch.float32,
        )
        generator = torch.Generator().manual_seed(len(lengths))
        self.slots = [self.read(torch.randint(0, 500, (length,), generator=generator)) for length in lengths]
        self.ids = [[7 + row] for row in range(len(lengths))]
        self.samplers = [Sampler(GREEDY, config.vocab_size, CPU) for _ in lengths]

    def read(self, ids: torch.Tensor) -> Slot:
        count = len(ids)
        slot, _ = self.cache.take(np.arange(1), str(len(self.cache.slots)))
        self.cache.reserve(slot, count + 20)
        positions = torch.arange(count).expand(3, -1)
        self.text.forward(self.embed(ids), self.rope.cos_sin(positions), self.cache, [Run(slot, 0, count)])
        slot.keys.extend(ids.tolist())
        return slot

    def next(self) -> list[Next]:
        return [
            Next(ids[-1], slot, self.rope.cos_sin(torch.full((3, 1), slot.length)), sampler)
            for ids, slot, sampler in zip(self.ids, self.slots, self.samplers, strict=True)
        ]

    def step(self) -> tuple[list[int], torch.Tensor]:
        tokens, logits = self.decoder.step(self.next())
        for slot, ids, token in zip(self.slots, self.ids, tokens, strict=True):
            slot.keys.append(ids[-1])
            ids.append(token)
        return tokens, logits

    def alone(self) -> list[int]:
        """The same token of each, by the forward pass that reads prompts."""
        tokens = []
        self.cache.kernel, kernel = None, self.cache.kernel
        for slot, ids in zip(self.slots, self.ids, strict=True):
            run, cos_sin = Run(slot, slot.length, 1), self.rope.cos_sin(torch.full((3, 1), slot.length))
            logits = self.text.logits(self.text.forward(self.embed(torch.tensor(ids[-1:])), cos_sin, self.cache, [run]))
            logits[:, FORBIDDEN] = -torch.inf
            tokens.append(int(logits.argmax()))
        self.cache.kernel = kernel
        return tokens


@pytest.fixture(autouse=True)
def inference() -> Any:
    with torch.inference_mode():
        yield


@pytest.mark.parametrize("kv", FORMATS)
def test_a_step_writes_what_the_prompt_path_would(kv: KVFormat) -> None:
    from qwen3vl_webui.model import kernels

    answers = Answers(kv, [126, 40], kernels.decode)
    for _ in range(3):
        expected = answers.alone()  # the row it stores is stored again
        assert answers.step()[0] == expected


def guesses(answers: Answers, *counts: int) -> tuple[list[Next], list[tuple[Slot, list[int]]]]:
    """The rows of each answer's last token and of that many guesses after it; and the tokens of each."""
    rows, tokens = [], []
    for row, (ids, slot, count) in enumerate(zip(answers.ids, answers.slots, counts, strict=True)):
        given = [ids[-1], *range(20 + 10 * row, 20 + 10 * row + count)]
        for ahead, token in enumerate(given):
            cos_sin = answers.rope.cos_sin(torch.full((3, 1), slot.length + ahead))
            rows.append(Next(token, slot, cos_sin, None, ahead))
        tokens.append((slot, given))
    return rows, tokens


@pytest.mark.parametrize(("kv", "counts"), [("bf16", (3, 0)), ("int8", (0, 4)), ("bf16", (7, 6))])
def test_guesses_are_read_as_the_prompt_path_would(kv: KVFormat, counts: tuple[int, int]) -> None:
    """Each sees those before it and none behind it; what is left of wrong ones disturbs nothing."""
    from qwen3vl_webui.model import kernels

    answers = Answers(kv, [70, 40], kernels.decode)
    for _ in range(2):
        rows, tokens = guesses(answers, *counts)
        answers.cache.kernel, kernel = None, answers.cache.kernel
        expected = []
        for slot, given in tokens:
            cos_sin = answers.rope.cos_sin(torch.arange(slot.length, slot.length + len(given)).expand(3, -1))
            embedded, run = answers.embed(torch.tensor(given)), Run(slot, slot.length, len(given))
            expected.append(answers.text.logits(answers.text.forward(embedded, cos_sin, answers.cache, [run])))
        answers.cache.kernel = kernel
        near = 2e-3 if kv == "bf16" else 0.05  # a number at the edge of two codes falls to either
        torch.testing.assert_close(answers.decoder.check(rows), torch.cat(expected), atol=near, rtol=near)
        for slot, given in tokens:  # none was right
            slot.keys.append(given[0])


class Watch(TorchDispatchMode):
    """Every operation, with the shapes it sees and all that is no tensor; not what it computes."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[Any, ...]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        def told(value: Any) -> Any:
            if isinstance(value, torch.Tensor):
                return tuple(value.shape), value.dtype, value.stride(), value.storage_offset()
            return tuple(map(told, value)) if isinstance(value, list | tuple) else value

        self.seen.append((str(func), told(args), told(sorted((kwargs or {}).items(), key=lambda item: item[0]))))
        return func(*args, **(kwargs or {}))


def blind(
    kv: KVFormat,
    held: Mapping[str, torch.Tensor],
    places: Places,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
) -> torch.Tensor:
    """In place of the kernels, whose launches do not depend on lengths."""
    assert {tensor.dtype for tensor in (places.rows, places.starts, places.halves)} == {torch.int32}
    return query * 1


def operations(answers: Answers, count: int) -> list[Any]:
    """Of one step run eagerly, in order."""
    with Watch() as watch:
        answers.decoder._run(count)
    return watch.seen


def assert_replayable(one: list[Any], other: list[Any]) -> None:
    """The same operations whatever was asked, and none that waits for the device."""
    assert one == other and len(one) > 50
    waits = {"aten._local_scalar_dense.default", "aten.nonzero.default", "aten.item.default"}
    assert not waits & {name for name, *_ in one}


@pytest.mark.parametrize("count", GUESSING)
def test_the_operations_of_a_step_with_guesses_depend_on_nothing_but_its_rows(count: int) -> None:
    seen = []
    for lengths, counts in (([5, 6], (count // 2, 0)), ([190, 300], (1, count // 2))):
        answers = Answers("int8", lengths, blind)
        answers.cache.reserve(answers.slots[0], 512)
        answers.decoder.check(guesses(answers, *counts)[0])
        seen.append(operations(answers, count))
    assert_replayable(*seen)


@pytest.mark.parametrize("count", [1, 2, 3, 4])
def test_the_operations_of_a_step_depend_on_nothing_but_the_number_of_answers(count: int) -> None:
    """So that replaying them with other lengths, tokens and settings is right; and none waits for the device."""
    seen = []
    for lengths, sampling in (([5, 6, 7, 8], SAMPLINGS[2]), ([190, 300, 64, 127], SAMPLINGS[1])):
        answers = Answers("int4", lengths[:count], blind)
        answers.cache.reserve(answers.slots[0], 512)
        answers.samplers = [Sampler(sampling, len(answers.samplers[0].drawn), CPU) for _ in answers.slots]
        answers.decoder._fill(answers.next())
        seen.append(operations(answers, count))
    assert_replayable(*seen)


def test_tokens_and_logits_come_from_the_same_memory_at_every_step() -> None:
    answers = Answers("bf16", [10, 20], blind)
    before = [answers.step()[1].data_ptr() for _ in range(2)]
    buffers = [value.data_ptr() for value in vars(answers.decoder).values() if isinstance(value, torch.Tensor)]
    answers.step()
    after = [value.data_ptr() for value in vars(answers.decoder).values() if isinstance(value, torch.Tensor)]
    assert before[0] == before[1] == answers.step()[1].data_ptr()
    assert buffers == after and len(buffers) >= 9


class Recorded:
    def __init__(self, run: Any) -> None:
        self.run, self.replays = run, 0

    def replay(self) -> None:
        self.replays += 1
        self.run()


def test_it_records_once_for_each_number_of_answers_and_again_when_the_cache_moved(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    answers = Answers("bf16", [10, 20], blind)
    decoder, recorded = answers.decoder, []
    decoder.records = True

    def record(count: int) -> Any:
        recorded.append((count, Recorded(lambda: decoder._run(count))))
        return recorded[-1][1]

    monkeypatch.setattr(decoder, "_record", record)
    for _ in range(3):
        answers.step()
    assert [(count, graph.replays) for count, graph in recorded] == [(2, 3)]
    decoder.step(answers.next()[:1])
    decoder.step(answers.next()[:1])
    assert [(count, graph.replays) for count, graph in recorded] == [(2, 3), (1, 2)]
    for counts in ((1, 0), (0, 3), (4, 4), (8, 2)):
        decoder.check(guesses(answers, *counts)[0])
    assert [(count, graph.replays) for count, graph in recorded[2:]] == [(8, 2), (16, 2)]
    del recorded[2:]
    answers.cache.reserve(answers.slots[0], 5000)
    answers.step()
    answers.step()
    assert [(count, graph.replays) for count, graph in recorded] == [(2, 3), (1, 2), (2, 2)]


def test_what_cannot_be_recorded_is_run_and_said_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    answers, other = (Answers("bf16", [10, 20], blind) for _ in range(2))
    answers.decoder.records = True

    def fails(count: int) -> Any:
        raise RuntimeError("operation not permitted when stream is capturing")

    monkeypatch.setattr(answers.decoder, "_record", fails)
    for _ in range(3):
        assert answers.step()[0] == other.step()[0]
    assert caplog.text.count("without CUDA graphs") == 1


def test_a_device_that_is_full_while_recording_is_told_to_who_makes_room(monkeypatch: pytest.MonkeyPatch) -> None:
    answers = Answers("bf16", [10], blind)
    answers.decoder.records = True

    def full(count: int) -> Any:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(answers.decoder, "_record", full)
    with pytest.raises(torch.OutOfMemoryError):
        answers.step()
    assert answers.decoder.records


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_a_graph_is_recorded_on_a_gpu() -> None:
    from qwen3vl_webui.engine.local import LocalEngine
    from qwen3vl_webui.model.loading import load
    from tests.engine.conftest import ask
    from tests.engine.test_local import run_ids

    loaded = load(str(tiny_checkpoint()), device="cuda")
    answers = {}
    for decode in ("auto", "eager"):
        engine = LocalEngine(loaded, 2048, decode=decode)  # type: ignore[arg-type]
        answers[decode] = run_ids(engine, ask("What happens at 47 seconds?"))[2]
        if decode == "auto":
            assert engine._scheduler._decoder is not None and engine._scheduler._decoder._graphs
        engine.close()
    assert answers["auto"] == answers["eager"]
