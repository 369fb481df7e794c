"""``resflow inspect``: the contents of a model bundle."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table
from rich.tree import Tree

from ..core.program import Program
from ..data.features import Feature
from ..serving.bundle import Bundle, load, plan_fields
from ._errors import one_line_errors


def inspect(
    model: Annotated[Path, typer.Argument(help="A model bundle (safetensors).", show_default=False)],
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of tables.")] = False,
) -> None:
    """Show a model's tasks, towers, fusion, features and size."""
    with one_line_errors():
        facts = describe(load(model), model)
    if as_json:
        print(json.dumps(facts, indent=2))
        return
    console = Console()
    console.print(_task_tree(facts))
    console.print(_summary(facts))
    if facts["features"] is not None:
        console.print(_feature_table(facts["features"]))


def describe(bundle: Bundle, path: Path) -> dict[str, Any]:
    """All facts about a bundle, as printed by ``--json``."""
    plan, features = bundle.plan, bundle.features
    tower = sum(weight.size for weight in bundle.weights)
    tables = sum(table.size for table in bundle.tables.values())
    return {
        "file": str(path),
        "bytes": path.stat().st_size,
        "tasks": list(bundle.tasks),
        "plan": plan_fields(plan),
        "parents": list(plan.parents),
        "steps": [step.kind for step in plan.steps] if isinstance(plan, Program) else None,
        "fusion": {"kind": bundle.fusion.kind, "weights": list(bundle.fusion.weights_for(plan.tasks))},
        "parameters": {"towers": tower, "tables": tables},
        "flop_per_candidate": plan.flops_per_candidate,
        "features": None
        if features is None
        else {
            "request_id": features.request_id,
            "item_id": features.item_id,
            "user_width": features.user_width,
            "item_width": features.item_width,
            "user": [_feature(feature) for feature in features.user],
            "item": [_feature(feature) for feature in features.item],
        },
    }


def _feature(feature: Feature) -> dict[str, Any]:
    values = "strings" if isinstance(feature.vocabulary, tuple) else "numbers"
    return {"name": feature.name, "kind": feature.kind, "values": values, "rows": feature.rows, "dim": feature.dim}


def _task_tree(facts: dict[str, Any]) -> Tree:
    root = Tree("tasks")
    branches: list[Tree] = []
    for task, parent in zip(facts["tasks"], facts["parents"], strict=True):
        branches.append((branches[parent] if parent >= 0 else root).add(task))
    return root


def _summary(facts: dict[str, Any]) -> Table:
    plan, fusion, parameters = facts["plan"], facts["fusion"], facts["parameters"]
    weights = ", ".join(f"{weight:g}" for weight in fusion["weights"])
    table = Table(show_header=False, box=None)
    if facts["steps"] is None:
        switches = ("feature_residual", "logit_residual", "non_increasing", "affine")
        widths = [plan["in_features"], *plan["hidden"], 1]
        table.add_row("towers", f"{len(facts['tasks'])} of {'-'.join(map(str, widths))}")
        table.add_row("activations", ", ".join(plan["activations"]))
        table.add_row("head", plan["head"])
        table.add_row("switches", ", ".join(f"{name} {'on' if plan[name] else 'off'}" for name in switches))
    else:
        counts = Counter(facts["steps"])
        table.add_row("tile program", ", ".join(f"{count} {kind}" for kind, count in counts.items()))
    table.add_row("fusion", f"{fusion['kind']} ({weights})")
    table.add_row("parameters", f"{parameters['towers']:,} in towers, {parameters['tables']:,} in embedding tables")
    table.add_row("file", f"{facts['file']}, {facts['bytes']:,} bytes")
    table.add_row("FLOP a candidate", f"{facts['flop_per_candidate']:,}")
    return table


def _feature_table(features: dict[str, Any]) -> Table:
    width = f"{features['user_width']} + {features['item_width']}"
    title = f"features, {width} wide (request id {features['request_id']}, item id {features['item_id']})"
    table = Table("feature", "side", "kind", "values", title=title)
    table.add_column("table rows", justify="right")
    table.add_column("dim", justify="right")
    for side in ("user", "item"):
        for entry in features[side]:
            rows, dim = f"{entry['rows']:,}", str(entry["dim"])
            table.add_row(entry["name"], side, entry["kind"], entry["values"], rows, dim)
    return table
