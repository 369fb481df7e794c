"""``resflow score``: its file against the scorer and a plain grouping, its figures, its refusals."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from resflow_kernels.cli import _requests, build_app
from resflow_kernels.metrics import weighted_recall_at_k
from resflow_kernels.serving.scorer import Scorer

pytest.importorskip("resflow_kernels._runtime", reason="the compiled library is not built")


def invoke(*arguments: object) -> Any:
    return CliRunner().invoke(build_app(), ["score", *map(str, arguments)], env={"COLUMNS": "160"})


def expected_ranking(files: Any, k: int, weights: list[float] | None = None) -> list[dict[str, Any]]:
    """The output's rows from the scorer and grouping in plain Python."""
    scorer, table = Scorer.load(files.model), files.table.candidates
    groups: dict[str, list[int]] = {}
    for row, request in enumerate(table["request"].to_pylist()):
        groups.setdefault(request, []).append(row)
    expected = []
    for request, members in groups.items():
        own = table.take(pa.array(members))
        user, item = scorer.embed_users(own.slice(0, 1)), scorer.embed_items(own)
        scores = scorer.request_scores(user, item, [0, len(members)], weights)
        for rank, place in enumerate(np.argsort(-scores.score, kind="stable")[:k]):
            probs = dict(zip(("p_ctr", "p_atcr", "p_ctcvr"), scores.probs[place].tolist(), strict=True))
            video = own["video"][int(place)].as_py()
            line = {"request": request, "rank": rank + 1, "video": video, "position": int(place)}
            expected.append({**line, "score": float(scores.score[place]), **probs})
    return expected


@pytest.mark.parametrize("block", [1, 90, 1 << 18])
@pytest.mark.parametrize("write", [1, 1 << 16])
def test_output_is_the_ranking(files: Any, out: Path, block: int, write: int, monkeypatch: pytest.MonkeyPatch) -> None:
    from resflow_kernels.cli import score

    monkeypatch.setattr(_requests, "_BLOCK_ROWS", block)
    monkeypatch.setattr(score, "_WRITE_ROWS", write)
    result = invoke(files.model, files.candidates, "-o", out, "--top-k", 7)
    assert result.exit_code == 0, result.output
    assert pq.read_table(out).to_pylist() == expected_ranking(files, 7)
    assert "candidates/s" in result.output and "P99" in result.output


def test_fewer_candidates_than_k(files: Any, out: Path) -> None:
    assert invoke(files.model, files.candidates, "-o", out, "--top-k", 10**15).exit_code == 0
    rows = pq.read_table(out)
    assert rows.num_rows == files.table.candidates.num_rows and rows["position"].null_count == 0
    assert rows.to_pylist() == expected_ranking(files, 10**6)


def test_fusion_and_weights_of_the_command_line(files: Any, out: Path) -> None:
    assert invoke(files.model, files.candidates, "-o", out, "--top-k", 4, "--weights", "1,0,0").exit_code == 0
    assert pq.read_table(out).to_pylist() == expected_ranking(files, 4, [1, 0, 0])
    result = invoke(files.model, files.candidates, "-o", out, "--fusion", "multiplicative", "--threads", 1)
    assert result.exit_code == 0
    table = pq.read_table(out)
    product = np.prod([table[f"p_{task}"].to_numpy() for task in ("ctr", "atcr", "ctcvr")], axis=0)
    np.testing.assert_allclose(table["score"].to_numpy(), product, rtol=1e-5)


def test_catalog_ranks_every_item_for_every_request(files: Any, out: Path) -> None:
    result = invoke(files.model, files.users, "--catalog", files.items, "-o", out, "--top-k", 3)
    assert result.exit_code == 0, result.output
    scorer, table = Scorer.load(files.model), pq.read_table(out)
    item = scorer.embed_items(files.table.items)
    for request in range(files.table.users.num_rows):
        user = scorer.embed_users(files.table.users.slice(request, 1))
        best = scorer.request_topk(user, item, [0, len(item)], 3)
        own = table.slice(request * 3, 3)
        assert own["position"].to_pylist() == best.positions[0].tolist()
        assert own["score"].to_pylist() == pytest.approx(best.scores[0].tolist(), rel=1e-5)
        assert own["video"].to_pylist() == (best.positions[0] * 10).tolist()


def test_precision_is_that_of_the_scorer(files: Any, out: Path) -> None:
    result = invoke(files.model, files.users, "--catalog", files.items, "-o", out, "--precision", "int8")
    assert result.exit_code == 0, result.output
    got = pq.read_table(out)["score"].to_numpy()[:10]
    # Whatever the catalog is stored as: the scores are those of the same scorer given the items themselves, and not
    # those of another precision.
    for precision, bounds in {"int8": (0, 1e-5), "float32": (1e-4, 1), "bfloat16": (1e-4, 1)}.items():
        scorer = Scorer.load(files.model, precision=precision)
        user, item = scorer.embed_users(files.table.users.slice(0, 1)), scorer.embed_items(files.table.items)
        best = scorer.request_topk(user, item, [0, len(item)], 10)
        assert bounds[0] <= np.abs(got - best.scores[0]).max() <= bounds[1], precision
    refused(invoke(files.model, files.users, "-o", out, "--precision", "int4"), "precision must be one of float32")


def grouped(files: Any) -> tuple[Any, Any, Any]:
    """Scores, label weights and offsets of the candidates, request by request."""
    scorer, table = Scorer.load(files.model), files.table.candidates
    label = {}
    for entry in files.table.labels.to_pylist():
        key = (entry["request"], entry["video"])
        label[key] = label.get(key, 0) + entry["weight"]
    names = list(dict.fromkeys(table["request"].to_pylist()))
    scores, weights, offsets = [], [], [0]
    for name in names:
        own = table.filter(pa.compute.equal(table["request"], name))
        user, item = scorer.embed_users(own.slice(0, 1)), scorer.embed_items(own)
        scores += scorer.request_scores(user, item, [0, own.num_rows]).score.tolist()
        weights += [label[name, video] for video in own["video"].to_pylist()]
        offsets.append(len(scores))
    return scores, weights, offsets


def test_weighted_recall(files: Any, out: Path) -> None:
    result = invoke(files.model, files.candidates, "-o", out, "--top-k", 5, "--labels", files.labels)
    assert result.exit_code == 0, result.output
    found = re.search(r"Weighted Recall@5: (\S+) \((\d+) requests", result.output)
    assert found is not None
    scores, weights, offsets = grouped(files)
    assert float(found[1]) == pytest.approx(weighted_recall_at_k(scores, weights, offsets, 5), abs=5.1e-5)
    assert int(found[2]) == 12


def test_weighted_recall_over_a_catalog(files: Any, out: Path) -> None:
    labels = out.with_name("labels")
    pq.write_table(
        pa.table({"request": ["r3", "r3", "r9", "??"], "video": [10, 20, 77, 10], "weight": [1, 3, 5, 5]}), labels
    )
    arguments = (files.model, files.users, "--catalog", files.items, "-o", out, "--top-k", 25, "--labels", labels)
    found = re.search(r"Weighted Recall@25: (\S+) \((\d+) requests", invoke(*arguments).output)
    assert found is not None
    table = pq.read_table(out)
    best = set(table.filter(pa.compute.equal(table["request"], "r3"))["video"].to_pylist())
    assert float(found[1]) == (10 in best) * 0.25 + (20 in best) * 0.75
    assert int(found[2]) == 1  # r9's item is not in the catalog


def test_compare_eager_agrees_and_prints_all_three(files: Any, out: Path) -> None:
    pytest.importorskip("torch")
    arguments = (files.model, files.candidates, "-o", out, "--compare-eager", "--compare-requests", 5, "--threads", 1)
    result = invoke(*arguments)
    assert result.exit_code == 0, result.output
    assert "5 requests in turns" in result.output
    assert "eager, joined rows" in result.output and "eager, split by hand" in result.output
    found = re.search(r"greatest difference of the best scores: (\S+)", result.output)
    assert found is not None and float(found[1]) < 1e-5


def test_no_requests(files: Any, out: Path, tmp_path: Path) -> None:
    pq.write_table(files.table.candidates.slice(0, 0), tmp_path / "none")
    result = invoke(files.model, tmp_path / "none", "-o", out)
    assert result.exit_code == 0 and "no requests" in result.output
    assert pq.read_table(out).num_rows == 0


def refused(result: Any, text: str) -> None:
    assert result.exit_code == 2
    assert re.search(text, result.stderr), result.stderr
    assert result.stderr.startswith("resflow: ") and result.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (("--top-k", "0"), "--top-k must be at least 1, got 0"),
        (("--compare-requests", "0"), "--compare-requests must be at least 1"),
        (("--threads", "0"), "threads must be at least 1"),
        (("--fusion", "sum"), "fusion must be one of additive"),
        (("--weights", "1,2"), "weights must be 3 numbers for 3 tasks, got 2"),
        (("--fusion", "expected_value", "--weights", "1,2,3"), "weights must be 4 numbers for 3 tasks, got 3"),
        (("--weights", "1,x,2"), "--weights must be numbers with commas between, got '1,x,2'"),
        (("--weights", "1,nan,2"), "--weights must be finite"),
        (("--catalog", "no"), "no: must be a file, a folder or a pattern of files, got no file"),
        (("--labels", "no"), "no: must be a file, a folder or a pattern of files, got no file"),
    ],
)
def test_bad_options(files: Any, out: Path, arguments: tuple[str, ...], text: str) -> None:
    candidates = files.users if "--catalog" in arguments else files.candidates
    refused(invoke(files.model, candidates, "-o", out, *arguments), text)
    assert os.listdir(out.parent) == []


def test_bad_files(files: Any, out: Path, tmp_path: Path) -> None:
    table = files.table.candidates
    bad = tmp_path / "in"
    bad.mkdir()
    changed = {
        "no_column": table.drop_columns(["tags"]),
        "no_request": table.drop_columns(["request"]),
        "null_request": table.set_column(0, "request", pa.array([None] * table.num_rows, pa.string())),
        "wrong_type": table.set_column(2, "video", pa.array(["v"] * table.num_rows)),
    }
    for name, content in changed.items():
        pq.write_table(content, bad / name)
    (bad / "text").write_text("a,b\n1,2\n")
    (bad / "cut").write_bytes(files.candidates.read_bytes()[:-30])
    texts = {
        "no_column": "no_column: column 'tags' must be in the file, got columns request, age, video",
        "no_request": "column 'request' must be in the file",
        "null_request": "column 'request' must be without nulls, got 400",
        "wrong_type": "column 'video' must be integer ids, got string",
        "text": "text: files must end in one of .parquet, .pq, .csv, .tsv",
        "cut": "cut: must be a readable Parquet file",
        "nowhere": "nowhere: must be a file, a folder or a pattern of files, got no file",
    }
    for name, text in texts.items():
        refused(invoke(files.model, bad / name, "-o", out), text)
        assert os.listdir(tmp_path) == ["in"]
    refused(invoke(bad / "text", files.candidates, "-o", out), "text: must be a whole safetensors file")
    refused(invoke(files.bare, files.candidates, "-o", out), "bare: must be a model with features")
    refused(invoke(files.model, files.candidates, "--catalog", files.items, "-o", out), "must hold one row per request")
    refused(invoke(files.model, files.candidates, "-o", tmp_path / "no" / "out"), "must be in an existing folder")
    refused(invoke(files.model, files.candidates, "-o", tmp_path), "got a folder")
    refused(
        invoke(files.model, files.candidates, "-o", files.candidates), "--output must be another file than the inputs"
    )
    assert os.listdir(tmp_path) == ["in"]


@pytest.mark.parametrize(
    ("weight", "text"),
    [
        ([1, -1], "finite and not negative, got -1.0"),
        ([1.0, None], "got nan"),
        (["a", "b"], "must be numbers, got string"),
    ],
)
def test_bad_labels(files: Any, out: Path, tmp_path: Path, weight: list[Any], text: str) -> None:
    pq.write_table(pa.table({"request": ["r1", "r2"], "video": [0, 10], "weight": weight}), tmp_path / "labels")
    refused(invoke(files.model, files.candidates, "-o", out, "--labels", tmp_path / "labels"), text)


def test_labels_of_another_type_of_id(files: Any, out: Path, tmp_path: Path) -> None:
    pq.write_table(pa.table({"request": ["r1"], "video": ["x"], "weight": [1]}), tmp_path / "labels")
    text = "column 'video' must be int64 like the candidates', got string"
    refused(invoke(files.model, files.candidates, "-o", out, "--labels", tmp_path / "labels"), text)


def test_a_failure_half_way_leaves_the_old_output(files: Any, out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from resflow_kernels.cli import score

    real = score._rank

    def fail_later(*arguments: Any) -> Any:
        for number, ranked in enumerate(real(*arguments)):
            if number == 3:
                raise OSError("disk full")
            yield ranked

    out.write_bytes(b"old")
    monkeypatch.setattr(score, "_rank", fail_later)
    monkeypatch.setattr(score, "_WRITE_ROWS", 1)
    refused(invoke(files.model, files.candidates, "-o", out), "disk full")
    assert out.read_bytes() == b"old" and os.listdir(out.parent) == [out.name]


def test_real_process_and_no_torch(files: Any, out: Path) -> None:
    command = [sys.executable, "-X", "importtime", "-m", "resflow_kernels.cli", "score", files.model, files.candidates]
    done = subprocess.run([*command, "-o", out], capture_output=True, text=True, check=True)
    assert pq.read_table(out).to_pylist() == expected_ranking(files, 10)
    assert "rank" in done.stdout and not re.search(r"\| +torch$", done.stderr, re.MULTILINE)
    command = [sys.executable, "-m", "resflow_kernels.cli", "score", files.model, "nowhere", "-o", out]
    failed = subprocess.run(command, capture_output=True, text=True)
    assert (
        failed.returncode == 2
        and failed.stderr == "resflow: nowhere: must be a file, a folder or a pattern of files, got no file\n"
    )


def test_missing_extras_are_said_in_one_line() -> None:
    code = (
        "import sys, importlib.machinery as m\n"
        "find = m.PathFinder.find_spec\n"
        "m.PathFinder.find_spec = lambda name, *a: None if name in ('typer', 'rich') else find(name, *a)\n"
        "from resflow_kernels.cli import main\n"
        "main()\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr == "resflow: needs typer, rich: pip install typer rich\n"


def test_user_columns_that_vary_are_each_candidates_own(files: Any, tmp_path: Path) -> None:
    table = pq.read_table(files.candidates)
    rows = len(table)
    at = table.column_names.index("age")
    varied = table.set_column(at, "age", pa.array(np.arange(rows) % 60 / 60, table["age"].type))
    pq.write_table(varied, tmp_path / "varied.parquet")
    result = invoke(files.model, tmp_path / "varied.parquet", "-o", tmp_path / "out.parquet", "--top-k", 10**6)
    assert result.exit_code == 0 and "age differ within requests" in result.stderr
    scorer = Scorer.load(files.model)
    x = np.concatenate((scorer.embed_users(varied), scorer.embed_items(varied)), axis=1)
    want: dict[object, list[float]] = {}
    for request, score in zip(varied["request"].to_pylist(), scorer.dense_scores(x).score.tolist(), strict=True):
        want.setdefault(request, []).append(score)
    got: dict[object, list[float]] = {}
    for row in pq.read_table(tmp_path / "out.parquet").to_pylist():
        got.setdefault(row["request"], []).append(row["score"])
    assert got == {request: sorted(scores, reverse=True) for request, scores in want.items()}
