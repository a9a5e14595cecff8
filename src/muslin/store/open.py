"""From a URL to a store: the only place that knows every kind.

Each kind is imported when it is asked for: etcd brings gRPC, which costs more
memory than the rest of an agent together, Kubernetes an HTTP client.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from muslin.extras import require
from muslin.store import Store
from muslin.store.url import EtcdAt, KubernetesAt, MemoryAt, SqliteAt, parse


def open_store(
    url: str,
    options: Mapping[str, object] | None = None,
    *,
    owner: Callable[[], Mapping[str, object] | None] = lambda: None,
    spread: float | None = None,
) -> Store:
    """The store that `url` names; `options` are its own section of the config (`url.parse`).

    `owner` says what a Kubernetes store's leases end with (`KubernetesStore`),
    `spread` within how many seconds it lists anew when it must (kube/pauses.py).

    Does not wait for it: a store that cannot be reached says so (NotReady, or
    ConfigError for a file that cannot be used) when it is first called.
    Raise ConfigError for a malformed URL, an unknown option, a certificate
    file that cannot be read, or an extra that the store needs and is not installed.
    """
    match parse(url, options):
        case MemoryAt():
            from muslin.store.memory import MemoryStore

            return MemoryStore()
        case SqliteAt(path):
            from muslin.store.sqlite import SqliteStore

            return SqliteStore(path)
        case EtcdAt() as at:
            require("etcd", "store etcd")
            from muslin.store.etcd import EtcdStore

            return EtcdStore(at)
        case KubernetesAt() as at:
            require("kubernetes", "store kubernetes")
            from muslin import kube
            from muslin.store.kubernetes import KubernetesStore

            access = (
                kube.kubeconfig(at.kubeconfig, at.context) if at.kubeconfig else kube.in_cluster()
            )
            api = kube.Api(access) if spread is None else kube.Api(access, spread=spread)
            return KubernetesStore(api, namespace=at.namespace, owner=owner)
