"""Builds the native code with CMake; everything else about the package is in pyproject.toml."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext


class CMakeExtension(Extension):
    """The libraries that CMakeLists.txt makes, named by one of them."""

    def __init__(self, name: str) -> None:
        super().__init__(name, sources=[])


class CMakeBuild(build_ext):
    """``cmake`` and ``cmake --build``, into the package's folder (the source's own for an editable install)."""

    def run(self) -> None:
        source = Path(__file__).parent.resolve()
        editable = bool(self.inplace or self.editable_mode)
        output = (source if editable else Path(self.build_lib).resolve()) / "resflow_kernels"
        # One build folder an interpreter and output, so that an editable install and a wheel do not mix.
        build = source / "build" / f"{sys.implementation.cache_tag}-{'editable' if editable else 'wheel'}"
        settings = [f"-DPython_EXECUTABLE={sys.executable}", f"-DRESFLOW_OUTPUT={output}"]
        settings.append(f"-DRESFLOW_CUDA={os.environ.get('RESFLOW_CUDA', 'AUTO')}")
        subprocess.run(["cmake", "-S", str(source), "-B", str(build), *settings], check=True)
        target = "development" if editable else "extensions"
        jobs = str(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count())
        subprocess.run(["cmake", "--build", str(build), "--parallel", jobs, "--target", target], check=True)


setup(ext_modules=[CMakeExtension("resflow_kernels._runtime")], cmdclass={"build_ext": CMakeBuild})
