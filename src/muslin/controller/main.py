"""`muslin controller`: one process that stands for election, and what it does while it leads.

    health, metrics      always                        health.py, metrics.py
    webhook              always, where it is asked for  webhook.py, certificates.py
    election             always                        election.py
      watches            while leading                 seen.py
      expiry             blocks of nodes that are gone  store/promises.py
      nodes              NetworkUnavailable, taints    nodes.py
      pools              status and events             pools.py, events.py
      slices             endpoints of second NICs, VMs  slices/

It is on no pod's path: with no controller at all pods start and run on nodes
that hold blocks; what waits is a new node's taint, a dead node's blocks, and
what `kubectl get` shows.  Each part that fails is begun again by itself.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import signal
import sys
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path

from muslin import config as settings
from muslin import kube
from muslin.config import Controller
from muslin.controller.election import Candidate, Election, Lost, Term, Times
from muslin.controller.events import Events
from muslin.controller.health import Pages, Pulse, verdict
from muslin.controller.metrics import TYPE, Metrics
from muslin.controller.nodes import Nodes
from muslin.controller.pools import Pools
from muslin.controller.seen import Seen
from muslin.controller.slices import Slices
from muslin.controller.webhook import serve_webhook
from muslin.controller.writes import MANAGER, Fenced
from muslin.errors import ConfigError, MuslinError
from muslin.kernel import boot
from muslin.kube.values import KINDS
from muslin.log import log
from muslin.model import Block, Node
from muslin.store.promises import Expiry
from muslin.store.url import KubernetesAt, parse

BACKOFF = (0.5, 30.0)  # seconds before a part is begun again: at first, and at most
STEADY = 60.0  # seconds after which a part counts as well again
SILENT = 2.0  # leases' durations without an answer after which we are not ready


class Replica:
    """One process of the controller."""

    def __init__(self, given: Controller, place: KubernetesAt, access: kube.Access) -> None:
        self._settings, self._place, self._access = given, place, access
        self._now = boot.clock
        self._times = Times.of(given.lease)
        self._metrics, self._pulse = Metrics(), Pulse(self._now)
        self._seen: Seen | None = None  # while leading
        self._candidate: Candidate | None = None

    async def run(self) -> None:
        """Until cancelled; ConfigError when `listen` cannot be had."""
        pages = Pages({"/metrics": self._page, "/healthz": self._alive, "/readyz": self._ready})
        server = await pages.listen(*self._settings.address)
        # An Api of its own: a renewal waits for nothing else, and not as long as others may.
        patience = max(self._times.deadline / 2, self._times.retry)
        beside = [asyncio.create_task(self._pulse.run())]
        try:
            async with kube.Api(self._access, manager=MANAGER, timeout=patience) as api:
                self._candidate = Candidate(
                    api, self._place.namespace, self._settings.identity, self._times
                )
                term = self._candidate.term
                # Asked when it is read: a process that was stopped knows at once that it is over.
                self._metrics.leading.set_function(lambda: float(term.left > 0))
                log.info("controller.started", identity=self._candidate.identity)
                if at := self._settings.webhook_address:
                    answer = partial(serve_webhook, self._access, self._place.namespace, at)
                    serve = partial(answer, leading=lambda: term.left > 0)
                    beside.append(asyncio.create_task(self._again("webhook", serve)))
                await Election(self._candidate, self._times).run(self._lead)
        finally:
            for task in beside:
                task.cancel()
            server.close()
            await asyncio.gather(*beside, return_exceptions=True)

    async def _lead(self, term: Term) -> None:
        self._metrics.terms.inc()
        seen = self._seen = Seen(self._now)
        name, now, metrics = self._settings.identity, self._now, self._metrics
        try:
            async with Fenced(self._access, term, metrics) as api:
                expiry = Expiry(
                    api,
                    self._place.namespace,
                    (KINDS[Node], KINDS[Block]),
                    clock=now,
                    grace=self._settings.grace,
                )
                nodes = Nodes(api, seen, metrics, now)
                pools = Pools(api, seen, Events(api, name, now), metrics, now)
                slices = Slices(api, name, metrics, now)
                parts: dict[str, Callable[[], Awaitable[None]]] = {
                    "watches": lambda: seen.follow(api),
                    "expiry": lambda: expiry.run(self._settings.sweep),
                    "nodes": nodes.run,
                    "pools": pools.run,
                    "slices.watches": slices.follow,
                    "slices": slices.run,
                }
                async with asyncio.TaskGroup() as tasks:
                    for part, run in parts.items():
                        tasks.create_task(self._again(part, run))
        finally:
            self._seen = None
            metrics.forget()

    async def _again(self, part: str, run: Callable[[], Awaitable[None]]) -> None:
        """Keep one part going, whatever it raises."""
        pause, most = BACKOFF
        while True:
            began = self._now()
            try:
                await run()
            except Lost:
                pass  # the election ends us, at once
            except MuslinError as e:
                log.warning("part.failed", part=part, error=str(e))
            except Exception:  # a fault of ours in one part is no reason to end the others
                log.exception("part.failed", part=part)
            self._metrics.restarts.labels(part).inc()
            if self._now() - began > STEADY:
                pause = BACKOFF[0]
            await asyncio.sleep(pause * random.uniform(0.5, 1.0))  # noqa: S311 - jitter
            pause = min(pause * 2, most)

    # ── pages ───────────────────────────────────────────────────────────────────────────────

    def _page(self) -> tuple[int, str, bytes]:
        return 200, TYPE, self._metrics.text()

    def _alive(self) -> tuple[int, str, bytes]:
        return verdict(self._pulse.fault())

    def _ready(self) -> tuple[int, str, bytes]:
        silent = self._now() - self._candidate.heard if self._candidate else float("inf")
        if silent > SILENT * self._times.duration:
            return verdict(f"{self._access.server}: no answer yet, or none any more")
        if self._seen is not None and not self._seen.synced:
            return verdict("leading, and not everything is listed yet")
        return verdict("")


def main(arguments: list[str]) -> int:
    """Run until SIGTERM or SIGINT, optionally with `--config FILE`; the exit status."""
    try:
        given = settings.controller(Path(arguments[1]) if arguments[:1] == ["--config"] else None)
        log.set_level(given.log_level)
        place = parse(given.store, given.store_options)
        assert isinstance(place, KubernetesAt)  # the settings are sure of it
        config = place.kubeconfig
        access = kube.kubeconfig(config, place.context) if config else kube.in_cluster()
        with contextlib.suppress(asyncio.CancelledError):
            asyncio.run(_until_told(Replica(given, place, access)))
    except ConfigError as e:
        log.error("controller.refused", error=str(e))
        return os.EX_CONFIG
    log.info("controller.stopped")
    return 0


async def _until_told(replica: Replica) -> None:
    loop, this = asyncio.get_running_loop(), asyncio.current_task()
    assert this is not None
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, this.cancel)
    await replica.run()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
