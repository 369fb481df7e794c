"""The authors' own outputs, by the kernels of every device."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from resflow_kernels import ExpectedValue
from resflow_kernels.convert import from_keras
from tests.support.devices import Device
from tests.support.files import DATA

BOUND = {"float32": 1e-5, "tensorfloat32": 2e-3, "bfloat16": 1e-2, "float16": 2e-3, "int8": 2e-2}


@pytest.mark.parametrize("file", ["ecomm_chain_2tasks.npz", "progressive_logits_9tasks.npz"])
def test_the_authors_outputs_are_reproduced(device: Device, file: str, precision: str) -> None:
    with np.load(DATA / file) as arrays:
        golden = {name: arrays[name] for name in arrays.files}
    fusion = None
    if "percentiles" in golden:
        thresholds = golden["percentiles"]
        fusion = ExpectedValue((5.0, *((thresholds[:-1] + thresholds[1:]) / 2)[:8], 93.0))
    weights = {name: array for name, array in golden.items() if name.startswith("w.")}
    tasks = ("ctr", "cvr") if file.startswith("ecomm") else None
    packed = from_keras(weights, fusion, tasks).packed(precision)
    settings = (packed.plan, packed.fusion_weights, packed.fusion.kind)
    scores = device.dense_scores(torch.from_numpy(golden["x"]), packed.packed_weights, *settings)
    logits = torch.from_numpy(golden["logits"])
    error = (scores.probs.double() - logits.double().sigmoid()).abs().max()
    assert error <= BOUND[precision]
    if precision == "float32":
        assert ((scores.logits - logits).abs() <= 1e-5 * (1 + logits.abs())).all()
        if "score" in golden:
            np.testing.assert_allclose(scores.score.numpy(), golden["score"], rtol=1e-5)
