"""The demo model: a very small Qwen3-VL, and a forward pass lean enough to train it on a CPU.

`forward` runs the stock modules' own parameters (so a checkpoint is stock from the first step) but batches what the
stock forward loops over: all pictures of one size go through the vision tower as one batch, attention is dense per
picture, and a row may hold several questions about one context that do not see each other. On CPUs with AVX-512 BF16
the matrix products run in bfloat16, about 4.5 times as fast as float32 (measured: 395 against 89 GFLOP/s on one core).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

PATCH = 16
MERGE = 2
POSITIONS = 4096  # native length, in positions
SHARPNESS = 1.75  # first weight of the query and key norms: at 1, attention is too soft to single out one digit


def build_config(tokenizer: Any) -> Any:
    from transformers import Qwen3VLConfig

    def token(name: str) -> int:
        return int(tokenizer.convert_tokens_to_ids(name))

    return Qwen3VLConfig(
        text_config=dict(
            vocab_size=(len(tokenizer) + 63) // 64 * 64,
            hidden_size=256,
            intermediate_size=640,
            num_hidden_layers=7,
            num_attention_heads=8,
            num_key_value_heads=4,
            head_dim=64,
            max_position_embeddings=POSITIONS,
            rope_parameters={
                "rope_type": "default",
                "rope_theta": 10_000.0,  # 32 frequencies up to a wavelength of 47,000 positions
                "mrope_section": [12, 10, 10],
                "mrope_interleaved": True,
            },
            tie_word_embeddings=True,
        ),
        vision_config=dict(
            depth=4,
            hidden_size=160,
            intermediate_size=448,
            num_heads=5,
            out_hidden_size=256,
            num_position_embeddings=64,
            deepstack_visual_indexes=[1, 2],
        ),
        image_token_id=token("<|image_pad|>"),
        video_token_id=token("<|video_pad|>"),
        vision_start_token_id=token("<|vision_start|>"),
        vision_end_token_id=token("<|vision_end|>"),
        tie_word_embeddings=True,
    )


def build_model(tokenizer: Any, seed: int) -> Any:
    """Random weights; both frames of a temporal patch start with the same kernel, so a still is no special case."""
    from transformers import Qwen3VLForConditionalGeneration

    torch.manual_seed(seed)
    model = Qwen3VLForConditionalGeneration(build_config(tokenizer))
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.ndim == 2 and "embed" not in name:
                torch.nn.init.normal_(weight, std=(weight.shape[1] * 2) ** -0.5)
            if name.endswith(("o_proj.weight", "down_proj.weight", "attn.proj.weight", "mlp.linear_fc2.weight")):
                weight.mul_(0.3)
            if name.endswith(("q_norm.weight", "k_norm.weight")):
                weight.fill_(SHARPNESS)
        kernel = model.model.visual.patch_embed.proj.weight  # [hidden, 3, 2, 16, 16]
        torch.nn.init.normal_(kernel, std=0.03)
        kernel[:, :, 1] = kernel[:, :, 0]
        torch.nn.init.normal_(model.model.language_model.embed_tokens.weight, std=0.03)
    return model


@dataclass(frozen=True)
class Pictures:
    """All pictures of one size in a batch. `rows` and `columns` count merged cells."""

    pixels: Tensor  # [pictures, 4 * rows * columns, 768] in the model's patch order, of the one frame shown twice
    rows: int
    columns: int


@dataclass(frozen=True)
class Batch:
    """Rows of tokens: a context (segment 0) and independent branches after it (segments 1, 2, ...); padding is -1."""

    ids: Tensor  # [rows, length] int64
    positions: Tensor  # [3, rows, length] int64
    segments: Tensor  # [rows, length] int64
    targets: Tensor  # [rows, length] int64: the next token where it belongs to an answer, else -100
    pictures: tuple[Pictures, ...]
    visual_index: Tensor  # [visual tokens] int64: their places in the flattened rows
    feature_index: Tensor  # [visual tokens] int64: which cell of all pictures stands there; a still scene is seen once
    shown: Tensor  # [rows, length] int64: number of the picture a visual token is of, from 1; else 0
    wanted: Tensor  # [rows, length] int64: number of the picture that answers the token to be predicted; else 0
    tenths: Tensor  # [rows, length] int64: stamp of a visual token's moment in tenths of a second; else -1
    boxes: Tensor  # [rows, length, 4] int64: of a visual token: the box of the thing in its cell, 0..1000; else -1
    looks: Tensor  # [n, 4] int64: row, token that looks, token it should look at, kind (`encoding.Row`)
    letters: Tensor  # [n, 4] int64: row, token of a cell, slot and token of a letter in it
    links: Tensor  # [n, 4] int64: row, token of a cell, kind of link, stamp of the earlier moment or -1


def patches_of(frames: Tensor) -> Tensor:
    """uint8 [n, height, width, 3] -> float [n, patches, 768] normalised, four patches of a merged cell together."""
    count, height, width, _ = frames.shape
    x = (frames.permute(0, 3, 1, 2).float() - 127.5) / 127.5
    x = x.reshape(count, 3, height // 32, MERGE, PATCH, width // 32, MERGE, PATCH)
    return x.permute(0, 2, 5, 3, 6, 1, 4, 7).reshape(count, height * width // 256, 768)


def rms_norm(x: Tensor, module: Any) -> Tensor:
    return F.rms_norm(x, (x.shape[-1],), module.weight.to(x.dtype), module.variance_epsilon)


def layer_norm(x: Tensor, module: Any) -> Tensor:
    return F.layer_norm(x, module.normalized_shape, module.weight.to(x.dtype), module.bias.to(x.dtype), module.eps)


def linear(x: Tensor, module: Any) -> Tensor:
    bias = module.bias
    return F.linear(x, module.weight.to(x.dtype), None if bias is None else bias.to(x.dtype))


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    first, second = x.chunk(2, dim=-1)
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1)


def attend(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
    """[..., heads, length, head_dim]; a mask hides at least what comes after.

    Written out, which is the fastest form in bfloat16 on a CPU; long rows a quarter at a time, each without what comes
    after it: 40 % less time of 800 tokens and more (measured).
    """
    if query.is_cuda:
        return F.scaled_dot_product_attention(query, key, value, attn_mask=mask)
    query = query * query.shape[-1] ** -0.5
    if mask is None:
        return (query @ key.transpose(-1, -2)).softmax(-1) @ value
    length = query.shape[-2]
    parts = 4 if length >= 400 else 1
    mixed = []
    for part in range(parts):
        begin, end = length * part // parts, length * (part + 1) // parts
        scores = query[..., begin:end, :] @ key[..., :end, :].transpose(-1, -2) + mask[..., begin:end, :end]
        mixed.append(scores.softmax(-1) @ value[..., :end, :])
    return torch.cat(mixed, dim=-2)


def vision(visual: Any, pictures: Pictures, dtype: torch.dtype) -> list[Tensor]:
    """The merged features, then one tensor per DeepStack tap: each [pictures, cells, text hidden]."""
    from transformers.vision_utils import get_vision_interpolation_indices_and_weights, get_vision_position_ids

    count, patches, _ = pictures.pixels.shape
    grid = torch.tensor([[1, pictures.rows * MERGE, pictures.columns * MERGE]])
    index, weight = get_vision_interpolation_indices_and_weights(
        grid, num_grid_per_side=visual.num_grid_per_side, mode="bilinear", align_corners=True, spatial_merge_size=MERGE
    )
    device = pictures.pixels.device
    place = (visual.pos_embed(index.to(device)) * weight.to(device)[:, :, None]).sum(1)  # [patches, hidden]
    positions = get_vision_position_ids(grid, MERGE).to(device)
    cos, sin = visual.rotary_pos_emb(place, positions)
    half = cos.shape[-1] // 2
    cos, sin = cos[:, None, :half].to(dtype), sin[:, None, :half].to(dtype)  # [patches, 1, head_dim / 2]

    projection = visual.patch_embed.proj
    kernel = projection.weight.sum(2).reshape(projection.weight.shape[0], -1)  # a still: one frame meets both kernels
    x = F.linear(pictures.pixels.to(dtype), kernel.to(dtype), projection.bias.to(dtype)).float() + place
    outputs = []
    for number, block in enumerate(visual.blocks):
        x = run_block(block, x, cos, sin)
        if number in visual.deepstack_visual_indexes:
            tap = visual.deepstack_merger_list[visual.deepstack_visual_indexes.index(number)]
            outputs.append(merge(x.to(dtype), tap))
    return [merge(x.to(dtype), visual.merger), *outputs]


def vision_block(block: Any, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    count, patches, _ = x.shape
    heads = block.attn.num_heads
    qkv = linear(layer_norm(x.to(cos.dtype), block.norm1), block.attn.qkv).view(count, patches, 3, heads, -1)
    query, key, value = qkv.unbind(2)  # [pictures, patches, heads, head_dim]
    query, key = rotate(query, cos, sin).transpose(1, 2), rotate(key, cos, sin).transpose(1, 2)
    mixed = attend(query, key, value.transpose(1, 2), None).transpose(1, 2).reshape(count, patches, -1)
    x = x + linear(mixed, block.attn.proj)
    hidden = F.gelu(linear(layer_norm(x.to(cos.dtype), block.norm2), block.mlp.linear_fc1), approximate="tanh")
    return x + linear(hidden, block.mlp.linear_fc2)


def merge(x: Tensor, merger: Any) -> Tensor:
    count, patches, hidden = x.shape
    cells = (count, patches // MERGE**2, hidden * MERGE**2)
    if merger.use_postshuffle_norm:
        x = layer_norm(x.reshape(cells), merger.norm)
    else:
        x = layer_norm(x, merger.norm).reshape(cells)
    return linear(F.gelu(linear(x, merger.linear_fc1)), merger.linear_fc2)


def attention_mask(segments: Tensor, dtype: torch.dtype) -> Tensor:
    """[rows, 1, length, length], 0 where a token may look: back, at the context or at its own branch."""
    length = segments.shape[1]
    earlier = torch.ones(length, length, dtype=torch.bool, device=segments.device).tril()
    known = (segments[:, None, :] == 0) | (segments[:, None, :] == segments[:, :, None])
    mask = torch.zeros(segments.shape[0], 1, length, length, dtype=dtype, device=segments.device)
    return mask.masked_fill_(~(earlier & known)[:, None], -1e4)


def decoder_layer(layer: Any, x: Tensor, cos: Tensor, sin: Tensor, mask: Tensor) -> Tensor:
    rows, length, _ = x.shape
    own = layer.self_attn
    dtype = mask.dtype
    normed = rms_norm(x.to(dtype), layer.input_layernorm)
    query = rotate(rms_norm(linear(normed, own.q_proj).view(rows, length, -1, own.head_dim), own.q_norm), cos, sin)
    key = rotate(rms_norm(linear(normed, own.k_proj).view(rows, length, -1, own.head_dim), own.k_norm), cos, sin)
    value = linear(normed, own.v_proj).view(rows, length, -1, own.head_dim)
    groups = own.num_key_value_groups
    key, value = key.repeat_interleave(groups, dim=2), value.repeat_interleave(groups, dim=2)
    mixed = attend(query.transpose(1, 2), key.transpose(1, 2), value.transpose(1, 2), mask)
    x = x + linear(mixed.transpose(1, 2).reshape(rows, length, -1), own.o_proj)
    normed = rms_norm(x.to(dtype), layer.post_attention_layernorm)
    hidden = F.silu(linear(normed, layer.mlp.gate_proj)) * linear(normed, layer.mlp.up_proj)
    return x + linear(hidden, layer.mlp.down_proj)


run_layer, run_block = decoder_layer, vision_block


def compile_blocks() -> None:
    """Fuse what stands between the matrix products: 30 % less time per step on a CPU (measured), half a minute once."""
    global run_layer, run_block
    torch._dynamo.config.cache_size_limit = 64
    run_layer = torch.compile(decoder_layer, dynamic=True)
    run_block = torch.compile(vision_block, dynamic=True)


def forward(model: Any, batch: Batch, dtype: torch.dtype, *, everywhere: bool = False, guidance: Any = None) -> Tensor:
    """Logits at the tokens that have a target [n, vocabulary]; with `everywhere` at all [rows, length, vocabulary]."""
    language = model.model.language_model
    rows, length = batch.ids.shape
    x = language.embed_tokens(batch.ids).float()
    width = x.shape[-1]
    taps: list[Tensor] = []
    if batch.pictures:
        features = [vision(model.model.visual, pictures, dtype) for pictures in batch.pictures]
        merged, *taps = [
            torch.cat([f.flatten(0, 1) for f in level]).float()[batch.feature_index]
            for level in zip(*features, strict=True)
        ]
        x = x.flatten(0, 1).index_copy(0, batch.visual_index, merged).view(rows, length, width)
    cos, sin = language.rotary_emb(x, batch.positions)
    half = cos.shape[-1] // 2
    cos, sin = cos[:, :, None, :half].to(dtype), sin[:, :, None, :half].to(dtype)  # [rows, length, 1, head_dim / 2]
    mask = attention_mask(batch.segments, dtype)
    for number, layer in enumerate(language.layers):
        if guidance is not None:
            guidance.before(number, layer, x, cos, sin, mask)
        x = run_layer(layer, x, cos, sin, mask)
        if number < len(taps):
            x = x.flatten(0, 1).index_add(0, batch.visual_index, taps[number]).view(rows, length, width)
        if guidance is not None:
            guidance.after(number, x)
    if not everywhere:
        x = x[batch.targets >= 0]
    return linear(rms_norm(x.to(dtype), language.norm), model.lm_head)


def picture_positions(start: int, rows: int, columns: int) -> tuple[Sequence[Sequence[int]], int]:
    """Positions (3 lists) of one block of visual tokens and where the next token stands."""
    cells = [(start, start + row, start + column) for row in range(rows) for column in range(columns)]
    return list(zip(*cells, strict=True)), start + max(rows, columns)
