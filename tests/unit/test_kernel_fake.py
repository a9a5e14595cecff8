"""The fake kernel prints itself as the goldens read."""

from __future__ import annotations

from ipaddress import ip_interface

import pytest

from golden.cases import Case, all_cases
from muslin.kernel import settle
from muslin.kernel.fake import FakeKernel
from muslin.plan.objects import Addr, Link, Plan, Veth

GROUND: Plan = frozenset(
    {
        Link(name="eth0", kind=Veth()),
        Addr(dev="eth0", address=ip_interface("192.0.2.1/24")),
        Addr(dev="eth0", address=ip_interface("2001:db8:1::1/64")),
    }
)


@pytest.mark.parametrize("case", [c for c in all_cases() if not c.nic], ids=lambda c: c.name)
def test_a_settled_fake_reads_like_the_plan(case: Case) -> None:
    kernel = FakeKernel(GROUND)
    settle(kernel, case.plan_before())
    before = str(kernel)
    settle(kernel, case.plan())
    if not case.site_before:
        assert (before, str(kernel)) == ("", case.expected())
    else:
        assert before != str(kernel)
    settle(kernel, frozenset())
    assert [line for line in str(kernel).splitlines() if "sysctl" not in line] == []


def test_what_was_applied_is_kept_for_tests_to_read() -> None:
    kernel = FakeKernel(GROUND)
    link = Link(name="mu.a", kind=Veth(peer="b"), mtu=1400)
    settle(kernel, frozenset({link}))
    assert [(c.verb, c.obj) for c in kernel.log] == [("add", link)]
