"""The examples of the README and of docs/ run as they stand."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from resflow_kernels import ResFlow
from resflow_kernels.serving.bundle import save_model

README = Path(__file__).parents[1] / "README.md"
PAGES = (README, *sorted((README.parent / "docs").glob("*.md")))
EXAMPLES = [
    example
    for page in PAGES
    for example in re.findall(r"```python\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL)
]
CONFIGS = re.findall(r"```toml\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)
BUNDLE = "out/kuairand.safetensors"


def test_there_is_an_example_of_module_ops_and_runtime() -> None:
    for name in ("ResFlow(", "torch.ops.resflow.", "Scorer.load("):
        assert any(name in example for example in EXAMPLES)


@pytest.mark.parametrize("example", EXAMPLES)
def test_example_runs(example: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "out").mkdir()
    save_model(BUNDLE, ResFlow(140).eval())
    exec(compile(example, str(README), "exec"), {})


def test_the_configuration_is_one_that_trains() -> None:
    from resflow_kernels.training.config import parse, tomllib
    from resflow_kernels.training.pipeline import check

    assert len(CONFIGS) == 1
    check(parse(tomllib.loads(CONFIGS[0])))
