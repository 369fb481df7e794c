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
from ..runtime import compiled


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
    """All facts, as ``--json`` prints them."""
    return {
        "version": __version__,
        "python": platform.python_version(),
        "machine": platform.machine(),
        "cores": os.cpu_count(),
        "threads": usable_cores(),
        "runtime": _runtime(),
        "torch": _torch() if find_spec("torch") else None,
    }


def usable_cores() -> int:
    """The cores this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


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
    except (ImportError, ValueError, RuntimeError) as error:  # the latter two: RESFLOW_ISA names none
        return {"built": False, "error": str(error), "RESFLOW_ISA": asked}


def _torch() -> dict[str, Any]:
    import torch

    from .. import ops

    loaded, text = ops.library_status()
    devices = ["cpu", *(f"cuda:{at} ({torch.cuda.get_device_name(at)})" for at in range(torch.cuda.device_count()))]
    kinds = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
    return {
        "version": torch.__version__,
        "ops_loaded": loaded,
        "ops_status": text,
        "devices": devices,
        "backends": {kind: "compiled" if ops.available(kind) else "reference" for kind in kinds},
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
    backends = ", ".join(f"{kind}: {backend}" for kind, backend in torch["backends"].items())
    return [
        *lines,
        ("torch", torch["version"]),
        ("torch ops", ("" if torch["ops_loaded"] else "not loaded: ") + torch["ops_status"]),
        ("devices", ", ".join(torch["devices"])),
        ("op backends", backends),
    ]
