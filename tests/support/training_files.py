"""Small files to train on, and a configuration for them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq

CONFIG = """
[data]
train = "{folder}/train-*.{format}"
valid = "{folder}/valid.{format}"
test = "{folder}/test.{format}"
request_id = "user"
item_id = "video"

[features]
dim = 4
user = ["user", {{ name = "age", kind = "bucket", buckets = 5 }}]
item = [{{ name = "video", min_count = 2, dim = 3 }}, {{ name = "tags", kind = "ids" }}]

[tasks]
names = ["click", "order"]
nested = true

[towers]
hidden = [8, 4]
non_increasing = true

[fusion]
weights = [1, 20]

[training]
batch = 64
epochs = 3
learning_rate = 0.01
dropout = 0.1

[output]
bundle = "{out}/model.safetensors"
checkpoint = "{out}/run"
checkpoint_every = 5
"""


def log(rows: int, seed: int) -> pa.Table:
    """Impressions whose clicks depend on the video and whose orders, after a click or not, on the user's age."""
    rng = np.random.default_rng(seed)
    user, video, age = rng.integers(0, 30, rows), rng.integers(0, 40, rows), rng.random(rows) * 60
    columns = {
        "user": user,
        "age": age,
        "video": [f"v{v}" for v in video],
        "tags": [[f"t{v % 4}"] * int(v % 3) for v in video],
        "click": (rng.random(rows) < 0.1 + 0.15 * (video % 5)).astype(np.int8),
        "order": (rng.random(rows) < 0.2 + 0.5 * (age > 30)).astype(np.int8),
    }
    return pa.table(columns)


def write(folder: Path, out: Path, kind: str = "parquet") -> str:
    """Write the files and return a configuration's text."""
    parts = {"train-0": log(700, 0), "train-1": log(500, 1), "valid": log(400, 2), "test": log(400, 3)}
    for name, table in parts.items():
        if kind == "csv":
            tags = pa.array(["|".join(tags) or None for tags in table["tags"].to_pylist()])
            pa.csv.write_csv(table.set_column(3, "tags", tags), folder / f"{name}.csv")
        else:
            pq.write_table(table, folder / f"{name}.parquet", row_group_size=150)
    return CONFIG.format(folder=folder, out=out, format=kind)
