"""From a URL to a store: the only place that knows every kind.

Each kind is imported when it is asked for: etcd brings gRPC, which costs more
memory than the rest of an agent together.
"""

from __future__ import annotations

from collections.abc import Mapping

from muslin.store import Store
from muslin.store.url import EtcdAt, MemoryAt, SqliteAt, parse


def open_store(url: str, options: Mapping[str, object] | None = None) -> Store:
    """The store that `url` names; `options` are its own section of the config (`url.parse`).

    Does not wait for it: a store that cannot be reached says so (NotReady, or
    ConfigError for a file that cannot be used) when it is first called.
    Raise ConfigError for a malformed URL, an unknown option or a certificate
    file that cannot be read.
    """
    match parse(url, options):
        case MemoryAt():
            from muslin.store.memory import MemoryStore

            return MemoryStore()
        case SqliteAt(path):
            from muslin.store.sqlite import SqliteStore

            return SqliteStore(path)
        case EtcdAt() as at:
            from muslin.store.etcd import EtcdStore

            return EtcdStore(at)
