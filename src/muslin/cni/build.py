"""Compile the CNI plugin's C twin, where there is a compiler.

`setup.py` loads this file by its path, before any dependency of Muslin is
there: standard library only.  `make shim` runs it.

The executable is static, so it runs on every Linux of its machine type,
whatever libc or none.  musl is asked first: with glibc it is 15 times as large
and takes twice as long to start, because more pages are read and relocated.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).parent
SOURCE = HERE / "shim.c"
COMPILERS = ("musl-gcc", "cc")
FLAGS = ("-std=c11", "-Os", "-Wall", "-Wextra", "-static", "-s")
MEND = "install gcc and musl-tools, then install Muslin again (from a checkout: make shim)"


def place(directory: Path = HERE) -> Path:
    """Where the executable for this machine is, or would be."""
    return directory / f"muslin-cni.{os.uname().machine}"


def build(directory: Path = HERE) -> str:
    """Have an executable that is as new as its source; "" or why there is none.

    Never an error: the Python twin serves as well.  What was there and cannot
    be made anew is removed, since it would no longer be the same program.
    """
    target = place(directory)
    newest = max(file.stat().st_mtime_ns for file in (SOURCE, Path(__file__)))
    if target.exists() and target.stat().st_mtime_ns > newest:
        return ""
    target.unlink(missing_ok=True)
    faults = []
    for compiler in COMPILERS:
        if path := shutil.which(compiler):
            fault = _compile(path, target)
            if not fault:
                return ""
            faults.append(f"{compiler}: {fault}")
    return "; ".join(faults) or f"no C compiler ({', '.join(COMPILERS)})"


def _compile(compiler: str, target: Path) -> str:
    """Put the executable in its place whole; "" or the compiler's first words."""
    with tempfile.TemporaryDirectory(prefix=".shim", dir=target.parent) as directory:
        made = Path(directory) / target.name
        argv = [compiler, *FLAGS, "-o", str(made), str(SOURCE)]
        try:
            done = subprocess.run(argv, capture_output=True, text=True, timeout=120, check=False)
        except (OSError, subprocess.TimeoutExpired) as e:
            return str(e)
        if done.returncode:
            lines = done.stderr.strip().splitlines() or [f"exit status {done.returncode}"]
            return next((line for line in lines if "error" in line), lines[0])
        made.replace(target)
    return ""


if __name__ == "__main__":
    why = build()
    print(f"the CNI plugin stays in Python: {why}; {MEND}" if why else place())
    sys.exit(0)
