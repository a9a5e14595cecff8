"""A golden's in.toml, read into the values that the pure functions take.

[site]      as muslin.model.Site: me, host, network, pools, blocks, peers
[nic]       as muslin.model.Nic: the case is one pod's interface
[before]    fields of the site as they were: the case is a change of plan
"""

from __future__ import annotations

import tomllib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from muslin.backend import load
from muslin.model import Nic, Peer, Site, convert
from muslin.plan import node, pod
from muslin.plan.diff import diff
from muslin.plan.objects import Plan
from muslin.plan.render import render, render_changes

HERE = Path(__file__).parent


@dataclass(frozen=True)
class Case:
    """One golden; its first directory says which function it shows."""

    path: Path  # of in.toml

    @property
    def name(self) -> str:
        return "/".join(self.path.parent.relative_to(HERE).parts)

    @property
    def area(self) -> str:
        return self.path.parent.parent.name

    @cached_property
    def given(self) -> dict[str, Any]:
        return tomllib.loads(self.path.read_text())

    @cached_property
    def nic(self) -> Nic | None:
        found = self.given.get("nic")
        return convert(Nic, found, subject=self.name) if found else None

    @cached_property
    def site(self) -> Site:
        return convert(Site, self.given["site"], subject=self.name)

    @cached_property
    def site_before(self) -> Site | None:
        if "before" not in self.given:
            return None
        peers = convert(tuple[Peer, ...], self.given["before"]["peers"], subject=self.name)
        return replace(self.site, peers=peers)

    def plan(self) -> Plan:
        """What shall be in the end."""
        return pod.routed(self.nic) if self.nic else self._plan(self.site)

    def plan_before(self) -> Plan:
        """What is there at first."""
        return self._plan(self.site_before) if self.site_before else frozenset()

    def text(self) -> str:
        if self.site_before:
            return render_changes(diff(self.plan(), self.plan_before()))
        return render(self.plan())

    def expected(self) -> str:
        return self.path.with_name("plan.txt").read_text()

    def _plan(self, site: Site) -> Plan:
        if self.area == "node":
            return node.base([site])
        backend = load(site.network)
        return backend.node(site).union(*(backend.peer(site, p) for p in site.peers))


def all_cases() -> Iterator[Case]:
    """Every golden there is, by name."""
    for path in sorted(HERE.glob("*/*/in.toml")):
        yield Case(path)
