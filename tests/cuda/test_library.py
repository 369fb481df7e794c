"""The library of the GPU kernels: its symbols, what it registers, and what is said where it is not loaded."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from resflow_kernels import ops
from resflow_kernels.contract import OP_SCHEMAS, PLAN_OPS, TRAINING_OPS
from resflow_kernels.ops import library
from tests.support.files import ROOT

# What a torch without CUDA lacks of what the library calls.
CUDA_SHIMS = ("aoti_torch_get_current_cuda_stream", "torch_c10_cuda_check_msg", "torch_c10_cuda_free_error_msg")

built = pytest.mark.skipif(not library.CUDA_LIBRARY.exists(), reason="the GPU kernels are not built")


def undefined_symbols() -> list[str]:
    nm = shutil.which("nm")
    if nm is None:
        pytest.skip("nm (binutils) is not installed")
    command = [nm, "-D", "--undefined-only", str(library.CUDA_LIBRARY)]
    listing = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return [line.split()[-1] for line in listing.splitlines()]


@built
def test_only_the_stable_abi_and_the_c_library_are_used() -> None:
    """No CUDA library is needed to load it, and no symbol that comes and goes with a torch version."""
    of_torch = []
    for symbol in undefined_symbols():
        name, _, version = symbol.partition("@")
        if version.startswith(("GLIBC", "CXXABI", "GCC")) or name.startswith(("_ITM_", "__gmon", "__cxa_")):
            continue
        of_torch.append(name)
    assert of_torch and all(name.startswith(("aoti_torch_", "torch_")) for name in of_torch), of_torch


@pytest.fixture(scope="module")
def shims(tmp_path_factory: pytest.TempPathFactory) -> Path | None:
    """A library of the CUDA shims that this torch lacks; they fail if they are called. ``None`` if it has all."""
    if torch.version.cuda is not None:
        return None
    compiler = shutil.which("c++") or shutil.which("g++")
    if compiler is None:
        pytest.skip("there is no C++ compiler")
    folder = tmp_path_factory.mktemp("shims")
    lines = [f'extern "C" int {name}() {{ return 1; }}' for name in CUDA_SHIMS]
    (folder / "shims.cpp").write_text("\n".join(lines), encoding="utf-8")
    subprocess.run([compiler, "-shared", "-fPIC", "shims.cpp", "-o", "libshims.so"], cwd=folder, check=True)
    return folder / "libshims.so"


def run(script: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, env={**os.environ, **environment}
    )


@built
def test_every_op_but_training_is_registered(shims: Path | None) -> None:
    script = (
        "import ctypes, json, torch\n"
        f"shims = {str(shims) if shims else None!r}\n"
        "shims and ctypes.CDLL(shims, mode=ctypes.RTLD_GLOBAL)\n"
        "from resflow_kernels import contract\n"
        "from resflow_kernels.ops import library\n"
        "library.load()\n"
        f"torch.ops.load_library({str(library.CUDA_LIBRARY)!r})\n"
        "has = torch._C._dispatch_has_kernel_for_dispatch_key\n"
        "print(json.dumps({name: has(f'resflow::{name}', 'CUDA') for name in contract.OP_SCHEMAS}))\n"
    )
    result = run(script, RESFLOW_NO_CUDA="1")
    assert result.returncode == 0, result.stderr
    elsewhere = {*TRAINING_OPS, *PLAN_OPS}
    assert json.loads(result.stdout) == {name: name not in elsewhere for name in OP_SCHEMAS}


STATUS = "from resflow_kernels import ops; print(ops.unsupported_reason('cuda'))"


def test_it_can_be_left_unloaded() -> None:
    if not library.CUDA_LIBRARY.exists():
        pytest.skip("the GPU kernels are not built")
    assert run(STATUS, RESFLOW_NO_CUDA="1").stdout.strip() == "RESFLOW_NO_CUDA=1 asks for no GPU kernels"
    assert "RESFLOW_NO_LIBRARY=1" in run(STATUS, RESFLOW_NO_LIBRARY="1").stdout


def test_without_a_gpu_it_is_not_loaded_and_nothing_fails() -> None:
    reason = run(STATUS, CUDA_VISIBLE_DEVICES="").stdout.strip()
    if not library.CUDA_LIBRARY.exists():
        assert reason.startswith("built without CUDA: ")
    elif torch.version.cuda is None:
        assert reason == f"torch {torch.__version__} is built without CUDA"
    else:
        assert reason == "there is no CUDA device"


@pytest.mark.parametrize(
    ("facts", "reason"),
    [
        ({"cuda": None, "left_out": {"cuda": "no nvcc was found"}}, "no nvcc was found"),
        ({"cuda": None, "left_out": {"cuda": "RESFLOW_CUDA=OFF"}}, "RESFLOW_CUDA=OFF"),
        (None, "_cuda.so is missing"),
    ],
)
def test_a_build_without_cuda_says_why(tmp_path: Path, facts: dict[str, object] | None, reason: str) -> None:
    ignore = shutil.ignore_patterns("_cuda.so", "_emulated.so", "_build.json", "__pycache__")
    shutil.copytree(ROOT / "resflow_kernels", tmp_path / "resflow_kernels", ignore=ignore)
    if facts is not None:
        (tmp_path / "resflow_kernels" / "_build.json").write_text(json.dumps(facts), encoding="utf-8")
    result = run(f"import sys; sys.path.insert(0, {str(tmp_path)!r})\n" + STATUS)
    assert result.stdout.strip() == f"built without CUDA: {reason}", result.stderr


@pytest.mark.parametrize(
    ("capabilities", "reason"),
    [
        ([(7, 5), (7, 0)], "the GPU kernels need compute capability 8.0, there is 7.5, 7.0"),
        ([(7, 5), (8, 6)], None),
        ([(12, 0)], None),
    ],
)
def test_gpus_that_are_too_old_are_named(
    monkeypatch: pytest.MonkeyPatch, capabilities: list[tuple[int, int]], reason: str | None
) -> None:
    monkeypatch.setattr(library, "_cuda_status", (True, "loaded"))
    monkeypatch.setattr(torch.cuda, "device_count", lambda: len(capabilities))
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda at: capabilities[at])
    library._too_old.cache_clear()
    try:
        assert ops.unsupported_reason("cuda") == reason
        assert (ops.unsupported_reason("cuda", "float16") is None) == (reason is None) and ops.unsupported_reason(
            "cuda", "int8"
        ) is not None
    finally:
        library._too_old.cache_clear()


def test_compilers_can_trace_the_question(monkeypatch: pytest.MonkeyPatch) -> None:
    """Models ask it in every call."""
    monkeypatch.setattr(library, "_cuda_status", (True, "loaded"))

    def scored(x: torch.Tensor) -> torch.Tensor:
        return x + 1 if ops.unsupported_reason("cuda") is None else x

    compiled = torch.compile(scored, fullgraph=True, backend="eager")
    assert torch.equal(compiled(torch.zeros(2)), torch.ones(2))
