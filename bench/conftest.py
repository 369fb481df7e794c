"""Options, what the results say about the machine, and how times measured in turns reach pytest-benchmark."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import pytest
import torch

from bench.cases import CORES, EVERYONE, Case, Contests, facts
from bench.quiet import Watch
from resflow_kernels import __version__, _runtime
from resflow_kernels.benchmark.peers import Contestant, label


class Replay:
    """A timer that hands pytest-benchmark the times of calls made in turns with other contestants'.

    pytest-benchmark times one block of calls a test, which would charge a contestant with the moods the machine had
    in that block. It reads its timer twice a round: the second reading is the first and the round's time.
    """

    __name__ = "in_turns"

    def __init__(self) -> None:
        self._readings: Iterator[float] = iter(())

    def load(self, samples: Sequence[float]) -> None:
        """Seconds of the rounds to come."""
        self._readings = iter([reading for sample in samples for reading in (0.0, sample)])

    def __call__(self) -> float:
        return next(self._readings)


replay = Replay()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--quick", action="store_true", help="The cases of `make bench-quick`.")


def pytest_configure(config: pytest.Config) -> None:
    config.stash[_CONTESTS] = Contests(config.getoption("--quick"))
    config.stash[_PROBLEMS] = []
    config.stash[_WATCH] = Watch()


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """A test module lists its cases in ``cases(quick)``; here they become parameters."""
    if "contestant" in metafunc.fixturenames:
        from bench.cases import identify, parameters

        cases = metafunc.module.cases(metafunc.config.getoption("--quick"))
        metafunc.parametrize(("case", "contestant", "way"), parameters(cases), ids=identify)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        item.add_marker(pytest.mark.benchmark(timer=replay))


def pytest_benchmark_update_machine_info(config: pytest.Config, machine_info: dict[str, Any]) -> None:
    machine_info["resflow"] = {
        "version": __version__,
        "isa": _runtime.isa(),
        "read_gbytes_per_second": _read_gbytes_per_second(),
        "cores": CORES,
        "taken_by_others": config.stash[_WATCH].taken_by_others(),
        "quick": config.getoption("--quick"),
        "peers": {label(contestant): _state(contestant) for contestant in EVERYONE},
        "versions": {name: _version(name) for name in ("torch", "onnx", "onnxruntime", "openvino", "numpy")},
    }


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    """Who was not timed, and why: nothing is left out in silence."""
    for problem in config.stash[_PROBLEMS]:
        terminalreporter.write_line(f"NOT TIMED {problem}")
    for contestant in EVERYONE:
        if contestant.missing() is not None:
            terminalreporter.write_line(f"MISSING PEER {label(contestant)}: {contestant.missing()}")


def _state(contestant: type[Contestant]) -> str:
    missing = contestant.missing()
    return "takes part" if missing is None else f"missing: {missing}"


def _version(library: str) -> str:
    try:
        return version(library)
    except PackageNotFoundError:
        return "not installed"


_CONTESTS = pytest.StashKey[Contests]()
_PROBLEMS = pytest.StashKey[list[str]]()
_WATCH = pytest.StashKey[Watch]()


def _read_gbytes_per_second() -> float:
    """What all cores read from memory: the roofline's slope."""
    floats = torch.ones(1 << 26)
    rates = []
    for _ in range(5):
        began = time.perf_counter()
        floats.sum()
        rates.append(floats.nbytes / (time.perf_counter() - began) * 1e-9)
    return max(rates)


@pytest.fixture
def record(benchmark: Any) -> Callable[[Sequence[float], dict[str, object]], None]:
    """Hand pytest-benchmark a row: seconds of calls, and what it is about."""

    def write(samples: Sequence[float], info: dict[str, object]) -> None:
        benchmark.extra_info.update(info)
        replay.load(samples)
        benchmark.pedantic(lambda: None, rounds=len(samples))

    return write


@pytest.fixture
def take_part(
    request: pytest.FixtureRequest, record: Callable[[Sequence[float], dict[str, object]], None]
) -> Callable[[Case, type[Contestant], str], None]:
    """Hold a case's contest, unless another row has, and record this entrant's row.

    A peer that is missing, fails or is wrong has a row without a time, which the report lists; ours fails the test.
    """
    contests = request.config.stash[_CONTESTS]

    def row(case: Case, contestant: type[Contestant], way: str) -> None:
        entry = contests.entry(case, contestant, way)
        info = facts(case, entry, *contests.results(case))
        record(entry.timing.samples or [0.0], info)
        if entry.problem is not None:
            if contestant.missing() is None:  # those are listed once
                request.config.stash[_PROBLEMS].append(f"{case} {entry.name}: {entry.problem}")
            assert not entry.ours, entry.problem

    return row
