"""The real kubectl against an API server: what people type, and what it prints.

kubectl's typed commands (`create namespace`, `create configmap`, `run`, `auth can-i`) send
protobuf, which the fake refuses with 415; `create -f` and `apply` send JSON and work.
"""

from __future__ import annotations

import asyncio
import json
import os
import shutil
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from apiserver import Certificate
from servers import Serve, Server

KUBECTL = shutil.which("kubectl")
pytestmark = pytest.mark.skipif(KUBECTL is None, reason="no kubectl here")

CRD = """
apiVersion: apiextensions.k8s.io/v1
kind: CustomResourceDefinition
metadata: {name: pools.muslin.io}
spec:
  group: muslin.io
  scope: Cluster
  names: {plural: pools, singular: pool, kind: Pool, listKind: PoolList, shortNames: [mpool]}
  versions:
  - name: v1alpha1
    served: true
    storage: true
    subresources: {status: {}}
    additionalPrinterColumns:
    - {name: CIDR, type: string, jsonPath: .spec.cidr}
    - {name: Free, type: integer, jsonPath: .status.free}
    - name: Ready
      type: string
      jsonPath: .status.conditions[?(@.type=="Ready")].status
    - {name: Age, type: date, jsonPath: .metadata.creationTimestamp}
    schema:
      openAPIV3Schema:
        type: object
        properties:
          spec:
            type: object
            required: [cidr]
            properties:
              cidr: {type: string}
              block: {type: integer, minimum: 0, maximum: 128, default: 26}
            x-kubernetes-validations:
            - {rule: "isCIDR(self.cidr)", message: cidr is no prefix}
          status: {type: object, x-kubernetes-preserve-unknown-fields: true}
"""
POOL = """
apiVersion: muslin.io/v1alpha1
kind: Pool
metadata: {name: a}
spec: {cidr: 10.0.0.0/16}
"""


@dataclass
class Kubectl:
    """kubectl with its own home and kubeconfig."""

    home: Path
    api: Server

    async def start(self, *words: str) -> asyncio.subprocess.Process:
        assert KUBECTL is not None
        environment = {
            **os.environ,
            "HOME": str(self.home),
            "KUBECONFIG": str(self.home / "config"),
        }
        return await asyncio.create_subprocess_exec(
            KUBECTL,
            *words,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            env=environment,
        )

    async def __call__(self, *words: str, given: str = "") -> str:
        """What it prints; fails with what it complains about."""
        process = await self.start(*words)
        out, complaint = await process.communicate(given.encode())
        assert process.returncode == 0, complaint.decode()
        return out.decode()

    async def fails(self, *words: str, given: str = "") -> str:
        process = await self.start(*words)
        _, complaint = await process.communicate(given.encode())
        assert process.returncode != 0
        return complaint.decode()


@pytest.fixture(params=["http", "https"])
async def kubectl(
    request: pytest.FixtureRequest, serve: Serve, tmp_path: Path
) -> AsyncIterator[Kubectl]:
    tls = Certificate.make(tmp_path) if request.param == "https" else None
    async with serve(tls=tls) as api:
        if api.real and tls is None:
            pytest.skip("a real one has TLS")
        api.kubeconfig(tmp_path / "config")
        kubectl = Kubectl(tmp_path, api)
        await kubectl("apply", "-f", "-", given=CRD)
        await kubectl("wait", "--for=condition=Established", "crd/pools.muslin.io")
        yield kubectl


async def test_apply_creates_configures_and_leaves_unchanged(kubectl: Kubectl) -> None:
    assert await kubectl("apply", "-f", "-", given=POOL) == "pool.muslin.io/a created\n"
    assert await kubectl("apply", "-f", "-", given=POOL) == "pool.muslin.io/a unchanged\n"
    other = POOL.replace("10.0", "10.1")
    assert await kubectl("apply", "-f", "-", given=other) == "pool.muslin.io/a configured\n"


async def test_get_shows_the_columns_of_the_definition(kubectl: Kubectl) -> None:
    await kubectl("apply", "-f", "-", given=POOL)
    status = {"status": {"free": 7, "conditions": [{"type": "Ready", "status": "True"}]}}
    await kubectl(
        "patch", "pool", "a", "--subresource=status", "--type=merge", "-p", json.dumps(status)
    )
    header, row = (await kubectl("get", "mpool")).splitlines()
    assert header.split() == ["NAME", "CIDR", "FREE", "READY", "AGE"]
    assert row.split()[:4] == ["a", "10.0.0.0/16", "7", "True"]
    await kubectl("wait", "--for=condition=Ready", "pool/a", "--timeout=5s")
    assert await kubectl("get", "pool/a", "-o", "jsonpath={.spec.block}") == "26"


async def test_watch_prints_what_happens(kubectl: Kubectl) -> None:
    await kubectl("apply", "-f", "-", given=POOL)
    watch = await kubectl.start("get", "pools", "-w", "--no-headers")
    assert watch.stdout is not None
    async with asyncio.timeout(20):
        assert (await watch.stdout.readline()).split()[:2] == [b"a", b"10.0.0.0/16"]
        await kubectl("patch", "pool", "a", "--type=merge", "-p", '{"spec":{"cidr":"10.9.0.0/16"}}')
        assert (await watch.stdout.readline()).split()[:2] == [b"a", b"10.9.0.0/16"]
    watch.terminate()
    await watch.communicate()


async def test_server_side_apply_tells_of_conflicts(kubectl: Kubectl) -> None:
    apply = ("apply", "--server-side", "-f", "-")
    await kubectl(*apply, "--field-manager=one", given=POOL)
    other = POOL.replace("10.0", "10.1")
    complaint = await kubectl.fails(*apply, "--field-manager=two", given=other)
    assert 'conflict with "one": .spec.cidr' in complaint
    taken = await kubectl(*apply, "--field-manager=two", "--force-conflicts", given=other)
    assert taken == "pool.muslin.io/a serverside-applied\n"


async def test_what_is_wrong_is_refused_with_its_reason(kubectl: Kubectl) -> None:
    odd = POOL.replace("{cidr:", "{odd: 1, cidr:")
    assert 'unknown field "spec.odd"' in await kubectl.fails("apply", "-f", "-", given=odd)
    wrong = POOL.replace("10.0.0.0/16", "nonsense")
    assert "cidr is no prefix" in await kubectl.fails("create", "-f", "-", given=wrong)


async def test_delete_waits_until_the_object_is_gone(kubectl: Kubectl) -> None:
    held = POOL.replace("{name: a}", "{name: a, finalizers: [muslin.io/keep]}")
    await kubectl("create", "-f", "-", given=held)
    delete = await kubectl.start("delete", "pool", "a")
    patch = ("patch", "pool", "a", "--type=json", "-p")
    async with asyncio.timeout(20):
        for _ in range(200):
            if "deletionTimestamp" in await kubectl("get", "pool", "a", "-o", "yaml"):
                break
            await asyncio.sleep(0.05)
        await kubectl(*patch, '[{"op":"remove","path":"/metadata/finalizers"}]')
        out, _ = await delete.communicate()
    assert out.decode() == 'pool.muslin.io "a" deleted\n'
    assert await kubectl("get", "pools", "-o", "name") == ""


async def test_describe_explain_and_labels(kubectl: Kubectl) -> None:
    await kubectl("apply", "-f", "-", given=POOL)
    await kubectl("label", "pool", "a", "team=x")
    described = await kubectl("describe", "pool", "a")
    assert "team=x" in described
    assert "10.0.0.0/16" in described
    assert "-required-" in await kubectl("explain", "pool.spec")
    assert await kubectl("get", "pools", "-l", "team=x", "-o", "name") == "pool.muslin.io/a\n"


async def test_nodes_and_pods_are_printed(kubectl: Kubectl) -> None:
    from apiserver.kubelet import Kubelet, node, pod

    await kubectl.api.send("POST", "/api/v1/nodes", node("n1", "192.0.2.1"))
    await Kubelet(kubectl.api.send).bring_up(pod("p"), "n1", ["10.0.0.1"])
    assert (await kubectl("get", "node", "n1", "--no-headers")).split()[:2] == ["n1", "Ready"]
    shown = (await kubectl("get", "pod", "p", "-o", "wide", "--no-headers")).split()
    assert shown[:3] == ["p", "1/1", "Running"]
    assert {"10.0.0.1", "n1"} <= set(shown)
