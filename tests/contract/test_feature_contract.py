"""Bad input to the feature form is named in the same words by the op, its fake, the module and the NumPy runtime."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from resflow_kernels import FeatureRanker, ResFlow, ops
from resflow_kernels.contract import OP_SCHEMAS
from resflow_kernels.core.plan import Plan
from resflow_kernels.testing import random_weights

PLAN = Plan(9, (5, 4), (-1, 0))
DENSE, REQUEST = "feature_scores", "feature_request_scores"
TABLES = [torch.zeros(4, 2), torch.zeros(6, 3, dtype=torch.int8), torch.zeros(5, 4)]
integers = torch.int64


def _good(op: str) -> dict[str, Any]:
    """Three candidates: one id of table 0, a list of table 1, one id of table 2; in requests table 0 is the user's."""
    lists = {"values": torch.tensor([0, 5]), "value_offsets": torch.tensor([0, 1, 2, 2])}
    arguments: dict[str, Any]
    if op.startswith("feature_request"):
        arguments = {"user_ids": torch.tensor([[3], [0]]), "user_values": torch.zeros(0, dtype=integers)}
        arguments["user_value_offsets"] = torch.zeros(1, dtype=integers)
        arguments |= {"item_ids": torch.tensor([[4], [0], [1]])}
        arguments |= {f"item_{name}": value for name, value in lists.items()}
    else:
        arguments = {"ids": torch.tensor([[3, 4], [0, 0], [1, 1]]), **lists}
    if op != DENSE:
        arguments["offsets"] = torch.tensor([0, 1, 3])
    arguments |= {"tables": TABLES, "scales": [torch.ones(6)], "ragged": [1]}
    if op.startswith("feature_request"):
        arguments["user_features"] = 1
    weights = {"item_value_weights" if "item_values" in arguments else "value_weights": torch.ones(2)}
    arguments |= ({"user_value_weights": None} if "item_values" in arguments else {}) | weights
    arguments |= {"pooling": [1], "padding": [5]}
    packed = ops.pack_towers(random_weights(PLAN), PLAN)
    arguments |= {"packed": packed, "fusion_weights": torch.zeros(2), "plan": PLAN.encoded}
    return arguments | {"fusion": 0, "weights_per": 0} | ({"k": 2} if op.endswith("topk") else {})


def _changed(at: int, table: Tensor) -> dict[str, Any]:
    return {"tables": [*TABLES[:at], table, *TABLES[at + 1 :]]}


# What is replaced, and what is said. Where only the values are bad, the fake cannot see it.
BAD_SHAPES: dict[str, tuple[str, dict[str, Any], str]] = {
    "no tables": (DENSE, {"tables": [], "scales": [], "ragged": []}, "tables must be one table or more, got none"),
    "table of a vector": (DENSE, _changed(2, torch.zeros(4)), "tables[2] must be a matrix, got [4]"),
    "table of float64": (
        DENSE,
        _changed(0, torch.zeros(4, 2, dtype=torch.float64)),
        "tables[0] must be float32, bfloat16 or int8, got float64",
    ),
    "table transposed": (
        REQUEST,
        _changed(2, torch.zeros(4, 5).T),
        "tables[2] must be contiguous in its last dimension, got strides [1, 5]",
    ),
    "tables too narrow": (
        DENSE,
        _changed(0, torch.zeros(4, 1)),
        "tables must be tables of 9 columns in all, the width of the input row, got 8",
    ),
    "no scales": (DENSE, {"scales": []}, "scales must be 1 vectors, one for each int8 table, got 0"),
    "scales too short": (DENSE, {"scales": [torch.ones(5)]}, "scales[0] must be a vector of 6, got [5]"),
    "scales of bfloat16": (
        DENSE,
        {"scales": [torch.ones(6).double()]},
        "scales[0] must be float32, got float64",
    ),
    "scales with a stride": (DENSE, {"scales": [torch.ones(12)[::2]]}, "scales[0] must be contiguous, got strides [2]"),
    "ragged beyond": (DENSE, {"ragged": [3]}, "ragged must be ascending places of tables, 0 to 2, got [3]"),
    "ragged twice": (DENSE, {"ragged": [1, 1]}, "ragged must be ascending places of tables, 0 to 2, got [1, 1]"),
    "ragged negative": (REQUEST, {"ragged": [-1]}, "ragged must be ascending places of tables, 0 to 2, got [-1]"),
    "unknown pooling": (
        DENSE,
        {"pooling": [2]},
        "pooling must be 0 (sum) or 1 (mean) for each of the 1 ragged tables, or nothing, got [2]",
    ),
    "pooling of other tables": (
        REQUEST,
        {"pooling": [0, 0]},
        "pooling must be 0 (sum) or 1 (mean) for each of the 1 ragged tables, or nothing, got [0, 0]",
    ),
    "padding that is no row": (
        DENSE,
        {"padding": [6]},
        "padding must be for each of the 1 ragged tables one of its rows or -1, or nothing, got [6]",
    ),
    "padding below": (
        REQUEST,
        {"padding": [-2]},
        "padding must be for each of the 1 ragged tables one of its rows or -1, or nothing, got [-2]",
    ),
    "padding of other tables": (
        DENSE,
        {"padding": [0, 0]},
        "padding must be for each of the 1 ragged tables one of its rows or -1, or nothing, got [0, 0]",
    ),
    "value weights too short": (
        DENSE,
        {"value_weights": torch.ones(1)},
        "value_weights must be a vector of 2, got [1]",
    ),
    "value weights of float64": (
        REQUEST,
        {"item_value_weights": torch.ones(2).double()},
        "item_value_weights must be float32, got float64",
    ),
    "value weights with a stride": (
        DENSE,
        {"value_weights": torch.ones(4)[::2]},
        "value_weights must be contiguous, got strides [2]",
    ),
    "user value weights without values": (
        REQUEST,
        {"user_value_weights": torch.ones(1)},
        "user_value_weights must be a vector of 0, got [1]",
    ),
    "user features beyond": (
        REQUEST,
        {"user_features": 4},
        "user_features must be a number of tables, 0 to 3, got 4",
    ),
    "ids too wide": (
        DENSE,
        {"ids": torch.zeros(3, 3, dtype=integers)},
        "ids must be a matrix with 2 columns, got [3, 3]",
    ),
    "ids of a vector": (DENSE, {"ids": torch.zeros(3, dtype=integers)}, "ids must be a matrix with 2 columns, got [3]"),
    "ids of int32": (DENSE, {"ids": torch.zeros(3, 2, dtype=torch.int32)}, "ids must be int64, got int32"),
    "user ids too wide": (
        REQUEST,
        {"user_ids": torch.zeros(2, 2, dtype=integers)},
        "user_ids must be a matrix with 1 columns, got [2, 2]",
    ),
    "values of a matrix": (
        DENSE,
        {"values": torch.zeros(2, 1, dtype=integers)},
        "values must be a vector of ids, got [2, 1]",
    ),
    "values of int32": (REQUEST, {"item_values": torch.zeros(2).int()}, "item_values must be int64, got int32"),
    "values with a stride": (
        DENSE,
        {"values": torch.zeros(4, dtype=integers)[::2]},
        "values must be contiguous, got strides [2]",
    ),
    "too few offsets": (
        DENSE,
        {"value_offsets": torch.tensor([0, 2])},
        "value_offsets must be a vector of 4 offsets (one more than the lists), got [2]",
    ),
    "user offsets without lists": (
        REQUEST,
        {"user_value_offsets": torch.zeros(3, dtype=integers)},
        "user_value_offsets must be a vector of 1 offsets (one more than the lists), got [3]",
    ),
    "offsets of int32": (DENSE, {"value_offsets": torch.zeros(4).int()}, "value_offsets must be int64, got int32"),
    "requests that are not the users": (
        REQUEST,
        {"offsets": torch.tensor([0, 3])},
        "offsets must be a vector of 3 offsets (one more than the requests), got [2]",
    ),
    "k of 0": ("feature_topk", {"k": 0}, "k must be at least 1, got 0"),
    "k of -1": ("feature_request_topk", {"k": -1}, "k must be at least 1, got -1"),
    "weights": (DENSE, {"fusion_weights": torch.zeros(3)}, "fusion_weights must be a vector of 2, got [3]"),
    "weights a request": (DENSE, {"weights_per": 1}, "weights_per must be one of 0 (call), 2 (candidate), got 1"),
}
BAD_VALUES: dict[str, tuple[str, dict[str, Any], str]] = {
    "an id too large": (
        DENSE,
        {"ids": torch.tensor([[3, 4], [0, 5], [1, 1]])},
        "ids[1, 1] must be a row of tables[2], 0 to 4, got 5",
    ),
    "a negative user id": (
        REQUEST,
        {"user_ids": torch.tensor([[3], [-2]])},
        "user_ids[1, 0] must be a row of tables[0], 0 to 3, got -2",
    ),
    "an item id": (
        REQUEST,
        {"item_ids": torch.tensor([[4], [0], [2**40]])},
        f"item_ids[2, 0] must be a row of tables[2], 0 to 4, got {2**40}",
    ),
    "an id of a list": (
        DENSE,
        {"values": torch.tensor([0, 6])},
        "values[1] must be a row of tables[1], 0 to 5, got 6",
    ),
    "an id of an item's list": (
        REQUEST,
        {"item_values": torch.tensor([-1, 6])},
        "item_values[0] must be a row of tables[1], 0 to 5, got -1",
    ),
    "list offsets that start late": (
        DENSE,
        {"value_offsets": torch.tensor([1, 1, 2, 2])},
        "value_offsets[0] must be offsets that start at 0, got 1",
    ),
    "list offsets that fall": (
        DENSE,
        {"value_offsets": torch.tensor([0, 2, 1, 2])},
        "value_offsets[2] must be offsets that do not decrease, got 1 after 2",
    ),
    "list offsets that end early": (
        REQUEST,
        {"item_value_offsets": torch.tensor([0, 1, 1, 1])},
        "item_value_offsets[3] must be offsets that end at the number of values, 2, got 1",
    ),
    "list offsets that end late": (
        DENSE,
        {"value_offsets": torch.tensor([0, 1, 2, 3])},
        "value_offsets[3] must be offsets that end at the number of values, 2, got 3",
    ),
    "offsets that end early": (
        REQUEST,
        {"offsets": torch.tensor([0, 1, 2])},
        "offsets[2] must be offsets that end at the number of candidates, 3, got 2",
    ),
}
BAD = BAD_SHAPES | BAD_VALUES


def _op(op: str, arguments: dict[str, Any]) -> object:
    return getattr(torch.ops.resflow, op)(**arguments)


def _fake(op: str, arguments: dict[str, Any]) -> object:
    with torch._subclasses.FakeTensorMode(allow_non_fake_inputs=True) as mode:
        return _op(op, torch.utils._pytree.tree_map_only(Tensor, mode.from_tensor, arguments))


def _numpy(op: str, arguments: dict[str, Any]) -> object:
    runtime = pytest.importorskip("resflow_kernels._runtime")
    names = [argument.split()[-1].split("=")[0] for argument in OP_SCHEMAS[op].split(") ->")[0][1:].split(", ")]
    arrays = torch.utils._pytree.tree_map_only(Tensor, Tensor.numpy, arguments)
    return getattr(runtime, op)(*(arrays[name] for name in names))


def _module(op: str, arguments: dict[str, Any]) -> object:
    """In training: by plain PyTorch, behind the same checks."""
    embeddings = [nn.Embedding(4, 2), nn.EmbeddingBag(6, 3, mode="mean", padding_idx=5), nn.Embedding(5, 4)]
    model = FeatureRanker(embeddings, ResFlow(9, (5, 4)), 1)

    def ids(prefix: str) -> ops.FeatureIds:
        return ops.FeatureIds(*(arguments[prefix + name] for name in ops.FeatureIds._fields))

    if op == DENSE:
        return model(ids(""), value_weights=arguments["value_weights"])
    weights = {name: arguments[name] for name in ("user_value_weights", "item_value_weights")}
    return model.feature_request_scores(ids("user_"), ids("item_"), arguments["offsets"], **weights)


@pytest.mark.parametrize("op", [DENSE, REQUEST, "feature_topk", "feature_request_topk"])
def test_good_inputs_pass_everywhere(op: str) -> None:
    for call in (_op, _fake, _numpy, *([_module] if op in (DENSE, REQUEST) else [])):
        call(op, _good(op))


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_named_alike_by_all_paths(name: str) -> None:
    op, changes, text = BAD[name]
    calls = [_op, _numpy]
    if name in BAD_SHAPES:
        calls.append(_fake)
    if all(argument.endswith(("ids", "values", "value_offsets", "value_weights")) for argument in changes):
        calls.append(_module)
    for call in calls:
        with pytest.raises(ValueError) as raised:
            call(op, _good(op) | changes)
        assert str(raised.value) == f"{op}: {text}", call.__name__
