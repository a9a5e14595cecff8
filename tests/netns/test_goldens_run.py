"""Every golden is run as it stands, with `sh`, and the kernel then holds its plan.

So the text that `muslin plan` prints and the netlink messages that the agent
sends say the same thing.
"""

from __future__ import annotations

from dataclasses import replace

import pytest

from golden.cases import Case, all_cases
from muslin.kernel import netns
from muslin.kernel.linux import LinuxKernel
from muslin.model import Site
from muslin.plan import pod
from muslin.plan.diff import diff
from muslin.plan.node import RULES
from muslin.plan.objects import Ruleset
from muslin.plan.render import render, render_changes
from namespaces import Spaces, run

pytestmark = pytest.mark.root

# The goldens say /run/netns/pod; a mount namespace makes that true for one shell only.
POD_AT_ITS_PLACE = """
mount --make-rprivate /
mount -t tmpfs none /mnt
touch /mnt/pod
mount --bind {pod} /mnt/pod
mount --rbind /mnt /run/netns
"""


def uplink(site: Site) -> str:
    """The link and the addresses that the goldens take for granted, and a way out."""
    lines = [
        "ip link set dev lo up",
        f"ip link add {site.host.uplink} mtu {site.me.mtu} type veth peer name wire",
        f"ip link set dev {site.host.uplink} up",
        "ip link set dev wire up",
    ]
    for address in site.me.addresses:
        nodad = "nodad" if address.version == 6 else ""
        lines.append(f"ip addr add {address} dev {site.host.uplink} {nodad}")
    return "\n".join(lines)


@pytest.mark.parametrize("case", list(all_cases()), ids=lambda c: c.name)
def test_a_golden_run_by_hand_is_what_the_agent_would_have_made(case: Case, spaces: Spaces) -> None:
    node, plan = spaces.new("node"), case.plan()
    if case.nic:
        nic = replace(case.nic, netns=spaces.new("pod"))
        plan = pod.routed(nic) | {Ruleset(body=RULES)}
        run(node, render(frozenset({Ruleset(body=RULES)})))
        script = POD_AT_ITS_PLACE.format(pod=nic.netns) + "sh -e << 'END'\n"
        run(node, f"unshare -m sh -e << 'OUTER'\n{script}{case.expected()}END\nOUTER\n")
    else:
        run(node, uplink(case.site))
        run(node, render(case.plan_before()))
        run(node, case.expected())
    with netns.inside(node):
        observed = LinuxKernel().observe(plan)
    assert render_changes(diff(plan, observed)) == ""
