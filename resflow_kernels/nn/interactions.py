"""Rankers that multiply features with each other: DCN v2 and DLRM. Needs torch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

from ..core.program import Row, columns_of, joined
from .baselines import Baseline
from .steps import ModuleSteps


class DCNv2(Baseline):
    """Deep and cross network, second version (Wang et al., WWW 2021), in its parallel form.

    ``x_{l+1} = x_0 * (W_l x_l + b_l) + x_l`` beside a deep tower; each task has a Linear on both.

    Args:
        cross_layers: number of cross layers. The other arguments are those of
            :class:`~resflow_kernels.nn.baselines.Baseline`.

    Raises:
        ValueError: a setting that is out of range; the message names it.

    Example:
        >>> DCNv2(576, tasks=("ctr", "ctcvr"), cross_layers=2)(torch.randn(10, 576)).probs.shape
        torch.Size([10, 2])
    """

    def __init__(
        self,
        *args: Any,
        cross_layers: int = 3,
        **settings: Any,
    ) -> None:
        super().__init__(*args, **settings)
        in_features = self.plan.in_features
        if cross_layers < 1:
            raise ValueError(f"DCNv2: cross_layers must be at least 1, got {cross_layers}")
        self.crosses = nn.ModuleList(nn.Linear(in_features, in_features) for _ in range(cross_layers))
        self.tower = self._mlp((in_features, *self.plan.hidden))
        self.heads = nn.ModuleList(nn.Linear(in_features + self.plan.hidden[-1], 1) for _ in self.tasks)

    def task_logits(self, x: Tensor) -> list[Tensor]:
        """See :class:`~resflow_kernels.nn.baselines.Baseline`."""
        crossed = x
        for cross in self.crosses:
            crossed = x * cross(crossed) + crossed
        both = torch.cat((crossed, self.tower(x)), dim=1)
        return [head(both) for head in self.heads]

    def _steps(self, steps: ModuleSteps) -> list[Row]:
        x = crossed = steps.normed()
        for cross in self.crosses:
            crossed = steps.linear(crossed, cast(nn.Linear, cross), factor=x, addend=crossed)
        both = joined([*crossed, *steps.mlp(x, self.tower)])
        return [steps.linear(both, cast(nn.Linear, head)) for head in self.heads]


class DLRM(Baseline):
    """Deep learning recommendation model (Naumov et al., 2019): dot products of fields.

    The input row is numeric columns, then fields of ``field_width`` columns each (embeddings). A bottom maps the
    numeric columns to one more field; the dot products of all pairs of fields, beside that field, are the top's input.

    Args:
        hidden: widths of the top.
        field_width: width of a field; ``None``: 32, or less if that leaves no two fields.
        numeric: number of numeric columns, which come first; ``None``: the columns that do not fill a field; 0: none,
            and no bottom.
        bottom: widths of the bottom's layers before its last, which has ``field_width``. The other arguments are those
            of :class:`~resflow_kernels.nn.baselines.Baseline`.

    Raises:
        ValueError: a setting that is out of range; the message names it.

    Example:
        >>> DLRM(13 + 6 * 16, tasks=("click",), field_width=16)(torch.randn(10, 109)).probs.shape
        torch.Size([10, 1])
    """

    def __init__(
        self,
        *args: Any,
        field_width: int | None = None,
        numeric: int | None = None,
        bottom: Sequence[int] = (64,),
        **settings: Any,
    ) -> None:
        super().__init__(*args, **settings)
        in_features = self.plan.in_features
        if field_width is None:
            field_width = next((width for width in (32, 16, 8, 4, 2) if 2 * width <= in_features), 1)
        if field_width < 1:
            raise ValueError(f"DLRM: field_width must be at least 1, got {field_width}")
        self.numeric = in_features % field_width if numeric is None else numeric
        columns = in_features - self.numeric
        if self.numeric < 0 or columns < 0 or columns % field_width:
            raise ValueError(
                f"DLRM: in_features must be numeric columns and fields of {field_width}, got {in_features} with "
                f"{self.numeric} numeric ones"
            )
        self.field_width = field_width
        self.fields = columns // field_width + (self.numeric > 0)
        if self.fields < 2:
            raise ValueError(f"DLRM: in_features must be at least 2 fields of {field_width}, got {in_features}")
        self.bottom = self._mlp((self.numeric, *bottom, field_width)) if self.numeric else None
        pairs = self.fields * (self.fields - 1) // 2
        self.top = self._mlp((pairs + (field_width if self.numeric else 0), *self.plan.hidden))
        self.heads = nn.ModuleList(self._head() for _ in self.tasks)
        places = torch.triu_indices(self.fields, self.fields, 1)
        self.register_buffer("_first", places[0], persistent=False)
        self.register_buffer("_second", places[1], persistent=False)

    def task_logits(self, x: Tensor) -> list[Tensor]:
        """See :class:`~resflow_kernels.nn.baselines.Baseline`."""
        fields = x[:, self.numeric :].unflatten(1, (-1, self.field_width))
        parts = []
        if self.bottom is not None:
            parts = [self.bottom(x[:, : self.numeric])]
            fields = torch.cat((parts[0][:, None], fields), dim=1)
        products = (fields @ fields.transpose(1, 2))[:, self._first, self._second]
        hidden = self.top(torch.cat((*parts, products), dim=1))
        return [head(hidden) for head in self.heads]

    def _steps(self, steps: ModuleSteps) -> list[Row]:
        x = steps.normed()
        fields = columns_of(x, self.numeric, self.plan.in_features - self.numeric)
        bottom: Row = ()
        if self.bottom is not None:
            bottom = steps.mlp(columns_of(x, 0, self.numeric), self.bottom)
        products = steps.interactions(joined([*bottom, *fields]), self.fields)
        hidden = steps.mlp(joined([*bottom, *products]), self.top)
        return [steps.linear(hidden, cast(nn.Linear, head)) for head in self.heads]
