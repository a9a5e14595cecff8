"""The life of a lab: up, and down from any state.

    up      intent on disk → namespaces → store → network and pools → agents → all ready
    down    processes → namespaces → directory, each found by what is on disk

`up` writes down what it is about to make before it makes it, so `down` needs
nobody's help: it works after `up` was killed at any instant, and repeating it
is success.  Whatever ends `up` early, Ctrl-C too, takes the lab down again.

The store is an SQLite file, which every namespace sees.  With `etcd` the lab
runs a real one, in a namespace with a network of its own (`mgmt`): agents live
in namespaces of their own, so a loopback address reaches none of them, and the
underlay must be free to fail without taking the store along.
"""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import msgspec

from muslin.errors import KernelError, MuslinError
from muslin.kernel import netns
from muslin.lab import build, state
from muslin.lab.boot import Boot, Say, answer
from muslin.lab.process import stop
from muslin.lab.state import State, StoreKind
from muslin.lab.topology import check_lab_name, parse

# Seconds after which a namespace that still does not say whose it is will not: another lab that
# is coming up takes a few milliseconds between making one and marking it.
SETTLE = 0.25


def _quiet(_: str) -> None:
    pass


def up(
    source: str, *, stem: str, name: str = "", store: StoreKind = "sqlite", say: Say = _quiet
) -> State:
    """Build a lab and wait until every agent is ready; leave nothing behind if that fails."""
    topology = parse(source, stem=stem)
    lab = name or topology.name
    faults: list[str] = []
    check_lab_name(lab, faults)
    if faults:
        raise MuslinError(faults[0])
    require_root()
    with state.locked(lab):
        refuse_existing(lab)
        names = build.namespaces(topology, lab, mgmt=store == "etcd")
        state.refuse_foreign(lab, names)
        now = State(lab=lab, source=source, store=store, namespaces=names)
        try:
            state.save(now)
            say(f"building {len(names)} namespaces")
            build.build(topology, lab, mgmt=store == "etcd")
            boot = Boot(now, say)
            boot.start_store()
            boot.start_agents()
            boot.wait_ready()
            now = msgspec.structs.replace(boot.state, phase="up")
            state.save(now)
        except BaseException:  # Ctrl-C too: a half-built lab is of no use to anybody
            say("taking it down again")
            _tear_down(lab)
            raise
    return now


def down(lab: str, *, say: Say = _quiet) -> bool:
    """Remove a lab in whatever state it is; say whether there was one."""
    require_root()
    with state.locked(lab):
        if state.load(lab) is None:
            return False
        say(f"taking down {lab}")
        _tear_down(lab)
    return True


def down_all(*, say: Say = _quiet) -> list[str]:
    """Remove every lab, and every `mulab-*` namespace that no lab remembers; say what was there.

    A lab whose directory is elsewhere (MUSLIN_LAB_DIR) is somebody else's and stays.
    """
    require_root()
    removed = [lab for lab in state.labs() if down(lab, say=say)]
    stray = [n for n in netns.names() if n.startswith(build.PREFIX) and not _has_owner(n)]
    if stray:
        time.sleep(SETTLE)
        stray = [n for n in stray if not _has_owner(n)]
    for name in stray:
        say(f"removing the namespace {name}, which belongs to no lab")
    build.demolish(stray)
    return removed + stray


def status(lab: str) -> dict[str, Any]:
    """What a lab is doing: its agents' own answers beside what is remembered."""
    now = existing(lab)
    return {
        "lab": lab,
        "phase": now.phase,
        "summary": now.topology.summary,
        "store": now.store,
        "processes": [{"name": p.name, "pid": p.pid, "alive": p.alive} for p in now.processes],
        "agents": [answer(lab, host) for host in now.topology.agents],
        "pods": [
            {"name": p.name, "node": p.node, "addresses": [str(a) for a in p.addresses]}
            for p in now.pods
        ],
    }


def existing(lab: str) -> State:
    """The lab of that name; with an empty name the only one there is."""
    known = state.labs()
    listed = ", ".join(known) or "none"
    if not lab:
        if len(known) != 1:
            problem = "several labs are up" if known else "no lab is up"
            hint = f"name one of: {listed}" if known else "muslin lab up three-nodes"
            raise MuslinError(problem, hint=hint)
        lab = known[0]
    now = state.load(lab)
    if now is None:
        raise MuslinError(f"no lab {lab!r}", hint=f"labs: {listed}")
    return now


def standing(lab: str) -> State:
    """As `existing`, but refuse a lab whose making was cut short."""
    now = existing(lab)
    if now.phase != "up":
        raise MuslinError(f"lab {now.lab} was left half built", hint=f"muslin lab down {now.lab}")
    return now


def place(now: State, name: str) -> str:
    """The path of the namespace of a pod or of any other part of a lab."""
    if now.pod(name):
        return netns.path_of(build.pod_namespace(now.lab, name))
    if name not in now.topology.things:
        known = ", ".join((*now.topology.things, *(p.name for p in now.pods)))
        raise MuslinError(f"lab {now.lab}: nothing is called {name!r}", hint=f"there are: {known}")
    return netns.path_of(build.namespace(now.lab, name))


def refuse_existing(lab: str) -> None:
    """Refuse to build over a lab."""
    now = state.load(lab)
    if now is not None and now.phase == "up":
        raise MuslinError(f"lab {lab} is up already", hint=f"muslin lab down {lab}, or use --name")
    if now is not None:
        raise MuslinError(f"lab {lab} was left half built", hint=f"muslin lab down {lab}")


def require_root() -> None:
    """Refuse early and in words what the kernel would refuse late and in numbers."""
    if os.geteuid() != 0:
        raise MuslinError(
            "a lab needs root: it makes network namespaces, bridges and veths",
            hint="run it with sudo; nothing outside namespaces called mulab-* is touched",
        )


def _has_owner(namespace: str) -> bool:
    """Whether it belongs to a lab: to one of ours in its making, or to one kept elsewhere."""
    owner = build.owner(namespace)
    if owner and owner != str(state.root()):
        return Path(owner).exists()
    known = [s for s in map(state.load, state.labs()) if s]
    return any(
        namespace in s.namespaces
        or namespace in (build.pod_namespace(s.lab, p.name) for p in s.pods)
        for s in known
    )


def _tear_down(lab: str) -> None:
    now = state.load(lab)
    if now is not None:
        pods = [build.pod_namespace(lab, p.name) for p in now.pods]
        names = [*pods, *now.namespaces]
        stop(now.processes, within=_identities(names))
        build.demolish(names)
    state.forget(lab)


def _identities(names: list[str]) -> list[tuple[int, int]]:
    found = []
    for name in names:
        try:
            found.append(netns.identity(netns.path_of(name)))
        except KernelError:  # not made yet, or gone already
            continue
    return found
