"""Checks of the ops' inputs for the paths that do not reach C++ (fakes, reference).

Mirrors ``csrc/core/check.h``: the same order and the same texts (both read them from ``contract/errors.def``; a test
passes every bad input to both). Only sizes, strides and dtypes are used, so the checks work on SymInts;
:func:`offset_values` is the exception, and is omitted where tensors have no data.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise

import torch
from torch import Tensor

from ..contract import (
    FUSIONS,
    PLAN_LIMITS,
    POOLING,
    PRECISION_ROWS,
    TABLE_PRECISIONS,
    WEIGHTS_PER,
    error_message,
    precisions_with,
)
from .fusion import weight_count
from .plan import Plan
from .program import AnyPlan

# The dtypes of a table's rows, by the code of their precision.
TABLE_DTYPES: dict[int, torch.dtype] = {PRECISION_ROWS[name].code: getattr(torch, name) for name in TABLE_PRECISIONS}


def precisions_of(device: str) -> tuple[str, ...]:
    """The precisions in which kernels multiply on this type of device."""
    return precisions_with("on_cpu" if device == "cpu" else "on_gpu")


def row_dtypes(device: str) -> tuple[torch.dtype, ...]:
    """The dtypes that rows may have on this type of device."""
    names = precisions_with("in_rows") if device == "cpu" else precisions_with("in_rows", "in_gpu_rows")
    return tuple(getattr(torch, name) for name in names)


def _require(holds: bool, op: str, argument: str, expected: str, got: object, *details: object) -> None:
    if not holds:
        raise ValueError(error_message(op, argument, expected, _text(got), *details))


def _text(got: object) -> object:
    """The ``got`` part of a message, built only when the message is raised, because tracers cannot build texts."""
    if isinstance(got, Tensor):
        return _sizes(got)
    return got() if callable(got) else got


def _strides(tensor: Tensor) -> Callable[[], str]:
    return lambda: f"strides {list(tensor.stride())}"


def _sizes(tensor: Tensor) -> str:
    return "[" + ", ".join(str(size) for size in tensor.shape) + "]"


def _dtype_name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def dtype(op: str, argument: str, tensor: Tensor, *expected: torch.dtype) -> None:
    """Require one of several dtypes."""
    names = [_dtype_name(one) for one in expected]
    listed = " or ".join(filter(None, (", ".join(names[:-1]), names[-1])))
    _require(tensor.dtype in expected, op, argument, "dtype", _dtype_name(tensor.dtype), listed)


def matrix(op: str, argument: str, tensor: Tensor, columns: int | None, *floating: torch.dtype) -> None:
    """Require a float matrix with contiguous rows and any row stride; by default of any dtype that the ops accept."""
    if columns is None:
        _require(tensor.dim() == 2, op, argument, "any_matrix", tensor)
    else:
        _require(tensor.dim() == 2 and tensor.shape[1] == columns, op, argument, "matrix", tensor, columns)
    dtype(op, argument, tensor, *(floating or row_dtypes(tensor.device.type)))
    side_by_side = tensor.shape[0] == 0 or tensor.shape[1] <= 1 or tensor.stride(1) == 1
    _require(side_by_side, op, argument, "unit_stride", _strides(tensor))


def offsets(op: str, tensor: Tensor, requests: int | None) -> None:
    """Require an int64 vector of ``requests + 1`` offsets, or of at least one if ``requests`` is ``None``."""
    if requests is None:
        _require(tensor.dim() == 1 and tensor.shape[0] >= 1, op, "offsets", "offsets_any", tensor)
    else:
        holds = tensor.dim() == 1 and tensor.shape[0] == requests + 1
        _require(holds, op, "offsets", "offsets", tensor, requests + 1)
    dtype(op, "offsets", tensor, torch.int64)
    vector(op, "offsets", tensor)


def offset_values(op: str, tensor: Tensor, candidates: int) -> None:
    """Require offsets that start at 0, do not decrease, and end at the number of candidates."""
    values = tensor.tolist()
    _require(values[0] == 0, op, "offsets[0]", "offsets_start", values[0])
    for at in range(1, len(values)):
        _require(
            values[at] >= values[at - 1], op, f"offsets[{at}]", "offsets_grow", f"{values[at]} after {values[at - 1]}"
        )
    last = len(values) - 1
    _require(values[last] == candidates, op, f"offsets[{last}]", "offsets_end", values[last], candidates)


def fusion(
    op: str,
    weights: Tensor,
    code: int,
    weights_per: int,
    tasks: int,
    candidates: int,
    requests: int | None,
    floating: torch.dtype,
) -> None:
    """Check the fusion's code and its weights: ``[K]``, one row per request, or one row per candidate."""
    _require(0 <= code < len(FUSIONS), op, "fusion", "one_of", code, f"0 to {len(FUSIONS) - 1}")
    allowed = [name for name in WEIGHTS_PER if name != "request" or requests is not None]
    known = 0 <= weights_per < len(WEIGHTS_PER) and WEIGHTS_PER[weights_per] in allowed
    _require(
        known, op, "weights_per", "one_of", weights_per, ", ".join(f"{WEIGHTS_PER.index(n)} ({n})" for n in allowed)
    )
    count = weight_count(FUSIONS[code], tasks)
    per = WEIGHTS_PER[weights_per]
    if per == "call":
        holds = weights.dim() == 1 and weights.shape[0] == count
        _require(holds, op, "fusion_weights", "vector", weights, count)
    else:
        rows = requests if per == "request" else candidates
        holds = weights.dim() == 2 and weights.shape[0] == rows and weights.shape[1] == count
        _require(holds, op, "fusion_weights", "rows", weights, rows, count)
    dtype(op, "fusion_weights", weights, floating)
    _require(weights.is_contiguous(), op, "fusion_weights", "contiguous", _strides(weights))


def precision(op: str, plan: AnyPlan, packed: Tensor, device: str | None = None) -> None:
    """Require a precision in which the weights' device (or another type of device) multiplies."""
    device = packed.device.type if device is None else device
    if device == "meta":  # the device is unknown
        return
    known = precisions_of(device)
    place = "the CPU" if device == "cpu" else "a GPU"
    _require(plan.precision in known, op, "plan precision", "precision", plan.precision, ", ".join(known), place)


def has_catalogs(op: str, plan: object, device: str) -> None:
    """Require a forest of towers, except on the CPU, whose catalogs are also of tile programs."""
    fits = isinstance(plan, Plan) or device in ("cpu", "meta")
    _require(fits, op, "plan", "towers", "a tile program, whose catalogs are the CPU's")


def program(op: str, plan: object) -> None:
    """Require a tile program."""
    _require(not isinstance(plan, Plan), op, "plan", "program", "a forest of towers")


def scored(op: str, plan: Plan) -> None:
    """Require tasks, which a tile program may be without."""
    _require(plan.tasks > 0, op, "plan", "scored", "a tile program of none")


def packed(op: str, tensor: Tensor, plan: AnyPlan) -> None:
    """Require the size of weights packed for the plan; their header is not read."""
    dtype(op, "packed", tensor, torch.uint8)
    fits = tensor.dim() == 1 and tensor.shape[0] == plan.packed_bytes and tensor.stride(0) == 1
    _require(fits, op, "packed", "packed_size", tensor, plan.packed_bytes)


def device(op: str, argument: str, tensor: Tensor, expected: torch.device) -> None:
    """Require the device of another of the call's tensors."""
    _require(tensor.device == expected, op, argument, "device", tensor.device, expected)


def side(op: str, argument: str, tensor: Tensor, plan: Plan, *floating: torch.dtype) -> None:
    """Check the user's or the item's part of the plan's input, which is at most as wide as the input."""
    matrix(op, argument, tensor, None, *floating)
    fits = tensor.shape[1] <= plan.in_features
    _require(fits, op, argument, "at_most_columns", tensor, plan.in_features)


def table_dtype(op: str, code: int) -> None:
    """Require the code of a table's precision."""
    known = ", ".join(f"{PRECISION_ROWS[name].code} ({name})" for name in TABLE_PRECISIONS)
    _require(code in TABLE_DTYPES, op, "dtype", "one_of", code, known)


def code_of(op: str, argument: str, code: int, count: int) -> None:
    """Require the code of an entry in a list of the contract."""
    _require(0 <= code < count, op, argument, "one_of", code, f"0 to {count - 1}")


def name_of(op: str, argument: str, name: str, names: Sequence[str]) -> None:
    """Require a name from a list of the contract."""
    _require(name in names, op, argument, "one_of", repr(name), ", ".join(names))


def contiguous(op: str, argument: str, tensor: Tensor, shape: Sequence[int]) -> None:
    """Require a contiguous float32 tensor of this shape."""
    _require(tuple(tensor.shape) == tuple(shape), op, argument, "shape", tensor, list(shape))
    dtype(op, argument, tensor, torch.float32)
    _require(tensor.is_contiguous(), op, argument, "contiguous", _strides(tensor))


def table(op: str, rows: Tensor, scales: Tensor, plan: AnyPlan, item_columns: int) -> None:
    """Check a catalog's table ``[M, plan.table_width_of(item_columns)]`` and its scales."""
    width = plan.table_width_of(item_columns)
    _require(rows.dim() == 2 and rows.shape[1] == width, op, "table", "matrix", rows, width)
    _table_element(op, rows)
    count = rows.shape[0] if rows.dtype == torch.int8 else 0
    _require(scales.dim() == 1 and scales.shape[0] == count, op, "scales", "table_scales", scales, count)
    dtype(op, "scales", scales, torch.float32)
    vector(op, "scales", scales)


def _table_element(op: str, rows: Tensor) -> None:
    dtype(op, "table", rows, *TABLE_DTYPES.values())
    _require(rows.shape[0] == 0 or rows.stride(1) == 1, op, "table", "unit_stride", _strides(rows))


def task_count(op: str, tasks: int) -> None:
    """Require 1 to the largest number of tasks of a plan."""
    most = PLAN_LIMITS["max_tasks"]
    _require(1 <= tasks <= most, op, "tasks", "one_of", tasks, f"1 to {most}")


def twin_parents(op: str, parents: list[int]) -> None:
    """Require that each task's parent comes before it, or is -1."""
    most = PLAN_LIMITS["max_tasks"]
    earlier = all(-1 <= parent < task for task, parent in enumerate(parents))
    _require(1 <= len(parents) <= most and earlier, op, "parents", "parents", list(parents), most)


def task_columns(op: str, argument: str, tensor: Tensor, tasks: int) -> None:
    """Require the same number of columns for each task."""
    divides = tensor.dim() == 2 and tensor.shape[1] > 0 and tensor.shape[1] % tasks == 0
    _require(divides, op, argument, "task_columns", tensor, tasks)


def twin_table(op: str, rows: Tensor, scales: Tensor, tasks: int) -> None:
    """Check item vectors ``[M, K * W]`` and their scales ``[M, K]``."""
    task_columns(op, "table", rows, tasks)
    _table_element(op, rows)
    int8 = rows.dtype == torch.int8
    most = PLAN_LIMITS["max_int8_inputs"]
    _require(not int8 or rows.shape[1] // tasks <= most, op, "table", "int8_columns", rows, most)
    count = rows.shape[0] if int8 else 0
    holds = scales.dim() == 2 and scales.shape[0] == count and scales.shape[1] == tasks
    _require(holds, op, "scales", "rows", scales, count, tasks)
    dtype(op, "scales", scales, torch.float32)
    _require(scales.is_contiguous(), op, "scales", "contiguous", _strides(scales))


def vector(op: str, argument: str, tensor: Tensor) -> None:
    """Require contiguous elements."""
    together = tensor.shape[0] <= 1 or tensor.stride(0) == 1
    _require(together, op, argument, "contiguous", _strides(tensor))


def ids(op: str, tensor: Tensor) -> None:
    """Check a vector of ids, but not their values (see :func:`id_values`)."""
    _require(tensor.dim() == 1, op, "ids", "vector", tensor, "ids")
    dtype(op, "ids", tensor, torch.int64)
    vector(op, "ids", tensor)


def id_values(op: str, tensor: Tensor, items: int) -> None:
    bad = ((tensor < 0) | (tensor >= items)).nonzero().flatten().tolist()
    if bad:
        _require(False, op, f"ids[{bad[0]}]", "ids", int(tensor[bad[0]]), items - 1)


def feature_tables(
    op: str,
    tables: Sequence[Tensor],
    scales: Sequence[Tensor],
    ragged: Sequence[int],
    pooling: Sequence[int],
    padding: Sequence[int],
    plan: Plan,
) -> None:
    """Check the tables of all features, the scales of the int8 ones, and which of them take lists, pooled how."""
    _require(len(tables) > 0, op, "tables", "tables", "none")
    for at, table in enumerate(tables):
        argument = f"tables[{at}]"
        _require(table.dim() == 2, op, argument, "any_matrix", table)
        dtype(op, argument, table, *TABLE_DTYPES.values())
        side_by_side = table.shape[0] == 0 or table.shape[1] <= 1 or table.stride(1) == 1
        _require(side_by_side, op, argument, "unit_stride", _strides(table))
    columns = sum(table.shape[1] for table in tables)
    _require(columns == plan.in_features, op, "tables", "tables_columns", columns, plan.in_features)
    rows = [table.shape[0] for table in tables if table.dtype == torch.int8]
    _require(len(scales) == len(rows), op, "scales", "scale_count", len(scales), len(rows))
    for at, (scale, count) in enumerate(zip(scales, rows, strict=True)):
        argument = f"scales[{at}]"
        _require(scale.dim() == 1 and scale.shape[0] == count, op, argument, "vector", scale, count)
        dtype(op, argument, scale, torch.float32)
        vector(op, argument, scale)
    places = list(ragged)
    ascending = all(a < b for a, b in pairwise([-1, *places, len(tables)]))
    _require(ascending, op, "ragged", "ragged", places, len(tables) - 1)
    known = all(0 <= code < len(POOLING) for code in pooling) and len(pooling) in (0, len(places))
    names = " or ".join(f"{code} ({name})" for code, name in enumerate(POOLING))
    _require(known, op, "pooling", "pooling", list(pooling), names, len(places))
    inside = len(padding) in (0, len(places)) and all(
        -1 <= row < tables[at].shape[0] for row, at in zip(padding, places, strict=False)
    )
    _require(inside, op, "padding", "padding", list(padding), len(places))


def user_features(op: str, count: int, tables: int) -> None:
    _require(0 <= count <= tables, op, "user_features", "user_features", count, tables)


def feature_ids(
    op: str,
    prefix: str,
    ids: Tensor,
    values: Tensor,
    value_offsets: Tensor,
    value_weights: Tensor | None,
    columns: int,
    lists: int,
) -> None:
    """Check the lookups of ``columns`` features of one id and ``lists`` ragged ones, but not their values."""
    _require(ids.dim() == 2 and ids.shape[1] == columns, op, f"{prefix}ids", "matrix", ids, columns)
    dtype(op, f"{prefix}ids", ids, torch.int64)
    _require(values.dim() == 1, op, f"{prefix}values", "vector", values, "ids")
    dtype(op, f"{prefix}values", values, torch.int64)
    vector(op, f"{prefix}values", values)
    argument, count = f"{prefix}value_offsets", lists * ids.shape[0] + 1
    holds = value_offsets.dim() == 1 and value_offsets.shape[0] == count
    _require(holds, op, argument, "list_offsets", value_offsets, count)
    dtype(op, argument, value_offsets, torch.int64)
    vector(op, argument, value_offsets)
    if value_weights is not None:
        argument = f"{prefix}value_weights"
        holds = value_weights.dim() == 1 and value_weights.shape[0] == values.shape[0]
        _require(holds, op, argument, "vector", value_weights, values.shape[0])
        dtype(op, argument, value_weights, torch.float32)
        vector(op, argument, value_weights)


def feature_id_values(
    op: str,
    prefix: str,
    ids: Tensor,
    values: Tensor,
    value_offsets: Tensor,
    tables: Sequence[Tensor],
    ragged: Sequence[int],
    first: int,
) -> None:
    """Require offsets that partition the values, and ids inside their tables; ``tables`` begin at ``first`` of all."""
    argument, cuts = f"{prefix}value_offsets", value_offsets.tolist()
    _require(cuts[0] == 0, op, f"{argument}[0]", "offsets_start", cuts[0])
    for at, (before, own) in enumerate(pairwise(cuts), 1):
        _require(own >= before, op, f"{argument}[{at}]", "offsets_grow", f"{own} after {before}")
    last = f"{argument}[{len(cuts) - 1}]"
    _require(cuts[-1] == values.shape[0], op, last, "list_offsets_end", cuts[-1], values.shape[0])
    column = place = 0
    for at, table in enumerate(tables):
        count, begin = table.shape[0], 0
        if at in ragged:
            begin, end = cuts[place * ids.shape[0]], cuts[(place + 1) * ids.shape[0]]
            looked_up = values[begin:end]
            place += 1
        else:
            looked_up = ids[:, column]
            column += 1
        bad = ((looked_up < 0) | (looked_up >= count)).nonzero().flatten().tolist()
        if bad:
            name = f"{prefix}values[{begin + bad[0]}]" if at in ragged else f"{prefix}ids[{bad[0]}, {column - 1}]"
            _require(False, op, name, "feature_id", int(looked_up[bad[0]]), first + at, count - 1)


def positive(op: str, argument: str, value: int) -> None:
    """Require a value of at least 1."""
    _require(value >= 1, op, argument, "positive", value)


def columns_sum(op: str, user: Tensor, item: Tensor, plan: Plan) -> None:
    """Require that the user's and the item's columns together are the plan's input."""
    got = f"{user.shape[1]} + {item.shape[1]}"
    _require(
        user.shape[1] + item.shape[1] == plan.in_features, op, "user and item", "columns_sum", got, plan.in_features
    )


def weights(op: str, tensors: list[Tensor], plan: Plan, transposed: bool = False) -> None:
    """Check the canonical weights of a plan; ``transposed``: matrices are ``[outputs, inputs]`` (``nn.Linear``)."""
    shapes = plan.weight_shapes
    _require(len(tensors) == len(shapes), op, "weights", "weight_count", len(tensors), len(shapes))
    for at, (tensor, (name, shape)) in enumerate(zip(tensors, shapes, strict=True)):
        argument = f"weights[{at}] ({name})"
        if transposed:
            shape = shape[::-1]
        expected = "[" + ", ".join(map(str, shape)) + "]"
        _require(tuple(tensor.shape) == shape, op, argument, "shape", tensor, expected)
        dtype(op, argument, tensor, torch.float32)
        _require(tensor.is_contiguous(), op, argument, "contiguous", _strides(tensor))


def no_grad(op: str, **tensors: Tensor) -> None:
    """Refuse a call whose gradient would be lost silently."""
    if torch.is_grad_enabled():
        for argument, tensor in tensors.items():
            _require(not tensor.requires_grad, op, argument, "no_grad", "requires_grad=True")
