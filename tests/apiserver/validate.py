"""What a real server would refuse of built-in objects, as far as this project writes them.

Not covered: most of it.  Pods' images, probes and volumes, immutable fields of pods and
services, quantities.  What is here is what a client of ours can get wrong.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from ipaddress import ip_address, ip_network
from typing import Any

from .encode import Json
from .kinds import Kind
from .status import ApiError, Fault, bad_request, quoted

_MICRO = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}(Z|[+-]\d\d:\d\d)")
_SECONDS = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?(Z|[+-]\d\d:\d\d)")
_MICRO_FIELDS = {
    "Lease": (("spec", "renewTime"), ("spec", "acquireTime")),
    "Event": (("eventTime",),),
}


def readable(kind: Kind, obj: Json) -> None:
    """Refuse with 400 what Go's types could not read."""
    for path in _MICRO_FIELDS.get(kind.kind, ()):
        value: Any = obj
        for part in path:
            value = value.get(part) if isinstance(value, dict) else None
        if value is not None and not _MICRO.fullmatch(str(value)):
            raise _unreadable(kind, str(value))
    for name in ("labels", "annotations"):
        for value in ((obj.get("metadata") or {}).get(name) or {}).values():
            if not isinstance(value, str):
                kinds = {bool: "bool", dict: "object", list: "array"}
                word = kinds.get(type(value), "number")
                raise bad_request(
                    f'{kind.kind} in version "{kind.version}" cannot be handled as a {kind.kind}: '
                    f"json: cannot unmarshal {word} into Go struct field "
                    f"ObjectMeta.metadata.{name} of type string"
                )


def _unreadable(kind: Kind, value: str) -> ApiError:
    layout = "2006-01-02T15:04:05.000000Z07:00"
    rest = re.sub(r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d", "", value)
    return bad_request(
        f'{kind.kind} in version "{kind.version}" cannot be handled as a {kind.kind}: parsing '
        f'time "{value}" as "{layout}": cannot parse "{rest}" as ".000000"'
    )


def faults(kind: Kind, obj: Json) -> list[Fault]:
    check = _CHECKS.get(kind.kind)
    return list(check(obj)) if check else []


def _required(obj: Json, *paths: str) -> Iterator[Fault]:
    for path in paths:
        value: Any = obj
        for part in path.split("."):
            value = value.get(part) if isinstance(value, dict) else None
        if value in (None, "", [], {}):
            yield Fault("FieldValueRequired", path)


def _pod(obj: Json) -> Iterator[Fault]:
    yield from _required(obj, "spec.containers")
    for number, container in enumerate(obj["spec"].get("containers") or ()):
        for name in ("name", "image"):
            if not container.get(name):
                yield Fault("FieldValueRequired", f"spec.containers[{number}].{name}")


def _service(obj: Json) -> Iterator[Fault]:
    spec = obj["spec"]
    if spec["type"] != "ExternalName" and spec.get("clusterIP") != "None":
        yield from _required(obj, "spec.ports")
    for number, port in enumerate(spec.get("ports") or ()):
        if not 0 < (port.get("port") or 0) < 65536:
            detail = f"{quoted(port.get('port', 0))}: must be between 1 and 65535, inclusive"
            yield Fault("FieldValueInvalid", f"spec.ports[{number}].port", detail)
        if len(spec["ports"]) > 1 and not port.get("name"):
            yield Fault("FieldValueRequired", f"spec.ports[{number}].name")


def _slice(obj: Json) -> Iterator[Fault]:
    yield from _required(obj, "addressType")
    if obj["addressType"] not in ("IPv4", "IPv6", "FQDN"):
        allowed = '"FQDN", "IPv4", "IPv6"'
        detail = f"{quoted(obj['addressType'])}: supported values: {allowed}"
        yield Fault("FieldValueNotSupported", "addressType", detail)
    for number, endpoint in enumerate(obj.get("endpoints") or ()):
        path = f"endpoints[{number}].addresses"
        if not endpoint.get("addresses"):
            yield Fault("FieldValueRequired", path, "must contain at least 1 address")
        for place, address in enumerate(endpoint.get("addresses") or ()):
            if obj["addressType"] != "FQDN" and not _is_address(address):
                detail = f"{quoted(address)}: must be a valid IP address, (e.g. 10.9.8.7 or "
                detail += "2001:db8::ffff)"
                yield Fault("FieldValueInvalid", f"{path}[{place}]", detail)


def _is_address(text: str) -> bool:
    try:
        ip_address(text)
    except ValueError:
        return False
    return True


def _network_policy(obj: Json) -> Iterator[Fault]:
    for way, peers in (("ingress", "from"), ("egress", "to")):
        for number, rule in enumerate(obj["spec"].get(way) or ()):
            for place, peer in enumerate(rule.get(peers) or ()):
                block = peer.get("ipBlock")
                path = f"spec.{way}[{number}].{peers}[{place}].ipBlock.cidr"
                if block and not _is_network(block.get("cidr", "")):
                    detail = f"{quoted(block.get('cidr', ''))}: must be a valid CIDR value, "
                    detail += "(e.g. 10.9.8.0/24 or 2001:db8::/64)"
                    yield Fault("FieldValueInvalid", path, detail)


def _is_network(text: str) -> bool:
    try:
        ip_network(text, strict=False)
    except ValueError:
        return False
    return "/" in text


def _event(obj: Json) -> Iterator[Fault]:
    about = obj.get("involvedObject") or {}
    namespace = obj["metadata"].get("namespace", "")
    if about.get("namespace", "") != namespace and (
        about.get("namespace") or namespace != "default"
    ):
        detail = f"{quoted(about.get('namespace', ''))}: does not match event.namespace"
        yield Fault("FieldValueInvalid", "involvedObject.namespace", detail)
    if obj.get("eventTime"):
        yield from _required(obj, "reportingComponent", "reportingInstance", "action", "reason")


def _lease(obj: Json) -> Iterator[Fault]:
    seconds = obj["spec"].get("leaseDurationSeconds")
    if seconds is not None and seconds <= 0:
        detail = f"{seconds}: must be greater than 0"
        yield Fault("FieldValueInvalid", "spec.leaseDurationSeconds", detail)
    holder = obj["spec"].get("holderIdentity")
    if holder == "" and "spec" in obj:
        yield Fault("FieldValueInvalid", "spec.holderIdentity", '"": must not be empty')


def _role_binding(obj: Json) -> Iterator[Fault]:
    yield from _required(obj, "roleRef.kind", "roleRef.name")
    for number, subject in enumerate(obj.get("subjects") or ()):
        if subject.get("kind") == "ServiceAccount" and not subject.get("namespace"):
            yield Fault("FieldValueRequired", f"subjects[{number}].namespace")


def _workload(obj: Json) -> Iterator[Fault]:
    yield from _required(obj, "spec.selector", "spec.template.spec.containers")


_CHECKS: dict[str, Callable[[Json], Iterator[Fault]]] = {
    "Pod": _pod,
    "Service": _service,
    "EndpointSlice": _slice,
    "NetworkPolicy": _network_policy,
    "Event": _event,
    "Lease": _lease,
    "RoleBinding": _role_binding,
    "ClusterRoleBinding": _role_binding,
    "Deployment": _workload,
    "StatefulSet": _workload,
    "DaemonSet": _workload,
}
