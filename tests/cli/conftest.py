"""A small model with features, and Parquet files of requests for it."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from resflow_kernels.core.fusion import Additive
from resflow_kernels.core.plan import Plan
from resflow_kernels.data.features import Feature, FeatureSet
from resflow_kernels.serving import bundle

REQUESTS, ITEMS, CANDIDATES = 12, 50, 400


@pytest.fixture(scope="session")
def files(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Paths ``model``, ``candidates`` (shuffled), ``users``, ``items``, ``labels``, and the tables behind them."""
    folder, rng = tmp_path_factory.mktemp("files"), np.random.default_rng(5)
    users = pa.table({"request": [f"r{i}" for i in range(REQUESTS)], "age": rng.random(REQUESTS)})
    tags = [rng.integers(0, 6, rng.integers(0, 4)).tolist() for _ in range(ITEMS)]
    items = pa.table({"video": np.arange(ITEMS) * 10, "tags": tags})
    owners, shown = rng.integers(0, REQUESTS, CANDIDATES), rng.integers(0, ITEMS, CANDIDATES)
    candidates = pa.table({**columns(users.take(pa.array(owners))), **columns(items.take(pa.array(shown)))})
    features = FeatureSet(
        (Feature("request", 5, "id"), Feature("age", 3, "bucket")),
        (Feature("video", 4, "id"), Feature("tags", 4, "ids")),
        "request",
        "video",
    ).fit(candidates)
    plan = Plan(16, (12, 6), (-1, 0, 1))
    weights = [rng.standard_normal(shape, dtype=np.float32) * np.float32(0.4) for _, shape in plan.weight_shapes]
    tables = {f.name: rng.standard_normal((f.rows, f.dim), dtype=np.float32) for f in features.all}
    labels = pa.table(
        {"request": candidates["request"], "video": candidates["video"], "weight": rng.integers(0, 3, CANDIDATES)}
    )
    bundle.save(folder / "model", plan, ("ctr", "atcr", "ctcvr"), weights, Additive((1, 20, 20)), features, tables)
    bundle.save(folder / "bare", plan, ("ctr", "atcr", "ctcvr"), weights, Additive())
    parts = {"candidates": candidates, "users": users, "items": items, "labels": labels}
    paths = {name: folder / name for name in ("model", "bare", *parts)}
    for name, table in parts.items():
        pq.write_table(table, paths[name])
    return SimpleNamespace(**paths, folder=folder, table=SimpleNamespace(**parts))


def columns(table: pa.Table) -> dict[str, Any]:
    return {name: table.column(name) for name in table.column_names}


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "out.parquet"
