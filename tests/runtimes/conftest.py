"""Runtimes for tests: each in a machine of its own on one node of a lab."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from containerd import LOOPBACK, Containerd
from machine import Machine, need

from muslin.lab import cluster

WHOLE = ["0", "0", "4294967295"]  # user_namespaces(7): the map of the initial one
LABS = Path(__file__).parents[2] / "labs"


@pytest.fixture
def can_run() -> None:
    """Skip before anything is made; by `usefixtures`, which comes before a test's own fixtures."""
    if Path("/proc/self/uid_map").read_text().split() != WHOLE:
        pytest.skip("container runtimes need the machine's root, not a user namespace's")
    need("nsenter:util-linux", "unshare:util-linux", "runc:runc", "busybox:busybox-static")


@pytest.fixture
def can_run_containerd(can_run: None) -> None:
    need("containerd:containerd", "ctr:containerd", f"{LOOPBACK}:containernetworking-plugins")


@pytest.fixture
def can_run_podman(can_run: None) -> None:
    need("podman:podman", "conmon:conmon")


@pytest.fixture
def machine(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Machine]:
    """Node n1 of a lab of three, booted, with its agent running and the plugin installed."""
    home = Path(tempfile.mkdtemp(prefix="lab", dir="/tmp"))
    monkeypatch.setenv("MUSLIN_LAB_DIR", str(home))
    lab = f"r{os.getpid() % 100000}-{abs(hash(request.node.name)) % 10000}"
    made = None
    try:
        cluster.up((LABS / "three-nodes.toml").read_text(), stem="three-nodes", name=lab)
        made = Machine(lab, "n1")
        made.boot()
        made.take_over_agent()
        made.start_agent()
        made.install_plugin()
        yield made
    finally:
        if made is not None:
            made.halt()
            made.remove_cgroups()
        cluster.down(lab)
        shutil.rmtree(home, ignore_errors=True)  # `down` may have removed it, being empty


@pytest.fixture
def containerd(machine: Machine) -> Iterator[Containerd]:
    """containerd on the machine, ready for pods."""
    made = Containerd(machine)
    try:
        made.start()
        yield made
    finally:
        made.close()
