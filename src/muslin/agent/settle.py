"""The hands of the sync loop: the node's part of the kernel as planned, and the pods' mended.

Two ways.  To *look* is to observe everything, compare and apply: what others
broke is found by nothing less, and with a thousand peers it takes a third of a
second.  To *step* is to apply the difference between the plan that the kernel
was last seen to hold and the next: most changes are one peer's block, and that
is all they cost.  A step is taken only while nobody gave reason to doubt what
the kernel holds, and only between plans whose links, addresses, switches and
table are the same, since those take along what hangs on them (plan/diff.py).
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Sequence

from muslin.agent import mapped
from muslin.agent.attach import Attachments
from muslin.agent.world import nodes_part
from muslin.errors import KernelError
from muslin.kernel import Kernel
from muslin.kernel.events import News
from muslin.log import log
from muslin.plan.diff import Change, diff, step
from muslin.plan.objects import InTable, Link, Plan, Ruleset
from muslin.plan.render import describe
from muslin.store.ledger import Ledger


class Settler:
    """Brings one node's kernel to a plan.  `settle` blocks and is called from one thread at a time.

    `cost` is how many seconds the last look took.
    """

    def __init__(self, kernel: Kernel, ledger: Ledger, attachments: Attachments) -> None:
        self._kernel, self._ledger, self._attachments = kernel, ledger, attachments
        self._held: Plan | None = None  # what the kernel was seen to hold, whole
        self._coming: Plan | None = None  # what it is brought to at this moment
        self._doubts = self._settled = 0
        self.cost = 0.0

    def doubt(self) -> None:
        """Somebody may have changed the kernel: the next `settle` looks.  Any thread may say so."""
        self._doubts += 1

    def expects(self, news: News) -> bool:
        """Whether it says no more than what the kernel should hold.  From any thread."""
        plans = [p for p in (self._held, self._coming) if p is not None]
        told = news.routes.values()
        return not news.other and all(
            any((route in plan) == there for plan in plans) for route, there in told
        )

    def settle(self, plan: Plan) -> list[str]:
        """Make the kernel hold `plan`; say what it refused."""
        self._coming = plan
        try:
            return self._settle(plan)
        finally:
            self._coming = None

    def _settle(self, plan: Plan) -> list[str]:
        doubts = self._doubts
        if self._held is not None and doubts == self._settled:
            changes = step(self._held, plan)
            if changes is not None:
                try:
                    self._apply(changes)
                except KernelError as e:
                    log.warning("kernel.unexpected", error=str(e))
                else:
                    self._held = plan
                    return []
        began = time.monotonic()
        refused = self._look(plan)
        self.cost = time.monotonic() - began
        self._held, self._settled = (None if refused else plan), doubts
        return refused

    def pending(self, plan: Plan) -> list[Change]:
        """What differs now."""
        return list(diff(plan, nodes_part(self._kernel.observe(plan))))

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
            for change in mapped.mend(self._ledger, self._kernel, observed):
                log.info("kernel.changed", done="; ".join(_line(change)))
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
        there = {o.name for o in observed if isinstance(o, Link)}
        slots = {o.key for o in pods}
        for change in diff(pods, frozenset(o for o in observed if o.key in slots)):
            mends = change.verb != "remove" and not isinstance(change.obj, Link)
            if mends and change.obj.dev in there:
                with contextlib.suppress(KernelError):  # a pod that is going: its DEL runs now
                    self._apply([change])

    def _apply(self, changes: Sequence[Change]) -> None:
        if not changes:
            return
        self._kernel.apply(changes)
        for change in changes:
            log.info("kernel.changed", done="; ".join(_line(change)))


def _line(change: Change) -> list[str]:
    if isinstance(change.obj, Ruleset):
        return [f"nft {change.verb} table {change.obj.mark}"]  # forty lines otherwise
    return describe(change)
