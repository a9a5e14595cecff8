"""How packets for a pod reach its node: one module here per answer.

A backend is a pure function from facts (`Site`) to kernel objects (`Plan`).
It opens no socket and keeps no state, so its whole behaviour can be read as
text (`muslin plan`) and compared in tests.

To add one: put a module here with one subclass of `Backend`, its options as
dataclass fields and its purpose, needs and cost in the module's docstring.
`load` finds it by file name, the conformance suite and `make golden` too, and
`docs/backends.md` is generated from the docstring.
"""

from __future__ import annotations

import functools
import importlib
import pkgutil
from abc import ABC, abstractmethod
from collections.abc import Mapping

from muslin.errors import ConfigError
from muslin.model import Network, Nic, Peer, Site, convert
from muslin.plan import pod
from muslin.plan.objects import Plan


class Backend(ABC):
    """The contract.  Subclasses are frozen dataclasses whose fields are their options.

    All methods are pure, and equal arguments give equal plans: the agent
    calls them on every change anywhere and applies only the difference.
    """

    def overhead(self, site: Site) -> int:
        """Bytes of every packet that the backend keeps for itself; the pods' MTU is less by it."""
        return 0

    def announce(self, site: Site, before: Mapping[str, str]) -> dict[str, str]:
        """The facts about this node that its peers' `peer()` will read in `node.data`.

        `before` is what the store has from an earlier life of this node: a
        value that peers hold in their kernels (a MAC) must be kept.
        """
        return {}

    def node(self, site: Site) -> Plan:
        """What this node needs whether or not it has peers: a tunnel device, say."""
        return frozenset()

    @abstractmethod
    def peer(self, site: Site, peer: Peer) -> Plan:
        """What this node needs to reach `peer` and the pods in its blocks.

        Raise Unreachable, naming the peer, when it cannot be done; the agent
        reports it and goes on with the others.
        """

    def nic(self, nic: Nic) -> Plan:
        """One pod's interface: by default a routed veth pair (plan/pod.py)."""
        return pod.routed(nic)


@functools.cache  # an ADD asks, and the answer is a directory listing
def names() -> tuple[str, ...]:
    """Every backend there is, by its module's name."""
    return tuple(sorted(m.name for m in pkgutil.iter_modules(__path__)))


def load(network: Network) -> Backend:
    """The backend a network asks for, its options checked; ConfigError names what is wrong."""
    subject = f"network {network.name}"
    if network.backend not in names():
        known = ", ".join(names())
        raise ConfigError(subject, [f"backend {network.backend!r} is not one of: {known}"])
    kind = _class(network.backend)
    unknown = sorted(set(network.options) - set(getattr(kind, "__dataclass_fields__", ())))
    if unknown:
        known = ", ".join(getattr(kind, "__dataclass_fields__", ())) or "none"
        faults = [f"unknown option {u!r} (this backend has: {known})" for u in unknown]
        raise ConfigError(f"{subject}, backend {network.backend}", faults)
    return convert(kind, network.options, subject=f"{subject}, backend {network.backend}")


@functools.cache
def _class(name: str) -> type[Backend]:
    module = importlib.import_module(f"{__name__}.{name}")
    return next(
        c for c in vars(module).values()
        if isinstance(c, type) and issubclass(c, Backend) and c.__module__ == module.__name__
    )  # fmt: skip
