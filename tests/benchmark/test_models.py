"""The harness on small models of our own, and the report of invented records: none of the packages is needed."""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from bench.models import __main__ as command
from bench.models import harness, report
from bench.models.harness import Case, measure
from bench.models.stand_ins import stand_ins
from bench.rows import Results


def rows(batch: int) -> tuple[Tensor]:
    return (torch.randn(batch, 8, generator=torch.Generator().manual_seed(1)),)


def mlp() -> nn.Module:
    return nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 2), nn.Sigmoid())


class Partly(nn.Module):
    """A third of its multiply-adds are among candidates, so that no row has them."""

    def __init__(self) -> None:
        super().__init__()
        self.tower = mlp()

    def forward(self, x: Tensor) -> Tensor:
        return self.tower(x) + (x @ x.T).mean()


class Refused(nn.Module):
    """Nothing of it works row by row."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.cdist(x, x).sort(0).values


def test_a_model_fused_as_a_whole_is_compared_and_timed() -> None:
    record = measure(Case("mlp", mlp, rows), seconds=1e-3)
    assert record["status"] == "fused" and record["share_inside"] == 1.0 and not record["message"]
    assert record["difference"] <= harness.TOLERANCE and record["fuse_seconds"] > 0
    assert [one["batch"] for one in record["speed"]] == list(harness.SPEED_BATCHES)
    assert all(one["eager"] > 0 and one["fused"] > 0 for one in record["speed"])


def test_what_stays_outside_is_named() -> None:
    record = measure(Case("partly", Partly, rows))
    assert record["status"] == "partly fused" and 0.01 < record["share_inside"] < 0.99
    assert record["message"] and "speed" not in record


@pytest.mark.parametrize(
    ("build", "status", "message"),
    [
        (Refused, "refused", ""),
        (lambda: nn.Linear(9, 1), "not built", "RuntimeError: mat1 and mat2"),
        (lambda: nn.Threshold(9.0, 0.0), "not built", "ValueError: eager outputs do not vary"),
    ],
)
def test_other_outcomes(build: Any, status: str, message: str) -> None:
    record = measure(Case("model", build, rows), seconds=1e-3)
    assert record["status"] == status and message in record["message"] and record["message"]
    assert "speed" not in record


def test_faults_of_fuse_are_told_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    outcomes: dict[str, Any] = {
        "crashed": lambda model, example: 1 / 0,
        "fails at the call": lambda model, example: nn.Linear(9, 2),
        "wrong": lambda model, example: nn.Sequential(model, nn.Hardtanh(0.0, 0.5)),
        "nothing inside": lambda model, example: model,
    }
    for status, fuse in outcomes.items():
        monkeypatch.setattr(harness, "fuse", fuse)
        assert measure(Case("mlp", mlp, rows), seconds=1e-3)["status"] == status
    monkeypatch.setattr(harness, "fuse", outcomes["wrong"])
    assert "differs from eager by" in measure(Case("mlp", mlp, rows))["message"]


def test_a_difference_is_relative_to_large_outputs_and_shapes_must_agree() -> None:
    x = (torch.tensor([[100.0, 1.0]]),)
    one = nn.Identity()
    assert harness.difference(one, lambda x: x + 1.0, x) == pytest.approx(0.01)  # type: ignore[arg-type]
    assert harness.difference(one, lambda x: x * torch.nan, x) == torch.inf  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="eager returns shapes"):
        harness.difference(one, lambda x: x[0], x)  # type: ignore[arg-type]


def test_tensors_of_nested_outputs() -> None:
    a, b, c = torch.zeros(1), torch.ones(1), torch.ones(2)
    found = harness.tensors({"x": [a, (b,)], "y": c, "z": None})
    assert [id(tensor) for tensor in found] == [id(a), id(b), id(c)]


def test_a_batch_size_that_fails_has_its_reason() -> None:
    def squeezed(x: Tensor) -> Tensor:
        if len(x) == 1:
            raise IndexError("the batch is lost")
        return x

    case = Case("model", nn.Identity, rows)
    inside: Any = nn.Identity()
    assert harness.speed(case, squeezed, inside, 1, 0.0)["problem"].startswith("eager fails: IndexError")  # type: ignore[arg-type]
    assert harness.speed(case, inside, squeezed, 1, 0.0)["problem"].startswith("fused fails: IndexError")  # type: ignore[arg-type]
    assert harness.speed(case, inside, nn.ReLU(), 1, 0.0)["problem"].startswith("fused is wrong by")


def test_a_missing_library_is_empty_only_in_the_block() -> None:
    with stand_ins("no_such_library"):
        from no_such_library.part import Thing  # type: ignore[import-not-found]

        assert isinstance(Thing(1, key=2), Thing)
    assert not any(name.startswith("no_such_library") for name in sys.modules)
    with pytest.raises(ModuleNotFoundError):
        importlib.import_module("no_such_library")


def record(package: str, name: str, status: str, **more: Any) -> dict[str, Any]:
    fused = {"share_inside": 1.0, "difference": 1e-7, "fuse_seconds": 0.5} if status in harness.ACCEPTED else {}
    return {"package": package, "name": name, "status": status, "kind": "single task", "message": "", **fused, **more}


def times(*factors: float) -> list[dict[str, Any]]:
    return [
        {"batch": batch, "eager": factor * 1e-4, "fused": 1e-4}
        for batch, factor in zip(harness.SPEED_BATCHES, factors, strict=True)
    ]


RECORDS = [
    record("one", "A", "fused", kind="multi-task", speed=times(3.0, 2.0, 0.5)),
    record("one", "B", "partly fused", share_inside=0.5, message="att:\n  stays", speed=times(2.0, 2.0, 1.0)),
    record("one", "C", "refused", kind="multi-task", message="C: nothing fuses"),
    record("two", "D", "fused", speed=[{"batch": 1, "problem": "eager fails: IndexError: lost"}, *times(9, 1, 1)[1:]]),
]


@pytest.fixture
def results() -> Results:
    own = {
        "version": "0.1.0",
        "isa": "avx2",
        "cores": 2,
        "others_share": 0.0,
        "quick": False,
        "missing": {"three": "ModuleNotFoundError: No module named 'three'"},
        "versions": {"torch": "2.13.0"},
    }
    about = {"cpu": {"brand_raw": "Made-up 9000"}, "system": "Linux", "release": "6.1", "python_version": "3.11.7"}
    return Results({**about, "resflow": own}, {"id": "0123456789abcdef"}, "2026-01-02T03:04:05", RECORDS)


def test_markdown(results: Results) -> None:
    text = report.markdown(results)
    for part in (
        "# What `fuse` does to models of other packages",
        "commit 0123456789ab |",
        "- **three: ModuleNotFoundError: No module named 'three'**",
        "| one | 3 | 1 | 1 | 1 | 1 of 2 | 75 % | 0.5 s | 2.50x | 2.00x | 0.75x |",
        "| two | 1 | 1 | 0 | 0 |  | 100 % | 0.5 s |  | 1.00x | 1.00x |",
        "| **all** | **4** | **2** | **1** | **1** | **1 of 2** | **100 %** | **0.5 s** | **2.50x** |",
        "Slower than eager (below 0.95x) in 1 of 8 cases:\n\n- one A, B = 4,096: 0.50x",
        "- two D, B = 1: eager fails: IndexError: lost",
        "| one | A | multi-task | fused | 100.0 % | 1e-07 | 0.50 | 300, 100 (3.00x) | 200, 100 (2.00x) | 50.0, ",
        "| one | C | multi-task | refused |  |  |  |  |  |  |",
        "| two | D | single task | fused | 100.0 % | 1e-07 | 0.50 | not timed | 100, 100 (1.00x) |",
        "- one B, partly fused: att: stays",
        "- one C, refused: C: nothing fuses",
    ):
        assert part in text, part
    assert "Disturbed" not in text and "crashed" not in text.partition("## How")[0]


def test_failures_have_columns_and_are_named(results: Results) -> None:
    late = [{"batch": 1, "problem": "fused is wrong by 1e-01"}]
    more = [record("two", "E", "crashed", message="boom"), record("two", "F", "fused", speed=late)]
    worse = Results(results.machine, results.commit, results.date, [*RECORDS, *more])
    assert report.failed(results) == [] and report.failed(worse) == ["two E", "two F"]
    assert "| refused | crashed | multi-task |" in report.summary(worse)


def test_a_run_without_times_says_nothing_of_them(results: Results) -> None:
    untimed = [{name: value for name, value in row.items() if name != "speed"} for row in RECORDS]
    results.machine["resflow"]["others_share"] = 0.4
    assert "**Disturbed run" in report.markdown(results)
    text = report.markdown(Results(results.machine, results.commit, results.date, untimed))
    assert "Disturbed" not in text and "Slower" not in text and "Not timed" not in text


def test_files(results: Results, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="matplotlib is not installed")
    written = command._write(results, tmp_path / "new")
    assert written.name == "models-made-up-9000-2-cores-avx2.md"
    assert report.load(written.with_suffix(".json")) == results
    picture = written.with_suffix(".png")
    assert picture.read_bytes().startswith(b"\x89PNG") and f"({picture.name})" in written.read_text(encoding="utf-8")


def test_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def cases() -> list[Case]:
        return [Case("mlp", mlp, rows), Case("other", Refused, rows)]

    def load(name: str) -> Any:
        if name.endswith(".deepctr"):
            return type("Module", (), {"cases": staticmethod(cases)})
        raise ModuleNotFoundError("No module named 'it'")

    monkeypatch.setattr(command.importlib, "import_module", load)
    assert command.main(["--no-speed", "--output", str(tmp_path)]) == 0
    (written,) = tmp_path.glob("models-*.json")
    content = json.loads(written.read_text(encoding="utf-8"))
    assert [row["status"] for row in content["models"]] == ["fused", "refused"]
    assert content["machine_info"]["resflow"]["missing"].keys() == {"torch-rechub", "pytorch-widedeep", "torchrec"}
    assert "torchrec is left out: ModuleNotFoundError: No module named 'it'" in capsys.readouterr().out
    assert command.main(["--package", "rechub"]) == 1


def test_only_a_whole_run_is_written_by_default() -> None:
    assert command._options([]).output == command._options(["--quick"]).output == command.RESULTS
    for part in (["--no-speed"], ["--package", "rechub"], ["--model", "D"]):
        assert command._options(part).output is None


def test_drawn_weights_are_scaled_by_the_inputs_of_a_layer() -> None:
    layers = (nn.Linear(600, 50), nn.Conv1d(600, 50, 1))
    for layer in layers:
        harness.randomize(layer)
        assert float(layer.weight.detach().std()) == pytest.approx((1.5 / 600) ** 0.5, rel=0.05)
