"""Builds the native code with CMake; everything else about the package is in pyproject.toml.

If something cannot be built, an error says what is missing. ``RESFLOW_WITHOUT=torch`` or ``numpy``, or both separated
by a comma, requests a build without the torch ops or without the NumPy runtime.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import NoReturn

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

PARTS = {"torch": "the torch ops", "numpy": "the NumPy runtime"}
# Commands that compile. Others, such as those that write a source archive, need neither a compiler nor torch.
COMPILING = {"build_ext", "bdist_wheel", "editable_wheel", "build", "develop", "install"}


def refuse(reasons: list[str]) -> NoReturn:
    lines = "".join(f"\n  {reason}" for reason in reasons)
    raise SystemExit(f"resflow-kernels cannot be built here:{lines}")


def version(text: str) -> tuple[int, ...]:
    """The leading numbers of a version: 2, 13 and 0 for ``2.13.0+cpu``."""
    return tuple(map(int, re.findall(r"\d+", re.split(r"[^\d.]", text)[0])))


def package_problem(package: str, least: str) -> str | None:
    """The problem with an installed package, and the command that fixes it; ``None`` if there is none."""
    try:
        found = metadata.version(package)
    except metadata.PackageNotFoundError:
        return f"{package} is missing: pip install '{package}>={least}'"
    if version(found) < version(least):
        return f"{package} {found} is too old: pip install -U '{package}>={least}'"
    return None


def find_cmake() -> str | None:
    """A CMake that runs and is new enough; pip may have installed one next to this Python, outside of PATH."""
    for place in (sysconfig.get_path("scripts"), None):
        cmake = shutil.which("cmake", path=place)
        if cmake is None:
            continue
        answer = subprocess.run([cmake, "--version"], capture_output=True, text=True).stdout
        found = re.search(r"cmake version (\S+)", answer)
        if found and version(found[1]) >= (3, 25):
            return cmake
    return None


def compiler_problem() -> str | None:
    """Why there is no C++ compiler to build with; ``None`` if there is one."""
    asked = os.environ.get("CXX", "").split()
    names = asked[:1] or ["c++", "g++", "clang++"]
    compiler = next(filter(None, map(shutil.which, names)), None)
    if compiler is None:
        found = f"CXX={asked[0]} names no program" if asked else "a C++ compiler is missing"
        return f"{found}: install GCC 11 or Clang 14, or newer (Debian, Ubuntu: apt install g++)"
    command = [compiler, "-std=c++20", "-fsyntax-only", "-x", "c++", "-"]
    tried = subprocess.run(command, input="#include <numbers>\n#include <span>\n", capture_output=True, text=True)
    if tried.returncode != 0:
        return f"{compiler} does not compile C++20: GCC 11, Clang 14 and newer ones do; CXX names another compiler"
    return None


def tool_problems() -> Iterator[str | None]:
    if find_cmake() is None:
        yield "CMake 3.25 or newer is missing: pip install 'cmake>=3.25'"
    if not any(map(shutil.which, ("make", "ninja"))) and "CMAKE_GENERATOR" not in os.environ:
        yield "make is missing, and so is ninja: pip install ninja"
    yield compiler_problem()


def package_problems(without: set[str]) -> Iterator[str | None]:
    for part, package, least in (("torch", "torch", "2.10"), ("numpy", "pybind11", "2.13")):
        problem = None if part in without else package_problem(package, least)
        yield problem and f"{problem}, or build without {PARTS[part]}: RESFLOW_WITHOUT={part}"


def asked_without() -> set[str]:
    names = {name.strip() for name in os.environ.get("RESFLOW_WITHOUT", "").split(",")} - {""}
    for name in sorted(names - PARTS.keys()):
        refuse([f"RESFLOW_WITHOUT must name torch, numpy or both, got {name!r} (RESFLOW_CUDA=OFF: no GPU kernels)"])
    return names


def check() -> None:
    """Run before anything is built or downloaded, so that the reason is not below pages of other output."""
    asked = set(sys.argv)
    # Older versions do not support pyproject.toml's form of a licence, and report it in thirty lines.
    found = [package_problem("setuptools", "77")]
    if asked & {*COMPILING, "dist_info"}:  # pip calls it first, before it downloads dependencies
        found += package_problems(asked_without())
    if asked & COMPILING:
        found += tool_problems()
    reasons = [reason for reason in found if reason]
    if reasons:
        refuse(reasons)


class CMakeExtension(Extension):
    """The libraries that CMakeLists.txt builds, represented by one of them."""

    def __init__(self, name: str) -> None:
        super().__init__(name, sources=[])


class CMakeBuild(build_ext):
    """Run ``cmake`` and ``cmake --build`` into the package's folder (the source's own for an editable install)."""

    def run(self) -> None:
        source = Path(__file__).parent.resolve()
        editable = bool(self.inplace or self.editable_mode)
        output = (source if editable else Path(self.build_lib).resolve()) / "resflow_kernels"
        # One build folder per interpreter and kind of install, so that an editable install and a wheel do not mix.
        build = source / "build" / f"{sys.implementation.cache_tag}-{'editable' if editable else 'wheel'}"
        cmake, without = find_cmake() or "cmake", asked_without()
        settings = [f"-DPython_EXECUTABLE={sys.executable}", f"-DRESFLOW_OUTPUT={output}"]
        settings.append(f"-DRESFLOW_CUDA={os.environ.get('RESFLOW_CUDA', 'AUTO')}")
        settings.append(f"-DRESFLOW_WITHOUT={';'.join(sorted(without))}")
        call([cmake, "-S", str(source), "-B", str(build), *settings, *generator(build)])
        self.check_parts(output, without)
        target = "development" if editable else "extensions"
        jobs = str(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count())
        call([cmake, "--build", str(build), "--parallel", jobs, "--target", target])

    def check_parts(self, output: Path, without: set[str]) -> None:
        """Fail if CMake left out a part that was not excluded (no headers, a torch that does not load)."""
        left_out = json.loads((output / "_build.json").read_text(encoding="utf-8"))["left_out"]
        lost = {part: left_out[part] for part in PARTS if part in left_out and part not in without}
        if lost:
            refuse([f"{PARTS[part]}: {why}, or build without: RESFLOW_WITHOUT={part}" for part, why in lost.items()])


def call(command: list[str]) -> None:
    """Run a command with its output unchanged; its own message is the error, without a traceback below."""
    sys.stdout.flush()
    # Clears the flags of an outer make, with which inner ones would report every folder that they enter.
    environment = {
        name: value for name, value in os.environ.items() if name not in ("MAKEFLAGS", "MAKELEVEL", "MFLAGS")
    }
    code = subprocess.run(command, env=environment).returncode
    if code != 0:
        raise SystemExit(f"resflow-kernels: {Path(command[0]).name} failed with exit code {code}; its reason is above")


def generator(build: Path) -> list[str]:
    """Ninja if make is missing. A folder that is already configured keeps its generator."""
    chosen = "CMAKE_GENERATOR" in os.environ or (build / "CMakeCache.txt").exists()
    return [] if chosen or shutil.which("make") else ["-G", "Ninja"]


check()
setup(ext_modules=[CMakeExtension("resflow_kernels._runtime")], cmdclass={"build_ext": CMakeBuild})
