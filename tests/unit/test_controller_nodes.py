"""Core Nodes: which get the condition, which lose the taint, which are never touched."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime
from ipaddress import ip_interface
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from muslin.controller.nodes import (
    CALM,
    FORMER,
    TAINT,
    VANISHED,
    Agent,
    Change,
    Memory,
    condition_patch,
    remember,
    taint_patch,
    wanted,
)
from muslin.controller.seen import CONDITION, Condition, Found, Machine, Taint
from muslin.kube.status import Condition as Said
from muslin.kube.status import NodeStatus
from muslin.model import Node

STARTUP = (Taint("other", "NoSchedule"), Taint(TAINT, "NoSchedule"), Taint(TAINT, "NoExecute"))
UP = Condition(CONDITION, "False", "MuslinReady", "the node has its pod networks")
GONE = Condition(CONDITION, "True", "MuslinGone", "the node's muslin Node has vanished")


def machine(name: str = "n1", uid: str = "1", **more: Any) -> Machine:
    return Machine(name=name, uid=uid, **more)


def agent(ready: str = "True", *, version: str = "7", pods: bool = True, why: str = "") -> Agent:
    value = Node(name="n1", addresses=(ip_interface("192.0.2.1/24"),), mtu=1500, pods=pods)
    at = datetime(2026, 1, 1, tzinfo=UTC)
    said = [Said(type="Ready", status=ready, last_transition_time=at, reason="X", message=why)]  # type: ignore[arg-type]
    return Found(name="n1", version=version, value=value, status=NodeStatus(conditions=tuple(said)))


class Cluster:
    """Looks one after the other, each bringing the machines to what was wanted."""

    def __init__(self, **machines: Machine) -> None:
        self.machines, self.agents = machines, dict[str, Agent]()
        self.memory, self.now = Memory(), 0.0

    def look(self, seconds: float = 0.0) -> dict[str, Change]:
        self.now += seconds
        self.memory = remember(self.memory, self.machines, self.agents, self.now)
        found = wanted(self.memory, self.machines, self.agents, self.now)
        for name, change in found.items():
            before = self.machines[name]
            kept = tuple(t for i, t in enumerate(before.taints) if i not in change.taints)
            self.machines[name] = replace(
                before, condition=change.condition or before.condition, taints=kept
            )
        assert wanted(self.memory, self.machines, self.agents, self.now) == {}
        return found


def test_a_ready_node_gets_the_condition_and_loses_our_taint_only() -> None:
    cluster = Cluster(n1=machine(taints=STARTUP))
    assert cluster.look() == {}
    cluster.agents["n1"] = agent()
    assert cluster.look() == {"n1": Change(condition=UP, turned=True, taints=(1, 2))}
    assert cluster.machines["n1"].taints == (Taint("other", "NoSchedule"),)
    assert cluster.look(1e6) == {}


def test_one_that_is_not_ready_is_told_in_the_agents_words() -> None:
    cluster = Cluster(n1=machine(taints=STARTUP))
    cluster.agents["n1"] = agent("False", why="no uplink")
    down = Condition(CONDITION, "True", "MuslinNotReady", "no uplink")
    assert cluster.look() == {"n1": Change(condition=down, turned=True)}
    cluster.agents["n1"] = agent("False", why="no carrier")
    assert not cluster.look()["n1"].turned
    cluster.agents["n1"] = agent()
    assert cluster.look()["n1"] == Change(condition=UP, turned=True, taints=(1, 2))


def test_an_agent_that_is_upgraded_turns_nothing() -> None:
    cluster = Cluster(n1=machine())
    cluster.agents["n1"] = agent()
    cluster.look()
    cluster.agents["n1"] = agent("False", version="8", why="starting")
    assert cluster.look() == {}
    assert cluster.look(CALM - 0.1) == {}
    cluster.agents["n1"] = agent(version="9")
    assert cluster.look(1) == {}
    cluster.agents["n1"] = agent("False", version="10", why="no uplink")
    assert cluster.look() == {}
    assert cluster.look(CALM)["n1"].turned


def test_what_is_not_said_yet_changes_nothing() -> None:
    cluster = Cluster(n1=machine(taints=STARTUP, condition=UP))
    for said in (agent("Unknown"), replace(agent(), status=NodeStatus())):
        cluster.agents["n1"] = said
        assert cluster.look() == {}


def test_one_that_vanished_is_unavailable_after_a_while() -> None:
    cluster = Cluster(n1=machine())
    cluster.agents["n1"] = agent()
    cluster.look()
    del cluster.agents["n1"]
    assert cluster.look() == {}
    assert cluster.look(VANISHED - 1) == {}
    assert cluster.look(1) == {"n1": Change(condition=GONE, turned=True)}
    cluster.agents["n1"] = agent(version="9")
    assert cluster.look()["n1"].condition == UP


def test_one_that_went_back_to_another_network_is_that_networks() -> None:
    cluster = Cluster(n1=machine())
    cluster.agents["n1"] = agent()
    cluster.look()
    del cluster.agents["n1"]
    cluster.look()
    assert cluster.look(VANISHED + 1)["n1"].condition == GONE
    theirs = Condition(CONDITION, "False", "FlannelIsUp", "Flannel is running on this node")
    cluster.machines["n1"] = machine(condition=theirs)
    assert cluster.look(1e6) == {}


def test_a_leader_that_takes_over_knows_ours_by_the_reason() -> None:
    cluster = Cluster(n1=machine(condition=UP), n2=machine("n2", "2"))
    cluster.look()
    assert set(cluster.look(VANISHED)) == {"n1"}


def test_the_nodes_of_others_are_never_touched() -> None:
    theirs = Condition(CONDITION, "False", "CalicoIsUp", "")
    cluster = Cluster(n1=machine(condition=theirs, taints=STARTUP), n2=machine("n2", "2"))
    for _ in range(5):
        assert cluster.look(1000) == {}


def test_a_member_without_pods_is_anothers_too() -> None:
    cluster = Cluster(n1=machine(taints=STARTUP))
    cluster.agents["n1"] = agent(pods=False)
    assert cluster.look() == {}


def test_an_agent_without_a_machine_is_nobodys_business() -> None:
    cluster = Cluster()
    cluster.agents["vm"] = agent()
    assert cluster.look() == {}


def test_a_machine_of_the_same_name_is_not_ready_by_the_word_of_the_one_before() -> None:
    cluster = Cluster(n1=machine())
    cluster.agents["n1"] = agent()
    cluster.look()
    cluster.machines["n1"] = machine(uid="2", taints=STARTUP)
    assert cluster.look() == {}
    assert cluster.look(20) == {}
    cluster.agents["n1"] = agent("False", version="8", why="starting")
    assert cluster.look()["n1"].condition.reason == "MuslinNotReady"  # type: ignore[union-attr]
    cluster.agents["n1"] = agent(version="9")
    assert cluster.look()["n1"].taints == (1, 2)


def test_also_when_its_node_was_away_for_a_while() -> None:
    cluster = Cluster(n1=machine())
    cluster.agents["n1"] = agent()
    cluster.look()
    del cluster.machines["n1"]
    cluster.look(10)
    cluster.machines["n1"] = machine(uid="2", taints=STARTUP)
    assert cluster.look(10) == {}


def test_a_node_object_made_anew_under_a_living_agent_is_ready_in_the_end() -> None:
    """The agent writes nothing when nothing changed for it."""
    cluster = Cluster(n1=machine())
    cluster.agents["n1"] = agent()
    cluster.look()
    cluster.machines["n1"] = machine(uid="2", taints=STARTUP)
    assert cluster.look() == {}
    assert cluster.look(FORMER)["n1"].taints == (1, 2)


def test_a_new_machine_whose_agent_never_came_is_not_ours_yet() -> None:
    cluster = Cluster(n1=machine())
    cluster.agents["n1"] = agent()
    cluster.look()
    cluster.machines["n1"] = machine(uid="2")
    cluster.look()
    del cluster.agents["n1"]
    assert cluster.look(10 * VANISHED) == {}


def test_patches_are_what_the_server_wants() -> None:
    now = "2026-01-01T00:00:00Z"
    turned = condition_patch(Change(condition=UP, turned=True), now)["status"]["conditions"][0]
    assert turned["lastTransitionTime"] == turned["lastHeartbeatTime"] == now
    assert "lastTransitionTime" not in str(condition_patch(Change(condition=UP), now))
    steps = taint_patch(machine(taints=STARTUP), (1, 2))
    assert [s["op"] for s in steps] == ["test"] * 4 + ["remove"] * 2
    assert [s["path"] for s in steps[4:]] == ["/spec/taints/2", "/spec/taints/1"]


SAID = st.sampled_from(["True", "False", "Unknown"])
STEP = st.tuples(
    st.sampled_from(["n1", "n2"]),
    st.sampled_from(["says", "leaves", "machine", "no machine", "wait", "take over"]),
    SAID,
    st.sampled_from(["1", "2"]),
)


@given(st.lists(STEP, max_size=30))
def test_any_history(steps: list[tuple[str, str, str, str]]) -> None:
    """A second look wants nothing; taints go only from ready nodes; strangers stay strangers."""
    cluster = Cluster()
    had = set[str]()
    for version, (name, what, said, uid) in enumerate(steps):
        match what:
            case "says":
                cluster.agents[name] = agent(said, version=str(version))
            case "leaves":
                cluster.agents.pop(name, None)
            case "machine":
                if name not in cluster.machines:
                    cluster.machines[name] = machine(name, name + uid, taints=STARTUP)
            case "no machine":
                cluster.machines.pop(name, None)
            case "take over":
                cluster.memory = Memory()
        had |= {cluster.machines[n].uid for n in cluster.agents if n in cluster.machines}
        for one, change in cluster.look(15.0 if what == "wait" else 0.1).items():
            assert cluster.machines[one].uid in had
            if change.taints:
                ready = cluster.agents[one].status.conditions[0]  # type: ignore[union-attr]
                assert ready.status == "True"
