"""Compiles launches for GPUs that need not be present, and reads the resources that the compiled kernels use.

Not available under the interpreter, whose kernels have no machine code.
"""

from __future__ import annotations

import re
import subprocess
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from ..core.plan import Plan
from .configs import KINDS, Config
from .launch import Launch, Sources, project_launch, score_launch

_POINTERS = {
    torch.float32: "*fp32",
    torch.bfloat16: "*bf16",
    torch.float16: "*fp16",
    torch.uint8: "*u8",
    torch.int8: "*i8",
    torch.int64: "*i64",
}
FORMS = ("dense", "request", "catalog")


class Resources(NamedTuple):
    """Resources of a compiled kernel."""

    registers: int  # per thread
    spilled: int  # bytes of stack per thread, for registers that did not fit
    shared: int  # bytes per program


def compile_launch(launch: Launch, capability: int) -> Any:
    """Compile a launch's kernel for an NVIDIA GPU of this capability (90: sm_90)."""
    constants, signature, attributes = dict(launch.constants), {}, {}
    for place, name in enumerate(launch.kernel.arg_names):
        value = launch.arguments.get(name)
        if value is None:
            constants.setdefault(name, None)
        signature[name] = _type_of(name, value)
        if isinstance(value, Tensor) or (isinstance(value, int) and value % 16 == 0):
            attributes[(place,)] = [["tt.divisibility", 16]]
    source = ASTSource(launch.kernel, signature=signature, constexprs=constants, attrs=attributes)
    return triton.compile(source, target=GPUTarget("cuda", capability, 32), options=launch.options)


def _type_of(name: str, value: Any) -> str:
    if value is None:
        return "constexpr"
    if isinstance(value, Tensor):
        return _POINTERS[value.dtype]
    if isinstance(value, float):
        return "fp32"
    return "i64" if name.endswith("stride") else "i32"


def resources(compiled: Any) -> Resources:
    """Read the resources with cuobjdump, which comes with Triton."""
    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(compiled.asm["cubin"])
        file.flush()
        shown = subprocess.run([tool, "-res-usage", file.name], capture_output=True, text=True, check=True).stdout
    found = re.search(r"REG:(\d+) STACK:(\d+)", shown)
    if found is None:
        raise RuntimeError(f"cuobjdump: registers and stack were expected, got {shown!r}")
    return Resources(int(found[1]), int(found[2]), compiled.metadata.shared)


def launch_of(
    plan: Plan, kind: str, form: str, config: Config, rows: torch.dtype, user_features: int, count: int = 65536
) -> Launch:
    """A launch of a kind of kernel on tensors without data, for :func:`compile_launch`."""
    if kind not in KINDS or form not in FORMS:
        raise ValueError(f"kind must be one of {', '.join(KINDS)} and form of {', '.join(FORMS)}, got {kind}, {form}")

    def empty(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.empty(shape, dtype=dtype, device="meta")

    packed = empty(plan.packed_bytes, dtype=torch.uint8)
    if kind == "project":
        out = empty(64, plan.table_width)
        return project_launch(empty(64, user_features, dtype=rows), 0, packed, plan, True, out, config, False)
    outputs = (empty(count, plan.tasks), empty(count, plan.tasks), empty(count))
    starts, offsets = empty(64, plan.table_width), empty(65, dtype=torch.int64)
    if form == "dense":
        sources = Sources(empty(count, plan.in_features, dtype=rows), 0, count)
    elif form == "request":
        items = empty(count, plan.in_features - user_features, dtype=rows)
        sources = Sources(items, user_features, count, starts, offsets)
    else:
        table = empty(count, plan.table_width, dtype=torch.bfloat16)
        ids = empty(count, dtype=torch.int64)
        sources = Sources(None, plan.in_features, count, starts, offsets, ids, table)
    return score_launch(sources, packed, plan, empty(plan.tasks), "additive", "call", config, outputs, False)
