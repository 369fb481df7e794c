"""The loop: what a step is, early stopping, and runs that are killed and resumed bitwise."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from resflow_kernels import ResFlow
from resflow_kernels.serving.bundle import save_model
from resflow_kernels.training.checkpoint import Checkpoint, CheckpointError
from resflow_kernels.training.loop import fit
from resflow_kernels.training.settings import FitSettings, Progress
from tests.support.runs import BCE, Small, batches, evaluate, same, settings, trained

ROOT = Path(__file__).parents[2]


def test_training_lowers_the_loss_and_is_the_same_for_the_same_seed() -> None:
    told: list[Progress] = []
    model, history = trained(on_progress=told.append)
    assert [result.epoch for result in history.epochs] == [1, 2, 3]
    assert history.epochs[-1].loss < history.epochs[0].loss
    assert [p.step for p in told if p.result is None] == [*range(1, 9)] * 3
    assert [p.result for p in told if p.result is not None] == history.epochs
    assert same(model, trained()[0])
    assert not same(model, trained(settings={"seed": 5})[0])


def test_ends_after_patience_with_the_best_weights() -> None:
    values = iter([0.5, 0.7, 0.6, 0.65, 0.9])
    kept: list[dict[str, Tensor]] = []

    def scripted(model: nn.Module) -> dict[str, float]:
        kept.append({name: tensor.clone() for name, tensor in model.state_dict().items()})
        return {"loss": next(values)}

    model = Small()
    history = fit(model, batches, BCE, scripted, settings(epochs=9, patience=2))
    assert (len(history.epochs), history.best_epoch, history.best) == (4, 2, 0.7)
    assert all(torch.equal(tensor, kept[1][name]) for name, tensor in model.state_dict().items())


def test_accumulated_batches_are_one_batch_even_if_uneven() -> None:
    def run(size: int, accumulate: int) -> Small:
        model = Small(norm=None)
        model.dropout.p = 0.0
        fit(model, lambda epoch: batches(epoch, size), BCE, evaluate, settings(accumulate=accumulate))
        return model

    # Five batches, the last of 20 rows.
    whole, parts = run(120, 1), run(25, 5)
    for left, right in zip(whole.parameters(), parts.parameters(), strict=True):
        torch.testing.assert_close(left, right, atol=2e-5, rtol=1e-4)


def test_clip_embedding_settings_and_autocast_change_the_run() -> None:
    plain = trained()[0]
    assert not same(plain, trained(settings={"autocast": True})[0])
    assert not same(plain, trained(settings={"weight_decay": 0.1})[0])
    slow = trained(settings={"embedding_learning_rate": 1e-12})[0]
    torch.testing.assert_close(slow.embedding.weight, Small().embedding.weight, atol=1e-9, rtol=0)
    steps: list[float] = []

    def norms(progress: Progress) -> None:
        steps.append(float(torch.stack([p.grad.norm() for p in model.parameters() if p.grad is not None]).norm()))

    model = Small()
    fit(model, batches, BCE, evaluate, settings(clip=0.01), on_progress=norms)
    assert max(steps) <= 0.01 * (1 + 1e-4)


@pytest.mark.parametrize("damage", ["cut", "bundle"])
def test_a_damaged_or_foreign_file_is_not_resumed(damage: str, tmp_path: Path) -> None:
    path = tmp_path / "run"
    trained(checkpoint=Checkpoint(path), settings={"epochs": 1})
    if damage == "cut":
        path.write_bytes(path.read_bytes()[:-1])
    else:
        save_model(path, ResFlow(4))
    with pytest.raises(CheckpointError, match=r"must be a (whole safetensors file|resflow-checkpoint of version 1)"):
        trained(checkpoint=Checkpoint(path))


@pytest.mark.parametrize("step", [1, 7, 8, 9, 13, 23])
def test_a_stopped_run_resumes_to_the_bit(step: int, tmp_path: Path) -> None:
    path = tmp_path / "run"
    whole, history = trained(settings={"accumulate": 1})
    asked = iter(range(10**6))
    _, first = trained(checkpoint=Checkpoint(path), stop=lambda: next(asked) == step)
    assert first.interrupted and path.is_file() and not Checkpoint(path).finished()
    torch.manual_seed(77)  # what the process has drawn since does not matter
    model, second = trained(checkpoint=Checkpoint(path))
    assert same(model, whole)
    assert second.epochs == history.epochs and second.best_epoch == history.best_epoch
    assert Checkpoint(path).finished()


KILLED = """
import os, signal, sys
sys.path.insert(0, {root!r})
from resflow_kernels.training.checkpoint import Checkpoint
from tests.support.runs import trained
def report(progress):
    if (progress.epoch, progress.step) == (2, 6) and progress.result is None and {kill}:
        os.kill(os.getpid(), signal.SIGKILL)
model, _ = trained(checkpoint=Checkpoint({path!r}, every=4), on_progress=report, settings={{"accumulate": 1}})
from safetensors.torch import save_file
save_file(model.state_dict(), {weights!r})
"""


def test_a_killed_process_resumes_to_the_bit(tmp_path: Path) -> None:
    """SIGKILL two steps after a checkpoint within an epoch; a fresh process ends as one that was not killed."""
    from safetensors.torch import load_file

    weights = str(tmp_path / "weights")

    def run(kill: bool) -> int:
        paths = {"root": str(ROOT), "path": str(tmp_path / "run"), "weights": weights}
        return subprocess.run(
            [sys.executable, "-c", KILLED.format(kill=kill, **paths)], env=dict(os.environ)
        ).returncode

    assert run(kill=True) == -signal.SIGKILL and not Path(weights).exists()
    assert run(kill=False) == 0
    whole, found = trained()[0].state_dict(), load_file(weights)
    assert all(torch.equal(found[name], tensor) for name, tensor in whole.items())
    assert sorted(path.name for path in tmp_path.iterdir()) == ["run", "weights"]  # no temporary files


def test_a_finished_run_goes_on_if_it_may_take_longer(tmp_path: Path) -> None:
    checkpoint = Checkpoint(tmp_path / "run")
    trained(checkpoint=checkpoint, settings={"epochs": 2})
    again, history = trained(checkpoint=checkpoint, settings={"epochs": 2})
    assert len(history.epochs) == 2
    longer, history = trained(checkpoint=checkpoint)
    assert len(history.epochs) == 3 and same(longer, trained()[0]) and not same(again, longer)


def test_another_run_is_not_resumed(tmp_path: Path) -> None:
    path = tmp_path / "run"
    trained(checkpoint=Checkpoint(path, identity={"data": "a"}))
    with pytest.raises(CheckpointError, match="data must be that of the run to resume, 'a', got 'b'"):
        trained(checkpoint=Checkpoint(path, identity={"data": "b"}))
    with pytest.raises(CheckpointError, match=r"settings must be .*'learning_rate': 0.01.*'learning_rate': 0.5"):
        trained(checkpoint=Checkpoint(path, identity={"data": "a"}), settings={"learning_rate": 0.5})
    with pytest.raises(CheckpointError, match="must be of this model"):
        model = Small(norm=None)
        fit(model, batches, BCE, evaluate, settings(), checkpoint=Checkpoint(path, identity={"data": "a"}))


@pytest.mark.parametrize(
    ("call", "text"),
    [
        (lambda: FitSettings(epochs=0), "epochs must be an integer of at least 1, got 0"),
        (lambda: FitSettings(learning_rate=float("nan")), "learning_rate must be above 0, got nan"),
        (lambda: FitSettings(clip=0.0), "clip must be above 0, got 0.0"),
        (lambda: FitSettings(weight_decay=-1), "weight_decay must be 0 or more, got -1"),
        (lambda: fit(Small(), batches, BCE, evaluate, FitSettings(monitor="auc")), "monitor must be one of loss"),
        (lambda: fit(Small(), lambda _: [], BCE, evaluate, settings()), r"batches\(1\) must give at least one row"),
        (
            lambda: fit(Small(), batches, BCE, lambda _: {"loss": float("nan")}, settings()),
            "'loss' must be finite, got nan in epoch 1",
        ),
        (
            lambda: fit(Small(), batches, lambda z, y: BCE(z, y) * float("nan"), evaluate, settings()),
            "the training loss must be finite, got nan in epoch 1",
        ),
    ],
)
def test_bad_input_is_named(call: Any, text: str) -> None:
    with pytest.raises(ValueError, match=text):
        call()


def test_the_package_imports_without_training() -> None:
    script = "import sys, resflow_kernels\nassert not [m for m in sys.modules if 'resflow_kernels.training' in m]"
    subprocess.run([sys.executable, "-c", script], check=True)
