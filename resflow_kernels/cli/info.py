"""``resflow info``: what is installed and which kernels it will use."""

from __future__ import annotations

import json
import os
import platform
from importlib.util import find_spec
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from .. import __version__
from ..core.machine import usable_cores
from ..serving.scorer import compiled


def info(as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False) -> None:
    """Show versions, instruction sets, threads, devices, and which kernels score."""
    facts = collect()
    if as_json:
        print(json.dumps(facts, indent=2))
        return
    table = Table(show_header=False, box=None)
    for name, text in _lines(facts):
        table.add_row(name, text)
    Console().print(table)


def collect() -> dict[str, Any]:
    """All facts, as printed by ``--json``."""
    return {
        "version": __version__,
        "python": platform.python_version(),
        "machine": platform.machine(),
        "cores": os.cpu_count(),
        "threads": usable_cores(),
        "runtime": _runtime(),
        "torch": _torch() if find_spec("torch") else None,
    }


def _runtime() -> dict[str, Any]:
    asked = os.environ.get("RESFLOW_ISA")
    try:
        library = compiled()
        return {
            "built": True,
            "isa": library.isa(),
            "supported": library.supported_isas(),
            "compiled": library.compiled_isas(),
            "RESFLOW_ISA": asked,
        }
    except (ImportError, ValueError, RuntimeError) as error:  # the latter two: RESFLOW_ISA names no kernels
        return {"built": False, "error": str(error), "RESFLOW_ISA": asked}


def _torch() -> dict[str, Any]:
    import torch

    from .. import ops

    loaded, text = ops.library_status()
    gpus = [_gpu(torch.cuda.get_device_properties(at)) for at in range(torch.cuda.device_count())]
    devices = ["cpu", *(f"cuda:{at} ({gpu['name']}, {gpu['capability']})" for at, gpu in enumerate(gpus))]
    kinds = ["cpu", *(["cuda"] if gpus else [])]
    return {
        "version": torch.__version__,
        "ops_loaded": loaded,
        "ops_status": text,
        "cuda": _cuda(gpus),
        "devices": devices,
        "triton": _triton(),
        "RESFLOW_BACKEND": os.environ.get("RESFLOW_BACKEND"),
        "backends": {kind: _decision(kind) for kind in kinds},
    }


def _triton() -> dict[str, Any]:
    """Facts about Triton, whose kernels are compiled when they are first needed."""
    from ..ops import backends

    installed = backends.installed()
    version = None
    if backends.has_triton():
        from importlib.metadata import version as version_of

        version = version_of("triton")
    return {"version": version, "gpus": installed.triton, "interpreter": installed.triton_interpreter}


def _decision(kind: str) -> dict[str, str]:
    """The backend that scores a float32 model's dense, request and catalog forms on a type of device, and why."""
    from ..core.plan import Plan
    from ..ops import backends

    try:
        return backends.decide(kind, Plan(1), "dense")._asdict()
    except ValueError as error:
        return {"backend": "none", "reason": str(error)}


def _gpu(properties: Any) -> dict[str, Any]:
    return {
        "name": properties.name,
        "capability": f"{properties.major}.{properties.minor}",
        "multiprocessors": properties.multi_processor_count,
    }


def _cuda(gpus: list[dict[str, Any]]) -> dict[str, Any]:
    """Facts about the GPU kernels: whether they were built, with what and for what, and whether they are loaded."""
    from .. import ops
    from ..core import build
    from ..ops import library

    built = library.CUDA_LIBRARY.exists()
    facts = build.facts() if built else {}
    loaded, text = ops.cuda_status()
    return {
        "built": built,
        "nvcc": facts.get("cuda"),
        "architectures": facts.get("architectures", []),
        "loaded": loaded,
        "status": text,
        "gpus": gpus,
    }


def _lines(facts: dict[str, Any]) -> list[tuple[str, str]]:
    runtime, torch = facts["runtime"], facts["torch"]
    lines = [
        ("resflow-kernels", facts["version"]),
        ("python", f"{facts['python']} on {facts['machine']}"),
        ("threads", f"{facts['threads']} usable of {facts['cores']} cores"),
    ]
    if runtime["built"]:
        override = f" (RESFLOW_ISA={runtime['RESFLOW_ISA']})" if runtime["RESFLOW_ISA"] else ""
        lines += [
            ("instruction set", runtime["isa"] + override),
            ("runs here", ", ".join(runtime["supported"])),
            ("compiled in", ", ".join(runtime["compiled"])),
        ]
    else:
        lines.append(("compiled library", f"not usable: {runtime['error']}"))
    if torch is None:
        return [*lines, ("torch", "not installed (Scorer does not need it)")]
    backends = "; ".join(f"{kind}: {one['backend']} ({one['reason']})" for kind, one in torch["backends"].items())
    return [
        *lines,
        ("torch", torch["version"]),
        ("torch ops", ("" if torch["ops_loaded"] else "not loaded: ") + torch["ops_status"]),
        ("GPU kernels", _gpu_kernels(torch["cuda"])),
        ("triton", _triton_text(torch["triton"])),
        ("devices", ", ".join(torch["devices"])),
        ("op backends", backends),
    ]


def _triton_text(triton: dict[str, Any]) -> str:
    return ("" if triton["version"] is None else f"{triton['version']}; ") + (triton["gpus"] or "serves GPUs")


def _gpu_kernels(cuda: dict[str, Any]) -> str:
    built = f"CUDA {cuda['nvcc']} for {', '.join(cuda['architectures'])}; " if cuda["architectures"] else ""
    return built + ("" if cuda["loaded"] else "not loaded: ") + cuda["status"]
