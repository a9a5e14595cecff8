"""The hands of the sync loop: the node's part of the kernel as planned, and the pods' mended.

Two ways.  To *look* is to observe everything, compare and apply: what others
broke is found by nothing less, and with a thousand peers it takes 60 to 300 ms.
To *step* is to apply the difference between the plan that the kernel was
brought to and the next: most changes are one peer's block, and that is all
they cost.  A step is taken only between plans whose links, addresses, switches
and table are the same, since those take along what hangs on them (plan/diff.py).

A step does not wait for a look.  Whoever has reason to doubt what the kernel
holds has it checked: `check` observes while steps go ahead, and mends what
differs in the slots that none of them touched meanwhile.  In those slots both
plans agree.  In the others the observation may be older than the step, and
needs no mending: the kernel has taken the step's word, or it was refused.

    settle   ──step──step──────step──step──>      what the store says
    check    ──observe───────┐mend                what others broke
               touched: ─────┘ left alone

Whatever is more than that is looked at whole, with all steps waiting: another
link or table, found by either, and anything that the kernel refused.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Sequence

from muslin.agent import mapped
from muslin.agent.attach import Attachments
from muslin.agent.world import nodes_part
from muslin.errors import KernelError, MuslinError
from muslin.kernel import Kernel
from muslin.kernel.events import News
from muslin.log import log
from muslin.plan.diff import Change, Key, diff, step
from muslin.plan.objects import InTable, Link, Object, Plan, Ruleset, holds, is_pods
from muslin.plan.render import describe
from muslin.store.ledger import Ledger


class Settler:
    """Brings one node's kernel to a plan.

    `settle` and `check` block, each called from one thread at a time; both may run at once.
    `cost` is how many seconds the last look took.
    """

    def __init__(self, kernel: Kernel, ledger: Ledger, attachments: Attachments) -> None:
        self._kernel, self._ledger, self._attachments = kernel, ledger, attachments
        self._turn = threading.Lock()  # of who applies something, and for what follows
        self._held: Plan | None = None  # what the kernel was brought to, whole
        self._coming: Plan | None = None  # what it is brought to at this moment
        self._touched: set[Key] | None = None  # by steps, since the check began that now observes
        self._doubts = self._settled = 0
        self.cost = 0.0

    def doubt(self) -> None:
        """Somebody may have changed the kernel.  Any thread may say so."""
        self._doubts += 1

    @property
    def doubtful(self) -> bool:
        """Whether `check` would look."""
        return self._held is not None and self._doubts != self._settled

    def expects(self, news: News) -> bool:
        """Whether it says no more than what the kernel should hold.  From any thread."""
        plans = [p for p in (self._held, self._coming) if p is not None]
        told = news.routes.values()
        return not news.other and all(
            any((route in plan) == there for plan in plans) for route, there in told
        )

    def settle(self, plan: Plan) -> list[str]:
        """Make the kernel hold `plan`, where nobody else changed it; say what it refused."""
        with self._turn:
            self._coming = plan
            try:
                return self._settle(plan)
            finally:
                self._coming = None

    def check(self) -> bool:
        """Put right what others changed; False where that is left to the next `settle`."""
        with self._turn:
            plan, doubts = self._held, self._doubts
            if plan is None or doubts == self._settled:
                return plan is not None
            touched = self._touched = set()
        try:
            return self._check(plan, doubts, touched)
        except (MuslinError, OSError) as e:
            log.warning("kernel.unexpected", error=str(e))
            with self._turn:
                self._held = None
            return False

    def pending(self, plan: Plan) -> list[Change]:
        """What differs now."""
        return list(diff(plan, nodes_part(self._kernel.observe(plan))))

    def _settle(self, plan: Plan) -> list[str]:
        changes = step(self._held, plan) if self._held is not None else None
        if changes is not None:
            try:
                self._step(changes)
            except KernelError as e:
                log.warning("kernel.unexpected", error=str(e))
            else:
                self._held = plan
                return []
        # Whatever a check has observed by now is older than what is done here.
        self._held = self._touched = None
        doubts, began = self._doubts, time.monotonic()
        refused = self._look(plan)
        self.cost = time.monotonic() - began
        if not refused:
            self._held, self._settled = plan, doubts
        return refused

    def _step(self, changes: Sequence[Change]) -> None:
        if self._touched is not None:
            self._touched.update(c.obj.key for c in changes)
        self._apply(changes)

    def _check(self, plan: Plan, doubts: int, touched: set[Key]) -> bool:
        began = time.monotonic()
        pods = self._attachments.host_plan()
        observed = self._kernel.observe(plan | pods)
        changes = step(_seen(observed, plan), plan)
        with self._turn:
            if self._touched is not touched:
                return self._held is not None  # all of it was looked at meanwhile
            self._touched = None
            if changes is None:
                self._held = None
                return False
            self._apply([c for c in changes if c.obj.key not in touched])
            self._settled = doubts
        self._mend_pods(pods, observed)
        self._mend_table(observed)
        self.cost = time.monotonic() - began
        return True

    def _look(self, plan: Plan) -> list[str]:
        """The node's part whole, then what somebody broke of the pods'."""
        pods = self._attachments.host_plan()
        observed = self._kernel.observe(plan | pods)
        changes = list(diff(plan, nodes_part(observed)))
        try:
            if any(isinstance(c.obj, Ruleset) and c.verb != "remove" for c in changes):
                self._apply_table(changes)
            else:
                self._apply(changes)
            refused = []
        except KernelError as e:
            log.error("kernel.refused", error=str(e))
            refused = self._apply_each(plan)
        self._mend_pods(pods, observed)
        try:
            self._mend_table(observed)
        except KernelError as e:
            refused.append(str(e))
        return refused

    def _apply_table(self, changes: list[Change]) -> None:
        """A table that is made anew has at once what pods had in the old one."""
        with self._ledger.still():
            pods = sorted(mapped.wanted(self._ledger), key=repr)
            self._apply([*changes, *(Change("add", o) for o in pods)])

    def _apply_each(self, plan: Plan) -> list[str]:
        """One object that the kernel refuses must not keep the others out."""
        changes = self.pending(plan)
        nft = [c for c in changes if isinstance(c.obj, Ruleset | InTable)]  # one transaction
        refused = []
        for part in (*([c] for c in changes if c not in nft), nft):
            try:
                self._apply(part)
            except KernelError as e:
                refused.append(str(e))
        return refused

    def _mend_pods(self, pods: Plan, observed: Plan) -> None:
        """The node's side of pods whose device is there."""
        if all(isinstance(o, Link) for o in pods - observed):
            return  # and those are never mended
        there = {o.name for o in observed if isinstance(o, Link)}
        slots = {o.key for o in pods}
        for change in diff(pods, frozenset(o for o in observed if o.key in slots)):
            mends = change.verb != "remove" and not isinstance(change.obj, Link)
            if mends and change.obj.dev in there:
                with contextlib.suppress(KernelError):  # a pod that is going: its DEL runs now
                    self._apply([change])

    def _mend_table(self, observed: Plan) -> None:
        """What pods have in our table."""
        for change in mapped.mend(self._ledger, self._kernel, observed):
            log.info("kernel.changed", done="; ".join(_line(change)))

    def _apply(self, changes: Sequence[Change]) -> None:
        if not changes:
            return
        self._kernel.apply(changes)
        for change in changes:
            log.info("kernel.changed", done="; ".join(_line(change)))


def _seen(observed: Plan, plan: Plan) -> Plan:
    """The node's part of it, with the plan's own object for each that it `holds`."""
    want = {o.key: o for o in plan - observed}  # few: nearly all are equal

    def as_planned(found: Object) -> Object:
        wanted = want.get(found.key)
        return wanted if wanted is not None and holds(wanted, found) else found

    return plan & observed | {as_planned(o) for o in observed - plan if not is_pods(o)}


def _line(change: Change) -> list[str]:
    if isinstance(change.obj, Ruleset):
        return [f"nft {change.verb} table {change.obj.mark}"]  # forty lines otherwise
    return describe(change)
