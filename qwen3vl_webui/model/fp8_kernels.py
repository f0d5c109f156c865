"""Triton kernels over FP8 weights: a few rows times a matrix that stays in 8 bits, each row times the matrix of its own
expert, and a matrix made exact.

weight float8_e4m3fn (out, in), scales float32 (out / 128, in / 128), both contiguous. Imported only where Triton is
needed.
"""

from __future__ import annotations

import logging
from functools import cache

import torch
import triton
import triton.language as tl

from qwen3vl_webui.model.fp8 import BLOCK, FEW, unpacked_plainly

log = logging.getLogger(__name__)

OUTPUTS = 16  # of one program: small, so that even a narrow matrix keeps every multiprocessor reading
TOLERANCE = 0.02


@triton.jit
def multiplied(
    rows, weight, scales, products, count, outputs, inputs, across,
    PADDED: tl.constexpr, OUTPUTS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    program = tl.program_id(0)
    row, output, step = tl.arange(0, PADDED), program * OUTPUTS + tl.arange(0, OUTPUTS), tl.arange(0, BLOCK)
    scales += program * OUTPUTS // BLOCK * across
    weight += output.to(tl.int64)[None, :] * inputs
    answer = tl.zeros((PADDED, OUTPUTS), tl.float32)
    for at in range(0, inputs, BLOCK):
        there = at + step < inputs
        given = tl.load(
            rows + row[:, None] * inputs + (at + step)[None, :], mask=(row < count)[:, None] & there[None, :], other=0.0
        )
        part = tl.load(weight + (at + step)[:, None], mask=there[:, None] & (output < outputs)[None, :], other=0.0)
        # Every e4m3 number is exact in bfloat16, and a program's outputs share a scale: it waits for the product.
        answer += tl.dot(given, part.to(given.dtype), input_precision="ieee") * tl.load(scales + at // BLOCK)
    place = products + row[:, None] * outputs + output[None, :]
    tl.store(place, answer.to(products.dtype.element_ty), mask=(row < count)[:, None] & (output < outputs)[None, :])


@triton.jit
def multiplied_chosen(
    rows, weight, scales, chosen, products, outputs, inputs, across, down,
    OUTPUTS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    program, row = tl.program_id(0), tl.program_id(1)
    expert = tl.load(chosen + row).to(tl.int64)
    output, step = program * OUTPUTS + tl.arange(0, OUTPUTS), tl.arange(0, BLOCK)
    scales += (expert * down + program * OUTPUTS // BLOCK) * across
    weight += (expert * outputs + output)[:, None] * inputs
    answer = tl.zeros((OUTPUTS,), tl.float32)
    for at in range(0, inputs, BLOCK):
        there = at + step < inputs
        given = tl.load(rows + row * inputs + at + step, mask=there, other=0.0).to(tl.float32)
        part = tl.load(weight + (at + step)[None, :], mask=there[None, :] & (output < outputs)[:, None], other=0.0)
        answer += tl.sum(part.to(tl.float32) * given[None, :], 1) * tl.load(scales + at // BLOCK)
    tl.store(products + row * outputs + output, answer.to(products.dtype.element_ty), mask=output < outputs)


@triton.jit
def unpacking(weight, scales, exact, outputs, inputs, across, OUTPUTS: tl.constexpr, BLOCK: tl.constexpr):
    program, block = tl.program_id(0), tl.program_id(1)
    output, input = program * OUTPUTS + tl.arange(0, OUTPUTS), block * BLOCK + tl.arange(0, BLOCK)
    there = (output < outputs)[:, None] & (input < inputs)[None, :]
    place = output.to(tl.int64)[:, None] * inputs + input[None, :]
    scale = tl.load(scales + program * OUTPUTS // BLOCK * across + block)
    part = tl.load(weight + place, mask=there, other=0.0).to(tl.float32) * scale
    tl.store(exact + place, part.to(exact.dtype.element_ty), mask=there)


def multiply(rows: torch.Tensor, weight: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
    """(n, out) of at most FEW rows (n, in)."""
    (count, inputs), outputs = rows.shape, weight.shape[0]
    products = rows.new_empty((count, outputs))
    multiplied[(triton.cdiv(outputs, OUTPUTS),)](
        rows.contiguous(), weight, scales, products, count, outputs, inputs, scales.shape[1],
        max(16, FEW), OUTPUTS, BLOCK, num_warps=2, num_stages=5,
    )  # fmt: skip
    return products


def multiply_chosen(
    rows: torch.Tensor, weight: torch.Tensor, scales: torch.Tensor, chosen: torch.Tensor
) -> torch.Tensor:
    """(n, out) of rows (n, in), each times the matrix of its own expert: weight (E, out, in), int64 chosen (n,).

    Which they are is read on the device, so that nothing waits and the launch can be recorded.
    """
    count, (_, outputs, inputs) = len(rows), weight.shape
    products = rows.new_empty((count, outputs))
    multiplied_chosen[(triton.cdiv(outputs, OUTPUTS), count)](
        rows.contiguous(), weight, scales, chosen.contiguous(), products, outputs, inputs, scales.shape[2],
        scales.shape[1], OUTPUTS, BLOCK, num_warps=4, num_stages=3,
    )  # fmt: skip
    return products


def unpack(weight: torch.Tensor, scales: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """(out, in) in `dtype`."""
    outputs, inputs = weight.shape
    exact = torch.empty((outputs, inputs), dtype=dtype, device=weight.device)
    grid = triton.cdiv(outputs, 32), triton.cdiv(inputs, BLOCK)
    unpacking[grid](weight, scales, exact, outputs, inputs, scales.shape[1], 32, BLOCK, num_warps=4)
    return exact


@cache
def is_trusted(dtype: torch.dtype, device: torch.device) -> bool:
    """Whether the kernels can be built for this device and agree there with torch's operations."""
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(160, 200, generator=generator).to(device, torch.float8_e4m3fn)
    scales = torch.rand(2, 2, generator=generator).to(device) / 10
    rows = torch.randn(3, 200, generator=generator).to(device, dtype)
    try:
        exact = unpacked_plainly(weight, scales, dtype)
        chosen = torch.zeros(3, dtype=torch.int64, device=device)
        pairs = [(unpack(weight, scales, dtype), exact), (multiply(rows, weight, scales), rows @ exact.t())]
        pairs.append((multiply_chosen(rows, weight[None], scales[None], chosen), rows @ exact.t()))
        if all(torch.allclose(a.float(), b.float(), atol=TOLERANCE, rtol=TOLERANCE) for a, b in pairs):
            return True
        log.warning("FP8 weights go without Triton: its kernels do not agree with torch")
    except Exception as error:  # a compiler, a driver or a build of Triton that fails in its own way
        log.warning("FP8 weights go without Triton: %s: %s", type(error).__name__, error)
    return False
