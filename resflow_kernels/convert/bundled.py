"""A bundle's contents from a user's own trained model: :func:`resflow_kernels.bundle.from_model`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, fx, nn

from .. import ops
from ..core.fusion import Additive, Fusion
from ..core.program import Program, Row, Segment, Step, columns_of
from ..data.features import FeatureSet
from ..serving.bundle import Bundle
from .arguments import TracedModel
from .graph import elementwise, norms, products, views  # register what lowers each op
from .graph.constants import Evaluator
from .graph.emit import Emitted, Source, emit
from .graph.lowering import Lowering
from .graph.probabilities import Tasks, read_tasks
from .graph.reach import Reach
from .graph.regions import Cutter
from .graph.report import make_report
from .graph.trace import Traced
from .patterns import CannotFuse
from .tables import Floats, LookUp, Vocabularies, feature_of, placed, read_look_ups, rows_of

__all__ = ["bundle_of", "elementwise", "norms", "products", "views"]

_TOLERANCE = 1e-4  # of probabilities in the example


def bundle_of(
    model: nn.Module,
    example_inputs: Any,
    features: FeatureSet | None,
    tasks: Sequence[str] | None,
    fusion: Fusion | None,
    vocabularies: Vocabularies,
    inputs: Mapping[str, str | int],
    tables: Mapping[str, str],
) -> Bundle:
    """As :func:`resflow_kernels.bundle.from_model` says."""
    opened = TracedModel.of(model, example_inputs)
    name, traced, tensors = opened.name, opened.traced, opened.tensors
    if any(const.now.dtype != torch.float32 and const.now.is_floating_point() for const in traced.constants.values()):
        raise CannotFuse(f"{name}: its parameters must be float32 for a bundle; save model.float()")
    reach = opened.reach()
    read = _tasks(name, traced)
    labels = tuple(f"task{at}" for at in range(len(read.own))) if tasks is None else tuple(tasks)
    if len(labels) != len(read.own):
        raise ValueError(f"tasks must be one per output ({len(read.own)}), got {len(labels)}")
    columns = _Columns(name, traced, reach, tensors, opened.names, features, inputs, tables)
    emitted = _one_region(name, opened.model, traced, columns)
    program, weights = _scored(emitted, read), _weights(traced, tensors, emitted)
    _compare(name, program, weights, emitted, read, reach)
    program = columns.arranged(program, emitted.sources)
    made, held = columns.features(vocabularies)
    return Bundle(program, labels, weights, Additive() if fusion is None else fusion, made, held)


def _tasks(name: str, traced: Traced) -> Tasks:
    """The outputs' tasks; the graph then ends in their own logits."""
    output = next(iter(traced.graph.find_nodes(op="output")))
    tasks = read_tasks(name, list(output.args[0]))  # type: ignore[arg-type]
    output.args = (tuple(dict.fromkeys(column.node for column in tasks.own)),)
    traced.graph.eliminate_dead_code()
    return tasks


class _Columns:
    """The program's input columns: those of the features in their order, or the bare rows of a call."""

    def __init__(
        self,
        name: str,
        traced: Traced,
        reach: Reach,
        tensors: Mapping[str, Tensor],
        names: Sequence[str],
        features: FeatureSet | None,
        inputs: Mapping[str, str | int],
        tables: Mapping[str, str],
    ) -> None:
        self.name, self.traced, self.reach, self.tensors, self.names = name, traced, reach, tensors, names
        self.set, self.inputs, self.tables = features, inputs, tables
        self.found: dict[fx.Node, list[tuple[int, LookUp]]] = {}
        self.parts: list[tuple[int, LookUp]] = []  # as the program reads them

    def order(self, source: Source) -> tuple[int, int]:
        """Where an input stands among the program's."""
        node = source.node
        assert node is not None
        if self.set is None:
            if node.op != "placeholder":
                raise CannotFuse(f"{self.name}: features must be given for a model that looks tables up")
            return 0, source.value
        if node not in self.found:
            settings = (self.set.all, self.names, self.inputs, self.tables)
            look_ups = read_look_ups(self.name, self.traced, self.reach, self.tensors, node)
            self.found[node] = [(feature_of(self.name, one, *settings), one) for one in look_ups]
        return self.found[node][0][0], source.value

    def arranged(self, program: Program, sources: Sequence[Source]) -> Program:
        """The program over rows in the features' order: one look-up of several columns may stand across it."""
        self.parts = [part for source in sources if source.node is not None for part in self.found.get(source.node, ())]
        places = [place for place, _ in self.parts]
        if places == sorted(places):
            return program
        starts: dict[int, int] = {}
        column = 0
        for at in sorted(range(len(places)), key=places.__getitem__):
            starts[at] = column
            column += self.parts[at][1].table.shape[1]
        row = (Segment(0, starts[at], one.table.shape[1]) for at, (_, one) in enumerate(self.parts))
        return _behind(Step("copy", program.in_features, tuple(row)), program)

    def features(self, vocabularies: Vocabularies) -> tuple[FeatureSet | None, dict[str, Floats]]:
        """The features with vocabularies, and their tables."""
        if self.set is None:
            return None, {}
        found = [one for _, one in self.parts]
        made, held = [], {}
        for at, feature in enumerate(self.set.all):
            own = [one for place, one in self.parts if place == at]
            if not own:
                raise CannotFuse(f"{self.name}: feature {feature.name} must be looked up by the model, got no table")
            feature, held[feature.name] = placed(feature, [rows_of(one, found) for one in own], vocabularies)
            made.append(feature)
        user = len(self.set.user)
        return replace(self.set, user=tuple(made[:user]), item=tuple(made[user:])), held


def _one_region(name: str, model: nn.Module, traced: Traced, columns: _Columns) -> Emitted:
    """All that the model computes behind its tables as one program."""
    low = Lowering(traced.graph, traced.constants, (), traced.static_batch)
    cut = Cutter(low).cut()
    outputs = next(iter(traced.graph.find_nodes(op="output"))).all_input_nodes
    inside = [node for region in cut.regions for node in region.outputs]
    if traced.static_batch is not None or len(cut.regions) != 1 or set(outputs) - set(inside):
        reasons = make_report(model, traced, low, cut).reasons()
        raise CannotFuse(f"{name}: all behind its tables must be one program for a bundle, some is not:\n{reasons}")
    emitted = emit(low, cut.regions[0], columns.order)
    if columns.set is None and len(emitted.sources) != 1:
        raise CannotFuse(f"{name}: it must take one matrix of rows for a bundle without features")
    return emitted


def _scored(emitted: Emitted, tasks: Tasks) -> Program:
    """The program whose outputs are the tasks' own logits."""
    starts = {output.node: output.column for output in emitted.outputs}
    whole = emitted.program.outputs
    chosen = [columns_of(whole, starts[own.node] + own.column, 1)[0] for own in tasks.own]
    head = "conditional" if tasks.conditional else "residual"
    return replace(emitted.program, outputs=tuple(chosen), parents=tasks.parents, head=head)


def _behind(first: Step, program: Program) -> Program:
    """A program that reads what a step makes of its input row instead of the row."""

    def moved(row: Row) -> Row:
        return tuple(segment._replace(value=segment.value + 1) for segment in row)

    rest = (
        replace(step, inputs=moved(step.inputs), factors=moved(step.factors), addends=moved(step.addends))
        for step in program.steps
    )
    return replace(program, steps=(first, *rest), outputs=moved(program.outputs))


def _weights(traced: Traced, tensors: Mapping[str, Tensor], emitted: Emitted) -> list[Floats]:
    value = Evaluator([tensors[name].detach() for name in traced.tensors])
    with torch.no_grad():
        return [value(const).float().contiguous().cpu().numpy() for const in emitted.weights]


def _compare(
    name: str, program: Program, weights: Sequence[Floats], emitted: Emitted, tasks: Tasks, reach: Reach
) -> None:
    """Refuse a program that gives other probabilities than the model in its example."""
    values = [reach.values[source.node] for source in emitted.sources]  # type: ignore[index]
    rows = torch.cat([one.detach().reshape(len(one), -1).float().cpu() for one in values], 1)
    packed = ops.pack_towers([torch.from_numpy(weight) for weight in weights], program)
    got = ops.dense_scores(rows, packed, program, torch.ones(program.tasks)).probs
    wanted: list[Tensor] = []
    for own, parent in zip(tasks.own, tasks.parents, strict=True):
        logit = reach.values[own.node].detach().reshape(len(rows), -1)[:, own.column].float().cpu()
        wanted.append(logit.sigmoid() * (wanted[parent] if parent >= 0 else 1.0))
    gap = float((got - torch.stack(wanted, 1)).abs().max()) if len(rows) else 0.0
    if not gap <= _TOLERANCE:
        raise CannotFuse(f"{name}: its program gives other probabilities than the model, by {gap:.2g}")
