"""The content of the results file."""

from __future__ import annotations

import json

from bench.run import _without_samples


def test_samples_are_left_out_and_the_rest_is_kept() -> None:
    stats = {"median": 2.0, "q1": 1.0, "q3": 3.0, "data": [1.0, 2.0, 3.0]}
    content = {"benchmarks": [{"extra_info": {"form": "dense"}, "stats": stats}], "datetime": "2026-01-02"}
    kept = json.loads(_without_samples(json.dumps(content)))
    assert kept["benchmarks"][0]["stats"] == {"median": 2.0, "q1": 1.0, "q3": 3.0}
    assert kept["benchmarks"][0]["extra_info"] == {"form": "dense"} and kept["datetime"] == "2026-01-02"
