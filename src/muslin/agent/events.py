"""Events on pods whose ADDs fail again and again, for whoever looks with `kubectl describe pod`.

A kubelet makes events of failed sandboxes too, with the same words somewhere
in a long line, among those of every other reason.  These say the one thing.

One event for a pod and a reason: its name is made of both, so there is one
also after a restart of the agent, until the API server forgets it (an hour).
Written not before the second failure, and never changed, so creating events
is all the right it takes.  Failures are bounded where they are kept
(store/pods.py).
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Mapping

from muslin.errors import ConfigError, Conflict
from muslin.kernel import boot
from muslin.kube import Api, micro_time
from muslin.kube.kinds import EVENTS
from muslin.log import log
from muslin.store.ledger import Ledger
from muslin.store.pods import Failure

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
        *,
        clock: Callable[[], float] = boot.clock,
        now: Callable[[], float] = time.time,
    ) -> None:
        self._api, self._ledger, self._node = api, ledger, node
        self._clock, self._now = clock, now
        self._told: dict[str, tuple[int, float]] = {}  # event → failures then, and when

    async def tell(self) -> None:
        """Create what is due.  NotReady if the API server is away."""
        now = self._clock()
        failures = [f for f in self._ledger.failures() if 0 <= now - f.last < RECENT]
        names = {name_of(f) for f in failures}
        self._told = {name: told for name, told in self._told.items() if name in names}
        for failure in failures:
            times, at = self._told.get(name_of(failure), (1, -AGAIN))
            if failure.times > times and now - at >= AGAIN:
                self._told[name_of(failure)] = (failure.times, now)
                await self._write(failure)

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
