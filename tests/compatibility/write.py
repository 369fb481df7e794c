"""Write the files that later versions have to read: ``python -m tests.compatibility.write`` in a checkout.

Each version that changes a format, or adds an op, writes a folder of its own and leaves the older ones as they are.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor, nn

import resflow_kernels
from resflow_kernels import ops, reference
from resflow_kernels.contract import PRECISION_ROWS
from resflow_kernels.core.fusion import Additive
from resflow_kernels.core.plan import Plan
from resflow_kernels.data.features import Feature, FeatureSet
from resflow_kernels.nn import make_ranker
from resflow_kernels.ops import FeatureIds, FeatureTables
from resflow_kernels.serving import bundle
from resflow_kernels.serving.catalog import build_catalog
from resflow_kernels.testing import random_weights

FOLDER = Path(__file__).parent
TASKS = ("click", "cart", "order")
PLAN = Plan(12, (20, 8), (-1, 0, 1), ("prelu", "silu"), affine=True)
ITEM_COLUMNS, USER_COLUMNS = 7, 5
FUSION = Additive((1.0, 2.0, 3.0))


def plan_in(precision: str) -> Plan:
    """The plan of the packed weights in one of the precisions."""
    return Plan(12, (20, 8), (-1, 0, 1), ("prelu", "silu"), affine=True, precision=precision)


def features() -> FeatureSet:
    """Two features of the user and one of the item: 12 columns."""
    columns = pa.table({"age": [20.0, 30.0, 50.0], "city": [1, 2, 3], "item": [7, 8, 9]})
    user, item = (Feature("age", 2, "bucket"), Feature("city", 3, "id")), (Feature("item", 7, "id"),)
    return FeatureSet(user, item, "city", "item").fit(columns)


def rows() -> Tensor:
    """Input rows of nine candidates."""
    return torch.randn(9, PLAN.in_features, generator=torch.Generator().manual_seed(1))


class EveryOp(nn.Module):
    """A call of each scoring op, with weights and tables as buffers."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(2)
        weights = random_weights(PLAN)
        self.register_buffer("packed", ops.pack_towers(weights, PLAN))
        self.register_buffer("int8_packed", ops.pack_towers(weights, plan_in("int8")))
        self.register_buffer("fusion_weights", torch.tensor(FUSION.weights))
        items = torch.randn(6, ITEM_COLUMNS, generator=generator)
        for name, tensor in zip(("table", "scales"), ops.catalog_rows(items, self.packed, PLAN, "int8"), strict=True):
            self.register_buffer(name, tensor)
        vectors = torch.randn(6, 3 * 4, generator=generator)
        for name, tensor in zip(("twins", "twin_scales"), ops.twin_rows(vectors, 3, "int8"), strict=True):
            self.register_buffer(name, tensor)
        self.register_buffer("user_table", torch.randn(4, USER_COLUMNS, generator=generator).bfloat16())
        self.register_buffer("item_table", torch.randn(6, ITEM_COLUMNS, generator=generator))

    def forward(self, x: Tensor, user: Tensor, vectors: Tensor, ids: Tensor, offsets: Tensor) -> list[Tensor]:
        """Scores, then the two best, of each form."""
        towers = (self.packed, PLAN, self.fusion_weights)
        item = x[:, USER_COLUMNS:]
        catalog = (user, ids, offsets, self.table, self.scales)
        single, none = ids[:, None], ids[:0]
        looked_up = FeatureIds(single % 4, ids, torch.arange(len(ids) + 1))
        tables = FeatureTables([self.user_table, self.item_table], (), (1,))
        users = FeatureIds(torch.arange(2)[:, None], none, torch.zeros(1, dtype=torch.int64))
        items = FeatureIds(single[:, :0], ids, torch.arange(len(ids) + 1))
        twin = (self.twins, self.twin_scales, self.fusion_weights, PLAN.parents)
        results = [
            ops.dense_scores(x, *towers),
            ops.dense_scores(x, self.int8_packed, plan_in("int8"), self.fusion_weights, "multiplicative"),
            ops.dense_topk(x, offsets, *towers, k=2),
            ops.request_scores(user, item, offsets, *towers),
            ops.request_topk(user, item, offsets, *towers, k=2),
            ops.catalog_scores(*catalog, *towers),
            ops.catalog_topk(*catalog, *towers, k=2),
            ops.feature_scores(looked_up, tables, *towers),
            ops.feature_topk(looked_up, offsets, tables, *towers, k=2),
            ops.feature_request_scores(users, items, offsets, tables, 1, *towers),
            ops.feature_request_topk(users, items, offsets, tables, 1, *towers, k=2),
            ops.twin_scores(vectors, *twin),
            ops.twin_topk(vectors, *twin, k=2),
            ops.twin_ids_scores(vectors, ids, offsets, *twin),
            ops.twin_ids_topk(vectors, ids, offsets, *twin, k=2),
        ]
        return [part for result in results for part in result]


def inputs() -> tuple[Tensor, ...]:
    """What the program is called with."""
    generator = torch.Generator().manual_seed(3)
    user, vectors = (torch.randn(2, width, generator=generator) for width in (USER_COLUMNS, 3 * 4))
    return rows(), user, vectors, torch.tensor([0, 5, 1, 3, 3, 2, 4, 0, 1]), torch.tensor([0, 4, 9])


def write_network(folder: Path) -> None:
    """A bundle of a tile program, and what it scores."""
    torch.manual_seed(6)
    model = make_ranker("ple", PLAN.in_features, (16, 8), TASKS, input_norm=True, levels=2).eval()
    bundle.save_model(folder / "network.safetensors", model)
    with torch.no_grad():
        logits = model.double()._logits(rows().double())
    np.savez_compressed(folder / "network.npz", logits=logits.numpy(), program=np.array(model.served_plan.encoded))


def main() -> int:
    folder = FOLDER / resflow_kernels.__version__
    if folder.exists():
        print(f"{folder} is there: files of a version are written once", file=sys.stderr)
        return 1
    folder.mkdir()
    weights = random_weights(PLAN)
    feature_set, generator = features(), np.random.default_rng(4)
    tables = {one.name: generator.standard_normal((one.rows, one.dim), dtype=np.float32) for one in feature_set.all}
    arrays = [weight.numpy() for weight in weights]
    bundle.save(folder / "ranker.safetensors", PLAN, TASKS, arrays, FUSION, feature_set, tables)
    items = torch.randn(6, ITEM_COLUMNS, generator=torch.Generator().manual_seed(5)).numpy()
    loaded = bundle.load(folder / "ranker.safetensors")
    stored = build_catalog(loaded, items, folder / "items.catalog", "int8").table

    kept: dict[str, np.ndarray] = {"items": items, "catalog_rows": stored.rows, "catalog_scales": stored.scales}
    x, ones, exact_weights = rows().double(), torch.ones(3).double(), [weight.double() for weight in weights]
    for precision in PRECISION_ROWS:
        plan = plan_in(precision)
        kept[f"plan_{precision}"] = np.array(plan.encoded)
        kept[f"packed_{precision}"] = ops.pack_towers(weights, plan).numpy()
        scores = reference.dense_scores(x, exact_weights, plan, ones, "additive", "call")
        kept[f"logits_{precision}"] = scores.logits.numpy()

    module = EveryOp()
    with torch.no_grad():
        program = torch.export.export(module, inputs())
        outputs = module(*inputs())
    torch.export.save(program, folder / "program.pt2")
    kept |= {f"output_{at}": output.numpy() for at, output in enumerate(outputs)}
    kept["torch"] = np.array(torch.__version__)
    np.savez_compressed(folder / "expected.npz", **kept)
    write_network(folder)
    return 0


if __name__ == "__main__":
    sys.exit(main())
