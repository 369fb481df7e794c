"""The devices that property tests of the ops run on: a test that takes ``device`` is run once for each.

``@pytest.mark.devices("cuda", "emulated")`` chooses by name, ``@pytest.mark.devices(form="twin", bitwise=True)`` by
what they serve (``Served``; also ``row``, a dtype, and ``slow``). A test that takes ``precision`` too, and is not
parametrized by it, gets every one that its device computes in. Devices that are missing here are skipped with the
reason. ``RESFLOW_TEST_DEVICES=cuda,triton`` leaves the others out.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest

from tests.support.devices import DEVICES, Device, is_slow
from tests.support.interpreter import quick_calls


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "devices(*names, **served): the devices that a test of the ops runs on")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    chosen = {name for mark in metafunc.definition.iter_markers("parametrize") for name in _argument_names(mark)}
    if "device" not in metafunc.fixturenames or "device" in chosen:
        return
    names = os.environ.get("RESFLOW_TEST_DEVICES", ",".join(DEVICES)).split(",")
    for mark in metafunc.definition.iter_markers("devices"):
        names = [name for name in names if not mark.args or name in mark.args]
        names = [name for name in names if all(_serves(name, *wanted) for wanted in mark.kwargs.items())]
    if "precision" in metafunc.fixturenames and "precision" not in chosen:
        pairs = [(name, precision) for name in names for precision in DEVICES[name].precisions]
        metafunc.parametrize(("device", "precision"), pairs, indirect=["device"], scope="session")
    else:
        metafunc.parametrize("device", names, indirect=True, scope="session")


def _argument_names(mark: pytest.Mark) -> list[str]:
    names = mark.args[0]
    return [name.strip() for name in names.split(",")] if isinstance(names, str) else list(names)


def _serves(name: str, what: str, wanted: Any) -> bool:
    served = DEVICES[name]
    if what == "slow":
        return is_slow(name) == wanted
    if what == "form":
        return wanted in served.forms
    return wanted in served.rows if what == "row" else getattr(served, what) == wanted


@pytest.fixture(scope="session")
def device(request: pytest.FixtureRequest) -> Iterator[Device]:
    reason = Device.why_missing(request.param)
    if reason is not None:
        pytest.skip(f"{request.param}: {reason}")
    own = Device(request.param)
    with quick_calls() if own.interpreted else nullcontext():
        yield own


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """NumPy, which is Triton's interpreter, warns of infinities and NaN that these tests make on purpose."""
    for item in items:
        if "device" in getattr(item, "fixturenames", ()) and Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.filterwarnings("ignore::RuntimeWarning"))
