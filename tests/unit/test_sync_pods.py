"""What the sync loop does for what pods have in the node's table: leaves it, and puts it back."""

from __future__ import annotations

from pathlib import Path

from test_sync import POOL, Agent, agent

from muslin.agent import mapped
from muslin.agent.attach import Attachments
from muslin.cni.protocol import Request
from muslin.model import PortMapping, Rate, Wants
from muslin.plan.diff import Change
from muslin.plan.objects import Element, InTable, Link, Plan, Present, Ruleset, is_pods

__all__ = ["agent"]  # the fixture

WEB = Wants(
    ports=(PortMapping(host=8080, pod=80), PortMapping(host=53, pod=53, protocol="udp")),
    egress=Rate(rate=2_500_000, burst=250_000),
)


def attach(agent: Agent, netns: Path) -> Plan:
    """A pod with ports and a limit; what it has in the table."""
    netns.touch()
    lo = Link(ns=str(netns), name="lo", kind=Present())
    agent.kernel.strangers[lo.key] = lo
    request = Request(
        verb="ADD", container="c1", ifname="eth0", netns=str(netns), name="muslin", wants=WEB
    )
    Attachments(agent.ledger, agent.kernel).add(request)
    found = pods(agent)
    assert len(found) == 4
    return found


def pods(agent: Agent) -> Plan:
    return frozenset(o for o in agent.kernel.observe() if isinstance(o, InTable) and is_pods(o))


async def test_a_pass_leaves_what_pods_have(agent: Agent, tmp_path: Path) -> None:
    found = attach(agent, tmp_path / "ns")
    before = len(agent.kernel.log)
    await agent.peer("n2", "192.0.2.2/24", "10.244.9.0/26")
    await agent.until(lambda: agent.routes() == {"10.244.9.0/26 via 192.0.2.2"})
    assert pods(agent) == found
    assert not [c for c in agent.kernel.log[before:] if c.obj in found]
    assert agent.sync.pending()[1] == []


async def test_a_table_made_anew_has_at_once_what_pods_had(agent: Agent, tmp_path: Path) -> None:
    found = attach(agent, tmp_path / "ns")
    table = next(o for o in agent.kernel.observe() if isinstance(o, Ruleset))
    calls: list[list[Change]] = []
    apply = agent.kernel.apply

    def watched(changes: object) -> None:
        calls.append(list(changes))  # type: ignore[call-overload]
        apply(calls[-1])

    agent.kernel.apply = watched  # type: ignore[method-assign]
    apply([Change("remove", table)])
    agent.sync.look_again()
    await agent.until(lambda: pods(agent) == found)
    made = next(c for c in calls if any(isinstance(x.obj, Ruleset) for x in c))
    assert found <= {c.obj for c in made}  # one call is one transaction


async def test_what_an_add_is_about_to_put_is_left_to_it(agent: Agent) -> None:
    """Put by another hand it would make that ADD fail: the slot would be taken."""
    agent.ledger.claim(
        "c1", "eth0", netns="/n", conf="m", network="default", mtu=1500, pools=[POOL], wants=WEB
    )
    assert mapped.mend(agent.ledger, agent.kernel, agent.kernel.observe()) == []
    agent.ledger.ready("c1", "eth0")
    assert len(mapped.mend(agent.ledger, agent.kernel, agent.kernel.observe())) == 4


async def test_one_entry_that_somebody_took_is_put_back(agent: Agent, tmp_path: Path) -> None:
    found = attach(agent, tmp_path / "ns")
    one = next(o for o in found if isinstance(o, Element))
    agent.kernel.apply([Change("remove", one)])
    agent.sync.look_again()
    await agent.until(lambda: pods(agent) == found)
