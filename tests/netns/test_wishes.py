"""All that a runtime can ask for one pod, on the real kernel: given, checked, repeated, undone."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import ip_address
from pathlib import Path

import pytest
from dying import WANTS, opened, request

from muslin.agent.attach import Attachments
from muslin.errors import CheckFailed, NotReady, Taken, Unavailable
from muslin.kernel import netns
from muslin.kernel.linux import LinuxKernel
from muslin.model import Wants, device_name
from muslin.plan.diff import Change
from muslin.plan.node import RULES
from muslin.plan.objects import InTable, Ruleset
from namespaces import Spaces, run

pytestmark = pytest.mark.root

EVERYTHING = Wants(
    ports=WANTS.ports,
    ingress=WANTS.ingress,
    egress=WANTS.egress,
    ips=(ip_address("10.0.0.9"), ip_address("fd00::4f")),
    mac="02:00:00:00:00:07",
    pod="shop/cart-0",
)


def test_all_wishes_at_once(spaces: Spaces, tmp_path: Path) -> None:
    node, pod, other = spaces.new("node"), spaces.new("pod"), spaces.new("other")
    asked = replace(request("ADD", pod), wants=EVERYTHING)
    kernel, ledger = LinuxKernel(), opened(tmp_path / "node.db")
    attachments = Attachments(ledger, kernel)
    with netns.inside(node):
        for wants in (WANTS, Wants(ports=WANTS.ports), Wants(egress=WANTS.egress)):
            with pytest.raises(NotReady, match="nft table is not there yet"):
                attachments.add(replace(asked, wants=wants))
        with pytest.raises(Unavailable, match="nft table is not there yet"):
            attachments.status(replace(asked, verb="STATUS"))
        assert kernel.observe() == frozenset()
        kernel.apply([Change("add", Ruleset(body=RULES))])
        attachments.status(replace(asked, verb="STATUS"))
        made = attachments.add(asked)
        assert attachments.add(asked) == made
        attachments.check(replace(asked, verb="CHECK"))
        with pytest.raises(Taken, match="leads to pod shop/cart-0"):
            attachments.add(replace(asked, container="c2", netns=other, wants=WANTS))
        dev = device_name("c1", "eth0")
        run(node, f"ip link show {dev} | grep -q 'alias muslin pod c1 eth0 shop/cart-0'")
        run(pod, "ip addr show eth0 | grep -q 10.0.0.9/32; ip addr show eth0 | grep -q fd00::4f")
        run(pod, "ip link show eth0 | grep -q 02:00:00:00:00:07")
        run(
            node,
            f"tc qdisc del dev {dev} root; nft delete element inet muslin ports4 '{{tcp . 8080}}'",
        )
        with pytest.raises(CheckFailed, match=r"ports4 \{ tcp \. 8080 .*tc qdisc .* tbf"):
            attachments.check(replace(asked, verb="CHECK"))
        attachments.delete(replace(asked, verb="DEL", sync_delete=True))
        assert not [o for o in kernel.observe() if isinstance(o, InTable)]
        attachments.add(replace(asked, container="c2", netns=other, wants=WANTS))
    ledger.close()
