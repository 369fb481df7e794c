"""The shop's traffic for a ranker: features, labels and true probabilities, in three parts."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray
from torch import Tensor

from examples.experiments.catalog import Requests
from examples.experiments.data import Encoded, Split
from resflow_kernels.data.features import Feature, FeatureSet
from resflow_kernels.training.ranker import encode_rows

from .generate import open_world
from .world import TASKS, World

WIDTH = 8  # of each feature's embedding
VALID, TEST = 0.15, 0.25  # shares of the exposures, at the end; earlier ones are for training


@dataclass(frozen=True)
class Traffic:
    """The encoded content of a folder written by :mod:`.generate`.

    Args:
        split: the exposures in their order.
        truth: ``[n, K]`` true probabilities of the test part.
        world: the world that they come from.
        users: rows of all users' features.
        items: rows of all items' features.
    """

    split: Split
    truth: NDArray[np.float32]
    world: World
    users: dict[str, Tensor]
    items: dict[str, Tensor]

    def requests(self, count: int) -> Requests:
        """Users, evenly spaced, who rank all items; feedback is the expected number of orders, one exposure each."""
        world = self.world.settings
        chosen = np.linspace(0, world.users - 1, min(count, world.users)).astype(np.int64)
        everything = np.arange(world.items)
        orders = [self.world.probabilities(np.full(world.items, user), everything)[:, -1] for user in chosen]
        user = {name: rows[torch.from_numpy(chosen)] for name, rows in self.users.items()}
        return Requests(user, self.items, np.stack(orders))


def load(folder: Path, rows: int = 0) -> Traffic:
    """Read a folder that :mod:`.generate` wrote.

    Args:
        folder: the folder of the files.
        rows: read only this many exposures; 0: all.

    Raises:
        ValueError: the folder is incomplete.
    """
    world = open_world(folder)
    users, items, log = (pq.read_table(folder / f"{name}.parquet") for name in ("users", "items", "impressions"))
    log = log.slice(0, rows) if rows else log
    features = _features(world, users, items)
    user, item = encode_rows(features.user, users), encode_rows(features.item, items)
    at = {side: torch.from_numpy(log[f"{side}_id"].to_numpy().copy()) for side in ("user", "item")}
    encoded = {name: one[at["user"]] for name, one in user.items()}
    encoded |= {name: one[at["item"]] for name, one in item.items()}
    data = Encoded(encoded, torch.from_numpy(_columns(log, TASKS)))
    bounds = [0, round(len(data) * (1 - VALID - TEST)), round(len(data) * (1 - TEST)), len(data)]
    train, valid, test = (Encoded(*data.batch(slice(*bounds[part : part + 2]))) for part in range(3))
    truth = _columns(log.slice(bounds[2]), [f"p_{task}" for task in TASKS])
    return Traffic(Split(features, train, valid, test), truth, world, user, item)


def _features(world: World, users: pa.Table, items: pa.Table) -> FeatureSet:
    def side(name: str) -> tuple[Feature, ...]:
        factors = (Feature(f"{name}_x{at}", WIDTH, "bucket") for at in range(world.settings.factors))
        return (Feature(f"{name}_id", WIDTH, "id"), *factors)

    return FeatureSet(side("user"), side("item"), "user_id", "item_id").fit(users, items)


def _columns(table: pa.Table, names: tuple[str, ...] | list[str]) -> NDArray[np.float32]:
    return np.stack([table[name].to_numpy().astype(np.float32) for name in names], axis=1)
