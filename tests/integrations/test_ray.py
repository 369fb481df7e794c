"""Ray Data: the scores of a dataset are the scorer's, in any batches, on a local Ray."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from resflow_kernels import Scorer
from resflow_kernels.core.fusion import Additive
from resflow_kernels.core.plan import Plan
from resflow_kernels.data.features import Feature, FeatureSet
from resflow_kernels.integrations.ray import BatchScorer, score_dataset
from resflow_kernels.serving import bundle

pytest.importorskip("resflow_kernels._runtime", reason="the compiled library is not built")
ROWS = 500


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``model``, ``bare`` (without features) and ``log.parquet``."""
    folder, rng = tmp_path_factory.mktemp("ray"), np.random.default_rng(2)
    tags = [rng.integers(0, 6, rng.integers(0, 4)).tolist() for _ in range(ROWS)]
    log = pa.table({"row": np.arange(ROWS), "user": rng.integers(0, 9, ROWS), "tags": tags})
    features = FeatureSet((Feature("user", 3, "id"),), (Feature("tags", 4, "ids"),), "user", "row").fit(log)
    plan = Plan(7, (6, 5), (-1, 0))
    weights = [rng.standard_normal(shape, dtype=np.float32) for _, shape in plan.weight_shapes]
    tables = {f.name: rng.standard_normal((f.rows, f.dim), dtype=np.float32) for f in features.all}
    bundle.save(folder / "model", plan, ("ctr", "cvr"), weights, Additive((1, 20)), features, tables)
    bundle.save(folder / "bare", plan, ("ctr", "cvr"), weights, Additive())
    pq.write_table(log, folder / "log.parquet", row_group_size=90)
    return folder


def log(folder: Path) -> pa.Table:
    return pq.read_table(folder / "log.parquet")


def test_a_batch_has_the_scorers_scores(folder: Path) -> None:
    table, scorer = log(folder), Scorer.load(folder / "model")
    assert scorer.features is not None
    scored = BatchScorer(folder / "model", keep=["row"])(table)
    assert scored.column_names == ["row", "score", "p_ctr", "p_cvr"]
    _, probs, score = scorer.feature_scores(scorer.features.encode_user(table) | scorer.features.encode_item(table))
    assert np.array_equal(scored["score"].to_numpy(), score)
    assert np.array_equal(np.stack([scored["p_ctr"], scored["p_cvr"]], 1), probs)


def test_bad_input_is_named(folder: Path) -> None:
    with pytest.raises(ValueError, match="must be a bundle with features, got one without"):
        BatchScorer(folder / "bare")
    scorer = BatchScorer(folder / "model")
    with pytest.raises(ValueError, match="must have the column 'tags', got row, user"):
        scorer(log(folder).drop_columns("tags"))
    with pytest.raises(ValueError, match="must not have a column 'score' already"):
        scorer(scorer(log(folder)))


@pytest.fixture(scope="module")
def ray_data() -> Iterator[Any]:
    """Ray Data on a Ray of this machine alone, which ends with the tests."""
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    ray = pytest.importorskip("ray", reason="Ray is not installed: pip install '.[ray]'")
    data = pytest.importorskip("ray.data")
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, configure_logging=False)
    data.DataContext.get_current().enable_progress_bars = False
    yield data
    ray.shutdown()


def test_a_dataset_is_scored_to_the_bit(ray_data: Any, folder: Path) -> None:
    dataset = ray_data.read_parquet(str(folder / "log.parquet"))
    with pytest.raises(ValueError, match="must have the column 'user', got row, tags"):
        score_dataset(folder / "model", dataset.drop_columns(["user"]))
    scored = score_dataset(folder / "model", dataset, keep=["row"], batch_size=64)
    got = pa.concat_tables(scored.iter_batches(batch_format="pyarrow", batch_size=None)).sort_by("row")
    assert got.equals(BatchScorer(folder / "model", keep=["row"])(log(folder)).cast(got.schema))
    assert got.num_rows == ROWS
