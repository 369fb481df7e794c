"""The report of a small handwritten run: ratios, targets, slopes, problems and charts."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from bench import noise, report
from bench.noise import NoiseMonitor
from bench.rows import load
from bench.targets import TARGETS, evaluate

BASELINES = {"resflow": "measured", "eager": "measured", "openvino": "missing: openvino is not installed"}


def row(implementation: str, seconds: float, **more: Any) -> dict[str, Any]:
    """One benchmark as pytest-benchmark writes it."""
    info = {
        "form": "dense",
        "workload": "prerank3",
        "candidates": 16,
        "requests": 0,
        "tasks": 3,
        "features": 576,
        "threads": 2,
        "mode": "back to back",
        "axis": "",
        "implementation": implementation,
        "precision": "float32",
        "way": "dense",
        "ours": implementation == "resflow",
        "problem": None,
        "error": 1e-7,
        "p99": 2 * seconds,
        "gflops": 100.0,
        "peak_gflops": 200.0,
        "share_of_peak": 0.5,
        **more,
    }
    return {"extra_info": info, "stats": {"median": seconds, "q1": seconds, "q3": seconds}}


def canned() -> list[dict[str, Any]]:
    request = {"form": "request", "candidates": 1024, "requests": 1, "way": "split"}
    small = {"form": "small batches", "candidates": 1}
    grown = {"form": "growth", "axis": "candidates", "requests": 1, "way": "split"}
    return [
        row("resflow", 10e-6),
        row("eager", 40e-6),
        row("openvino", 0.0, problem="openvino is not installed"),
        row("onnxruntime", 0.0, problem="wrong: probabilities off by 3e-02"),
        row("eager bfloat16", 5e-6, precision="bfloat16"),
        row("resflow", 1e-3, **request),
        row("eager", 2.6e-3, **{**request, "way": "joined rows"}),
        row("eager", 1.2e-3, **request),
        row("resflow", 10e-6, **small, p99=35e-6),
        row("eager", 21e-6, **small),
        row("resflow", 1.0, form="share of peak", candidates=1024, threads=1, share_of_peak=0.951),
        row("resflow", 1.0, form="share of peak", candidates=16, threads=1, share_of_peak=0.1),
        row("resflow", 1e-5, form="overhead", medians={"C++": 5e-6, "torch op": 8e-6}),
        *(row("resflow", count * 1e-6, **grown, candidates=count) for count in (128, 1024)),
    ]


@pytest.fixture
def results_file(tmp_path: Path) -> Path:
    machine = {
        "cpu": {"brand_raw": "AMD EPYC(tm) 9654 @ 2 GHz"},
        "system": "Linux",
        "release": "6.1",
        "python_version": "3.11.7",
        "resflow": {
            "version": "0.1.0",
            "isa": "avx512",
            "cores": 2,
            "quick": True,
            "read_gbytes_per_second": 20.0,
            "others_share": 0.01,
            "baselines": {**BASELINES, "onnxruntime": "measured", "eager bfloat16": "measured"},
            "versions": {"torch": "2.13.0"},
        },
    }
    commit = {"id": "0123456789abcdef", "dirty": True}
    content = {
        "machine_info": machine,
        "commit_info": commit,
        "datetime": "2026-01-02T03:04:05+00:00",
        "benchmarks": canned(),
    }
    path = tmp_path / "run.json"
    path.write_text(json.dumps(content))
    return path


def test_bars(results_file: Path) -> None:
    evaluations = evaluate(load(results_file))
    shown = {one.target.name: (one.measured and round(one.measured.value, 3), one.text) for one in evaluations}
    assert list(shown) == [target.name for target in TARGETS]
    missing = (None, "not measured")
    assert shown == dict.fromkeys(shown, missing) | {
        "share of the multiply-add peak, one thread, B ≥ 1024": (0.951, "pass"),
        "requests: over the best fp32 baseline on joined rows": (2.6, "pass"),
        "requests: over the best fp32 baseline's split by hand": (1.2, "**fail**"),
        "small batches: over the best fp32 baseline": (2.1, "pass"),
        "small batches: P99 over the median": (3.5, "**fail**"),
        "the torch op's overhead": (3.0, "pass"),
    }


def test_markdown(results_file: Path) -> None:
    text = report.markdown(load(results_file))
    for part in (
        "# Quick benchmark: AMD EPYC(tm) 9654 @ 2 GHz, 2 cores",
        "commit 0123456789ab with uncommitted changes",
        "torch 2.13.0",
        "2026-01-02 03:04:05",
        "- **openvino: missing: openvino is not installed**",
        "- **onnxruntime, dense: wrong: probabilities off by 3e-02** (1 cases)",
        "| 16 | 10.0 | 40.0 | 5.0 | 100.0 | 50.0 % | 2.00 | 4.00 (eager) | 0.50 (eager bfloat16) |",
        "| 1 x 1,024 | 1,000 | 2,600 / 1,200 | 100.0 | 50.0 % | 2.00 | 2.60 (eager) | 1.20 (eager) | 1.20 (eager) |",
        "| resflow | split | 1.00 |",
        "| torch op | 8.00 | 3.00 |",
    ):
        assert part in text, part


def test_a_disturbed_run_says_so(results_file: Path) -> None:
    results = load(results_file)
    assert results.disturbance is None and "Disturbed" not in report.markdown(results)
    results.machine["resflow"]["others_share"] = 0.4
    assert "**Disturbed run: other processes took 40 % of the machine" in report.markdown(results)
    results.machine["resflow"]["others_share"] = None
    assert "is not known here" in report.markdown(results)


def test_a_share_above_the_peak_passes_no_bar(results_file: Path) -> None:
    results = load(results_file)
    for entry in results.rows:
        entry["share_of_peak"] = 1.39
    assert evaluate(results)[0].text == "**invalid**"


def test_own_time_is_that_of_this_process_and_its_children() -> None:
    before = noise._times()
    if before is None:
        pytest.skip("there is no /proc/stat")
    times = os.times()
    busy = "import time\nwhile time.process_time() < 0.3: pass"
    end = time.process_time() + 0.3
    while time.process_time() < end:
        pass
    subprocess.run([sys.executable, "-c", busy], check=True)
    after = noise._times()
    used = sum(os.times()[:4]) - sum(times[:4])  # user and system time, this process's and that of ended children
    assert after is not None and used >= 0.56  # each of the four times is cut to ticks of 10 ms
    total, all_busy, own = (end - start for start, end in zip(before, after, strict=True))
    # The kernel counts in ticks of 10 ms, and a machine's by sampling.
    assert own == pytest.approx(used, abs=0.05) and 0.5 * own <= all_busy <= total + 0.01


def test_others_time_is_distinguished_from_ones_own() -> None:
    monitor = NoiseMonitor()
    monitor._start = (0.0, 0.0, 0.0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(noise, "_times", lambda: (10.0, 6.0, 2.0))
        assert monitor.others_share() == pytest.approx(0.4)


def test_files(results_file: Path) -> None:
    pytest.importorskip("matplotlib", reason="matplotlib is not installed")
    written = report.write(results_file)
    assert written == results_file.with_suffix(".md")
    text = written.read_text()
    for name in ("latency", "roofline", "speed-up", "catalog"):
        picture = results_file.parent / f"amd-epyc-9654-2-cores-avx512-quick-{name}.png"
        assert picture.read_bytes().startswith(b"\x89PNG") and f"({picture.name})" in text


def test_without_matplotlib_the_report_says_so(results_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(report, "find_spec", lambda _: None)
    assert "No charts: matplotlib is not installed" in report.write(results_file).read_text()


def test_slope() -> None:
    assert report.slope([(1, 5.0), (4, 10.0), (16, 20.0)]) == pytest.approx(0.5)
