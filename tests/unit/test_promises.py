"""Leases on an API server: what is not kept ends with what is under it, and nothing else does."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from ipaddress import ip_interface, ip_network
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from apiserver import ApiServer
from muslin.errors import Conflict, NotReady
from muslin.kube import Access, Api, crd
from muslin.kube.kinds import CRDS, LEASES, NODES
from muslin.kube.values import KINDS
from muslin.model import Block, Node
from muslin.store.kubernetes import KubernetesStore
from muslin.store.objects import Objects
from muslin.store.promises import LABEL, Expiry, promise
from virtual import run

NS = "default"
UNDER = (KINDS[Node], KINDS[Block])
TTL, GRACE, PAUSE = 100.0, 60.0, 5.0
NODE = Node(name="n1", addresses=(ip_interface("192.0.2.1/24"),), mtu=1500)
BLOCKS = [
    Block(pool="a", cidr=c, node="n1") for c in ip_network("10.0.0.0/24").subnets(new_prefix=26)
]


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class Cluster:
    """An API server, a store on it, and whoever looks."""

    def __init__(self, server: ApiServer, api: Api) -> None:
        self.server, self.api, self.clock = server, api, Clock()
        self.store = KubernetesStore(api, namespace=NS)
        self.objects = Objects(self.store)
        self.expiry = self.take_over()

    def take_over(self) -> Expiry:
        """Another controller leads from now on."""
        self.expiry = Expiry(self.api, NS, UNDER, clock=self.clock, grace=GRACE)
        return self.expiry

    async def look(self, seconds: float, each: Callable[[], Any] | None = None) -> None:
        """Look every few seconds for that long; `each` is awaited in between."""
        end = self.clock.now + seconds
        while self.clock.now < end:
            self.clock.now = min(self.clock.now + PAUSE, end)
            if each:
                await each()
            try:
                await self.expiry.look()
            except NotReady:
                continue

    async def left(self) -> set[str]:
        found = {f.value.name for f in (await self.objects.list(Node)).found}
        return found | {str(f.value.cidr) for f in (await self.objects.list(Block)).found}

    async def leases(self) -> int:
        listed = await self.api.list(LEASES, namespace=NS, type=dict)
        return len(listed.items)


@pytest.fixture
async def cluster() -> AsyncIterator[Cluster]:
    async with ApiServer() as server:
        for definition in crd.definitions():
            await server.send("POST", CRDS.path(), definition)
        async with Api(Access(server=server.url), timeout=1.0, uniform=lambda a, _: a) as api:
            made = Cluster(server, api)
            await made.expiry.look()
            yield made


async def test_a_lease_that_is_kept_stays_for_ever(cluster: Cluster) -> None:
    lease = await cluster.store.lease(TTL)
    await cluster.objects.create(NODE, lease=lease)
    await cluster.look(10 * TTL, each=lease.keep)
    assert await cluster.left() == {"n1"}


async def test_one_that_is_not_kept_ends_after_its_time_with_all_under_it(cluster: Cluster) -> None:
    lease, other = await cluster.store.lease(TTL), await cluster.store.lease(10 * TTL)
    await cluster.objects.create(NODE, lease=lease)
    await cluster.objects.create(BLOCKS[0], lease=lease)
    await cluster.objects.create(BLOCKS[1], lease=other)
    await cluster.objects.create(BLOCKS[2])
    await cluster.look(TTL)
    assert "n1" in await cluster.left()
    await cluster.look(2 * PAUSE)
    assert await cluster.left() == {str(BLOCKS[1].cidr), str(BLOCKS[2].cidr)}
    assert await cluster.leases() == 1
    with pytest.raises(Conflict):
        await lease.keep()
    with pytest.raises(Conflict):
        await cluster.objects.create(BLOCKS[3], lease=lease)


async def test_what_lost_its_lease_has_a_grace(cluster: Cluster) -> None:
    lease = await cluster.store.lease(TTL)
    await cluster.objects.create(BLOCKS[0], lease=lease)
    await cluster.api.delete(LEASES, lease.name, namespace=NS)
    await cluster.look(GRACE)
    assert await cluster.left() == {str(BLOCKS[0].cidr)}
    await cluster.look(2 * PAUSE)
    assert await cluster.left() == set()


async def test_what_moves_to_another_lease_within_the_grace_survives(cluster: Cluster) -> None:
    """A core Node deleted and made again: its Lease is gone, the agent promises anew."""
    lease = await cluster.store.lease(TTL)
    found = await cluster.objects.create(BLOCKS[0], lease=lease)
    await cluster.objects.create(BLOCKS[1], lease=lease)
    await cluster.api.delete(LEASES, lease.name, namespace=NS)
    await cluster.look(GRACE / 2)
    again = await cluster.store.lease(TTL)
    await cluster.objects.put(BLOCKS[0], if_revision=found.revision, lease=again)
    await cluster.look(10 * GRACE, each=again.keep)
    assert await cluster.left() == {str(BLOCKS[0].cidr)}


async def test_what_moves_in_the_moment_of_the_end_survives(cluster: Cluster) -> None:
    """The object is another when it is to be deleted than when it was listed."""
    lease, again = await cluster.store.lease(TTL), await cluster.store.lease(10 * TTL)
    found = await cluster.objects.create(BLOCKS[0], lease=lease)
    await cluster.look(TTL)
    true_delete = cluster.api.delete

    async def delete(kind: Any, name: str, **more: Any) -> bool:
        if kind == KINDS[Block]:
            await cluster.objects.put(BLOCKS[0], if_revision=found.revision, lease=again)
        return await true_delete(kind, name, **more)

    cluster.api.delete = delete  # type: ignore[method-assign]
    await cluster.look(PAUSE)
    assert await cluster.leases() == 1
    assert await cluster.left() == {str(BLOCKS[0].cidr)}


async def test_a_lease_kept_at_the_last_moment_stands(cluster: Cluster) -> None:
    lease = await cluster.store.lease(TTL)
    await cluster.objects.create(BLOCKS[0], lease=lease)
    await cluster.look(TTL)
    true_delete = cluster.api.delete

    async def delete(kind: Any, name: str, **more: Any) -> bool:
        await lease.keep()
        return await true_delete(kind, name, **more)

    cluster.api.delete = delete  # type: ignore[method-assign]
    cluster.clock.now += PAUSE
    assert await cluster.expiry.look() == []
    assert await cluster.left() == {str(BLOCKS[0].cidr)}


async def test_a_controller_that_takes_over_counts_anew(cluster: Cluster) -> None:
    lease = await cluster.store.lease(TTL)
    await cluster.objects.create(BLOCKS[0], lease=lease)
    await cluster.look(TTL - PAUSE)
    cluster.take_over()
    await cluster.look(TTL)
    assert await cluster.left() != set()
    await cluster.look(3 * PAUSE)
    assert await cluster.left() == set()


async def test_the_time_in_which_the_server_was_away_does_not_count(cluster: Cluster) -> None:
    """Nobody could keep a promise then; and the grace of an orphan is no shorter."""
    lease, gone = await cluster.store.lease(TTL), await cluster.store.lease(TTL)
    await cluster.objects.create(BLOCKS[0], lease=lease)
    await cluster.objects.create(BLOCKS[1], lease=gone)
    await cluster.api.delete(LEASES, gone.name, namespace=NS)
    await cluster.look(GRACE / 2)
    cluster.server.faults.refuse(503, times=1_000_000)
    await cluster.look(20 * TTL)
    cluster.server.faults.clear()
    await cluster.look(GRACE / 4)
    assert await cluster.left() == {str(BLOCKS[0].cidr), str(BLOCKS[1].cidr)}
    await cluster.look(GRACE / 2)
    assert await cluster.left() == {str(BLOCKS[0].cidr)}
    await cluster.look(TTL)
    assert await cluster.left() == set()


async def test_a_server_that_fails_now_and_then_does_not_stop_the_counting(
    cluster: Cluster,
) -> None:
    lease = await cluster.store.lease(TTL)
    await cluster.objects.create(BLOCKS[0], lease=lease)
    turn = iter(range(1_000_000))

    async def sometimes() -> None:
        if next(turn) % 3 == 2:
            cluster.server.faults.refuse(503)

    await cluster.look(4 * TTL, each=sometimes)
    assert await cluster.left() == set()


async def test_a_failure_half_way_is_made_good_by_the_next_looks(cluster: Cluster) -> None:
    lease = await cluster.store.lease(TTL)
    for block in BLOCKS:
        await cluster.objects.create(block, lease=lease)
    await cluster.look(TTL)
    cluster.server.faults.refuse(500, where=lambda p: "10.0.0.128" in p, times=1)
    await cluster.look(GRACE + 4 * PAUSE)
    assert await cluster.left() == set()


async def test_what_a_finalizer_holds_is_asked_to_go_once(cluster: Cluster) -> None:
    lease = await cluster.store.lease(TTL)
    await cluster.objects.create(BLOCKS[0], lease=lease)
    held = {"metadata": {"finalizers": ["example.com/hold"]}}
    await cluster.api.patch(KINDS[Block], "a.10.0.0.0-26", held)
    await cluster.look(TTL + GRACE + 10 * PAUSE)
    before = cluster.server.storage.revision
    await cluster.look(10 * GRACE)
    assert cluster.server.storage.revision == before
    assert await cluster.left() == {str(BLOCKS[0].cidr)}


async def test_leases_of_others_are_not_touched(cluster: Cluster) -> None:
    await cluster.api.create(LEASES, {"metadata": {"name": "election"}, "spec": {}}, namespace=NS)
    await cluster.look(5 * TTL)
    assert await cluster.leases() == 1


async def test_deleting_a_core_node_takes_its_lease_along(cluster: Cluster) -> None:
    made = await cluster.api.create(NODES, {"metadata": {"name": "n1"}})
    owner = {"apiVersion": "v1", "kind": "Node", "name": "n1", "uid": made["metadata"]["uid"]}
    lease = await promise(cluster.api, NS, TTL, UNDER, owner=owner)
    await cluster.objects.create(BLOCKS[0], lease=lease)
    await cluster.api.delete(NODES, "n1")
    await cluster.server.collector.sweep()
    assert not await lease.stands()
    await cluster.look(GRACE)
    assert await cluster.left() == {str(BLOCKS[0].cidr)}
    await cluster.look(2 * PAUSE)
    assert await cluster.left() == set()


async def test_a_label_that_names_no_lease_is_an_orphans(cluster: Cluster) -> None:
    await cluster.objects.create(BLOCKS[0])
    await cluster.api.patch(KINDS[Block], "a.10.0.0.0-26", {"metadata": {"labels": {LABEL: ""}}})
    await cluster.look(GRACE + 2 * PAUSE)
    assert await cluster.left() == set()


@settings(max_examples=15, deadline=None)
@given(
    st.lists(st.sampled_from(["look", "away", "take over", "late"]), max_size=12),
)
def test_whatever_happens_to_the_controller_what_is_kept_is_kept(steps: list[str]) -> None:
    """Keeping every quarter of the time, as agents do, is always enough."""

    async def main() -> None:
        server = ApiServer()
        for definition in crd.definitions():
            await server.send("POST", CRDS.path(), definition)
        cluster = Cluster(server, InProcess(server))  # type: ignore[arg-type]
        lease = await cluster.store.lease(TTL)
        await cluster.objects.create(BLOCKS[0], lease=lease)
        kept = [cluster.clock.now]

        async def keep() -> None:
            if cluster.clock.now - kept[0] >= TTL / 4:
                kept[0] = cluster.clock.now
                try:
                    await lease.keep()
                except Conflict:
                    raise
                except NotReady:
                    pass

        for step in steps:
            match step:
                case "away":
                    server.faults.refuse(503, times=1_000_000)
                case "take over":
                    cluster.take_over()
                case "late":  # the controller is stopped; nobody looks, agents keep on
                    for _ in range(40):
                        cluster.clock.now += PAUSE
                        await keep()
                case "look":
                    server.faults.clear()
            await cluster.look(TTL * 0.7, each=keep)
        server.faults.clear()
        await cluster.look(TTL * 2, each=keep)
        assert await cluster.left() == {str(BLOCKS[0].cidr)}

    run(main())


class InProcess(Api):
    """The API server without HTTP."""

    def __init__(self, server: ApiServer) -> None:
        super().__init__(Access(server="http://127.0.0.1:1"))
        self._wire = _Direct(server)  # type: ignore[assignment]


class _Direct:
    def __init__(self, server: ApiServer) -> None:
        self._server = server

    async def ask(
        self,
        method: str,
        path: str,
        query: Any = None,
        body: bytes = b"",
        content_type: str = "application/json",
    ) -> Any:
        from urllib.parse import urlencode

        from apiserver import ApiError
        from apiserver.encode import encode
        from muslin.kube.faults import Answer

        try:
            url = f"{path}?{urlencode(query or {})}"
            found = await self._server.send(method, url, body, content_type=content_type)
            return Answer(found.status, found.body)
        except ApiError as e:
            return Answer(e.code, encode(e.body))
