"""Networks, pools, nodes and blocks in any store: keys, names and encoding in one place.

    networks/<name>                      pools/<name>        RFC 1123 label
    nodes/<name>                                             RFC 1123 subdomain
    blocks/<pool>/<address>-<prefixlen>                      one key per block: two nodes cannot
                                                             create the same one

A name is checked on every way in, so that none reaches out of its prefix.  A
record that does not decode (a newer version's, somebody's typing error) is a
fault of that record and hides nothing else: `list` and `watch` skip it and
report it.
"""

from __future__ import annotations

import re
from collections.abc import AsyncGenerator, Callable, Iterable
from contextlib import aclosing
from ipaddress import ip_network
from typing import Generic, NamedTuple, TypeVar

from muslin.errors import ConfigError
from muslin.model import Block, Network, Node, Pool, Prefix, decode, encode
from muslin.store import Event, Lease, Record, Store

T = TypeVar("T", Network, Pool, Node, Block)

_LABEL = r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?"
_RULES = {
    "label": (re.compile(_LABEL), 63, "a-z, 0-9 and -, at most 63 characters (RFC 1123 label)"),
    "subdomain": (
        re.compile(rf"{_LABEL}(\.{_LABEL})*"),
        253,  # a Kubernetes node's name may be that long
        "labels of a-z, 0-9 and -, joined by dots, at most 253 characters (RFC 1123 subdomain)",
    ),
}


class Found(NamedTuple, Generic[T]):
    """A value and the revision to `put` over."""

    value: T
    revision: int


class Listing(NamedTuple, Generic[T]):
    """What was found, by key, and what could not be read."""

    found: tuple[Found[T], ...]
    faults: tuple[ConfigError, ...]


class Update(NamedTuple, Generic[T]):
    """One batch of a watch: name → its new value, None when it is gone; and what was unreadable.

    An unreadable record counts as neither: whoever knew its last good value keeps it.
    """

    changed: dict[str, Found[T] | None]
    faults: tuple[ConfigError, ...]


class Objects:
    """Typed access to one store.

    Values are named by `name_of`.  Every method raises ConfigError for a
    hostile name and otherwise what the store's method raises; `get` also for
    a record that does not decode.
    """

    def __init__(self, store: Store) -> None:
        self.store = store

    async def get(self, kind: type[T], name: str) -> Found[T] | None:
        """The value of that name, or None."""
        record = await self.store.get(key_of(kind, name))
        return _read(kind, record) if record else None

    async def list(self, kind: type[T], within: str = "") -> Listing[T]:
        """Every value of a kind; blocks may be narrowed to the pool `within`."""
        return _read_all(kind, await self.store.list(prefix_of(kind, within)))

    async def create(self, value: T, *, lease: Lease | None = None) -> Found[T]:
        """Remember a new value; Conflict if its name is taken."""
        key = key_of(type(value), name_of(value))
        record = await self.store.create(key, encode(value), lease=lease)
        return Found(value, record.revision)

    async def put(self, value: T, *, if_revision: int, lease: Lease | None = None) -> Found[T]:
        """Replace the value of the same name; Conflict if it changed since `if_revision`."""
        key, data = key_of(type(value), name_of(value)), encode(value)
        record = await self.store.put(key, data, if_revision=if_revision, lease=lease)
        return Found(value, record.revision)

    async def delete(self, kind: type[T], name: str, *, if_revision: int | None = None) -> bool:
        """Forget a value, also one that does not decode; say whether it was there."""
        return await self.store.delete(key_of(kind, name), if_revision=if_revision)

    async def watch(self, kind: type[T], within: str = "") -> AsyncGenerator[Update[T], None]:
        """Follow a kind by the store's watcher rules; the first update is the whole state."""
        async with aclosing(self.store.watch(prefix_of(kind, within))) as batches:
            async for batch in batches:
                yield _update(kind, batch)
                del batch  # what waits keeps its locals, and the first one is the whole state


def name_of(value: Network | Pool | Node | Block) -> str:
    """The name in the value's key: its own, or a block's pool and range."""
    return block_name(value.pool, value.cidr) if isinstance(value, Block) else value.name


def block_name(pool: str, cidr: Prefix) -> str:
    """How a block is named: `<pool>/<address>-<prefixlen>`."""
    return f"{pool}/{cidr.network_address}-{cidr.prefixlen}"


def key_of(kind: type[T], name: str) -> str:
    """The store's key of a name; ConfigError if the name breaks the rules of its kind."""
    check, directory = _KINDS[kind]
    check(name)
    return f"{directory}/{name}"


def prefix_of(kind: type[T], within: str = "") -> str:
    """What all keys of a kind start with; `within` narrows blocks to one pool."""
    directory = _KINDS[kind][1] + "/"
    if not within:
        return directory
    if kind is not Block:
        raise ConfigError(kind.__name__, [f"only blocks are grouped by pool, not by {within!r}"])
    _check_name("pool", within, "label")
    return f"{directory}{within}/"


def _check_name(what: str, name: str, rule: str) -> None:
    pattern, longest, words = _RULES[rule]
    if len(name) > longest or not pattern.fullmatch(name):
        shown = name if len(name) <= longest else f"{name[:40]}..."
        raise ConfigError(f"{what} {shown!r}", ["not a valid name"], hint=f"use {words}")


def _check_block(name: str) -> None:
    pool, _, block = name.partition("/")
    _check_name("pool", pool, "label")
    try:
        cidr = ip_network(block.replace("-", "/", 1))
    except ValueError as e:
        raise ConfigError(f"block {name[:60]!r}", [str(e)[:120]]) from e
    if block_name(pool, cidr) != name:  # one block, one spelling: the key is what makes it unique
        raise ConfigError(f"block {name!r}", [f"is written {block_name(pool, cidr)}"])


_KINDS: dict[type, tuple[Callable[[str], None], str]] = {
    Network: (lambda name: _check_name("network", name, "label"), "networks"),
    Pool: (lambda name: _check_name("pool", name, "label"), "pools"),
    Node: (lambda name: _check_name("node", name, "subdomain"), "nodes"),
    Block: (_check_block, "blocks"),
}


def _read(kind: type[T], record: Record) -> Found[T]:
    try:
        value = decode(kind, record.value, subject=record.key)
    except RecursionError as e:  # msgspec's answer to a thousand brackets
        raise ConfigError(record.key, ["nested too deeply"]) from e
    key = f"{_KINDS[kind][1]}/{name_of(value)}"
    if key != record.key:
        raise ConfigError(record.key, [f"holds what belongs under {key}"])
    return Found(value, record.revision)


def _read_all(kind: type[T], records: Iterable[Record]) -> Listing[T]:
    found: list[Found[T]] = []
    faults: list[ConfigError] = []
    for record in records:
        try:
            found.append(_read(kind, record))
        except ConfigError as e:
            faults.append(e)
    return Listing(tuple(found), tuple(faults))


def _update(kind: type[T], batch: Iterable[Event]) -> Update[T]:
    directory = _KINDS[kind][1] + "/"
    events = tuple(batch)
    listing = _read_all(kind, (e.record for e in events if e.record))
    changed: dict[str, Found[T] | None] = {name_of(f.value): f for f in listing.found}
    changed |= {e.key.removeprefix(directory): None for e in events if e.record is None}
    return Update(changed, listing.faults)
