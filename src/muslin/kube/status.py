"""`status` of our objects: what the controller and the agents found, for people and for scripts.

Only Kubernetes has it; nothing reads a decision out of it.  Each kind has
`conditions`, one of which is Ready.
"""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Literal

import msgspec

MOST = 2**53 - 1  # what JSON readers keep exactly; an IPv6 pool has more addresses than that


class Condition(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """One statement about an object (metav1.Condition)."""

    type: str  # Ready, or another word in CamelCase
    status: Literal["True", "False", "Unknown"]  # whether it is so
    observed_generation: int = 0  # of the object, when this was found
    last_transition_time: Annotated[datetime, msgspec.Meta(tz=True)]  # when status last changed
    reason: str  # one word in CamelCase, for scripts
    message: str  # what is wrong and the mend, for people


class Status(msgspec.Struct, frozen=True, kw_only=True):
    """What was found about an object."""

    conditions: tuple[Condition, ...] = ()  # by type; Ready is the summary


class NetworkStatus(Status, frozen=True, kw_only=True):
    """How far a network is."""

    nodes: int = 0  # that take part in it
    ready: int = 0  # of these, whose agents have all of it in their kernels


class PoolStatus(Status, frozen=True, kw_only=True):
    """How full a pool is; counts end at 9007199254740991 (2^53-1)."""

    block: int = 0  # prefix length of its blocks, default applied
    size: int = 0  # addresses in the range
    blocks: int = 0  # that the range is cut into
    held: int = 0  # blocks that nodes hold
    free: int = 0  # blocks that nobody holds and nothing excludes


class NodeStatus(Status, frozen=True, kw_only=True):
    """How a node's agent is."""

    agent: str = ""  # its version
    mtu: int = 0  # of the pods' interfaces, bytes
