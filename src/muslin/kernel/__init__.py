"""This machine's kernel behind one contract: observe, apply.

`linux.LinuxKernel` is the real one, `fake.FakeKernel` a dict that prints
itself like `plan.render`; one conformance suite holds the second to the first.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol

from muslin.plan.diff import Change, diff
from muslin.plan.objects import Plan


class Kernel(Protocol):
    """Both methods block, and may be called from any thread, one call at a time each."""

    def observe(self, about: Plan = frozenset()) -> Plan:
        """Everything that carries our mark in this namespace, and no more of the rest than asked.

        `about` widens the view to what has no mark: the value of each sysctl
        it names, and for each other namespace it names, what stands on the
        devices it names there.  A namespace, device or sysctl that does not
        exist is simply absent from the answer.
        """
        ...

    def apply(self, changes: Iterable[Change]) -> None:
        """Make the changes, in order; KernelError names the first that was refused.

        What went before a refused change stays done.  All nft changes of one
        call are one transaction, made last.  Removing what is absent is
        success.  Adding never overwrites what somebody else put in the slot:
        that is refused.
        """
        ...


def settle(kernel: Kernel, desired: Plan) -> list[Change]:
    """Bring the marked part of the kernel to `desired`; say what had to change (idempotent)."""
    changes = list(diff(desired, kernel.observe(desired)))
    kernel.apply(changes)
    return changes
