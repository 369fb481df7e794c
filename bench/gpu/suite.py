"""Times our C++ kernels, PyTorch eager, Triton and torch.compile: ``python -m bench.gpu.suite OUT --seconds 240``.

Every implementation is checked against the float64 reference, then timed by device events, interleaved with the others
of its case, called one by one and replayed as a CUDA graph. Inputs rotate among sets that the L2 cache cannot hold
together where the batch is large. Rows are written as they are measured, so that a stopped run keeps its rows;
torch.compile, which tunes each shape for most of a minute, comes last.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from itertools import cycle
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bench.gpu.roofline import BATCHES, Call, call_of
from resflow_kernels import ops, reference
from resflow_kernels.benchmark.suite import TOLERANCES
from resflow_kernels.benchmark.towers import Towers
from resflow_kernels.core.fusion import Additive
from resflow_kernels.testing import PROBABILITY_TOLERANCE, WORKLOADS, random_weights

Run = Callable[[], object]

DEVICE = "cuda"
OURS = ("resflow", "triton")  # in C++, in Triton

ROUNDS = 7
BURST_SECONDS = 0.015
COLD_BYTES = 256 << 20  # total bytes of the input sets: several times the L2 cache of any GPU so far
MOST_SETS = 16
CHECKED_ROWS = 512
CATALOG_ITEMS = 1_000_000

ROW_DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16}
# The dtype that a baseline computes in, by our precision.
BASELINE_DTYPES = {**ROW_DTYPES, "float32": torch.float32, "tensorfloat32": torch.float32}


@dataclass(frozen=True)
class Case:
    """A workload, form, size and precision."""

    workload: str
    candidates: int
    form: str = "dense"
    precision: str = "bfloat16"

    @property
    def call(self) -> Call:
        return call_of(self.workload, self.candidates, self.form, self.precision)


def cases() -> list[Case]:
    """All cases, the most informative first."""
    others = [name for name in WORKLOADS if name != "prerank3"]
    made = [Case("prerank3", batch) for batch in sorted(BATCHES, key=lambda batch: abs(batch - 8192))]
    made += [Case("prerank3", 65536, "catalog"), Case("prerank3", 65536, "request")]
    made += [Case(name, batch) for batch in (65536, 8192) for name in others]
    made += [Case(name, 65536, form) for form in ("catalog", "request") for name in others]
    rest = ("float16", "tensorfloat32", "float32")
    return made + [Case("prerank3", batch, precision=precision) for precision in rest for batch in (65536, 8192)]


@dataclass
class Implementation:
    """One way to score a case's input sets, one call per set."""

    name: str
    runs: Sequence[Run]
    probs: Callable[[Any], Tensor]  # extracts the probabilities from a call's output
    tolerance: float


class Inputs:
    """A case's model and input sets on the GPU."""

    def __init__(self, case: Case) -> None:
        self.case, self.plan = case, case.call.plan
        self.user_features = WORKLOADS[case.workload].user_features
        self.weights = random_weights(self.plan)
        self.packed = ops.pack_towers(self.weights, self.plan).to(DEVICE)
        self.alpha = torch.ones(self.plan.tasks, device=DEVICE)
        self.dtype = ROW_DTYPES.get(case.precision, torch.float32)
        width = {"dense": self.plan.in_features, "request": case.call.candidate_features, "catalog": 4}[case.form]
        size = case.candidates * width * self.dtype.itemsize
        count = max(2, min(MOST_SETS, -(-COLD_BYTES // size))) if case.candidates >= 8192 else 4
        self.offsets = torch.tensor([0, case.candidates], device=DEVICE)
        self.user = self.normal(1, self.user_features)
        if case.form == "catalog":
            self.items = self.normal(CATALOG_ITEMS, self.plan.in_features - self.user_features)
            self.table = ops.catalog_rows(self.items, self.packed, self.plan)
            shape = (case.candidates,)
            self.sets = [torch.randint(0, CATALOG_ITEMS, shape, device=DEVICE) for _ in range(count)]
        else:
            self.sets = [self.normal(case.candidates, width) for _ in range(count)]

    def normal(self, *shape: int) -> Tensor:
        return torch.randn(shape, device=DEVICE, dtype=torch.float32).to(self.dtype)

    def ours(self, name: str = "resflow", backend: str | None = None) -> Implementation:
        settings = (self.packed, self.plan, self.alpha)

        def score(inputs: Tensor) -> object:
            if self.case.form == "dense":
                return ops.dense_scores(inputs, *settings, backend=backend)
            if self.case.form == "request":
                return ops.request_scores(self.user, inputs, self.offsets, *settings, backend=backend)
            return ops.catalog_scores(self.user, inputs, self.offsets, *self.table, *settings, backend=backend)

        runs = [partial(score, inputs) for inputs in self.sets]
        return Implementation(name, runs, lambda output: output.probs, PROBABILITY_TOLERANCE[self.case.precision])

    def baseline(self, compiled: bool) -> Implementation:
        """PyTorch's: the first layers are one product, and the user's part is computed once in the request forms."""
        dtype = BASELINE_DTYPES[self.case.precision]
        towers: Any = Towers(self.plan, self.weights, Additive(), self.user_features, dtype).to(DEVICE).eval()
        score = towers if self.case.form == "dense" else towers.split
        if compiled:
            torch.compiler.reset()  # otherwise the compiler gives up on a function after its eighth shape
            # No CUDA graphs by the compiler: as_graphs captures them, for all implementations alike.
            score = torch.compile(score, mode="max-autotune-no-cudagraphs", dynamic=False, fullgraph=True)
        if self.case.form == "dense":
            runs = [partial(score, rows) for rows in self.sets]
        else:
            items = self.sets if self.case.form == "request" else [self.items[ids] for ids in self.sets]
            runs = [partial(score, self.user, rows) for rows in items]
        name = "torch.compile" if compiled else "eager"
        tolerance = TOLERANCES["float32" if dtype == torch.float32 else "bfloat16"]
        if self.case.precision == "tensorfloat32" or self.case.form == "catalog":  # our table is bfloat16
            tolerance = TOLERANCES["bfloat16"]
        return Implementation(name, runs, lambda output: output[0], tolerance)

    def exact(self, ours: bool) -> Tensor:
        """Exact probabilities of the first set's first rows; for ours, with the precision's roundings."""
        plan = self.plan if ours else replace(self.plan, precision="float32")
        weights = [weight.double() for weight in self.weights]
        rows, alpha = self.sets[0][:CHECKED_ROWS].cpu(), torch.ones(plan.tasks).double()
        offsets = torch.tensor([0, len(rows)])
        if self.case.form == "dense":
            return reference.dense_scores(rows.double(), weights, plan, alpha, "additive", "call").probs
        user = self.user.cpu().double()
        if self.case.form == "request":
            return reference.request_scores(
                user, rows.double(), offsets, weights, plan, alpha, "additive", "call"
            ).probs
        held = self.table[0][self.sets[0][:CHECKED_ROWS]].cpu().double()
        held = held.reshape(len(rows), plan.tasks, -1)[..., : plan.hidden[0]]
        return reference.catalog_scores(user, held, offsets, weights, plan, alpha, "additive", "call").probs


def as_graphs(runs: Sequence[Run]) -> list[Run]:
    """Capture each call as a CUDA graph."""
    made: list[Run] = []
    for run in runs:
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            run()
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            kept = run()
        made.append(lambda graph=graph, kept=kept: graph.replay())
    return made


def measure(calls: dict[str, Sequence[Run]]) -> dict[str, list[float]]:
    """Seconds per call in each round, implementations interleaved."""
    cycles = {name: cycle(runs) for name, runs in calls.items()}
    lengths = {}
    for name, runs in cycles.items():
        _burst(runs, 3)
        lengths[name] = max(3, min(2000, int(BURST_SECONDS / max(_burst(runs, 5), 1e-6))))
    seconds: dict[str, list[float]] = {name: [] for name in cycles}
    for index in range(ROUNDS):
        names = list(cycles)
        for name in names if index % 2 else names[::-1]:
            seconds[name].append(_burst(cycles[name], lengths[name]))
    return seconds


def _burst(runs: Iterator[Run], count: int) -> float:
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize()
    begin.record()
    for _ in range(count):
        next(runs)()
    end.record()
    end.synchronize()
    return begin.elapsed_time(end) / 1e3 / count


def run_case(case: Case, implementations: Callable[[Inputs], list[Implementation]]) -> Iterator[dict[str, Any]]:
    """Check and time one case; yields its rows."""
    # The baseline multiplies in tensorfloat32 exactly where ours does.
    torch.set_float32_matmul_precision("high" if case.precision == "tensorfloat32" else "highest")
    inputs = Inputs(case)
    calls: dict[str, Sequence[Run]] = {}
    errors: dict[str, float] = {}
    for entry in implementations(inputs):
        try:
            probs = entry.probs(entry.runs[0]())[:CHECKED_ROWS].double().cpu()
            error = float((probs - inputs.exact(entry.name in OURS)).abs().max())
            if not error <= entry.tolerance:  # true of NaN as well
                yield _row(case, entry.name, problem=f"probabilities off by {error:.1e}, over {entry.tolerance:.1e}")
                continue
            errors[entry.name] = error
            calls[entry.name] = entry.runs
            calls[f"{entry.name}, graph"] = as_graphs(entry.runs)
        except Exception as problem:  # the others are still measured
            yield _row(case, entry.name, problem=f"{type(problem).__name__}: {str(problem)[:200]}")
    for name, rounds in measure(calls).items():
        implementation = name.removesuffix(", graph")
        low, middle, high = statistics.quantiles(rounds, n=4)
        times = {"median": middle, "q1": low, "q3": high, "sets": len(inputs.sets)}
        yield _row(case, implementation, graph=name != implementation, error=errors[implementation], **times)


def _row(case: Case, implementation: str, **more: Any) -> dict[str, Any]:
    call = case.call
    return {
        **asdict(case),
        "implementation": implementation,
        "bytes": call.bytes,
        "flops": call.flops,
        "problem": None,
        **more,
    }


def machine() -> dict[str, Any]:
    """The GPU and its rates: of a copy, a bfloat16 product, and a graph of one empty kernel."""
    properties = torch.cuda.get_device_properties(0)
    source = torch.empty(1 << 30, dtype=torch.uint8, device=DEVICE)
    target = torch.empty_like(source)
    square = torch.randn(8192, 8192, device=DEVICE).bfloat16()
    nothing = as_graphs([lambda: torch.cuda._sleep(0)])
    copy: list[Run] = [lambda: target.copy_(source)]
    product: list[Run] = [lambda: square @ square]
    seconds = {
        name: statistics.median(times)
        for name, times in measure({"copy": copy, "product": product, "nothing": nothing}).items()
    }
    driver = subprocess.run(
        ["nvidia-smi", "--query-gpu=driver_version,clocks.max.sm,power.limit", "--format=csv,noheader"],
        capture_output=True,
        text=True,
    ).stdout.strip()
    return {
        "gpu": properties.name,
        "capability": f"{properties.major}.{properties.minor}",
        "multiprocessors": properties.multi_processor_count,
        "driver, clock, power limit": driver,
        "torch": torch.__version__,
        "bytes_per_second": 2 * source.numel() / seconds["copy"],
        "flops_per_second": 2 * 8192**3 / seconds["product"],
        "empty_graph_seconds": seconds["nothing"],
    }


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("--seconds", type=float, default=240, help="no case begins after this")
    options = parser.parse_args(arguments)
    end = time.monotonic() + options.seconds
    torch.manual_seed(0)
    with torch.inference_mode(), options.out.open("w", encoding="utf-8") as out:

        def write(row: dict[str, Any]) -> None:
            out.write(json.dumps(row) + "\n")
            out.flush()

        write({"machine": machine()})
        suites: tuple[tuple[str, Callable[[Inputs], list[Implementation]], list[Case]], ...] = (
            ("eager", lambda inputs: [inputs.ours(), inputs.baseline(False)], cases()),
            ("triton", lambda inputs: [inputs.ours(), inputs.ours("triton", "triton")], cases()),
            (
                "compiled",
                lambda inputs: [inputs.ours(), inputs.baseline(True)],
                [c for c in cases() if c.precision == "bfloat16"],
            ),
        )
        for name, implementations, selected in suites:
            for case in selected:
                if time.monotonic() >= end:
                    write(
                        {
                            **asdict(case),
                            "suite": name,
                            "implementation": "",
                            "problem": "not measured: the time was over",
                        }
                    )
                    continue
                for row in run_case(case, implementations):
                    write({**row, "suite": name})
                torch.cuda.empty_cache()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
