"""What the API server has said of the pod that a runtime names: read, or waited for, by an ADD.

An ADD asks nobody but node.db.  The sync loop (`agent.pods`) writes a row for
every pod of this node there, and how its watch of them is:

    the pod's row   how the watch is              the ADD
    there           whatever                      takes its wishes
    not yet         here: told, and still heard   waits 5 s, then NotReady: the pod is not known
    not yet         starting, or lost just now    waits (5 s, or till it is away), then takes none
    not yet         away, or nothing heard of it  takes none, at once

A row of another uid is another pod's, of the same name: it counts as not yet.

So the order in which things start does not matter where it can be told which
it was, and a node that lost its API server starts the pods it was given.  A
watch that ends and is begun again is no such loss: it must be lost for `GONE`.
In the last two lines a pod may get the defaults instead of what it asks for;
that is logged, and if it is wrong the pod is to be deleted: `agent.events`
tells its owner when both are known.

A pod that the kubelet has from a file is known to the API server only by its
mirror, which may never come (its namespace is missing, say): for it the wait
ends with the defaults too.  Its uid is a digest and no UUID, by which it is
told; its mirror's row carries that uid (`agent.pods`).
"""

from __future__ import annotations

import contextlib
import functools
import re
import threading
import time
from collections.abc import Callable
from typing import Literal

import msgspec

from muslin.agent.wishes import NONE, Wishes
from muslin.cni.protocol import MAX_TEXT, Request
from muslin.errors import Exhausted, MuslinError, NotReady, RequestError, Taken
from muslin.kernel import boot
from muslin.log import log
from muslin.model import decode, encode
from muslin.store.ledger import Ledger
from muslin.store.pods import MISSED, WATCH, PodKey

IFNAME = "eth0"  # the interface that a kubelet means; others come by other hands (Multus)
PATIENCE = 5.0  # seconds; a kubelet's own deadline is 4 minutes
POLL = 0.02  # seconds between two looks
WAITING = 4  # ADDs at a time; the server's other threads stay free (agent/server.py: WORKERS)
BEAT = 15.0  # seconds between two words of the sync loop that it still hears
STALE = 45.0  # seconds after which it is taken for dead
# As long as this after the start of the CNI server, the sync loop's first word may be on its way.
EARLY = 10.0
GONE = 3.0  # seconds without a watch after which the API server is away
_UUID = re.compile(r"[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}")

# What a person must mend, as the event's reason; other errors pass by themselves.
_REASONS: dict[type[MuslinError], str] = {
    RequestError: "NetworkRequestRefused",
    Exhausted: "PoolExhausted",
    Taken: "AddressTaken",
}

State = Literal["starting", "here", "away"]


class Watch(msgspec.Struct, frozen=True, kw_only=True):
    """How the watch of pods was when the sync loop last said so."""

    state: State
    since: float  # kernel/boot.py
    at: float  # the same
    boot: str


def say(ledger: Ledger, state: State, since: float) -> None:
    """How the watch is now, for ADDs."""
    now = boot.clock()
    said = Watch(state=state, since=round(since, 1), at=round(now, 1), boot=boot.identity())
    ledger.set_fact(WATCH, encode(said).decode())


def forget(ledger: Ledger) -> None:
    """There is no such watch: the store is no Kubernetes."""
    ledger.set_fact(WATCH, None)
    ledger.learn(dict.fromkeys(ledger.pods()))


class Known:
    """The pods of this node, as far as they are known; for one CNI server."""

    def __init__(
        self,
        ledger: Ledger,
        *,
        clock: Callable[[], float] = boot.clock,
        boot_id: str = "",
        patience: float = PATIENCE,
    ) -> None:
        self._ledger, self._clock, self._patience = ledger, clock, patience
        self._boot = boot_id or boot.identity()
        self._began = clock()
        self._seats = threading.BoundedSemaphore(WAITING)

    def wishes(self, request: Request) -> Wishes:
        """What the annotations of this pod ask for; NotReady if that is not known and should be."""
        pod, uid = pod_of(request)
        if pod is None or request.ifname != IFNAME:
            return NONE
        found, state = self._look(pod, uid)
        if found is not None:
            return found
        if state == "away":
            return self._without(pod, uid, "the API server is away")
        if not self._seats.acquire(blocking=False):
            raise NotReady(f"pod {_name(pod)}: not known yet, and others wait already")
        try:
            return self._await(pod, uid)
        finally:
            self._seats.release()

    def failed(self, request: Request, error: MuslinError) -> None:
        """Take note of an ADD that will fail again, so that somebody tells the pod's owner."""
        pod, uid = pod_of(request)
        reason = next((r for kind, r in _REASONS.items() if isinstance(error, kind)), "")
        if pod is None or not reason or (isinstance(error, RequestError) and error.cni_code != 7):
            return
        with contextlib.suppress(MuslinError):  # a full disk: the runtime is told all the same
            self._ledger.failed(pod, uid, reason=reason, message=str(error)[:MAX_TEXT])

    def _await(self, pod: PodKey, uid: str) -> Wishes:
        deadline = time.monotonic() + self._patience
        while True:
            found, state = self._look(pod, uid)
            if found is not None:
                return found
            if state == "away":
                return self._without(pod, uid, "the API server went away")
            if time.monotonic() >= deadline:
                break
            time.sleep(POLL)
        if state == "starting":
            return self._without(pod, uid, "the API server was not reached yet")
        if uid and not _UUID.fullmatch(uid):
            why = "a pod from a file, and the API server has no mirror of it"
            return self._without(pod, uid, why)
        which = f" with uid {uid}" if uid else ""
        raise NotReady(
            f"pod {_name(pod)}{which}: the API server has not told this node of it",
            hint="it was deleted, or bound to another node; else see `muslin status`",
        )

    def _without(self, pod: PodKey, uid: str, why: str) -> Wishes:
        log.warning("pod.unknown", pod=_name(pod), why=why, gets="the defaults")
        with contextlib.suppress(MuslinError):  # for agent.events, once it is known
            self._ledger.failed(pod, uid, reason=MISSED, message=why)
        return NONE

    def _look(self, pod: PodKey, uid: str) -> tuple[Wishes | None, State]:
        row, said = self._ledger.pod(pod)
        if row is not None and (not uid or not row.uid or row.uid == uid):
            return (_read(row.wishes) if row.wishes else NONE), "here"
        return None, self._state(said)

    def _state(self, said: str | None) -> State:
        early: State = "starting" if self._clock() - self._began < EARLY else "away"
        if said is None:
            return early
        watch = _watch(said)
        if watch.boot != self._boot or self._clock() - watch.at >= STALE:
            return early
        lost_now = watch.state == "away" and self._clock() - watch.since < GONE
        return "starting" if lost_now else watch.state


def pod_of(request: Request) -> tuple[PodKey | None, str]:
    """Which pod a runtime names, and its uid, "" where it does not say."""
    namespace = request.args.get("K8S_POD_NAMESPACE", "")
    name = request.args.get("K8S_POD_NAME", "")
    if not namespace or not name:
        return None, ""
    return PodKey(namespace, name), request.args.get("K8S_POD_UID", "")


def _name(pod: PodKey) -> str:
    return f"{pod.namespace}/{pod.name}"


def _watch(text: str) -> Watch:
    return decode(Watch, text.encode(), subject="node.db: how the watch of pods is")


@functools.lru_cache(maxsize=32)
def _read(text: str) -> Wishes:
    return decode(Wishes, text.encode(), subject="node.db: a pod's wishes")
