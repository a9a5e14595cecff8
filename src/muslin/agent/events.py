"""Events on pods whose ADDs fail again and again, for whoever looks with `kubectl describe pod`.

A kubelet makes events of failed sandboxes too, with the same words somewhere
in a long line, among those of every other reason.  These say the one thing.

One event for a pod and a reason: its name is made of both, so there is one
also after a restart of the agent, until the API server forgets it (an hour).
Written not before the second failure, and never changed, so creating events
is all the right it takes.  Failures are bounded where they are kept
(store/pods.py).

And an event on a pod that runs with the defaults although it asks for
something else: its ADD came while nobody could tell (agent/known.py).  That is
written when the pod is known and its attachment can be compared, however long
after.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterable, Mapping
from types import MappingProxyType

from muslin.agent.known import IFNAME
from muslin.agent.pods import Seen
from muslin.agent.wishes import Wishes, missed
from muslin.cni.capabilities import pod_name
from muslin.errors import ConfigError, Conflict
from muslin.kernel import boot
from muslin.kube import Api, micro_time
from muslin.kube.kinds import EVENTS
from muslin.log import log
from muslin.model import decode
from muslin.store.ledger import Ledger
from muslin.store.pods import MISSED, Failure, PodKey

AGAIN = 900.0  # seconds until it is looked whether the event is still there
RECENT = 600.0  # seconds; an older failure is nobody's any more
CONTROLLER = "muslin.io/agent"
_NOTE = 1024  # characters: k8s.io/api/events/v1


class Events:
    """Tells of failures in node.db."""

    def __init__(
        self,
        api: Api,
        ledger: Ledger,
        node: str,
        wishing: Mapping[PodKey, Seen] = MappingProxyType({}),
        *,
        clock: Callable[[], float] = boot.clock,
        now: Callable[[], float] = time.time,
    ) -> None:
        self._api, self._ledger, self._node = api, ledger, node
        self._wishing, self._clock, self._now = wishing, clock, now
        self._told: dict[str, tuple[int, float]] = {}  # event → failures then, and when

    async def tell(self) -> None:
        """Create what is due.  NotReady if the API server is away."""
        now = self._clock()
        everything = self._ledger.failures()
        recent = [f for f in everything if f.reason != MISSED and 0 <= now - f.last < RECENT]
        without = self._without([f for f in everything if f.reason == MISSED])
        names = {name_of(f) for f in (*recent, *without)}
        self._told = {name: told for name, told in self._told.items() if name in names}
        for failure in recent:
            times, at = self._told.get(name_of(failure), (1, -AGAIN))
            if failure.times > times and now - at >= AGAIN:
                self._told[name_of(failure)] = (failure.times, now)
                await self._write(failure)
        for failure in without:
            if name_of(failure) not in self._told:
                await self._write(failure)
                self._told[name_of(failure)] = (failure.times, now)

    def _without(self, unknown: Iterable[Failure]) -> list[Failure]:
        """Those of the pods that were not known at their ADD and have not what they ask for."""
        wishing = [(f, self._wishing[f.pod]) for f in unknown if f.pod in self._wishing]
        wishing = [(f, seen) for f, seen in wishing if f.uid in ("", seen.row.uid)]
        if not wishing:
            return []
        attached = self._ledger.attachments()
        given = {a.wants.pod: a for a in attached if a.state == "ready" and a.ifname == IFNAME}
        blocks = self._ledger.blocks()
        made = []
        for failure, seen in wishing:
            found = given.get(pod_name(*failure.pod))
            if found is None:
                continue
            pools = {pool for pool, cidr in blocks if any(a in cidr for a in found.addresses)}
            asked = decode(Wishes, seen.row.wishes.encode(), subject="node.db: a pod's wishes")
            nics = [a.network for a in attached if a.container == found.container]
            lacks = missed(asked, found, pools, nics)
            if lacks:
                words = f"attached with the defaults ({failure.message}), without what it asks for"
                note = f"{words}: {'; '.join(lacks)}; delete the pod: a new one gets it"
                made.append(failure._replace(uid=seen.uid, message=note))
        return made

    async def _write(self, failure: Failure) -> None:
        space, when = failure.pod.namespace, micro_time(self._now())
        try:
            await self._api.create(EVENTS, body_of(failure, self._node, when), namespace=space)
        except Conflict:
            return  # it is there
        except ConfigError as e:  # the namespace is going, or we may not
            log.warning("event.refused", pod=f"{space}/{failure.pod.name}", error=str(e))


def name_of(failure: Failure) -> str:
    """The event's name: one for each pod and reason."""
    what = f"{failure.uid}/{failure.reason}".encode()
    return f"{failure.pod.name[:230]}.{hashlib.blake2b(what, digest_size=8).hexdigest()}"


def body_of(failure: Failure, node: str, when: str) -> Mapping[str, object]:
    """The event as it is created."""
    regarding = {"apiVersion": "v1", "kind": "Pod", **failure.pod._asdict()}
    return {
        "metadata": {"name": name_of(failure), "namespace": failure.pod.namespace},
        "eventTime": when,
        "type": "Warning",
        "action": "Attaching",
        "reason": failure.reason,
        "note": failure.message[:_NOTE],
        "regarding": regarding | ({"uid": failure.uid} if failure.uid else {}),
        "reportingController": CONTROLLER,
        "reportingInstance": f"muslin-agent-{node}"[:128],
    }
