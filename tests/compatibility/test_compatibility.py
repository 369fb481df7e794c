"""Files of this and of earlier versions are read, and mean what they meant: docs/compatibility.md."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from resflow_kernels import Scorer, ops
from resflow_kernels.contract import ACTIVATIONS, FUSIONS, HEADS, PRECISION_ROWS, PRECISIONS, WEIGHTS_PER
from resflow_kernels.core.plan import Plan
from resflow_kernels.core.program import Program
from resflow_kernels.serving import bundle
from resflow_kernels.serving.catalog import Catalog, CatalogError
from resflow_kernels.testing import LOGIT_TOLERANCE
from tests.compatibility import write

FOLDERS = sorted(folder for folder in Path(__file__).parent.iterdir() if (folder / "expected.npz").exists())


@pytest.fixture(scope="module", params=FOLDERS, ids=lambda folder: folder.name)
def folder(request: pytest.FixtureRequest) -> Path:
    return request.param


@pytest.fixture(scope="module")
def expected(folder: Path) -> Any:
    return np.load(folder / "expected.npz")


def assert_near(got: Any, exact: Any, precision: str) -> None:
    assert (np.abs(np.asarray(got) - exact) <= LOGIT_TOLERANCE[precision] * (1 + np.abs(exact))).all()


def test_there_are_files_of_some_version() -> None:
    assert FOLDERS


def test_a_bundle(folder: Path, expected: Any) -> None:
    loaded = bundle.load(folder / "ranker.safetensors")
    assert (loaded.plan, loaded.tasks, loaded.fusion) == (write.PLAN, write.TASKS, write.FUSION)
    assert loaded.features is not None
    assert [feature.name for feature in loaded.features.all] == ["age", "city", "item"]
    assert set(loaded.tables) == {"age", "city", "item"}
    scores = Scorer.from_bundle(loaded).dense_scores(write.rows().numpy())
    assert_near(scores.logits, expected["logits_float32"], "float32")
    for precision in (name for name in PRECISION_ROWS if f"plan_{name}" in expected):
        plan = Plan.decode(expected[f"plan_{precision}"].tolist())
        packed = ops.pack_towers([torch.from_numpy(weight) for weight in loaded.weights], plan)
        assert torch.equal(packed, torch.from_numpy(expected[f"packed_{precision}"])), precision


@pytest.mark.parametrize("precision", PRECISION_ROWS)
def test_packed_weights_and_their_plan(expected: Any, precision: str) -> None:
    if f"plan_{precision}" not in expected:
        pytest.skip(f"that version had no {precision}")
    encoded = expected[f"plan_{precision}"].tolist()
    plan = Plan.decode(encoded)
    assert plan == write.plan_in(precision) and list(plan.encoded) == encoded
    packed = torch.from_numpy(expected[f"packed_{precision}"])
    backend = "cpu" if precision in PRECISIONS else "reference"
    scores = ops.dense_scores(write.rows(), packed, plan, torch.ones(3), backend=backend)
    assert_near(scores.logits, expected[f"logits_{precision}"], precision)


def test_a_bundle_of_a_tile_program(folder: Path) -> None:
    if not (folder / "network.safetensors").exists():
        pytest.skip("that version had no tile programs")
    kept = np.load(folder / "network.npz")
    loaded = bundle.load(folder / "network.safetensors")
    assert isinstance(loaded.plan, Program) and list(loaded.plan.encoded) == kept["program"].tolist()
    assert_near(Scorer.from_bundle(loaded).dense_scores(write.rows().numpy()).logits, kept["logits"], "float32")


def test_a_catalog(folder: Path, expected: Any) -> None:
    catalog, scorer = Catalog.open(folder / "items.catalog"), Scorer.load(folder / "ranker.safetensors")
    assert np.array_equal(catalog.table.rows, expected["catalog_rows"])
    assert np.array_equal(catalog.table.scales, expected["catalog_scales"])
    user, ids = write.inputs()[1].numpy(), np.arange(6)
    offsets = np.array([0, 2, 6])
    got = scorer.catalog_scores(user, ids, offsets, catalog)  # refuses a catalog of other weights
    exact = scorer.request_scores(user, expected["items"], offsets)
    assert_near(got.logits, exact.logits, "int8")


def test_an_exported_program(folder: Path, expected: Any) -> None:
    """It keeps the ops' names and arguments, plans and codes as lists of integers, packed weights and tables."""
    wrote, here = (tuple(map(int, v.split("+")[0].split(".")[:2])) for v in (str(expected["torch"]), torch.__version__))
    if here < wrote:
        pytest.skip(f"PyTorch {torch.__version__} need not read what {expected['torch']} wrote")
    program = torch.export.load(folder / "program.pt2")
    with torch.no_grad():
        outputs = program.module()(*write.inputs())
    for at, output in enumerate(outputs):
        exact = expected[f"output_{at}"]
        if output.dtype == torch.int64:
            assert np.array_equal(output.numpy(), exact), at
        else:
            torch.testing.assert_close(output, torch.from_numpy(exact), atol=1e-4, rtol=1e-4, equal_nan=True)
    assert f"output_{len(outputs)}" not in expected


def test_what_is_newer_is_refused(folder: Path, tmp_path: Path) -> None:
    """A version that this package does not know is named, not guessed at."""
    for name, text in (("ranker.safetensors", "bundle"), ("items.catalog", "catalog")):
        content = (folder / name).read_bytes()
        assert content.count(b'\\"version\\": 1') == 1
        (tmp_path / name).write_bytes(content.replace(b'\\"version\\": 1', b'\\"version\\": 9'))
        with pytest.raises((bundle.BundleError, CatalogError), match=r"version must be 1 .*, got 9"):
            bundle.load(tmp_path / name) if text == "bundle" else Catalog.open(tmp_path / name)


def test_packed_weights_of_another_format_are_refused(expected: Any) -> None:
    plan = Plan.decode(expected["plan_float32"].tolist())
    packed = torch.from_numpy(expected["packed_float32"].copy())
    packed[7] = ord("3")  # of RESFLOW2
    with pytest.raises(ValueError, match="packed must be packed for this plan by pack_towers"):
        ops.dense_scores(write.rows(), packed, plan, torch.ones(3))


def test_a_plan_of_another_version_is_refused(expected: Any) -> None:
    encoded = [9, *expected["plan_float32"].tolist()[1:]]
    with pytest.raises(ValueError, match="plan version must be 1, got 9"):
        Plan.decode(encoded)
    with pytest.raises(ValueError, match=r"plan must be a valid plan \(version 1\), got 9"):
        torch.ops.resflow.packed_layout(encoded)


def test_codes_are_never_given_to_another_name() -> None:
    """They are stored in exported programs and, by the fingerprint, in packed weights."""
    promised = {"float32": 0, "bfloat16": 1, "int8": 2, "float16": 3, "tensorfloat32": 4}
    assert {name: PRECISION_ROWS[name].code for name in promised} == promised
    codes = [row.code for row in PRECISION_ROWS.values()]
    assert len(set(codes)) == len(codes)
    for names, first in (
        (ACTIVATIONS, ("identity", "relu", "prelu", "silu", "gelu", "gelu_tanh", "tanh", "sigmoid")),
        (HEADS, ("residual", "conditional")),
        (FUSIONS, ("additive", "multiplicative", "expected_value")),
        (WEIGHTS_PER, ("call", "request", "candidate")),
    ):
        assert names[: len(first)] == first
