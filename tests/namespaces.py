"""Throw-away network namespaces for tests on the real kernel: `spaces.new("n1")`.

Names are unique to this process (`mut-<pid>-…`), the fixture deletes them
whatever happened, and the session fails if one is left.
"""

from __future__ import annotations

import functools
import itertools
import os
import subprocess
from collections.abc import Iterator

import pytest

from muslin.errors import KernelError
from muslin.kernel import netns

PREFIX = f"mut-{os.getpid()}-"
_numbers = itertools.count(1)


class Spaces:
    """The namespaces of one test."""

    def __init__(self) -> None:
        self._names: list[str] = []

    def new(self, purpose: str = "x") -> str:
        """An empty namespace; its path."""
        name = f"{PREFIX}{next(_numbers)}-{purpose}"
        self._names.append(name)
        return netns.create(name)

    def close(self) -> None:
        for name in self._names:
            netns.delete(name)


def run(ns: str, commands: str) -> None:
    """Run shell commands in a namespace; the first that fails is an error with its words."""
    shell = ["nsenter", f"--net={ns}", "sh", "-e"]
    done = subprocess.run(shell, input=commands, text=True, capture_output=True, check=False)
    assert done.returncode == 0, f"{done.stderr}\nin:\n{commands}"


@functools.cache
def reason_not_to_run() -> str | None:
    """Why namespaces cannot be made here, or None."""
    try:
        netns.create(f"{PREFIX}probe")
    except (KernelError, OSError) as e:
        return f"{e}; try: unshare -Urnm sh -c 'mount -t tmpfs none /run && python -m pytest'"
    netns.delete(f"{PREFIX}probe")
    return None


@pytest.fixture
def spaces() -> Iterator[Spaces]:
    made = Spaces()
    try:
        yield made
    finally:
        made.close()


def left_over() -> list[str]:
    return [name for name in netns.names() if name.startswith(PREFIX)]
