"""Fuse the models of four recommender packages and write ``bench/results/models-<machine>.{md,json,png}``.

``make bench-models`` installs the packages; those that are missing are left out and named. A part
(``--package``, ``--model``, ``--no-speed``) is only printed, unless ``--output`` is given. The exit code is 1 if
``fuse`` crashed or made a model that is wrong.
"""

from __future__ import annotations

import argparse
import importlib
import json
import platform
import subprocess
import sys
import warnings
from collections.abc import Sequence
from datetime import datetime, timezone
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch
from torch import nn

from bench.models import report
from bench.models.harness import Case, measure
from bench.noise import NoiseMonitor
from bench.rows import Results, Row
from bench.run import RESULTS
from resflow_kernels import __version__, _runtime, fuse
from resflow_kernels.core.machine import usable_cores

PACKAGES = {
    "deepctr": "deepctr-torch",
    "rechub": "torch-rechub",
    "widedeep": "pytorch-widedeep",
    "torchrec": "torchrec",
}
SECONDS, QUICK_SECONDS = 2.0, 0.7  # per model and batch size; a call that is longer has seven rounds


def main(arguments: Sequence[str]) -> int:
    """Measure, print, and write the report."""
    options = _options(arguments)
    warnings.simplefilter("ignore")  # the packages' own
    noise = NoiseMonitor()
    fuse(nn.Sequential(nn.Linear(8, 4), nn.Mish(), nn.Linear(4, 1)).eval(), torch.zeros(2, 8))  # loads torch.export
    rows, missing = _measured(options)
    if not rows:
        print("\n".join(["no models", *(f"{name}: {why}" for name, why in missing.items())]), file=sys.stderr)
        return 1
    machine = _machine(noise, options.quick, missing)
    results = Results(machine, _commit(), datetime.now(timezone.utc).isoformat(), rows)
    print("\n\n".join(filter(None, ["", *report.conclusions(results)])))
    if options.output:
        print(f"report: {_write(results, options.output)}")
    failed = report.failed(results)
    for name in failed:
        print(f"FAILED {name}")
    return 1 if failed else 0


def _options(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench.models", description=__doc__.splitlines()[0])
    parser.add_argument("--package", action="append", choices=list(PACKAGES), help="only this one; may be repeated")
    parser.add_argument("--model", default="", help="only models whose name contains this text")
    parser.add_argument("--quick", action="store_true", help="fewer rounds")
    parser.add_argument("--no-speed", action="store_true", help="without times")
    parser.add_argument("--output", type=Path, help="folder of the report, by default bench/results for a whole run")
    options = parser.parse_args(arguments)
    if not (options.output or options.package or options.model or options.no_speed):
        options.output = RESULTS
    return options


def _measured(options: argparse.Namespace) -> tuple[list[Row], dict[str, str]]:
    """The record of each model, and the packages that could not be imported, with the reasons."""
    rows: list[Row] = []
    missing: dict[str, str] = {}
    seconds = None if options.no_speed else QUICK_SECONDS if options.quick else SECONDS
    for module, package in PACKAGES.items():
        if options.package and module not in options.package:
            continue
        try:
            cases: list[Case] = list(importlib.import_module(f"bench.models.{module}").cases())
        except Exception as error:  # the package or a library of its own is missing, or is of another version
            missing[package] = f"{type(error).__name__}: {error}"
            print(f"{package} is left out: {missing[package]}", flush=True)
            continue
        for case in cases:
            if options.model in case.name:
                rows.append({"package": package, **measure(case, seconds)})
                print(_line(rows[-1]), flush=True)
    return rows, missing


def _line(row: Row) -> str:
    share = f"{100 * row['share_inside']:.1f} % inside" if "share_inside" in row else ""
    times = "  ".join(
        f"B = {one['batch']}: {one.get('problem') or format(one['eager'] / one['fused'], '.2f') + 'x'}"
        for one in row.get("speed", ())
    )
    message = " ".join(row["message"].split())[:160]
    return f"{row['package']:17s} {row['name']:30s} {row['status']:13s} {share:15s} {times} {message}".rstrip()


def _write(results: Results, folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"models-{results.slug}.json"
    content = {"machine_info": results.machine, "commit_info": results.commit, "datetime": results.date}
    path.write_text(json.dumps({**content, "models": results.rows}, indent=1) + "\n", encoding="utf-8")
    return report.write(path)


def _machine(noise: NoiseMonitor, quick: bool, missing: dict[str, str]) -> Row:
    """The facts that the other reports have, in the same places."""
    return {
        "cpu": {"brand_raw": _cpu()},
        "system": platform.system(),
        "release": platform.release(),
        "python_version": platform.python_version(),
        "resflow": {
            "version": __version__,
            "isa": _runtime.isa(),
            "cores": usable_cores(),
            "others_share": noise.others_share(),
            "quick": quick,
            "missing": missing,
            "versions": {name: _version(name) for name in ("torch", *PACKAGES.values())},
        },
    }


def _cpu() -> str:
    """The processor's model, as pytest-benchmark names it for the other reports."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def _commit() -> Row:
    def git(*arguments: str) -> str:
        done = subprocess.run(["git", *arguments], cwd=RESULTS.parent, capture_output=True, text=True, check=True)
        return done.stdout.strip()

    try:
        return {"id": git("rev-parse", "HEAD"), "dirty": bool(git("status", "--porcelain", "--untracked-files=no"))}
    except (OSError, subprocess.CalledProcessError):  # a source archive
        return {}


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
