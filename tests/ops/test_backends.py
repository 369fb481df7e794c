"""Which backend computes a call: the rule, and that ops and modules keep to it."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace

import pytest
import torch

from resflow_kernels import ResFlow, reference
from resflow_kernels.contract import PRECISIONS
from resflow_kernels.core.plan import Plan
from resflow_kernels.core.program import Program, Segment, Step
from resflow_kernels.ops import backends
from resflow_kernels.ops.backends import Installed, choose
from resflow_kernels.reference.unpack import unpack_towers
from resflow_kernels.testing import assert_exact
from tests.support.cases import TowerCase

PLAN = Plan(6, (8,), (-1, 0))
PROGRAM = Program(6, (Step("linear", 2, (Segment(0, 0, 6),)),), (Segment(1, 0, 2),), (-1, 0))
ALL = Installed(None, None, None, "not interpreting")
NO_CUDA = ALL._replace(cuda="built without CUDA")
NO_GPU = Installed(None, "there is no CUDA device", "there is no GPU", "not interpreting")


@pytest.mark.parametrize(
    ("device", "form", "installed", "backend", "reason"),
    [
        ("cpu", "dense", ALL, "cpu", "the kernels of cpu tensors are loaded"),
        ("cuda", "dense", ALL, "cuda", "the kernels of cuda tensors are loaded"),
        ("cuda", "twin", ALL, "cuda", "the kernels of cuda tensors are loaded"),
        ("meta", "dense", ALL, "cpu", "the kernels of cpu tensors are loaded"),
        ("cuda", "dense", NO_CUDA, "triton", "not cuda: built without CUDA"),
        ("cuda", "catalog", NO_CUDA, "triton", "not cuda: built without CUDA"),
        ("xpu", "request", NO_CUDA, "triton", "there are no compiled ops for xpu tensors"),
        ("cuda", "dense", NO_GPU, "reference", "not cuda: there is no CUDA device; not triton: there is no GPU"),
        ("cpu", "dense", ALL._replace(cpu="missing"), "reference", "not cpu: missing; not triton: not interpreting"),
        ("cpu", "dense", Installed("missing", "no", "no", None), "triton", "not cpu: missing"),
    ],
)
def test_auto(device: str, form: str, installed: Installed, backend: str, reason: str) -> None:
    assert choose(device, PLAN, form, "auto", installed) == (backend, reason)


@pytest.mark.parametrize(
    ("device", "asked", "precision", "installed", "reason"),
    [
        ("cpu", "cuda", "float32", ALL, "got 'cuda': it serves cuda tensors, these are cpu's"),
        ("cuda", "cpu", "float32", ALL, "got 'cpu': it serves cpu tensors, these are cuda's"),
        ("cuda", "cuda", "float32", NO_CUDA, "got 'cuda': built without CUDA"),
        ("cpu", "triton", "float32", ALL, "got 'triton': not interpreting"),
        ("cuda", "triton", "float32", NO_GPU, "got 'triton': there is no GPU"),
        ("cuda", "triton", "int8", ALL, "it computes in float32, bfloat16, float16, tensorfloat32, not in int8"),
        ("cpu", "cpu", "float16", ALL, f"it computes in {', '.join(PRECISIONS)}, not in float16"),
        ("cpu", "gpu", "float32", ALL, "backend must be one of auto, cuda, triton, cpu, reference, got 'gpu'"),
    ],
)
def test_a_backend_that_cannot_serve(
    device: str, asked: str, precision: str, installed: Installed, reason: str
) -> None:
    with pytest.raises(ValueError, match=reason):
        choose(device, replace(PLAN, precision=precision), "dense", asked, installed)


@pytest.mark.parametrize("asked", ["cuda", "triton", "cpu", "reference"])
def test_a_backend_that_serves(asked: str) -> None:
    device = "cpu" if asked in ("cpu", "reference") else "cuda"
    assert choose(device, PLAN, "request", asked, ALL) == (asked, "requested")


def test_programs_run_on_all_kernels_but_the_reference() -> None:
    for device in ("cpu", "cuda"):
        assert choose(device, PROGRAM, "dense", "auto", ALL).backend == device
        assert choose(device, PROGRAM, "feature", device, ALL).backend == device
        with pytest.raises(
            ValueError, match="got 'reference': tile programs run on the kernels of cpu, cuda and triton"
        ):
            choose(device, PROGRAM, "dense", "reference", ALL)
    assert choose("cuda", PROGRAM, "request", "auto", NO_CUDA).backend == "triton"
    lost = choose("cuda", PROGRAM, "dense", "auto", NO_GPU)
    assert lost == (
        "cuda",
        "not cuda: there is no CUDA device; not triton: there is no GPU; "
        "not reference: tile programs run on the kernels of cpu, cuda and triton",
    )


def test_forms_triton_has_not() -> None:
    for form in ("feature", "twin"):
        with pytest.raises(ValueError, match=f"it has the forms dense, request, catalog, training, not {form}"):
            choose("cuda", PLAN, form, "triton", ALL)


def test_training_on_gpus_is_tritons() -> None:
    assert choose("cuda", PLAN, "training", "auto", ALL).backend == "triton"
    assert choose("cpu", PLAN, "training", "auto", ALL).backend == "cpu"
    for asked, reason in (
        ("cuda", "those of training on GPUs are triton's"),
        ("reference", "no op of the training form"),
    ):
        with pytest.raises(ValueError, match=reason):
            choose("cuda", PLAN, "training", asked, ALL)


def test_modules_name_a_backend() -> None:
    model = ResFlow(6, (8,), backend="reference").eval()
    x = torch.randn(5, 6)
    with torch.no_grad():
        slow = model(x)
        packed = model.packed()
        assert packed.backend == "reference"
        model.backend = packed.backend = "cuda"
        for call in (model, packed):
            with pytest.raises(ValueError, match="got 'cuda': it serves cuda tensors"):
                call(x)
        model.backend = None
        assert_exact(model(x), type(slow)(*(part.double() for part in slow)))
        model.double().backend = "cpu"
        with pytest.raises(ValueError, match="that serves this model, got 'cpu': the fused ops take float32 models"):
            model(x.double())


def test_the_environment_names_a_backend() -> None:
    script = """
import torch
from resflow_kernels import ResFlow
from resflow_kernels.ops import backends
model = ResFlow(6, (8,)).eval()
with torch.no_grad():
    model(torch.zeros(2, 6))
print(backends.decide("cpu", model.plan, "dense"))
"""

    def run(name: str) -> subprocess.CompletedProcess[str]:
        import os

        environment = {**os.environ, "RESFLOW_BACKEND": name}
        return subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=environment)

    assert "backend='reference', reason='requested'" in run("reference").stdout
    assert "ValueError: RESFLOW_BACKEND: backend must be one that serves this call, got 'cuda'" in run("cuda").stderr
    assert "RESFLOW_BACKEND: backend must be one of auto" in run("fast").stderr


def test_unpacking_is_the_inverse_of_packing() -> None:
    for precision, step in (("float32", 0), ("bfloat16", 2**-8), ("int8", 1 / 100)):
        case = TowerCase(
            Plan(37, (130, 5, 64), (-1, 0), ("prelu", "gelu", "prelu"), affine=True, precision=precision), 0
        )
        unpacked = unpack_towers(case.packed, case.plan)
        for (name, shape), got, weight in zip(case.plan.weight_shapes, unpacked, case.weights, strict=True):
            assert got.shape == shape, name
            if weight.dim() == 2:
                error = reference.rounded(weight, precision, 0) - got
                assert error.abs().max() <= 1e-6 * weight.abs().max() and (got - weight).abs().max() <= step * 5, name
            else:
                assert torch.equal(got, weight), name


def test_calls_that_auto_decides_at_once() -> None:
    """The serving path asks no table: on CPU tensors the compiled ops are it."""
    assert backends.direct_cpu and backends.named(None) is None and backends.named("triton") == "triton"
    backends.decide.cache_clear()
    TowerCase(PLAN, 3).run()
    assert backends.decide.cache_info().currsize == 0
