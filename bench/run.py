"""Run the benchmarks and write ``bench/results/<machine>.{json,md}`` and charts: ``make bench``, ``make bench-quick``.

Other arguments go to pytest, such as ``-k small``.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path

from bench.report import write
from bench.rows import load
from bench.targets import evaluate, show

FOLDER = Path(__file__).parent
RESULTS = FOLDER / "results"


def main(arguments: list[str]) -> int:
    """Run pytest and write the report if there are results; returns pytest's exit code."""
    RESULTS.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir=RESULTS) as folder:
        raw = Path(folder) / "results.json"
        command = [sys.executable, "-m", "pytest", str(FOLDER), "-q", "-rs", f"--benchmark-json={raw}"]
        code = subprocess.run([*command, "--benchmark-quiet", "-p", "no:cacheprovider", *arguments]).returncode
        if not raw.exists() or not raw.stat().st_size:
            print("no results", file=sys.stderr)
            return code or 1
        path = RESULTS / f"{load(raw).slug}.json"
        path.write_text(_without_samples(raw.read_text(encoding="utf-8")), encoding="utf-8")
    report = write(path)
    results = load(path)
    for evaluation in evaluate(results):
        target, measured = evaluation
        value = "" if measured is None else f": {measured.of}: {show(measured.value, target.unit)} ({measured.beside})"
        print(f"{evaluation.text.strip('*'):12s} {target.name} {target.bound}{value}")
    print("\n".join(filter(None, [results.disturbance, f"report: {report}"])))
    return code


def _without_samples(text: str) -> str:
    """pytest-benchmark's JSON without the time of every call: tens of megabytes that the statistics summarise."""
    content = json.loads(text)
    for entry in content["benchmarks"]:
        entry["stats"].pop("data", None)
    return json.dumps(content, indent=1)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
