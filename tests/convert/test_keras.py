"""The authors' own outputs, through the public API: the fused op and the float64 reference."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch

from resflow_kernels import ExpectedValue, ResFlow
from resflow_kernels.convert import from_keras
from tests.support.files import DATA

FILES = ("ecomm_chain_2tasks.npz", "progressive_logits_9tasks.npz")


def load(file: str) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Weights, and the rest."""
    with np.load(DATA / file) as golden:
        arrays = {name: golden[name] for name in golden.files}
    return {n: a for n, a in arrays.items() if n.startswith("w.")}, {n: a for n, a in arrays.items() if n[:2] != "w."}


def tasks_of(file: str) -> tuple[str, ...] | None:
    return ("ctr", "cvr") if file == FILES[0] else None


def bucket_values(percentiles: np.ndarray) -> ExpectedValue:
    """Midpoints of neighbouring thresholds; 5 and 93 at the ends (the authors' score)."""
    middles = (percentiles[:-1] + percentiles[1:]) / 2
    return ExpectedValue((5.0, *middles[:8], 93.0))


def assert_golden(model: ResFlow, golden: dict[str, np.ndarray], dtype: torch.dtype) -> None:
    with torch.no_grad(), warnings.catch_warnings():
        # float64 is the reference's; the fused op must not fall back, and would warn.
        warnings.simplefilter("error" if dtype == torch.float32 else "ignore")
        scores = model.to(dtype)(torch.from_numpy(golden["x"]).to(dtype))
    logits = golden["logits"]
    assert (np.abs(scores.logits.numpy() - logits) <= 1e-5 * (1 + np.abs(logits))).all()
    np.testing.assert_allclose(scores.probs.numpy(), golden.get("probs", 1 / (1 + np.exp(-logits))), atol=1e-5, rtol=0)
    if "score" in golden:
        np.testing.assert_allclose(scores.score.numpy(), golden["score"], rtol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("file", FILES)
def test_the_authors_outputs_are_reproduced(file: str, dtype: torch.dtype) -> None:
    weights, golden = load(file)
    fusion = bucket_values(golden["percentiles"]) if "percentiles" in golden else None
    assert_golden(from_keras(weights, fusion, tasks_of(file)), golden, dtype)


def test_settings_are_read_off_the_weights() -> None:
    chain, _ = load(FILES[0])
    model = from_keras(chain, tasks=("ctr", "cvr"))
    assert model.tasks == ("ctr", "cvr") and model.input_norm is not None
    assert model.plan.in_features == 608 and model.plan.hidden == (128, 64) and model.plan.parents == (-1, 0)
    assert model.plan.feature_residual and model.plan.logit_residual and model.plan.affine
    progressive, _ = load(FILES[1])
    model = from_keras({name.removeprefix("w."): array for name, array in progressive.items()})
    assert len(model.tasks) == 9 and model.plan.in_features == 184 and model.input_norm is None
    assert not model.plan.feature_residual and model.plan.logit_residual and not model.plan.affine


def test_a_chain_without_the_inputs_norm() -> None:
    weights, golden = load(FILES[0])
    first = {n: a.astype(np.float64) for n, a in weights.items() if n.startswith("w.batch_normalization.")}
    rest = {n: a for n, a in weights.items() if n not in first}
    gamma, beta, mean, variance = (
        first[f"w.batch_normalization.{p}"] for p in ("gamma", "beta", "moving_mean", "moving_variance")
    )
    normed = (golden["x"] - mean) / np.sqrt(variance + 1e-3) * gamma + beta
    assert_golden(from_keras(rest, tasks=("ctr", "cvr")), {**golden, "x": normed.astype(np.float32)}, torch.float32)


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"w.extra": np.zeros(3)}, "named as the authors name them, got 'extra'"),
        (
            {"w.ctr_dense1.bias": None},
            r"ctr, layer 1 must have \['alpha', 'bias', 'kernel'\], got \['alpha', 'kernel'\]",
        ),
        ({"w.ctr_dense1.bias": np.zeros(5)}, r"ctr, layer 1 must have a kernel \[in, out\] and a bias to match"),
        ({"w.cvr_dense2.cvr_prelu2.alpha": np.zeros(3)}, r"cvr, layer 2 must have an alpha \[64\], got \[3\]"),
        ({"w.batch_normalization_4.beta": None}, "batch_normalization_4 must have"),
        (
            {f"w.batch_normalization_4.{p}": None for p in ("gamma", "beta", "moving_mean", "moving_variance")}
            | {f"w.batch_normalization_3.{p}": None for p in ("gamma", "beta", "moving_mean", "moving_variance")},
            "BatchNorms, got 3",
        ),
        ({"w.dense1_0.kernel": np.zeros((3, 3))}, "of one naming scheme, got 2"),
        ({"w.cvr_dense3.kernel": None, "w.cvr_dense3.bias": None}, "the same layers"),
    ],
)
def test_bad_weights_are_named(change: dict[str, np.ndarray | None], text: str) -> None:
    weights, _ = load(FILES[0])
    changed = {n: a for n, a in {**weights, **change}.items() if a is not None}
    with pytest.raises(ValueError, match=text):
        from_keras(changed, tasks=("ctr", "cvr"))


def test_a_checkpoint_as_tensorflow_names_it() -> None:
    """Slashes, ``:0``, tables and Adam's slots beside the towers, variables in any order."""
    weights, golden = load(FILES[0])
    named = {name.removeprefix("w.").replace(".", "/") + ":0": array for name, array in weights.items()}
    slots = {f"{name.removesuffix(':0')}/{slot}": array for name, array in named.items() for slot in ("Adam", "Adam_1")}
    beside = {"embedding/embeddings": np.zeros((5, 4)), "global_step": np.array(7), "beta1_power": np.array(0.9)}
    shuffled = dict(sorted({**named, **slots, **beside}.items(), reverse=True))
    assert_golden(from_keras(shuffled, tasks=("ctr", "cvr")), golden, torch.float32)


def test_the_order_of_tasks_is_asked_for() -> None:
    weights, _ = load(FILES[0])
    with pytest.raises(ValueError, match=r"tasks must be given, in the order of the chain, .*: \['ctr', 'cvr'\]"):
        from_keras(weights)
    with pytest.raises(ValueError, match=r"tasks must be those of the weights, \['ctr', 'cvr'\], got \['ctr', 'buy'\]"):
        from_keras(weights, tasks=("ctr", "buy"))
