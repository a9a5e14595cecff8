"""The webhook beside an API server: refusals as people see them, absence, replicas, renewals."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import ssl
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from apiserver import ApiServer
from muslin.controller import certificates, webhook
from muslin.controller.certificates import DAY, SECRETS
from muslin.errors import ConfigError
from muslin.kube import Access, Api, crd
from muslin.kube.kinds import CRDS, NAMESPACES, VALIDATING_WEBHOOKS
from muslin.kube.values import KINDS, to_object
from muslin.model import Block, Network, Node, Pool, Reservation

pytestmark = pytest.mark.steers  # a Service leads to a port of the test's own process
NS = "muslin-system"
MANIFEST = Path(__file__).resolve().parents[2] / "deploy" / "base" / "webhook.yaml"
POOLS, NETWORKS = KINDS[Pool], KINDS[Network]


def pool(name: str, cidr: str, **more: Any) -> dict[str, Any]:
    return {"metadata": {"name": name}, "spec": {"cidr": cidr, **more}}


def network(name: str, *pools: str, backend: str = "vxlan") -> dict[str, Any]:
    return {"metadata": {"name": name}, "spec": {"backend": backend, "pools": list(pools)}}


def configuration() -> dict[str, Any]:
    found = yaml.safe_load_all(MANIFEST.read_text())
    return next(o for o in found if o["kind"] == "ValidatingWebhookConfiguration")


class Replica:
    """One replica's webhook; `ahead` is by how much its wall clock is before ours."""

    def __init__(self, cluster: Cluster, *, leading: bool) -> None:
        self.leading, self.ahead, self.port = leading, 0.0, 0
        self._task = asyncio.create_task(
            webhook.serve_webhook(
                Access(server=cluster.server.url, token="admin"),
                NS,
                ("127.0.0.1", 0),
                leading=lambda: self.leading,
                wall=lambda: time.time() + self.ahead,
                listening=lambda port: setattr(self, "port", port),
            )
        )

    async def end(self) -> None:
        self._task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self._task


class Cluster:
    """An API server with our kinds and the webhook's configuration; replicas that come and go."""

    def __init__(self, server: ApiServer) -> None:
        self.server = server
        self.api = Api(Access(server=server.url, token="admin"))
        self.dry = Api(Access(server=server.url, token="admin"), dry_run=True)
        self.replicas: list[Replica] = []
        self._next = 0
        server.router.admission.resolve(self._resolve)

    def _resolve(self, namespace: str, name: str, port: int) -> str:
        assert (namespace, name, port) == (NS, "muslin-webhook", 443)
        ready = [r for r in self.replicas if r.port]
        if not ready:
            raise LookupError("no endpoints")
        self._next += 1
        return f"https://127.0.0.1:{ready[self._next % len(ready)].port}"

    def start(self, *, leading: bool = True) -> Replica:
        self.replicas.append(Replica(self, leading=leading))
        return self.replicas[-1]

    async def fill(self, **hook: Any) -> None:
        for definition in crd.definitions():
            await self.server.send("POST", CRDS.path(), definition)
        await self.api.create(NAMESPACES, {"metadata": {"name": NS}})
        made = configuration()
        made["webhooks"][0] |= hook
        await self.api.create(VALIDATING_WEBHOOKS, made)

    async def secret(self) -> dict[str, Any]:
        return await self.api.get(SECRETS, "muslin-webhook", namespace=NS) or {}

    async def bundle(self) -> str:
        found = await self.api.get(VALIDATING_WEBHOOKS, "muslin") or {}
        [hook] = found["webhooks"]
        return str(hook["clientConfig"].get("caBundle", ""))

    async def judged(self) -> None:
        """Wait until the webhook refuses what it should."""
        await self.api.apply(POOLS, "judged", pool("judged", "172.31.0.0/24"))
        probe = pool("probe", "172.31.0.0/16")

        async def refused() -> bool:
            try:
                await self.dry.create(POOLS, probe)
            except ConfigError:
                return True
            return False

        await until(refused)

    async def close(self) -> None:
        for replica in self.replicas:
            await replica.end()
        await self.api.close()
        await self.dry.close()


async def until(done: Callable[[], Awaitable[bool]], seconds: float = 10.0) -> None:
    async with asyncio.timeout(seconds):
        while not await done():  # noqa: ASYNC110 - of a server
            await asyncio.sleep(0.02)


@pytest.fixture
async def cluster() -> AsyncIterator[Cluster]:
    async with ApiServer() as server:
        made = Cluster(server)
        yield made
        await made.close()


async def test_a_refusal_says_what_is_wrong_in_our_words(cluster: Cluster) -> None:
    await cluster.fill()
    cluster.start()
    await cluster.judged()
    await cluster.api.apply(POOLS, "a", pool("a", "10.0.0.0/16"))
    words = r"pool b: 10.0.0.0/8 overlaps 10.0.0.0/16 of pool a; choose another cidr"
    for write in (cluster.api.apply, lambda k, _, body: cluster.api.create(k, body)):
        with pytest.raises(ConfigError, match=words):
            await write(POOLS, "b", pool("b", "10.0.0.0/8"))
    answer = await send_raw(cluster, POOLS.path(), pool("b", "10.0.0.0/8"))
    assert answer[0] == 422
    assert answer[1].startswith('admission webhook "objects.muslin.io" denied the request: pool b')
    await cluster.api.apply(NETWORKS, "one", network("one", "a"))
    with pytest.raises(ConfigError, match="pool a: already belongs to network one"):
        await cluster.api.apply(NETWORKS, "two", network("two", "a"))
    with pytest.raises(ConfigError, match="backend 'carrier' is not one of"):
        await cluster.api.patch(NETWORKS, "one", {"spec": {"backend": "carrier"}})
    with pytest.raises(ConfigError, match="unknown option 'vnid'"):
        await cluster.api.patch(NETWORKS, "one", {"spec": {"options": {"vnid": 1}}})


async def send_raw(cluster: Cluster, path: str, body: dict[str, Any]) -> tuple[int, str]:
    """As kubectl sends it: what it prints is the status' message."""
    from apiserver import ApiError

    try:
        await cluster.server.send(
            "POST", path, {**body, "kind": "Pool", "apiVersion": "muslin.io/v1alpha1"}
        )
    except ApiError as e:
        return e.code, str(e.body["message"])
    return 201, ""


async def test_what_nodes_hold_is_deleted_only_on_purpose(cluster: Cluster) -> None:
    await cluster.fill()
    cluster.start()
    await cluster.judged()
    await cluster.api.apply(NETWORKS, "one", network("one", "a"))  # before its pool
    await cluster.api.apply(POOLS, "a", pool("a", "10.0.0.0/16"))
    body = {
        "metadata": {"name": "a.10.0.0.0-26"},
        "spec": {"pool": "a", "cidr": "10.0.0.0/26", "node": "n1"},
    }
    await cluster.api.create(KINDS[Block], body)
    for kind, name in ((POOLS, "a"), (NETWORKS, "one")):

        async def refused(kind: Any = kind, name: str = name) -> bool:
            try:
                await cluster.dry.delete(kind, name)
            except ConfigError as e:
                return "1 block held by node n1" in str(e)
            return False

        await until(refused)
    with pytest.raises(ConfigError, match=r"exclude 10.0.0.0/28 lies in 1 block held by node n1"):
        await cluster.api.patch(POOLS, "a", {"spec": {"exclude": ["10.0.0.0/28"]}})
    await cluster.api.patch(POOLS, "a", {"metadata": {"annotations": {"muslin.io/force": "true"}}})
    assert await cluster.api.delete(POOLS, "a")


async def test_nodes_and_blocks_are_not_its_business(cluster: Cluster) -> None:
    """With a webhook that answers nobody and may not be passed by: agents write all the same."""
    await cluster.fill(failurePolicy="Fail")
    node = Node(name="n1", addresses=(), mtu=1500)
    await cluster.api.create(KINDS[Node], to_object(node))
    body = {
        "metadata": {"name": "a.10.0.0.0-26"},
        "spec": {"pool": "a", "cidr": "10.0.0.0/26", "node": "n1"},
    }
    await cluster.api.create(KINDS[Block], body)
    await cluster.api.patch(KINDS[Block], "a.10.0.0.0-26", {"metadata": {"labels": {"x": "y"}}})
    assert await cluster.api.delete(KINDS[Block], "a.10.0.0.0-26")
    with pytest.raises(Exception, match="failed calling webhook"):
        await cluster.api.create(POOLS, pool("a", "10.0.0.0/16"))


async def test_its_absence_keeps_nobody_from_writing(cluster: Cluster) -> None:
    await cluster.fill()
    await cluster.api.apply(POOLS, "a", pool("a", "10.0.0.0/16"))
    replica = cluster.start()
    await cluster.judged()
    with pytest.raises(ConfigError, match="overlaps"):
        await cluster.api.apply(POOLS, "b", pool("b", "10.0.0.0/8"))
    await replica.end()
    await cluster.api.apply(POOLS, "b", pool("b", "10.0.0.0/8"))  # the port is closed
    cluster.replicas.clear()
    await cluster.api.apply(POOLS, "c", pool("c", "10.0.0.0/12"))  # no endpoint


async def test_two_replicas_agree_on_one_authority(cluster: Cluster) -> None:
    await cluster.fill(failurePolicy="Fail")
    replicas = [cluster.start(leading=True), cluster.start(leading=False)]
    await until(lambda: truth(cluster.bundle()))
    held = await cluster.secret()
    assert held["type"] == "kubernetes.io/tls"
    assert held["data"]["ca.crt"] == await cluster.bundle()
    assert base64.b64decode(held["data"]["ca.crt"]).count(b"BEGIN") == 1
    served = {await chain_of(replica, held) for replica in replicas}
    assert len(served) == 1


async def truth(found: Awaitable[object]) -> bool:
    return bool(await found)


async def chain_of(replica: Replica, held: dict[str, Any]) -> bytes:
    """The certificate that is served, verified as an API server does."""
    context = ssl.create_default_context(cadata=base64.b64decode(held["data"]["ca.crt"]).decode())
    name = f"muslin-webhook.{NS}.svc"
    async with asyncio.timeout(5):
        while True:
            try:
                _, writer = await asyncio.open_connection(
                    "127.0.0.1", replica.port, ssl=context, server_hostname=name
                )
            except OSError:  # not yet
                await asyncio.sleep(0.02)
                continue
            found = writer.get_extra_info("ssl_object").getpeercert(True)
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()
            return bytes(found)


async def test_only_the_leader_tells_and_only_what_differs(cluster: Cluster) -> None:
    await cluster.fill()
    replica = cluster.start(leading=False)
    await until(lambda: truth(cluster.secret()))
    await asyncio.sleep(0.3)
    assert await cluster.bundle() == ""
    replica.leading = True
    await until(lambda: truth(cluster.bundle()))
    found = await cluster.api.get(VALIDATING_WEBHOOKS, "muslin") or {}
    fields = [
        str(m["fieldsV1"])
        for m in found["metadata"]["managedFields"]
        if m["manager"] == "muslin-controller"
    ]
    assert len(fields) == 1
    assert "caBundle" in fields[0]
    assert "rules" not in fields[0]
    version = found["metadata"]["resourceVersion"]
    await asyncio.sleep(0.3)
    again = await cluster.api.get(VALIDATING_WEBHOOKS, "muslin") or {}
    assert again["metadata"]["resourceVersion"] == version
    # A manifest that is applied anew by another hand takes it away: it comes back.
    wiped = [{"op": "remove", "path": "/webhooks/0/clientConfig/caBundle"}]
    await cluster.api.patch(VALIDATING_WEBHOOKS, "muslin", wiped, how="json")
    await until(lambda: truth(cluster.bundle()))


async def test_an_installation_over_it_leaves_the_bundle(cluster: Cluster) -> None:
    await cluster.fill()
    cluster.start()
    await until(lambda: truth(cluster.bundle()))
    before = await cluster.bundle()
    await cluster.api.apply(VALIDATING_WEBHOOKS, "muslin", configuration(), force=True)
    assert await cluster.bundle() == before


async def test_a_persons_own_certificate_is_served_and_left_alone(cluster: Cluster) -> None:
    from muslin.controller import issuing

    name = f"muslin-webhook.{NS}.svc"
    theirs = issuing.make(certificates.Material(), "all", name, time.time() - 25 * DAY)
    body = certificates.secret(theirs)
    body["metadata"] = {"name": "muslin-webhook", "annotations": {certificates.OTHERS: "x"}}
    del body["data"]["ca.key"]
    await cluster.fill()
    notes = {"cert-manager.io/inject-ca-from": f"{NS}/muslin-webhook"}
    patch = {"metadata": {"annotations": notes}}
    await cluster.api.patch(VALIDATING_WEBHOOKS, "muslin", patch)
    replica = cluster.start()
    await asyncio.sleep(0.5)
    assert await cluster.secret() == {}, "theirs will come"
    made = await cluster.api.create(SECRETS, body, namespace=NS)
    assert await chain_of(replica, made)
    await asyncio.sleep(0.3)
    assert await cluster.secret() == made, "though it is due"
    assert await cluster.bundle() == ""


async def test_renewals_while_requests_run_fail_none(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A year and a half in steps of three days; Fail, so that a handshake that fails is seen."""
    monkeypatch.setattr(certificates, "LEAST", 0.0)
    monkeypatch.setattr(certificates, "PAUSE", 0.02)
    monkeypatch.setattr(certificates, "SETTLE", 6 * DAY)
    # Nobody's clock but ours: OpenSSL itself sees certificates of next year.
    create = ssl.create_default_context

    def timeless(*args: Any, **named: Any) -> ssl.SSLContext:
        context = create(*args, **named)
        context.verify_flags |= ssl.VerifyFlags(certificates.NO_CHECK_TIME)
        return context

    monkeypatch.setattr(ssl, "create_default_context", timeless)
    await cluster.fill()
    replicas = [cluster.start(leading=True), cluster.start(leading=False)]
    await cluster.judged()
    held = await cluster.secret()
    for replica in replicas:
        assert await chain_of(replica, held)
    strict = [{"op": "replace", "path": "/webhooks/0/failurePolicy", "value": "Fail"}]
    await cluster.api.patch(VALIDATING_WEBHOOKS, "muslin", strict, how="json")
    seen, writes, running = set[str](), 0, True

    async def write() -> None:
        nonlocal writes
        while running:
            await cluster.dry.create(POOLS, pool("fine", "10.9.0.0/16"))
            with pytest.raises(ConfigError, match="overlaps"):
                await cluster.dry.create(POOLS, pool("probe", "172.31.0.0/16"))
            writes += 2

    writing = [asyncio.create_task(write()) for _ in range(3)]
    for step in range(180):
        # Nobody leads while the first authority is renewed, on day 243, so nobody tells of it.
        replicas[0].leading = not 79 < step < 84
        for replica in replicas:
            replica.ahead += 3 * DAY
        await asyncio.sleep(0.03)
        seen.add(await cluster.bundle())
        assert not any(w.done() for w in writing), [w.exception() for w in writing if w.done()]
    running = False
    await asyncio.gather(*writing)
    firsts = {base64.b64decode(b).split(b"-----END")[0] for b in seen}
    assert len(firsts) >= 3, "authorities"
    assert writes > 200


async def test_an_address_object_is_judged(cluster: Cluster) -> None:
    await cluster.fill()
    cluster.start()
    await cluster.judged()
    spec = {
        "pool": "judged",
        "address": "172.30.0.9",
        "owner": {"kind": "Pod", "namespace": "shop", "name": "db-0"},
        "since": "2026-01-01T00:00:00Z",
    }
    body = {"metadata": {"name": "judged.172.30.0.9"}, "spec": spec}
    with pytest.raises(ConfigError, match=r"is not in 172.31.0.0/24 of pool judged"):
        await cluster.api.create(KINDS[Reservation], body)
