"""What is packed, what a build refuses, and the Makefile: all without network and without compiling."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

from resflow_kernels.core import build
from tools import environment

ROOT = Path(__file__).parents[1]
FOLDERS = ("bench", "cmake", "csrc", "examples", "python", "resflow_kernels", "tests", "tools")
FILES = (
    "CHANGELOG.md",
    "CMakeLists.txt",
    "LICENSE",
    "MANIFEST.in",
    "Makefile",
    "README.md",
    "pyproject.toml",
    "setup.py",
)


def tracked() -> set[str]:
    if not (ROOT / ".git").exists() or shutil.which("git") is None:
        pytest.skip("this is no checkout of git")
    listing = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    return {name for name in listing.split("\0") if name and (ROOT / name).exists()}


def test_a_source_archive_has_the_sources_and_nothing_built(tmp_path: Path) -> None:
    copy = tmp_path / "a checkout"
    for name in tracked():
        (copy / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, copy / name)
    for built in ("resflow_kernels/_ops.so", "resflow_kernels/_build.json", "build/x.o", "out/scores.parquet"):
        (copy / built).parent.mkdir(exist_ok=True)
        (copy / built).touch()
    # No PATH: neither a compiler nor CMake is needed for it.
    done = subprocess.run(
        [sys.executable, "setup.py", "--quiet", "sdist", "--dist-dir", str(tmp_path)],
        cwd=copy, capture_output=True, text=True, env={**os.environ, "PATH": ""},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    with tarfile.open(next(tmp_path.glob("*.tar.gz"))) as archive:
        packed = {name.partition("/")[2] for name in (one.name for one in archive if one.isfile())}
    wanted = {name for name in tracked() if name.partition("/")[0] in FOLDERS} | set(FILES)
    assert wanted - packed == set()
    assert {name for name in packed - wanted if "/" in name and ".egg-info/" not in name} == set()


# Runs setup.py as a command of pip's would, with other versions installed than there are; none stands for missing.
SETUP = """
import importlib.metadata as metadata, json, runpy, sys
given, version = json.loads(sys.argv[1]), metadata.version
def other_version(name):
    if name in given and given[name] is None:
        raise metadata.PackageNotFoundError(name)
    return given.get(name) or version(name)
metadata.version = other_version
sys.argv = ["setup.py", sys.argv[2]]
runpy.run_path("setup.py", run_name="__main__")
"""
NO_TORCH = "torch is missing: pip install 'torch>=2.10', or build without the torch ops: RESFLOW_WITHOUT=torch"
NO_PYBIND = (
    "pybind11 is missing: pip install 'pybind11>=2.13', or build without the NumPy runtime: RESFLOW_WITHOUT=numpy"
)
ALL = {"torch": "2.10.0", "pybind11": "3.0", "setuptools": "80.0"}
COMPILER = "install GCC 11 or Clang 14, or newer (Debian, Ubuntu: apt install g++)"


@pytest.mark.parametrize(
    ("command", "versions", "variables", "reasons"),
    [
        ("dist_info", {"torch": None, "pybind11": None}, {}, [NO_TORCH, NO_PYBIND]),
        ("dist_info", {"torch": None, "pybind11": None}, {"RESFLOW_WITHOUT": "torch"}, [NO_PYBIND]),
        ("dist_info", {"torch": None}, {"RESFLOW_WITHOUT": " numpy,"}, [NO_TORCH]),
        (
            "editable_wheel",
            {"torch": "2.9.1+cu130"},
            {},
            [NO_TORCH.replace("is missing: pip install", "2.9.1+cu130 is too old: pip install -U")],
        ),
        ("sdist", {"setuptools": "65.5.0"}, {}, ["setuptools 65.5.0 is too old: pip install -U 'setuptools>=77'"]),
        ("bdist_wheel", {}, {"CXX": "nowhere++ -O3"}, [f"CXX=nowhere++ names no program: {COMPILER}"]),
        (
            "bdist_wheel",
            {},
            {"RESFLOW_WITHOUT": "torch,cuda"},
            ["RESFLOW_WITHOUT must name torch, numpy or both, got 'cuda' (RESFLOW_CUDA=OFF: no GPU kernels)"],
        ),
    ],
)
def test_a_build_with_a_piece_missing_says_what_to_type(
    command: str, versions: dict[str, str | None], variables: dict[str, str], reasons: list[str]
) -> None:
    kept = {name: value for name, value in os.environ.items() if name not in ("RESFLOW_WITHOUT", "CXX")}
    done = subprocess.run(
        [sys.executable, "-c", SETUP, json.dumps({**ALL, **versions}), command],
        cwd=ROOT, capture_output=True, text=True, env={**kept, **variables},
    )  # fmt: skip
    assert done.returncode == 1
    lines = done.stderr.strip().splitlines()
    assert lines[0] == "resflow-kernels cannot be built here:"
    # Whether there is a CMake, a make and a compiler is this machine's business, unless the case is about them.
    about = [line.strip() for line in lines[1:] if "CXX" in variables or not re.search("CMake|ninja|compiler", line)]
    assert [line for line in about if not re.search("CMake|ninja", line)] == reasons


def test_what_a_build_left_out_is_said_with_its_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build, "PACKAGE", tmp_path)
    assert build.facts() == {} and build.why_left_out("torch") is None
    assert "make build" in build.why_no_runtime()
    (tmp_path / "_runtime.cpython-39-x86_64-linux-gnu.so").touch()
    assert "built for another Python: there is _runtime.cpython-39-" in build.why_no_runtime()
    why = "python could not import pybind11"
    (tmp_path / "_build.json").write_text(json.dumps({"cuda": None, "left_out": {"numpy": why}}), encoding="utf-8")
    assert build.why_left_out("numpy") == why and build.why_left_out("torch") is None
    assert f"built without the NumPy runtime: {why}" in build.why_no_runtime()


def make(folder: Path, *arguments: str) -> str:
    if shutil.which("make") is None:
        pytest.skip("make is not installed")
    kept = {name: value for name, value in os.environ.items() if not re.match("MAKE|MFLAGS|PYTHON$|TORCH$", name)}
    done = subprocess.run(["make", *arguments], cwd=folder, capture_output=True, text=True, env=kept)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_help_lists_every_target() -> None:
    text = make(ROOT, "help")
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = set(" ".join(re.findall(r"^\.PHONY: (.*)", makefile, re.MULTILINE)).split()) - {"always"}
    named = set(re.findall(r"(?:^make |\()([a-z-]+)", text, re.MULTILINE))
    assert targets - named == set()
    assert "PYTHON=" in text and "TORCH=installed" in text and not text.startswith("#")


def test_other_settings_make_the_environment_anew(tmp_path: Path) -> None:
    folder = tmp_path / "a checkout"
    folder.mkdir()
    shutil.copy(ROOT / "Makefile", folder)
    settings, kept = folder / ".venv" / "settings", folder / ".venv" / "kept"
    assert make(folder, ".venv/settings", "PYTHON=python3.12") == ""
    kept.touch()
    # What is not said again stays; what is said otherwise is never passed over.
    assert "made anew" not in make(folder, ".venv/settings") and kept.exists()
    assert "made anew" not in make(folder, ".venv/settings", "PYTHON=python3.12") and kept.exists()
    text = make(folder, ".venv/settings", "TORCH=torch==2.11.0")
    assert text.startswith("== .venv is made anew: it was made with PYTHON=python3.12 TORCH=torch==")
    assert text.endswith("now PYTHON=python3.12 TORCH=torch==2.11.0\n")
    assert not kept.exists() and "TORCH=torch==2.11.0\n" in settings.read_text()


def test_another_torch_than_the_one_installed_first_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "constraints.txt"
    monkeypatch.setattr(environment.metadata, "version", lambda name: "2.13.0+cpu")
    file.write_text(environment.constraint() + "\n")
    assert environment.check(file) == "== ready, with torch==2.13.0+cpu"
    monkeypatch.setattr(environment.metadata, "version", lambda name: "2.11.0+cu130")
    with pytest.raises(SystemExit, match=r"made with torch==2\.13\.0\+cpu, but now has torch==2\.11\.0\+cu130"):
        environment.check(file)
    monkeypatch.setattr(environment.metadata, "version", lambda name: "2.9.1")
    with pytest.raises(SystemExit, match=r"2\.10 or newer, got 2\.9\.1"):
        environment.constraint()


def test_no_message_names_a_package_that_is_not_published() -> None:
    for path in (*(ROOT / "resflow_kernels").rglob("*.py"), *(ROOT / "examples").rglob("*.*"), ROOT / "README.md"):
        if path.suffix in (".py", ".md"):
            assert not re.search(r"pip install '?resflow-kernels", path.read_text(encoding="utf-8")), path
