"""ADD, DEL, CHECK, GC and STATUS: the main path, on one screen.

    ADD   claim (durable) → kernel → ready → answer
    DEL   deleting (durable) → kernel → release → answer

A crash after any arrow leaves a state that `recover` undoes or completes at
the next start; an address is free only when nothing answers to it any more.
Calls for one attachment wait for each other; others run side by side.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import structlog

from muslin import backend
from muslin.agent import ground
from muslin.agent.ground import Ground
from muslin.cni.protocol import Attached, Request, promised
from muslin.errors import CheckFailed, Exhausted, MuslinError, NotReady, RequestError, Unavailable
from muslin.kernel import Kernel
from muslin.model import Nic, device_name, is_pod_device
from muslin.plan.diff import Change, diff
from muslin.plan.objects import Link, Neigh, Object, Plan, Veth, holds
from muslin.plan.pod import GATEWAY, HOST_MAC, host_side
from muslin.plan.render import words
from muslin.store.ledger import Attachment, Ledger

log = structlog.get_logger()

PATIENCE = 5.0  # seconds an ADD waits for another block; runtimes wait minutes
GRACE = 60.0  # seconds a vanished pod keeps its addresses; its DEL is usually on its way


class Attachments:
    """Everything a runtime can ask of this node.

    `refill` tells the sync loop that addresses ran out; it answers, later, by
    calling `refilled`.
    """

    def __init__(
        self,
        ledger: Ledger,
        kernel: Kernel,
        *,
        clock: Callable[[], float] = time.time,
        refill: Callable[[], None] = lambda: None,
    ) -> None:
        self._ledger, self._kernel, self._clock, self._refill = ledger, kernel, clock, refill
        self._busy: set[tuple[str, str]] = set()
        self._turn = threading.Condition()
        self._more = threading.Condition()

    def add(self, request: Request) -> Attached:
        """Give one pod its addresses and its NIC, or leave nothing behind.

        Repeated for a pod that has them, it answers the same again.
        """
        where = ground.find(self._ledger, request.network)
        with self._alone(request.container, request.ifname):
            before = self._ledger.find(request.container, request.ifname)
            if before and before.state == "ready" and before.netns == request.netns:
                nic = _nic(before, where)
                if not self._missing(backend.load(where.network).nic(nic)):
                    return _attached(nic)
            if before:
                self._undo(before.container, before.ifname)
            _refuse_own_namespace(request.netns)
            claimed = self._claim(request, where)  # durable before visible
            nic = _nic(claimed, where)
            try:
                self._kernel.apply(diff(backend.load(where.network).nic(nic), frozenset()))
                self._ledger.ready(request.container, request.ifname)
            except BaseException:
                self._undo(request.container, request.ifname)
                raise
            return _attached(nic)

    def delete(self, request: Request) -> None:
        """Undo `add`, however far it got.  Repeating it, or missing pieces, is success."""
        with self._alone(request.container, request.ifname):
            self._undo(request.container, request.ifname)

    def check(self, request: Request) -> None:
        """Compare what ADD promised with the kernel; CheckFailed lists what is missing."""
        name = f"{request.container}/{request.ifname}"
        with self._alone(request.container, request.ifname):
            found = self._ledger.find(request.container, request.ifname)
            if found is None or found.state != "ready":
                raise CheckFailed(
                    f"{name}: no such attachment", hint="delete the pod and add it again"
                )
            where = ground.find(self._ledger, found.network)
            missing = self._missing(backend.load(where.network).nic(_nic(found, where)))
        wrong = [words(o) for o in missing]
        strange = set(promised(request)) - set(found.addresses)
        wrong += [
            f"address {a} of prevResult is not one that was given"
            for a in sorted(map(str, strange))
        ]
        if request.netns and request.netns != found.netns:
            wrong.append(f"namespace {request.netns} is not {found.netns}, where it was added")
        if wrong:
            hint = "delete the pod and add it again"
            raise CheckFailed(f"{name}: missing or different: " + "; ".join(wrong), hint=hint)

    def gc(self, request: Request) -> None:
        """Remove what the runtime no longer knows, of this configuration only; all that can be.

        An attachment that is being added, or was added after this call began,
        is younger than the runtime's list and stays.
        """
        began, valid = self._clock(), request.valid_attachments
        if valid is None:
            return  # the runtime did not say what is valid: nothing follows from that
        errors: list[MuslinError] = []
        for found in self._ledger.attachments():
            known = (found.container, found.ifname) in valid
            if known or found.conf != request.name or found.since >= began:
                continue
            try:
                with self._alone(found.container, found.ifname):
                    self._undo(found.container, found.ifname)
                log.info("cni.collected", container=found.container, ifname=found.ifname)
            except MuslinError as e:  # the spec: go on, then report
                errors.append(e)
        if errors:
            raise ExceptionGroup("GC", errors)

    def status(self, request: Request) -> None:
        """Raise Unavailable, saying why, when an ADD would fail now."""
        try:
            where = ground.find(self._ledger, request.network)
        except NotReady as e:
            raise Unavailable(e.message, hint=e.hint) from e
        usage = {u.pool: u for u in self._ledger.usage()}
        for version in sorted({p.cidr.version for p in where.pools}):
            names = [p.name for p in where.pools if p.cidr.version == version]
            if not any(
                usage[n].size > usage[n].used + usage[n].resting for n in names if n in usage
            ):
                why = (
                    ground.full(self._ledger, where.pools)
                    or "this node holds no block with room yet"
                )
                raise Unavailable(f"pool {', '.join(names)}: no free IPv{version} address; {why}")

    # ── what the loops call ─────────────────────────────────────────────────────────────────

    def recover(self, boot_id: str) -> None:
        """Finish what a crash or a reboot interrupted, before the first call is served."""
        for gone in self._ledger.new_boot(boot_id):
            log.info("attachment.rebooted", container=gone.container, ifname=gone.ifname)
        for found in self._ledger.attachments():
            if found.state != "ready":
                log.info("attachment.undone", container=found.container, state=found.state)
                self._undo(found.container, found.ifname)
        self.adopt()

    def adopt(self) -> None:
        """Keep the addresses of pods that no record knows: a node.db was lost under them."""
        known = {a.dev for a in self._ledger.attachments()} | self._ledger.devices()
        for obj in self._kernel.observe():
            unknown = isinstance(obj, Neigh) and is_pod_device(obj.dev) and obj.dev not in known
            if isinstance(obj, Neigh) and unknown and self._ledger.adopt(obj.dev, obj.address):
                log.warning("address.adopted", dev=obj.dev, address=str(obj.address))

    def sweep(self) -> None:
        """Release attachments whose device and namespace are both gone, longer than the grace."""
        devices = {o.name for o in self._kernel.observe() if isinstance(o, Link)}
        for found in self._ledger.attachments():
            old = self._clock() - found.since > GRACE
            if old and found.dev not in devices and not os.path.exists(found.netns):
                log.info("attachment.swept", container=found.container, ifname=found.ifname)
                with self._alone(found.container, found.ifname):
                    self._undo(found.container, found.ifname)

    def host_plan(self) -> Plan:
        """The node's side of every pod that is there: mended when somebody broke it."""
        plan: set[Object] = set()
        for found in self._ledger.attachments():
            if found.state == "ready":
                where = ground.find(self._ledger, found.network)
                plan |= host_side(backend.load(where.network).nic(_nic(found, where)))
        return frozenset(plan)

    def refilled(self) -> None:
        """The sync loop has tried to claim more: let waiting ADDs look again."""
        with self._more:
            self._more.notify_all()

    # ── steps ───────────────────────────────────────────────────────────────────────────────

    def _claim(self, request: Request, where: Ground) -> Attachment:
        """Addresses for a new attachment, waiting a little for another block where one may come."""
        deadline = time.monotonic() + PATIENCE
        while True:
            try:
                return self._ledger.claim(
                    request.container,
                    request.ifname,
                    netns=request.netns,
                    conf=request.name,
                    network=where.network.name,
                    mtu=where.mtu,
                    pools=where.pools,
                )
            except Exhausted as e:
                why = ground.full(self._ledger, where.pools)
                left = deadline - time.monotonic()
                if why or left <= 0:
                    hint = "delete pods, or give the network another pool"
                    raise Exhausted(f"{e.message}; {why}" if why else e.message, hint=hint) from e
                with self._more:
                    self._refill()
                    self._more.wait(min(left, 0.5))

    def _undo(self, container: str, ifname: str) -> None:
        self._ledger.deleting(container, ifname)
        nic = Link(name=device_name(container, ifname), kind=Veth())
        self._kernel.apply([Change("remove", nic)])  # its routes, neighbours and peer go with it
        self._ledger.release(container, ifname)  # last: free only when nothing answers to it

    def _missing(self, plan: Plan) -> list[Object]:
        observed = {o.key: o for o in self._kernel.observe(plan)}
        return [
            o for o in sorted(plan, key=repr)
            if o.key not in observed or not holds(o, observed[o.key])
        ]  # fmt: skip

    @contextmanager
    def _alone(self, container: str, ifname: str) -> Iterator[None]:
        """One call at a time for one attachment."""
        key = (container, ifname)
        with self._turn:
            self._turn.wait_for(lambda: key not in self._busy)
            self._busy.add(key)
        try:
            yield
        finally:
            with self._turn:
                self._busy.discard(key)
                self._turn.notify_all()


def _nic(found: Attachment, where: Ground) -> Nic:
    return Nic(
        container=found.container,
        ifname=found.ifname,
        netns=found.netns,
        addresses=found.addresses,
        mtu=found.mtu,
        host=where.host,
    )


def _attached(nic: Nic) -> Attached:
    versions = sorted({a.version for a in nic.addresses})
    return Attached(nic=nic, gateways=tuple(GATEWAY[v] for v in versions), host_mac=HOST_MAC)


def _refuse_own_namespace(netns: str) -> None:
    """A pod on the host's network has no NIC of its own; giving it one would change the host."""
    try:
        same = os.path.samefile(netns, "/proc/self/ns/net")
    except OSError as e:
        raise RequestError(4, f"CNI_NETNS {netns}: {e.strerror}") from e
    if same:
        raise RequestError(4, f"CNI_NETNS {netns}: this is the node's own network namespace")
