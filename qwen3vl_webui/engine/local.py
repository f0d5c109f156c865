"""LocalEngine: one model in this process; what a request costs, and whether it is let in. The scheduler answers it."""

from __future__ import annotations

import logging
import os
import threading
from collections import OrderedDict
from collections.abc import Generator
from dataclasses import replace
from pathlib import Path
from typing import Literal

import torch

from qwen3vl_webui.engine.contract import (
    Budget,
    Event,
    GenerationRequest,
    ModelInfo,
    SamplingParams,
)
from qwen3vl_webui.engine.queue import RequestQueue, Work
from qwen3vl_webui.engine.running import Prepared
from qwen3vl_webui.engine.scheduler import Scheduler
from qwen3vl_webui.errors import TooLong
from qwen3vl_webui.media.image import read_pixels
from qwen3vl_webui.media.values import FramePlan
from qwen3vl_webui.media.video import read_frames
from qwen3vl_webui.model.cache import Kernel, KVCache
from qwen3vl_webui.model.checkpoint import revision_of
from qwen3vl_webui.model.decode import check
from qwen3vl_webui.model.forward import TextModel
from qwen3vl_webui.model.inputs import Inputs, encode
from qwen3vl_webui.model.likeness import likeness_of_features
from qwen3vl_webui.model.loading import LoadedModel
from qwen3vl_webui.model.planner import CONTEXT, FORMATS, KVFormat, choose_kv, kv_bytes, round_up, working_bytes
from qwen3vl_webui.model.rope import Ropes, head_dim_of
from qwen3vl_webui.model.shelf import Shelf
from qwen3vl_webui.model.snapshots import Snapshots
from qwen3vl_webui.model.streaming import AnswerText
from qwen3vl_webui.model.vision import ReadFrames, ReadPixels, Vision
from qwen3vl_webui.settings import KVCacheKind, RopeScaling

log = logging.getLogger(__name__)

ANSWERS_KEPT = 512  # ids of earlier answers, so that the next turn continues the cache to the letter
CGROUP = "/sys/fs/cgroup/memory."


class LocalEngine:
    """Answers with the model in `loaded`. `context_length` None: what the positions and the memory give.

    `kv_cache` auto: on CUDA the finest that holds `context_length`, on a CPU what the model computes in.
    What leaves the KV cache is kept in `parked_bytes` of CPU memory (None: a quarter of what is free on CUDA, nothing
    on a CPU) and, like the features of pictures, in `snapshots`.
    Positions are those trained on; with `rope_scaling` yarn or ntk those it stretches to. `auto` stretches (YaRN) only
    where `context_length` asks for more.
    `decode` auto: on CUDA tokens are written by Triton's kernels, where they can be built and agree with torch;
    kernels: on any device (a CPU interprets them, slowly); eager: never.
    Media is read by `read_pixels` and `read_frames`, and only when the prompt reaches it.
    """

    def __init__(
        self,
        loaded: LoadedModel,
        context_length: int | None = None,
        *,
        rope_scaling: RopeScaling = "auto",
        kv_cache: KVCacheKind = "auto",
        decode: Literal["auto", "eager", "kernels"] = "auto",
        parked_bytes: int | None = None,
        snapshots: Snapshots | None = None,
        read_pixels: ReadPixels = read_pixels,
        read_frames: ReadFrames = read_frames,
    ) -> None:
        self._loaded = loaded
        on_cuda = loaded.device.type == "cuda"
        kv = pick_kv(loaded, kv_cache, context_length)
        revision = f"{revision_of(loaded.folder)} {loaded.info.quantization} {loaded.dtype}" if snapshots else ""
        if parked_bytes is None:  # on a CPU it would be the same memory
            parked_bytes = host_memory_free() // 4 if on_cuda else 0
        text = loaded.config.text_config
        self._ropes = Ropes(text, rope_scaling, loaded.device, loaded.dtype)
        self._cache = KVCache(
            layers=text.num_hidden_layers,
            kv_heads=text.num_key_value_heads,
            head_dim=head_dim_of(text),
            dtype=loaded.dtype,
            device=loaded.device,
            kv=kv,
            shelf=Shelf(parked_bytes, snapshots, f"{revision} {kv}"),
            kernel=pick_kernel(loaded, kv) if decode == "kernels" or (on_cuda and decode == "auto") else None,
        )
        log.info("keys and values: %s, %s bytes a token", kv_name(self._cache), f"{self._cache.bytes_per_token:,}")
        tails = self._cache.most_slots * self._cache.bytes_per_slot
        room = max(0, self._memory_free() - tails) // self._cache.bytes_per_token
        stretched = rope_scaling in ("yarn", "ntk")
        positions = self._ropes.most_positions if stretched else loaded.trained_positions
        self.context_length = context_length or max(1, min(positions, room))
        self._cache.most_tokens = max(room, round_up(self.context_length))
        self.model = with_context(replace(loaded.info, kv_cache=kv_name(self._cache)), self.context_length)
        self._answers: OrderedDict[tuple[str, str], list[int]] = OrderedDict()
        self._answers_lock = threading.Lock()
        self._queue: RequestQueue[Prepared] = RequestQueue(self._cache.most_slots)
        self._vision = Vision(
            loaded, read_pixels=read_pixels, read_frames=read_frames, snapshots=snapshots, revision=revision
        )
        self._scheduler = Scheduler(
            loaded,
            text=TextModel(loaded.model),
            vision=self._vision,
            cache=self._cache,
            queue=self._queue,
            forbidden=forbidden_ids(loaded),
            remember=self._remember,
        )

    def plan(self, request: GenerationRequest) -> Budget:
        return self._budget(self._encode(request), request.sampling)

    def generate(self, request: GenerationRequest) -> Generator[Event, None, None]:
        check(request.sampling)
        inputs = self._encode(request)
        budget = self._budget(inputs, request.sampling)
        refuse_too_long(budget)
        chosen = self._ropes.choose(request.conversation, budget.positions + budget.answer_tokens)
        yield from self._queue.follow(Work(request, Prepared(inputs, budget, chosen), inputs.tokens))

    @torch.no_grad()
    def likeness(self, plan: FramePlan, question: str) -> tuple[float, ...]:
        known = [self._vision.cache.get(plan.patch_key(index)) for index in range(len(plan.patches))]
        ids = list(dict.fromkeys(self._loaded.vocabulary.encode([question])[0]))
        rows = self._loaded.embed(torch.tensor(ids, device=self._loaded.device)) if ids else torch.empty(0, 1)
        return likeness_of_features([None if features is None else features[0] for features in known], rows)

    def close(self) -> None:
        """Ends what runs and what waits, joins every thread, and leaves what was read to the snapshots, if any."""
        self._queue.close()
        self._scheduler.join()
        self._vision.cache.close()
        self._cache.close()

    # What a request costs

    def _encode(self, request: GenerationRequest) -> Inputs:
        with self._answers_lock:
            known = {text: ids for (chat, text), ids in self._answers.items() if chat == request.conversation}
        return encode(request.messages, self._loaded.vocabulary, known_answers=known)

    def _budget(self, inputs: Inputs, sampling: SamplingParams) -> Budget:
        tokens, positions = inputs.tokens, inputs.next_position
        most = self._ropes.most_positions
        answer = max(0, min(sampling.max_tokens, self.context_length - tokens, most - positions))
        budget = Budget(tokens, positions, self.context_length, answer, most_positions=most)
        if self._loaded.device.type != "cuda":
            return budget
        kv = self._cache.format.name
        working = working_bytes(self._loaded.shape, kv, quantization=self._loaded.weights) - CONTEXT
        needed = kv_bytes(self._loaded.shape, kv, tokens + answer) + working
        return replace(budget, memory_bytes=needed, memory_free=self._memory_free() + working)

    def _memory_free(self) -> int:
        """Bytes that keys and values may take, those of idle conversations included."""
        held = self._cache.bytes if self._loaded.device.type == "cuda" else 0
        return memory_for_kv(self._loaded, self._cache.format.name, held)

    def _remember(self, conversation: str, answer: AnswerText) -> None:
        if answer.known is None:
            return
        text, ids = answer.known
        with self._answers_lock:
            self._answers[conversation, text] = ids
            self._answers.move_to_end((conversation, text))
            while len(self._answers) > ANSWERS_KEPT:
                self._answers.popitem(last=False)


def forbidden_ids(loaded: LoadedModel) -> torch.Tensor:
    """Tokens an answer never holds: pads and marks of vision, the start of a turn, and rows without a token."""
    names = loaded.vocabulary
    control = [names.im_start, names.vision_start, names.vision_end, names.image_pad, names.video_pad]
    control += [names.added[name] for name in ("<|vision_pad|>",) if name in names.added]
    unnamed = range(names.tokenizer.get_vocab_size(with_added_tokens=True), loaded.config.text_config.vocab_size)
    return torch.tensor([*control, *unnamed], device=loaded.device)


def kv_name(cache: KVCache) -> str:
    """`bf16` stands for what the model computes in, which is float32 on a CPU."""
    name = cache.format.name
    return str(cache.format.parts[0].dtype).removeprefix("torch.") if name == "bf16" else name


def memory_for_kv(loaded: LoadedModel, kv: KVFormat, held: int = 0) -> int:
    """Bytes that keys and values may take; `held` of them already do."""
    if loaded.device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(loaded.device)
        unused = torch.cuda.memory_reserved(loaded.device) - torch.cuda.memory_allocated(loaded.device)
        return max(0, free + unused + held - working_bytes(loaded.shape, kv, quantization=loaded.weights) + CONTEXT)
    return host_memory_free() // 2  # the page and the decoders live here too


def pick_kv(loaded: LoadedModel, kv_cache: KVCacheKind, context_length: int | None) -> KVFormat:
    """How keys and values are held. On a CPU memory is seldom short and making them exact again costs time."""
    if kv_cache != "auto":
        return kv_cache
    if loaded.device.type != "cuda":
        return "bf16"
    for kv in FORMATS:
        room = memory_for_kv(loaded, kv)
        if choose_kv(loaded.shape, room, context_length) == kv:
            return kv
    return "int4"


def pick_kernel(loaded: LoadedModel, kv: KVFormat) -> Kernel | None:
    """Triton's attention for the rows that are written; None where it is not installed or not to be trusted."""
    try:
        from qwen3vl_webui.model import kernels
    except ImportError as error:
        log.info("answers are written without Triton: %s", error)
        return None
    text = loaded.config.text_config
    heads = text.num_attention_heads, text.num_key_value_heads, head_dim_of(text)
    return kernels.decode if kernels.is_trusted(kv, *heads, loaded.dtype, loaded.device) else None


def host_memory_free() -> int:
    """Bytes this process may still take; within the container's limit where there is one."""
    meminfo, limit, used = (Path(name) for name in ("/proc/meminfo", CGROUP + "max", CGROUP + "current"))
    if not meminfo.exists():  # macOS tells what is installed, not what is free
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2
    lines = dict(line.split(":", 1) for line in meminfo.read_text().splitlines())
    free = int(lines["MemAvailable"].split()[0]) * 1024
    if limit.exists() and (most := limit.read_text().strip()) != "max":
        free = min(free, int(most) - int(used.read_text()))
    return max(0, free)


def refuse_too_long(budget: Budget) -> None:
    """Raises TooLong with the numbers and what to do, OutOfMemory when only the memory is short."""
    advice = "Choose a shorter span, fewer pages or smaller pictures, or start a new chat."
    if budget.tokens >= budget.context_length:
        raise TooLong(f"The prompt has {budget.tokens:,} tokens; the model reads {budget.context_length:,}. {advice}")
    if budget.most_positions is not None and budget.positions >= budget.most_positions:
        raise TooLong(
            f"The prompt has {budget.positions:,} positions; the model knows {budget.most_positions:,}. {advice}"
        )
    if not budget.fits:
        assert budget.memory_bytes is not None and budget.memory_free is not None
        raise TooLong(
            f"The prompt and its answer need {budget.memory_bytes / 2**30:.1f} GiB of memory; "
            f"{budget.memory_free / 2**30:.1f} GiB are free. {advice}"
        )


def with_context(info: ModelInfo, context_length: int) -> ModelInfo:
    """The same model as this engine runs it: the default answers leave room for a prompt."""
    most = max(1, context_length // 4)
    return replace(
        info,
        context_length=context_length,
        sampling=replace(info.sampling, max_tokens=min(info.sampling.max_tokens, most)),
        sampling_text=replace(info.sampling_text, max_tokens=min(info.sampling_text.max_tokens, most)),
    )
