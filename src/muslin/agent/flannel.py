"""Muslin beside flannel: one network, some of whose nodes run flanneld.

    ConfigMap kube-flannel-cfg   read once, as flanneld does   the network and its pools
    Node (core)                  all of them, watched          who the peers are
    Node (core)                  an annotation of our own      so that flanneld's nodes know us

With the setting `flannel` this adds to what the store says (`extend`): the
network `default` out of the ConfigMap, and as nodes and blocks those whose
core Node has flannel's annotations.  A node with a record of ours beside them
is one peer, and where the two differ **the annotations decide**: they are what
flanneld's nodes go by, and who wrote them last is who serves that node now.

So this node's own MAC comes from its annotations too, if flanneld left one
there: whoever moves changes neither MAC nor address nor range, and no other
node's kernel has anything to follow.  That is more than tidy.  flanneld with
IPv4 and IPv6 overlooks a change of one of the two alone (handleUpdateLeaseEvent
in pkg/subnet/kube/kube.go, flannel 0.28).

The annotations are written when this node's kernel is ready to receive, and
removed by `muslin node clean` alone: pods outlive agents.
"""

from __future__ import annotations

import asyncio
import functools
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, replace
from ipaddress import ip_interface

import msgspec

from muslin.agent import ground
from muslin.agent.cluster import Own
from muslin.agent.pods import Pods
from muslin.agent.world import World
from muslin.backend.vxlan import vtep_mac
from muslin.errors import ConfigError, Conflict, KernelError, MuslinError
from muslin.kernel import takeover
from muslin.kube import Api
from muslin.kube.kinds import CONFIG_MAPS, NODES
from muslin.kube.slim import ConfigMap, FlannelNode
from muslin.log import log
from muslin.model import Block, Node, Pool, Prefix
from muslin.plan.objects import Plan
from muslin.store import flannel
from muslin.store.flannel import Lease, NetConf
from muslin.store.ledger import Ledger

KEY = "net-conf.json"
AGAIN = 5.0  # seconds between two tries to read the ConfigMap
NAME = ground.DEFAULT


@dataclass(frozen=True, slots=True)
class Extended:
    """The world with flannel's part in it, and who is left out and why."""

    world: World
    faults: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Told:
    """What one node's annotations come to: as if it had written a record, and held blocks."""

    lease: Lease
    record: Node
    blocks: tuple[Block, ...]


def merge(world: World, conf: NetConf, nodes: Mapping[str, FlannelNode], own: str) -> Extended:
    """Add flannel's network and nodes to what the store says.  Pure."""
    faults: list[str] = []
    if NAME in world.networks:
        faults.append(f"network {NAME} is in the store too: flannel's ConfigMap is what counts")
    mine = nodes.get(own)
    network, pools = flannel.network(conf, NAME, (mine.spec.pod_cidrs or ()) if mine else ())
    told: dict[str, Told] = {}
    for name, node in sorted(nodes.items()):
        found = _told(node, conf)
        if isinstance(found, str):
            faults.append(f"network {NAME}: node {name}: {found}")
        elif found is not None:
            told[name] = found
    records = {name: t.record for name, t in told.items()}
    for name, record in world.nodes.items():
        t = told.get(name)
        records[name] = _both(t, record, own=name == own) if t else record
    faults += _without_borrowed(records, world.nodes, own)
    of = {b.cidr: b for t in told.values() for b in t.blocks}
    kept = [b for b in world.blocks if of.get(b.cidr, b).node == b.node]
    there = {b.cidr for b in kept}
    # Our own are the ledger's to say: an echo of ours would keep it from claiming them.
    added = [b for cidr, b in of.items() if b.node != own and cidr not in there]
    return Extended(
        replace(
            world,
            networks={**world.networks, NAME: network},
            pools={**world.pools, **{p.name: p for p in pools}},
            nodes=records,
            blocks=(*kept, *added),
        ),
        tuple(faults),
    )


@functools.lru_cache(maxsize=1 << 13)  # at every pass all are asked for, and one has changed
def _told(node: FlannelNode, conf: NetConf) -> Told | str | None:
    name, given = node.metadata.name, node.metadata.annotations
    lease = flannel.read(given.given(), node.spec.pod_cidrs or (), conf) if given else None
    if lease is None or isinstance(lease, str):
        return lease
    data = {flannel.MAC[version]: mac for version, mac in lease.macs.items()}
    addresses = tuple(ip_interface(a) for a in lease.addresses)
    return Told(
        lease,
        Node(name=name, addresses=addresses, mtu=0, data={NAME: data}),
        tuple(Block(pool=flannel.POOLS[c.version], cidr=c, node=name) for c in lease.subnets),
    )


def _without_borrowed(records: dict[str, Node], stored: Mapping[str, Node], own: str) -> list[str]:
    """Take a MAC away from who announces another's: it would draw the other's packets to itself.

    Of several the one keeps it whose name it was made from, or whose stored
    record alone has it; else none, since nobody can say whose it is.  Ours is ours.
    """
    faults = []
    for member in flannel.MAC.values():
        named = [(mac, name) for name, r in records.items() if (mac := _mac(r, member))]
        often = Counter(mac for mac, _ in named)
        for mac in (m for m, times in often.items() if times > 1):
            names = sorted(name for m, name in named if m == mac)
            had = [n for n in names if n in stored and _mac(stored[n], member) == mac]
            owners = [n for n in names if n == own or vtep_mac(NAME, n) == mac] or had
            for name in names:
                if name == own or owners == [name]:
                    continue
                data = {n: d for n, d in records[name].data.items() if n != NAME}
                records[name] = msgspec.structs.replace(records[name], data=data)
                faults.append(f"network {NAME}: node {name}: another node announces {mac} too")
    return faults


def _mac(record: Node, member: str) -> str | None:
    return record.data.get(NAME, {}).get(member)


def _both(told: Told, record: Node, *, own: bool) -> Node:
    """A node as peers see it: the annotations' words, over what its own record says.

    Of ourselves they know the MAC alone: where we are, we know better.
    """
    said = {} if own else {a.version: a for a in told.record.addresses}
    kept = [a for a in record.addresses if a.version not in said or said[a.version].ip == a.ip]
    new = [a for a in said.values() if all(a.ip != k.ip for k in kept)]
    data = {**record.data.get(NAME, {}), **told.record.data[NAME]}
    return msgspec.structs.replace(
        record, addresses=(*new, *kept), data={**record.data, NAME: data}
    )


class Flannel:
    """flannel's part of one node's cluster; `run` ends only by cancellation.

    `faults` is what keeps it from being known, or is wrong with it.
    """

    def __init__(
        self,
        api: Api,
        ledger: Ledger,
        where: str,
        *,
        own: Own,
        pods: Pods | None,
        due: asyncio.Event,
    ) -> None:
        self._api, self._ledger, self._own, self._pods, self._due = api, ledger, own, pods, due
        self._namespace, _, self._name = where.partition("/")
        self._conf: NetConf | None = None
        self._nodes: dict[str, FlannelNode] | None = None
        self._held: dict[str, Pool] = {}  # as the ledger was told of them
        self._wanted: Lease | None = None  # what our annotations are to say
        self._foreign = True  # the kernel may hold what flanneld made
        self._why = f"ConfigMap {where}: not read yet"
        self.faults: tuple[str, ...] = (self._why,)

    async def run(self, changed: Callable[[], None]) -> None:
        """Follow; `changed` is called when `extend` would say something else."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._read(changed))
            tasks.create_task(self._follow(changed))

    async def _read(self, changed: Callable[[], None]) -> None:
        """The ConfigMap, until it can be read; a later change of it is for the next start."""
        while self._conf is None:
            try:
                self._conf = await self._config()
                log.info("flannel.network", type=self._conf.type, vni=self._conf.vni)
            except MuslinError as e:
                if str(e) != self._why:
                    log.error("flannel.unknown", error=str(e))
                self._why = str(e)
                self.faults = (self._why,)
                changed()
                await asyncio.sleep(AGAIN)
        if self._pods is not None:
            await self._pods.listed.wait()
        changed()

    async def _config(self) -> NetConf:
        name, where = self._name, f"ConfigMap {self._namespace}/{self._name}"
        found = await self._api.get(CONFIG_MAPS, name, namespace=self._namespace, type=ConfigMap)
        if found is None:
            hint = "`flannel` in the agent's settings names it (older flannel: kube-system)"
            raise ConfigError(where, ["is not there"], hint=hint)
        text = (found.data or {}).get(KEY)
        if text is None:
            raise ConfigError(where, [f"has no {KEY}"])
        try:
            return flannel.parse(text)
        except ConfigError as e:
            raise ConfigError(f"{where}, {KEY}", e.faults) from e

    async def _follow(self, changed: Callable[[], None]) -> None:
        async with aclosing(self._api.watch(NODES, type=FlannelNode)) as batches:
            async for batch in batches:
                nodes = dict(self._nodes or {})
                for change in batch:
                    if change.object is None:
                        nodes.pop(change.name, None)
                    else:
                        nodes[change.name] = change.object
                if nodes != self._nodes:  # a node's heartbeat is none
                    self._nodes = nodes
                    self._due.set()
                    changed()
                del batch  # what waits keeps its locals

    def extend(self, world: World) -> World | None:
        """The world with flannel in it; None while that is not known, as `faults` says."""
        if self._conf is None or self._nodes is None:
            return None
        if self._pods is not None and not self._pods.listed.is_set():
            return None
        found = merge(world, self._conf, self._nodes, self._own.name)
        self.faults = found.faults
        pools = {n: found.world.pools[n] for n in found.world.networks[NAME].pools}
        strangers = self._strangers()
        for name, pool in pools.items():
            taken = [a for a in strangers if a.network_address in pool.cidr]
            pools[name] = msgspec.structs.replace(pool, exclude=(*pool.exclude, *taken))
        self._hold(pools)
        return replace(found.world, pools={**found.world.pools, **pools})

    def _strangers(self) -> tuple[Prefix, ...]:
        """Addresses of pods of this node that are not ours: flannel's, till they are restarted."""
        if self._pods is None:
            return ()
        ours = {str(a) for x in self._ledger.attachments() for a in x.addresses}
        there = {a for ips in self._pods.addresses.values() for a in ips}
        return flannel.prefixes(sorted(there - ours))

    def _hold(self, pools: Mapping[str, Pool]) -> None:
        """What is not to be given out is written with the blocks."""
        if pools == self._held:
            return
        for name, cidr in self._ledger.blocks():
            if name in pools:
                self._ledger.hold(cidr, pools[name])
        self._held = dict(pools)

    def take_over(self, plan: Plan) -> None:
        """What flanneld left in the kernel, before the plan is put there.  Blocks."""
        if not self._foreign:
            return
        try:
            for what in takeover.take_over(plan):
                log.info("flannel.taken_over", what=what)
        except KernelError as e:  # what is in our place then, the plan's refusal tells
            log.error("flannel.not_taken_over", error=str(e))

    # ── our own annotations ──

    def settled(self, me: Node, blocks: Iterable[Block], refused: Sequence[str]) -> None:
        """The kernel is as planned, but for what it refused: flanneld's nodes may send to us."""
        self._foreign = bool(refused)
        conf = self._conf
        if conf is None or refused:
            return
        subnets = tuple(b.cidr for b in blocks if b.pool in flannel.POOLS.values())
        found = [me.address(v) for v in conf.versions]
        data = me.data.get(NAME, {})
        macs = {v: data[flannel.MAC[v]] for v in conf.versions if flannel.MAC[v] in data}
        complete = conf.type != flannel.VXLAN or len(macs) == len(conf.versions)
        if {c.version for c in subnets} != set(conf.versions) or not complete or None in found:
            return
        addresses = tuple(a.ip for a in found if a)
        wanted = Lease(addresses=addresses, subnets=subnets, macs=macs)
        if wanted != self._wanted:
            self._wanted = wanted
            self._due.set()

    async def tell(self) -> None:
        """Write the annotations that differ; NotReady if that cannot be done."""
        node = (self._nodes or {}).get(self._own.name)
        if self._wanted is None or self._conf is None or node is None or not self._own.uid:
            return
        there = node.metadata.annotations.given() if node.metadata.annotations else {}
        wanted = flannel.written(self._wanted, self._conf, there)
        news = {k: v for k, v in wanted.items() if there.get(k) != v}
        if not news:
            return
        try:
            await annotate(self._api, self._own.name, news, uid=self._own.uid)
        except Conflict:
            return  # gone, or another of its name: the watch tells
        log.info("flannel.announced", node=self._own.name, annotations=sorted(news))


async def annotate(
    api: Api, node: str, annotations: Mapping[str, str | None], *, uid: str = ""
) -> None:
    """Set these annotations of a core Node, and remove those that are None."""
    metadata: dict[str, object] = {"annotations": dict(annotations)}
    if uid:
        metadata["uid"] = uid
    await api.patch(NODES, node, {"metadata": metadata})


async def forget(api: Api, node: str, *, dry_run: bool = False) -> list[str]:
    """Remove flannel's annotations from a node that is no part of it any more; say which."""
    found = await api.get(NODES, node, type=FlannelNode)
    there = found.metadata.annotations.given() if found and found.metadata.annotations else {}
    names = [name for name in flannel.WRITTEN if name in there]
    if names and not dry_run:
        await annotate(api, node, dict.fromkeys(names))
    return names
