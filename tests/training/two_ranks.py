"""What :mod:`test_ranks` runs on each of two ranks: ``torchrun two_ranks.py FOLDER``."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import torch
import torch.distributed as dist
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import nn

from resflow_kernels import ResFlow
from resflow_kernels.training import ranks
from resflow_kernels.training.checkpoint import Checkpoint
from resflow_kernels.training.loop import Batch, fit
from resflow_kernels.training.settings import FitSettings

SIZES = ((16, 16, 16, 7), (16, 5), (16, 16, 9), (16, 16, 16))  # of each rank's batches: epoch 1's, then epoch 2's
EPOCHS = 2


class Model(nn.Module):
    """Towers behind dropout, without a BatchNorm: its statistics are of each rank's own rows."""

    def __init__(self, dropout: float) -> None:
        super().__init__()
        torch.manual_seed(4)
        self.dropout, self.towers = nn.Dropout(dropout), ResFlow(6, (5, 4), norm=None)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.towers(self.dropout(x)).logits
        return logits


def batches(epoch: int, rank: int) -> Iterator[Batch]:
    """A rank's batches of an epoch; the ranks have different numbers of them."""
    generator = torch.Generator().manual_seed(10 * epoch + rank)
    for size in SIZES[2 * (epoch - 1) + rank]:
        x = torch.randn(size, 6, generator=generator)
        yield Batch(x, (x[:, :2] > 0.3).float())


def evaluate(model: nn.Module) -> dict[str, float]:
    """Rank 0's alone."""
    assert ranks.rank() == 0
    return {"loss": -sum(float(F.binary_cross_entropy_with_logits(model(b.inputs), b.labels)) for b in batches(1, 0))}


def settings(accumulate: int = 1) -> FitSettings:
    """Of all the runs."""
    return FitSettings(EPOCHS, 9, 0.02, clip=0.5, monitor="loss", accumulate=accumulate)


def main(folder: Path) -> None:
    """Train plainly, with accumulation, and with dropout in one go and resumed; rank 0 saves the weights."""
    ranks.join("gloo")
    rank = dist.get_rank()

    def run(name: str, dropout: float = 0.0, accumulate: int = 1, stop_after: int | None = None) -> None:
        model, asked = Model(dropout), iter(range(10**6))
        # Only one of the ranks is asked to stop: they must agree.
        stop = (lambda: rank == 1 and next(asked) == stop_after) if stop_after is not None else None
        checkpoint = Checkpoint(folder / f"{name}.run", every=2)
        history = fit(
            model,
            lambda epoch: batches(epoch, rank),
            F.binary_cross_entropy_with_logits,
            evaluate,
            settings(accumulate),
            checkpoint=checkpoint,
            stop=stop,
        )
        assert history.interrupted == (stop_after is not None)
        assert len(history.epochs) == (EPOCHS if stop_after is None else stop_after // 4)
        assert all(result.metrics.keys() == {"loss"} for result in history.epochs)
        same = [torch.empty_like(tensor) for tensor in model.state_dict().values()]
        for copy, tensor in zip(same, model.state_dict().values(), strict=True):
            copy.copy_(tensor)
            dist.broadcast(copy, 0)
            assert torch.equal(copy, tensor), "the ranks' weights differ"
        if rank == 0:
            save_file(model.state_dict(), folder / f"{name}.safetensors")
        dist.barrier()

    run("plain")
    run("accumulated", accumulate=2)
    run("dropout", dropout=0.4)
    run("resumed", dropout=0.4, stop_after=3)  # where rank 1 has run out of batches
    run("resumed", dropout=0.4)
    ranks.leave()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
