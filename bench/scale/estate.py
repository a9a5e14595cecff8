"""A large cluster as values: which nodes, blocks, pods and services, and how long they are watched.

What the objects of these look like is here too.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Interface, IPv4Network
from typing import Any

from muslin.kube.pauses import AGENTS
from muslin.model import Block, Network, Node, Pool
from muslin.store.promises import LABEL

Json = dict[str, Any]

SYSTEM = "muslin-system"
APPS = "apps"  # the namespace of all pods and services
OURS = 0  # the node with a real agent
UNDERLAY = int(IPv4Address("172.16.0.1"))
GATEWAY = IPv4Address("172.31.255.254")
PODS = IPv4Network("10.0.0.0/8")
POOL = Pool(name="four", cidr=PODS, cooldown=0.5)
IMAGES = 50  # in the status of a Node: a kubelet's default (nodeStatusMaxImages)
BEYOND = 100_000  # the first place in the pool that no node holds at the beginning
BEAT = 300.0  # seconds between a kubelet's reports (nodeStatusReportFrequency)


@dataclass(frozen=True, slots=True, kw_only=True)
class Size:
    """How large."""

    nodes: int = 1000
    pods: int = 30  # on each node
    own: int = 110  # on the one with the agent: a kubelet's default limit
    services: int = 10_000

    @property
    def wishing(self) -> int:
        """How many of `own` ask for something of ours by annotation."""
        return self.own // 5


@dataclass(frozen=True, slots=True, kw_only=True)
class Length:
    """What is measured, and for how many seconds."""

    size: Size
    backends: tuple[str, ...]
    holding: tuple[int, ...]  # numbers of nodes
    idle: float
    churn: float
    stay: float  # of what comes, until it goes
    pods_rate: float  # a second, elsewhere, beside one agent
    lives: int  # of pods, beside the controller
    spread: float  # of the agents' lists after a restart
    settle: float  # before a restart: a watch that ends sooner is tried again more slowly
    down: float  # how long there is no API server
    steady: float  # without a lost watch, after which a storm is over
    pace: float  # between the starts of two agents of the crowd
    after: float  # the last change: what follows from it is written


FULL = Length(
    size=Size(), backends=("vxlan", "hostgw"), holding=(1000, 3000, 10_000), idle=10.0, churn=40.0,
    stay=3.0, pods_rate=10.0, lives=3000, spread=AGENTS, settle=6.0, down=2.0,
    steady=3.0, pace=0.04, after=2.0,
)  # fmt: skip
QUICK = Length(
    size=Size(nodes=100, pods=10, own=20, services=200), backends=("vxlan",), holding=(100,),
    idle=0.5, churn=3.0, stay=0.5, pods_rate=20.0, lives=90, spread=1.5, settle=0.5, down=0.2,
    steady=1.0, pace=0.01, after=1.2,
)  # fmt: skip


def name(node: int) -> str:
    """What a node is called."""
    return f"node-{node:05d}"


def underlay(node: int) -> IPv4Interface:
    """Its address; all are on one link."""
    return IPv4Interface((UNDERLAY + node, 12))


def network(backend: str) -> Network:
    """The cluster's one network; vxlan with every peer behind the tunnel, as across racks."""
    options = {"direct": "never"} if backend == "vxlan" else {}
    return Network(name="default", backend=backend, pools=(POOL.name,), options=options)


def node(number: int) -> Node:
    """A node as its agent publishes it."""
    digest = hashlib.blake2b(f"vtep default/{name(number)}".encode(), digest_size=5).digest()
    mac = "0e:" + ":".join(f"{b:02x}" for b in digest)
    return Node(
        name=name(number),
        addresses=(underlay(number),),
        mtu=1500,
        uplink="eth0",
        data={"default": {"mac": mac}},
    )


def block(node: int, place: int) -> Block:
    """The block at a place of the pool, held by a node."""
    base = int(PODS.network_address) + place * 64
    return Block(pool=POOL.name, cidr=IPv4Network((base, 26)), node=name(node))


def lease(node: int) -> str:
    """What the records of a node live under."""
    return f"muslin-{node:016x}"


def labels(node: int) -> dict[str, str]:
    """What says so on an object."""
    return {LABEL: lease(node)}


def lease_object(node: int) -> Json:
    """The Lease of a node's agent, renewed just now."""
    when = "2026-01-01T00:00:00.000000Z"
    return {
        "metadata": {"name": lease(node), "labels": {"muslin.io/promise": "true"}},
        "spec": {"leaseDurationSeconds": 86400, "acquireTime": when, "renewTime": when},
    }


def ready() -> Json:
    """The status that an agent that serves writes."""
    said = {"type": "Ready", "status": "True", "reason": "Serving", "message": "pods are served"}
    said["lastTransitionTime"] = "2026-01-01T00:00:00Z"
    return {"status": {"conditions": [said], "agent": "1", "mtu": 1450}}


def images() -> list[Json]:
    """What makes a core Node large."""
    return [
        {
            "names": [
                f"registry.example/team-{i}/service@sha256:{i:064x}",
                f"registry.example/team-{i}/service:v1.{i}.0",
            ],
            "sizeBytes": 100_000_000 + i,
        }
        for i in range(IMAGES)
    ]


def services(count: int) -> Iterator[Json]:
    """Services of one port."""
    ports = [{"name": "http", "port": 80, "targetPort": 8080}]
    for i in range(count):
        spec = {"selector": {"app": f"a{i}"}, "ports": ports}
        yield {"metadata": {"name": f"svc-{i}"}, "spec": spec}
