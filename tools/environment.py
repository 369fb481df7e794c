"""Facts about `.venv` for the Makefile; needs only the standard library, and any Python that runs.

python tools/environment.py start       check this Python and this machine
python tools/environment.py parents     the folders where this Python finds packages, one per line
python tools/environment.py home        the folder where this Python installs packages
python tools/environment.py constraint  the installed torch, as a line of a constraints file
python tools/environment.py check FILE  whether torch is still the one in that file
"""

from __future__ import annotations

import os
import shutil
import sys
import sysconfig
from importlib import metadata
from pathlib import Path

OLDEST = (2, 10)


def start() -> None:
    """Report problems that would otherwise appear only after minutes of downloads."""
    if sys.version_info < (3, 10):  # noqa: UP036 - PYTHON may be any
        found = f"{sys.executable} is {sys.version.split()[0]}"
        raise SystemExit(f"Python 3.10 or newer is needed, {found}: choose one by PYTHON=python3.12")
    compilers = os.environ.get("CXX", "").split()[:1] or ["c++", "g++", "clang++"]
    if not any(map(shutil.which, compilers)):
        raise SystemExit(f"no C++ compiler ({', '.join(compilers)}): install GCC 11 or Clang 14, or newer")


def parents() -> str:
    """For a `.pth` file: a venv made from a venv's Python only sees the packages of the base Python."""
    return "\n".join(path for path in sys.path if Path(path).name in ("site-packages", "dist-packages"))


def home() -> str:
    return sysconfig.get_path("purelib")


def constraint() -> str:
    try:
        version = metadata.version("torch")
    except metadata.PackageNotFoundError:
        advice = "choose a PYTHON that has one, or leave TORCH=installed out and make installs one"
        raise SystemExit(f"no torch is installed: {advice}") from None
    if tuple(map(int, version.split(".")[:2])) < OLDEST:
        raise SystemExit(f"torch must be {'.'.join(map(str, OLDEST))} or newer, got {version}")
    return f"torch=={version}"


def check(file: Path) -> str:
    wanted = file.read_text(encoding="utf-8").strip()
    if constraint() != wanted:
        raise SystemExit(f".venv was made with {wanted}, but now has {constraint()}: delete .venv and make it anew")
    return f"== ready, with {wanted}"


def main(command: str, *arguments: str) -> None:
    commands = {"start": start, "parents": parents, "home": home, "constraint": constraint, "check": check}
    text = commands[command](*map(Path, arguments))
    if text is not None:
        print(text)


if __name__ == "__main__":
    main(*sys.argv[1:])
