"""Options, the machine's facts in the results, and the transfer of interleaved measurements to pytest-benchmark."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import pytest
import torch

from bench.cases import ALL, CORES, Case, CaseRunner, facts
from bench.noise import NoiseMonitor
from resflow_kernels import __version__, _runtime
from resflow_kernels.benchmark.baselines import Implementation, label


class Replay:
    """A timer that passes pytest-benchmark the times of calls already measured, interleaved with other implementations.

    pytest-benchmark times one block of calls per test, so anything that disturbs the machine during that block would be
    charged to one implementation. It reads its timer twice per round: this one returns 0, then the round's time.
    """

    __name__ = "interleaved"

    def __init__(self) -> None:
        self._readings: Iterator[float] = iter(())

    def load(self, samples: Sequence[float]) -> None:
        """Set the seconds of the next rounds."""
        self._readings = iter([reading for sample in samples for reading in (0.0, sample)])

    def __call__(self) -> float:
        return next(self._readings)


replay = Replay()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--quick", action="store_true", help="The cases of `make bench-quick`.")


def pytest_configure(config: pytest.Config) -> None:
    config.stash[_RUNNER] = CaseRunner(config.getoption("--quick"))
    config.stash[_PROBLEMS] = []
    config.stash[_NOISE] = NoiseMonitor()


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Turn the cases that a test module lists in ``cases(quick)`` into parameters."""
    if "implementation" in metafunc.fixturenames:
        from bench.cases import identify, parameters

        cases = metafunc.module.cases(metafunc.config.getoption("--quick"))
        metafunc.parametrize(("case", "implementation", "way"), parameters(cases), ids=identify)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        item.add_marker(pytest.mark.benchmark(timer=replay))


def pytest_benchmark_update_machine_info(config: pytest.Config, machine_info: dict[str, Any]) -> None:
    machine_info["resflow"] = {
        "version": __version__,
        "isa": _runtime.isa(),
        "read_gbytes_per_second": _read_gbytes_per_second(),
        "cores": CORES,
        "others_share": config.stash[_NOISE].others_share(),
        "quick": config.getoption("--quick"),
        "baselines": {label(implementation): _state(implementation) for implementation in ALL},
        "versions": {name: _version(name) for name in ("torch", "onnx", "onnxruntime", "openvino", "numpy")},
    }


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    """List the implementations that were not timed, and why: none is left out silently."""
    for problem in config.stash[_PROBLEMS]:
        terminalreporter.write_line(f"NOT TIMED {problem}")
    for implementation in ALL:
        if implementation.missing() is not None:
            terminalreporter.write_line(f"MISSING BASELINE {label(implementation)}: {implementation.missing()}")


def _state(implementation: type[Implementation]) -> str:
    missing = implementation.missing()
    return "measured" if missing is None else f"missing: {missing}"


def _version(library: str) -> str:
    try:
        return version(library)
    except PackageNotFoundError:
        return "not installed"


_RUNNER = pytest.StashKey[CaseRunner]()
_PROBLEMS = pytest.StashKey[list[str]]()
_NOISE = pytest.StashKey[NoiseMonitor]()


def _read_gbytes_per_second() -> float:
    """Memory read bandwidth of all cores: the roofline's slope."""
    floats = torch.ones(1 << 26)
    rates = []
    for _ in range(5):
        began = time.perf_counter()
        floats.sum()
        rates.append(floats.nbytes / (time.perf_counter() - began) * 1e-9)
    return max(rates)


@pytest.fixture
def record(benchmark: Any) -> Callable[[Sequence[float], dict[str, object]], None]:
    """Pass pytest-benchmark a row: the seconds of its calls, and its facts."""

    def write(samples: Sequence[float], info: dict[str, object]) -> None:
        benchmark.extra_info.update(info)
        replay.load(samples)
        benchmark.pedantic(lambda: None, rounds=len(samples))

    return write


@pytest.fixture
def run_case(
    request: pytest.FixtureRequest, record: Callable[[Sequence[float], dict[str, object]], None]
) -> Callable[[Case, type[Implementation], str], None]:
    """Measure a case, unless an earlier row has, and record the row of one implementation.

    A baseline that is missing, fails or is wrong has a row without a time, which the report lists; for our own
    implementation the test fails.
    """
    runner = request.config.stash[_RUNNER]

    def row(case: Case, implementation: type[Implementation], way: str) -> None:
        entry = runner.entry(case, implementation, way)
        info = facts(case, entry, *runner.results(case))
        record(entry.timing.samples or [0.0], info)
        if entry.problem is not None:
            if implementation.missing() is None:  # missing ones are listed once, in the summary
                request.config.stash[_PROBLEMS].append(f"{case} {entry.name}: {entry.problem}")
            assert not entry.ours, entry.problem

    return row
