"""Bundles: what is saved comes back, damage is named, failure leaves nothing behind, torch stays out."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
from safetensors import safe_open

from resflow_kernels.core.fusion import Additive, ExpectedValue
from resflow_kernels.core.plan import Plan
from resflow_kernels.data.features import Feature, FeatureSet
from resflow_kernels.serving import bundle
from resflow_kernels.serving.bundle import BundleError

PLAN = Plan(9, (5, 3), (-1, 0, 0), ("prelu", "silu"), affine=True, non_increasing=True)
TASKS = ("click", "like", "follow")
FEATURES = FeatureSet(
    (Feature("user", 2, "id", vocabulary=np.array([-4, 7, 2**60])), Feature("tab", 3, "id", vocabulary=("Ä", "日本"))),
    (Feature("tags", 3, "ids", vocabulary=()), Feature("age", 1, "bucket", boundaries=np.array([0.5]))),
    "user",
    "video",
)


def contents(**change: Any) -> dict[str, Any]:
    rng = np.random.default_rng(0)
    return {
        "plan": PLAN,
        "tasks": TASKS,
        "weights": [rng.standard_normal(shape, dtype=np.float32) for _, shape in PLAN.weight_shapes],
        "fusion": ExpectedValue((0, 1, 2, 4.5)),
        "features": FEATURES,
        "tables": {f.name: rng.standard_normal((f.rows, f.dim), dtype=np.float32) for f in FEATURES.all},
        **change,
    }


@pytest.fixture
def path(tmp_path: Path) -> Path:
    bundle.save(tmp_path / "model.safetensors", **contents())
    return tmp_path / "model.safetensors"


def rewritten(path: Path, tensors: dict[str, Any] | None = None, **change: Any) -> Path:
    """The bundle with other tensors (``None`` removes one) or JSON entries."""
    with safe_open(path, framework="np") as file:
        stored = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        content = json.loads(file.metadata()["resflow"])
    stored = {name: tensor for name, tensor in {**stored, **(tensors or {})}.items() if tensor is not None}
    content |= change
    safetensors.numpy.save_file(stored, path, metadata={"resflow": json.dumps(content)})
    return path


def test_round_trip(path: Path) -> None:
    loaded, given = bundle.load(path), contents()
    assert (loaded.plan, loaded.tasks, loaded.fusion) == (PLAN, TASKS, given["fusion"])
    assert loaded.features == FEATURES
    assert all(a.tobytes() == b.tobytes() for a, b in zip(loaded.weights, given["weights"], strict=True))
    assert loaded.tables.keys() == given["tables"].keys()
    assert all(loaded.tables[name].tobytes() == table.tobytes() for name, table in given["tables"].items())


def test_strided_weights_and_no_features(tmp_path: Path) -> None:
    weights = [np.repeat(weight, 2, axis=0)[::2] for weight in contents()["weights"]]
    given = contents(weights=weights, fusion=Additive(), features=None, tables=None)
    bundle.save(tmp_path / "m", **given)
    loaded = bundle.load(tmp_path / "m")
    assert loaded.features is None and loaded.tables == {} and loaded.fusion == Additive()
    assert all(np.array_equal(a, b) for a, b in zip(loaded.weights, weights, strict=True))


def test_metadata_is_as_documented(path: Path) -> None:
    with safe_open(path, framework="np") as file:
        content, names = json.loads(file.metadata()["resflow"]), set(file.keys())
    assert content["format"] == "resflow-bundle" and content["version"] == 1
    assert content["plan"]["hidden"] == [5, 3] and content["fusion"]["kind"] == "expected_value"
    assert {"vocabulary.user", "boundaries.age", "table.tab", "weights.0"} <= names
    assert "vocabulary.tab" not in names


def test_damaged_files_name_the_file_and_the_fault(path: Path, tmp_path: Path) -> None:
    whole = path.read_bytes()
    for name, data in {"cut": whole[:-9], "header": whole[:20], "empty": b"", "text": b"not a model at all"}.items():
        (tmp_path / name).write_bytes(data)
        with pytest.raises(BundleError, match=rf"{name}: must be a whole safetensors file, got"):
            bundle.load(tmp_path / name)
    with pytest.raises(BundleError, match="nowhere: must be a bundle file, got no file"):
        bundle.load(tmp_path / "nowhere")
    with pytest.raises(BundleError, match="must be a bundle file, got a directory"):
        bundle.load(tmp_path)


def test_every_truncation_and_flipped_header_byte_is_a_bundle_error_or_the_same_model(path: Path) -> None:
    whole = path.read_bytes()
    header = 8 + int.from_bytes(whole[:8], "little")
    for at in range(0, header, 7):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 0x15]) + whole[at + 1 :])
        try:
            bundle.load(path)
        except BundleError as error:
            assert str(path) in str(error)
    for size in range(0, len(whole), 101):
        path.write_bytes(whole[:size])
        with pytest.raises(BundleError):
            bundle.load(path)


def test_foreign_safetensors(tmp_path: Path) -> None:
    foreign = tmp_path / "foreign"
    for metadata in (None, {"other": "x"}):
        safetensors.numpy.save_file({"weights.0": np.zeros(3, np.float32)}, foreign, metadata=metadata)
        with pytest.raises(BundleError, match="must be a resflow-bundle file, got a safetensors file without"):
            bundle.load(foreign)
    for text, message in {
        "{": "must be JSON",
        '{"a": NaN}': "NaN",
        "[]": "format must be",
        "[" * 10**5: "JSON",
    }.items():
        safetensors.numpy.save_file({"a": np.zeros(3)}, foreign, metadata={"resflow": text})
        with pytest.raises(BundleError, match=message):
            bundle.load(foreign)


PLAN_JSON = bundle.plan_fields(PLAN)


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"version": 2}, r"version must be 1 \(this package reads no other\), got 2"),
        ({"version": True}, "version must be 1"),
        ({"format": "onnx"}, "format must be 'resflow-bundle', got 'onnx'"),
        ({"extra": 1}, "metadata must have the keys"),
        ({"tasks": ["a", "b"]}, "tasks must be 3 different names"),
        ({"tasks": ["a", "b", "b"]}, "tasks must be 3 different names"),
        ({"tasks": "abc"}, "tasks must be a list of names"),
        (
            {"plan": {**PLAN_JSON, "hidden": [5, 4]}},
            r"weights.5 .* must be float32 of shape \[5, 4\], got float32 \[5, 3\]",
        ),
        ({"plan": {**PLAN_JSON, "in_features": 10}}, r"weights.0 .* of shape \[10, 5\], got float32 \[9, 5\]"),
        ({"plan": {**PLAN_JSON, "in_features": "9"}}, "in_features must be an integer, got '9'"),
        ({"plan": {**PLAN_JSON, "parents": [-1, 5, 0]}}, r"parents\[1\] must be -1 or an earlier task"),
        ({"plan": {**PLAN_JSON, "parents": [-1, 0]}}, "got also"),
        ({"plan": {**PLAN_JSON, "parents": [-1, 0, 0, 0]}}, "tensor weights.3. must be in the file, got none"),
        ({"plan": {**PLAN_JSON, "affine": 1}}, "affine must be true or false, got 1"),
        ({"plan": {**PLAN_JSON, "activations": ["prelu", "selu"]}}, "activations must be one of"),
        ({"plan": []}, "plan must be an object"),
        ({"fusion": {"kind": "sum", "weights": None}}, "fusion must be one of additive"),
        ({"fusion": {"kind": "additive", "weights": [1]}}, "weights must be 3 numbers for 3 tasks, got 1"),
        ({"fusion": {"kind": "additive", "weights": ["1", 2, 3]}}, "fusion weights must be a list of numbers"),
        ({"features": None}, "got also"),
        ({"features": {"user": 1}}, "JSON must be an object"),
        ({"features": {**FEATURES.to_json(), "user": []}}, "user must be at least one feature"),
        ({"features": {**FEATURES.to_json(), "user": [FEATURES.user[0].to_json()]}}, "got also"),
    ],
)
def test_metadata_that_does_not_fit(path: Path, change: dict[str, Any], text: str) -> None:
    with pytest.raises(BundleError, match=text) as caught:
        bundle.load(rewritten(path, **change))
    assert str(path) in str(caught.value)


@pytest.mark.parametrize(
    ("tensors", "text"),
    [
        ({"weights.0": np.zeros((9, 5))}, r"weights.0 .* must be float32 of shape \[9, 5\], got float64"),
        ({"weights.1": np.full(5, np.nan, np.float32)}, "weights.1 .* must be finite, got NaN or Inf"),
        ({"weights.1": np.full(5, -np.inf, np.float32)}, "weights.1 .* must be finite"),
        ({"weights.2": None}, "tensor weights.2 must be in the file, got none"),
        ({"weights.99": np.zeros(1)}, "tensors must be those that its plan and features name"),
        (
            {"table.user": np.zeros((3, 2), np.float32)},
            r"table of feature 'user' must be .* \[4, 2\], got float32 \[3, 2\]",
        ),
        ({"table.tab": np.full((3, 3), np.inf, np.float32)}, "table.tab must be finite"),
        ({"table.age": None}, "tensor table.age must be in the file"),
        ({"vocabulary.user": None}, "vocabulary or boundaries must be fitted"),
        ({"vocabulary.user": np.zeros(3, np.float32)}, "vocabulary.user must be int64, got float32"),
        ({"vocabulary.user": np.array([3, 2, 1])}, "vocabulary must be ascending"),
        ({"boundaries.age": np.array([np.inf])}, "boundaries must be finite"),
    ],
)
def test_tensors_that_do_not_fit(path: Path, tensors: dict[str, Any], text: str) -> None:
    with pytest.raises(BundleError, match=text):
        bundle.load(rewritten(path, tensors))


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"tasks": TASKS[:2]}, "tasks must be 3 different names"),
        ({"weights": contents()["weights"][:-1]}, "weights must be the 33 arrays of this plan, got 32"),
        ({"fusion": Additive((1,))}, "weights must be 3 numbers"),
        ({"fusion": Additive((1, 2, np.nan))}, "fusion weights must be finite"),
        ({"tables": {}}, "table of feature 'user' must be .* got none"),
        ({"features": None}, "tables must be none without features"),
        ({"plan": Plan(8, (5, 3), (-1, 0, 0), affine=True)}, "must be"),
    ],
)
def test_save_refuses_and_leaves_the_old_file(path: Path, change: dict[str, Any], text: str) -> None:
    before = path.read_bytes()
    with pytest.raises(BundleError, match=text):
        bundle.save(path, **contents(**change))
    assert path.read_bytes() == before and os.listdir(path.parent) == [path.name]


def test_failed_write_leaves_nothing(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = path.read_bytes()

    def fail(tensors: Any, name: str, metadata: Any) -> None:
        Path(name).write_bytes(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(safetensors.numpy, "save_file", fail)
    with pytest.raises(OSError, match="disk full"):
        bundle.save(path, **contents())
    assert path.read_bytes() == before and os.listdir(path.parent) == [path.name]


def test_missing_folder_and_folder_as_file(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="must be in an existing folder"):
        bundle.save(tmp_path / "no" / "m", **contents())
    with pytest.raises(IsADirectoryError, match="got a folder"):
        bundle.save(tmp_path, **contents())


def test_permissions_follow_the_umask(path: Path) -> None:
    old = os.umask(0o027)
    try:
        bundle.save(path, **contents())
    finally:
        os.umask(old)
    assert stat.S_IMODE(path.stat().st_mode) == 0o640


def test_load_imports_no_torch(path: Path) -> None:
    code = (
        f"import sys; from resflow_kernels import bundle; bundle.load({str(path)!r}); assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_save_model_scores_like_the_model(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    from resflow_kernels import reference
    from resflow_kernels.nn import ResFlow

    torch.manual_seed(0)
    model = ResFlow(9, (5, 3), TASKS, norm="batch", input_norm=True, fusion=Additive((1, 2, 3)))
    model.train()(torch.randn(64, 9))  # moves the running statistics
    bundle.save_model(tmp_path / "m", model.eval())
    loaded = bundle.load(tmp_path / "m")
    x = torch.randn(20, 9, dtype=torch.float64)
    weights = [torch.from_numpy(weight).double() for weight in loaded.weights]
    fusion = torch.tensor(loaded.fusion.weights_for(3), dtype=torch.float64)
    got = reference.dense_scores(x, weights, loaded.plan, fusion, loaded.fusion.kind, 0)
    with torch.no_grad():
        expected = torch.sigmoid(model.double()._reference_logits(x))
    assert (got.probs - expected).abs().max() < 1e-6
    assert torch.allclose(got.score, expected @ torch.tensor([1.0, 2, 3]).double(), atol=1e-5)
    assert loaded.tasks == TASKS


def test_load_model_scores_like_the_bundle(path: Path) -> None:
    torch = pytest.importorskip("torch")
    pytest.importorskip("resflow_kernels.convert")
    from resflow_kernels import reference

    model, loaded = bundle.load_model(path), bundle.load(path)
    x = torch.randn(20, 9)
    with torch.no_grad():
        got = model.eval()(x)
    weights = [torch.from_numpy(weight).double() for weight in loaded.weights]
    fusion = torch.tensor(loaded.fusion.weights_for(3), dtype=torch.float64)
    expected = reference.dense_scores(x.double(), weights, loaded.plan, fusion, loaded.fusion.kind, 0)
    assert (got.probs.double() - expected.probs).abs().max() < 2e-6
