"""What a store's URL and options mean.  Pure: nothing is opened and no file is read.

    memory:                                   nothing outlives the process
    sqlite:/path/file.db                      one machine
    etcd://host:port[,host2:port2][/prefix]   a cluster
    kubernetes:                               the API server, from within a pod
    kubernetes:/path/kubeconfig               the same from elsewhere

Secrets and certificates are options beside the URL (`ca`, `cert`, `key`,
`user`, `password`; etcd only), because a URL ends up in logs and process
lists.  Without a `ca` or `cert` the connection is not encrypted.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from muslin.errors import ConfigError

FORMS = (
    "memory:  sqlite:/path/file.db  etcd://host:port[,host2:port2][/prefix]"
    "  kubernetes:[/path/kubeconfig]"
)
NAMESPACE = "muslin-system"
ETCD_PORT = 2379  # IANA: etcd-client
ETCD_PREFIX = "/muslin/"

_HOST = re.compile(r"(?P<host>\[[0-9a-fA-F:.]+\]|[A-Za-z0-9._-]+)(:(?P<port>[0-9]{1,5}))?")
_OPTIONS = {
    "etcd": ("ca", "cert", "key", "user", "password"),
    "kubernetes": ("context", "namespace"),
}


@dataclass(frozen=True, slots=True)
class MemoryAt:
    """`memory:`."""


@dataclass(frozen=True, slots=True)
class SqliteAt:
    """`sqlite:`: an absolute path."""

    path: Path


@dataclass(frozen=True, slots=True, kw_only=True)
class EtcdAt:
    """`etcd:`: the members in the order to try them, the keys' prefix, and how to be let in."""

    members: tuple[str, ...]  # host:port
    prefix: str = ETCD_PREFIX
    ca: str = ""  # paths of PEM files
    cert: str = ""
    key: str = ""
    user: str = ""
    password: str = field(default="", repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class KubernetesAt:
    """`kubernetes:`: which kubeconfig, or None for the pod's service account."""

    kubeconfig: Path | None = None
    context: str = ""  # "": the kubeconfig's current one
    namespace: str = NAMESPACE


Place = MemoryAt | SqliteAt | EtcdAt | KubernetesAt


def parse(url: str, options: Mapping[str, object] | None = None) -> Place:
    """Read a store's URL; ConfigError lists every fault and the valid forms."""
    scheme, colon, rest = url.partition(":")
    known = _OPTIONS.get(scheme, ())
    faults = [_unknown(name, known) for name in sorted(set(options or {}) - set(known))]
    given: dict[str, str] = {}
    for name, value in (options or {}).items():
        if name in known and not (isinstance(value, str) and value):
            faults.append(f"option {name}: expected a text")
        elif name in known:
            given[name] = str(value)

    place: Place | None = None
    match scheme if colon else "":
        case "memory" if not rest:
            place = MemoryAt()
        case "sqlite" if rest.startswith("/") and not rest.endswith("/") and "\0" not in rest:
            place = SqliteAt(Path("/" + rest.lstrip("/")))
        case "sqlite":
            faults.append("expected an absolute path after sqlite:")
        case "etcd":
            members, prefix = _etcd(rest, faults)
            faults += _together(given, "cert", "key") + _together(given, "user", "password")
            place = EtcdAt(members=members, prefix=prefix, **given)
        case "kubernetes" if not rest or (rest.startswith("/") and "\0" not in rest):
            place = KubernetesAt(kubeconfig=Path("/" + rest.lstrip("/")) if rest else None, **given)
            if not rest and "context" in given:
                faults.append("option context: belongs to a kubeconfig, and none is named")
        case "kubernetes":
            faults.append("expected nothing or an absolute path after kubernetes:")
        case _:
            faults.append("not a store's URL")
    if faults or place is None:
        # What stands before an @ may be a password.
        shown = re.sub(r"//[^/]*@", "//...@", url)
        raise ConfigError(f"store {shown!r}", faults, hint=f"valid forms are: {FORMS}")
    return place


def _etcd(rest: str, faults: list[str]) -> tuple[tuple[str, ...], str]:
    hosts, _, path = rest.removeprefix("//").partition("/")
    if not rest.startswith("//") or not hosts:
        faults.append("expected etcd://host:port")
    elif "@" in hosts:
        faults.append("user and password are options, not part of the URL")
    else:
        faults += [f"not host:port: {h!r}" for h in hosts.split(",") if not _member(h)]
    if not re.fullmatch(r"([A-Za-z0-9._-]+(/[A-Za-z0-9._-]+)*)?/?", path):
        faults.append(f"prefix {path!r}: expected words of letters, digits, . _ - between slashes")
    members = tuple(map(_member, hosts.split(",")))
    return members, f"/{path.strip('/')}/" if path.strip("/") else ETCD_PREFIX


def _member(text: str) -> str:
    """host:port, or nothing if it is neither that nor a host alone."""
    found = _HOST.fullmatch(text)
    port = int(found["port"] or ETCD_PORT) if found else 0
    return f"{found['host']}:{port}" if found and 0 < port < 65536 else ""


def _together(given: Mapping[str, str], one: str, other: str) -> list[str]:
    if (one in given) == (other in given):
        return []
    return [f"options {one} and {other} go together"]


def _unknown(name: str, known: tuple[str, ...]) -> str:
    return f"unknown option {name}; known: {', '.join(known) or 'none for this store'}"
