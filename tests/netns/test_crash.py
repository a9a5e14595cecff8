"""SIGKILL between any two steps of ADD and DEL: nothing is left, nothing is given twice."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from dying import opened, request

from muslin.agent.attach import Attachments
from muslin.kernel import netns
from muslin.kernel.linux import LinuxKernel
from muslin.plan.diff import Change
from muslin.plan.node import RULES
from muslin.plan.objects import Addr, Element, Link, Neigh, Police, Route, Ruleset, Shaper
from namespaces import Spaces

pytestmark = pytest.mark.root

SCRIPT = Path(__file__).with_name("dying.py")
KILLED = -9


class Node:
    """A node and one pod's namespace; agents on it live for one call."""

    def __init__(self, spaces: Spaces, directory: Path, nics: str = "") -> None:
        self.ns, self.pod = spaces.new("node"), spaces.new("pod")
        self.db, self.nics = directory / "node.db", nics
        with netns.inside(self.ns):  # what the sync loop puts first
            LinuxKernel().apply([Change("add", Ruleset(body=RULES))])

    def call(self, verb: str, *, die_at: int = -1) -> subprocess.CompletedProcess[str]:
        """One call in a process of its own, killed at a step, or (-1) not at all."""
        argv = [sys.executable, str(SCRIPT), str(self.db), verb, self.pod, str(die_at), self.nics]
        return subprocess.run(
            ["nsenter", f"--net={self.ns}", *argv], capture_output=True, text=True, check=False
        )

    def steps(self, verb: str) -> int:
        """How many steps the call has when it is left alone."""
        done = self.call(verb)
        assert done.returncode == 0, done.stderr
        return int(done.stdout)

    def restart(self) -> None:
        """The next agent's start, before it serves anything."""
        with netns.inside(self.ns):
            ledger = opened(self.db)
            Attachments(ledger, LinuxKernel()).recover("boot")
            ledger.close()

    def audit(self) -> tuple[set[str], int, list[str]]:
        """(what the kernel holds of pods, addresses in use, attachment states)."""
        with netns.inside(self.ns):
            kept = (Link, Route, Neigh, Addr, Shaper, Police, Element)
            held = {str(o) for o in LinuxKernel().observe() if isinstance(o, kept)}
            ledger = opened(self.db)
            used = sum(u.used for u in ledger.usage())
            states = [a.state for a in ledger.attachments()]
            ledger.close()
        return held, used, states

    def pod_rules(self) -> int:
        """How many of the pod's routing rules are ours."""
        argv = ["nsenter", f"--net={self.pod}", "sh", "-c", "ip rule; ip -6 rule"]
        return subprocess.run(argv, capture_output=True, text=True, check=True).stdout.count(
            "lookup 109"
        )

    def pod_devices(self) -> list[str]:
        with netns.inside(self.pod):
            return sorted(p.name for p in Path("/sys/class/net").iterdir()) and [
                line.split(":")[0].strip()
                for line in Path("/proc/thread-self/net/dev").read_text().splitlines()[2:]
            ]


@pytest.fixture
def node(spaces: Spaces, tmp_path: Path, request: pytest.FixtureRequest) -> Node:
    return Node(spaces, tmp_path, getattr(request, "param", ""))


with_and_without_a_list = pytest.mark.parametrize(
    "node", ["", "storage,blue"], ids=["one NIC", "three NICs"], indirect=True
)


@with_and_without_a_list
def test_add_killed_at_every_step_leaves_nothing_after_the_next_start(node: Node) -> None:
    total = node.steps("ADD")
    count = 3 if node.nics else 1
    assert node.audit()[2] == ["ready"] * count
    assert node.call("DEL").returncode == 0
    assert total > 10  # the steps are really counted
    finished = 0
    for step in range(total):
        assert node.call("ADD", die_at=step).returncode == KILLED
        node.restart()
        held, used, states = node.audit()
        assert states in ([], ["ready"] * count)  # all or none
        if states:  # killed after the last commit: the runtime will send a DEL
            finished += 1
            assert node.call("DEL").returncode == 0
            held, used, states = node.audit()
        assert (held, used, states) == (set(), 0, []), f"after step {step} of {total}"
        assert node.pod_devices() == ["lo"]
        assert node.pod_rules() == 0
    assert finished <= 1


@with_and_without_a_list
def test_del_killed_at_every_step_is_completed_by_the_next_start(node: Node) -> None:
    assert node.call("ADD").returncode == 0
    assert node.pod_rules() == (4 if node.nics else 0)  # eth0 has an address of each version
    total, count = node.steps("DEL"), 3 if node.nics else 1
    for step in range(total):
        assert node.call("ADD").returncode == 0
        assert node.call("DEL", die_at=step).returncode == KILLED
        node.restart()
        held, used, states = node.audit()
        if "ready" in states:  # killed before the first commit: nothing had been promised
            assert states == ["ready"] * count
            assert step <= 1
            assert node.call("DEL").returncode == 0
            held, used, states = node.audit()
        assert (held, used, states) == (set(), 0, []), f"after step {step} of {total}"
        assert node.pod_rules() == 0


def test_an_interrupted_adds_address_is_given_to_the_next_pod_only_after_its_rest(
    node: Node,
) -> None:
    total = node.steps("ADD")
    first = given(node)
    assert node.call("DEL").returncode == 0
    seen = {first}
    for step in (total // 3, total // 2):
        assert node.call("ADD", die_at=step).returncode == KILLED
        node.restart()
        assert node.call("ADD").returncode == 0
        assert given(node) not in seen  # 30 s have not passed
        seen.add(given(node))
        assert node.call("DEL").returncode == 0


def test_the_same_call_again_after_a_kill_succeeds_without_a_restart(node: Node) -> None:
    """A runtime that retries ADD at once must not trip over what the first one left."""
    total = node.steps("ADD")
    assert node.call("DEL").returncode == 0
    for step in range(0, total, 3):
        assert node.call("ADD", die_at=step).returncode == KILLED
        again = node.call("ADD")
        assert again.returncode == 0, again.stderr
        assert node.call("DEL").returncode == 0
        assert node.audit() == (set(), 0, [])


def given(node: Node) -> str:
    ledger = opened(node.db)
    found = ledger.of("c1").get("eth0")
    ledger.close()
    assert found is not None
    return str(found.addresses[0])


def test_a_pod_whose_namespace_died_first_is_deleted_like_any_other(
    node: Node, spaces: Spaces
) -> None:
    assert node.call("ADD").returncode == 0
    netns.delete(Path(node.pod).name)
    with netns.inside(node.ns):
        ledger = opened(node.db)
        attachments = Attachments(ledger, LinuxKernel())
        attachments.delete(request("DEL", node.pod))
        attachments.reap()
        ledger.close()
    assert node.audit() == (set(), 0, [])
