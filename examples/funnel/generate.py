"""Write the shop's traffic as Parquet, one block of rows at a time::

    python -m examples.funnel.generate -o out/funnel --rows 2000000

``impressions.parquet`` has one row per exposure (user_id, item_id, click, cart, order and the true p_click, p_cart,
p_order); ``users.parquet`` and ``items.parquet`` have the observed properties of each. ``settings.json`` reproduces the
same world.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import typer
from rich.console import Console
from rich.progress import track

from .world import TASKS, Settings, World

BLOCK = 100_000  # rows in a Parquet row group, and in memory at once

console = Console()


def generate(
    output: Annotated[Path, typer.Option("--output", "-o", help="The folder to write.")] = Path("out/funnel"),
    rows: Annotated[int, typer.Option(min=1, help="Exposures.")] = 2_000_000,
    users: Annotated[int, typer.Option(min=1)] = Settings.users,
    items: Annotated[int, typer.Option(min=1)] = Settings.items,
    factors: Annotated[int, typer.Option(min=1, help="Length of the latent vectors.")] = Settings.factors,
    click_rate: Annotated[float, typer.Option(help="Share of exposures that are clicked.")] = Settings.rates[0],
    cart_rate: Annotated[float, typer.Option(help="Share that end in the cart.")] = Settings.rates[1],
    order_rate: Annotated[float, typer.Option(help="Share that are ordered.")] = Settings.rates[2],
    relatedness: Annotated[float, typer.Option(help="0: unrelated tasks, 1: the same taste.")] = Settings.relatedness,
    noise: Annotated[float, typer.Option(min=0, help="Of the observed factors.")] = Settings.noise,
    seed: Annotated[int, typer.Option(help="Of everything.")] = Settings.seed,
) -> None:
    """Generate click -> cart -> order traffic with known probabilities."""
    rates = (click_rate, cart_rate, order_rate)
    write(Settings(users, items, factors, rates, relatedness, noise=noise, seed=seed), rows, output)


def write(settings: Settings, rows: int, folder: Path) -> None:
    """Write a world's files; settings.json is the last, so a folder that has it is complete."""
    world = World(settings)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "settings.json").unlink(missing_ok=True)
    pq.write_table(observed(world.user_observed, "user"), folder / "users.parquet")
    pq.write_table(observed(world.item_observed, "item"), folder / "items.parquet")
    counts = np.zeros(len(TASKS), np.int64)
    with pq.ParquetWriter(folder / "impressions.parquet", _schema()) as writer:
        for block in track(blocks(world, rows), "generating", -(-rows // BLOCK), console=console):
            writer.write_table(block)
            counts += [int(np.sum(block[task].to_numpy())) for task in TASKS]
    (folder / "settings.json").write_text(json.dumps({"rows": rows, **asdict(settings)}, indent=2) + "\n")
    shares = ", ".join(f"{count:,} {task} ({count / rows:.3%})" for task, count in zip(TASKS, counts, strict=True))
    console.print(f"wrote {rows:,} exposures to {folder}: {shares}")


def blocks(world: World, rows: int) -> Iterator[pa.Table]:
    """The traffic, at most :data:`BLOCK` rows at a time; a block depends only on the seed and its number."""
    for number, start in enumerate(range(0, rows, BLOCK)):
        rng = np.random.default_rng((world.settings.seed, 2, number))
        users, items = world.expose(rng, BLOCK)
        happened, truth = world.outcomes(rng, users, items), world.probabilities(users, items)
        columns = {"user_id": users, "item_id": items}
        columns |= {task: happened[:, at].astype(np.int8) for at, task in enumerate(TASKS)}
        columns |= {f"p_{task}": truth[:, at].astype(np.float32) for at, task in enumerate(TASKS)}
        yield pa.table(columns, schema=_schema()).slice(0, min(BLOCK, rows - start))


def observed(factors: np.ndarray, side: str) -> pa.Table:
    """The observed properties of users or items: their number and their noisy factors."""
    columns = {f"{side}_id": np.arange(len(factors))}
    columns |= {f"{side}_x{at}": column.astype(np.float32) for at, column in enumerate(factors.T)}
    return pa.table(columns)


def open_world(folder: Path) -> World:
    """The world that a folder's traffic comes from.

    Raises:
        ValueError: the folder was not written by :func:`write`, or not completely.
    """
    path = folder / "settings.json"
    if not path.is_file():
        raise ValueError(f"folder must hold settings.json (python -m examples.funnel.generate writes it), got {folder}")
    stored = json.loads(path.read_text())
    stored.pop("rows")
    return World(Settings(**{**stored, "rates": tuple(stored["rates"])}))


def _schema() -> pa.Schema:
    ids = [(name, pa.int64()) for name in ("user_id", "item_id")]
    return pa.schema([*ids, *((task, pa.int8()) for task in TASKS), *((f"p_{task}", pa.float32()) for task in TASKS)])


if __name__ == "__main__":
    typer.run(generate)
