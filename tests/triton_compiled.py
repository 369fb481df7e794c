"""Triton launches compiled ahead of time, for GPUs that need not be there: what their machine code uses.

Not in a process that interprets kernels.
"""

from __future__ import annotations

import re
import subprocess
import tempfile
from typing import Any, NamedTuple

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from resflow_kernels.triton.launch import Launch

TYPES = {
    torch.float32: "*fp32",
    torch.bfloat16: "*bf16",
    torch.float16: "*fp16",
    torch.int8: "*i8",
    torch.uint8: "*u8",
    torch.int64: "*i64",
}

# Bytes of shared memory that a block may have, by capability: of 8.6, 8.9 and 12.0 that of the first.
SHARED_LIMITS = {80: 99 << 10, 90: 227 << 10, 100: 227 << 10}


class Resources(NamedTuple):
    kernel: str
    registers: int
    stack: int  # bytes a thread; spilled registers are there
    shared: int  # bytes a block
    ptx: str


def resources(launch: Launch, capability: int) -> Resources:
    """Of a launch whose tensors may be on the meta device, as if they were aligned as PyTorch allocates them."""
    source = ASTSource(launch.kernel, *_specialised(launch))
    compiled = triton.compile(source, target=GPUTarget("cuda", capability, 32), options=launch.options)
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(compiled.asm["cubin"])
        file.flush()
        tool = triton.knobs.nvidia.cuobjdump.path
        text = subprocess.run([tool, "-res-usage", file.name], capture_output=True, text=True, check=True).stdout
    used = {name: int(value) for name, value in re.findall(r"(REG|STACK|LOCAL):(\d+)", text)}
    stack = used["STACK"] + used["LOCAL"]
    return Resources(compiled.metadata.name, used["REG"], stack, compiled.metadata.shared, compiled.asm["ptx"])


def key_of(launch: Launch) -> str:
    """The same for launches that the same machine code serves."""
    constants = sorted(launch.constants.items())
    return repr((launch.kernel.fn.__name__, constants, launch.options, _specialised(launch)))


def _specialised(launch: Launch) -> tuple[dict[str, str], dict[tuple[int, ...], Any], dict[tuple[int, ...], Any]]:
    """Signature, constants and attributes as Triton's launcher finds them."""
    signature: dict[str, str] = {}
    constants: dict[tuple[int, ...], Any] = {}
    attributes: dict[tuple[int, ...], Any] = {}
    for place, name in enumerate(launch.kernel.arg_names):
        value = launch.constants.get(name, launch.arguments.get(name))
        if name in launch.constants or value is None or (isinstance(value, int) and value == 1):
            signature[name], constants[place,] = "constexpr", value
        elif isinstance(value, float):
            signature[name] = "fp32"
        else:
            tensor = isinstance(value, torch.Tensor)
            signature[name] = TYPES[value.dtype] if tensor else "i32" if value < 1 << 31 else "i64"
            if tensor or value % 16 == 0:
                attributes[place,] = [["tt.divisibility", 16]]
    return signature, constants, attributes
