"""Talking to one Kubernetes API server.

`Api` has the seven requests that Muslin makes and `watch`; `in_cluster` and
`kubeconfig` say how to reach a server; `Kind` and `kinds` name what it holds;
`slim` has the parts of Kubernetes' own objects that we read.

    async with Api(in_cluster()) as api:
        async with aclosing(api.watch(PODS, fields="spec.nodeName=n1", type=Pod)) as batches:
            async for batch in batches: ...

Errors are `muslin.errors`: NotReady for all that waiting may mend (no
connection, no answer in time, 5xx, 429, 401), and then the request may have
been carried out; Conflict when somebody else was first, or holds a field;
ConfigError for what a person must mend: missing rights (403), a kind that is
not served (404: the CRDs are not installed), an object that the server
refuses (422: with the fields and why).

There is no `replace`.  An object read by a client that does not know all its
fields and written back as a whole loses the others; a patch cannot.

Only `Api` needs httpcore2, and it is imported when somebody asks for it: 9 MiB
and 100 ms with a first client, against 2 MiB and 16 ms for all the rest.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from muslin.extras import require
from muslin.kube.access import Access, Exec, in_cluster, kubeconfig
from muslin.kube.kinds import Kind
from muslin.kube.times import micro_time, parse_time
from muslin.kube.told import Change, Listed

if TYPE_CHECKING:
    from muslin.kube.api import Api

__all__ = [
    "Access",
    "Api",
    "Change",
    "Exec",
    "Kind",
    "Listed",
    "in_cluster",
    "kubeconfig",
    "micro_time",
    "parse_time",
]


def __getattr__(name: str) -> object:
    if name == "Api":
        require("kubernetes", "Kubernetes")
        from muslin.kube.api import Api

        return Api
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
