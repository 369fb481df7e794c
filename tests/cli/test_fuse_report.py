"""``resflow fuse-report``: a user's model by the name of the function that makes it."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from resflow_kernels.cli import build_app

MODULE = """
import torch
from torch import nn

class Ranker(nn.Module):
    def __init__(self):
        super().__init__()
        self.bottom = nn.Sequential(nn.Linear(8, 16), nn.LayerNorm(16), nn.ReLU())
        self.heads = nn.ModuleList(nn.Linear(16, 1) for _ in range(2))

    def forward(self, x):
        hidden = self.bottom(x)
        return [torch.sigmoid(head(hidden)) for head in self.heads]

def ranker():
    return Ranker().eval(), (torch.randn(4, 8),)

def lonely():
    return Ranker()
"""


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    (tmp_path / "some_rankers.py").write_text(MODULE)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "some_rankers", raising=False)
    return "some_rankers"


def invoke(*arguments: str) -> Any:
    return CliRunner().invoke(build_app(), ["fuse-report", *arguments])


def test_a_report(module: str) -> None:
    text = invoke(f"{module}:ranker")
    assert text.exit_code == 0 and "Ranker: 1 region, 100.0% of the multiply-adds inside" in text.stdout
    facts = json.loads(invoke(f"{module}:ranker", "--json").stdout)
    assert facts["share_inside"] == 1 and facts["regions"][0]["multiply_adds"] == 8 * 16 + 2 * 16


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("ranker", "MODULE:FUNCTION must name both"),
        ("no_such_module:ranker", "No module named 'no_such_module'"),
        ("some_rankers:nothing", "must be a function, got none of this name"),
        ("some_rankers:lonely", "must return a model and its inputs, got Ranker"),
    ],
)
def test_what_is_refused(module: str, name: str, text: str) -> None:
    result = invoke(name)
    assert result.exit_code == 2 and text in result.output
