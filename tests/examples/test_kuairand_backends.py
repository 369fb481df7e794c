"""Every form, instruction set and precision on a few impressions of the real data."""

from __future__ import annotations

from pathlib import Path

import pyarrow.parquet as pq
import torch

from examples.kuairand import backends, prepare
from examples.kuairand.ranker import ranker
from resflow_kernels import Additive, ResFlow
from resflow_kernels.contract import PRECISIONS
from resflow_kernels.serving.bundle import save_model
from resflow_kernels.serving.scorer import compiled


def test_all_of_them_agree_with_the_reference(tmp_path: Path) -> None:
    torch.manual_seed(0)
    data = prepare.load()
    features = prepare.feature_set(4).fit(data.valid.table.slice(0, 2000))
    model = ranker(features, 0.0, Additive((1, 5, 20))).eval()
    assert isinstance(model.towers, ResFlow)
    save_model(tmp_path / "model.safetensors", model.towers, features, model.tables())
    shown = prepare.labelled(data.test).slice(0, 200)
    pq.write_table(shown, tmp_path / "test.parquet")

    rows = backends.measured_here(tmp_path / "model.safetensors", tmp_path / "test.parquet")
    assert [(row.precision, row.form) for row in rows] == [(p, form) for p in PRECISIONS for form in backends.FORMS]
    # About three times the largest errors that were seen, with three seeds and on AVX-512 as well as the portable
    # kernels: 5.5e-8, 7.0e-5 and 2.2e-4.
    bounds = {"float32": 2e-7, "bfloat16": 2e-4, "int8": 6e-4}
    assert all(row.error < bounds[row.precision] for row in rows)
    # What is rounded to a lower precision cannot be as near: the precision is used.
    assert all(row.error > bounds["float32"] for row in rows if row.precision != "float32")

    backends.main(tmp_path / "model.safetensors", tmp_path / "test.parquet", tmp_path / "backends.md")
    text = (tmp_path / "backends.md").read_text(encoding="utf-8")
    assert all(f"| {isa} | features | int8 |" in text for isa in compiled().supported_isas())
