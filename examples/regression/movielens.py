"""Ratings from 1 to 5 stars: MovieLens-1M, read from the folder that ``RESFLOW_ML1M`` names.

The data may not be redistributed, so none of it is here: https://grouplens.org/datasets/movielens/1m/. The folder holds
``ratings``, ``users`` and ``movies`` as Parquet, with the columns that the README lists.
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray

from examples.experiments.data import Encoded, Split
from resflow_kernels.data.features import Feature, FeatureSet
from resflow_kernels.training.ranker import encode_rows

from .problem import Problem

VARIABLE = "RESFLOW_ML1M"
WIDTH = 16  # of each feature's embedding
THRESHOLDS = (1.5, 2.5, 3.5, 4.5)
STARS = (1.0, 2.0, 3.0, 4.0, 5.0)
SPLIT_SEED = 0


def folder() -> Path | None:
    """The folder of the data, if the environment names it."""
    return Path(os.environ[VARIABLE]) if os.environ.get(VARIABLE) else None


def load(source: Path, rows: int = 0) -> Problem:
    """Ratings, split 80/10/10 within each user.

    Args:
        source: the folder of the Parquet files.
        rows: read only this many ratings; 0: all.

    Raises:
        ValueError: a file is missing.
    """
    missing = [name for name in ("ratings", "users", "movies") if not (source / f"{name}.parquet").is_file()]
    if missing:
        raise ValueError(f"{VARIABLE} must name a folder with {', '.join(f'{one}.parquet' for one in missing)}")
    ratings = pq.read_table(source / "ratings.parquet")
    ratings = ratings.slice(0, rows) if rows else ratings
    users = _users(pq.read_table(source / "users.parquet"))
    movies = _movies(pq.read_table(source / "movies.parquet"))
    features = _features().fit(users, movies)
    user, item = encode_rows(features.user, users), encode_rows(features.item, movies)
    at_user = _places(ratings["user_id"], users["user_id"])
    at_item = _places(ratings["movie_id"], movies["movie_id"])
    encoded = {name: one[at_user] for name, one in user.items()} | {name: one[at_item] for name, one in item.items()}
    stars = torch.from_numpy(ratings["rating"].to_numpy().astype(np.float32))[:, None]
    data, part = Encoded(encoded, stars), parts(ratings["user_id"].to_numpy())
    train, valid, test = (Encoded(*data.batch(torch.from_numpy(np.flatnonzero(part == at)))) for at in range(3))
    return Problem(Split(features, train, valid, test), THRESHOLDS, STARS)


def parts(users: NDArray[np.integer], seed: int = SPLIT_SEED) -> NDArray[np.int64]:
    """The part of each rating: 0 for 80 % of each user's ratings, drawn at random, 1 and 2 for 10 % each.

    A user of ``n`` ratings has ``floor(n / 10)`` in each of the parts 1 and 2.
    """
    order = np.lexsort((np.random.default_rng(seed).random(len(users)), users))
    _, first, counts = np.unique(users[order], return_index=True, return_counts=True)
    place = np.arange(len(users)) - np.repeat(first, counts)  # position within the user's ratings, in the drawn order
    tenth = np.repeat(counts // 10, counts)
    part = np.zeros(len(users), np.int64)
    part[order] = np.select([place < tenth, place < 2 * tenth], [1, 2], 0)
    return part


def _features() -> FeatureSet:
    user = [Feature(name, WIDTH, "id") for name in ("user_id", "gender", "age", "occupation", "region")]
    item = [Feature("movie_id", WIDTH, "id"), Feature("genres", WIDTH, "ids"), Feature("year", WIDTH, "bucket")]
    return FeatureSet(tuple(user), tuple(item), "user_id", "movie_id")


def _users(table: pa.Table) -> pa.Table:
    """User columns, with the first three digits of the ZIP code."""
    region = pc.utf8_slice_codeunits(table["zipcode"].cast(pa.string()), 0, 3)
    columns = {name: table[name] for name in ("gender", "age", "occupation")}
    return pa.table({"user_id": table["userID"], **columns, "region": region})


def _movies(table: pa.Table) -> pa.Table:
    """Movie columns; genres (``"Action|Drama"``) as lists, the year from the end of the title (``"Heat (1995)"``)."""
    year = pc.struct_field(pc.extract_regex(table["title"], r"\((?P<year>\d{4})\)\s*$"), "year").cast(pa.float64())
    return pa.table({"movie_id": table["movieID"], "genres": pc.split_pattern(table["genres"], "|"), "year": year})


def _places(ids: pa.ChunkedArray, known: pa.ChunkedArray) -> torch.Tensor:
    places = pc.index_in(ids.cast(known.type), value_set=known.combine_chunks())
    if places.null_count:
        raise ValueError(f"ratings must name known users and movies only, got {places.null_count} others")
    return torch.from_numpy(places.to_numpy().astype(np.int64))
