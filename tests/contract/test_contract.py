"""What is written once reads the same from C++ and from Python."""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest
import torch
from hypothesis import given

from resflow_kernels import contract, ops
from resflow_kernels.core import checks
from resflow_kernels.core.plan import Plan, chain
from resflow_kernels.ops import fakes, library
from resflow_kernels.reference import layers
from resflow_kernels.reference import packed as reference_of_packed
from resflow_kernels.testing import random_weights
from tests.support.draws import plans


@pytest.mark.parametrize("name", contract.OP_SCHEMAS)
def test_schemas_are_those_of_the_library(name: str) -> None:
    schema = str(getattr(torch.ops.resflow, name).default._schema)
    assert schema == f"resflow::{name}{contract.OP_SCHEMAS[name]}"


def test_every_list_was_read() -> None:
    assert contract.ACTIVATIONS[:3] == ("identity", "relu", "prelu")
    assert contract.HEADS == ("residual", "conditional")
    assert contract.FUSIONS[:3] == ("additive", "multiplicative", "expected_value")
    assert contract.WEIGHTS_PER == ("call", "request", "candidate")
    assert contract.PLAN_FIELDS[0] == "version" and contract.PLAN_LIMITS["version"] == 1
    assert contract.error_message("op", "x", "matrix", "[3]", 5) == "op: x must be a matrix with 5 columns, got [3]"


@given(plan=plans())
def test_plans_survive_encoding_and_pack_to_the_size_they_say(plan: Plan) -> None:
    assert Plan.decode(plan.encoded) == plan
    assert ops.pack_towers(random_weights(plan), plan).numel() == plan.packed_bytes


PLAN = Plan(6, (5, 4), (-1, 0), affine=True)


def _bad_inputs() -> dict[str, tuple[str, dict[str, object]]]:
    """Name, the op, and which of its good arguments to replace by what."""
    double = torch.float64
    return {
        "x of 1 dimension": ("dense_scores", {"x": torch.zeros(6)}),
        "x too narrow": ("dense_scores", {"x": torch.zeros(3, 5)}),
        "x of float64": ("dense_scores", {"x": torch.zeros(3, 6, dtype=double)}),
        "x of float16": ("dense_scores", {"x": torch.zeros(3, 6, dtype=torch.float16)}),
        "x transposed": ("dense_scores", {"x": torch.zeros(6, 3).T}),
        "unknown fusion": ("dense_scores", {"fusion": len(contract.FUSIONS)}),
        "negative fusion": ("dense_scores", {"fusion": -1}),
        "weights a request without requests": ("dense_scores", {"weights_per": 1}),
        "unknown weights_per": ("request_scores", {"weights_per": 7}),
        "too few weights": ("dense_scores", {"fusion_weights": torch.zeros(1)}),
        "no bucket for expected values": ("dense_scores", {"fusion": 2}),
        "weights of a matrix for the call": ("dense_scores", {"fusion_weights": torch.zeros(3, 2)}),
        "weights of too few candidates": ("dense_scores", {"fusion_weights": torch.zeros(2, 2), "weights_per": 2}),
        "weights of too few requests": ("request_scores", {"fusion_weights": torch.zeros(1, 2), "weights_per": 1}),
        "weights of float64": ("dense_scores", {"fusion_weights": torch.zeros(2, dtype=double)}),
        "weights with a stride": ("dense_scores", {"fusion_weights": torch.zeros(4)[::2]}),
        "user of 1 dimension": ("request_scores", {"user": torch.zeros(2)}),
        "user of float64": ("request_scores", {"user": torch.zeros(2, 2, dtype=double)}),
        "item transposed": ("request_scores", {"item": torch.zeros(4, 3).T}),
        "columns that do not add up": ("request_scores", {"item": torch.zeros(3, 5)}),
        "offsets of int32": ("request_scores", {"offsets": torch.tensor([0, 1, 3], dtype=torch.int32)}),
        "offsets of another length": ("request_scores", {"offsets": torch.tensor([0, 3])}),
        "offsets with a stride": ("request_scores", {"offsets": torch.tensor([0, 9, 1, 9, 3])[::2]}),
        "offsets that start late": ("request_scores", {"offsets": torch.tensor([1, 1, 3])}),
        "offsets that fall": ("request_scores", {"offsets": torch.tensor([0, 4, 3])}),
        "negative offsets": ("request_scores", {"offsets": torch.tensor([0, -1, 3])}),
        "offsets that end early": ("request_scores", {"offsets": torch.tensor([0, 1, 2])}),
        "offsets that end late": ("request_topk", {"offsets": torch.tensor([0, 1, 4])}),
        "no offsets": ("dense_topk", {"offsets": torch.zeros(0, dtype=torch.int64)}),
        "offsets of a matrix": ("dense_topk", {"offsets": torch.zeros(1, 2, dtype=torch.int64)}),
        "user wider than the input": ("catalog_scores", {"user": torch.zeros(2, 7)}),
        "table too narrow": ("catalog_scores", {"table": torch.zeros(4, 16)}),
        "table of float64": ("catalog_scores", {"table": torch.zeros(4, 32, dtype=double)}),
        "table transposed": ("catalog_topk", {"table": torch.zeros(32, 4).T}),
        "scales of a float32 table": ("catalog_scores", {"scales": torch.zeros(4)}),
        "ids of int32": ("catalog_scores", {"ids": torch.zeros(3, dtype=torch.int32)}),
        "ids of a matrix": ("catalog_scores", {"ids": torch.zeros(3, 1, dtype=torch.int64)}),
        "an id too large": ("catalog_scores", {"ids": torch.tensor([0, 4, 1])}),
        "a negative id": ("catalog_topk", {"ids": torch.tensor([0, -1, 1])}),
        "no parents": ("twin_scores", {"parents": []}),
        "parents that come later": ("twin_scores", {"parents": [-1, 1]}),
        "a parent below -1": ("twin_ids_scores", {"parents": [-2, 0]}),
        "vectors of unequal width": ("twin_scores", {"table": torch.zeros(4, 7)}),
        "a table without columns": ("twin_topk", {"table": torch.zeros(4, 0)}),
        "vectors of float64": ("twin_ids_scores", {"table": torch.zeros(4, 6, dtype=double)}),
        "vectors transposed": ("twin_topk", {"table": torch.zeros(6, 4).T}),
        "scales of a float32 twin table": ("twin_scores", {"scales": torch.zeros(4, 2)}),
        "scales of a vector": ("twin_scores", {"scales": torch.zeros(0)}),
        "scales of float64": ("twin_topk", {"scales": torch.zeros(0, 2, dtype=double)}),
        "user vectors too narrow": ("twin_scores", {"user": torch.zeros(2, 5)}),
        "user vectors transposed": ("twin_topk", {"user": torch.zeros(6, 2).T}),
        "weights of too few items": ("twin_scores", {"fusion_weights": torch.zeros(3, 2), "weights_per": 2}),
        "weights of too few ids": ("twin_ids_topk", {"fusion_weights": torch.zeros(4, 2), "weights_per": 2}),
        "an id past the table": ("twin_ids_scores", {"ids": torch.tensor([0, 4, 1])}),
        "ids that are not all cut": ("twin_ids_topk", {"offsets": torch.tensor([0, 1, 2])}),
        "unknown fusion of twins": ("twin_topk", {"fusion": 7}),
        "k of 0 of all items": ("twin_topk", {"k": 0}),
        "k of 0 of a list": ("twin_ids_topk", {"k": 0}),
        "k of 0": ("dense_topk", {"k": 0}),
        "negative k": ("request_topk", {"k": -3}),
    }


def _good(op: str, plan: Plan = PLAN) -> dict[str, object]:
    arguments: dict[str, object] = {}
    if op.startswith("twin"):
        return _good_twin(op)
    if op.startswith("dense"):
        arguments["x"] = torch.zeros(3, 6)
    else:
        arguments["user"] = torch.zeros(2, 2)
    if op.startswith("request"):
        arguments["item"] = torch.zeros(3, 4)
    if op.startswith("catalog"):
        arguments |= {"ids": torch.tensor([3, 0, 0]), "table": torch.zeros(4, 32), "scales": torch.zeros(0)}
    if op != "dense_scores":
        arguments["offsets"] = torch.tensor([0, 1, 3])
    arguments |= {"fusion_weights": torch.zeros(2), "fusion": 0, "weights_per": 0}
    return arguments | ({"k": 2} if op.endswith("topk") else {})


def _good_twin(op: str) -> dict[str, object]:
    arguments: dict[str, object] = {"user": torch.zeros(2, 6), "table": torch.zeros(4, 6), "scales": torch.zeros(0, 2)}
    arguments |= {"fusion_weights": torch.zeros(2), "parents": [-1, 0], "non_increasing": False}
    arguments |= {"fusion": 0, "weights_per": 0}
    if "ids" in op:
        arguments |= {"ids": torch.tensor([3, 0, 0]), "offsets": torch.tensor([0, 1, 3])}
    return arguments | ({"k": 2} if op.endswith("topk") else {})


def _in_order(op: str, arguments: dict[str, object], packed: torch.Tensor | None = None) -> list[object]:
    """The arguments as the op's schema has them one after another."""
    given = arguments if op.startswith("twin") else arguments | {"packed": packed, "plan": PLAN.encoded}
    names = [argument.split()[-1] for argument in contract.OP_SCHEMAS[op].split(") ->")[0][1:].split(", ")]
    return [given[name] for name in names]


def _packed() -> torch.Tensor:
    return ops.pack_towers(random_weights(PLAN), PLAN)


def _fused(op: str, arguments: dict[str, object]) -> object:
    return library.call(op, *_in_order(op, arguments, _packed()))


def _fake(op: str, arguments: dict[str, object]) -> object:
    return fakes.scoring_fake(op)(*_in_order(op, arguments, _packed()))


def _reference(op: str, arguments: dict[str, object]) -> object:
    return reference_of_packed.run(op, *_in_order(op, arguments, _packed()))


def _by_layers(op: str, arguments: dict[str, object]) -> object:
    names = ("x", "user", "item", "offsets")
    inputs = tuple(arguments[name] for name in names if name in arguments)
    how = contract.FUSIONS[arguments["fusion"]], contract.WEIGHTS_PER[arguments["weights_per"]]
    k = (arguments["k"],) if "k" in arguments else ()
    return layers.run(op, lambda x: x[:, :2], inputs, PLAN, arguments["fusion_weights"], *how, *k)


def _numpy(op: str, arguments: dict[str, object]) -> object:
    runtime = pytest.importorskip("resflow_kernels._runtime")
    ordered = _in_order(op, arguments, _packed())
    return getattr(runtime, op)(*(a.numpy() if isinstance(a, torch.Tensor) else a for a in ordered))


def _paths(op: str) -> list[Callable[[str, dict[str, object]], object]]:
    """All that check an op's arguments besides the compiled op."""
    form = contract.FORMS[op.rsplit("_", 1)[0]]
    packed = [_reference] if "reference" in form.flags else []
    return [_fake, _numpy, *packed, *([_by_layers] if form.name in ("dense", "request") else [])]


_CODES = {"fusion": contract.FUSIONS, "weights_per": contract.WEIGHTS_PER}


def _takes_rows(name: str) -> bool:
    return name.endswith(("_scores", "_topk")) and not name.startswith("feature")  # see test_feature_contract.py


@pytest.mark.parametrize("op", [name for name in contract.OP_SCHEMAS if _takes_rows(name)])
def test_good_inputs_pass_everywhere(op: str) -> None:
    for call in (_fused, *_paths(op)):
        call(op, _good(op))


@pytest.mark.parametrize("name", _bad_inputs())
def test_bad_input_is_named_alike_by_all_paths(name: str) -> None:
    """The compiled op, the reference and the NumPy runtime refuse it in the same words."""
    op, changes = _bad_inputs()[name]
    arguments = _good(op) | changes
    with pytest.raises(ValueError) as fused:
        _fused(op, arguments)
    text = str(fused.value)
    assert text.startswith(f"{op}: ") and " must be " in text and ", got " in text
    argument = next(iter(changes))
    assert argument in text or "user and item" in text

    rows = [a for n, a in changes.items() if n in ("x", "user", "item") and isinstance(a, torch.Tensor)]
    by_code = any(not 0 <= arguments[name] < len(names) for name, names in _CODES.items())
    for path in _paths(op):
        if path is _by_layers and (by_code or any(row.dtype != torch.float32 for row in rows)):
            continue  # it takes names, and any floating dtype
        if path is _reference and any(row.dtype != torch.float32 for row in rows):
            continue  # it takes what GPUs take
        if path is _fake and ("[" in argument or not _is_seen_without_values(text)):
            continue
        with pytest.raises(ValueError) as by_path:
            path(op, arguments)
        assert str(by_path.value) == text, path.__name__


def _is_seen_without_values(text: str) -> bool:
    """Whether a message is of sizes and dtypes: fakes do not read ids and offsets."""
    return re.match(r"\w+: (ids|offsets)\[", text) is None


@pytest.mark.parametrize(
    ("tasks", "columns", "dtype", "text"),
    [
        (0, 6, 2, "tasks must be one of 1 to 64, got 0"),
        (65, 65, 2, "tasks must be one of 1 to 64, got 65"),
        (4, 6, 2, "vectors must be a matrix of columns for 4 tasks, as many for each and at least one, got [3, 6]"),
        (2, 6, 3, "dtype must be one of 0 (float32), 1 (bfloat16), 2 (int8), got 3"),
    ],
)
def test_twin_rows_names_bad_input(tasks: int, columns: int, dtype: int, text: str) -> None:
    vectors = torch.zeros(3, columns)
    runtime = pytest.importorskip("resflow_kernels._runtime")
    with torch._subclasses.FakeTensorMode(allow_non_fake_inputs=True) as mode:
        fake = mode.from_tensor(vectors)
    for op, argument in (
        (torch.ops.resflow.twin_rows, vectors),
        (torch.ops.resflow.twin_rows, fake),
        (runtime.twin_rows, vectors.numpy()),
    ):
        with pytest.raises(ValueError) as raised:
            op(argument, tasks, dtype)
        assert str(raised.value) == f"twin_rows: {text}"
    with pytest.raises(ValueError, match="dtype must be one of float32, bfloat16, int8, got 'int4'"):
        ops.twin_rows(vectors, 1, "int4")


def test_int8_vectors_have_a_widest() -> None:
    """Beyond it an int32 sum could overflow."""
    table, scales, user = torch.zeros(1, 65537, dtype=torch.int8), torch.zeros(1, 1), torch.zeros(1, 65537)
    with pytest.raises(ValueError, match="table must be of at most 65536 columns per task where it is int8"):
        ops.twin_scores(user, table, scales, torch.ones(1), [-1])
    assert ops.twin_scores(user[:, 1:], table[:, 1:], scales, torch.ones(1), [-1]).logits.tolist() == [[0.0]]


def test_messages_word_by_word() -> None:
    for changes, text in {
        ("x", torch.zeros(3, 5)): "dense_scores: x must be a matrix with 6 columns, got [3, 5]",
        ("x", torch.zeros(3, 6, dtype=torch.float64)): "dense_scores: x must be float32 or bfloat16, got float64",
        ("x", torch.zeros(6, 3).T): "dense_scores: x must be contiguous in its last dimension, got strides [1, 3]",
        ("fusion_weights", torch.zeros(1)): "dense_scores: fusion_weights must be a vector of 2, got [1]",
    }.items():
        with pytest.raises(ValueError) as raised:
            _fused("dense_scores", _good("dense_scores") | dict([changes]))
        assert str(raised.value) == text


def test_weights_that_do_not_fit_the_plan_are_named() -> None:
    weights = random_weights(PLAN)
    short = [*weights[:1], weights[1][:3], *weights[2:]]
    for bad, text in {
        tuple(weights[:-1]): "weights must be the 24 tensors of this plan, got 23",
        tuple(short): "weights[1] (task 0, layer 0, bias) must be of shape [5], got [3]",
        (weights[0].double(), *weights[1:]): "weights[0] (task 0, layer 0, weight) must be float32, got float64",
    }.items():
        with pytest.raises(ValueError) as raised:
            ops.pack_towers(bad, PLAN)
        assert str(raised.value) == "pack_towers: " + text.replace("24", str(len(PLAN.weight_shapes))).replace(
            "23", str(len(PLAN.weight_shapes) - 1)
        )
        if "float64" not in text:
            with pytest.raises(ValueError) as by_checks:
                checks.weights("pack_towers", list(bad), PLAN)
            assert str(by_checks.value) == str(raised.value)


@pytest.mark.parametrize("damage", ["another plan", "cut short", "a byte of the header", "another dtype"])
def test_packed_weights_that_do_not_fit_are_refused(damage: str) -> None:
    packed = ops.pack_towers(random_weights(PLAN), PLAN)
    plan = PLAN
    if damage == "another plan":
        plan = Plan(6, (5, 4), (-1, -1), affine=True)  # the same size: only the fingerprint tells
        assert plan.packed_bytes == PLAN.packed_bytes
    elif damage == "cut short":
        packed = packed[:-64]
    elif damage == "a byte of the header":
        packed[3] ^= 1
    else:
        packed = packed.view(torch.float32)
    with pytest.raises(ValueError, match="dense_scores: packed must be "):
        ops.dense_scores(torch.zeros(3, 6), packed, plan, torch.zeros(2))


@pytest.mark.parametrize(
    ("at", "value"),
    [
        (0, 2),
        (1, 0),
        (1, 2**40),
        (2, 0),
        (2, 65),
        (3, 0),
        (3, 17),
        (4, 9),
        (5, 2),
        (9, 5),
        (10, 0),
        (12, 99),
        (14, 0),
        (15, 1),
    ],
)
def test_a_damaged_plan_is_refused_by_the_op(at: int, value: int) -> None:
    encoded = list(PLAN.encoded)
    assert encoded[at] != value
    encoded[at] = value
    packed = ops.pack_towers(random_weights(PLAN), PLAN)
    with pytest.raises(ValueError, match=r"dense_scores: p(lan|acked) must be "):
        library.call("dense_scores", torch.zeros(3, 6), packed, torch.zeros(2), encoded, 0, 0)
    with pytest.raises(ValueError, match="must be a valid plan"):
        library.call("dense_scores", torch.zeros(3, 6), packed, torch.zeros(2), encoded[:4], 0, 0)


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"in_features": 0}, "in_features must be 1 to"),
        ({"hidden": ()}, "hidden must be 1 to 16 widths"),
        ({"hidden": (4, 0)}, "hidden must be widths of 1 to"),
        ({"parents": ()}, "parents must be 1 to 64 tasks"),
        ({"parents": (-1, 1)}, r"parents\[1\] must be -1 or an earlier task, got 1"),
        ({"activations": "swish"}, "activations must be one of identity"),
        ({"activations": ("relu", "relu", "relu")}, "activations must be one name per hidden layer"),
        ({"precision": "int4"}, f"precision must be one of {', '.join(contract.PRECISION_ROWS)}, got 'int4'"),
        ({"precision": "int8", "in_features": 65537}, "precision must be another for over 65536 inputs, got int8"),
        ({"head": "softmax"}, "head must be one of residual, conditional"),
        ({"head": "conditional"}, "logit_residual must be False with a conditional head"),
        ({"logit_residual": False, "non_increasing": True}, "non_increasing must be False without a logit residual"),
    ],
)
def test_a_bad_plan_is_refused(settings: dict[str, object], text: str) -> None:
    with pytest.raises(ValueError, match=f"Plan: {text}"):
        Plan(**{"in_features": 6, "hidden": (5, 4), "parents": chain(2), **settings})  # type: ignore[arg-type]
