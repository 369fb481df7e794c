"""The shortest time a call can take on a GPU: its bytes at memory bandwidth, its arithmetic at tensor-core throughput.

``python -m bench.gpu.roofline`` prints the table of bench/ROOFLINE.md.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import pairwise

from resflow_kernels.contract import PRECISION_ROWS
from resflow_kernels.core.plan import Plan
from resflow_kernels.testing import WORKLOADS

FORMS = ("dense", "request", "catalog")


@dataclass(frozen=True)
class Gpu:
    """A GPU's rates; those of :data:`H100` were measured on one: a copy, and a bfloat16 matrix product."""

    bytes_per_second: float
    flops_per_second: float


H100 = Gpu(3.0e12, 798e12)


@dataclass(frozen=True)
class Call:
    """The bytes that one call must move and the operations it must compute.

    Args:
        plan: the network; its precision gives the width of weights, rows and the catalog's table.
        user_features: user columns, for the forms that have them.
        candidates: number of candidates.
        form: one of :data:`FORMS`; the work per user is left out, as if one request had all candidates.
        logits: whether logits are written as well as probabilities and scores.
    """

    plan: Plan
    user_features: int
    candidates: int
    form: str = "dense"
    logits: bool = True

    @property
    def candidate_features(self) -> int:
        """Columns that are read and multiplied for every candidate."""
        return {"dense": self.plan.in_features, "request": self.plan.in_features - self.user_features, "catalog": 0}[
            self.form
        ]

    @property
    def bytes(self) -> int:
        """Inputs and weights read once, outputs written once."""
        plan, width = self.plan, PRECISION_ROWS[self.plan.precision].bytes
        read = {
            "dense": width * plan.in_features,
            "request": width * self.candidate_features + 4,  # and the number of its request
            "catalog": width * plan.tasks * plan.hidden[0] + 8,  # a row of the table, and its id
        }[self.form]
        written = 4 * (plan.tasks * (2 if self.logits else 1) + 1)
        first = self.user_features if self.form == "catalog" else plan.in_features
        weights = width * plan.tasks * _products((first, *plan.hidden))
        return self.candidates * (read + written) + weights

    @property
    def flops(self) -> int:
        """Multiplications and additions of the candidates' matrix products."""
        multiplications = _products((self.candidate_features, *self.plan.hidden, 1))
        return 2 * self.plan.tasks * multiplications * self.candidates

    def memory_seconds(self, gpu: Gpu = H100) -> float:
        return self.bytes / gpu.bytes_per_second

    def tensor_seconds(self, gpu: Gpu = H100) -> float:
        return self.flops / gpu.flops_per_second

    def floor_seconds(self, gpu: Gpu = H100) -> float:
        """The lower bound: no kernel is faster."""
        return max(self.memory_seconds(gpu), self.tensor_seconds(gpu))

    def weights_from_l2(self, rows: int) -> int:
        """Bytes of weights read by tiles of ``rows`` candidates: each tile reads all weights."""
        weights = _products((self.candidate_features, *self.plan.hidden))
        tiles = -(-self.candidates // rows)
        return tiles * PRECISION_ROWS[self.plan.precision].bytes * self.plan.tasks * weights


def _products(widths: tuple[int, ...]) -> int:
    return sum(a * b for a, b in pairwise(widths))


def call_of(workload: str, candidates: int, form: str = "dense", precision: str = "bfloat16") -> Call:
    """A call of one of the workloads."""
    base = WORKLOADS[workload]
    return Call(replace(base.plan, precision=precision), base.user_features, candidates, form)


BATCHES = (128, 1024, 8192, 65536, 1 << 20)
# Rows per tile of the tower kernel for every GPU, and of the kernel for Hopper.
TILE_ROWS, HOPPER_ROWS = 64, 128


def table() -> str:
    """The Markdown table: one row per workload, form and batch."""
    lines = [
        "| workload | form | B | bytes, MB | GFLOP | memory, us | tensor, us | floor, us | weights from L2, MB: 64 "
        "| 128 | TB/s of L2 at the floor: 64 | 128 | seen, us |",
        "|" + " --- |" * 13,
    ]
    for workload in WORKLOADS:
        for form in FORMS:
            for batch in BATCHES if workload == "prerank3" else (8192, 65536):
                lines.append(_line(workload, form, batch))
    return "\n".join(lines)


def _line(workload: str, form: str, batch: int) -> str:
    call = call_of(workload, batch, form)
    floor = call.floor_seconds()
    streams = [call.weights_from_l2(rows) for rows in (TILE_ROWS, HOPPER_ROWS)]
    numbers = [call.bytes / 1e6, call.flops / 1e9]
    times = [call.memory_seconds() * 1e6, call.tensor_seconds() * 1e6, floor * 1e6]
    cells = [workload, form, f"{batch:,}", *(f"{number:.4g}" for number in (*numbers, *times))]
    cells += [f"{stream / 1e6:.4g}" for stream in streams]
    cells += [f"{stream / floor / 1e12:.2g}" for stream in streams]
    return "| " + " | ".join([*cells, "not run on a GPU yet"]) + " |"


if __name__ == "__main__":
    print(table())
