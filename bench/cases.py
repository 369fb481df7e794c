"""What is measured: a case is one contest, and its rows in the results."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial

from bench.catalog import WAYS, CatalogInputs
from resflow_kernels import _runtime
from resflow_kernels.benchmark.contest import Entry, Inputs, best_peer, enter, run
from resflow_kernels.benchmark.peers import OURS, PEERS, Compiled, Contestant, Model, label, threads_of
from resflow_kernels.benchmark.turns import Schedule
from resflow_kernels.core.machine import usable_cores
from resflow_kernels.core.plan import Plan, chain
from resflow_kernels.testing import WORKLOADS, random_weights

CORES = usable_cores()
EVERYONE: tuple[type[Contestant], ...] = (*OURS, *PEERS)
# A shape takes torch.compile about 15 s with max-autotune, the second run less.
WITHOUT_COMPILE = tuple(contestant for contestant in EVERYONE if not issubclass(contestant, Compiled))

MODES = ("back to back", "1 ms pauses", "busy neighbour")


@dataclass(frozen=True)
class Case:
    """One contest.

    Args:
        form: "dense" or "request"; names the table it is reported in.
        workload: a name of ``WORKLOADS``.
        candidates: ``B``, or how many a request has.
        requests: ``R`` of the request form, 0 in the dense form.
        threads: for all contestants.
        mode: one of :data:`MODES`.
        tasks, features: instead of the workload's own ``K`` and ``D``.
        compiled: whether torch.compile takes part.
        ways: ways of the request form the peers take part with.
        catalog: items of the catalog form, 0 in the others.
        axis: the quantity that grows over a series of cases, in the tables of growth.
    """

    form: str
    workload: str
    candidates: int
    requests: int = 0
    threads: int = CORES
    mode: str = MODES[0]
    tasks: int = 0
    features: int = 0
    compiled: bool = True
    ways: tuple[str, ...] = ("joined rows", "split")
    catalog: int = 0
    axis: str = ""

    @property
    def plan(self) -> Plan:
        """The workload's, with :attr:`tasks` and :attr:`features`."""
        plan = WORKLOADS[self.workload].plan
        parents = chain(self.tasks) if self.tasks else plan.parents
        return replace(plan, in_features=self.features or plan.in_features, parents=parents)

    @property
    def model(self) -> Model:
        """Random weights on the scale of a trained network."""
        weights = [weight.numpy() for weight in random_weights(self.plan)]
        return Model(self.plan, weights, user_width=self.user_width)

    @property
    def user_width(self) -> int:
        """Columns of the user's side; 0 in the dense form, which does not tell the sides apart."""
        return WORKLOADS[self.workload].user_features if self.requests or self.catalog else 0

    @property
    def all_candidates(self) -> int:
        """Of all requests."""
        return self.candidates * max(self.requests, 1)

    @property
    def entrants(self) -> list[tuple[type[Contestant], str]]:
        """Contestants and their ways."""
        everyone = EVERYONE if self.compiled else WITHOUT_COMPILE
        if self.catalog:
            ours = [(contestant, way) for contestant in OURS for way in WAYS]
            return ours + [(peer, "dense") for peer in everyone if peer not in OURS]
        if not self.requests:
            return [(contestant, "dense") for contestant in everyone]
        ours = [(contestant, "split") for contestant in OURS]
        return ours + [(peer, way) for peer in everyone if peer not in OURS for way in self.ways]

    def flops(self, way: str) -> int:
        """Multiplications and additions of a call's matrix products; a split does the user's once a request."""
        plan = self.plan
        dense = plan.flops_per_candidate * self.all_candidates
        if way in WAYS:
            return dense - 2 * plan.tasks * plan.in_features * plan.hidden[0] * self.all_candidates
        if way != "split":
            return dense
        user = 2 * plan.tasks * WORKLOADS[self.workload].user_features * plan.hidden[0]
        return dense - user * (self.all_candidates - self.requests)

    def __str__(self) -> str:
        size = f"{self.requests}x{self.candidates}" if self.requests else str(self.candidates)
        parts = [self.workload, size, f"{self.threads}t"]
        parts += [f"K{self.tasks}"] * bool(self.tasks) + [f"D{self.features}"] * bool(self.features)
        parts += [f"of{self.catalog}"] * bool(self.catalog)
        parts += [self.mode.replace(" ", "_")] * (self.mode != MODES[0])
        return "-".join(parts)


def parameters(cases: Sequence[Case]) -> list[tuple[Case, type[Contestant], str]]:
    """A row of results each, for ``parametrize``."""
    return [(case, *entrant) for case in cases for entrant in case.entrants]


def identify(value: object) -> str | None:
    """``parametrize``'s ids."""
    if isinstance(value, Case):
        return str(value)
    return label(value) if isinstance(value, type) else None


_PAUSE = 0.001
_PEAK_SECONDS = 0.01


def schedule_of(case: Case, quick: bool) -> Schedule:
    """Enough calls for a P99 where they are short, few where they take a second."""
    if case.mode == "1 ms pauses":
        return Schedule(rounds=8 if quick else 20, burst_seconds=0.1, pause_seconds=_PAUSE)
    if case.all_candidates <= 16:
        return Schedule(rounds=9 if quick else 20, burst_seconds=0.05, most_calls=400)
    if case.all_candidates > 1 << 17:
        return Schedule(rounds=3 if quick else 5)
    return Schedule(rounds=(5 if case.axis else 7) if quick else 15)


class Contests:
    """Each case's contest, held when its first row asks for it."""

    def __init__(self, quick: bool) -> None:
        self.quick = quick
        self._held: dict[Case, tuple[list[Entry], float]] = {}

    def entry(self, case: Case, contestant: type[Contestant], way: str) -> Entry:
        """How one of a case's entrants did."""
        return next(e for e in self.results(case)[0] if (e.contestant, e.way) == (contestant, way))

    def results(self, case: Case) -> tuple[list[Entry], float]:
        """All of a case's entrants, and the multiply-add peak measured meanwhile, GFLOP/s."""
        if case not in self._held:
            self._held[case] = self._hold(case)
        return self._held[case]

    def _hold(self, case: Case) -> tuple[list[Entry], float]:
        peaks: list[float] = []
        with threads_of(case.threads):
            entries = _enter(case)
            busy = case.mode == "busy neighbour"
            measure = partial(_runtime.measure_peak, 0, case.threads, _PEAK_SECONDS)
            run(entries, schedule_of(case, self.quick), busy, before_round=lambda: peaks.append(measure()))
        for entry in entries:
            entry.call = None  # it holds inputs of up to gigabytes
        return entries, statistics.median(peaks)


def _enter(case: Case) -> list[Entry]:
    model, contestants = case.model, EVERYONE if case.compiled else WITHOUT_COMPILE
    if case.catalog:
        catalog = CatalogInputs(model, case.catalog, case.candidates)
        peers = [contestant for contestant in contestants if contestant not in OURS]
        return catalog.entries(case.threads) + enter(model, Inputs(catalog.dense_rows()), case.threads, peers)
    if case.requests:
        inputs = Inputs.of_requests(model, case.requests, case.candidates)
    else:
        inputs = Inputs.dense(model, case.candidates)
    return enter(model, inputs, case.threads, contestants, case.ways)


def facts(case: Case, entry: Entry, entries: Sequence[Entry], peak_gflops: float) -> dict[str, object]:
    """A row's ``extra_info``."""
    info: dict[str, object] = {
        "form": case.form,
        "workload": case.workload,
        "candidates": case.candidates,
        "requests": case.requests,
        "catalog": case.catalog,
        "tasks": case.plan.tasks,
        "features": case.plan.in_features,
        "threads": case.threads,
        "mode": case.mode,
        "axis": case.axis,
        "contestant": label(entry.contestant),
        "precision": entry.contestant.precision,
        "way": entry.way,
        "ours": entry.ours,
        "problem": entry.problem,
        "error": None if math.isnan(entry.error) else entry.error,  # JSON has no NaN
    }
    if entry.problem is not None:
        return info
    gflops = case.flops(entry.way) / entry.timing.median * 1e-9
    best = best_peer(entries, entry.contestant.precision)
    return {
        **info,
        "p99": entry.timing.quantile(0.99),
        "turn_medians": entry.timing.turn_medians,
        "gflops": gflops,
        "peak_gflops": peak_gflops,
        "share_of_peak": gflops / peak_gflops,
        "best_peer": None if best is None else best.name,
        "best_peer_ratio": None if best is None else best.timing.median / entry.timing.median,
    }
