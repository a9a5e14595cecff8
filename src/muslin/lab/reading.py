"""Reading a TOML file table by table, and noting every fault instead of stopping at the first.

A value that is wrong is replaced by a harmless one, so that the reader can go
on; `done` then refuses the file with all that was noted.
"""

from __future__ import annotations

import tomllib
from collections.abc import Callable, Iterator, Mapping
from ipaddress import ip_address, ip_network
from typing import Any, TypeVar

from muslin import backend
from muslin.errors import ConfigError
from muslin.model import Address, Network, Pool, Prefix, convert

T = TypeVar("T")
Table = Mapping[str, object]


class Reader:
    """One file being read; `faults` grows."""

    def __init__(self, text: str, *, subject: str) -> None:
        self.subject = subject
        self.faults: list[str] = []
        try:
            self.root: dict[str, Any] = tomllib.loads(text)
        except tomllib.TOMLDecodeError as e:
            raise ConfigError(subject, [f"not TOML: {e}"]) from e

    def done(self) -> None:
        """Refuse the file if anything was noted."""
        if self.faults:
            raise ConfigError(self.subject, self.faults)

    def known(self, table: Table, where: str, *names: str) -> None:
        """Note every key of `table` that nobody reads."""
        for key in table:
            if key not in names:
                at = f"{where}: " if where else ""
                self.faults.append(f"{at}unknown key {key!r} (known: {', '.join(names)})")

    def table(self, parent: Table, where: str, key: str) -> Table:
        """A sub-table, empty if absent."""
        value = parent.get(key, {})
        if isinstance(value, dict):
            return value
        self._wrong(where, key, "a table", value)
        return {}

    def tables(self, parent: Table, key: str) -> Iterator[tuple[str, Table]]:
        """The named sub-tables of one kind, in the file's order."""
        for name in (table := self.table(parent, "", key)):
            yield name, self.table(table, key, name)

    def text(self, table: Table, where: str, key: str, default: str | None) -> str:
        """A string; noted as missing if there is no default."""
        value = table.get(key, default)
        if isinstance(value, str):
            return value
        self._wrong(where, key, "a string", value)
        return ""

    def texts(self, table: Table, where: str, key: str) -> tuple[str, ...]:
        """A list of strings, empty if absent."""
        value = table.get(key, [])
        if isinstance(value, list) and all(isinstance(v, str) for v in value):
            return tuple(value)
        self._wrong(where, key, "a list of strings", value)
        return ()

    def flag(self, table: Table, where: str, key: str) -> bool:
        """A boolean, false if absent."""
        value = table.get(key, False)
        if isinstance(value, bool):
            return value
        self._wrong(where, key, "true or false", value)
        return False

    def number(
        self, table: Table, where: str, key: str, default: int, *, low: int, high: int
    ) -> int:
        """A whole number within bounds."""
        value = table.get(key, default)
        if isinstance(value, int) and not isinstance(value, bool) and low <= value <= high:
            return value
        self._wrong(where, key, f"a number from {low} to {high}", value)
        return default

    def prefixes(self, table: Table, where: str, key: str) -> tuple[Prefix, ...]:
        """One or more prefixes."""
        found = self._each(table, where, key, ip_network)
        if key not in table or table[key] == []:
            self.faults.append(f"{where}.{key}: at least one prefix")
        return found

    def addresses(self, table: Table, where: str, key: str) -> tuple[Address, ...]:
        """Addresses, none if absent."""
        return self._each(table, where, key, ip_address)

    def network(self) -> Network | None:
        """The `[network]` table, its backend's options checked too."""
        raw = self.root.get("network")
        if raw is None:
            self.faults.append("network: missing; say name, backend and pools")
            return None
        network = self._convert(Network, raw, "network")
        if network:
            try:
                backend.load(network)
            except ConfigError as e:
                self.faults += e.faults
        return network

    def pools(self) -> tuple[Pool, ...]:
        """The `[[pools]]` tables."""
        raw = self.root.get("pools", [])
        if not isinstance(raw, list):
            self._wrong("", "pools", "tables, each headed [[pools]]", raw)
            return ()
        found = [self._convert(Pool, p, f"pools, number {n}") for n, p in enumerate(raw, 1)]
        return tuple(p for p in found if p)

    def _convert(self, kind: type[T], raw: object, where: str) -> T | None:
        try:
            return convert(kind, raw, subject=where)
        except ConfigError as e:
            self.faults += [f"{where}: {fault}" for fault in e.faults]
            return None

    def _each(self, table: Table, where: str, key: str, read: Callable[[str], T]) -> tuple[T, ...]:
        found = []
        for text in self.texts(table, where, key):
            try:
                found.append(read(text))
            except ValueError as e:
                self.faults.append(f"{where}.{key}: {e}")
        return tuple(found)

    def _wrong(self, where: str, key: str, wanted: str, value: object) -> None:
        at = f"{where}.{key}" if where else key
        saw = "missing" if value is None else f"{value!r}"
        self.faults.append(f"{at}: {saw}; must be {wanted}")
