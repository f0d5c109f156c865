"""What a model needs in memory, part by part, from its config alone: nothing is loaded, fetched or imported for it.

Weights and the KV cache are exact (the tests hold them equal to real tensors); activations and workspace are
calculated for a CUDA device. Bytes, unless a name says otherwise.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

from qwen3vl_webui.model.drafts import MOST
from qwen3vl_webui.settings import KVCacheKind, Quantization

KVFormat = Literal["bf16", "int8", "int4"]  # bf16: whatever the model computes in, float32 on a CPU
Weights = Literal["none", "fp8", "8bit", "4bit"]  # fp8: as the checkpoint has them; never chosen for another one

GIB = 2**30
GROUP = 64  # tokens or channels that share a scale in int4; absmax blocks of nf4 have 64 weights too
FP8_BLOCK = 128  # rows and columns that share a scale
ROUND = 256  # tokens; the KV cache grows in multiples of it
CHUNK = 2048  # prompt tokens read at once on CUDA
CUDA_BLOCK = 16_384  # quantized tokens made exact at once on CUDA
SCORES = 2**23  # of attention, held at once where no fused kernel is used
VISION_ROWS = 4_096  # patches the vision tower sees at once on CUDA
ROTATED = 640  # bytes of cos and sin of a patch, at most
PATCH_VALUES = 1536  # of one patch: 3 channels, 2 frames, 16 x 16
CHOSEN = 8  # experts of a token, in every published mixture
DECODING = 4  # answers written at once
GUESSED = 1 + MOST  # rows of an answer at most: its last token and the guesses after it
CONTEXT = GIB // 2  # of CUDA, there as soon as a device is used (calculated)
FRAGMENTATION = GIB // 2  # (calculated)
OTHERS = GIB  # of a card's memory, left to the display and other programs by `--plan`
NATIVE = 262_144  # tokens; the positions the published models were trained on
USUAL_TOKENS = 65_536  # what `auto` wants to hold where no context length is asked for

# Least loss first: int8 keys and values are nearly exact, int4 ones cost more than 8-bit weights, less than 4-bit ones.
CHOICES: tuple[tuple[Weights, KVFormat], ...] = (
    ("none", "bf16"),
    ("none", "int8"),
    ("8bit", "bf16"),
    ("8bit", "int8"),
    ("none", "int4"),
    ("8bit", "int4"),
    ("4bit", "bf16"),
    ("4bit", "int8"),
    ("4bit", "int4"),
)
FORMATS: tuple[KVFormat, ...] = ("bf16", "int8", "int4")


@dataclass(frozen=True)
class Shape:
    """What of a config decides its memory. `experts` 0: dense; else each expert has `expert_intermediate`."""

    layers: int
    hidden: int
    intermediate: int
    heads: int
    kv_heads: int
    head_dim: int
    vocabulary: int
    tied: bool
    vision_depth: int
    vision_hidden: int
    vision_intermediate: int
    vision_positions: int
    taps: int
    positions: int  # trained
    experts: int = 0
    expert_intermediate: int = 0

    @classmethod
    def of(cls, config: Mapping[str, Any]) -> Shape:
        """Of a config.json's content, or of a config's `to_dict`."""
        text, vision = config["text_config"], config["vision_config"]
        experts = int(text.get("num_experts") or text.get("num_local_experts") or 0)  # published files; transformers 5
        return cls(
            layers=text["num_hidden_layers"],
            hidden=text["hidden_size"],
            intermediate=text["intermediate_size"],
            heads=text["num_attention_heads"],
            kv_heads=text["num_key_value_heads"],
            head_dim=text.get("head_dim") or text["hidden_size"] // text["num_attention_heads"],
            vocabulary=text["vocab_size"],
            tied=bool(config.get("tie_word_embeddings", text.get("tie_word_embeddings", False))),
            vision_depth=vision["depth"],
            vision_hidden=vision["hidden_size"],
            vision_intermediate=vision["intermediate_size"],
            vision_positions=vision["num_position_embeddings"],
            taps=len(vision["deepstack_visual_indexes"]),
            positions=text["max_position_embeddings"],
            experts=experts,
            expert_intermediate=text["moe_intermediate_size"] if experts else 0,
        )

    @property
    def linears(self) -> list[tuple[int, int]]:
        """(outputs, inputs) of the quantizable matrices of one text layer."""
        attention = [
            (self.heads * self.head_dim, self.hidden),
            (self.kv_heads * self.head_dim, self.hidden),
            (self.kv_heads * self.head_dim, self.hidden),
            (self.hidden, self.heads * self.head_dim),
        ]
        if self.experts:
            return attention
        return [*attention, *[(self.intermediate, self.hidden)] * 2, (self.hidden, self.intermediate)]

    @property
    def expert_linears(self) -> list[tuple[int, int]]:
        """As `linears`, of all experts of one layer: quantized in FP8 checkpoints only."""
        return [(2 * self.expert_intermediate, self.hidden), (self.hidden, self.expert_intermediate)] * self.experts

    @property
    def growth(self) -> float:
        """Operations that one token before another adds to it, as a share of those it needs anyway."""
        experts = CHOSEN * 3 * self.hidden * self.expert_intermediate if self.experts else 0
        weights = sum(rows * columns for rows, columns in self.linears) + experts
        return 4 * self.heads * self.head_dim / (2 * weights)

    @property
    def text_rest(self) -> int:
        """Weights of the text model that are never quantized, without embeddings and head."""
        router = self.experts * self.hidden
        return self.layers * (2 * self.hidden + 2 * self.head_dim + router) + self.hidden

    @property
    def vision_weights(self) -> int:
        hidden, inner = self.vision_hidden, self.vision_intermediate
        block = 4 * hidden * hidden + 2 * hidden * inner + 9 * hidden + inner
        merged = 4 * hidden
        merger = merged * merged + merged + merged * self.hidden + self.hidden
        norms = 2 * hidden + self.taps * 2 * merged
        outside = (PATCH_VALUES + 1) * hidden + self.vision_positions * hidden
        return self.vision_depth * block + (1 + self.taps) * merger + norms + outside

    @property
    def embeddings(self) -> int:
        return self.vocabulary * self.hidden

    @property
    def parameters(self) -> int:
        linears = self.layers * sum(rows * columns for rows, columns in [*self.linears, *self.expert_linears])
        return linears + self.text_rest + self.embeddings * (1 if self.tied else 2) + self.vision_weights


def real(
    layers: int,
    hidden: int,
    intermediate: int,
    heads: int,
    kv_heads: int,
    *,
    small_vision: bool = False,
    tied: bool = False,
    experts: int = 0,
    expert_intermediate: int = 0,
) -> Shape:
    """A published Qwen3-VL; they share everything else."""
    depth, vision_hidden, vision_intermediate = (24, 1024, 4096) if small_vision else (27, 1152, 4304)
    return Shape(
        layers=layers,
        hidden=hidden,
        intermediate=intermediate,
        heads=heads,
        kv_heads=kv_heads,
        head_dim=128,
        vocabulary=151_936,
        tied=tied,
        vision_depth=depth,
        vision_hidden=vision_hidden,
        vision_intermediate=vision_intermediate,
        vision_positions=2304,
        taps=3,
        positions=NATIVE,
        experts=experts,
        expert_intermediate=expert_intermediate,
    )


KNOWN: dict[str, Shape] = {  # by short name, from the published config.json files
    "2b": real(28, 2048, 6144, 16, 8, small_vision=True, tied=True),
    "4b": real(36, 2560, 9728, 32, 8, small_vision=True, tied=True),
    "8b": real(36, 4096, 12_288, 32, 8),
    "32b": real(64, 5120, 25_600, 64, 8),
    "30b-a3b": real(48, 2048, 6144, 32, 4, experts=128, expert_intermediate=768),
    "235b-a22b": real(94, 4096, 12_288, 64, 4, experts=128, expert_intermediate=1536),
}


def linear_bytes(rows: int, columns: int, quantization: Weights, element: int) -> int:
    """Of one matrix. As bitsandbytes holds it: int8 with a float32 scale a row, nf4 with one for 64 weights. FP8 has
    one for each block of 128 x 128."""
    weights = rows * columns
    if quantization == "fp8":
        return weights + 4 * -(-rows // FP8_BLOCK) * -(-columns // FP8_BLOCK)
    if quantization == "8bit":
        return weights + 4 * rows
    if quantization == "4bit":
        return -(-weights // 2) + 4 * -(-weights // GROUP)
    return weights * element


def weight_parts(shape: Shape, quantization: Weights, element: int = 2) -> dict[str, int]:
    """Of the loaded weights; `element` is the size of an unquantized one."""
    linears = sum(linear_bytes(rows, columns, quantization, element) for rows, columns in shape.linears)
    experts: Weights = "fp8" if quantization == "fp8" else "none"
    linears += sum(linear_bytes(rows, columns, experts, element) for rows, columns in shape.expert_linears)
    return {
        "text": shape.layers * linears + shape.text_rest * element,
        "embeddings": shape.embeddings * element,
        "head": 0 if shape.tied else shape.embeddings * element,
        "vision": shape.vision_weights * element,
    }


def weight_bytes(shape: Shape, quantization: Weights, element: int = 2) -> int:
    return sum(weight_parts(shape, quantization, element).values())


def kv_bytes_per_token(shape: Shape, kv: KVFormat, element: int = 2) -> int:
    """Keys and values of all layers, scales included.

    int8 has a float16 scale for each head; int4 a float16 scale and zero, for 64 tokens of each channel of the keys
    and for at most 64 channels of each token of the values.
    """
    size = shape.head_dim
    if kv == "bf16":
        both = 2 * size * element
    elif kv == "int8":
        both = 2 * (size + 2)
    else:
        both = size + 4 * size // GROUP + 4 * -(-size // GROUP)
    return shape.layers * shape.kv_heads * both


def kv_bytes_per_slot(shape: Shape, kv: KVFormat, element: int = 2) -> int:
    """Beside its tokens: the last two groups of an int4 slot are held exactly."""
    return shape.layers * shape.kv_heads * 2 * 2 * GROUP * shape.head_dim * element if kv == "int4" else 0


def kv_bytes(shape: Shape, kv: KVFormat, tokens: int, element: int = 2) -> int:
    """Of one conversation."""
    return round_up(tokens) * kv_bytes_per_token(shape, kv, element) + kv_bytes_per_slot(shape, kv, element)


def round_up(tokens: int) -> int:
    return -(-tokens // ROUND) * ROUND


def working_parts(shape: Shape, kv: KVFormat, element: int = 2, *, quantization: Weights = "none") -> dict[str, int]:
    """Beside weights and KV, whatever the context: one prefill chunk, one group of pictures, logits, the rest."""
    query, key = (count * shape.head_dim * CHUNK * element for count in (shape.heads, shape.kv_heads))
    rows = CHUNK * element * shape.hidden
    inner = CHUNK * element * (CHOSEN * shape.expert_intermediate if shape.experts else shape.intermediate)
    attention = 3 * (rows + query + key)
    if kv != "bf16":  # float32 sums, and either scores with what they are of, or a block made exact
        sums, exact = 4 * query // element, 2 * CUDA_BLOCK * shape.kv_heads * shape.head_dim * element
        attention += 2 * sums + max(SCORES * (4 + element) + 10 * key, exact + query, exact * 3 // 2 - sums)
    prefill = 3 * rows + 4 * inner + (3 * CHOSEN * rows if shape.experts else 0)  # each expert's answer to its rows
    widest = max(  # of the layers that read the same rows at once
        (shape.heads + 2 * shape.kv_heads) * shape.head_dim, 2 * (shape.expert_intermediate or shape.intermediate)
    )
    drawing = DECODING * (element + 8 * 4)  # logits, and what drawing a token makes of them
    guessing = DECODING * GUESSED * (element + 4)  # logits behind every guess, which int4 never makes
    hidden = shape.vision_hidden
    tower = max(
        PATCH_VALUES * element + 16 * hidden,  # positions interpolated from four in float32
        element * (PATCH_VALUES + 3 * hidden + 2 * shape.vision_intermediate)
        + 4 * hidden
        + shape.taps * shape.hidden * element // 4
        + ROTATED,
    )
    return {
        "prefill": prefill,
        "attention": max(0, attention - prefill),  # it is never there together with the rest of a layer
        "unpacked": widest * shape.hidden * element if quantization == "fp8" else 0,
        "pictures": VISION_ROWS * tower,
        "features": CHUNK * (1 + shape.taps) * shape.hidden * element,
        "logits": shape.vocabulary * max(drawing, 0 if kv == "int4" else guessing),
        "workspace": CONTEXT + FRAGMENTATION,
    }


def working_bytes(shape: Shape, kv: KVFormat, element: int = 2, *, quantization: Weights = "none") -> int:
    return sum(working_parts(shape, kv, element, quantization=quantization).values())


@dataclass(frozen=True)
class Plan:
    """What one conversation of `tokens` needs on a CUDA device."""

    quantization: Weights
    kv: KVFormat
    tokens: int
    parts: Mapping[str, int]

    @property
    def bytes(self) -> int:
        return sum(self.parts.values())


def plan(shape: Shape, quantization: Weights, tokens: int, kv: KVFormat) -> Plan:
    working = working_parts(shape, kv, quantization=quantization)
    parts = {**weight_parts(shape, quantization), "kv": kv_bytes(shape, kv, tokens), **working}
    return Plan(quantization, kv, tokens, parts)


def most_tokens(shape: Shape, quantization: Weights, kv: KVFormat, memory: int) -> int:
    """That fit in `memory`, weights and all; 0 when not even the weights do."""
    room = memory - plan(shape, quantization, 0, kv).bytes
    return max(0, room // kv_bytes_per_token(shape, kv) // ROUND * ROUND)


def allowed(shape: Shape, quantization: Quantization | Weights, kv: KVCacheKind) -> Iterable[tuple[Weights, KVFormat]]:
    """The choices a person's settings leave, least loss first. Experts cannot be quantized while loading."""
    if quantization == "fp8":
        yield from (("fp8", format) for format in FORMATS if kv in ("auto", format))
    for weights, format in CHOICES:
        if weights != "none" and shape.experts:
            continue
        if quantization in ("auto", weights) and kv in ("auto", format):
            yield weights, format


def choose(
    shape: Shape,
    memory: int,
    tokens: int | None = None,
    quantization: Quantization | Weights = "auto",
    kv: KVCacheKind = "auto",
) -> Plan | None:
    """The least loss with which `tokens` (None: the usual) fit; None when nothing does."""
    wanted = tokens or min(USUAL_TOKENS, shape.positions)
    plans = (plan(shape, weights, wanted, format) for weights, format in allowed(shape, quantization, kv))
    return next((each for each in plans if each.bytes <= memory), None)


def choose_kv(shape: Shape, room: int, tokens: int | None = None, element: int = 2) -> KVFormat:
    """The finest format that holds `tokens` (None: the usual) in `room`, which is for keys and values alone."""
    wanted = tokens or min(USUAL_TOKENS, shape.positions)
    fitting = (format for format in FORMATS if kv_bytes(shape, format, wanted, element) <= room)
    return next(fitting, "int4")


def in_thousands(tokens: int) -> str:
    return f"{tokens // 1000:,}K"


def table(
    memory: int,
    tokens: int,
    *,
    quantization: Quantization = "auto",
    kv: KVCacheKind = "auto",
    shapes: Mapping[str, Shape] = KNOWN,
) -> str:
    """What `python app.py --plan` prints for a card with `memory`; a setting that is not auto leaves out the others."""
    usable = memory - OTHERS
    formats: Sequence[KVFormat] = [format for format in FORMATS if kv in ("auto", format)]
    lines = [
        f"Calculated for {memory / GIB:.1f} GiB of device memory, {OTHERS / GIB:.0f} of them left to other programs.",
        f"GiB for one conversation of {tokens:,} tokens; where that does not fit, the tokens that do.",
        "",
        f"{'model':<14}{'weights':<9}{'GiB':>6}" + "".join(f"{'KV ' + format:>20}" for format in formats),
    ]
    best: tuple[int, str, Plan] | None = None
    for name, shape in shapes.items():
        for weights in get_args(Weights):
            if weights == "fp8":
                left_out = quantization != "auto"
            else:
                left_out = not any(weights == each for each, _ in allowed(shape, quantization, kv))
            if left_out:
                continue
            called = f"{name}-fp8" if weights == "fp8" else name
            line = f"{called:<14}{weights:<9}{weight_bytes(shape, weights) / GIB:>6.1f}"
            for format in formats:
                needed = plan(shape, weights, tokens, format).bytes
                fits = needed <= usable
                most = most_tokens(shape, weights, format, usable)
                says = "fits" if fits else f"{in_thousands(most)}" if most else "does not"
                line += f"{needed / GIB:>10.1f} {says:<9}"
            lines.append(line.rstrip())
        found = choose(shape, usable, tokens, quantization, kv)
        if found is not None and (best is None or shape.parameters > best[0]):
            best = (shape.parameters, name, found)
    lines.append("")
    if best is None:
        lines.append(f"Nothing fits {tokens:,} tokens: choose a smaller --context-length.")
    else:
        _, name, found = best
        lines.append(
            f"The largest that fits: --model {name} --quantization {found.quantization} --kv-cache {found.kv} "
            f"--context-length {tokens} ({found.bytes / GIB:.1f} GiB)."
        )
    return "\n".join(lines)
