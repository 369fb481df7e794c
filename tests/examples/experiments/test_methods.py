"""Every method trains by the one loop, and the seed decides all of it."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
import torch

from examples.experiments import methods
from examples.experiments.catalog import Requests, probabilities
from examples.experiments.data import Encoded, Split, encode, epochs_of
from examples.experiments.multitask import CALIBRATOR_WEIGHT, loss_of, mean_auc
from examples.experiments.training import Budget, trained
from resflow_kernels.data.features import Feature, FeatureSet
from resflow_kernels.nn.losses import calibrator_loss
from resflow_kernels.training.ranker import encode_rows

TASKS = ("click", "order")
PARENTS = (-1, 0)


@pytest.fixture(scope="module")
def split() -> Split:
    """Clicks that follow the user, orders that also follow the item."""
    rng = np.random.default_rng(0)
    user, item = rng.integers(0, 6, 900), rng.integers(0, 5, 900)
    click = rng.random(900) < 0.1 + 0.15 * user
    order = click & (rng.random(900) < 0.1 + 0.2 * item)
    table = pa.table({"user": user, "item": item})
    features = FeatureSet((Feature("user", 4, "id"),), (Feature("item", 4, "id"),), "user", "item").fit(table)
    data = encode(features, table, np.stack((click, order), axis=1))
    return Split(features, *(Encoded(*data.batch(slice(at, at + 300))) for at in (0, 300, 600)))


def fitted(method: str, split: Split, seed: int) -> tuple[torch.nn.Module, float]:
    model, valid, details = trained(
        lambda: methods.make(method, split.features, TASKS, (8, 4), 0.1, PARENTS),
        split.train,
        loss_of(method, PARENTS),
        lambda model: mean_auc(model, split.valid),
        {"learning_rate": 0.02},
        seed,
        Budget(epochs=4, patience=4, batch=32),
    )
    assert len(details["epochs"]) == 4 and details["epochs"][details["best_epoch"] - 1][2] == valid
    return model, valid


@pytest.mark.parametrize("method", methods.NAMES)
def test_every_method_learns_and_repeats_itself(method: str, split: Split) -> None:
    model, valid = fitted(method, split, 1)
    assert valid > 0.6 and mean_auc(model, split.valid) == valid
    again, _ = fitted(method, split, 1)
    probs = [methods.probabilities(one, split.test.scored_at_once(100)) for one in (model, again)]
    assert probs[0].shape == (300, 2) and torch.equal(*probs)


@pytest.mark.parametrize("method", methods.NAMES)
def test_a_catalog_is_scored_as_its_rows_are(method: str, split: Split) -> None:
    """Every user with every item, in the request form, against the dense form on the joined rows."""
    torch.manual_seed(0)
    model = methods.make(method, split.features, TASKS, (8, 4), 0.0, PARENTS)
    users, items = pa.table({"user": [3, 0, 5]}), pa.table({"item": [1, 4, 0, 2]})
    feedback = np.zeros((3, 4))
    requests = Requests(encode_rows(split.features.user, users), encode_rows(split.features.item, items), feedback)
    pairs = pa.table({"user": np.repeat([3, 0, 5], 4), "item": np.tile([1, 4, 0, 2], 3)})
    dense = methods.probabilities(model, [encode_rows(split.features.all, pairs)])
    np.testing.assert_allclose(probabilities(model, requests).reshape(12, 2), dense, atol=1e-6)


def test_recall_of_requests() -> None:
    requests = Requests({}, {}, np.array([[1.0, 0, 3], [0, 0, 0], [0, 2, 0]]))
    scores = np.array([[0.1, 0.5, 0.9], [0.3, 0.2, 0.1], [0.9, 0.1, 0.2]])
    assert requests.recall(scores, 1) == pytest.approx((0.75 + 0) / 2)


def test_separate_models_share_nothing(split: Split) -> None:
    model = methods.make("single_task", split.features, TASKS, (8, 4), 0.0, PARENTS)
    rows = split.train.batch(slice(40)).inputs
    methods.logits_of(model, rows)[:, 0].sum().backward()
    first, second = model.get_submodule("models.0"), model.get_submodule("models.1")
    # The concatenation of the logits gives the others a gradient of zeros.
    moved = [sum(float(one.grad.abs().sum()) for one in part.parameters()) for part in (first, second)]
    assert moved[0] > 0 and moved[1] == 0


def test_the_calibrator_belongs_to_aitm_alone() -> None:
    logits, labels = torch.tensor([[0.0, 2.0], [1.0, -1.0]]), torch.tensor([[1.0, 0.0], [1.0, 1.0]])
    plain, aitm = loss_of("nse", PARENTS)(logits, labels), loss_of("aitm", PARENTS)(logits, labels)
    torch.testing.assert_close(aitm - plain, CALIBRATOR_WEIGHT * calibrator_loss(logits, PARENTS))


def test_an_epoch_depends_on_seed_and_number_alone(split: Split) -> None:
    def order(seed: int, epoch: int) -> list[float]:
        return [float(one) for batch in epochs_of(split.train, 64, seed)(epoch) for one in batch.inputs["item"]]

    assert order(1, 2) == order(1, 2) and len(order(1, 2)) == 300
    assert order(1, 2) != order(1, 3) and order(1, 2) != order(2, 2)


def test_a_last_batch_of_one_row_is_left_out(split: Split) -> None:
    sizes = [len(batch.labels) for batch in epochs_of(split.train, 299, 0)(1)]
    assert sizes == [299]


def test_unknown_methods_are_named() -> None:
    assert methods.chosen(["resflow", "nse"]) == ["nse", "resflow"] and methods.chosen(None) == list(methods.NAMES)
    with pytest.raises(ValueError, match=r"method must be one of single_task, .* got other"):
        methods.chosen(["nse", "other"])
