"""``resflow train``: from files to a bundle that scores, resumed runs, what is refused before training."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from safetensors import safe_open
from typer.testing import CliRunner

from resflow_kernels import Scorer, bundle
from resflow_kernels.cli import build_app
from resflow_kernels.core.program import Program
from resflow_kernels.training import config, pipeline
from resflow_kernels.training.checkpoint import Checkpoint
from tests.support import training_files


def run(*arguments: object) -> Any:
    return CliRunner().invoke(build_app(), ["train", *map(str, arguments)], env={"COLUMNS": "200"})


@pytest.fixture
def toml(tmp_path: Path) -> Path:
    """A configuration, its files beside it, its output in ``out``."""
    path = tmp_path / "train.toml"
    path.write_text(training_files.write(tmp_path, tmp_path / "out"))
    return path


def change(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


def test_the_bundle_has_the_aucs_that_were_printed(toml: Path) -> None:
    result = run(toml)
    assert result.exit_code == 0, result.output
    assert "1,200 to train on, 400 to validate, 400 to test rows; 4 features, 8 + 7 wide" in result.output
    scorer = Scorer.load(toml.parent / "out/model.safetensors")
    test = pq.read_table(toml.parent / "test.parquet")
    x = np.concatenate([scorer.embed_users(test), scorer.embed_items(test)], axis=1)
    logits, probs, score = scorer.dense_scores(x)
    np.testing.assert_allclose(score, probs @ np.array([1, 20]), rtol=1e-5)
    clicks = test["click"].to_numpy()
    for task, labels in enumerate((clicks, clicks * test["order"].to_numpy())):  # nested labels
        positive, negative = logits[labels == 1, task], logits[labels == 0, task]
        pairs = positive[:, None] - negative
        auc = (pairs > 0).mean() + (pairs == 0).mean() / 2
        name = ("click", "order")[task]
        row = next(line for line in result.output.splitlines() if line.startswith(f"│ {name} "))
        assert float(row.split("│")[4]) == pytest.approx(auc, abs=1e-3)  # near-equal logits may change places
        assert auc > 0.6


def test_csv_trains_the_same_model(toml: Path, tmp_path: Path) -> None:
    folder = tmp_path / "csv"
    folder.mkdir()
    (folder / "train.toml").write_text(training_files.write(folder, folder / "out", "csv"))
    sources = [pipeline.open_sources(config.read(path)) for path in (toml, folder / "train.toml")]
    assert sources[0].features == sources[1].features
    # Row groups and whole files are blocks of different sizes.
    parquet, csv = (list(source.valid.in_order()) for source in sources)
    for part in (lambda b: b.labels, lambda b: b.inputs.ids, lambda b: b.inputs.values):
        assert torch.equal(torch.cat([part(batch) for batch in parquet]), torch.cat([part(batch) for batch in csv]))
    assert run(folder / "train.toml").exit_code == 0


def test_ctrl_c_leaves_a_run_that_resumes_to_the_bit(toml: Path) -> None:
    folder = toml.parent / "out"
    assert run(toml).exit_code == 0
    whole = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").unlink()
    script = (
        "import os, signal\n"
        "from resflow_kernels.training import pipeline\n"
        "import resflow_kernels.cli as cli\n"
        "loss_of = pipeline.loss_of\n"
        "calls = []\n"
        "def counted(*settings):\n"
        "    loss = loss_of(*settings)\n"
        "    def one(*a):\n"
        "        calls.append(1)\n"
        "        if len(calls) == 25: os.kill(os.getpid(), signal.SIGINT)\n"  # in the middle of a step
        "        return loss(*a)\n"
        "    return one\n"
        "pipeline.loss_of = counted\n"
        "cli.main()\n"
    )
    stopped = subprocess.run([sys.executable, "-c", script, "train", str(toml)], capture_output=True, text=True)
    assert stopped.returncode == 130, stopped.stderr
    assert "stopped after 1 whole epochs: go on with --resume" in " ".join(stopped.stdout.split())
    assert not (folder / "model.safetensors").exists()
    assert not Checkpoint(folder / "run" / pipeline.CHECKPOINT).finished()
    again = run(toml)
    assert again.exit_code == 2 and "holds a run that did not finish: use --resume, or delete it" in again.output
    change(toml, "dim = 3", "dim = 5")
    other = run(toml, "--resume")
    assert other.exit_code == 2 and "features must be that of the run to resume" in other.output
    change(toml, "dim = 5", "dim = 3")
    resumed = run(toml, "--resume")
    assert resumed.exit_code == 0, resumed.output
    assert (folder / "model.safetensors").read_bytes() == whole


def test_other_methods_are_saved_as_bundles_and_weights(toml: Path) -> None:
    change(toml, "hidden = [8, 4]\nnon_increasing = true", 'hidden = [8, 4]\nmethod = "mmoe"\nexperts = 3')
    result = run(toml)
    assert result.exit_code == 0, result.output
    assert isinstance(bundle.load(toml.parent / "out/model.safetensors").plan, Program)
    change(toml, "bundle = ", "weights = ")
    result = run(toml)
    assert result.exit_code == 0, result.output
    with safe_open(toml.parent / "out/model.safetensors", "pt") as file:
        state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    settings = config.read(toml)
    model = pipeline.build_model(settings, pipeline.open_sources(settings).features)
    model.load_state_dict(state)
    assert state["towers.gates.0.weight"].shape == (3, 15)


@pytest.mark.parametrize("method", ["nse", "esmm", "resflow_lr", "aitm", "ple", "dcnv2"])
def test_every_method_trains(method: str, toml: Path) -> None:
    change(toml, "non_increasing = true", f'method = "{method}"')
    change(toml, "epochs = 3", 'epochs = 1\nautocast = true\nmonitor = "log_loss"')
    change(toml, "nested = true", "nested = true\npositive_weights = [1, 3]\nweights = [2, 1]\ncalibrator = 0.6")
    result = run(toml)
    assert result.exit_code == 0, result.output


@pytest.mark.parametrize(
    ("old", "new", "text"),
    [
        ("[training]", "[training]\nbach = 1", "(did you mean 'batch'?)"),
        ("hidden = [8, 4]", 'method = "mmoee"', "[towers] method must be one of"),
        ("hidden = [8, 4]", "hidden = [0]", "[towers]: "),
        ("hidden = [8, 4]", "experts = 2", "[towers]: make_ranker: settings must be arguments of 'resflow'"),
        ("hidden = [8, 4]", 'norm = "layer"', "[towers] norm must be one of batch, none, got 'layer'"),
        ("valid.parquet", "walid.parquet", "[data] valid: "),
        ('["user", ', '["usr", ', "[data] train: "),
        ('names = ["click", "order"]', 'names = ["click", "age"]', "column 'age' must be 0 or 1, got"),
    ],
)
def test_bad_input_ends_in_one_line(old: str, new: str, text: str, toml: Path) -> None:
    change(toml, old, new)
    result = run(toml)
    assert result.exit_code == 2, result.output
    assert text in result.output and len(result.output.strip().splitlines()) <= 3


def test_a_missing_configuration_is_named(tmp_path: Path) -> None:
    done = run(tmp_path / "nope.toml")
    assert done.exit_code == 2
    assert done.stderr == f"resflow: {tmp_path / 'nope.toml'}: no such file or directory\n"


def test_resume_needs_a_run(toml: Path) -> None:
    afresh = run(toml, "--resume")
    assert afresh.exit_code == 0 and "there is no checkpoint yet, the run begins afresh" in afresh.output
    change(toml, "checkpoint = ", "# ")
    assert "--resume needs [output] checkpoint" in run(toml, "--resume").output


def test_a_task_without_positives_is_named(toml: Path) -> None:
    table = pq.read_table(toml.parent / "valid.parquet")
    at = table.column_names.index("order")
    nothing = table.set_column(at, "order", [np.zeros(len(table), np.int8)])
    pq.write_table(nothing, toml.parent / "valid.parquet")
    trained = run(toml)
    assert trained.exit_code == 0 and "no AUC (valid): all labels of order are alike" in trained.output
    row = next(line for line in trained.output.splitlines() if line.startswith("│ order "))
    assert row.split("│")[2].strip() == "nan"
    text = toml.read_text()
    assert "[training]" in text
    toml.write_text(text.replace("[training]", '[training]\nmonitor = "auc.order"'))
    assert "monitor must be a metric of the validation rows, got 'auc.order' of rows in which task 'order'" in (
        run(toml).output
    )


def test_labels_that_were_not_observed_are_left_out(toml: Path) -> None:
    for path in sorted(toml.parent.glob("[tv]*.parquet")):
        table = pq.read_table(path)
        at = table.column_names.index("order")
        seen = np.arange(len(table)) % 3 != 0
        labels = pa.array(np.where(seen, table["order"].to_numpy(), np.nan), mask=np.arange(len(table)) % 6 == 0)
        pq.write_table(table.set_column(at, "order", labels), path)
    trained = run(toml)
    assert trained.exit_code == 0, trained.output
    assert "labels not observed (train): " in trained.output and "nan" not in trained.output
