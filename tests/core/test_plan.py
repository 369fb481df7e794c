"""Topologies by name, by parent, and given one by one."""

from __future__ import annotations

import pytest

from resflow_kernels.core.plan import topology

TASKS = ("view", "like", "follow", "comment")


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        (None, (-1, 0, 1, 2)),
        ("chain", (-1, 0, 1, 2)),
        ("star", (-1, 0, 0, 0)),
        ("independent", (-1, -1, -1, -1)),
        ({"comment": "like", "like": "view"}, (-1, 0, -1, 1)),
        ({}, (-1, -1, -1, -1)),
        ([-1, 0, -1, 2], (-1, 0, -1, 2)),
    ],
)
def test_topologies(spec: object, expected: tuple[int, ...]) -> None:
    assert topology(spec, TASKS) == expected


def test_one_task() -> None:
    assert {topology(spec, ["click"]) for spec in (None, "chain", "star", "independent", {}, [-1])} == {(-1,)}


@pytest.mark.parametrize(
    ("spec", "tasks", "text"),
    [
        ("tree", TASKS, "parents must be chain, star, independent, or given one by one, got 'tree'"),
        ({"share": "view"}, TASKS, "parents must be between tasks of view, like, follow, comment, got 'share'"),
        ({"like": "share"}, TASKS, "parents must be between tasks of view, like, follow, comment, got 'share'"),
        ({"view": "like"}, TASKS, r"parents\['view'\] must be a task that stands before it, got 'like'"),
        ({"view": "view"}, TASKS, r"parents\['view'\] must be a task that stands before it, got 'view'"),
        ([-1, 0], TASKS, r"parents must be one per task \(4\), got 2"),
        ("chain", ("a", "b", "a"), r"tasks must be different names, got \['a'\]"),
    ],
)
def test_bad_topologies_are_named(spec: object, tasks: tuple[str, ...], text: str) -> None:
    with pytest.raises(ValueError, match=text):
        topology(spec, tasks)
