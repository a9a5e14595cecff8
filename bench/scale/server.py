"""The API server as a process of its own: it counts, churns on command, and can be killed.

    python -m bench.scale.server --journal FILE --kubeconfig FILE [--keep] [--certs DIR]

Commands come as lines of JSON on standard input, `{"do": name, ...}`, and are
answered by one line each, in order.  What commands do is done within the
process and is no request; requests are what comes over HTTP.

The journal is the etcd of this server: its successor finds all objects.  With
`--keep` it finds their history too, as behind a load balancer that leads to
another server; without, every watch from before is told 410.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import json
import sys
import time
from pathlib import Path

from tests.apiserver import Certificate, Settings, Storage

from bench.scale import estate
from bench.scale.churn import Churn
from bench.scale.counted import Counted
from bench.scale.estate import APPS, Json, Size
from bench.scale.machine import more_files
from bench.scale.populate import MERGE, populate
from muslin.kube.values import KINDS, to_object
from muslin.model import Network

_HISTORY = 200_000  # events: more than a run makes


class Kept(Storage):
    """A journal whose reader knows the past."""

    def forget_history(self) -> None:
        """Not this one."""


class Commands:
    """What can be asked for on standard input."""

    def __init__(self, api: Counted) -> None:
        self._api = api
        self._churn: Churn | None = None

    async def clear(self) -> Json:
        """Count from now on."""
        self._api.clear()
        return {}

    async def figures(self) -> Json:
        """What was counted."""
        return self._api.figures()

    async def series(self) -> Json:
        """Every request since `clear`: when, and what."""
        return {"series": self._api.series}

    async def populate(self, size: Json, backend: str) -> Json:
        """The whole cluster; how many objects of each kind there are."""
        gc.disable()
        await populate(self._api.send, Size(**size), backend)
        gc.enable()
        gc.freeze()  # a collection that looks at all this takes a second, in the middle of a figure
        tables = self._api.storage.tables.items()
        return {"objects": {".".join(filter(None, r[::-1])): len(t.entries) for r, t in tables}}

    async def pods(self, node: int) -> Json:
        """The names and uids of one node's pods."""
        where = f"/api/v1/pods?fieldSelector=spec.nodeName={estate.name(node)}"
        items = (await self._api.send("GET", where)).json["items"]
        return {"pods": [(o["metadata"]["name"], o["metadata"]["uid"]) for o in items]}

    async def backend(self, backend: str) -> Json:
        """Another backend for the network, as a person would change it."""
        spec = to_object(estate.network(backend))["spec"]
        steps = json.dumps([{"op": "replace", "path": "/spec", "value": spec}]).encode()
        path = KINDS[Network].path("", "default")
        await self._api.send("PATCH", path, steps, content_type="application/json-patch+json")
        return {}

    async def touch(self) -> Json:
        """One write that concerns nobody: a cluster is never still."""
        body = {"metadata": {"annotations": {"touched": str(time.monotonic())}}}
        await self._api.send("PATCH", f"/api/v1/namespaces/{APPS}", body, content_type=MERGE)
        return {}

    async def churn(self, seconds: float, stay: float, nodes: int, rates: Json) -> Json:
        """See Churn.run; the same moments after every start."""
        self._churn = self._churn or Churn(self._api.send, nodes)
        return await self._churn.run(seconds, stay, rates)


async def _serve(options: argparse.Namespace) -> None:
    gc.disable()
    storage = (Kept if options.keep else Storage)(journal=options.journal, history=_HISTORY)
    gc.enable()
    gc.freeze()
    tls = Certificate.make(options.certs) if options.certs else None
    settings = Settings(managed_fields=False, watch_timeout=(3000.0, 3600.0))
    api = Counted(settings=settings, storage=storage, port=options.port, tls=tls)
    commands = Commands(api)
    lines = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(
        lambda: asyncio.StreamReaderProtocol(lines), sys.stdin
    )
    async with api:
        api.kubeconfig(options.kubeconfig)
        _say({"at": time.monotonic()})
        while line := await lines.readline():
            given = json.loads(line)
            _say(await getattr(commands, given.pop("do"))(**given))


def _say(answer: Json) -> None:
    print(json.dumps(answer), flush=True)


def main() -> None:
    """Serve until standard input ends."""
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--journal", type=Path, required=True)
    options.add_argument("--kubeconfig", type=Path, required=True)
    options.add_argument("--port", type=int, required=True)
    options.add_argument("--keep", action="store_true")
    options.add_argument("--certs", type=Path)
    more_files()
    asyncio.run(_serve(options.parse_args()))


if __name__ == "__main__":
    main()
