"""The packed form of a fused model: its numbers, and that compilers take it."""

from __future__ import annotations

import copy
import pickle
from pathlib import Path

import pytest
import torch
from torch import nn

from resflow_kernels import fuse
from tests.convert.test_lookups import ByColumn, ByName, inputs_of


@pytest.mark.parametrize("make", [ByName, ByColumn])
def test_it_computes_what_the_fused_model_does(make: type[nn.Module]) -> None:
    torch.manual_seed(0)
    model = make().eval()
    fused = fuse(model, inputs_of(model, 9))
    packed = fuse.packed(fused)
    with torch.inference_mode():
        for batch in (1, 9, 40):
            given = inputs_of(model, batch)
            assert torch.equal(packed(*given), fused(*given))
    assert not list(packed.parameters())
    given = inputs_of(model, 7)
    for other in (copy.deepcopy(packed), pickle.loads(pickle.dumps(packed))):
        assert torch.equal(other(*given), packed(*given))


@pytest.mark.parametrize("make", [ByName, ByColumn])
def test_export_keeps_the_op_for_any_batch(make: type[nn.Module], tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = make().eval()
    packed = fuse.packed(fuse(model, inputs_of(model, 9)))
    batch = torch.export.Dim("batch")
    shapes: tuple[object, ...] = ({0: batch},)
    if make is ByName:
        shapes = ({name: {0: batch} for name in inputs_of(model, 9)[0]}, {0: batch})
    exported = torch.export.export(packed, inputs_of(model, 9), dynamic_shapes={"args": shapes})
    assert "resflow.feature_scores.default" in {str(node.target) for node in exported.graph.nodes}
    torch.export.save(exported, tmp_path / "model.pt2")
    loaded = torch.export.load(tmp_path / "model.pt2").module()
    with torch.no_grad():
        for count in (2, 31):
            given = inputs_of(model, count)
            torch.testing.assert_close(loaded(*given), model(*given), atol=1e-6, rtol=1e-6)


def test_compiled_without_a_graph_break() -> None:
    torch.manual_seed(0)
    rows = torch.randn(6, 8)
    model = nn.Sequential(nn.Linear(8, 4), nn.Mish(), nn.Linear(4, 3), nn.Sigmoid()).eval()
    packed = fuse.packed(fuse(model, rows))
    packed(rows)
    compiled = torch.compile(packed, fullgraph=True, backend="eager")
    with torch.no_grad():
        assert torch.equal(compiled(rows), packed(rows))


def test_a_model_that_is_not_fused_is_refused() -> None:
    with pytest.raises(ValueError, match=r"fuse\.packed: model must be a fused one, got Sequential"):
        fuse.packed(nn.Sequential(nn.Linear(3, 2)))


def test_ahead_of_time_compiled_without_tables(tmp_path: Path) -> None:
    """With tables it is not: AOTInductor hands an empty list of tensors, the int8 tables' scales, to an op as None."""
    torch.manual_seed(0)
    rows = torch.randn(6, 8)
    model = nn.Sequential(nn.Linear(8, 4), nn.Mish(), nn.Linear(4, 3), nn.Sigmoid()).eval()
    packed = fuse.packed(fuse(model, rows))
    shapes = {"args": ({0: torch.export.Dim("batch")},)}
    with torch.no_grad():
        exported = torch.export.export(packed, (rows,), dynamic_shapes=shapes)
        file = torch._inductor.aoti_compile_and_package(exported, package_path=str(tmp_path / "model.pt2"))
        loaded = torch._inductor.aoti_load_package(file)
        other = torch.randn(31, 8)
        assert torch.equal(loaded(other), packed(other))
