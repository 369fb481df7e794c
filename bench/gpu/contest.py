"""Ours in C++ beside PyTorch eager, in Triton, and torch.compile: ``python -m bench.gpu.contest OUT --seconds 240``.

Every contestant is checked against the float64 reference, then timed by device events in turns with the others of its
case, called one by one and replayed as a CUDA graph. Inputs rotate among sets that the L2 cache cannot hold together
where the batch is large. Rows are written as they are measured, so that a run that is stopped keeps what it has;
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
from resflow_kernels.benchmark.contest import TOLERANCES
from resflow_kernels.benchmark.towers import Towers
from resflow_kernels.core.fusion import Additive
from resflow_kernels.testing import PROBABILITY_TOLERANCE, WORKLOADS, random_weights

Run = Callable[[], object]

PLACE = "cuda"
OURS = ("resflow", "triton")  # in C++, in Triton

ROUNDS = 7
BURST_SECONDS = 0.015
COLD_BYTES = 256 << 20  # of all input sets: several times the L2 cache of any GPU so far
MOST_SETS = 16
CHECKED_ROWS = 512
CATALOG_ITEMS = 1_000_000

ROW_DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16}
# What a peer computes in for a precision of ours.
PEER_DTYPES = {**ROW_DTYPES, "float32": torch.float32, "tensorfloat32": torch.float32}


@dataclass(frozen=True)
class Case:
    """What is scored."""

    workload: str
    candidates: int
    form: str = "dense"
    precision: str = "bfloat16"

    @property
    def call(self) -> Call:
        return call_of(self.workload, self.candidates, self.form, self.precision)


def cases() -> list[Case]:
    """The most telling first."""
    others = [name for name in WORKLOADS if name != "prerank3"]
    own = sorted(BATCHES, key=lambda batch: abs(batch - 8192))
    made = [Case("prerank3", batch) for batch in own]
    made += [Case("prerank3", 65536, "catalog"), Case("prerank3", 65536, "request")]
    made += [Case(name, batch) for batch in (65536, 8192) for name in others]
    made += [Case(name, 65536, form) for form in ("catalog", "request") for name in others]
    rest = ("float16", "tensorfloat32", "float32")
    return made + [Case("prerank3", batch, precision=precision) for precision in rest for batch in (65536, 8192)]


@dataclass
class Contestant:
    """One way to score a case's input sets, each a call of its own."""

    name: str
    runs: Sequence[Run]
    probs: Callable[[Any], Tensor]  # of what a call returned
    tolerance: float


class Inputs:
    """A case's model and input sets on the GPU."""

    def __init__(self, case: Case) -> None:
        self.case, self.plan = case, case.call.plan
        self.user_features = WORKLOADS[case.workload].user_features
        self.weights = random_weights(self.plan)
        self.packed = ops.pack_towers(self.weights, self.plan).to(PLACE)
        self.alpha = torch.ones(self.plan.tasks, device=PLACE)
        self.dtype = ROW_DTYPES.get(case.precision, torch.float32)
        width = {"dense": self.plan.in_features, "request": case.call.own_features, "catalog": 4}[case.form]
        size = case.candidates * width * self.dtype.itemsize
        count = max(2, min(MOST_SETS, -(-COLD_BYTES // size))) if case.candidates >= 8192 else 4
        self.offsets = torch.tensor([0, case.candidates], device=PLACE)
        self.user = self.normal(1, self.user_features)
        if case.form == "catalog":
            self.items = self.normal(CATALOG_ITEMS, self.plan.in_features - self.user_features)
            self.table = ops.catalog_rows(self.items, self.packed, self.plan)
            shape = (case.candidates,)
            self.sets = [torch.randint(0, CATALOG_ITEMS, shape, device=PLACE) for _ in range(count)]
        else:
            self.sets = [self.normal(case.candidates, width) for _ in range(count)]

    def normal(self, *shape: int) -> Tensor:
        return torch.randn(shape, device=PLACE, dtype=torch.float32).to(self.dtype)

    def ours(self, name: str = "resflow", backend: str | None = None) -> Contestant:
        settings = (self.packed, self.plan, self.alpha)

        def score(own: Tensor) -> object:
            if self.case.form == "dense":
                return ops.dense_scores(own, *settings, backend=backend)
            if self.case.form == "request":
                return ops.request_scores(self.user, own, self.offsets, *settings, backend=backend)
            return ops.catalog_scores(self.user, own, self.offsets, *self.table, *settings, backend=backend)

        runs = [partial(score, own) for own in self.sets]
        return Contestant(name, runs, lambda output: output.probs, PROBABILITY_TOLERANCE[self.case.precision])

    def peer(self, compiled: bool) -> Contestant:
        """PyTorch's: the first layers as one product, the user's part computed once where there is one."""
        dtype = PEER_DTYPES[self.case.precision]
        towers: Any = Towers(self.plan, self.weights, Additive(), self.user_features, dtype).to(PLACE).eval()
        score = towers if self.case.form == "dense" else towers.split
        if compiled:
            torch.compiler.reset()  # which gives up a function after its eighth shape
            # Graphs are captured here, for both alike.
            score = torch.compile(score, mode="max-autotune-no-cudagraphs", dynamic=False, fullgraph=True)
        if self.case.form == "dense":
            runs = [partial(score, own) for own in self.sets]
        else:
            rows = self.sets if self.case.form == "request" else [self.items[own] for own in self.sets]
            runs = [partial(score, self.user, own) for own in rows]
        name = "torch.compile" if compiled else "eager"
        tolerance = TOLERANCES["float32" if dtype == torch.float32 else "bfloat16"]
        if self.case.precision == "tensorfloat32" or self.case.form == "catalog":  # beside a table of bfloat16
            tolerance = TOLERANCES["bfloat16"]
        return Contestant(name, runs, lambda output: output[0], tolerance)

    def exact(self, ours: bool) -> Tensor:
        """Probabilities of the first rows of the first set; of ours with the precision's roundings."""
        plan = self.plan if ours else replace(self.plan, precision="float32")
        weights = [weight.double() for weight in self.weights]
        rows, alpha = self.sets[0][:CHECKED_ROWS].cpu(), torch.ones(plan.tasks).double()
        offsets = torch.tensor([0, len(rows)])
        if self.case.form == "dense":
            return reference.dense_scores(rows.double(), weights, plan, alpha, 0, 0).probs
        user = self.user.cpu().double()
        if self.case.form == "request":
            return reference.request_scores(user, rows.double(), offsets, weights, plan, alpha, 0, 0).probs
        held = self.table[0][self.sets[0][:CHECKED_ROWS]].cpu().double()
        held = held.reshape(len(rows), plan.tasks, -1)[..., : plan.hidden[0]]
        return reference.catalog_scores(user, held, offsets, weights, plan, alpha, 0, 0).probs


def as_graphs(runs: Sequence[Run]) -> list[Run]:
    """Each call captured as a CUDA graph."""
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
    """Seconds a call in each round, contestants in turns."""
    turns = {name: cycle(runs) for name, runs in calls.items()}
    lengths = {}
    for name, runs in turns.items():
        _burst(runs, 3)
        lengths[name] = max(3, min(2000, int(BURST_SECONDS / max(_burst(runs, 5), 1e-6))))
    seconds: dict[str, list[float]] = {name: [] for name in turns}
    for turn in range(ROUNDS):
        names = list(turns)
        for name in names if turn % 2 else names[::-1]:
            seconds[name].append(_burst(turns[name], lengths[name]))
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


def hold(case: Case, contestants: Callable[[Inputs], list[Contestant]]) -> Iterator[dict[str, Any]]:
    """Rows of one case."""
    # The peer's products are tensorfloat32's where ours are, and nowhere else.
    torch.set_float32_matmul_precision("high" if case.precision == "tensorfloat32" else "highest")
    inputs = Inputs(case)
    calls: dict[str, Sequence[Run]] = {}
    errors: dict[str, float] = {}
    for entry in contestants(inputs):
        try:
            probs = entry.probs(entry.runs[0]())[:CHECKED_ROWS].double().cpu()
            error = float((probs - inputs.exact(entry.name in OURS)).abs().max())
            if not error <= entry.tolerance:  # NaN among them
                yield _row(case, entry.name, problem=f"probabilities off by {error:.1e}, over {entry.tolerance:.1e}")
                continue
            errors[entry.name] = error
            calls[entry.name] = entry.runs
            calls[f"{entry.name}, graph"] = as_graphs(entry.runs)
        except Exception as problem:  # the others are still of interest
            yield _row(case, entry.name, problem=f"{type(problem).__name__}: {str(problem)[:200]}")
    for name, rounds in measure(calls).items():
        contestant = name.removesuffix(", graph")
        low, middle, high = statistics.quantiles(rounds, n=4)
        times = {"median": middle, "q1": low, "q3": high, "sets": len(inputs.sets)}
        yield _row(case, contestant, graph=name != contestant, error=errors[contestant], **times)


def _row(case: Case, contestant: str, **more: Any) -> dict[str, Any]:
    call = case.call
    return {**asdict(case), "contestant": contestant, "bytes": call.bytes, "flops": call.flops, "problem": None, **more}


def machine() -> dict[str, Any]:
    """The GPU, and its rates: a copy, a bfloat16 product, a graph of one kernel that does nothing."""
    properties = torch.cuda.get_device_properties(0)
    source = torch.empty(1 << 30, dtype=torch.uint8, device=PLACE)
    target = torch.empty_like(source)
    square = torch.randn(8192, 8192, device=PLACE).bfloat16()
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
        passes: tuple[tuple[str, Callable[[Inputs], list[Contestant]], list[Case]], ...] = (
            ("eager", lambda inputs: [inputs.ours(), inputs.peer(False)], cases()),
            ("triton", lambda inputs: [inputs.ours(), inputs.ours("triton", "triton")], cases()),
            (
                "compiled",
                lambda inputs: [inputs.ours(), inputs.peer(True)],
                [c for c in cases() if c.precision == "bfloat16"],
            ),
        )
        for name, contestants, of in passes:
            for case in of:
                if time.monotonic() >= end:
                    write(
                        {
                            **asdict(case),
                            "contest": name,
                            "contestant": "",
                            "problem": "not measured: the time was over",
                        }
                    )
                    continue
                for row in hold(case, contestants):
                    write({**row, "contest": name})
                torch.cuda.empty_cache()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
