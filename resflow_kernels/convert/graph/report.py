"""What of a model runs in which region, and why the rest does not, in the model's own words."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from torch import fx, nn

from .lookups import Lookup
from .lowering import Lowering, name_of
from .pools import Pool
from .regions import Cut
from .rows import Draft, shape_of
from .trace import Traced

_PRODUCTS = (
    "linear",
    "matmul",
    "mm",
    "bmm",
    "addmm",
    "einsum",
    "tensordot",
    "conv1d",
    "conv2d",
    "scaled_dot_product_attention",
    "mv",
)


@dataclass
class Part:
    """Some of a model's modules: those of a region, or one that stays eager."""

    modules: list[str]
    multiply_adds: int
    reason: str = ""
    steps: int = 0
    tables: list[str] = field(default_factory=list)  # looked up inside: their names, and how lists are pooled


@dataclass
class Report:
    """What ``fuse`` does to a model; ``str()`` is a table."""

    model: str
    regions: list[Part] = field(default_factory=list)
    left: list[Part] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)

    @property
    def share_inside(self) -> float:
        """Share of the multiply-adds of matrix products that run in regions."""
        inside = sum(part.multiply_adds for part in self.regions)
        total = inside + sum(part.multiply_adds for part in self.left)
        return inside / total if total else 1.0 if self.regions else 0.0

    def __str__(self) -> str:
        lines = [f"{self.model}: {len(self.regions)} region{'s' * (len(self.regions) != 1)}, "
                 f"{self.share_inside:.1%} of the multiply-adds inside"]  # fmt: skip
        for at, part in enumerate(self.regions):
            counts = f"{part.multiply_adds:>12,} multiply-adds  {part.steps} steps  {len(part.tables)} tables"
            lines.append(f"  region {at}  {counts}  {_names(part.modules)}")
            if part.tables:
                lines.append(f"    tables inside: {_names(part.tables)}")
        if self.left:
            lines.append("stays PyTorch's:")
            lines.append(self.reasons())
        return "\n".join([*lines, *self.remarks])

    def reasons(self) -> str:
        """A line for each part that is left out: where, why, and what to do."""
        return (
            "\n".join(f"  {_names(part.modules)}: {part.reason}" for part in self.left) or "  it has no matrix product"
        )


def make_report(
    model: nn.Module, traced: Traced, low: Lowering, cut: Cut, lookups: Sequence[Sequence[Lookup | Pool | None]] = ()
) -> Report:
    """The report of a cut graph; ``lookups`` are those that each region takes in."""
    report = Report(type(model).__name__)
    for region in cut.regions:
        nodes = list(dict.fromkeys(low.values[place].node for place in region.drafts))
        report.regions.append(Part(_modules(nodes), sum(_products(node) for node in nodes), "", len(region.drafts)))
    parts: dict[str, Part] = {}
    inside: set[fx.Node] = set()
    for part, own in zip(report.regions, lookups, strict=False):
        taken = [one for one in own if one is not None]
        part.tables = _table_names(traced, taken)
        for one in taken:
            inside.update(one.covered if isinstance(one, Pool) else [one.node])
    for node in cut.kept:
        if node in inside:
            continue
        count = _products(node)
        reason = low.reasons.get(node, "")
        if node.op != "call_function" or (
            not count and name_of(node).split(".")[0] not in ("embedding", "embedding_bag")
        ):
            continue
        (where,) = _modules([node])
        what = _advice(node, reason)
        part = parts.setdefault(what, Part([], 0, what))
        part.modules += [where] * (where not in part.modules)
        part.multiply_adds += count
    report.left = sorted(parts.values(), key=lambda part: -part.multiply_adds)
    if traced.static_batch is not None:
        report.remarks.append(
            f"torch.export made a graph for batches of {traced.static_batch} alone; others run as the model does."
        )
    return report


def _table_names(traced: Traced, lookups: Sequence[Lookup | Pool]) -> list[str]:
    """The tables' parameters without ``.weight``, with what is done to lists of their ids."""
    names: dict[str, set[str]] = {}
    for one in lookups:
        name = traced.tensors[traced.constants[one.table].args[0]].removesuffix(".weight")
        names.setdefault(name, set()).update([one.mode] if isinstance(one, Pool) else [])
    return [f"{name} ({', '.join(sorted(how))})" if how else name for name, how in names.items()]


def _advice(node: fx.Node, reason: str) -> str:
    if name_of(node).startswith("embedding"):
        return "a look-up; it stays in front of the region"
    text = reason or "it works on no rows of candidates"
    if "attention" in text or "meets every other" in text:
        return f"{text}; it stays eager, what follows it fuses"
    return text


def _modules(nodes: list[fx.Node]) -> list[str]:
    """Module paths and classes, as the user named them."""
    found: dict[str, None] = {}
    for node in nodes:
        stack = list((node.meta.get("nn_module_stack") or {}).values())
        path, kind = stack[-1] if stack else ("", "forward")
        name = kind.rsplit(".", 1)[-1] if isinstance(kind, str) else getattr(kind, "__name__", str(kind))
        found[f"{path} ({name})" if path else name] = None
    return list(found)


def _names(modules: list[str]) -> str:
    return ", ".join(modules[:6]) + (f" and {len(modules) - 6} more" if len(modules) > 6 else "")


def _products(node: fx.Node) -> int:
    """Multiply-adds of a matrix product, for one candidate where the batch is dynamic."""
    if node.op != "call_function" or name_of(node).split(".")[0] not in _PRODUCTS:
        return 0
    shapes = [shape_of(one) for one in node.all_input_nodes]
    out = shape_of(node)
    if out is None or not shapes or shapes[0] is None:
        return 0
    of = int(np.prod([size for size in out if isinstance(size, int)], dtype=np.int64))
    last = [size for size in shapes[0][-1:] if isinstance(size, int)]
    return of * (last[0] if last else 1)


__all__ = ["Draft", "Part", "Report", "make_report"]
