"""A made-up shop whose probabilities of click, cart and order are known: the formulas are in README.md."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

TASKS = ("click", "cart", "order")

Floats = NDArray[np.float64]
Indices = NDArray[np.int64]

# Number of exposures for calibrating the intercepts: enough to meet a rate of 0.1 % within a few percent of itself.
_CALIBRATION_ROWS = 400_000


@dataclass(frozen=True)
class Settings:
    """The properties of the shop.

    Args:
        users: number of users; all are equally active.
        items: number of items.
        factors: length of a user's and an item's latent vector.
        rates: the share of exposures that are clicked, carted, ordered: descending, each in (0, 1).
        relatedness: expected cosine between two tasks' directions, 0 (unrelated tastes) to 1 (the same).
        user_effect: standard deviation of the user's term in a step's logit.
        item_effect: standard deviation of the item's term.
        match_effect: standard deviation of the term of both.
        noise: standard deviation of the noise that is added to a factor before it is observed.
        popularity: an item is exposed in proportion to ``(rank + 10) ** -popularity``.
        seed: the seed of everything.

    Raises:
        ValueError: rates that do not descend within (0, 1), or a relatedness outside 0 to 1.
    """

    users: int = 20_000
    items: int = 5_000
    factors: int = 6
    rates: tuple[float, ...] = (0.05, 0.005, 0.001)
    relatedness: float = 0.7
    user_effect: float = 0.4
    item_effect: float = 0.5
    match_effect: float = 0.7
    noise: float = 0.5
    popularity: float = 0.7
    seed: int = 0

    def __post_init__(self) -> None:
        bounds = (1.0, *self.rates, 0.0)
        descending = all(a > b for a, b in pairwise(bounds))
        if len(self.rates) != len(TASKS) or not descending:
            raise ValueError(f"rates must be {len(TASKS)} descending numbers between 0 and 1, got {self.rates}")
        if not 0 <= self.relatedness <= 1:
            raise ValueError(f"relatedness must be from 0 to 1, got {self.relatedness}")


class World:
    """The shop: latent factors, task directions, and intercepts that meet the rates.

    Args:
        settings: the shop's properties; equal settings make equal worlds.

    Example:
        >>> world = World(Settings(users=100, items=50))
        >>> world.probabilities(np.array([3]), np.array([7])).shape
        (1, 3)
    """

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        rng = np.random.default_rng((settings.seed, 0))
        self.user_factors: Floats = rng.standard_normal((settings.users, settings.factors))
        self.item_factors: Floats = rng.standard_normal((settings.items, settings.factors))
        self._user_directions = self._directions(rng, settings.user_effect)
        self._item_directions = self._directions(rng, settings.item_effect)
        self._match_directions = self._directions(rng, settings.match_effect)
        self.user_observed = self._observe(rng, self.user_factors)
        self.item_observed = self._observe(rng, self.item_factors)
        weights = (np.arange(settings.items) + 10.0) ** -settings.popularity
        self._exposure = np.cumsum(weights / weights.sum())
        self.intercepts = self._calibrated()

    def expose(self, rng: np.random.Generator, rows: int) -> tuple[Indices, Indices]:
        """Draw exposures: ``rows`` user numbers and item numbers, independent of each other."""
        users = rng.integers(0, self.settings.users, rows)
        items = np.searchsorted(self._exposure, rng.random(rows), side="right")
        return users, np.minimum(items, self.settings.items - 1)

    def step_logits(self, users: Indices, items: Indices) -> Floats:
        """Logits ``[n, K]`` of each step given that the step before it happened."""
        return self._affinity(users, items) + self.intercepts

    def probabilities(self, users: Indices, items: Indices) -> Floats:
        """True probabilities ``[n, K]``: of a click, of a click and a cart, of all three."""
        return np.asarray(np.cumprod(_sigmoid(self.step_logits(users, items)), axis=1), np.float64)

    def outcomes(self, rng: np.random.Generator, users: Indices, items: Indices) -> NDArray[np.bool_]:
        """Draw what happens, ``[n, K]``: each step only after the one before it."""
        steps = rng.random((len(users), len(TASKS))) < _sigmoid(self.step_logits(users, items))
        return np.logical_and.accumulate(steps, axis=1)

    def _directions(self, rng: np.random.Generator, effect: float) -> Floats:
        """``[K, factors]``, rows of length ``effect``: a part that the tasks share and one of their own."""
        shared, own = (_unit(rng.standard_normal((rows, self.settings.factors))) for rows in (1, len(TASKS)))
        relatedness = self.settings.relatedness
        return effect * _unit(np.sqrt(relatedness) * shared + np.sqrt(1 - relatedness) * own)

    def _observe(self, rng: np.random.Generator, factors: Floats) -> Floats:
        return factors + self.settings.noise * rng.standard_normal(factors.shape)

    def _affinity(self, users: Indices, items: Indices) -> Floats:
        user, item = self.user_factors[users], self.item_factors[items]
        return (
            user @ self._user_directions.T + item @ self._item_directions.T + (user * item) @ self._match_directions.T
        )

    def _calibrated(self) -> Floats:
        """Intercepts ``[K]``, each found by bisection once those before it are."""
        affinity = self._affinity(*self.expose(np.random.default_rng((self.settings.seed, 1)), _CALIBRATION_ROWS))
        reached = np.ones(len(affinity))
        intercepts = []
        for task, rate in enumerate(self.settings.rates):
            low, high = -30.0, 30.0
            while high - low > 1e-9:
                middle = (low + high) / 2
                too_many = float(np.mean(reached * _sigmoid(affinity[:, task] + middle))) > rate
                low, high = (low, middle) if too_many else (middle, high)
            intercepts.append((low + high) / 2)
            reached = reached * _sigmoid(affinity[:, task] + intercepts[-1])
        return np.array(intercepts)


def _unit(rows: Floats) -> Floats:
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def _sigmoid(logits: Floats) -> Floats:
    # The logits are of moderate size, so that exp cannot overflow here.
    return 1 / (1 + np.exp(-logits))
