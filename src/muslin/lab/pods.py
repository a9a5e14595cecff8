"""Pods of a lab: a namespace each, attached by the real CNI executable as a runtime would.

The lab plays the runtime's part: it reads the configuration that
`cni.install` wrote, passes one plugin's part of it on standard input, and
believes the printed result and nothing else.
"""

from __future__ import annotations

import contextlib
import subprocess
from ipaddress import ip_interface
from typing import Any

import msgspec

from muslin.cni.install import CONFLIST, PLUGIN
from muslin.errors import MuslinError
from muslin.kernel import netns
from muslin.lab import build, state
from muslin.lab.boot import cni_of, environment
from muslin.lab.cluster import existing, require_root, standing
from muslin.lab.state import Pod, State
from muslin.lab.topology import POD_NAME

IFNAME = "eth0"
TIMEOUT = 60.0  # seconds for one CNI call; the plugin's own deadline comes first


def add(lab: str, name: str, node: str) -> Pod:
    """Make a pod on a node and attach it; leave nothing behind if that fails."""
    require_root()
    with state.locked(lab):
        now = standing(lab)
        _check(now, name, node)
        space = build.pod_namespace(lab, name)
        state.refuse_foreign(lab, (space,))
        pod = Pod(name=name, node=node, container=f"{lab}.{name}")
        now = _remember(now, pod)  # before the namespace: a crash must not lose it
        try:
            build.create(space)
            result = _cni(now, "ADD", pod)
            found = tuple(ip_interface(ip["address"]).ip for ip in result.get("ips", ()))
            pod = msgspec.structs.replace(pod, addresses=found)
            _remember(now, pod)
        except BaseException:  # Ctrl-C too
            # As a runtime does.  With the agent down DEL fails as well; what ADD had done by then,
            # if anything, the agent finds without its namespace when it comes back.
            with contextlib.suppress(MuslinError):
                _cni(now, "DEL", pod)
            _forget(now, pod)
            raise
    return pod


def delete(lab: str, name: str) -> None:
    """Detach a pod and remove its namespace."""
    require_root()
    with state.locked(lab):
        now = existing(lab)
        pod = now.pod(name)
        if pod is None:
            known = ", ".join(p.name for p in now.pods) or "none"
            raise MuslinError(f"lab {lab}: no pod {name!r}", hint=f"pods: {known}")
        _cni(now, "DEL", pod)
        _forget(now, pod)


def _check(now: State, name: str, node: str) -> None:
    topology = now.topology
    host = topology.host(node)
    nodes = ", ".join(h.name for h in topology.of_role("node"))
    if not POD_NAME.fullmatch(name):
        rule = "a lower-case letter, then at most 19 letters, digits or '-'"
        raise MuslinError(f"pod name {name!r}: {rule}")
    if name in topology.things or name == build.MGMT:
        raise MuslinError(f"lab {now.lab}: {name!r} names a part of the lab itself")
    if now.pod(name):
        raise MuslinError(f"lab {now.lab}: there is a pod {name} already")
    if host is None or host.role != "node":
        raise MuslinError(f"lab {now.lab}: {node!r} is not a node", hint=f"nodes: {nodes}")


def _remember(now: State, pod: Pod) -> State:
    others = tuple(p for p in now.pods if p.name != pod.name)
    now = msgspec.structs.replace(now, pods=(*others, pod))
    state.save(now)
    return now


def _forget(now: State, pod: Pod) -> None:
    netns.delete(build.pod_namespace(now.lab, pod.name))
    others = tuple(p for p in now.pods if p.name != pod.name)
    state.save(msgspec.structs.replace(now, pods=others))


def _cni(now: State, verb: str, pod: Pod) -> dict[str, Any]:
    where = cni_of(now.lab, pod.node)
    network = msgspec.json.decode((where / CONFLIST).read_bytes())
    config = network["plugins"][0] | {"cniVersion": "1.1.0", "name": network["name"]}
    call = {
        "CNI_COMMAND": verb,
        "CNI_CONTAINERID": pod.container,
        "CNI_NETNS": netns.path_of(build.pod_namespace(now.lab, pod.name)),
        "CNI_IFNAME": IFNAME,
        "CNI_PATH": str(where),
    }
    done = subprocess.run(
        [where / PLUGIN], input=msgspec.json.encode(config), capture_output=True,
        env=environment() | call, timeout=TIMEOUT, check=False,
    )  # fmt: skip
    try:
        answer: dict[str, Any] = msgspec.json.decode(done.stdout) if done.stdout.strip() else {}
    except msgspec.DecodeError as e:
        raise MuslinError(f"pod {pod.name}: the plugin printed no JSON: {done.stdout!r}") from e
    if done.returncode:
        said = answer.get("msg") or done.stderr.decode(errors="replace").strip()
        details = f" ({answer['details']})" if answer.get("details") else ""
        log = state.directory(now.lab) / f"{pod.node}.log"
        raise MuslinError(
            f"pod {pod.name}: {verb} on {pod.node} failed: {said}{details}",
            hint=f"the agent's log is {log}",
        )
    return answer
