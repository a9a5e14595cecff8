"""The sync loop: follow the store, keep this node's part of the kernel as planned.

    store ── watch ──> World ──┐
    kernel ── events ──────────┼─> one pass: node record → blocks → plan → diff → apply
    timer, ADDs out of room ───┘

Everything that happens only marks the world as dirty; one task does the
passes, one at a time, and a pass looks at the newest world there is.  What
others may have changed in the kernel is checked beside the passes, which do
not wait for it (settle.py).  A pass that fails is repeated with backoff, and
what failed stands in `faults` until it no longer does.  The kernel keeps
forwarding whatever happens here.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, TypeVar

import msgspec

from muslin import backend
from muslin.agent import ground, podcidr
from muslin.agent.attach import Attachments
from muslin.agent.blocks import Blocks
from muslin.agent.ground import Ground
from muslin.agent.host import Underlay, look
from muslin.agent.settle import Settler
from muslin.agent.world import Planner, World, sites
from muslin.config import Config
from muslin.errors import Conflict, MuslinError
from muslin.kernel import Kernel, boot
from muslin.kernel.events import Events, News
from muslin.log import log
from muslin.model import Block, Network, Node, Pool, Site
from muslin.plan.diff import Change
from muslin.plan.objects import Plan
from muslin.store import Lease, Store
from muslin.store.inotify import Touches
from muslin.store.ledger import Ledger
from muslin.store.objects import Objects

if TYPE_CHECKING:  # it brings an HTTP client, which other stores' agents do without
    from muslin.agent.cluster import Cluster

SETTLE = 0.02  # seconds: changes that come together are one pass
CALM = 0.5  # seconds: a pass after kernel events, so that a burst of pods is not one per pod
SHARE = 10.0  # and so many times what looking takes: a tenth of one CPU, however large the estate
LATEST = 5.0  # but no later than so many seconds
RESYNC = 30.0  # seconds between passes when nothing happened: what events cannot tell
# After a power cut a whole estate comes back at once and lists all nodes and blocks.  Whoever
# remembers its networks serves its pods meanwhile, and need not be among the first.
BOOTED, SPREAD = 300.0, 10.0  # seconds since the boot that count as such; at most so late
BACKOFF = (0.2, 15.0)  # seconds after the first failed pass, and at most

T = TypeVar("T", Network, Pool, Node, Block)


@dataclass(frozen=True, slots=True, kw_only=True)
class State:
    """What the last pass saw and did, for status and plan."""

    ready: bool = False
    faults: tuple[str, ...] = ("starting",)
    me: Node | None = None
    sites: tuple[Site, ...] = ()
    mtu: int = 0


@dataclass(frozen=True, slots=True)
class Standing:
    """How this node is: whether pods can start on it, what is wrong, the pods' MTU."""

    ready: bool
    faults: tuple[str, ...]
    mtu: int


class Sync:
    """One node's loop; `run` ends only by cancellation."""

    def __init__(
        self,
        config: Config,
        store: Store,
        ledger: Ledger,
        kernel: Kernel,
        attachments: Attachments,
        *,
        look: Callable[[Config], Underlay] = look,
        cluster: Cluster | None = None,
    ) -> None:
        self.state = State()
        self.synced = asyncio.Event()  # once the kernel was brought to what the store says
        self._cluster, self._flannel = cluster, cluster.flannel if cluster else None
        self._config, self._ledger, self._look = config, ledger, look
        self._planner, self._settler = Planner(), Settler(kernel, ledger, attachments)
        self._objects = Objects(store)
        self._blocks = Blocks(
            self._objects, ledger, config.node, ttl=config.block_ttl, spare=config.spare
        )
        self._seen: dict[type, dict[str, Any]] = {}  # kind → name → value, once first listed
        self._unreadable: dict[type, tuple[str, ...]] = {}
        self._here: Underlay | None = None  # this machine, until there is reason to look again
        self._asked = 0  # how often there was
        self._news = News()
        self._dirty, self._doubtful = asyncio.Event(), asyncio.Event()
        self._late = 0.0
        self._published: tuple[Lease, Node] | None = None  # our own record, and what it lives under
        self._installed: tuple[str, ...] | None = None  # what the CNI plugin's place leaves to mend

    def wake(self) -> None:
        """Ask for a pass soon.  Call it from the loop's thread."""
        self._dirty.set()

    def look_again(self) -> None:
        """Ask for a pass that trusts nothing it knows of the kernel.  From the loop's thread."""
        self._settler.doubt()
        self._here, self._asked = None, self._asked + 1
        self.wake()

    async def run(self) -> None:
        """Watch and pass until cancelled."""
        self.wake()  # the first pass says what is waited for
        many = self._cluster is not None and boot.clock() < BOOTED and ground.known(self._ledger)
        self._late = random.uniform(0, SPREAD) if many else 0.0  # noqa: S311 - jitter
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._follow(Network))
            tasks.create_task(self._follow(Pool))
            tasks.create_task(self._follow(Node))
            tasks.create_task(self._follow(Block))
            tasks.create_task(self._listen())
            tasks.create_task(self._keep_lease())
            tasks.create_task(self._passes())
            tasks.create_task(self._checks())
            if self._cluster is not None:
                tasks.create_task(self._cluster.run(self.wake, self._blocks.renew))

    # ── what makes the world dirty ──────────────────────────────────────────────────────────

    async def _follow(self, kind: type[T]) -> None:
        await asyncio.sleep(self._late)
        async for update in self._objects.watch(kind):
            values = dict(self._seen.get(kind, {}))
            for name, found in update.changed.items():
                if found is None:
                    values.pop(name, None)
                else:
                    values[name] = found.value
            faults = tuple(str(f) for f in update.faults)
            news = (self._seen.get(kind), self._unreadable.get(kind)) != (values, faults)
            self._seen[kind], self._unreadable[kind] = values, faults
            if news:  # another's lease, or its status in Kubernetes, is none
                self.wake()
            del update, values  # while it waits for the next one

    async def _listen(self) -> None:
        """What changes under us: a device removed, an uplink readdressed, addresses run out."""
        loop = asyncio.get_running_loop()
        with Events() as events, contextlib.closing(Touches(self._config.ledger)) as wishes:
            later = _Later(loop, self._calm, self._judge)
            loop.add_reader(events.fileno(), lambda: self._take_in(events.drain(), later))
            loop.add_reader(wishes.fd, self._hear, wishes)
            try:
                while True:
                    await asyncio.sleep(RESYNC * random.uniform(0.8, 1.2))  # noqa: S311 - jitter
                    self.look_again()
            finally:
                loop.remove_reader(events.fileno())
                loop.remove_reader(wishes.fd)

    def _take_in(self, news: News, later: Callable[[], None]) -> None:
        """The kernel's word: to be judged when it has had its say."""
        if news:
            self._news.add(news)
            later()

    def _judge(self) -> None:
        """Look again, unless the kernel only repeated what we told it."""
        news, self._news = self._news, News()
        if not self._settler.expects(news):
            self.look_again()

    def _calm(self) -> float:
        """How long to wait after the kernel's word."""
        return min(max(CALM, self._settler.cost * SHARE), LATEST)

    def _hear(self, wishes: Touches) -> None:
        """An ADD has no address left (`Ledger.ring`)."""
        wishes.drain()
        self.wake()

    async def _keep_lease(self) -> None:
        while True:
            await asyncio.sleep(self._config.block_ttl / 4)
            try:
                await self._blocks.keep()
            except MuslinError as e:
                log.warning("lease.not_kept", error=str(e))
            self.wake()

    # ── the pass ────────────────────────────────────────────────────────────────────────────

    async def _passes(self) -> None:
        failures = 0
        while True:
            await self._dirty.wait()
            await asyncio.sleep(SETTLE)
            self._dirty.clear()
            try:
                whole = await self._pass()
                failures = 0 if whole else failures + 1
            except Conflict as e:
                log.info("pass.again", reason=str(e))  # the watch brings what the other wrote
                self.wake()
            except (MuslinError, OSError) as e:
                failures += 1
                self.state = replace(self.state, ready=False, faults=(str(e),))
                log.error("pass.failed", error=str(e))
            self._report()
            if failures:
                self._here = None
                first, most = BACKOFF
                pause = min(first * 2**failures, most) * random.uniform(0.5, 1)  # noqa: S311
                asyncio.get_running_loop().call_later(pause, self.wake)

    async def _checks(self) -> None:
        """After the pass that a doubt leads to: it knows what should be there by now."""
        while True:
            await self._doubtful.wait()
            self._doubtful.clear()
            if not await asyncio.to_thread(self._settler.check):
                self.wake()

    async def _pass(self) -> bool:
        """Bring everything up to date; False when the kernel refused a part of it."""
        here = await self._machine()
        world = self._world()
        if world is None:
            self._wait_for_store(here)
            return True  # the watch will wake us
        me = await self._join(here, world)
        faults = [f for unreadable in self._unreadable.values() for f in unreadable]
        if me.pods:
            pools = [p for n in world.networks.values() for p in world.pools_of(n)]
            faults += await self._tend(pools, world.blocks)
        own = [Block(pool=p, cidr=c, node=me.name) for p, c in self._ledger.blocks()]
        own += self._blocks.leaving
        view = sites(world.holding(me.name, own), me, here.host)
        want = self._planner.desired(view)
        if self._flannel is not None:
            await asyncio.to_thread(self._flannel.take_over, want.plan)
        refused = await asyncio.to_thread(self._settler.settle, want.plan)
        if self._flannel is not None:
            self._flannel.settled(me, own, refused)
            faults += self._flannel.faults
        if self._settler.doubtful:
            self._doubtful.set()
        self._tell(view, here)
        faults += [*want.faults, *here.faults, *refused]
        if any(p.cidr.version == 6 for s in view for p in s.pools):
            faults += here.notes
        if not world.networks:
            faults.append("no network yet: apply one with `muslin networks apply FILE`")
        ready = bool(want.plan) and not here.faults
        if ready and self._config.cni_install:
            faults += await self._install()
        mtu = min((_mtu(s) for s in view), default=here.mtu)
        self.state = State(ready=ready, faults=tuple(faults), me=me, sites=view, mtu=mtu)
        if ready:
            self.synced.set()
        return not refused

    async def _machine(self) -> Underlay:
        """This machine as it was when the kernel last gave reason to look."""
        if self._here is not None and not self._here.faults:
            return self._here
        asked = self._asked
        here = await asyncio.to_thread(self._look, self._config)
        if asked == self._asked:
            self._here = here
        return here

    async def _tend(self, pools: Sequence[Pool], taken: Sequence[Block]) -> list[str]:
        """This node's blocks, by its own choice or by Kubernetes'; what is wrong with them."""
        if self._config.blocks == "claim" or self._cluster is None:
            return await self._blocks.tend(pools, taken)
        found = podcidr.given(self._config.node, self._cluster.own.podcidrs, pools)
        blocks = found.blocks
        if blocks is None:
            known = {p.name: p for p in pools}
            blocks = {c: known[p] for p, c in self._ledger.blocks() if p in known}
        return [*found.faults, *await self._blocks.take_given(blocks, pools, taken)]

    async def _install(self) -> Sequence[str]:
        """Put the CNI plugin in place as soon as an ADD would succeed; once."""
        if self._installed is None and self.serving() and self._ledger.blocks():
            from muslin.agent import installing  # late: most agents are told not to

            try:
                self._installed = await asyncio.to_thread(installing.put, self._config)
            except (MuslinError, OSError) as e:
                log.error("cni.not_installed", error=str(e))
                return (f"the CNI plugin cannot be installed: {e}",)
        return self._installed or ()

    def _report(self) -> None:
        """Tell the cluster how this node is now."""
        if not self.serving():  # the other part starts at its own pace, and tells nobody
            asyncio.get_running_loop().call_later(1.0, self.wake)
        if self._cluster is not None:
            self._cluster.tell(self.standing())

    def _world(self) -> World | None:
        """The store's content, once every kind has been listed."""
        if len(self._seen) < len((Network, Pool, Node, Block)):
            return None
        world = World(
            networks=self._seen[Network],
            pools=self._seen[Pool],
            nodes=self._seen[Node],
            blocks=tuple(self._seen[Block].values()),
        )
        return self._flannel.extend(world) if self._flannel else world

    def _wait_for_store(self, here: Underlay) -> None:
        known = ", ".join(ground.known(self._ledger))
        why = f"store {self._config.store}: not heard from yet"
        if known:
            why += f"; serving {known} from what this node remembers"
        if self._flannel is not None and len(self._seen) == len((Network, Pool, Node, Block)):
            why = "; ".join(self._flannel.faults) or "flannel's nodes: not heard from yet"
        self.state = replace(self.state, ready=False, faults=(why, *here.faults))

    async def _join(self, here: Underlay, world: World) -> Node:
        """Publish this node's record, if it differs from what the store has."""
        before = world.nodes.get(self._config.node)
        data = dict(before.data) if before else {}
        me = Node(
            name=self._config.node,
            addresses=here.addresses,
            mtu=here.mtu,
            pods=self._config.pods,
            data=data,
            uplink=here.host.uplink,
        )
        alone = World(networks=world.networks, pools=world.pools)  # peers change nothing in it
        for site in sites(alone, me, here.host):
            try:
                said = backend.load(site.network).announce(site, data.get(site.network.name, {}))
            except MuslinError:
                continue  # `desired` reports it
            data = data | {site.network.name: said} if said else data
        me = msgspec.structs.replace(me, data=data)
        lease = await self._blocks.lease()
        if self._published is not None and self._published == (lease, me) and before == me:
            return me
        found = await self._objects.get(Node, me.name)
        if found is None:
            await self._objects.create(me, lease=lease)
        else:
            await self._objects.put(me, if_revision=found.revision, lease=lease)
        self._published = (lease, me)
        log.info("node.published", node=me.name, addresses=[str(a) for a in me.addresses])
        return me

    def _tell(self, view: Sequence[Site], here: Underlay) -> None:
        """Let the CNI server know what an ADD needs, or what is in its way."""
        ground.set_fault(self._ledger, "; ".join(here.faults) or None)
        if here.faults:
            return  # what was known of the networks still holds for the pods that are there
        grounds = []
        for site in view:
            try:
                mtu = _mtu(site)
            except MuslinError:
                continue  # `desired` reports it
            if site.pools and site.me.pods:
                grounds.append(
                    Ground(network=site.network, pools=site.pools, mtu=mtu, host=site.host)
                )
        ground.publish(self._ledger, grounds)

    def serving(self) -> bool:
        """Whether the other part listens, where there is to be one."""
        return not self._config.pods or self._config.cni_socket.exists()

    def standing(self) -> Standing:
        """Whether a pod could start here, and what is wrong; each part starts at its own pace."""
        serving = self.serving()
        waits = () if serving else ("the part that answers the container runtime is not there yet",)
        state = self.state
        return Standing(state.ready and serving, (*state.faults, *waits), state.mtu)

    def pending(self) -> tuple[Plan, list[Change]]:
        """What this node should hold, and what differs now.  Blocks: call it in a thread."""
        plan = Planner().desired(self.state.sites).plan
        return plan, self._settler.pending(plan)


class _Later:
    """Call `what` once, `delay` after the first of many requests."""

    def __init__(
        self, loop: asyncio.AbstractEventLoop, delay: Callable[[], float], what: Callable[[], None]
    ) -> None:
        self._loop, self._delay, self._what = loop, delay, what
        self._timer: asyncio.TimerHandle | None = None

    def __call__(self) -> None:
        if self._timer is None:
            self._timer = self._loop.call_later(self._delay(), self._fire)

    def _fire(self) -> None:
        self._timer = None
        self._what()


def _mtu(site: Site) -> int:
    """What pods of that network may send in one packet."""
    return site.me.mtu - backend.load(site.network).overhead(site)
