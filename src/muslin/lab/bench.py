"""How fast pods are beside the nodes under them, as ratios from one run on one machine.

    latency      one byte back and forth on one TCP connection, both ends on one core:
                 the whole way through the kernel, and no idle core to wake up in it
    throughput   one TCP stream, the ends on different cores where there are two

For every pair of pods the pair of their nodes is measured in the same round,
the order turning round every time, and the ratio is taken within the round:
what else the machine does then weighs on both.  The spread over the rounds is
shown with it; a ratio is worth as much as its spread is small.

Both ends are Python, which adds the same few microseconds to every round trip,
so latency ratios come out nearer to 1 than a C program would find them.  There
is no hardware in the way: read ratios, not Gb/s.
"""

from __future__ import annotations

import gc
import os
import selectors
import signal
import socket
import statistics
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

from muslin.errors import MuslinError
from muslin.kernel import netns
from muslin.lab import paths
from muslin.lab.check import endpoints
from muslin.lab.probe import FAMILY, Endpoint
from muslin.lab.state import State

CHUNK = bytes(256 * 1024)
WARM_UP = 20  # round trips before counting: caches, ARP, the first scheduling
PATIENCE = 5.0  # seconds for one connection
NOISY = 0.25  # a spread beyond which a ratio is called noisy

Link = tuple[Endpoint, Endpoint]


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """One link in one round: seconds and bytes per second."""

    p50: float
    p99: float
    rate: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Ratio:
    """Pods over nodes: the median of the rounds, and the lowest and highest."""

    median: float
    low: float
    high: float

    @property
    def noisy(self) -> bool:
        """Whether the rounds disagree too much to say."""
        return (self.high - self.low) / self.median > NOISY


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One pair of pods beside its pair of nodes."""

    pods: tuple[str, str]
    nodes: tuple[str, str]
    way: str
    pod: Sample  # medians of the rounds
    node: Sample
    latency: Ratio
    tail: Ratio
    throughput: Ratio


def choose(now: State, count: int) -> tuple[tuple[str, str], ...]:
    """Pairs of pods on different nodes: first one of every kind of way, then other node pairs."""
    summary = paths.summary(paths.paths(now))
    pods = {p.name: p for p in now.pods}
    candidates = [
        (a, b) for (a, b) in summary
        if a in pods and b in pods and pods[a].node < pods[b].node
    ]  # fmt: skip
    chosen: list[tuple[str, str]] = []
    for key in (lambda p: summary[p], lambda p: (pods[p[0]].node, pods[p[1]].node)):
        seen = {key(p) for p in chosen}
        for pair in candidates:
            if key(pair) not in seen and len(chosen) < count:
                seen.add(key(pair))
                chosen.append(pair)
    if not chosen:
        hint = "muslin lab pod add NAME --node NODE, on two nodes"
        raise MuslinError(f"lab {now.lab} has no two pods on different nodes", hint=hint)
    return tuple(chosen)


def named(now: State, words: Sequence[str]) -> tuple[tuple[str, str], ...]:
    """The pairs that a person named as POD:POD; MuslinError if one cannot be measured."""
    pairs = []
    for word in words:
        a, _, b = word.partition(":")
        one, other = now.pod(a), now.pod(b)
        if one is None or other is None:
            known = ", ".join(p.name for p in now.pods) or "none"
            raise MuslinError(f"pair {word!r}: not POD:POD", hint=f"pods: {known}")
        if one.node == other.node:
            why = f"both are on {one.node}, so there are no two nodes to compare with"
            raise MuslinError(f"pair {word!r}: {why}")
        pairs.append((a, b))
    return tuple(pairs)


def duration(pairs: Sequence[tuple[str, str]], rounds: int, seconds: float) -> str:
    """How long `bench` takes, in words: two links per pair, two measurements per link."""
    return f"about {len(pairs) * rounds * 4 * seconds:.0f} s"


def bench(
    now: State, pairs: Sequence[tuple[str, str]], *, rounds: int = 5, seconds: float = 0.3
) -> tuple[Row, ...]:
    """Measure the pairs, interleaved; `duration` says how long it takes.  Blocks."""
    ends = {e.name: e for e in endpoints(now, now.topology)}
    ways = paths.summary(paths.paths(now))
    links: dict[Link, None] = {}
    for a, b in pairs:
        links[ends[a], ends[b]] = links[ends[ends[a].node], ends[ends[b].node]] = None
    samples: dict[Link, list[Sample]] = {link: [] for link in links}
    with _serving({b for _, b in links}) as ports:
        for number in range(rounds):
            for link in list(links) if number % 2 == 0 else reversed(links):
                samples[link].append(_measure(link, ports[link[1]], seconds))
    return tuple(_row(ends, (a, b), ways[a, b], samples) for a, b in pairs)


def _row(
    ends: Mapping[str, Endpoint],
    pods: tuple[str, str],
    way: str,
    samples: Mapping[Link, Sequence[Sample]],
) -> Row:
    a, b = (ends[name] for name in pods)
    mine, limit = samples[a, b], samples[ends[a.node], ends[b.node]]
    both = list(zip(mine, limit, strict=True))
    return Row(
        pods=pods,
        nodes=(a.node, b.node),
        way=way,
        pod=_middle(mine),
        node=_middle(limit),
        latency=_ratio([p.p50 / n.p50 for p, n in both]),
        tail=_ratio([p.p99 / n.p99 for p, n in both]),
        throughput=_ratio([p.rate / n.rate for p, n in both]),
    )


def _middle(samples: Sequence[Sample]) -> Sample:
    return Sample(
        p50=statistics.median(s.p50 for s in samples),
        p99=statistics.median(s.p99 for s in samples),
        rate=statistics.median(s.rate for s in samples),
    )


def _ratio(values: Sequence[float]) -> Ratio:
    return Ratio(median=statistics.median(values), low=min(values), high=max(values))


# ── the client, in this process ─────────────────────────────────────────────────────────────────


def _measure(link: Link, port: int, seconds: float) -> Sample:
    times = sorted(_round_trips(link, port, seconds))
    return Sample(
        p50=times[len(times) // 2] / 1e9,
        p99=times[len(times) * 99 // 100] / 1e9,
        rate=_stream(link, port, seconds),
    )


def _round_trips(link: Link, port: int, seconds: float) -> list[int]:
    times = []
    clock = time.perf_counter_ns
    with _connected(link, port, b"r") as client, _on_core(0), _without_gc():
        send, receive = client.send, client.recv
        for _ in range(WARM_UP):
            send(b"x")
            receive(1)
        end = clock() + int(seconds * 1e9)
        before = clock()
        while before < end:
            send(b"x")
            receive(1)
            after = clock()
            times.append(after - before)
            before = after
    return times


def _stream(link: Link, port: int, seconds: float) -> float:
    with _connected(link, port, b"s") as client, _on_core(0), _without_gc():
        start = time.perf_counter()
        while time.perf_counter() - start < seconds:
            client.sendall(CHUNK)
        client.shutdown(socket.SHUT_WR)
        # The far end says when it had the last byte: what is still in buffers does not count.
        received = int.from_bytes(client.recv(8), "big")
        return received / (time.perf_counter() - start)


def _connected(link: Link, port: int, mode: bytes) -> socket.socket:
    source, target = link
    version = _version(link)
    with netns.inside(source.netns):
        client = socket.socket(FAMILY[version], socket.SOCK_STREAM)
    client.settimeout(PATIENCE)
    client.connect((str(target.address(version)), port))
    client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    client.sendall(mode)
    client.recv(1)  # the server has read the mode and moved to its core
    client.settimeout(None)  # a timeout costs a poll(2) per call
    return client


def _version(link: Link) -> int:
    return 4 if all(e.address(4) for e in link) else 6


@contextmanager
def _on_core(wanted: int) -> Iterator[None]:
    """Run on one core of those we may use, counted round."""
    before = os.sched_getaffinity(0)
    _pin(wanted, before)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def _pin(wanted: int, allowed: set[int]) -> None:
    cores = sorted(allowed)
    os.sched_setaffinity(0, {cores[wanted % len(cores)]})


@contextmanager
def _without_gc() -> Iterator[None]:
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


# ── the server, in a process of its own ─────────────────────────────────────────────────────────


@contextmanager
def _serving(targets: set[Endpoint]) -> Iterator[dict[Endpoint, int]]:
    """A forked server that listens in every target's namespace; it ends with us, however we end."""
    with ExitStack() as sockets:
        listeners = {t: sockets.enter_context(_listener(t)) for t in targets}
        alive, ours = os.pipe()  # readable (at its end) when we are gone
        pid = os.fork()
        if pid == 0:
            os.close(ours)
            _serve(list(listeners.values()), alive)  # never returns
        os.close(alive)
        try:
            yield {t: listener.getsockname()[1] for t, listener in listeners.items()}
        finally:
            os.close(ours)
            os.kill(pid, signal.SIGKILL)  # our own child, not yet waited for: the number is its
            os.waitpid(pid, 0)


def _listener(target: Endpoint) -> socket.socket:
    version = 4 if target.address(4) else 6
    with netns.inside(target.netns):
        made = socket.socket(FAMILY[version], socket.SOCK_STREAM)
    made.bind(("", 0))
    made.listen(16)
    return made


def _serve(listeners: Sequence[socket.socket], alive: int) -> None:
    status = 1
    try:
        # Ctrl-C goes to the whole terminal; the parent ends us, so that it can end in order.
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        allowed = os.sched_getaffinity(0)
        selector = selectors.DefaultSelector()
        selector.register(alive, selectors.EVENT_READ)
        for listener in listeners:
            selector.register(listener, selectors.EVENT_READ)
        gc.disable()
        while True:
            for key, _ in selector.select():
                if key.fileobj == alive:
                    status = 0
                    return
                assert isinstance(key.fileobj, socket.socket)
                _one_client(key.fileobj, allowed)
    finally:
        os._exit(status)


def _one_client(listener: socket.socket, allowed: set[int]) -> None:
    client, _ = listener.accept()
    with client:
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        mode = client.recv(1)
        _pin(0 if mode == b"r" else 1, allowed)
        client.sendall(b"!")
        try:
            if mode == b"r":
                while byte := client.recv(1):
                    client.send(byte)
            else:
                buffer, total = bytearray(len(CHUNK)), 0
                while size := client.recv_into(buffer):
                    total += size
                client.sendall(total.to_bytes(8, "big"))
        except ConnectionError:  # the client was interrupted
            pass
