"""``resflow info``: the facts of this machine, with and without the compiled library."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest
from typer.testing import CliRunner

import resflow_kernels
from resflow_kernels.cli import build_app


def run(*arguments: str, **environment: str) -> str:
    command = [sys.executable, "-m", "resflow_kernels.cli", "info", *arguments]
    done = subprocess.run(
        command, capture_output=True, text=True, check=True, env={**os.environ, "COLUMNS": "200", **environment}
    )
    return done.stdout


def test_json_agrees_with_the_library() -> None:
    library = pytest.importorskip("resflow_kernels._runtime", reason="the compiled library is not built")
    facts = json.loads(run("--json"))
    assert facts["version"] == resflow_kernels.__version__
    assert facts["runtime"]["isa"] == library.isa()
    assert facts["runtime"]["compiled"] == library.compiled_isas()
    assert facts["threads"] == len(os.sched_getaffinity(0))


@pytest.mark.parametrize("arguments", [["--version"], ["-h"], ["score", "-h"]])
def test_the_version_and_the_help_need_no_command(arguments: list[str]) -> None:
    done = CliRunner().invoke(build_app(), arguments, env={"COLUMNS": "160"})
    wanted = f"resflow-kernels {resflow_kernels.__version__}\n" if arguments == ["--version"] else "Usage: "
    assert done.exit_code == 0 and wanted in done.output


def test_isa_override_is_shown() -> None:
    pytest.importorskip("resflow_kernels._runtime", reason="the compiled library is not built")
    runtime = json.loads(run("--json", RESFLOW_ISA="portable"))["runtime"]
    assert runtime["isa"] == "portable" and runtime["RESFLOW_ISA"] == "portable"
    assert "portable (RESFLOW_ISA=portable)" in run(RESFLOW_ISA="portable")


def test_unknown_isa_is_reported_not_raised() -> None:
    pytest.importorskip("resflow_kernels._runtime", reason="the compiled library is not built")
    runtime = json.loads(run("--json", RESFLOW_ISA="sse9"))["runtime"]
    assert runtime["built"] is False and "sse9" in runtime["error"]


def test_torch_and_backends() -> None:
    torch = pytest.importorskip("torch")
    from resflow_kernels import ops

    facts = json.loads(run("--json"))["torch"]
    assert facts["version"] == torch.__version__
    assert facts["ops_loaded"] == ops.library_status()[0]
    assert facts["backends"]["cpu"]["backend"] == ("cpu" if ops.unsupported_reason("cpu") is None else "reference")
    without = json.loads(run("--json", RESFLOW_NO_LIBRARY="1"))["torch"]
    assert without["ops_loaded"] is False and without["backends"]["cpu"]["backend"] == "reference"
    assert "RESFLOW_NO_LIBRARY=1" in without["backends"]["cpu"]["reason"]


def test_a_backend_that_the_environment_names() -> None:
    pytest.importorskip("torch")
    named = json.loads(run("--json", RESFLOW_BACKEND="reference"))["torch"]
    assert named["RESFLOW_BACKEND"] == "reference"
    assert named["backends"]["cpu"] == {"backend": "reference", "reason": "requested"}
    wrong = json.loads(run("--json", RESFLOW_BACKEND="cuda"))["torch"]["backends"]["cpu"]
    assert wrong["backend"] == "none" and "serves cuda tensors, these are cpu's" in wrong["reason"]
    assert "reference (requested)" in run(RESFLOW_BACKEND="reference")


def test_gpu_kernels_are_told_of_whether_they_load_or_not() -> None:
    pytest.importorskip("torch")
    from resflow_kernels import ops
    from resflow_kernels.ops import library

    cuda = json.loads(run("--json"))["torch"]["cuda"]
    assert cuda["built"] == library.CUDA_LIBRARY.exists()
    assert bool(cuda["architectures"]) == cuda["built"]
    assert (cuda["loaded"], cuda["status"]) == ops.cuda_status()
    without = json.loads(run("--json", RESFLOW_NO_CUDA="1"))["torch"]["cuda"]
    if cuda["built"]:
        assert "sm_80" in cuda["architectures"]
        assert (without["loaded"], without["status"]) == (False, "RESFLOW_NO_CUDA=1 asks for no GPU kernels")
    assert without["status"] in run(RESFLOW_NO_CUDA="1")


def test_text() -> None:
    text = run()
    assert f"resflow-kernels  {resflow_kernels.__version__}" in text and "usable of" in text
