"""Builds every Triton kernel to machine code for an NVIDIA architecture; needs no GPU.

    python -m tests.model.build_kernels 80 89 90

Prints one line each: registers and bytes of local memory (spills) of a thread, shared memory of a program.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from qwen3vl_webui.model import fp8_kernels, kernels

COUNTS = {"rows", "starts", "halves"}
NUMBERS = {"capacity", "groups", "key_stride", "query_stride", "value_stride"}
NUMBERS |= {"count", "outputs", "inputs", "across", "down"}
FLOATS = {"answers", "log_sums"}
CODES = {"full": "*bf16", "int8": "*i8", "int4": "*u8"}
CONSTANTS = {"KV_HEADS": 8, "GROUPS": 4, "PADDED": 16, "SIZE": 128, "BLOCK": 64, "GROUP": 64, "SPLITS": 64}
FP8_CONSTANTS = {"PADDED": 16, "OUTPUTS": 16, "BLOCK": 128}
FP8 = {"multiplied", "multiplied_chosen", "unpacking"}
LAUNCHES = {  # warps and stages, as in `kernels.decode`
    **{"stored_full": (1, 3), "stored_int8": (1, 3), "stored_int4": (4, 3), "join": (4, 3)},
    **{"read_full": (4, 2), "read_int8": (4, 3), "read_int4": (4, 3)},
    **{"multiplied": (2, 5), "multiplied_chosen": (4, 3), "unpacking": (4, 3)},
}


def type_of(kernel: str, argument: str) -> str:
    if argument in CONSTANTS or argument in FP8_CONSTANTS:
        return "constexpr"
    if argument in NUMBERS:
        return "i32"
    if argument == "scale":
        return "fp32"
    if argument in COUNTS and kernel not in FP8:
        return "*i32"
    if argument == "chosen":
        return "*i64"
    if argument == "weight":
        return "*fp8e4nv"
    if argument in FLOATS or argument == "scales":
        return "*fp32"
    if argument.endswith("_scales"):
        return "*fp16"
    return CODES[kernel.split("_")[1]] if argument in ("keys", "values") else "*bf16"


def build(name: str, architecture: int) -> Any:
    kernel = getattr(kernels, name, None) or getattr(fp8_kernels, name)
    given = CONSTANTS if hasattr(kernels, name) else FP8_CONSTANTS
    types = {argument: type_of(name, argument) for argument in kernel.arg_names}
    constants = {(kernel.arg_names.index(each),): value for each, value in given.items() if each in types}
    aligned = {
        (index,): [["tt.divisibility", 16]]
        for index, (argument, type) in enumerate(types.items())
        if type.startswith("*") or argument in NUMBERS - {"groups", "count", "across", "down"}
    }
    warps, stages = LAUNCHES[name]
    return triton.compile(
        ASTSource(kernel, signature=types, constexprs=constants, attrs=aligned),
        target=GPUTarget("cuda", architecture, 32),
        options={"num_warps": warps, "num_stages": stages},
    )


def main(architectures: list[int]) -> None:
    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    for architecture in architectures:
        for name in LAUNCHES:
            if architecture < 89 and name in FP8:
                continue  # no FP8 there
            built = build(name, architecture)
            with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
                file.write(built.asm["cubin"])
                file.flush()
                usage = subprocess.run([tool, "-res-usage", file.name], capture_output=True, text=True).stdout
            registers, local = (int(re.findall(rf"{part}:(\d+)", usage)[0]) for part in ("REG", "LOCAL"))
            print(f"sm_{architecture} {name}: registers {registers}, local {local}, shared {built.metadata.shared}")


if __name__ == "__main__":
    main([int(each) for each in sys.argv[1:]])
