"""What Prometheus is told of one controller.

prometheus-client costs 1.4 MiB and 15 ms over what is loaded anyway
(measured), and writes the text format, histograms and the process's own
figures as everybody expects them.  A registry of our own: nothing else that
is imported can add to it.
"""

from __future__ import annotations

from collections.abc import Iterator

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    ProcessCollector,
    disable_created_metrics,
)
from prometheus_client.core import CounterMetricFamily
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest
from prometheus_client.registry import Collector

from muslin.tally import tally

TYPE = CONTENT_TYPE_LATEST


class Metrics:
    """All of them; names begin with muslin_."""

    def __init__(self) -> None:
        # A second series for each, which nobody asked for.
        disable_created_metrics()  # type: ignore[no-untyped-call]
        self._registry = CollectorRegistry()
        ProcessCollector(registry=self._registry)
        self._registry.register(_Watches())
        self.leading = Gauge(
            "muslin_controller_leading", "1 while this replica leads.", registry=self._registry
        )
        self.terms = Counter(
            "muslin_controller_terms", "How often it began to lead.", registry=self._registry
        )
        self.requests = Counter(
            "muslin_controller_requests",
            "Requests of the leader: ok, conflict, refused (4xx) or failed.",
            ("verb", "resource", "result"),
            registry=self._registry,
        )
        self.restarts = Counter(
            "muslin_controller_loop_restarts",
            "Loops that ended by an error and were started again.",
            ("loop",),
            registry=self._registry,
        )
        self.lag = Histogram(
            "muslin_controller_lag_seconds",
            "From the first change that was seen to the write that follows from it.",
            buckets=(0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60),
            registry=self._registry,
        )
        self.blocks = Gauge(
            "muslin_pool_blocks",
            "Blocks of a pool: all, held by nodes, free.",
            ("pool", "state"),
            registry=self._registry,
        )
        self.addresses = Gauge(
            "muslin_pool_addresses", "Addresses in a pool's range.", ("pool",),
            registry=self._registry,
        )  # fmt: skip
        self.ready = Gauge(
            "muslin_network_ready", "1 while a network has no fault.", ("network",),
            registry=self._registry,
        )  # fmt: skip

    def forget(self) -> None:
        """What only a leader knows is not known any more."""
        for gauge in (self.blocks, self.addresses, self.ready):
            gauge.clear()

    def text(self) -> bytes:
        """The page that Prometheus reads."""
        return generate_latest(self._registry)


class _Watches(Collector):
    """What `muslin.tally` has counted, read when the page is."""

    def collect(self) -> Iterator[CounterMetricFamily]:
        lists = CounterMetricFamily(
            "muslin_watch_lists",
            "Lists of everything that a watch began with or could not go on without.",
            labels=("resource",),
        )
        for resource, count in sorted(tally.lists.items()):
            lists.add_metric((resource,), count)
        yield lists
        ends = CounterMetricFamily(
            "muslin_watch_ends",
            "Watches that ended: gone (410, a list follows), ended (as they do), silent, error.",
            labels=("resource", "reason"),
        )
        for words, count in sorted(tally.ends.items()):
            ends.add_metric(words, count)
        yield ends
