"""ADD, DEL, CHECK, GC and STATUS: the main path, on one screen.

    ADD   claim (durable) → kernel → ready → answer
    DEL   deleting (durable) → answer            reaper: kernel → release

A crash after any arrow leaves a state that `recover` undoes or completes at
the next start; an address is free only when nothing answers to it any more.
Calls for one container wait for each other; others run side by side.

A pod that lists further NICs gets them by the ADD of its first, all or none:
every arrow is one transaction or one batch for all of them (agent/legs.py).

Unregistering one device takes the kernel 12 to 30 ms, mostly waiting, and two
hundred at once hardly longer (measured).  So DEL only writes down what is to
go; the reaper takes all there is, removes it in one batch, and takes what
came meanwhile.  A runtime that wants to see the device gone when DEL returns
says `"syncDelete": true` in its configuration.
"""

from __future__ import annotations

import math
import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from errno import EEXIST, ENOENT

from muslin.agent import ground, mapped
from muslin.agent.known import Known
from muslin.agent.legs import Leg, attached, family, legs_of, plan_of
from muslin.agent.wishes import NONE, Wishes
from muslin.cni.protocol import Attached, Request, promised
from muslin.errors import (
    CheckFailed,
    Exhausted,
    KernelError,
    Limited,
    MuslinError,
    NotReady,
    RequestError,
    Taken,
    Unavailable,
)
from muslin.kernel import Kernel, boot, netns
from muslin.log import log
from muslin.model import device_name, is_pod_device
from muslin.plan.diff import Change, diff
from muslin.plan.objects import InTable, Link, Neigh, Object, Plan, Veth, holds
from muslin.plan.pod import host_side, rules
from muslin.plan.render import words
from muslin.store.ledger import Attachment, Ledger

SWEEP = 30.0  # seconds between two looks for what vanished without a DEL
RETRY = 1.0  # seconds after the kernel refused to delete something
POLL = 0.02  # seconds between two looks of an ADD that waits for a block
PATIENCE = 5.0  # seconds an ADD waits for another block; runtimes wait minutes
GRACE = 60.0  # seconds a vanished pod keeps its addresses; its DEL is usually on its way


class Attachments:
    """Everything a runtime can ask of this node.

    `refill` tells the sync loop that addresses ran out; `pods` knows what
    pods' annotations ask for, where there is somebody to say it.
    """

    def __init__(
        self,
        ledger: Ledger,
        kernel: Kernel,
        *,
        clock: Callable[[], float] = boot.clock,
        refill: Callable[[], None] = lambda: None,
        inhabited: Callable[[str], bool] = netns.inhabited,
        pods: Known | None = None,
    ) -> None:
        self._ledger, self._kernel, self._clock = ledger, kernel, clock
        self._refill, self._inhabited, self._pods = refill, inhabited, pods
        self._busy: set[str] = set()  # containers
        self._turn = threading.Condition()
        self._doomed = threading.Event()
        self._reaping = threading.Lock()

    def add(self, request: Request) -> Attached:
        """Give one pod its addresses and its NIC, or leave nothing behind.

        Repeated for a pod that has them, it answers the same again.
        """
        if self._pods is None:
            return self._add(request, NONE)
        try:
            return self._add(request, self._pods.wishes(request))  # which may wait
        except MuslinError as e:
            self._pods.failed(request, e)
            raise

    def _add(self, request: Request, wishes: Wishes) -> Attached:
        legs = legs_of(self._ledger, request, wishes)
        if fault := ground.fault(self._ledger):
            raise NotReady(fault, hint="see `muslin doctor`")
        with self._alone(request.container):
            there = self._ledger.of(request.container)
            before = family(there, request.ifname)
            for ifname in legs.keys() & (there.keys() - before.keys()):
                why = f"interface {ifname} was made by the ADD of {there[ifname].of}"
                raise RequestError(7, f"{request.container}: {why}", hint="give it another name")
            made = {i: a for i, a in before.items() if i in legs and self._stands(a, legs[i])}
            if made.keys() == legs.keys() == before.keys():
                self._ledger.ready(request.container, *made)  # as young as this call
                return attached(made, legs)
            self._undo(request.container, {i: a for i, a in before.items() if i not in made})
            netns_id = _foreign(request.netns)
            lacking = [leg for ifname, leg in legs.items() if ifname not in made]
            try:
                made |= self._claim(lacking, netns_id)  # durable before visible
                new = (plan_of(made[leg.request.ifname], leg.where) for leg in lacking)
                self._make(frozenset().union(*new))
                self._ledger.ready(request.container, *made)
            except BaseException:
                self._undo(request.container, made)
                raise
            return attached(made, legs)

    def delete(self, request: Request, *, before: float = math.inf) -> None:
        """Undo `add`, however far it got.  Repeating it, or missing pieces, is success.

        The device is gone within tens of milliseconds, and its addresses are
        free only then; with `syncDelete`, before this returns.  A younger
        attachment than `before` is not the one that was meant, and stays; so
        does one that another interface's ADD has made.
        """
        container, ifname = request.container, request.ifname
        with self._alone(container):
            there = self._ledger.of(container)
            found = there.get(ifname)
            if found and (found.since >= before or found.of != ifname):
                why = "younger" if found.of == ifname else f"of {found.of}"
                log.info("attachment.stays", container=container, ifname=ifname, why=why)
                return
            gone = family(there, ifname)
            if request.sync_delete or found is None:
                self._undo(container, {ifname: None, **gone})
            else:
                self._ledger.deleting(container, *gone)
                self._doomed.set()

    def check(self, request: Request) -> None:
        """Compare what ADD promised with the kernel; CheckFailed lists what is missing."""
        name = f"{request.container}/{request.ifname}"
        with self._alone(request.container):
            there = family(self._ledger.of(request.container), request.ifname)
            found = there.get(request.ifname)
            if found is None or any(a.state != "ready" for a in there.values()):
                raise CheckFailed(
                    f"{name}: no such attachment", hint="delete the pod and add it again"
                )
            plans = (plan_of(a, ground.find(self._ledger, a.network)) for a in there.values())
            missing = self._missing(frozenset().union(*plans))
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

        The runtime's list is one witness, the kernel the other: an attachment
        in whose namespace a process lives stays whatever the list says, and
        so does one that is younger than this call.
        """
        began, valid = self._clock(), request.valid_attachments
        if valid is None:
            return  # the runtime did not say what is valid: nothing follows from that
        errors: list[MuslinError] = []
        for found in self._ledger.attachments():
            known = (found.container, found.of) in valid
            if known or found.conf != request.name or found.since >= began:
                continue
            if found.state == "ready" and _is_there(found) and self._inhabited(found.netns):
                log.warning("cni.not_collected", container=found.container, why="in use")
                continue
            try:
                with self._alone(found.container):
                    self._undo(found.container, {found.ifname: found})
                log.info("cni.collected", container=found.container, ifname=found.ifname)
            except MuslinError as e:  # the spec: go on, then report
                errors.append(e)
        if errors:
            raise ExceptionGroup("GC", errors)

    def status(self, request: Request) -> None:
        """Raise Unavailable, saying why, when an ADD would fail now; Limited without an uplink."""
        if fault := ground.fault(self._ledger):
            raise Limited(fault, hint="see `muslin doctor`")
        try:
            where = ground.find(self._ledger, request.network)
        except NotReady as e:
            raise Unavailable(e.message, hint=e.hint) from e
        if not mapped.has_table(self._kernel):
            raise Unavailable(mapped.NO_TABLE, hint=mapped.WHEN)
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
                self._undo(found.container, {found.ifname: found})
        self.adopt()

    def adopt(self) -> None:
        """Keep the addresses of pods that no record knows: a node.db was lost under them."""
        known = {a.dev for a in self._ledger.attachments()} | self._ledger.devices()
        for obj in self._kernel.observe():
            unknown = isinstance(obj, Neigh) and is_pod_device(obj.dev) and obj.dev not in known
            if isinstance(obj, Neigh) and unknown and self._ledger.adopt(obj.dev, obj.address):
                log.warning("address.adopted", dev=obj.dev, address=str(obj.address))

    def reap_until(self, stop: threading.Event) -> None:
        """Complete DELs as they come, and sweep now and then, until `stop` and `wake_reaper`."""
        sweep_at = time.monotonic() + SWEEP
        while not stop.is_set():
            self._doomed.wait(max(sweep_at - time.monotonic(), 0))
            self._doomed.clear()
            try:
                self.reap()
                if time.monotonic() >= sweep_at:
                    sweep_at = time.monotonic() + SWEEP
                    self.sweep()
            except MuslinError as e:
                log.error("reaper.failed", error=str(e))
                stop.wait(RETRY)
                self._doomed.set()

    def wake_reaper(self) -> None:
        """Let the reaper look at once."""
        self._doomed.set()

    def reap(self) -> int:
        """Complete every DEL that was answered, in one batch; say how many."""
        with self._reaping:
            doomed = {a.dev: a for a in self._ledger.in_state("deleting")}
            mapped.remove(self._ledger, self._kernel, doomed)
            try:
                self._kernel.apply(_removals(doomed))
            except KernelError:
                # One that the kernel keeps must not keep the others' addresses.
                doomed = {dev: a for dev, a in doomed.items() if self._goes(dev, a)}
            self._ledger.release_all(list(doomed))
        return len(doomed)

    def _goes(self, dev: str, found: Attachment) -> bool:
        try:
            self._kernel.apply(_removals({dev: found}))
        except KernelError as e:
            log.error("reaper.refused", error=str(e))
            return False
        return True

    def sweep(self) -> None:
        """Release attachments whose device and namespace are both gone, longer than the grace.

        And what was adopted, once its device is gone: a DEL names no more than a pod's first NIC.
        """
        held = self._ledger.devices()
        devices = {o.name for o in self._kernel.observe() if isinstance(o, Link)}
        for found in self._ledger.attachments():
            old = self._clock() - found.since > GRACE
            if old and found.dev not in devices and not _is_there(found):
                log.info("attachment.swept", container=found.container, ifname=found.ifname)
                with self._alone(found.container):
                    self._undo(found.container, {found.ifname: found})
        adopted = held - devices - {a.dev for a in self._ledger.attachments()}
        self._ledger.release_all(sorted(adopted))

    def host_plan(self) -> Plan:
        """The node's side of every pod that is there: mended when somebody broke it."""
        plan: set[Object] = set()
        networks = ground.known(self._ledger)  # one may have been removed under its pods
        for found in self._ledger.attachments():
            if found.state == "ready" and found.network in networks:
                where = ground.find(self._ledger, found.network)
                plan |= host_side(plan_of(found, where))
        return frozenset(plan)

    # ── steps ───────────────────────────────────────────────────────────────────────────────

    def _stands(self, found: Attachment, leg: Leg) -> bool:
        """Whether it is what is asked for, and whole."""
        asked = (leg.request.netns, leg.request.wants, leg.where.network.name)
        same = (found.netns, found.wants, found.network) == asked
        return same and found.state == "ready" and not self._missing(plan_of(found, leg.where))

    def _claim(self, legs: Sequence[Leg], netns_id: str) -> dict[str, Attachment]:
        """Addresses for all or none, waiting a little for another block where one may come."""
        deadline, tried = time.monotonic() + PATIENCE, False
        if not legs:
            return {}
        where = legs[0].where
        while True:
            try:
                with self._ledger.together():
                    made = {}
                    for request, where in legs:
                        made[request.ifname] = self._ledger.claim(
                            request.container,
                            request.ifname,
                            netns=request.netns,
                            conf=request.name,
                            network=where.network.name,
                            mtu=where.mtu,
                            pools=where.pools,
                            wants=request.wants,
                            netns_id=netns_id,
                        )
                return made
            except Taken:
                if tried:
                    raise
                tried = True
                self.reap()  # the port's former pod may be waiting for it
            except Exhausted as e:
                why = ground.full(self._ledger, where.pools)
                left = deadline - time.monotonic()
                if why or left <= 0:
                    hint = "delete pods, or give the network another pool"
                    raise Exhausted(f"{e.message}; {why}" if why else e.message, hint=hint) from e
                self._refill()
                time.sleep(min(left, POLL))

    def _make(self, plan: Plan) -> None:
        try:
            self._kernel.apply(diff(plan, frozenset()))
        except KernelError as e:
            needs_table = any(isinstance(o, InTable) for o in plan)
            if e.errno == ENOENT and needs_table and not mapped.has_table(self._kernel):
                raise NotReady(mapped.NO_TABLE, hint=mapped.WHEN) from e
            # The former pod's NIC in this namespace may be waiting for the reaper, or be in its
            # hands: `reap` returns when both have ended, however much was left for it to do.
            if e.errno != EEXIST:
                raise
            self.reap()
            pairs = (o for o in plan if isinstance(o, Link) and o.kind == Veth())
            self._kernel.apply([Change("remove", o) for o in pairs])  # of several, some were made
            self._kernel.apply(diff(plan, frozenset()))

    def _undo(self, container: str, gone: Mapping[str, Attachment | None]) -> None:
        """Take back these of a container's interfaces, each with its row if it has one."""
        if not gone:
            return
        self._ledger.deleting(container, *gone)
        devs = {device_name(container, ifname): found for ifname, found in gone.items()}
        with self._reaping:
            mapped.remove(self._ledger, self._kernel, devs)
            self._kernel.apply(_removals(devs))
            self._ledger.release_all(list(devs))  # last: free only when nothing answers to it

    def _missing(self, plan: Plan) -> list[Object]:
        observed = {o.key: o for o in self._kernel.observe(plan)}
        return [
            o for o in sorted(plan, key=repr)
            if o.key not in observed or not holds(o, observed[o.key])
        ]  # fmt: skip

    @contextmanager
    def _alone(self, container: str) -> Iterator[None]:
        """One call at a time for one container."""
        with self._turn:
            self._turn.wait_for(lambda: container not in self._busy)
            self._busy.add(container)
        try:
            yield
        finally:
            with self._turn:
                self._busy.discard(container)
                self._turn.notify_all()


def _removals(gone: Mapping[str, Attachment | None]) -> list[Change]:
    """What takes NICs out of the kernel, by their devices; routes, neighbours, peers go along."""
    strays: list[Object] = []
    for found in gone.values():
        if found and found.wants.apart and _is_there(found):
            strays += rules(found.netns, found.wants.apart, found.addresses)
    pairs = (Link(name=dev, kind=Veth()) for dev in gone)
    return [Change("remove", o) for o in (*strays, *pairs)]


def _foreign(path: str) -> str:
    """Which namespace is at `path`; RequestError if none, or the node's own.

    A pod on the host's network has no NIC of its own; giving it one would change the host.
    """
    try:
        found, own = os.stat(path), os.stat("/proc/self/ns/net")
    except OSError as e:
        raise RequestError(4, f"CNI_NETNS {path}: {e.strerror}") from e
    if os.path.samestat(found, own):
        raise RequestError(4, f"CNI_NETNS {path}: this is the node's own network namespace")
    return _text(found)


def _is_there(found: Attachment) -> bool:
    """Whether the attachment's namespace still is at its path.

    Another may be: the process in /proc/<pid>/ns/net ended, and its number was given out again.
    """
    try:
        now = _text(os.stat(found.netns))
    except OSError:
        return False
    return found.netns_id in ("", now)  # a row of an older version does not know it


def _text(netns: os.stat_result) -> str:
    return f"{netns.st_dev}:{netns.st_ino}"
