"""Loading: the binary's symbols, a second load, and what is said where something is missing."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from resflow_kernels import ops
from resflow_kernels.contract import PRECISIONS
from resflow_kernels.ops import library
from tests.support.files import ROOT

SCORE = """
import torch, warnings
from resflow_kernels import ResFlow
model = ResFlow(6, (4,)).eval()
with torch.no_grad():
    print(tuple(model(torch.zeros(3, 6)).score.shape))
"""


def run(script: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """A script in a fresh process."""
    variables = {**os.environ, **environment}
    return subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=variables)


def undefined_symbols(library: Path) -> list[str]:
    nm = shutil.which("nm")
    if nm is None:
        pytest.skip("nm (binutils) is not installed")
    listing = subprocess.run(
        [nm, "-D", "-C", "--undefined-only", str(library)], capture_output=True, text=True, check=True
    )
    return [line.split(maxsplit=1)[1] for line in listing.stdout.splitlines()]


def test_the_binary_uses_the_stable_abi_alone() -> None:
    symbols = undefined_symbols(library.LIBRARY)
    assert any(symbol.startswith("aoti_torch_") for symbol in symbols)
    assert not [symbol for symbol in symbols if symbol.startswith(("Py", "_Py", "at::", "c10::", "torch::"))]


def test_the_runtime_needs_no_torch() -> None:
    from resflow_kernels import _runtime

    symbols = undefined_symbols(Path(_runtime.__file__))
    assert not [symbol for symbol in symbols if "torch" in symbol or symbol.startswith(("at::", "c10::"))]


def test_the_ops_are_loaded_and_say_so() -> None:
    assert ops.library_status() == (True, "loaded _ops.so")
    assert ops.unsupported_reason("cpu") is None and (ops.unsupported_reason("cuda") is None) == ops.cuda_status()[0]
    assert ops.unsupported_reason("xpu") == "there are no compiled ops for xpu tensors"
    assert ops.unsupported_reason("cpu", "float16") == (
        f"on this device (cpu) the ops compute in {', '.join(PRECISIONS)}, not in float16"
    )


def test_a_second_load_is_harmless() -> None:
    """A second definition of the namespace would end the process without a word."""
    result = run(
        "import importlib, torch\n"
        "from resflow_kernels import ops\n"
        "from resflow_kernels.ops import library\n"
        "library.load(); importlib.reload(library); library.load()\n"
        "torch.ops.load_library(str(library.LIBRARY))\n"
        "print(ops.library_status())"
    )
    assert result.returncode == 0, result.stderr
    assert "True" in result.stdout


def test_a_library_loaded_by_the_host_is_kept() -> None:
    script = f"import torch; torch.ops.load_library({str(library.LIBRARY)!r})\n" + SCORE
    result = run(script)
    assert result.returncode == 0 and "(3,)" in result.stdout and "reference" not in result.stderr


def test_without_the_library_the_reference_serves_and_says_why() -> None:
    result = run(SCORE, RESFLOW_NO_LIBRARY="1")
    assert result.returncode == 0, result.stderr
    assert "(3,)" in result.stdout
    assert "slow PyTorch reference: RESFLOW_NO_LIBRARY=1 asks for the reference" in result.stderr


def test_a_missing_library_is_explained(tmp_path: Path) -> None:
    package = tmp_path / "resflow_kernels"
    shutil.copytree(ROOT / "resflow_kernels", package, ignore=shutil.ignore_patterns("*.so", "__pycache__"))
    script = f"import sys; sys.path.insert(0, {str(tmp_path)!r})\n" + SCORE
    script += "import resflow_kernels; print(resflow_kernels.__file__)\n"
    script += "from resflow_kernels import ops\n"
    script += "try: ops.pack_towers([], model.plan)\nexcept NotImplementedError as error: print('refused')\n"
    result = subprocess.run([sys.executable, "-P", "-c", script], capture_output=True, text=True, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert str(tmp_path) in result.stdout and "refused" in result.stdout
    assert "_ops.so is missing; build it with `make build`" in result.stderr


def test_a_foreign_library_is_explained(tmp_path: Path) -> None:
    package = tmp_path / "resflow_kernels"
    shutil.copytree(ROOT / "resflow_kernels", package, ignore=shutil.ignore_patterns("*.so", "__pycache__"))
    (package / "_ops.so").write_bytes(b"not a library")
    script = f"import sys; sys.path.insert(0, {str(tmp_path)!r})\n" + SCORE
    result = subprocess.run([sys.executable, "-P", "-c", script], capture_output=True, text=True, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert f"does not load into torch {torch.__version__}" in result.stderr


def test_import_without_triton_and_without_a_gpu() -> None:
    result = run("import sys; sys.modules['triton'] = None\n" + SCORE, CUDA_VISIBLE_DEVICES="")
    assert result.returncode == 0 and "(3,)" in result.stdout, result.stderr


@pytest.mark.parametrize("isa", ["avx512", "avx2", "neon", "portable"])
def test_resflow_isa_chooses(isa: str) -> None:
    from resflow_kernels import _runtime

    if isa not in _runtime.supported_isas():
        pytest.skip(f"this machine has no {isa}")
    result = run("from resflow_kernels import _runtime; print(_runtime.isa())\n" + SCORE, RESFLOW_ISA=isa)
    assert result.returncode == 0 and result.stdout.startswith(isa), result.stderr


def test_an_unknown_isa_is_refused() -> None:
    result = run(SCORE, RESFLOW_ISA="avx1024")
    assert result.returncode == 1
    assert "kernels: RESFLOW_ISA must be one of" in result.stderr and "got avx1024" in result.stderr
