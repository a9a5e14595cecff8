"""Tests of a cluster that is there: `make e2e KUBECONFIG=…`, and never by mistake.

A kubeconfig in the environment is not enough for pytest, since these make and
delete pods: `--cluster` says which.  They need Muslin installed (docs/kubernetes.md),
and an image with a shell and busybox's applets (`--cluster-image`).
"""

from __future__ import annotations

import json
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from kube import Kube, is_ready


@pytest.fixture(scope="session")
def kube(request: pytest.FixtureRequest) -> Iterator[Kube]:
    """A namespace of our own in the cluster; it goes with the session."""
    kubeconfig = request.config.getoption("--cluster")
    if not kubeconfig:
        pytest.skip("no cluster: make e2e KUBECONFIG=…")
    if not shutil.which("kubectl"):
        pytest.skip("kubectl is not installed")
    name = f"muslin-e2e-{secrets.token_hex(3)}"
    made = Kube(Path(kubeconfig), name, request.config.getoption("--cluster-image"))
    privileged = {"pod-security.kubernetes.io/enforce": "privileged"}  # pods on the host's network
    namespace = {"metadata": {"name": name, "labels": privileged}}
    made(
        "create", "-f", "-", given=json.dumps({"apiVersion": "v1", "kind": "Namespace"} | namespace)
    )
    try:
        yield made
    finally:
        made("delete", "namespace", name, "--timeout=120s")


@pytest.fixture(scope="session")
def nodes(kube: Kube) -> list[str]:
    """Nodes that are ready and have an agent."""
    agents = kube.agents()
    found = [n["metadata"]["name"] for n in kube.items("nodes") if is_ready(n)]
    assert found, "no node of the cluster is ready"
    return [n for n in found if n in agents]


@pytest.fixture
def clean(kube: Kube) -> Iterator[None]:
    """What a test made in the namespace is gone after it."""
    yield
    for kind in ("statefulsets", "services", "pods"):
        kube("-n", kube.namespace, "delete", kind, "--all", "--timeout=60s")
