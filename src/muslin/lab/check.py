"""Who reaches whom, who must not, and whether anybody's address was changed on the way.

    pods, nodes, members          each other: with their own addresses
    static machines in `estate`   the same
    beyond the estate             pods reach it behind their node's address; nothing comes in
    a source that is not its own  no pod's packet gets through with one
    an address nobody has         is answered at once or not at all, but never goes round

"No NAT" is not believed but seen: every server answers with the address it saw,
and that must be the one the client sent from.  What must *not* pass is only
worth asking when the honest packet beside it did pass, so that is asked too.

`expect` and the verdicts are pure; `muslin.lab.probe` moves the packets.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from ipaddress import ip_address, ip_network
from typing import Any, Literal

from muslin.errors import MuslinError
from muslin.kernel import netns
from muslin.lab import build, probe
from muslin.lab.boot import answer
from muslin.lab.probe import Datagram, Endpoint, Pair, Reply
from muslin.lab.state import State
from muslin.lab.topology import Topology
from muslin.model import Address, Prefix

Expected = Literal["own", "node", "nothing"]  # the source address that the target must see
Mark = Literal["own", "node", "refused", "failed"]

# Nobody's: benchmarking (RFC 2544) and a part of the documentation prefix that no lab uses.
STRANGERS: tuple[Address, ...] = (ip_address("198.18.0.99"), ip_address("2001:db8:dead::99"))


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One thing that was tried."""

    what: Literal["connect", "spoof", "unused"]
    source: str
    target: str
    version: int
    mark: Mark
    expected: str
    seen: str
    hint: str = ""

    @property
    def ok(self) -> bool:
        """Whether it went as it should."""
        return self.mark != "failed"


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """Everything that was tried in one lab, in the order of the picture."""

    lab: str
    endpoints: tuple[str, ...]
    findings: tuple[Finding, ...]

    @property
    def ok(self) -> bool:
        """Whether all of it went as it should."""
        return all(f.ok for f in self.findings)

    @property
    def failures(self) -> tuple[Finding, ...]:
        """What did not."""
        return tuple(f for f in self.findings if not f.ok)

    def of(self, what: str) -> tuple[Finding, ...]:
        """The findings of one kind."""
        return tuple(f for f in self.findings if f.what == what)


def check(now: State) -> Report:
    """Try everything; blocks for a second or two.  MuslinError if there is nothing to try."""
    topology = now.topology
    if not now.pods:
        hint = f"muslin lab pod add web --node {topology.of_role('node')[0].name}"
        raise MuslinError(f"lab {now.lab} has no pods to check", hint=hint)
    ends = endpoints(now, topology)
    findings = [*_connects(now, topology, ends), *_spoofs(ends), *_unused(now, topology, ends)]
    names = tuple(e.name for e in ends)
    return Report(lab=now.lab, endpoints=names, findings=tuple(findings))


def endpoints(now: State, topology: Topology) -> tuple[Endpoint, ...]:
    """Pods first, then every host, in the file's order."""
    pods = [
        Endpoint(
            name=p.name,
            kind="pod",
            netns=netns.path_of(build.pod_namespace(now.lab, p.name)),
            addresses=p.addresses,
            node=p.node,
        )
        for p in now.pods
    ]
    hosts = [
        Endpoint(
            name=h.name,
            kind=h.role,
            netns=netns.path_of(build.namespace(now.lab, h.name)),
            addresses=tuple(a.ip for a in h.leg.addresses),
        )
        for h in topology.hosts
    ]
    return (*pods, *hosts)


def expect(topology: Topology, pair: Pair) -> Expected | None:
    """The source address that the target must see; None where the lab promises nothing."""
    source, target = pair.source, pair.target
    if source == target or "pod" not in (source.kind, target.kind):
        return None  # between hosts there is nothing of ours
    other = target if source.kind == "pod" else source
    if other.kind in ("pod", "node", "member"):
        return "own"
    address = other.address(pair.version)
    inside = any(address in p for p in topology.network.estate if p.version == pair.version)
    if source.kind != "pod":
        return "own" if source.kind == "static" else "nothing"
    if inside:
        return "own" if other.kind == "static" else None
    if topology.network.masquerade:
        return "node"
    return "own" if other.kind == "static" else None


# ── connections ─────────────────────────────────────────────────────────────────────────────────


def _connects(now: State, topology: Topology, ends: Sequence[Endpoint]) -> list[Finding]:
    wanted = {
        pair: expected
        for source in ends
        for target in ends
        for version in (4, 6)
        if source.address(version) and target.address(version)
        and (expected := expect(topology, pair := Pair(source, target, version)))
    }  # fmt: skip
    hopeless = [p for p, expected in wanted.items() if expected == "nothing"]
    replies = probe.connect_all(list(wanted), hopeless=hopeless)
    nodes = {e.name: e for e in ends if e.kind == "node"}
    return [judge(now.lab, p, expected, replies[p], nodes) for p, expected in wanted.items()]


def judge(
    lab: str, pair: Pair, expected: Expected, reply: Reply, nodes: Mapping[str, Endpoint]
) -> Finding:
    """What a reply means beside what was expected."""
    source, target, version = pair.source, pair.target, pair.version
    mark: Mark = "failed"
    if expected == "nothing":
        words = "no connection"
        mark = "failed" if reply.seen else "refused"
    elif expected == "node":
        node = nodes[source.node].address(version)
        words = f"{source.node}'s address {node}"
        mark = "node" if reply.seen == node else "failed"
    else:
        # A pod has the one address it was given; a host may choose among its own.
        own = source.address(version) if source.kind == "pod" else reply.own
        words = f"{source.name}'s own address" + (f" {own}" if own else "")
        mark = "own" if reply.seen and reply.seen == own else "failed"
    seen = str(reply.seen) if reply.seen else reply.error
    hint = _hint(lab, pair, expected, reply) if mark == "failed" else ""
    return Finding(
        what="connect", source=source.name, target=target.name, version=version,
        mark=mark, expected=words, seen=seen, hint=hint,
    )  # fmt: skip


def _hint(lab: str, pair: Pair, expected: Expected, reply: Reply) -> str:
    source, target = pair.source, pair.target
    node = source.node or target.node
    if expected == "nothing":
        return (
            f"who told {source.name}, or a router on its way, about pods?"
            f"  muslin lab exec -l {lab} {source.name} -- ip route"
        )
    if reply.seen:
        return f"translated on the way: muslin lab exec -l {lab} {node} -- nft list ruleset"
    return (
        f"muslin lab status {lab}, then muslin lab exec -l {lab} {source.node or source.name}"
        f" -- ip route get {target.address(pair.version)}"
    )


# ── false sources ───────────────────────────────────────────────────────────────────────────────


def _spoofs(ends: Sequence[Endpoint]) -> list[Finding]:
    pods = [e for e in ends if e.kind == "pod"]
    honest, false = [], []
    for source in pods:
        for target in _receivers(source, ends):
            for version in (4, 6):
                own = source.address(version)
                if own and target.address(version):
                    honest.append(Datagram(source, own, target))
                    false += [
                        Datagram(source, claimed, target)
                        for claimed in _false_names(source, target, ends)
                        if claimed.version == version
                    ]
    arrived = probe.send_all([*honest, *false], honest=honest)
    return [*_honest(honest, arrived), *_false(false, arrived)]


def _receivers(source: Endpoint, ends: Sequence[Endpoint]) -> Iterator[Endpoint]:
    """One pod elsewhere, one pod beside it, and its own node."""
    others = [e for e in ends if e.kind == "pod" and e != source]
    yield from [e for e in others if e.node != source.node][:1]
    yield from [e for e in others if e.node == source.node][:1]
    yield from [e for e in ends if e.name == source.node]


def _false_names(source: Endpoint, target: Endpoint, ends: Sequence[Endpoint]) -> list[Address]:
    """Another pod's address, the node's, and a stranger's; never the receiver's own."""
    victim = [e for e in ends if e.kind == "pod" and e not in (source, target)][:1]
    node = [e for e in ends if e.name == source.node and e != target]
    return [*(a for e in (*victim, *node) for a in e.addresses), *STRANGERS]


def _honest(honest: Sequence[Datagram], arrived: set[Datagram]) -> Iterator[Finding]:
    hint = "so the refused ones prove nothing; see the failed connections"
    for d in honest:
        if d not in arrived:
            yield _datagram(d, "failed", "a datagram from its own address", "nothing", hint)


def _false(false: Sequence[Datagram], arrived: set[Datagram]) -> Iterator[Finding]:
    for d in false:
        expected = f"nothing from {d.claimed}"
        if d not in arrived:
            yield _datagram(d, "refused", expected, "nothing", "")
            continue
        what = "rp_filter = 1 on its host end" if d.claimed.version == 4 else "the guard chain"
        hint = f"{what} on {d.source.node} should have dropped it"
        yield _datagram(d, "failed", expected, "it arrived", hint)


def _datagram(d: Datagram, mark: Mark, expected: str, seen: str, hint: str) -> Finding:
    return Finding(
        what="spoof", source=d.source.name, target=d.target.name, version=d.claimed.version,
        mark=mark, expected=expected, seen=seen, hint=hint,
    )  # fmt: skip


# ── addresses nobody has ────────────────────────────────────────────────────────────────────────


def _unused(now: State, topology: Topology, ends: Sequence[Endpoint]) -> list[Finding]:
    """An address that no pod has in every block, and one of every pool that is in no block."""
    pods = [e for e in ends if e.kind == "pod"]
    held = {a for p in pods for a in p.addresses}
    blocks = _blocks([answer(now.lab, host) for host in topology.agents])
    vacant: dict[Address, str] = {}  # and the node whose block it is in
    for block, node in blocks.items():
        # Not the first, which a backend may use itself, nor the last, a broadcast elsewhere.
        free = next((a for n in range(2, 40) if (a := block[-n]) not in held), None)
        vacant |= {free: node} if free else {}
    for pool in topology.pools:
        if not any(pool.cidr[-2] in block for block in blocks):
            vacant[pool.cidr[-2]] = ""
    targets = {
        address: asker
        for address, node in vacant.items()
        if (asker := next((p for p in pods if p.node != node), pods[0])).address(address.version)
    }
    answers = probe.knock(targets)
    return [
        _vacant(targets[address], address, heard, vacant[address])
        for address, heard in answers.items()
    ]


def _blocks(answers: Sequence[Mapping[str, Any]]) -> dict[Prefix, str]:
    """Every block and its node, by what the agents say of themselves and of each other.

    A node whose agent is down still has its blocks, and its peers still know.
    """
    said = [(a["node"], a.get("blocks", ())) for a in answers]
    said += [(peer["name"], peer["blocks"]) for a in answers for peer in a.get("peers", ())]
    return {ip_network(block): node for node, blocks in said for block in blocks}


def _vacant(source: Endpoint, address: Address, heard: str, node: str) -> Finding:
    good = heard in ("unreachable", "silence")
    where = f"the block of {node}" if node else "no block"
    hints = {
        "loop": f"{node or 'a node'} passes it on by its default route: it lacks an unreachable"
        f" route for {'its block' if node else 'the pool'}",
        "somebody": "somebody answers to an address that no pod was given",
    }
    return Finding(
        what="unused", source=source.name, target=f"{address} in {where}", version=address.version,
        mark="refused" if good else "failed", expected="unreachable, or silence", seen=heard,
        hint=hints.get(heard, ""),
    )  # fmt: skip
