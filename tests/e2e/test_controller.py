"""`muslin controller` as a process, against an API server: what it writes, and who leads."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import signal
import sys
import time
import urllib.error
import urllib.request
from collections.abc import AsyncIterator, Awaitable, Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import yaml

from apiserver import ApiError
from servers import Serve, Server

DEPLOY = Path(__file__).resolve().parents[2] / "deploy" / "base"
NS = "muslin-system"
GROUP = "/apis/muslin.io/v1alpha1"
LEASES = f"/apis/coordination.k8s.io/v1/namespaces/{NS}/leases"
MERGE = "application/merge-patch+json"
TAINTS = [
    {"key": "other", "effect": "NoSchedule"},
    {"key": "muslin.io/agent-not-ready", "effect": "NoSchedule"},
    {"key": "muslin.io/agent-not-ready", "effect": "NoExecute"},
]


class Process:
    """One replica; `times` are short, in the proportions of the real ones."""

    def __init__(self, directory: Path, name: str, store: str, **times: str) -> None:
        self.name, self._log = name, directory / f"{name}.log"
        settings = {"MUSLIN_LEASE": "3", "MUSLIN_SWEEP": "0.2", "MUSLIN_GRACE": "1", **times}
        self._environ = {
            **{k: v for k, v in os.environ.items() if not k.startswith("MUSLIN_")},
            "MUSLIN_STORE": store,
            "MUSLIN_LISTEN": "127.0.0.1:0",
            "MUSLIN_IDENTITY": name,
            **settings,
        }
        self.process: asyncio.subprocess.Process

    async def start(self) -> None:
        with self._log.open("ab") as log:
            self.process = await asyncio.create_subprocess_exec(
                sys.executable, "-m", "muslin", "controller", env=self._environ, stderr=log
            )

    @property
    def log(self) -> str:
        return self._log.read_text() if self._log.exists() else ""

    async def page(self, path: str) -> tuple[int, str]:
        """Status and body; status 0 while nobody listens."""
        found = re.findall(r"pages\.served listen=(\S+)", self.log)
        if not found:
            return 0, ""
        return await asyncio.to_thread(_get, f"http://{found[-1]}{path}")

    async def metric(self, name: str) -> float:
        """The sum of a metric over its labels; 0 where there is none."""
        lines = (await self.page("/metrics"))[1].splitlines()
        found = [line.rpartition(" ")[2] for line in lines if re.match(rf"{name}[ {{]", line)]
        return sum(map(float, found))

    async def leads(self) -> bool:
        return await self.metric("muslin_controller_leading") == 1

    def send(self, number: int) -> None:
        if self.process.returncode is None:
            self.process.send_signal(number)

    async def end(self) -> int:
        self.send(signal.SIGCONT)
        self.send(signal.SIGTERM)
        return await asyncio.wait_for(self.process.wait(), 10)


def _get(url: str) -> tuple[int, str]:
    try:
        with urllib.request.urlopen(url, timeout=2) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as e:
        return e.code, e.read().decode()
    except OSError:
        return 0, ""


class Cluster:
    """An API server and the replicas that run against it."""

    def __init__(self, server: Server, directory: Path) -> None:
        self.server, self.directory = server, directory
        self.send = partial(server.send, token="admin")
        self.replicas: list[Process] = []

    async def start(self, name: str = "c1", *, token: str = "admin", **times: str) -> Process:
        config = self.server.kubeconfig(self.directory / f"{name}.kubeconfig", token=token)
        replica = Process(self.directory, name, f"kubernetes:{config}", **times)
        self.replicas.append(replica)
        await replica.start()
        return replica

    async def leader(self) -> Process:
        """The one that leads, when one does."""

        async def found() -> Process | None:
            for replica in self.replicas:
                if await replica.leads():
                    return replica
            return None

        return await until(found, "a leader")

    async def get(self, path: str) -> Any:
        with contextlib.suppress(ApiError):
            return (await self.send("GET", path)).json
        return None

    async def make(self, plural: str, name: str, **spec: Any) -> None:
        kind = {"pools": "Pool", "networks": "Network", "nodes": "Node", "blocks": "Block"}[plural]
        labels = spec.pop("labels", {})
        body = {"apiVersion": "muslin.io/v1alpha1", "kind": kind, "spec": spec}
        body["metadata"] = {"name": name, "labels": labels}
        await self.send("POST", f"{GROUP}/{plural}", body)

    async def machine(self, name: str) -> None:
        body = {"metadata": {"name": name}, "spec": {"taints": TAINTS}}
        await self.send("POST", "/api/v1/nodes", body)

    async def agent(self, name: str, ready: str = "True") -> None:
        """Play a node's agent."""
        if await self.get(f"{GROUP}/nodes/{name}") is None:
            await self.make("nodes", name, addresses=["192.0.2.1/24"], mtu=1500)
        said = {"type": "Ready", "status": ready, "reason": "Test", "message": "as told"}
        said["lastTransitionTime"] = "2026-01-01T00:00:00Z"
        body = {"status": {"conditions": [said]}}
        await self.send("PATCH", f"{GROUP}/nodes/{name}/status", body, content_type=MERGE)

    async def blocks(self, places: range, node: str = "n1") -> None:
        for i in places:
            cidr = f"10.1.{i // 16}.{i % 16 * 16}"
            await self.make("blocks", f"a.{cidr}-28", pool="a", cidr=f"{cidr}/28", node=node)

    async def taints(self, name: str) -> list[Any]:
        """Without those that Kubernetes itself gives to a node that nobody runs."""
        found = (await self.get(f"/api/v1/nodes/{name}"))["spec"].get("taints") or ()
        return [t for t in found if not t["key"].startswith("node.kubernetes.io/")]

    async def told(self) -> list[tuple[str, str]]:
        """Reason and words of our events; other controllers have theirs."""
        events = (await self.get("/apis/events.k8s.io/v1/namespaces/default/events"))["items"]
        ours = (e for e in events if e.get("reportingController", "").startswith("muslin.io/"))
        return [(e["reason"], e["note"]) for e in ours]

    async def condition(self, path: str, kind: str) -> dict[str, Any]:
        found = await self.get(path) or {}
        said = found.get("status", {}).get("conditions") or ()
        return next((c for c in said if c["type"] == kind), {})


async def until(what: Callable[[], Awaitable[Any]], why: str, *, seconds: float = 25.0) -> Any:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if found := await what():
            return found
        await asyncio.sleep(0.1)
    pytest.fail(f"not within {seconds} s: {why}")


@pytest.fixture
async def cluster(serve: Serve, tmp_path: Path) -> AsyncIterator[Cluster]:
    async with serve(collect=True, rbac=True) as server:
        await server.define()
        made = Cluster(server, tmp_path)
        await made.send("POST", "/api/v1/namespaces", {"metadata": {"name": NS}})
        yield made
        for replica in made.replicas:
            await replica.end()
            assert "Traceback" not in replica.log, replica.log
            assert "traceback" not in replica.log, replica.log


async def test_a_node_that_is_ready_may_have_pods(cluster: Cluster) -> None:
    await cluster.start()
    await cluster.machine("n1")
    await cluster.machine("other")
    await cluster.agent("n1")

    async def available() -> bool:
        said = await cluster.condition("/api/v1/nodes/n1", "NetworkUnavailable")
        return said.get("status") == "False" and await cluster.taints("n1") == TAINTS[:1]

    await until(available, "the condition, and our taint gone")
    await cluster.agent("n1", "False")

    async def unavailable() -> bool:
        said = await cluster.condition("/api/v1/nodes/n1", "NetworkUnavailable")
        return (said["status"], said["message"]) == ("True", "as told")

    await until(unavailable, "the condition turned")
    assert await cluster.taints("other") == TAINTS
    assert not await cluster.condition("/api/v1/nodes/other", "NetworkUnavailable")


async def test_status_and_events_say_what_people_ask(cluster: Cluster) -> None:
    await cluster.start()
    await cluster.make("networks", "default", backend="vxlan", pools=["a"])

    async def why() -> bool:
        said = await cluster.condition(f"{GROUP}/networks/default", "Ready")
        return said.get("status") == "False" and "no pool is called 'a'" in said["message"]

    await until(why, "what is missing")
    await cluster.make("pools", "a", cidr="10.1.0.0/24", block=28)

    async def fit() -> bool:
        return (await cluster.condition(f"{GROUP}/networks/default", "Ready"))["status"] == "True"

    await until(fit, "the network is ready")
    await cluster.blocks(range(16), "n3")

    async def full() -> bool:
        return (await cluster.condition(f"{GROUP}/pools/a", "Full")).get("status") == "True"

    await until(full, "the pool is full")
    status = (await cluster.get(f"{GROUP}/pools/a"))["status"]
    assert (status["held"], status["free"], status["blocks"]) == (16, 0, 16)

    async def told() -> set[tuple[str, str]]:
        found = set(await cluster.told())
        return found if len(found) == 3 else set()

    notes = dict(await until(told, "three events"))
    assert notes["PoolFull"] == "pool a is full: 16 of 16 blocks held, most by n3 (16)"
    assert notes["NetworkValid"] == "network default is in order again"
    assert set(notes) == {"PoolFull", "NetworkInvalid", "NetworkValid"}


@pytest.mark.steers  # looks at the revision of its storage
async def test_a_hundred_blocks_come_and_go_for_a_few_writes(cluster: Cluster) -> None:
    """Nothing is written per block, so nothing is per pod: at most one status a second."""
    replica = await cluster.start()
    await cluster.make("pools", "a", cidr="10.1.0.0/16", block=28)
    await cluster.make("networks", "default", backend="vxlan", pools=["a"])
    await cluster.leader()
    began, before = time.monotonic(), cluster.server.storage.revision
    await cluster.blocks(range(100))
    lists = await replica.metric("muslin_watch_lists_total")
    for i in range(100):
        name = f"a.10.1.{i // 16}.{i % 16 * 16}-28"
        await cluster.send("DELETE", f"{GROUP}/blocks/{name}")
        await asyncio.sleep(0.02)

    async def counted() -> bool:
        return (await cluster.get(f"{GROUP}/pools/a"))["status"].get("held") == 0

    await until(counted, "the count of what is left")
    seconds = time.monotonic() - began
    renewals = seconds / 0.4 + 2
    writes = cluster.server.storage.revision - before - 200
    assert writes <= seconds + 3 + renewals, (writes, seconds)
    assert await replica.metric("muslin_watch_lists_total") == lists > 0  # all by watches
    patches = await replica.metric("muslin_controller_requests_total")
    await asyncio.sleep(2)
    lists = await replica.metric("muslin_controller_requests_total") - patches
    assert lists <= 3 * 2.5 / 0.16, "only the looks for leases go on"


@pytest.mark.parametrize("how", ["kill", "stop"])
async def test_when_the_leader_is_gone_another_leads(cluster: Cluster, how: str) -> None:
    for name in ("c1", "c2"):
        await cluster.start(name)
    first = await cluster.leader()
    other = next(r for r in cluster.replicas if r is not first)

    async def stands_by() -> bool:
        return (await other.page("/readyz"))[0] == 200

    await until(stands_by, "the other is there")
    assert not await other.leads()
    began = time.monotonic()
    first.send(signal.SIGKILL if how == "kill" else signal.SIGSTOP)
    await until(other.leads, "the other leads")
    assert time.monotonic() - began <= 3 + 0.4 * 2.2 + 4  # duration, a look, this machine
    first.send(signal.SIGCONT)
    for _ in range(20):
        assert [await r.leads() for r in (first, other)] == [False, True]
        await asyncio.sleep(0.1)
    assert (await cluster.get(f"{LEASES}/muslin-controller"))["spec"]["leaseTransitions"] == 1


async def test_told_to_end_it_frees_the_lease_and_is_gone_at_once(cluster: Cluster) -> None:
    first = await cluster.start("c1", MUSLIN_LEASE="60")
    await cluster.leader()
    await cluster.start("c2", MUSLIN_LEASE="60")
    began = time.monotonic()
    assert await first.end() == 0
    assert time.monotonic() - began < 3.0
    spec = (await cluster.get(f"{LEASES}/muslin-controller"))["spec"]
    assert not spec.get("holderIdentity", "").startswith("c1")
    await cluster.leader()  # no minute later


@pytest.mark.steers
async def test_an_api_server_that_goes_away_and_comes_back(cluster: Cluster) -> None:
    replica = await cluster.start()
    await cluster.make("pools", "a", cidr="10.1.0.0/24", block=28)
    await cluster.leader()
    await cluster.server.stop(abort=True)

    async def lost() -> bool:
        return not await replica.leads() and (await replica.page("/readyz"))[0] == 503

    await until(lost, "it notices, and leads no more")
    assert (await replica.page("/healthz"))[0] == 200
    await cluster.server.start()
    await cluster.blocks(range(3))

    async def counted() -> bool:
        return (await cluster.get(f"{GROUP}/pools/a")).get("status", {}).get("held") == 3

    await until(counted, "it leads and counts again", seconds=60)
    assert (await replica.page("/readyz"))[0] == 200


async def test_a_dead_nodes_blocks_are_freed_and_a_living_ones_stay(cluster: Cluster) -> None:
    await cluster.start()
    await cluster.leader()
    for name, seconds in (("dead", 1), ("alive", 3600)):
        body = {
            "metadata": {"name": name, "labels": {"muslin.io/promise": "true"}},
            "spec": {"leaseDurationSeconds": seconds},
        }
        await cluster.send("POST", LEASES, body)
    for name, lease in (("10.1.0.0", "dead"), ("10.1.0.16", "alive"), ("10.1.0.32", "vanished")):
        spec = {"pool": "a", "cidr": f"{name}/28", "node": "n1"}
        await cluster.make("blocks", f"a.{name}-28", **spec, labels={"muslin.io/lease": lease})

    async def freed() -> bool:
        items = (await cluster.get(f"{GROUP}/blocks"))["items"]
        return [i["spec"]["cidr"] for i in items] == ["10.1.0.16/28"]

    await until(freed, "only the living node's block is left")


async def test_the_role_in_deploy_is_enough(cluster: Cluster) -> None:
    """Every request under RBAC, as the service account of the manifests."""
    for document in yaml.safe_load_all((DEPLOY / "controller-rbac.yaml").read_text()):
        group, plural = document["apiVersion"], document["kind"].lower() + "s"
        root = f"/apis/{group}" if "/" in group else f"/api/{group}"
        where = f"/namespaces/{NS}" if "namespace" in document["metadata"] else ""
        await cluster.send("POST", f"{root}{where}/{plural}", document)
    token = await cluster.server.account(NS, "muslin-controller")
    await cluster.make("pools", "a", cidr="10.1.0.0/28", block=28)
    await cluster.make("networks", "default", backend="vxlan", pools=["a"])
    await cluster.machine("n1")
    await cluster.agent("n1")
    labels = {"muslin.io/lease": "vanished"}
    spec = {"pool": "b", "cidr": "10.9.0.0/28", "node": "n1"}
    await cluster.make("blocks", "b.10.9.0.0-28", **spec, labels=labels)
    await cluster.blocks(range(1))
    replica = await cluster.start(token=token)

    async def all_done() -> bool:
        found = [
            (await cluster.condition(f"{GROUP}/pools/a", "Full")).get("status"),
            (await cluster.condition(f"{GROUP}/networks/default", "Ready")).get("status"),
            (await cluster.condition("/api/v1/nodes/n1", "NetworkUnavailable")).get("status"),
            len(await cluster.taints("n1")),
            await cluster.get(f"{GROUP}/blocks/b.10.9.0.0-28"),
            len(await cluster.told()),
        ]
        return found == ["True", "True", "False", 1, None, 1]

    await until(all_done, "everything it is for")
    assert await replica.end() == 0
    assert "cannot" not in replica.log, replica.log
    assert "error" not in replica.log, replica.log


async def test_an_address_that_is_taken_is_said_with_its_setting(cluster: Cluster) -> None:
    taken = await asyncio.start_server(lambda *_: None, "127.0.0.1", 0)
    port = taken.sockets[0].getsockname()[1]
    replica = await cluster.start(MUSLIN_LISTEN=f"127.0.0.1:{port}")
    assert await asyncio.wait_for(replica.process.wait(), 10) == os.EX_CONFIG
    assert f"setting listen = 127.0.0.1:{port}" in replica.log
    taken.close()


async def test_settings_that_cannot_be_are_said_before_anything_starts(cluster: Cluster) -> None:
    replica = Process(Path(cluster.server.kubeconfig(cluster.directory / "k").parent), "c", "etcd:")
    await replica.start()
    assert await asyncio.wait_for(replica.process.wait(), 10) == 1
    assert "a controller is for Kubernetes" in replica.log
