"""Checks of each form's inputs, which count its candidates and requests: one function per row of ``ops.def``.

:func:`check` parses an op's arguments, in the order of its schema, and makes the checks that need no data, in the order
of ``csrc/core``. Fakes, the reference and Triton's kernels all start from its result.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..contract import FORMS, FUSIONS, WEIGHTS_PER, Form
from . import checks
from .plan import Plan
from .program import decode_plan

_MODEL_ARGUMENTS = 5  # of each model of ops.def

Dtypes = tuple[torch.dtype, ...]  # dtypes that rows may have; empty: those the ops accept on the tensor's device


class Counts(NamedTuple):
    """Number of candidates of a call, and of requests (``None`` in a form without requests)."""

    candidates: int
    requests: int | None
    weight_rows: int  # rows of fusion weights that are given per candidate


@dataclass(frozen=True)
class Call:
    """A checked scoring call."""

    op: str
    form: Form
    inputs: dict[str, Any]  # by their names in the form's row
    packed: Any  # the towers' packed weights; None in the twin tower form
    fusion_weights: Tensor
    plan: Any  # the towers' Plan; None in the twin tower form
    parents: tuple[int, ...]
    fusion: str
    weights_per: str
    k: int | None  # None if the call scores
    counts: Counts

    @property
    def tensors(self) -> dict[str, Tensor]:
        """All tensors except the packed weights, by argument name."""
        named: dict[str, Tensor] = {}
        for name, value in (*self.inputs.items(), ("fusion_weights", self.fusion_weights)):
            if isinstance(value, Tensor):
                named[name] = value
        return named

    def check_values(self) -> None:
        """Check the values of offsets and ids, which reads the tensors."""
        if "ids" in self.inputs and "table" in self.inputs:
            checks.id_values(self.op, self.inputs["ids"], self.inputs["table"].shape[0])
        if "offsets" in self.inputs:
            checks.offset_values(self.op, self.inputs["offsets"], self.counts.candidates)


@lru_cache(maxsize=256)
def decoded(encoded: tuple[int, ...]) -> Any:
    """The plan encoded by an op's list of integers; the same list returns the same object."""
    return decode_plan(encoded)


def form_of(op: str) -> tuple[Form, bool]:
    """An op's row, and whether it ranks: the dense form's row and ``True`` for ``"dense_topk"``."""
    name, ending = op.rsplit("_", 1)
    return FORMS[name], ending == "topk"


def check(op: str, arguments: tuple[Any, ...], rows: Dtypes = (), device: str | None = None) -> Call:
    """Parse and check a scoring op's arguments.

    Args:
        op: the op's name, such as ``"request_topk"``.
        arguments: the op's arguments in the order of its schema.
        rows: the dtypes that rows may have.
        device: the type of device whose precisions are allowed; ``None``: the packed weights' device.

    Raises:
        ValueError: bad input; the message names the argument, what was expected and what was got.
    """
    form, ranks = form_of(op)
    names = (*form.inputs, *(form.topk_inputs if ranks else ()))
    inputs = dict(zip(names, arguments, strict=False))
    model = arguments[len(names) :]
    k = model[_MODEL_ARGUMENTS] if ranks else None
    inputs |= _options(form, model[_MODEL_ARGUMENTS + ranks :])
    if form.model == "towers":
        packed, fusion_weights, encoded, fusion, weights_per = model[:_MODEL_ARGUMENTS]
        plan = decoded(tuple(encoded))
        parents, tasks = plan.parents, plan.tasks
        counts = _CHECKS[form.name](op, plan, rows, **inputs)
    else:
        fusion_weights, parents, _, fusion, weights_per = model[:_MODEL_ARGUMENTS]
        packed, plan, parents, tasks = None, None, tuple(parents), len(parents)
        counts = _CHECKS[form.name](op, parents, rows, **inputs)
    if plan is not None:
        checks.scored(op, plan)
    checks.fusion(op, fusion_weights, fusion, weights_per, tasks, counts.weight_rows, counts.requests, torch.float32)
    if plan is not None:
        checks.precision(op, plan, packed, device)
    if k is not None:
        checks.positive(op, "k", k)
    how = FUSIONS[fusion], WEIGHTS_PER[weights_per]
    return Call(op, form, inputs, packed, fusion_weights, plan, parents, *how, k, counts)


def _options(form: Form, given: tuple[Any, ...]) -> dict[str, Any]:
    """The arguments at a schema's end; PyTorch leaves out the last ones that have their defaults."""
    return form.options | dict(zip(form.options, given, strict=False))


def check_dense(op: str, plan: Plan, rows: Dtypes, x: Tensor, offsets: Tensor | None = None) -> Counts:
    """Check ``x [B, D]``; offsets divide it into requests."""
    checks.matrix(op, "x", x, plan.in_features, *rows)
    return _cut(op, x.shape[0], offsets)


def check_request(op: str, plan: Plan, rows: Dtypes, user: Tensor, item: Tensor, offsets: Tensor) -> Counts:
    """Check ``user [R, Du]``, ``item [N, Di]`` and ``offsets [R + 1]``."""
    checks.matrix(op, "user", user, None, *rows)
    checks.matrix(op, "item", item, None, *rows)
    checks.columns_sum(op, user, item, plan)
    return _of_requests(op, user.shape[0], item.shape[0], offsets)


def check_catalog(
    op: str, plan: Plan, rows: Dtypes, user: Tensor, ids: Tensor, offsets: Tensor, table: Tensor, scales: Tensor
) -> Counts:
    """Check ``user [R, Du]``, ``ids [N]``, ``offsets [R + 1]`` and ``table [M, plan.table_width_of(Di)]``."""
    checks.has_catalogs(op, plan, user.device.type)
    checks.side(op, "user", user, plan, *rows)
    checks.table(op, table, scales, plan, plan.in_features - user.shape[1])
    checks.ids(op, ids)
    return _of_requests(op, user.shape[0], ids.shape[0], offsets)


def check_feature(
    op: str,
    plan: Plan,
    rows: Dtypes,
    ids: Tensor,
    values: Tensor,
    value_offsets: Tensor,
    tables: list[Tensor],
    scales: list[Tensor],
    ragged: list[int],
    offsets: Tensor | None = None,
    value_weights: Tensor | None = None,
    pooling: Sequence[int] = (),
    padding: Sequence[int] = (),
) -> Counts:
    """Check the ids of ``B`` candidates in all tables; offsets divide the candidates into requests."""
    checks.feature_tables(op, tables, scales, ragged, pooling, padding, plan)
    lists = len(ragged)
    checks.feature_ids(op, "", ids, values, value_offsets, value_weights, len(tables) - lists, lists)
    return _cut(op, ids.shape[0], offsets)


def check_feature_request(
    op: str,
    plan: Plan,
    rows: Dtypes,
    user_ids: Tensor,
    user_values: Tensor,
    user_value_offsets: Tensor,
    item_ids: Tensor,
    item_values: Tensor,
    item_value_offsets: Tensor,
    offsets: Tensor,
    tables: list[Tensor],
    scales: list[Tensor],
    ragged: list[int],
    user_features: int,
    user_value_weights: Tensor | None = None,
    item_value_weights: Tensor | None = None,
    pooling: Sequence[int] = (),
    padding: Sequence[int] = (),
) -> Counts:
    """Check the ids of ``R`` users in the first ``user_features`` tables, and of ``N`` candidates in the others."""
    checks.feature_tables(op, tables, scales, ragged, pooling, padding, plan)
    checks.user_features(op, user_features, len(tables))
    lists = sum(index < user_features for index in ragged)
    user = user_ids, user_values, user_value_offsets, user_value_weights
    checks.feature_ids(op, "user_", *user, user_features - lists, lists)
    singles, lists = len(tables) - user_features - (len(ragged) - lists), len(ragged) - lists
    checks.feature_ids(op, "item_", item_ids, item_values, item_value_offsets, item_value_weights, singles, lists)
    return _of_requests(op, user_ids.shape[0], item_ids.shape[0], offsets)


def check_twin(op: str, parents: tuple[int, ...], rows: Dtypes, user: Tensor, table: Tensor, scales: Tensor) -> Counts:
    """Check ``user [R, K * W]`` and ``table [M, K * W]``: every item is a candidate of every request."""
    _check_vectors(op, parents, rows, user, table, scales)
    requests, items = user.shape[0], table.shape[0]
    return Counts(requests * items, requests, items)


def check_twin_ids(
    op: str,
    parents: tuple[int, ...],
    rows: Dtypes,
    user: Tensor,
    ids: Tensor,
    offsets: Tensor,
    table: Tensor,
    scales: Tensor,
) -> Counts:
    """Check ``user [R, K * W]``, ``ids [N]`` of rows of ``table [M, K * W]``, and ``offsets [R + 1]``."""
    _check_vectors(op, parents, rows, user, table, scales)
    checks.ids(op, ids)
    return _of_requests(op, user.shape[0], ids.shape[0], offsets)


def _check_vectors(
    op: str, parents: tuple[int, ...], rows: Dtypes, user: Tensor, table: Tensor, scales: Tensor
) -> None:
    checks.twin_parents(op, list(parents))
    checks.twin_table(op, table, scales, len(parents))
    checks.matrix(op, "user", user, table.shape[1], *rows)


def _cut(op: str, candidates: int, offsets: Tensor | None) -> Counts:
    if offsets is None:
        return Counts(candidates, None, candidates)
    checks.offsets(op, offsets, None)
    return Counts(candidates, offsets.shape[0] - 1, candidates)


def _of_requests(op: str, requests: int, candidates: int, offsets: Tensor) -> Counts:
    checks.offsets(op, offsets, requests)
    return Counts(candidates, requests, candidates)


# A row of ops.def without its function here is a KeyError at import.
_CHECKS: dict[str, Callable[..., Counts]] = {name: globals()[f"check_{name}"] for name in FORMS}
