"""The GPU suite without a GPU: on the CPU's ops, with bursts whose time is set by the test."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch

from bench.gpu import suite
from bench.gpu.suite import Case, Implementation, Inputs, cases, measure, run_case
from resflow_kernels.testing import WORKLOADS


@pytest.fixture
def on_the_cpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(suite, "DEVICE", "cpu")
    monkeypatch.setattr(suite, "CATALOG_ITEMS", 200)
    monkeypatch.setattr(suite, "MOST_SETS", 2)
    monkeypatch.setattr(suite, "as_graphs", lambda runs: runs)

    def burst(runs: Iterator[Any], count: int) -> float:
        next(runs)()
        return 1e-3

    monkeypatch.setattr(suite, "_burst", burst)
    with torch.inference_mode():
        yield


@pytest.mark.parametrize("form", ["dense", "request", "catalog"])
@pytest.mark.parametrize("precision", ["bfloat16", "float32"])
def test_every_form_is_checked_and_timed(on_the_cpu: None, form: str, precision: str) -> None:
    case = Case("prerank3", 40, form, precision)
    rows = list(run_case(case, lambda inputs: [inputs.ours(), inputs.baseline(False)]))
    assert [(row["implementation"], row["graph"]) for row in rows] == [
        ("resflow", False),
        ("resflow", True),
        ("eager", False),
        ("eager", True),
    ]
    assert all(row["problem"] is None and row["median"] == 1e-3 and row["form"] == form for row in rows)
    assert rows[0]["error"] < (2e-6 if precision == "float32" else 1e-3)


def test_the_baseline_multiplies_in_tensorfloat32_where_ours_does(on_the_cpu: None) -> None:
    seen = []
    for precision in ("tensorfloat32", "float32"):
        rows = list(run_case(Case("prerank3", 40, precision=precision), lambda inputs: [inputs.baseline(False)]))
        assert [row["problem"] for row in rows] == [None, None]
        seen.append(torch.get_float32_matmul_precision())
    assert seen == ["high", "highest"]


def test_wrong_and_failing_implementations_are_not_timed(on_the_cpu: None) -> None:
    def implementations(inputs: Inputs) -> list[Implementation]:
        good = inputs.ours()
        wrong = replace(good, name="wrong", probs=lambda output: output.probs + 0.01)
        empty = replace(good, name="unwritten", probs=lambda output: output.probs * float("nan"))

        def fail() -> object:
            raise RuntimeError("no such kernel")

        return [good, wrong, empty, replace(good, name="failing", runs=[fail])]

    rows = {row["implementation"]: row for row in run_case(Case("prerank3", 40), implementations)}
    assert rows["wrong"]["problem"].startswith("probabilities off by 1.") and "median" not in rows["wrong"]
    assert rows["unwritten"]["problem"].startswith("probabilities off by nan")
    assert rows["failing"]["problem"] == "RuntimeError: no such kernel"
    assert rows["resflow"]["problem"] is None


def test_the_compiled_baseline_runs_in_any_number_of_cases(on_the_cpu: None, monkeypatch: pytest.MonkeyPatch) -> None:
    compiled = torch.compile
    monkeypatch.setattr(torch, "compile", lambda run, mode, **rest: compiled(run, backend="eager", **rest))
    for batch in range(2, 12):
        baseline = Inputs(Case("prerank3", batch)).baseline(compiled=True)
        assert baseline.probs(baseline.runs[0]()).shape == (batch, 3)


def test_rounds_alternate_their_order(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[str] = []

    def burst(runs: Iterator[Any], count: int) -> float:
        seen.append(str(next(runs)()))
        return suite.BURST_SECONDS / 10

    monkeypatch.setattr(suite, "_burst", burst)
    sets: Sequence[Any] = [lambda: "a", lambda: "b"]
    seconds = measure({"one": sets, "two": [lambda: "c"]})
    assert all(len(rounds) == suite.ROUNDS for rounds in seconds.values())
    assert set(seen) == {"a", "b", "c"}  # inputs rotate
    timed = ["ab".find(name) < 0 for name in seen[4:]]
    assert timed[:4] == [True, False, False, True]


def test_the_most_informative_cases_come_first() -> None:
    order = cases()
    assert order[0] == Case("prerank3", 8192) and len(set(order)) == len(order)
    assert {case.candidates for case in order if case.workload == "prerank3"} == {128, 1024, 8192, 65536, 1 << 20}
    assert {case.workload for case in order} == set(WORKLOADS)
    assert {case.precision for case in order} == {"bfloat16", "float16", "tensorfloat32", "float32"}
