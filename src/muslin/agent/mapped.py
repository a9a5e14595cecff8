"""What pods have in our nft table, beside the node's own: put back, taken away, cleared up.

Devices take with them what stands on them; nothing takes elements of a map
along.  So they go by the rows of node.db, under three rules:

*  A row is committed before its element is put, and gone only after it: an
   element without a row is a stray.
*  They are compared with the kernel while nobody can claim or release
   (`Ledger.still`, which holds in both processes), or an element of a pod that
   comes or goes at this moment would be taken for something else.
*  A pod that no record knows any more (a lost node.db) keeps what leads to it
   as long as its device is there.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from ipaddress import ip_network

from muslin.kernel import Kernel
from muslin.model import Prefix, is_pod_device
from muslin.plan import limits, ports
from muslin.plan.diff import Change, diff
from muslin.plan.objects import (
    Element,
    InTable,
    Object,
    Plan,
    Police,
    Route,
    Ruleset,
    is_pods,
)
from muslin.store.ledger import Attachment, Ledger

NO_TABLE = "the node's nft table is not there yet"
WHEN = "the sync loop's next pass makes it: `muslin status` says what it waits for"


def has_table(kernel: Kernel) -> bool:
    """Whether there is something to put a pod's elements into.

    There is none from a boot to the sync loop's first pass, and after somebody
    flushed everything.  An ADD could make one, without the node's elements.
    But what else a pod needs of its node comes with the same pass: forwarding
    on the uplink, the guard, the tunnel.  So STATUS says that the node is not
    ready, and an ADD that comes all the same and needs the table shall come again.
    """
    return any(isinstance(o, Ruleset) for o in kernel.observe())


def wanted(ledger: Ledger) -> Plan:
    """Everything of pods that are there or coming."""
    return _elements(a for a in ledger.wanting() if a.state != "deleting")


def remove(ledger: Ledger, kernel: Kernel, devs: Collection[str]) -> None:
    """Take away what leads to these pods, before their devices go."""
    gone = _elements(a for a in ledger.wanting() if a.dev in devs)
    if gone:
        kernel.apply([Change("remove", o) for o in sorted(gone, key=repr)])


def mend(ledger: Ledger, kernel: Kernel, observed: Plan) -> list[Change]:
    """Put back what is missing, clear up strays; return what was done.  `observed` may be old."""
    if not _changes(ledger, observed):
        return []
    with ledger.still():
        changes = _changes(ledger, kernel.observe())
        kernel.apply(changes)
    return changes


def _elements(attachments: Iterable[Attachment]) -> Plan:
    plan: set[Object] = set()
    for found in attachments:
        plan |= ports.elements(found.wants.ports, found.addresses)
        plan |= limits.police(found.wants, found.dev)
    return frozenset(plan)


def _changes(ledger: Ledger, observed: Plan) -> list[Change]:
    if not any(isinstance(o, Ruleset) for o in observed):
        return []  # no table: the sync loop's next pass makes it, with everything in it
    here = frozenset(o for o in observed if isinstance(o, InTable) and is_pods(o))
    # What is coming is put by its own ADD, which another hand would make fail (EEXIST).
    moving = _elements(a for a in ledger.wanting() if a.state != "ready")
    homes = {o.dst: o.dev for o in observed if isinstance(o, Route) and _is_home(o)}
    keep = moving | {o for o in here if _still_serves(o, homes)}
    want = _elements(a for a in ledger.wanting() if a.state == "ready")
    slots = {o.key for o in want}
    return list(diff(want | {o for o in here & keep if o.key not in slots}, here))


def _still_serves(obj: Object, homes: Mapping[Prefix, str | None]) -> bool:
    """Whether a pod is there for it."""
    if isinstance(obj, Element):
        return ip_network(ports.target(obj)) in homes
    return isinstance(obj, Police) and obj.name in homes.values()


def _is_home(route: Route) -> bool:
    return route.dev is not None and is_pod_device(route.dev)
