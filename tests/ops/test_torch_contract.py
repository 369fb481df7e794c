"""What PyTorch asks of an op: opcheck, compile, export, AOTInductor, autocast, no lost gradients."""

from __future__ import annotations

import copy
import io
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from resflow_kernels import Additive, PackedResFlow, ResFlow, contract, ops, reference
from resflow_kernels.core.plan import Plan
from resflow_kernels.testing import random_weights

PLAN = Plan(12, (20, 8), (-1, 0, 1), affine=True)
PACKED = ops.pack_towers(random_weights(PLAN), PLAN)


PACKING = ("pack_towers", "catalog_rows", "twin_rows")


def op_arguments(candidates: int = 9) -> dict[str, tuple[object, ...]]:
    """Good arguments of every op."""
    x = torch.randn(candidates, 12)
    user, item, offsets = torch.randn(2, 5), torch.randn(candidates, 7), torch.tensor([0, candidates // 3, candidates])
    rest = (PACKED, torch.rand(3), PLAN.encoded, 0, 0)
    ids = torch.arange(candidates) % 5
    catalogue = (user, ids, offsets, *ops.catalog_rows(torch.randn(5, 7), PACKED, PLAN, "int8"))
    table, scale = torch.randint(-9, 9, (5, 7), dtype=torch.int8), torch.rand(5)
    single, lists = torch.arange(2)[:, None], (torch.arange(candidates) % 5, torch.arange(candidates + 1))
    tables = ([torch.randn(3, 5), table], [scale], [1])
    looked_up = (torch.arange(candidates)[:, None] % 3, *lists)
    none = torch.zeros(0, dtype=torch.int64)
    sides = (single, none, torch.zeros(1, dtype=torch.int64), ids[:, None][:, :0], *lists, offsets)
    pooled = (torch.rand(candidates), [1], [2])  # weights, means, a padding id
    twin = (torch.randn(2, 3 * 7), *ops.twin_rows(torch.randn(candidates, 3 * 7), 3, "int8"))
    twin_ids = (twin[0], ids, offsets, *twin[1:])
    twin_rest = (torch.rand(3), [-1, 0, 1], True, 0, 0)
    return {
        "twin_rows": (torch.randn(candidates, 3 * 7), 3, 2),
        "twin_scores": (*twin, *twin_rest),
        "twin_topk": (*twin, *twin_rest, 3),
        "twin_ids_scores": (*twin_ids, *twin_rest),
        "twin_ids_topk": (*twin_ids, *twin_rest, 3),
        "pack_towers": (random_weights(PLAN), PLAN.encoded),
        "dense_scores": (x, *rest),
        "dense_topk": (x, offsets, *rest, 3),
        "request_scores": (user, item, offsets, *rest),
        "request_topk": (user, item, offsets, *rest, 3),
        "catalog_rows": (item, PACKED, PLAN.encoded, 1),
        "catalog_scores": (*catalogue, *rest),
        "catalog_topk": (*catalogue, *rest, 3),
        "feature_scores": (*looked_up, *tables, *rest),
        "feature_topk": (*looked_up, *tables, offsets, *rest, 3, *pooled),
        "feature_request_scores": (*sides, *tables, 1, *rest, None, *pooled),
        "feature_request_topk": (*sides, *tables, 1, *rest, 3),
    }


@pytest.mark.parametrize("name", op_arguments())
def test_opcheck(name: str) -> None:
    op = getattr(torch.ops.resflow, name).default
    results = torch.library.opcheck(op, op_arguments()[name])
    assert set(results.values()) == {"SUCCESS"}


@pytest.mark.parametrize("name", [name for name in op_arguments() if name not in PACKING])
@pytest.mark.usefixtures("inductor")
def test_ops_compile_without_a_graph_break(name: str) -> None:
    op = getattr(torch.ops.resflow, name)

    def scored(*arguments: object) -> tuple[Tensor, ...]:
        return tuple(part * 2 for part in op(*arguments))

    torch._dynamo.reset()  # it counts compilations of `scored` over all ops
    compiled = torch.compile(scored, fullgraph=True, dynamic=True)
    for candidates in (9, 30):
        arguments = op_arguments(candidates)[name]
        for got, expected in zip(compiled(*arguments), scored(*arguments), strict=True):
            assert torch.equal(got.nan_to_num(-7), expected.nan_to_num(-7))


@pytest.mark.parametrize("name", [name for name in op_arguments() if name not in PACKING])
def test_fakes_refuse_what_the_ops_refuse(name: str) -> None:
    arguments = list(op_arguments()[name])
    arguments[0] = torch.zeros(2, 3, dtype=torch.float64)
    with pytest.raises(ValueError, match="must be") as real:
        getattr(torch.ops.resflow, name)(*arguments)
    with torch._subclasses.FakeTensorMode(allow_non_fake_inputs=True) as mode:
        faked = torch.utils._pytree.tree_map_only(Tensor, mode.from_tensor, arguments)
        with pytest.raises(ValueError) as fake:
            getattr(torch.ops.resflow, name)(*faked)
    assert str(fake.value) == str(real.value)


# Tile programs run on the CPU alone; tests/ops/test_program.py has their op.
WITH_PLAN = [name for name in op_arguments() if "packed" in contract.OP_SCHEMAS[name]]


def with_precision(name: str, precision: str) -> list[object]:
    """Good arguments, of weights packed in another precision."""
    plan = replace(PLAN, precision=precision)
    packed = ops.pack_towers(random_weights(plan), plan)
    exchanged = {id(PACKED): packed, id(PLAN.encoded): plan.encoded}
    return [exchanged.get(id(argument), argument) for argument in op_arguments()[name]]


@pytest.mark.parametrize("precision", contract.GPU_PRECISIONS)
@pytest.mark.parametrize("name", WITH_PLAN)
def test_precisions_of_gpus_alone_are_refused_on_the_cpu(name: str, precision: str) -> None:
    arguments = with_precision(name, precision)
    text = f"{name}: plan precision must be one of {', '.join(contract.PRECISIONS)} on the CPU, got {precision}"
    with pytest.raises(ValueError) as real:
        getattr(torch.ops.resflow, name)(*arguments)
    assert str(real.value) == text
    with torch._subclasses.FakeTensorMode(allow_non_fake_inputs=True) as mode:
        faked = torch.utils._pytree.tree_map_only(Tensor, mode.from_tensor, arguments)
        with pytest.raises(ValueError) as fake:
            getattr(torch.ops.resflow, name)(*faked)
    assert str(fake.value) == text


def call_on_a_gpu(name: str, arguments: Sequence[object]) -> Sequence[Tensor]:
    """The fake op on fakes of tensors of a GPU, whether there is one or not."""

    def faked(tensor: Tensor) -> Tensor:
        return torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device="cuda:0")

    with torch._subclasses.FakeTensorMode():
        return getattr(torch.ops.resflow, name)(*torch.utils._pytree.tree_map_only(Tensor, faked, list(arguments)))


@pytest.mark.parametrize("name", WITH_PLAN)
def test_fakes_of_gpu_tensors_take_what_gpus_take(name: str) -> None:
    for precision in ("float32", "bfloat16", *contract.GPU_PRECISIONS):
        made = call_on_a_gpu(name, with_precision(name, precision))
        assert all(part.device.type == "cuda" for part in made)
    known = "float32, bfloat16, float16, tensorfloat32"
    with pytest.raises(ValueError) as raised:
        call_on_a_gpu(name, with_precision(name, "int8"))
    assert str(raised.value) == f"{name}: plan precision must be one of {known} on a GPU, got int8"


@pytest.mark.parametrize("name", [name for name in op_arguments() if "(Tensor user," in contract.OP_SCHEMAS[name]])
def test_gpus_take_rows_of_float16(name: str) -> None:
    user, *rest = op_arguments()[name]
    assert isinstance(user, Tensor)
    call_on_a_gpu(name, [user.half(), *rest])
    with pytest.raises(ValueError) as raised:
        call_on_a_gpu(name, [user.double(), *rest])
    assert str(raised.value) == f"{name}: user must be float32, bfloat16 or float16, got float64"


def model() -> ResFlow:
    torch.manual_seed(0)
    return ResFlow(12, (20, 8), ("a", "b", "c"), norm="batch", fusion=Additive((1, 2, 3))).eval()


@pytest.mark.parametrize("form", ["module", "packed"])
@pytest.mark.usefixtures("inductor")
def test_modules_compile_without_a_graph_break(form: str) -> None:
    scorer = model() if form == "module" else model().packed()
    compiled = torch.compile(scorer, fullgraph=True, dynamic=True)
    with torch.no_grad():
        for rows in (7, 33):
            x = torch.randn(rows, 12)
            for got, expected in zip(compiled(x), scorer(x), strict=True):
                torch.testing.assert_close(got, expected, atol=1e-6, rtol=1e-6)


@pytest.mark.usefixtures("inductor")
def test_a_compiled_module_sees_parameters_change() -> None:
    scorer = model()
    compiled = torch.compile(scorer, fullgraph=True)
    x = torch.randn(5, 12)
    with torch.no_grad():
        before = compiled(x).logits.clone()
        scorer.heads[0].bias += 1
        torch.testing.assert_close(compiled(x).logits, before + 1)


@pytest.mark.usefixtures("inductor")
def test_export_and_aot_inductor(tmp_path: Path) -> None:
    """A packed model is exported with any batch, packaged, and runs in a process that never saw the model."""
    scorer = model().packed()
    x = torch.randn(6, 12)
    with torch.no_grad():
        exported = torch.export.export(scorer, (x,), dynamic_shapes=({0: torch.export.Dim("batch")},))
        other = torch.randn(41, 12)
        for got, expected in zip(exported.module()(other), scorer(other), strict=True):
            assert torch.equal(got, expected)
        package = torch._inductor.aoti_compile_and_package(exported, package_path=str(tmp_path / "model.pt2"))
        expected = scorer(other)
    torch.save((other, tuple(expected)), tmp_path / "expected.pt")
    script = (
        "import sys, torch, resflow_kernels.ops\n"
        "x, expected = torch.load(sys.argv[2], weights_only=True)\n"
        "scores = torch._inductor.aoti_load_package(sys.argv[1])(x)\n"
        "assert all(torch.equal(a, b) for a, b in zip(scores, expected, strict=True))\n"
    )
    subprocess.run([sys.executable, "-c", script, package, str(tmp_path / "expected.pt")], check=True)


def test_autocast_computes_in_float32() -> None:
    scorer = model()
    x = torch.randn(11, 12)
    with torch.no_grad():
        expected = scorer(x.bfloat16().float())
        with torch.autocast("cpu", dtype=torch.bfloat16):
            packed = scorer.packed()
            got = ops.dense_scores(x.bfloat16(), packed.packed_weights, packed.plan, packed.fusion_weights)
            whole = scorer(x)
    assert got.logits.dtype == torch.float32
    assert torch.equal(got.logits, expected.logits)
    assert torch.equal(whole.logits, scorer.packed()(x).logits)


def catalogue(x: Tensor) -> tuple[Tensor, ...]:
    """The first row's user, and as many ids as rows."""
    table = ops.catalog_rows(torch.zeros(3, 7), PACKED, PLAN, "float32")
    return (x[:1, :5], torch.zeros(len(x), dtype=torch.int64), torch.tensor([0, len(x)]), *table)


def features(x: Tensor) -> tuple[ops.FeatureIds, ops.FeatureTables]:
    """The rows as a table, looked up in their order."""
    return ops.one_id_each(torch.arange(len(x))[:, None]), ops.FeatureTables([x])


def feature_requests(x: Tensor) -> tuple[object, ...]:
    ids, tables = features(x)
    nobody = ops.one_id_each(torch.zeros(1, 0, dtype=torch.int64))
    return nobody, ids, torch.tensor([0, len(x)]), tables, 0


TWIN_TABLE = ops.twin_rows(torch.randn(5, 12), 3)
LISTS = (torch.tensor([1, 0, 4]), torch.tensor([0, 1, 1, 2, 3]))

CALLS: dict[str, Callable[[Tensor], object]] = {
    "dense_scores": lambda x: ops.dense_scores(x, PACKED, PLAN, torch.ones(3)),
    "dense_topk": lambda x: ops.dense_topk(x, torch.tensor([0, len(x)]), PACKED, PLAN, torch.ones(3), k=2),
    "request_scores": lambda x: ops.request_scores(
        x[:1, :5], x[:, 5:], torch.tensor([0, len(x)]), PACKED, PLAN, torch.ones(3)
    ),
    "request_topk": lambda x: ops.request_topk(
        x[:1, :5], x[:, 5:], torch.tensor([0, len(x)]), PACKED, PLAN, torch.ones(3), k=2
    ),
    "catalog_rows": lambda x: ops.catalog_rows(x[:, 5:], PACKED, PLAN),
    "catalog_scores": lambda x: ops.catalog_scores(*catalogue(x), PACKED, PLAN, torch.ones(3)),
    "catalog_topk": lambda x: ops.catalog_topk(*catalogue(x), PACKED, PLAN, torch.ones(3), k=2),
    "feature_scores": lambda x: ops.feature_scores(*features(x), PACKED, PLAN, torch.ones(3)),
    "feature_topk": lambda x: ops.feature_topk(
        features(x)[0], torch.tensor([0, len(x)]), features(x)[1], PACKED, PLAN, torch.ones(3), k=2
    ),
    "feature_request_scores": lambda x: ops.feature_request_scores(*feature_requests(x), PACKED, PLAN, torch.ones(3)),
    "feature_request_topk": lambda x: ops.feature_request_topk(*feature_requests(x), PACKED, PLAN, torch.ones(3), k=2),
    "twin_rows": lambda x: ops.twin_rows(x, 3),
    "twin_scores": lambda x: ops.twin_scores(x, *TWIN_TABLE, torch.ones(3), (-1, 0, 1)),
    "twin_topk": lambda x: ops.twin_topk(x, *TWIN_TABLE, torch.ones(3), (-1, 0, 1), k=2),
    "twin_ids_scores": lambda x: ops.twin_ids_scores(x, *LISTS, *TWIN_TABLE, torch.ones(3), (-1, 0, 1)),
    "twin_ids_topk": lambda x: ops.twin_ids_topk(x, *LISTS, *TWIN_TABLE, torch.ones(3), (-1, 0, 1), k=2),
}


@pytest.mark.parametrize("name", CALLS)
def test_a_gradient_that_would_be_lost_raises(name: str) -> None:
    x = torch.randn(4, 12, requires_grad=True)
    with pytest.raises(ValueError, match=f"{name}: .* must be without gradient"):
        CALLS[name](x)
    with torch.no_grad():
        CALLS[name](x)
    with torch.inference_mode():
        CALLS[name](x)


def test_the_reference_has_true_gradients() -> None:
    plan = Plan(3, (4, 2), (-1, 0, 0), ("tanh", "silu"), affine=True)
    weights = [weight.double().requires_grad_() for weight in random_weights(plan)]
    x = torch.randn(5, 3, dtype=torch.float64, requires_grad=True)

    def scores(x: Tensor, *weights: Tensor) -> tuple[Tensor, ...]:
        return tuple(reference.dense_scores(x, weights, plan, torch.ones(3).double(), "multiplicative", "call"))

    assert torch.autograd.gradcheck(scores, (x, *weights))


def test_copies_and_pickles_of_modules() -> None:
    scorer = model()
    x = torch.randn(8, 12)
    with torch.no_grad():
        expected = scorer(x).score
        twin = copy.deepcopy(scorer)
        twin.heads[0].bias += 1
        assert torch.equal(scorer(x).score, expected) and not torch.equal(twin(x).score, expected)
        packed_twin = copy.deepcopy(scorer.packed())
        assert torch.equal(packed_twin(x).score, expected)

        file = io.BytesIO()
        torch.save(scorer.state_dict(), file)
        file.seek(0)
        other = ResFlow(12, (20, 8), ("a", "b", "c"), norm="batch", fusion=Additive((1, 2, 3))).eval()
        assert not torch.equal(other(x).score, expected)
        other.load_state_dict(torch.load(file, weights_only=True))
        assert torch.equal(other(x).score, expected)

        file = io.BytesIO()
        torch.save(scorer, file)
        file.seek(0)
        assert torch.equal(torch.load(file, weights_only=False)(x).score, expected)

        packed = scorer.packed()
        fresh = PackedResFlow(packed.plan, packed.tasks, packed.fusion, torch.zeros_like(packed.packed_weights))
        fresh.load_state_dict(packed.state_dict())
        assert torch.equal(fresh(x).score, expected)


def test_autocast_leaves_tables_as_they_are() -> None:
    """Cast to float32, a table would be copied whole each call; and int8's scales stand beside its rows."""
    user, ids, offsets = torch.randn(2, 5), torch.arange(9) % 4, torch.tensor([0, 4, 9])
    for dtype in ("bfloat16", "int8"):
        table = ops.catalog_rows(torch.randn(4, 7), PACKED, PLAN, dtype)
        arguments = (user, ids, offsets, *table, PACKED, PLAN, torch.rand(3))
        with torch.autocast("cpu", dtype=torch.bfloat16), torch.profiler.profile(record_shapes=True) as profile:
            got = ops.catalog_scores(*arguments)
        assert torch.equal(got.logits, ops.catalog_scores(*arguments).logits)
        assert not any(event.key == "aten::_to_copy" for event in profile.key_averages())
