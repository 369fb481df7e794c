"""The processes that train together: this one's rank, and the small sums they share; trivial for a single process."""

from __future__ import annotations

import gc
import math
import random

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor


def rank() -> int:
    """This process's rank, from 0."""
    return dist.get_rank() if _together() else 0


def count() -> int:
    """Number of processes."""
    return dist.get_world_size() if _together() else 1


def added(device: torch.device, *numbers: int) -> tuple[int, ...]:
    """The sum of each number over the ranks."""
    if count() == 1:
        return numbers
    return tuple(int(number) for number in summed(torch.tensor(numbers, device=device)).tolist())


def summed(tensor: Tensor) -> Tensor:
    """The sum of a tensor over the ranks."""
    total = tensor.clone()
    if count() > 1:
        dist.all_reduce(total)
    return total


def from_first(device: torch.device, number: float) -> float:
    """Rank 0's number, on every rank."""
    if count() == 1:
        return number
    shared = torch.tensor([number], dtype=torch.float64, device=device)
    dist.broadcast(shared, 0)
    return float(shared)


def join(backend: str) -> None:
    """Connect to the other processes that ``torchrun`` started."""
    dist.init_process_group(backend)


def leave() -> None:
    """Leave the process group together with the other ranks: a group whose peers are gone may abort the process."""
    gc.collect()  # a DistributedDataParallel in a reference cycle would outlive the group it uses
    dist.barrier()
    dist.destroy_process_group()


def barrier() -> None:
    """Wait for all ranks."""
    if count() > 1:
        dist.barrier()


def random_states(device: torch.device) -> dict[str, Tensor]:
    """Every rank's generator states as numbers, ``[ranks, n]`` by generator; collective."""
    states = {"torch": torch.get_rng_state(), "python": _python_state(), "numpy": _numpy_state()}
    if device.type == "cuda":
        states["cuda"] = torch.cuda.get_rng_state(device)
    return {name: _gathered(device, state) for name, state in states.items()}


def set_random_states(device: torch.device, states: dict[str, Tensor]) -> None:
    """Restore this rank's generators to the states that :func:`random_states` returned.

    Raises:
        ValueError: states of another number of ranks, or of another kind of device.
    """
    ranks = len(states["torch"])
    if ranks != count():
        raise ValueError(f"the checkpoint must be resumed with as many ranks as wrote it ({ranks}), got {count()}")
    if ("cuda" in states) != (device.type == "cuda"):
        wrote = "cuda" if "cuda" in states else "the CPU"
        raise ValueError(f"the checkpoint must be resumed on the device it was written on ({wrote}), got {device}")
    # Cloned because set_rng_state reads a tensor's memory from its storage's start, and misreads a row of a matrix.
    own = {name: state[rank()].clone() for name, state in states.items()}
    torch.set_rng_state(own["torch"])
    if "cuda" in own:
        torch.cuda.set_rng_state(own["cuda"], device)
    *words, gauss = own["python"].tolist()
    random.setstate((3, tuple(map(int, words)), None if math.isnan(gauss) else gauss))
    key, (place, has_gauss, cached) = own["numpy"][:-3].numpy(), own["numpy"][-3:].tolist()
    np.random.set_state(("MT19937", key.astype(np.uint32), int(place), int(has_gauss), cached))


def _together() -> bool:
    return dist.is_available() and dist.is_initialized()


def _gathered(device: torch.device, tensor: Tensor) -> Tensor:
    if count() == 1:
        return tensor[None].clone()
    shared = tensor.to(device if dist.get_backend() == "nccl" else "cpu")
    parts = [torch.empty_like(shared) for _ in range(count())]
    dist.all_gather(parts, shared)
    return torch.stack(parts).cpu()


def _python_state() -> Tensor:
    """32-bit words and the second half of a normal pair (NaN: none); float64 can hold all of them."""
    _, words, gauss = random.getstate()
    return torch.tensor([*words, math.nan if gauss is None else gauss], dtype=torch.float64)


def _numpy_state() -> Tensor:
    _, key, place, has_gauss, cached = np.random.get_state()
    return torch.from_numpy(np.append(np.asarray(key, np.float64), [place, has_gauss, cached]))
