"""Server-side printing: the columns and cells behind `kubectl get`."""

from __future__ import annotations

import re
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

from .encode import Json
from .kinds import Kind

_STEP = re.compile(
    r"\.(?P<name>[\w-]+)|\['(?P<quoted>[^']+)'\]|\[(?P<index>\d+|\*)\]"
    r"|\[\?\(@\.(?P<key>[\w.]+)\s*==\s*['\"](?P<want>[^'\"]*)['\"]\)\]|\.'(?P<dotted>[^']+)'"
)


def lookup(obj: Any, path: str) -> list[Any]:
    """The values at a JSONPath, as far as printer columns use it."""
    path = path.strip().removeprefix("{").removesuffix("}")
    path = path.replace("\\.", "\0")
    values = [obj]
    for step in _STEP.finditer(path if path[:1] in ".[" else "." + path):
        values = [below for value in values for below in _stepped(value, step)]
    return values


def _stepped(value: Any, step: re.Match[str]) -> list[Any]:
    name = step["name"] or step["quoted"] or step["dotted"]
    if name is not None:
        name = name.replace("\0", ".")
        return [value[name]] if isinstance(value, dict) and name in value else []
    if not isinstance(value, list):
        return []
    if step["index"] == "*":
        return value
    if step["index"] is not None:
        return value[int(step["index"]) : int(step["index"]) + 1]
    return [item for item in value if str(item.get(step["key"])) == step["want"]]


def age(moment: Any) -> str:
    """A time as `kubectl get` shows it: 5s, 3m12s, 2h, 4d."""
    if not isinstance(moment, str):
        return "<unknown>"
    try:
        then = datetime.fromisoformat(moment)
    except ValueError:
        return "<invalid>"
    seconds = int((datetime.now(UTC) - then).total_seconds())
    if seconds < 0:
        return "0s" if seconds > -2 else "<invalid>"
    if seconds < 120:
        return f"{seconds}s"
    minutes = seconds // 60
    if minutes < 10:
        return f"{minutes}m{seconds % 60}s" if seconds % 60 else f"{minutes}m"
    if minutes < 180:
        return f"{minutes}m"
    hours = minutes // 60
    if hours < 8:
        return f"{hours}h{minutes % 60}m" if minutes % 60 else f"{hours}h"
    if hours < 48:
        return f"{hours}h"
    return f"{hours // 24}d"


Cell = Callable[[Json], Any]


def _at(path: str, missing: Any = "<none>") -> Cell:
    def cell(obj: Json) -> Any:
        found = lookup(obj, path)
        return found[0] if found and found[0] not in (None, "") else missing

    return cell


def _pod_ready(obj: Json) -> str:
    statuses = obj["status"].get("containerStatuses") or []
    ready = sum(bool(one.get("ready")) for one in statuses)
    return f"{ready}/{len(obj['spec'].get('containers') or [])}"


def _pod_status(obj: Json) -> str:
    if obj["metadata"].get("deletionTimestamp"):
        return "Terminating"
    for one in obj["status"].get("containerStatuses") or []:
        state = one.get("state") or {}
        for name in ("waiting", "terminated"):
            if name in state:
                return str(state[name].get("reason") or name)
    return str(obj["status"].get("reason") or obj["status"].get("phase", "Unknown"))


def _restarts(obj: Json) -> str:
    return str(sum(one["restartCount"] for one in obj["status"].get("containerStatuses") or []))


def _node_status(obj: Json) -> str:
    conditions = {one["type"]: one["status"] for one in obj["status"].get("conditions") or []}
    ready = {"True": "Ready", "False": "NotReady"}.get(conditions.get("Ready", ""), "Unknown")
    return ready + (",SchedulingDisabled" if obj["spec"].get("unschedulable") else "")


def _node_address(kind: str) -> Cell:
    return lambda obj: next(
        (one["address"] for one in obj["status"].get("addresses") or [] if one["type"] == kind),
        "<none>",
    )


def _ports(obj: Json) -> str:
    return ",".join(f"{p['port']}/{p['protocol']}" for p in obj["spec"].get("ports") or []) or (
        "<none>"
    )


def _slice_ports(obj: Json) -> str:
    return ",".join(str(port.get("port")) for port in obj.get("ports") or []) or "<unset>"


def _slice_addresses(obj: Json) -> str:
    found = [one for point in obj.get("endpoints") or [] for one in point["addresses"]]
    more = f" + {len(found) - 3} more..." if len(found) > 3 else ""
    return ",".join(found[:3]) + more or "<unset>"


def _selector(obj: Json) -> str:
    labels = (obj["spec"].get("podSelector") or {}).get("matchLabels") or {}
    return ",".join(f"{k}={v}" for k, v in labels.items()) or "<none>"


def _of_replicas(obj: Json) -> str:
    return f"{obj['status'].get('readyReplicas', 0)}/{obj['spec'].get('replicas', 0)}"


_NAME: tuple[str, int, Cell] = ("Name", 0, _at(".metadata.name"))
_AGE: tuple[str, int, Cell] = ("Age", 0, lambda o: age(o["metadata"].get("creationTimestamp")))
# Kind to (column, priority, cell) between Name and Age; priority 1 is for `-o wide`.
_COLUMNS: dict[str, tuple[tuple[str, int, Cell], ...]] = {
    "Pod": (
        ("Ready", 0, _pod_ready),
        ("Status", 0, _pod_status),
        ("Restarts", 0, _restarts),
        _AGE,
        ("IP", 1, _at(".status.podIP")),
        ("Node", 1, _at(".spec.nodeName")),
        ("Nominated Node", 1, _at(".status.nominatedNodeName")),
        ("Readiness Gates", 1, lambda obj: "<none>"),
    ),
    "Node": (
        ("Status", 0, _node_status),
        ("Roles", 0, lambda obj: "<none>"),
        _AGE,
        ("Version", 0, _at(".status.nodeInfo.kubeletVersion", "")),
        ("Internal-IP", 1, _node_address("InternalIP")),
    ),
    "Namespace": (("Status", 0, _at(".status.phase", "")), _AGE),
    "Service": (
        ("Type", 0, _at(".spec.type")),
        ("Cluster-IP", 0, _at(".spec.clusterIP")),
        ("External-IP", 0, lambda obj: "<none>"),
        ("Port(s)", 0, _ports),
        _AGE,
    ),
    "EndpointSlice": (
        ("AddressType", 0, _at(".addressType")),
        ("Ports", 0, _slice_ports),
        ("Endpoints", 0, _slice_addresses),
        _AGE,
    ),
    "ConfigMap": (("Data", 0, lambda obj: len(obj.get("data") or {})), _AGE),
    "Secret": (
        ("Type", 0, _at(".type")),
        ("Data", 0, lambda obj: len(obj.get("data") or {})),
        _AGE,
    ),
    "NetworkPolicy": (("Pod-Selector", 0, _selector), _AGE),
    "Lease": (("Holder", 0, _at(".spec.holderIdentity", "")), _AGE),
    "Deployment": (
        ("Ready", 0, _of_replicas),
        ("Up-to-date", 0, _at(".status.updatedReplicas", 0)),
        ("Available", 0, _at(".status.availableReplicas", 0)),
        _AGE,
    ),
    "StatefulSet": (("Ready", 0, _of_replicas), _AGE),
    "CustomResourceDefinition": (("Created At", 0, _at(".metadata.creationTimestamp")),),
    "Event": (
        ("Last Seen", 0, lambda o: age(o.get("lastTimestamp") or o.get("eventTime"))),
        ("Type", 0, _at(".type", "")),
        ("Reason", 0, _at(".reason", "")),
        ("Object", 0, _at(".involvedObject.name", "")),
        ("Message", 0, _at(".message", "")),
    ),
}


def columns(kind: Kind) -> list[Json]:
    """A table's column definitions."""
    name = {"name": "Name", "type": "string", "format": "name", "priority": 0}
    name["description"] = "Name must be unique within a namespace."
    if kind.custom:
        return [name, *(_custom_column(one) for one in kind.crd.columns)]
    rest = _COLUMNS.get(kind.kind, (_AGE,))
    return [name, *(_column(title, priority) for title, priority, _ in rest)]


def _column(title: str, priority: int) -> Json:
    return {
        "name": title,
        "type": "string",
        "format": "",
        "description": "",
        "priority": priority,
    }


def _custom_column(one: Json) -> Json:
    return {
        "name": one["name"],
        "type": one["type"],
        "format": one.get("format", ""),
        "description": one.get("description", ""),
        "priority": one.get("priority", 0),
    }


def row(kind: Kind, obj: Json) -> list[Any]:
    """One object's cells."""
    name = obj["metadata"]["name"]
    if not kind.custom:
        return [name, *(cell(obj) for _, _, cell in _COLUMNS.get(kind.kind, (_AGE,)))]
    return [name, *(_custom_cell(one, obj) for one in kind.crd.columns)]


def _custom_cell(one: Json, obj: Json) -> Any:
    found = lookup(obj, one["jsonPath"])
    if not found or found[0] is None:
        return None
    if one["type"] == "date":
        return age(found[0])
    if one["type"] == "string":
        return " ".join(value if isinstance(value, str) else _compact(value) for value in found)
    return found[0]


def _compact(value: Any) -> str:
    from .encode import encode

    return encode(value).decode()
