"""Feature models: both layouts of rows, the tables a bundle takes, what does not fit."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch

from resflow_kernels import ResFlow, Scorer
from resflow_kernels.data.features import Feature, FeatureSet
from resflow_kernels.serving.bundle import save_model
from resflow_kernels.training.ranker import FeatureModel, encode_ids, encode_rows, feature_embeddings


def table(rows: int = 60) -> pa.Table:
    rng = np.random.default_rng(3)
    tags = [rng.integers(0, 7, rng.integers(0, 5)).tolist() for _ in range(rows)]
    words = [None if row % 9 == 0 else [f"w{w}" for w in rng.integers(0, 5, 3)] for row in range(rows)]
    return pa.table({"user": rng.integers(0, 9, rows), "tags": tags, "age": rng.random(rows), "words": words})


def model_of(rows: pa.Table) -> FeatureModel:
    user = (Feature("user", 3, "id"), Feature("tags", 4, "ids"))
    item = (Feature("age", 2, "bucket"), Feature("words", 5, "ids", pooling="mean"))
    features = FeatureSet(user, item, "user", "age").fit(rows)
    torch.manual_seed(0)
    return FeatureModel(features, ResFlow(14, (6,)), 0.5)


def test_padded_and_ragged_rows_embed_alike_and_as_the_features_do() -> None:
    rows = table()
    model = model_of(rows).eval()
    every = model.features.all
    with torch.no_grad():
        padded, ragged = model.embed(encode_rows(every, rows)), model.embed(encode_ids(every, rows))
    encoded = model.features.encode_user(rows) | model.features.encode_item(rows)
    expected = model.features.embed(encoded, model.tables())
    np.testing.assert_allclose(padded, expected, atol=1e-6)
    np.testing.assert_allclose(ragged, expected, atol=1e-6)


def test_both_layouts_have_the_same_gradients() -> None:
    rows = table()
    model = model_of(rows).eval()
    gradients = []
    for encode in (encode_rows, encode_ids):
        model.zero_grad()
        model(encode(model.features.all, rows)).logits.square().sum().backward()
        gradients.append([parameter.grad for parameter in model.parameters()])
    for padded, ragged in zip(*gradients, strict=True):
        assert padded is not None and ragged is not None and padded.abs().max() > 0
        torch.testing.assert_close(padded, ragged)


def test_the_bundle_scores_as_the_model_does(tmp_path: Path) -> None:
    rows = table()
    model = model_of(rows)
    assert isinstance(model.towers, ResFlow)
    probs = model.probabilities([encode_ids(model.features.all, rows.slice(at, 20)) for at in (0, 20, 40)])
    assert model.training  # as it was
    save_model(tmp_path / "model", model.towers, model.features, model.tables())
    scorer = Scorer.load(tmp_path / "model")
    x = np.concatenate([scorer.embed_users(rows), scorer.embed_items(rows)], axis=1)
    np.testing.assert_allclose(scorer.dense_scores(x).probs, probs, atol=2e-6)


def test_dropout_is_of_the_row_and_in_training_alone() -> None:
    rows = table()
    model = model_of(rows)
    ids = encode_ids(model.features.all, rows)
    with torch.no_grad():
        assert not torch.equal(model(ids).logits, model(ids).logits)
        model.eval()
        assert torch.equal(model(ids).logits, model(ids).logits)


def test_what_does_not_fit_is_named() -> None:
    rows = table()
    model = model_of(rows)
    with pytest.raises(ValueError, match="towers must take rows 14 wide, as the features are, got 13"):
        FeatureModel(model.features, ResFlow(13))
    other = feature_embeddings(FeatureSet(model.features.user, model.features.item[:1], "user", "age"))
    with pytest.raises(ValueError, match="embeddings must be of user, tags, age, words, got user, tags, age"):
        FeatureModel(model.features, model.towers, embeddings=other)
    embeddings = feature_embeddings(model.features)
    embeddings["user"] = torch.nn.Embedding(2, 3)
    with pytest.raises(ValueError, match=r"embedding of 'user' must be \[10, 3\], got \[2, 3\]"):
        FeatureModel(model.features, model.towers, embeddings=embeddings)
    unfitted = FeatureSet((Feature("user", 3, "id"),), (Feature("age", 2, "bucket"),), "user", "age")
    with pytest.raises(ValueError, match="must be fitted"):
        FeatureModel(unfitted, ResFlow(5))
