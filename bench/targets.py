"""The performance targets that results are evaluated against, one entry of :data:`TARGETS` each."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

from bench.rows import Results, Row, best_baseline, by_case, matches, ours, size


class Measured(NamedTuple):
    """A value to compare with a target."""

    of: str  # the case
    value: float
    beside: str = ""  # what the value is relative to


@dataclass(frozen=True)
class Target:
    """A bound that a measured value must keep.

    Args:
        name: the name in the report.
        measure: returns the measured values of a run.
        least, most: the bound; exactly one of them is given.
        unit: ``"%"`` for shares, ``"x"`` for ratios, or a unit.
    """

    name: str
    measure: Callable[[Results], list[Measured]]
    least: float | None = None
    most: float | None = None
    unit: str = "x"

    @property
    def bound(self) -> str:
        """The bound as text."""
        bound, sign = (self.least, "≥") if self.least is not None else (self.most, "≤")
        assert bound is not None
        return f"{sign} {show(bound, self.unit)}"

    def passes(self, value: float) -> bool:
        """Whether the value keeps the bound."""
        return (self.least is None or value >= self.least) and (self.most is None or value <= self.most)


class Evaluation(NamedTuple):
    """One row of the report's table of targets; ``measured`` is None where the run has no such case."""

    target: Target
    measured: Measured | None

    @property
    def text(self) -> str:
        """pass, fail, not measured, or invalid: a share above 100 % means that measuring the peak was disturbed."""
        if self.measured is None:
            return "not measured"
        if self.target.unit == "%" and self.measured.value > 1:
            return "**invalid**"
        return "pass" if self.target.passes(self.measured.value) else "**fail**"


def evaluate(results: Results) -> list[Evaluation]:
    """Compare a run with all targets."""
    evaluations = []
    for target in TARGETS:
        measured = target.measure(results)
        evaluations += [Evaluation(target, value) for value in measured] or [Evaluation(target, None)]
    return evaluations


def show(value: float, unit: str) -> str:
    """The value with its unit."""
    if unit == "%":
        return f"{100 * value:.1f} %"
    return f"{value:.2f} {unit}" if unit != "x" else f"{value:.2f}x"


def _share(threads: int, precision: str = "float32") -> Callable[[Results], list[Measured]]:
    def measure(results: Results) -> list[Measured]:
        rows = results.of(form="share of peak", threads=threads, precision=precision)
        rows = [row for row in rows if row["candidates"] >= 1024]
        return [
            Measured(f"{row['workload']}, B = {size(row)}", row["share_of_peak"], f"{row['peak_gflops']:.0f} GFLOP/s")
            for row in rows
        ]

    return measure


def _over_best_baseline(
    wanted: dict[str, Any], own_precision: str = "float32", **baseline: Any
) -> Callable[[Results], list[Measured]]:
    """Speed of our ``own_precision`` over the best baseline matching ``baseline``, in cases matching ``wanted``."""

    def measure(results: Results) -> list[Measured]:
        found = []
        for case in by_case(results.of(**wanted)):
            own, best = ours(case, own_precision), best_baseline(case, **baseline)
            if own is not None and best is not None:
                beside = f"{best['implementation']}, {best['median'] * 1e6:.1f} us"
                found.append(Measured(_about(own), best["median"] / own["median"], beside))
        return found

    return measure


def _int8_over_bfloat16(results: Results) -> list[Measured]:
    found = []
    for case in by_case(results.of(form="dense", workload="prerank3", candidates=lambda count: count >= 1024)):
        fast, slow = ours(case, "int8"), ours(case, "bfloat16")
        if fast is not None and slow is not None:
            found.append(Measured(_about(fast), slow["median"] / fast["median"], f"{fast['median'] * 1e6:.0f} us"))
    return found


def _catalog(precision: str | None) -> Callable[[Results], list[Measured]]:
    """Speed of our fastest way over the best baseline's dense form; both in any precision, or both in this one."""

    def measure(results: Results) -> list[Measured]:
        found = []
        wanted = {} if precision is None else {"precision": precision}
        for case in by_case(results.of(form="catalog", catalog=lambda items: items >= 1_000_000)):
            own = [row for row in case if row["ours"] and matches(row, wanted)]
            own = [row for row in own if precision is None or row["way"] == f"{precision} table"]
            best = best_baseline(case, **wanted)
            if own and best is not None:
                fastest = min(own, key=lambda row: row["median"])
                about = f"{size(fastest)}, {fastest['precision']}, {fastest['way']}"
                times = [f"{row['median'] * 1e6:.0f} us" for row in (best, fastest)]
                beside = f"{best['implementation']}, {times[0]}; ours {times[1]}"
                found.append(Measured(about, best["median"] / fastest["median"], beside))
        return found

    return measure


def _features(results: Results) -> list[Measured]:
    found = []
    for row in results.of(form="features", candidates=lambda count: count >= 1024):
        ours_of = {name: value for name, value in row["medians"].items() if name.endswith("tables")}
        fastest = min(ours_of, key=lambda name: ours_of[name])
        bags = row["medians"]["bags, concat, dense op"]
        about = f"{_about(row)}, {row['precision']} towers, {fastest}"
        found.append(
            Measured(about, bags / ours_of[fastest], f"{bags * 1e6:.0f} us; ours {ours_of[fastest] * 1e6:.0f} us")
        )
    return found


def _bandwidth(results: Results) -> list[Measured]:
    return [
        Measured(
            f"{row['candidates']:,} items, {row['workload']}, int8, {row['threads']} threads",
            row["share_of_bandwidth"],
            f"{row['read_gbytes_per_second']:.1f} GB/s",
        )
        for row in results.of(form="twin tower", precision="int8")
    ]


def _tail(results: Results) -> list[Measured]:
    rows = results.of(form="small batches", ours=True, precision="float32")
    return [
        Measured(_about(row), row["p99"] / row["median"], f"median {row['median'] * 1e6:.1f} us, {row['mode']}")
        for row in rows
    ]


def _overhead(results: Results) -> list[Measured]:
    return [
        Measured(
            "prerank3, B = 1, over a loop in C++",
            (row["medians"]["torch op"] - row["medians"]["C++"]) * 1e6,
            f"C++ {row['medians']['C++'] * 1e6:.1f} us",
        )
        for row in results.of(form="overhead")
    ]


def _training(baseline: str) -> Callable[[Results], list[Measured]]:
    """Speed of ours over the fastest variant of a baseline."""

    def measure(results: Results) -> list[Measured]:
        found = []
        for row in results.of(form="training", candidates=4096):
            medians = {k: v for k, v in row["medians"].items() if k.startswith(baseline) and "Adam" not in k}
            if medians:
                name = min(medians, key=lambda one: medians[one])
                own = row["medians"]["resflow"]
                beside = f"{name}, {medians[name] * 1e3:.1f} ms; ours {own * 1e3:.1f} ms"
                found.append(Measured(_about(row), medians[name] / own, beside))
        return found

    return measure


def _about(row: Row) -> str:
    mode = "" if row.get("mode", "back to back") == "back to back" else f", {row['mode']}"
    return f"{row['workload']}, {size(row)}, {row['threads']} thread{'s' * (row['threads'] > 1)}{mode}"


def _from_1024_to_8192(candidates: int) -> bool:
    return 1024 <= candidates <= 8192


_REQUESTS = {"form": "request", "workload": "prerank3", "candidates": _from_1024_to_8192}
_SMALL = {"form": "small batches"}

_FP32 = {"precision": "float32"}
_DENSE = {"form": "dense", "workload": "prerank3", "candidates": lambda count: count >= 1024}

TARGETS = (
    Target("share of the multiply-add peak, one thread, B ≥ 1024", _share(1), least=0.95, unit="%"),
    Target("share of the multiply-add peak, two threads, B ≥ 1024", _share(2), least=0.90, unit="%"),
    Target("bfloat16: share of its peak, one thread, B ≥ 1024", _share(1, "bfloat16"), least=0.90, unit="%"),
    Target("bfloat16: share of its peak, two threads, B ≥ 1024", _share(2, "bfloat16"), least=0.85, unit="%"),
    Target("bfloat16: over the best baseline of any precision", _over_best_baseline(_DENSE, "bfloat16"), least=1.25),
    Target("int8: over our bfloat16", _int8_over_bfloat16, least=1.5),
    Target(
        "requests: over the best fp32 baseline on joined rows",
        _over_best_baseline(_REQUESTS, way="joined rows", **_FP32),
        least=2.5,
    ),
    Target(
        "requests: over the best fp32 baseline's split by hand",
        _over_best_baseline(_REQUESTS, way="split", **_FP32),
        least=1.3,
    ),
    Target("catalog: over the best baseline on dense rows", _catalog(None), least=12.0),
    Target("catalog: float32 over the best fp32 baseline", _catalog("float32"), least=8.0),
    Target("features: over nn.EmbeddingBag, concat and our dense op", _features, least=1.5),
    Target("twin tower: share of the read bandwidth", _bandwidth, least=0.80, unit="%"),
    Target("small batches: over the best fp32 baseline", _over_best_baseline(_SMALL, **_FP32), least=2.0),
    Target(
        "small batches: bfloat16 over the best fp32 baseline",
        _over_best_baseline(_SMALL, "bfloat16", **_FP32),
        least=3.0,
    ),
    Target("small batches: P99 over the median", _tail, most=3.0),
    Target("training step: over PyTorch eager", _training("eager"), least=2.5),
    Target("training step: over torch.compile", _training("torch.compile"), least=1.2),
    Target("the torch op's overhead", _overhead, most=4.0, unit="us"),
)
