"""The catalogue file: built in blocks, mapped, updated in place, and refused where it does not fit."""

from __future__ import annotations

import json
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from resflow_kernels import ResFlow, Scorer, build_catalog
from resflow_kernels.contract import TABLE_PRECISIONS
from resflow_kernels.nn import make_ranker
from resflow_kernels.nn.fused import FusedRanker
from resflow_kernels.serving.bundle import load, save_model
from resflow_kernels.serving.catalog import Catalog, CatalogError

USER, ITEM = 10, 14


@pytest.fixture(scope="module", params=["resflow", "mmoe", "dcnv2"])
def model(request: pytest.FixtureRequest) -> FusedRanker:
    """A forest of towers, and tile programs without and with steps that read the items' own columns."""
    torch.manual_seed(0)
    tasks = ("click", "cart", "order")
    if request.param == "resflow":
        return ResFlow(USER + ITEM, (33, 10), tasks, norm="batch").eval()
    return make_ranker(request.param, USER + ITEM, hidden=(33, 10), tasks=tasks).eval()


@pytest.fixture(scope="module")
def items() -> np.ndarray:
    return np.random.default_rng(0).standard_normal((70, ITEM)).astype(np.float32)


def scored(model: FusedRanker, catalog: Catalog, tmp_path: Path) -> np.ndarray:
    save_model(tmp_path / "model.safetensors", model)
    scorer = Scorer.load(tmp_path / "model.safetensors")
    user = np.random.default_rng(1).standard_normal((2, USER)).astype(np.float32)
    return scorer.catalog_scores(user, np.arange(70), np.array([0, 30, 70]), catalog.table).probs


@pytest.mark.parametrize(("dtype", "bound"), [("float32", 1e-6), ("bfloat16", 1e-2), ("int8", 2e-2)])
def test_scores_are_those_of_the_request_form(
    model: FusedRanker, items: np.ndarray, tmp_path: Path, dtype: str, bound: float
) -> None:
    catalog = build_catalog(model, items, tmp_path / "items", dtype)
    assert len(catalog) == 70 and catalog.dtype == dtype and catalog.item_features == ITEM
    probs = scored(model, catalog, tmp_path)
    user = np.random.default_rng(1).standard_normal((2, USER)).astype(np.float32)
    with torch.no_grad():
        exact = model.request_scores(torch.from_numpy(user), torch.from_numpy(items), torch.tensor([0, 30, 70])).probs
    np.testing.assert_allclose(probs, exact.numpy(), atol=bound)
    assert not np.array_equal(probs[:30], probs[30:60])


def test_blocks_and_a_bundle_give_the_same_file(model: FusedRanker, items: np.ndarray, tmp_path: Path) -> None:
    save_model(tmp_path / "model.safetensors", model)
    whole = build_catalog(model, items, tmp_path / "whole", "int8")
    blocks = (items[at : at + 13] for at in range(0, 70, 13))
    streamed = build_catalog(load(tmp_path / "model.safetensors"), blocks, tmp_path / "streamed", "int8")
    assert (tmp_path / "whole").read_bytes() == (tmp_path / "streamed").read_bytes()
    assert np.array_equal(whole.table.rows, streamed.table.rows)


def test_torch_takes_the_mapped_table(model: FusedRanker, items: np.ndarray, tmp_path: Path) -> None:
    catalog = build_catalog(model, items, tmp_path / "items", "bfloat16")
    table = torch.from_numpy(np.array(catalog.table.rows)).view(torch.bfloat16)
    packed = model.packed()
    own = packed.catalog_rows(torch.from_numpy(items))
    assert torch.equal(table, own[0])
    user, ids, offsets = torch.randn(1, USER), torch.tensor([69, 0, 5]), torch.tensor([0, 3])
    scores = packed.catalog_scores(user, ids, offsets, table, own[1])
    best = packed.catalog_topk(user, ids, offsets, table, own[1], 2)
    assert torch.equal(best.scores[0], scores.score.sort(descending=True).values[:2])


@pytest.mark.parametrize("dtype", TABLE_PRECISIONS)
def test_update_is_a_rebuild_of_those_rows(model: FusedRanker, items: np.ndarray, tmp_path: Path, dtype: str) -> None:
    build_catalog(model, items, tmp_path / "items", dtype)
    changed = items.copy()
    changed[[3, 60]] = items[[5, 6]] + 1
    Catalog.open(tmp_path / "items", writable=True).update(model, [60, 3], changed[[60, 3]])
    rebuilt = build_catalog(model, changed, tmp_path / "rebuilt", dtype)
    updated = Catalog.open(tmp_path / "items")
    assert np.array_equal(updated.table.rows, rebuilt.table.rows)
    assert np.array_equal(updated.table.scales, rebuilt.table.scales)


def test_update_refuses_what_does_not_fit(model: FusedRanker, items: np.ndarray, tmp_path: Path) -> None:
    read_only = build_catalog(model, items, tmp_path / "items")
    with pytest.raises(CatalogError, match="must be opened with writable=True"):
        read_only.update(model, [0], items[:1])
    catalog = Catalog.open(tmp_path / "items", writable=True)
    other = ResFlow(USER + ITEM, (33, 10), ("click", "cart", "order"), norm="batch").eval()
    for arguments, text in (
        ((other, [0], items[:1]), "must be built with the model's weights"),
        ((model, [70], items[:1]), "ids must be 0 to 69, got .70."),
        ((model, [-1], items[:1]), "ids must be 0 to 69"),
        ((model, [0.5], items[:1]), "ids must be a vector of integers"),
        ((model, [0, 1], items[:1]), "items must be of shape .2, 14., got .1, 14."),
    ):
        with pytest.raises(ValueError, match=text):
            catalog.update(*arguments)


def test_a_scorer_refuses_another_models_catalogue(model: FusedRanker, items: np.ndarray, tmp_path: Path) -> None:
    """A catalogue that was not rebuilt after training would give wrong scores without a word."""
    catalog = build_catalog(model, items, tmp_path / "items")
    user, ids, offsets = np.zeros((1, USER), np.float32), np.arange(70), np.array([0, 70])
    save_model(tmp_path / "model", model)
    scorer = Scorer.load(tmp_path / "model", precision="int8")
    by_table = scorer.catalog_scores(user, ids, offsets, catalog.table)
    assert np.array_equal(scorer.catalog_scores(user, ids, offsets, catalog).probs, by_table.probs)
    trained = ResFlow(USER + ITEM, (33, 10), ("click", "cart", "order"), norm="batch").eval()
    save_model(tmp_path / "trained", trained)
    with pytest.raises(CatalogError, match="must be built with the model's weights"):
        Scorer.load(tmp_path / "trained").catalog_topk(user, ids, offsets, catalog, 3)
    bare = Scorer(scorer.plan, scorer.packed)
    with pytest.raises(ValueError, match="table must be a Table for a scorer that no bundle made"):
        bare.catalog_scores(user, ids, offsets, catalog)


def test_files_that_are_no_catalogue_are_named(model: FusedRanker, items: np.ndarray, tmp_path: Path) -> None:
    build_catalog(model, items, tmp_path / "items")
    save_model(tmp_path / "model", model)
    whole = (tmp_path / "items").read_bytes()
    size = struct.unpack("<Q", whole[:8])[0]
    header = json.loads(whole[8 : 8 + size])
    facts = json.loads(header["__metadata__"]["resflow"])
    newer = json.dumps(header | {"__metadata__": {"resflow": json.dumps(facts | {"version": 9})}}).encode().ljust(size)
    for name, content, text in (
        ("cut", whole[:-5], "must be a whole safetensors file"),
        ("text", b"not a catalogue at all", "must be a whole safetensors file"),
        ("bundle", (tmp_path / "model").read_bytes(), "format must be 'resflow-catalog', got 'resflow-bundle'"),
        ("newer", whole[:8] + newer + whole[8 + size :], "version must be 1"),
    ):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(CatalogError, match=rf"{name}: {text}"):
            Catalog.open(tmp_path / name)
    with pytest.raises(CatalogError, match="got no file"):
        Catalog.open(tmp_path / "nothing")


def test_a_failed_build_leaves_the_old_file(model: FusedRanker, items: np.ndarray, tmp_path: Path) -> None:
    build_catalog(model, items, tmp_path / "items")
    before = (tmp_path / "items").read_bytes()
    for bad, text in (
        ([items, items[:, :3]], "items must be of one width"),
        ([], "items must be at least one block"),
        ([items[0]], "items must be matrices"),
        ([items.astype(np.float64)], "catalog_rows: item must be float32 or bfloat16, got float64"),
    ):
        with pytest.raises(ValueError, match=text):
            build_catalog(model, bad, tmp_path / "items")
    with pytest.raises(ValueError, match="dtype must be one of"):
        build_catalog(model, items, tmp_path / "items", "float16")
    assert (tmp_path / "items").read_bytes() == before and len(list(tmp_path.iterdir())) == 1


def test_an_empty_catalogue_opens(model: FusedRanker, tmp_path: Path) -> None:
    catalog = build_catalog(model, np.zeros((0, ITEM), np.float32), tmp_path / "none", "int8")
    assert len(catalog) == 0 and catalog.table.scales.shape == (0,)


def test_opening_and_scoring_need_no_torch(model: FusedRanker, items: np.ndarray, tmp_path: Path) -> None:
    save_model(tmp_path / "model", model)
    build_catalog(model, items, tmp_path / "items")
    script = (
        "import sys, numpy as np\n"
        "from resflow_kernels import Catalog, Scorer\n"
        "scorer, catalog = Scorer.load(sys.argv[1]), Catalog.open(sys.argv[2])\n"
        f"user = np.zeros((1, {USER}), np.float32)\n"
        "best = scorer.catalog_topk(user, np.arange(70), np.array([0, 70]), catalog.table, 5)\n"
        "assert best.positions.shape == (1, 5) and 'torch' not in sys.modules\n"
    )
    files = [str(tmp_path / "model"), str(tmp_path / "items")]
    subprocess.run([sys.executable, "-c", script, *files], check=True)


@pytest.mark.parametrize("dtype", TABLE_PRECISIONS)
def test_a_catalogue_in_memory_is_a_copy_of_the_mapped_one(
    model: FusedRanker, items: np.ndarray, tmp_path: Path, dtype: str
) -> None:
    mapped = build_catalog(model, items, tmp_path / "items", dtype)
    held = Catalog.open(tmp_path / "items", in_memory=True)
    assert isinstance(mapped.table.rows, np.memmap) and not isinstance(held.table.rows, np.memmap)
    for array, copy in zip(mapped.table, held.table, strict=True):
        assert array.dtype == copy.dtype
        np.testing.assert_array_equal(array, copy)
    with pytest.raises(ValueError, match="in_memory must be False where writable is True"):
        Catalog.open(tmp_path / "items", writable=True, in_memory=True)
