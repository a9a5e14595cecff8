"""Which host port leads to which pod: rows of node.db, so that no two pods have one."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Sequence

from muslin.errors import RequestError, Taken
from muslin.model import PortMapping, decode
from muslin.model import Wants as _Wants


def take(
    db: sqlite3.Connection, dev: str, mappings: Sequence[PortMapping], versions: Iterable[int]
) -> None:
    """Write down that these ports lead to `dev`, a pod with addresses of these versions.

    Raise Taken, naming the pod that has one, and RequestError for an address
    of a version that the pod will not have.  A port on every address and the
    same port on one address exclude each other, as for any two servers.
    """
    has = list(versions)
    for mapping in mappings:
        if mapping.ip is not None and mapping.ip.version not in has:
            where = f"host port {_words(mapping)}"
            raise RequestError(7, f"{where}: the pod has no IPv{mapping.ip.version} address")
        for version in has if mapping.ip is None else [mapping.ip.version]:
            anywhere = mapping.ip is None or mapping.ip.is_unspecified
            packed = b"" if mapping.ip is None or anywhere else mapping.ip.packed
            key = (version, mapping.protocol, mapping.host)
            row = db.execute(
                "SELECT dev FROM port WHERE version = ? AND protocol = ? AND number = ?"
                " AND (ip = ? OR ip = x'' OR ? = x'')",
                (*key, packed, packed),
            ).fetchone()
            if row is not None:
                raise Taken(f"host port {_words(mapping)} leads to {owner(db, row[0])} already")
            db.execute("INSERT INTO port VALUES (?, ?, ?, ?, ?)", (*key, packed, dev))


def owner(db: sqlite3.Connection, dev: str) -> str:
    """The pod of a device, in a person's words."""
    row = db.execute(
        "SELECT container, ifname, wants, state FROM attachment WHERE dev = ?", (dev,)
    ).fetchone()
    if row is None:
        return f"a pod that was here before node.db ({dev})"
    container, ifname, wants, state = row
    name = decode(_Wants, wants.encode(), subject="node.db: wants").pod
    going = ", which is being deleted" if state == "deleting" else ""
    return f"pod {name + ' ' if name else ''}(container {container[:64]}, {ifname}){going}"


def _words(mapping: PortMapping) -> str:
    at = "" if mapping.ip is None else f" on {mapping.ip}"
    return f"{mapping.protocol} {mapping.host}{at}"
