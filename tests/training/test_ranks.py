"""Two processes under torchrun, with gloo: the weights of one process on all rows, whatever the ranks' shares."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from itertools import zip_longest
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors import safe_open
from safetensors.torch import load_file

from resflow_kernels import Scorer
from resflow_kernels.training import ranks
from resflow_kernels.training.loop import Batch, fit
from tests.support import training_files

TWO = Path(__file__).with_name("two_ranks.py")


def torchrun(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", *arguments]
    path = os.pathsep.join(filter(None, (str(TWO.parents[2]), os.environ.get("PYTHONPATH"))))
    environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", "COLUMNS": "200"}
    return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=120)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The weights of the runs of ``two_ranks.py``."""
    folder = tmp_path_factory.mktemp("ranks")
    done = torchrun(str(TWO), str(folder))
    assert done.returncode == 0, done.stderr[-3000:]
    return folder


@pytest.mark.parametrize(("name", "accumulate"), [("plain", 1), ("accumulated", 2)])
def test_two_uneven_ranks_are_one_process_on_all_rows(name: str, accumulate: int, folder: Path) -> None:
    spec = importlib.util.spec_from_file_location("two_ranks", TWO)
    assert spec is not None and spec.loader is not None
    two = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(two)

    def joined(epoch: int) -> list[Batch]:
        """What the ranks read in each step, as one batch."""
        shares = [list(two.batches(epoch, rank)) for rank in (0, 1)]
        groups = [[share[at : at + accumulate] for at in range(0, len(share), accumulate)] for share in shares]
        steps = [[*a, *b] for a, b in zip_longest(*groups, fillvalue=[])]
        return [Batch(*(torch.cat(parts) for parts in zip(*step, strict=True))) for step in steps]

    model = two.Model(0.0)
    fit(model, joined, F.binary_cross_entropy_with_logits, two.evaluate, two.settings())
    found = load_file(folder / f"{name}.safetensors")
    for key, tensor in model.state_dict().items():
        torch.testing.assert_close(found[key], tensor, atol=1e-5, rtol=1e-4)
    assert not torch.equal(found["towers.heads.0.weight"], two.Model(0.0).towers.heads[0].weight)


def test_a_run_of_two_ranks_resumes_to_the_bit(folder: Path) -> None:
    """With each rank's own dropout masks."""
    whole, resumed = (load_file(folder / f"{name}.safetensors") for name in ("dropout", "resumed"))
    assert all(torch.equal(whole[name], tensor) for name, tensor in resumed.items())
    assert not torch.equal(
        whole["towers.heads.0.weight"], load_file(folder / "plain.safetensors")["towers.heads.0.weight"]
    )


def test_another_number_of_ranks_does_not_resume(folder: Path) -> None:
    with safe_open(folder / "plain.run", "pt") as file:
        states = {name.removeprefix("random."): file.get_tensor(name) for name in file.keys() if "random." in name}  # noqa: SIM118
    assert states["torch"].shape[0] == 2
    with pytest.raises(ValueError, match=r"resumed with as many ranks as wrote it \(2\), got 1"):
        ranks.set_random_states(torch.device("cpu"), states)


def test_the_command_trains_on_two_ranks(tmp_path: Path) -> None:
    config = tmp_path / "train.toml"
    config.write_text(training_files.write(tmp_path, tmp_path / "out"))
    done = torchrun("-m", "resflow_kernels.cli", "train", str(config))
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count("epoch 1:") == 1 and done.stdout.count("wrote") == 1  # rank 0 speaks
    assert Scorer.load(tmp_path / "out/model.safetensors").tasks == ("click", "order")
