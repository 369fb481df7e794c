"""Configurations: which is taken, and the cache of tuned ones."""

from __future__ import annotations

import json
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from resflow_kernels.core.checks import precisions_of
from resflow_kernels.core.plan import Plan
from resflow_kernels.testing import WORKLOADS
from resflow_kernels.triton import configs
from resflow_kernels.triton.configs import Config
from tests.support.devices import Device

PLAN = Plan(6, (8,), (-1, 0))
CONFIG = Config(32, 32, 64, 4, 2)


def test_every_workload_ships_a_configuration() -> None:
    keys = {
        configs.signature(replace(workload.plan, precision=precision), "scores")
        for workload in WORKLOADS.values()
        for precision in precisions_of("cuda")
    }
    assert set(configs.shipped()) == keys


def test_tuned_before_shipped_before_the_rule(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plan, cuda = WORKLOADS["prerank3"].plan, torch.device("cuda", 0)
    shipped = configs.shipped()[configs.signature(plan, "scores")]
    assert configs.config_of(plan, "scores", torch.device("cpu")) == shipped
    assert configs.config_of(PLAN, "scores", cuda) == configs.by_rule(PLAN, "scores")

    monkeypatch.setenv("RESFLOW_CACHE", str(tmp_path))
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(configs, "device_key", lambda device: f"gpu-{device}")
    configs.refresh()
    try:
        assert configs.config_of(plan, "scores", cuda) == shipped
        configs.store(configs.cache_file("gpu-0"), {configs.signature(plan, "scores"): CONFIG})
        assert configs.config_of(plan, "scores", cuda) == CONFIG
        assert configs.config_of(plan, "scores", torch.device("cpu")) == shipped
        assert configs.config_of(replace(plan, precision="bfloat16"), "scores", cuda) != CONFIG
    finally:
        monkeypatch.undo()
        configs.refresh()


def test_where_the_cache_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RESFLOW_CACHE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", "/xdg")
    assert configs.cache_file("gpu") == Path("/xdg/resflow/triton-gpu.json")
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert configs.cache_file("gpu") == Path.home() / ".cache/resflow/triton-gpu.json"
    monkeypatch.setenv("RESFLOW_CACHE", "/own")
    assert configs.cache_file("gpu") == Path("/own/triton-gpu.json")


def test_storing_adds_and_leaves_no_other_file(tmp_path: Path) -> None:
    file = tmp_path / "new" / "triton-gpu.json"
    configs.store(file, {"a": CONFIG})
    configs.store(file, {"b": CONFIG._replace(warps=8)})
    assert configs.cached(file) == {"a": CONFIG, "b": CONFIG._replace(warps=8)}
    assert [path.name for path in file.parent.iterdir()] == [file.name]


@pytest.mark.parametrize(
    "text",
    ["", "[]", '{"a": 1', '{"a": {"block_m": 1}}', '{"a": 7}', json.dumps({"a": {**CONFIG._asdict(), "warps": -4}})],
)
def test_a_damaged_file_is_told_of_and_not_used(tmp_path: Path, text: str) -> None:
    file = tmp_path / "triton-gpu.json"
    file.write_text(text)
    configs.refresh()
    with pytest.warns(UserWarning, match="is damaged and not used"):
        assert configs.cached(file) == {}
    configs.store(file, {"a": CONFIG})
    assert configs.cached(file) == {"a": CONFIG}


def test_a_failed_write_leaves_the_file_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "triton-gpu.json"
    configs.store(file, {"a": CONFIG})

    def fail(*_: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(configs.os, "replace", fail)
    with pytest.raises(OSError, match="disk full"):
        configs.store(file, {"a": CONFIG._replace(warps=8)})
    assert configs.cached(file) == {"a": CONFIG} and len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize("precision", precisions_of("cuda"))
def test_the_space_is_small_and_valid(device: Device, precision: str) -> None:
    from resflow_kernels.triton import tuning

    for name in ("prerank3", "wide3"):
        plan = replace(WORKLOADS[name].plan, precision=precision)
        for kind in configs.KINDS:
            tried = tuning.space(plan, kind)
            assert len(set(tried)) == len(tried) <= 24
            assert all(value >= 16 and value & (value - 1) == 0 for config in tried for value in config[:3])


def test_tuning_happens_on_gpus_alone(device: Device) -> None:
    from resflow_kernels.triton import tune

    with pytest.raises(ValueError, match="tune: device must be a GPU, without TRITON_INTERPRET=1, got cpu"):
        tune(PLAN, "cpu")


def test_tuning_keeps_the_fastest(device: Device, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a clock of our own: what is tried, what is taken, and where it goes."""
    from resflow_kernels.triton import tune, tuning

    monkeypatch.setenv("RESFLOW_CACHE", str(tmp_path))
    monkeypatch.setattr(tuning.scoring, "INTERPRETED", False)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(tuning, "device_key", lambda device: "gpu")
    monkeypatch.setattr(torch.cuda, "device", lambda device: nullcontext())
    monkeypatch.setattr(tuning.torch, "zeros", lambda *shape, **_: torch.empty(*shape, dtype=torch.uint8))
    times = {config: at + 1.0 for at, config in enumerate(reversed(tuning.space(PLAN, "scores")))}
    monkeypatch.setattr(tuning, "_time", lambda plan, kind, config, *_: times.get(config, float("inf")))
    best = tune(PLAN)
    assert best[configs.signature(PLAN, "scores")] == tuning.space(PLAN, "scores")[-1]
    assert configs.cached(configs.cache_file("gpu")) == best and len(best) == 2
    configs.refresh()


def test_the_first_call_tunes_where_it_is_asked_to(
    device: Device, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from resflow_kernels.triton import tuning

    tuned: list[Plan] = []
    monkeypatch.setenv("RESFLOW_CACHE", str(tmp_path))
    monkeypatch.setattr(tuning, "device_key", lambda device: "gpu")
    monkeypatch.setattr(tuning.scoring, "INTERPRETED", False)
    monkeypatch.setattr(tuning, "tune", lambda plan, device: tuned.append(plan))
    gpu = torch.device("cuda", 0)
    tuning.tune_if_asked(PLAN, gpu)
    assert not tuned
    monkeypatch.setattr(tuning, "AUTOTUNE", True)
    tuning.tune_if_asked(PLAN, torch.device("cpu"))
    assert not tuned
    tuning.tune_if_asked(PLAN, gpu)
    tuning.tune_if_asked(PLAN, gpu)
    assert tuned == [PLAN]
    known = replace(PLAN, in_features=7)
    configs.store(tmp_path / "triton-gpu.json", {configs.signature(known, "scores"): CONFIG})
    tuning.tune_if_asked(known, gpu)
    assert tuned == [PLAN]
