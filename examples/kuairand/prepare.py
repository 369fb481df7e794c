"""The KuaiRand slice for a ranker: features, strictly nested labels, a split by date.

As files for ``resflow train examples/kuairand/train.toml``::

    python -m examples.kuairand.prepare -o out/kuairand     # train.parquet, valid.parquet, test.parquet
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import typer
from numpy.typing import NDArray

from resflow_kernels.data.features import Feature, FeatureSet

DATA = Path(__file__).parent / "data"
TASKS = ("click", "long_view", "finish")
LAST_TRAINING_DAY, LAST_VALIDATION_DAY = 20220503, 20220505

# A play of at least this share of the video is a finish: players report a few frames less than the whole.
FINISHED = 0.95

USER_CATEGORIES = (
    "user_active_degree",
    "is_live_streamer",
    "is_video_author",
    "follow_user_num_range",
    "fans_user_num_range",
    "friend_user_num_range",
    "register_days_range",
    *(f"onehot_feat{position}" for position in range(18)),
)
USER_NUMBERS = ("follow_user_num", "fans_user_num", "friend_user_num", "register_days")
VIDEO_CATEGORIES = ("author_id", "video_type", "upload_type", "music_id", "music_type")

# An id seen fewer times in the training days shares the vector of unknown ids, which these ids train.
MIN_COUNT = {"user_id": 3, "video_id": 3, "author_id": 3, "music_id": 3}


@dataclass(frozen=True)
class Impressions:
    """Impressions of some days of the log."""

    table: pa.Table  # user, context and video columns, one row per impression
    labels: NDArray[np.float32]  # [n, 3], TASKS
    likes: NDArray[np.float32]  # [n], click and like
    watched: NDArray[np.float32]  # [n], play time over duration, NaN where the duration is unknown

    def __len__(self) -> int:
        return len(self.labels)

    def part(self, first: int, count: int) -> Impressions:
        """At most ``count`` impressions from position ``first`` on."""
        own = slice(first, first + count)
        return Impressions(self.table.slice(first, count), self.labels[own], self.likes[own], self.watched[own])


@dataclass(frozen=True)
class Slice:
    """The data, split by date."""

    train: Impressions
    valid: Impressions
    test: Impressions
    videos: pa.Table  # the catalog


def feature_set(width: int) -> FeatureSet:
    """The unfitted features, none of them an outcome, each with an embedding of ``width``."""
    user = [Feature(name, width, "id") for name in ("user_id", *USER_CATEGORIES, "tab", "hour")]
    user += [Feature(name, width, "bucket") for name in USER_NUMBERS]
    video = [Feature(name, width, "id") for name in ("video_id", *VIDEO_CATEGORIES)]
    video += [Feature("tags", width, "ids"), Feature("video_duration", width, "bucket")]
    return FeatureSet(tuple(user), tuple(video), "user_id", "video_id")


def load(folder: Path = DATA) -> Slice:
    """Read the slice: train to 05-03, validation 05-04 and 05-05, test 05-06 to 05-08."""
    log = pq.read_table(folder / "log_standard_4_25_to_5_08.parquet")
    users = _users(pq.read_table(folder / "user_features.parquet"))
    videos = _videos(pq.read_table(folder / "video_features_basic.parquet"))
    table, labels = _join(log, users, videos), _labels(log)
    likes = labels[:, 0] * (log["is_like"].to_numpy() > 0)
    watched = _watched(log)
    date = log["date"].to_numpy()

    def days(chosen: NDArray[np.bool_]) -> Impressions:
        return Impressions(table.filter(pa.array(chosen)), labels[chosen], likes[chosen], watched[chosen])

    return Slice(
        days(date <= LAST_TRAINING_DAY),
        days((date > LAST_TRAINING_DAY) & (date <= LAST_VALIDATION_DAY)),
        days(date > LAST_VALIDATION_DAY),
        videos,
    )


def labelled(days: Impressions) -> pa.Table:
    """Some days' columns and their labels, one column per task."""
    table = days.table
    for task, column in zip(TASKS, days.labels.T, strict=True):
        table = table.append_column(task, pa.array(column.astype("int8")))
    return table


def write(
    output: Annotated[Path, typer.Option("--output", "-o", help="The folder to write to.")] = Path("out/kuairand"),
) -> None:
    """Write the training, validation and test days as Parquet, with their labels."""
    output.mkdir(parents=True, exist_ok=True)
    data = load()
    for name in ("train", "valid", "test"):
        # Row groups are the units that training shuffles and divides among processes.
        pq.write_table(labelled(getattr(data, name)), output / f"{name}.parquet", row_group_size=8192)


def requests(days: Impressions, count: int, seed: int = 0) -> tuple[pa.Table, pa.Table]:
    """Users to rank the catalog for, and the videos that they finished.

    Args:
        days: the source of the users and their finishes.
        count: largest number of users, drawn from those who finished something.
        seed: seed of the draw.

    Returns:
        The users, one row each with tab and hour of their first impression; and ``user_id``, ``video_id``,
        ``weight``: the number of times the user finished the video.
    """
    ids = days.table["user_id"].to_numpy()
    finished = days.labels[:, TASKS.index("finish")] > 0
    candidates = np.unique(ids[finished])
    drawn = np.random.default_rng(seed).choice(candidates, min(count, len(candidates)), replace=False)
    chosen = np.sort(drawn)
    firsts = np.unique(ids, return_index=True)
    rows = firsts[1][np.searchsorted(firsts[0], chosen)]
    columns = [name for name in days.table.column_names if name not in _video_columns()]
    finishes = days.table.select(["user_id", "video_id"]).filter(pa.array(finished & np.isin(ids, chosen)))
    weights = finishes.group_by(["user_id", "video_id"], use_threads=False).aggregate([([], "count_all")])
    return days.table.select(columns).take(pa.array(rows)), weights.rename_columns(["user_id", "video_id", "weight"])


def _video_columns() -> set[str]:
    return {feature.name for feature in feature_set(1).item}


def _users(table: pa.Table) -> pa.Table:
    return _whole(table.select(["user_id", *USER_NUMBERS, *USER_CATEGORIES]), USER_CATEGORIES)


def _videos(table: pa.Table) -> pa.Table:
    """The catalog's columns, with tags (``"12,39"``) as lists."""
    tags = pc.split_pattern(table["tag"].cast(pa.string()), ",")
    return _whole(table.select(["video_id", *VIDEO_CATEGORIES, "video_duration"]), VIDEO_CATEGORIES).append_column(
        "tags", tags
    )


def _whole(table: pa.Table, categories: tuple[str, ...]) -> pa.Table:
    """The table with numbered categories as int64: those with nulls are stored as doubles."""
    for name in categories:
        if pa.types.is_floating(table[name].type):
            table = table.set_column(table.column_names.index(name), name, table[name].cast(pa.int64()))
    return table


def _join(log: pa.Table, users: pa.Table, videos: pa.Table) -> pa.Table:
    """User, context and video columns of every impression, ids and categories as int64 or strings."""
    user = users.take(_places(log["user_id"], users["user_id"]))
    video = videos.take(_places(log["video_id"], videos["video_id"]))
    hour = pc.divide(log["hourmin"].cast(pa.int64()), 100)
    context = pa.table({"tab": log["tab"].cast(pa.int64()), "hour": hour})
    columns = {name: part[name] for part in (user, context, video) for name in part.column_names}
    return pa.table(columns)


def _places(ids: pa.ChunkedArray, known: pa.ChunkedArray) -> pa.ChunkedArray:
    places = pc.index_in(ids.cast(known.type), value_set=known.combine_chunks())
    if places.null_count:
        raise ValueError(f"the log must name known users and videos only, got {places.null_count} others")
    return places


def _labels(log: pa.Table) -> NDArray[np.float32]:
    """click; click and long view; click, long view and finish: each label implies the one before."""
    click = log["is_click"].to_numpy() > 0
    long_view = click & (log["long_view"].to_numpy() > 0)
    finish = long_view & (_watched(log) >= FINISHED)
    return np.stack((click, long_view, finish), axis=1).astype(np.float32)


def _watched(log: pa.Table) -> NDArray[np.float32]:
    """Play time over duration; more than 1 if a video was replayed."""
    played, duration = (log[name].to_numpy().astype(np.float64) for name in ("play_time_ms", "duration_ms"))
    known = duration > 0
    return np.divide(played, duration, out=np.full(len(played), np.nan), where=known).astype(np.float32)


if __name__ == "__main__":
    typer.run(write)
