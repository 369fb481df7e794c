"""The measured cases. All implementations of a case are timed together; each has a row in the results."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial

from bench.catalog import WAYS, CatalogInputs
from resflow_kernels import _runtime
from resflow_kernels.benchmark.baselines import BASELINES, OURS, Compiled, Implementation, Model, label, threads_of
from resflow_kernels.benchmark.interleave import Schedule
from resflow_kernels.benchmark.suite import Entry, Inputs, best_baseline, measure, setup
from resflow_kernels.core.machine import usable_cores
from resflow_kernels.core.plan import Plan, chain
from resflow_kernels.testing import WORKLOADS, random_weights

CORES = usable_cores()
ALL: tuple[type[Implementation], ...] = (*OURS, *BASELINES)
# torch.compile with max-autotune takes about 15 s per shape, less in the second run.
UNCOMPILED = tuple(implementation for implementation in ALL if not issubclass(implementation, Compiled))

MODES = ("back to back", "1 ms pauses", "busy neighbour")


@dataclass(frozen=True)
class Case:
    """The inputs that all implementations score in one measurement.

    Args:
        form: "dense" or "request"; names the table it is reported in.
        workload: a name of ``WORKLOADS``.
        candidates: ``B``, or the number of candidates per request.
        requests: ``R`` of the request form, 0 in the dense form.
        threads: for all implementations.
        mode: one of :data:`MODES`.
        tasks, features: replace the workload's ``K`` and ``D``.
        compiled: whether torch.compile is measured.
        ways: how the baselines score the request form.
        catalog: number of items of the catalog form, 0 in the other forms.
        axis: the quantity that grows over a series of cases, for the tables of growth.
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
        """The workload's plan with :attr:`tasks` and :attr:`features`."""
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
        """User columns; 0 in the dense form, which does not distinguish user from item."""
        return WORKLOADS[self.workload].user_features if self.requests or self.catalog else 0

    @property
    def all_candidates(self) -> int:
        """Number of candidates of all requests."""
        return self.candidates * max(self.requests, 1)

    @property
    def implementations(self) -> list[tuple[type[Implementation], str]]:
        """Implementations and their ways."""
        measured = ALL if self.compiled else UNCOMPILED
        if self.catalog:
            ours = [(implementation, way) for implementation in OURS for way in WAYS]
            return ours + [(baseline, "dense") for baseline in measured if baseline not in OURS]
        if not self.requests:
            return [(implementation, "dense") for implementation in measured]
        ours = [(implementation, "split") for implementation in OURS]
        return ours + [(baseline, way) for baseline in measured if baseline not in OURS for way in self.ways]

    def flops(self, way: str) -> int:
        """Multiplications and additions of a call's matrix products; a split does the user's part once per request."""
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


def parameters(cases: Sequence[Case]) -> list[tuple[Case, type[Implementation], str]]:
    """One parameter set per row of results, for ``parametrize``."""
    return [(case, *implementation) for case in cases for implementation in case.implementations]


def identify(value: object) -> str | None:
    """Test ids for ``parametrize``."""
    if isinstance(value, Case):
        return str(value)
    return label(value) if isinstance(value, type) else None


_PAUSE = 0.001
_PEAK_SECONDS = 0.01


def schedule_of(case: Case, quick: bool) -> Schedule:
    """Enough calls for a P99 if calls are short, few if they take a second."""
    if case.mode == "1 ms pauses":
        return Schedule(rounds=8 if quick else 20, burst_seconds=0.1, pause_seconds=_PAUSE)
    if case.all_candidates <= 16:
        return Schedule(rounds=9 if quick else 20, burst_seconds=0.05, most_calls=400)
    if case.all_candidates > 1 << 17:
        return Schedule(rounds=3 if quick else 5)
    return Schedule(rounds=(5 if case.axis else 7) if quick else 15)


class CaseRunner:
    """Measures each case once, when its first row is recorded."""

    def __init__(self, quick: bool) -> None:
        self.quick = quick
        self._measured: dict[Case, tuple[list[Entry], float]] = {}

    def entry(self, case: Case, implementation: type[Implementation], way: str) -> Entry:
        """The result of one of a case's implementations."""
        return next(e for e in self.results(case)[0] if (e.implementation, e.way) == (implementation, way))

    def results(self, case: Case) -> tuple[list[Entry], float]:
        """Results of all of a case's implementations, and the multiply-add peak measured meanwhile, GFLOP/s."""
        if case not in self._measured:
            self._measured[case] = self._measure(case)
        return self._measured[case]

    def _measure(self, case: Case) -> tuple[list[Entry], float]:
        peaks: list[float] = []
        with threads_of(case.threads):
            entries = _setup(case)
            busy = case.mode == "busy neighbour"
            peak = partial(_runtime.measure_peak, 0, case.threads, _PEAK_SECONDS)
            measure(entries, schedule_of(case, self.quick), busy, before_round=lambda: peaks.append(peak()))
        for entry in entries:
            entry.call = None  # it holds inputs of up to gigabytes
        return entries, statistics.median(peaks)


def _setup(case: Case) -> list[Entry]:
    model, implementations = case.model, ALL if case.compiled else UNCOMPILED
    if case.catalog:
        catalog = CatalogInputs(model, case.catalog, case.candidates)
        baselines = [implementation for implementation in implementations if implementation not in OURS]
        return catalog.entries(case.threads) + setup(model, Inputs(catalog.dense_rows()), case.threads, baselines)
    if case.requests:
        inputs = Inputs.of_requests(model, case.requests, case.candidates)
    else:
        inputs = Inputs.dense(model, case.candidates)
    return setup(model, inputs, case.threads, implementations, case.ways)


def facts(case: Case, entry: Entry, entries: Sequence[Entry], peak_gflops: float) -> dict[str, object]:
    """The ``extra_info`` of one row of results."""
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
        "implementation": label(entry.implementation),
        "precision": entry.implementation.precision,
        "way": entry.way,
        "ours": entry.ours,
        "problem": entry.problem,
        "error": None if math.isnan(entry.error) else entry.error,  # JSON has no NaN
    }
    if entry.problem is not None:
        return info
    gflops = case.flops(entry.way) / entry.timing.median * 1e-9
    best = best_baseline(entries, entry.implementation.precision)
    return {
        **info,
        "p99": entry.timing.quantile(0.99),
        "round_medians": entry.timing.round_medians,
        "gflops": gflops,
        "peak_gflops": peak_gflops,
        "share_of_peak": gflops / peak_gflops,
        "best_baseline": None if best is None else best.name,
        "best_baseline_ratio": None if best is None else best.timing.median / entry.timing.median,
    }
