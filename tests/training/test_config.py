"""Configurations: what is read, and what is said of each wrong key or value."""

from __future__ import annotations

from pathlib import Path

import pytest

from resflow_kernels.training.config import read
from tests.support.training_files import CONFIG

TEXT = CONFIG.format(folder="data", out="out", format="parquet")
EXAMPLE = Path(__file__).parents[2] / "examples/kuairand/train.toml"


def test_a_file_is_read(tmp_path: Path) -> None:
    (tmp_path / "a.toml").write_text(TEXT)
    config = read(tmp_path / "a.toml")
    assert config.data.train == ("data/train-*.parquet",) and config.parents == (-1, 0)
    features = config.feature_set()
    assert [(f.name, f.kind, f.dim) for f in features.all] == [
        ("user", "id", 4),
        ("age", "bucket", 4),
        ("video", "id", 3),
        ("tags", "ids", 4),
    ]
    assert config.fit_arguments()["min_count"] == {"user": 1, "age": 1, "video": 2, "tags": 1}
    assert config.fit_arguments()["buckets"]["age"] == 5 and config.fit_arguments()["buckets"]["user"] == 16
    assert config.score_fusion().weights == (1.0, 20.0)
    assert config.training.fit_settings().learning_rate == 0.01


def test_the_example_is_that_of_its_script() -> None:
    from examples.kuairand import prepare, train

    config = read(EXAMPLE)
    features = config.feature_set()
    assert features == prepare.feature_set(train.WIDTH)
    counts = {name: count for name, count in config.fit_arguments()["min_count"].items() if count > 1}
    assert counts == prepare.MIN_COUNT and config.tasks.names == prepare.TASKS
    training = config.training
    assert (training.batch, training.dropout, training.learning_rate) == (
        train.BATCH,
        train.DROPOUT,
        train.LEARNING_RATE,
    )
    assert (training.epochs, training.patience) == (train.MOST_EPOCHS, train.PATIENCE)
    assert config.score_fusion() == train.FUSION


def test_topologies_by_name_and_one_by_one(tmp_path: Path) -> None:
    for topology, parents in (('"independent"', (-1, -1)), ('{ order = "click" }', (-1, 0)), ("{}", (-1, -1))):
        (tmp_path / "a.toml").write_text(TEXT.replace("nested = true", f"topology = {topology}"))
        assert read(tmp_path / "a.toml").parents == parents


@pytest.mark.parametrize(
    ("old", "new", "text"),
    [
        ("batch = 64", "bach = 64", r"\[training\]: keys must be of batch, .*, got 'bach' \(did you mean 'batch'\?\)"),
        ("[training]", "[trainin]", r"the file: keys must be of data, .*, got 'trainin' \(did you mean 'training'\?\)"),
        ("batch = 64", 'batch = "64"', r"\[training\] batch must be a whole number, got '64'"),
        ("batch = 64", "batch = true", r"\[training\] batch must be a whole number, got True"),
        ("batch = 64", "batch = 1", r"\[training\] batch must be at least 2, got 1"),
        ("dropout = 0.1", "dropout = 1", r"\[training\] dropout must be from 0 to below 1, got 1.0"),
        ("dropout = 0.1", 'monitor = "auc.clik"', r"got 'auc.clik' \(did you mean 'auc.click'\?\)"),
        ("dropout = 0.1", "clip = -1", r"\[training\]: FitSettings: clip must be above 0, got -1"),
        ("dropout = 0.1", 'device = "gpu"', r"\[training\] device must be one of cpu, cuda, got 'gpu'"),
        ('request_id = "user"', "", r"\[data\] request_id must be text, got none"),
        ("hidden = [8, 4]", "hidden = [8, 4.5]", r"\[towers\] hidden\[1\] must be a whole number, got 4.5"),
        ("hidden = [8, 4]", "hidden = 8", r"\[towers\] hidden must be a list, each a whole number, got 8"),
        (
            'kind = "ids"',
            'kind = "idss"',
            r"tags: kind must be one of id, ids, bucket, got 'idss' \(did you mean 'ids'",
        ),
        ('{ name = "tags"', '{ nam = "tags"', r"\[features\] item\[1\]: keys must be of name, .*got 'nam'"),
        ('{ name = "tags"', '{ name = "user"', r"features must be of different names, got user twice"),
        ("nested = true", 'topology = "ring"', r"\[tasks\] topology: .* chain, star, independent"),
        ("nested = true", "topology = 3", r"\[tasks\] topology must be text or a section of texts, got 3"),
        ("nested = true", "weights = [1]", r"\[tasks\] weights must be 2 numbers above 0, got \[1.0\]"),
        ("weights = [1, 20]", "weights = [1]", r"\[fusion\]: .*weights must be 2 numbers"),
        ("weights = [1, 20]", 'kind = "additiv"', r"kind must be one of .* \(did you mean 'additive'\?\)"),
        ('bundle = "out/model.safetensors"', "", r"\[output\] must name a bundle or weights, got neither"),
        ("[output]", "[output", r"must be TOML, got "),
    ],
)
def test_wrong_keys_and_values_are_named(old: str, new: str, text: str, tmp_path: Path) -> None:
    assert old in TEXT
    (tmp_path / "a.toml").write_text(TEXT.replace(old, new, 1))
    with pytest.raises(ValueError, match=text) as error:
        read(tmp_path / "a.toml")
    assert str(error.value).startswith(str(tmp_path / "a.toml"))
