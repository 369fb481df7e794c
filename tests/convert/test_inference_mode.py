"""Models and examples that were made under ``torch.inference_mode()``, as services do, fuse like any other."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from resflow_kernels import bundle, fuse
from resflow_kernels.convert.graph.module import STATE
from resflow_kernels.convert.graph.source import Other


class Ranker(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.items = nn.Embedding(20, 4)
        self.tower = nn.Sequential(nn.Linear(8, 6), nn.BatchNorm1d(6), nn.PReLU(), nn.Linear(6, 2), nn.Sigmoid())

    def forward(self, ids: Tensor, x: Tensor) -> Tensor:
        probs: Tensor = self.tower(torch.cat((self.items(ids), x), 1))
        return probs


@pytest.mark.parametrize("called_in_it", [False, True])
def test_a_model_of_inference_mode_fuses(called_in_it: bool) -> None:
    torch.manual_seed(0)
    with torch.inference_mode():
        model = Ranker().eval()
    kept = [*model.parameters(), *model.buffers()]
    with torch.inference_mode(called_in_it), torch.no_grad():
        example = torch.tensor([1, 3, 5]), torch.randn(3, 4)
        fused = fuse(model, example)
        assert fused.__dict__[STATE](fused, example, {}) is not Other
        torch.testing.assert_close(fused(*example), model(*example))
    assert all(a is b and a.is_inference() for a, b in zip(kept, (*model.parameters(), *model.buffers()), strict=True))
    with torch.inference_mode():
        model.tower[0].weight.mul_(2)
        torch.testing.assert_close(fused(*example), model(*example))


def test_a_bundle_of_such_a_model_is_short_to_print() -> None:
    with torch.inference_mode():
        model = nn.Sequential(nn.Linear(300, 8), nn.ReLU(), nn.Linear(8, 2)).eval()
    made = bundle.from_model(model, torch.randn(4, 300))
    assert made.weights[0].shape == (300, 8) and len(repr(made)) < 1000
