"""The agent's socket: who may ask, what is answered, and that no client harms another."""

from __future__ import annotations

import errno
import json
import os
import socket
import stat
import subprocess
import tempfile
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from ipaddress import ip_address
from pathlib import Path
from time import monotonic
from typing import Any, Literal

import pytest

from muslin.agent.server import MAX_REQUEST, CniServer
from muslin.cni import build
from muslin.cni.install import install
from muslin.cni.protocol import Attached, Request
from muslin.errors import ConfigError, Exhausted, Unavailable
from muslin.log import log
from muslin.model import Host, Nic

CONFIG = {"cniVersion": "1.1.0", "name": "muslin", "type": "muslin-cni"}


class Node:
    """Attachments in a dict; what is in `trouble` is raised, and `gate` holds an ADD."""

    def __init__(self) -> None:
        self.heard: list[Request] = []
        self.trouble: Exception | None = None
        self.entered = threading.Semaphore(0)
        self.gate = threading.Event()
        self.gate.set()

    def add(self, request: Request) -> Attached:
        self.entered.release()
        assert self.gate.wait(20)
        self._hear(request)
        nic = Nic(
            container=request.container,
            ifname=request.ifname,
            netns=request.netns,
            addresses=(ip_address("10.244.0.5"),),
            mtu=1500,
            host=Host(uplink="ens3"),
        )
        return Attached(nic=nic, gateways=(ip_address("169.254.1.1"),))

    def _hear(self, request: Request) -> None:
        self.heard.append(request)
        if self.trouble is not None:
            raise self.trouble

    delete = check = gc = status = _hear


@pytest.fixture
def path() -> Iterator[Path]:
    """A short path: a socket's has at most 107 bytes."""
    with tempfile.TemporaryDirectory(prefix="mu") as name:
        yield Path(name) / "run" / "cni.sock"


@contextmanager
def serving(path: Path, node: Node, **options: Any) -> Iterator[CniServer]:
    server = CniServer(path, node, **options)
    try:
        server.start()
        yield server
    finally:
        node.gate.set()
        assert server.stop()


def connect(path: Path) -> socket.socket:
    connection = socket.socket(socket.AF_UNIX)
    connection.settimeout(20)
    try:
        connection.connect(str(path))
    except OSError:
        connection.close()
        raise
    return connection


def body(verb: str = "ADD", container: str = "c1", config: bytes | None = None) -> bytes:
    values = [verb, container, "/run/netns/blue", "eth0", "", "/opt/cni/bin"]
    stdin = json.dumps(CONFIG).encode() if config is None else config
    return b"".join(value.encode() + b"\0" for value in values) + stdin


def frame(data: bytes) -> bytes:
    return len(data).to_bytes(4, "big") + data


def receive(connection: socket.socket) -> tuple[int, bytes]:
    size = int.from_bytes(connection.recv(4, socket.MSG_WAITALL), "big")
    answer = connection.recv(size, socket.MSG_WAITALL) if size else b""
    return (answer[0], answer[1:]) if answer else (-1, b"")


def ask(path: Path, data: bytes | None = None) -> tuple[int, Any]:
    """One call; -1 and None if the server hung up without an answer."""
    with connect(path) as connection:
        try:
            connection.sendall(frame(body() if data is None else data))
            status, output = receive(connection)
        except (BrokenPipeError, ConnectionResetError):
            return -1, None
    return status, json.loads(output) if output else None


def wait_until_refused(path: Path) -> None:
    until = monotonic() + 20
    while monotonic() < until:
        try:
            connect(path).close()
        except ConnectionRefusedError:
            return
    raise AssertionError("still listening")


# ── one call ────────────────────────────────────────────────────────────────────────────────────


def test_an_add_is_parsed_done_and_rendered_in_its_version(path: Path) -> None:
    node = Node()
    with serving(path, node):
        status, answer = ask(path)
    assert status == 0
    assert answer["cniVersion"] == "1.1.0"
    assert answer["interfaces"][0]["mtu"] == 1500
    assert (node.heard[0].container, node.heard[0].netns) == ("c1", "/run/netns/blue")


@pytest.mark.parametrize("verb", ["DEL", "CHECK", "GC", "STATUS"])
def test_the_other_verbs_reach_the_handler_and_print_nothing(path: Path, verb: str) -> None:
    node = Node()
    config = json.dumps(CONFIG | ({"prevResult": {}} if verb == "CHECK" else {})).encode()
    with serving(path, node):
        assert ask(path, body(verb, config=config)) == (0, None)
    assert [request.verb for request in node.heard] == [verb]


def test_version_is_answered_without_the_handler(path: Path) -> None:
    node = Node()
    with serving(path, node):
        status, answer = ask(path, body("VERSION", config=b""))
    assert (status, answer["cniVersion"], node.heard) == (0, "1.1.0", [])


@pytest.mark.parametrize(
    ("trouble", "code"),
    [(Exhausted("pool full"), 100), (Unavailable("no block"), 50), (KeyError("bug"), 999)],
)
def test_what_the_handler_raises_is_an_error_object(
    path: Path, trouble: Exception, code: int
) -> None:
    node = Node()
    node.trouble = trouble
    with serving(path, node):
        status, answer = ask(path, body("STATUS"))
        assert (status, answer["code"]) == (1, code)
        assert "Traceback" not in answer["msg"]
        node.trouble = None
        assert ask(path)[0] == 0


def test_a_malformed_call_is_refused_in_the_version_it_names(path: Path) -> None:
    config = json.dumps(CONFIG | {"cniVersion": "0.4.0", "name": "a b"}).encode()
    with serving(path, Node()):
        status, answer = ask(path, body(config=config))
    assert (status, answer["cniVersion"], answer["code"]) == (1, "0.4.0", 7)


@contextmanager
def captured() -> Iterator[list[dict[str, Any]]]:
    events: list[dict[str, Any]] = []
    before, log.sink = log.sink, lambda level, event, fields: events.append(
        {"event": event, "log_level": level, **fields}
    )  # fmt: skip
    try:
        yield events
    finally:
        log.sink = before


def test_each_call_is_one_event(path: Path) -> None:
    node = Node()
    with captured() as events, serving(path, node):
        ask(path)
        node.trouble = Exhausted("pool full")
        ask(path, body("DEL"))
        ask(path, body("\udcff".encode("utf-8", "surrogatepass").decode("latin1")))
    ms = [event.pop("ms") for event in events]
    assert all(value >= 0 for value in ms)
    assert events[:2] == [
        {
            "event": "cni.add",
            "log_level": "info",
            "container": "c1",
            "ifname": "eth0",
            "outcome": "ok",
        },
        {
            "event": "cni.del",
            "log_level": "warning",
            "container": "c1",
            "ifname": "eth0",
            "outcome": "100",
            "error": "pool full",
        },
    ]
    assert events[2]["event"] == "cni.unknown"


@pytest.mark.parametrize("twin", ["c", "python"])
def test_the_real_plugin_and_the_server_understand_each_other(
    path: Path, twin: Literal["c", "python"]
) -> None:
    if twin == "c" and (fault := build.build()):
        pytest.skip(f"no C twin: {fault}")
    node = Node()
    directory = path.parent.parent
    plugin = install(
        bin_dir=directory, conf_dir=directory, socket=path, journal=directory / "j", twin=twin
    ).plugin
    env = {"CNI_COMMAND": "ADD", "CNI_CONTAINERID": "c1", "CNI_IFNAME": "eth0"}
    with serving(path, node):
        for netns, code in (("/run/netns/blue", None), ("blue", 4)):
            done = subprocess.run(
                [plugin],
                input=json.dumps(CONFIG).encode(),
                env=env | {"CNI_NETNS": netns},
                capture_output=True,
                check=False,
            )
            assert (done.returncode, json.loads(done.stdout).get("code")) == (bool(code), code)


# ── many calls ──────────────────────────────────────────────────────────────────────────────────


def test_200_calls_at_once_are_all_answered(path: Path) -> None:
    node = Node()
    with serving(path, node), ThreadPoolExecutor(200) as pool:
        names = [f"c{n}" for n in range(200)]
        answers = list(pool.map(lambda name: ask(path, body(container=name)), names))
    assert [status for status, _ in answers] == [0] * 200
    assert sorted(request.container for request in node.heard) == sorted(names)


def test_no_more_calls_run_than_there_are_workers(path: Path) -> None:
    node = Node()
    node.gate.clear()
    with serving(path, node, workers=2), ThreadPoolExecutor(5) as pool:
        answers = [pool.submit(ask, path, body(container=f"c{n}")) for n in range(5)]
        for _ in range(2):
            assert node.entered.acquire(timeout=20)
        assert not node.entered.acquire(timeout=0.1)
        node.gate.set()
        assert [answer.result()[0] for answer in answers] == [0] * 5


def test_a_slow_client_holds_one_worker_and_not_past_the_deadline(path: Path) -> None:
    with serving(path, Node(), workers=2, read_deadline=0.3), connect(path) as slow:
        slow.sendall(frame(body())[:20])
        for _ in range(20):
            assert ask(path)[0] == 0
        assert slow.recv(1) == b""  # hung up, at its deadline


def test_a_drip_of_bytes_does_not_move_the_deadline(path: Path) -> None:
    gone = threading.Event()
    with serving(path, Node(), workers=1, read_deadline=0.3), connect(path) as slow:

        def drip() -> None:
            for byte in frame(body()):
                try:
                    slow.sendall(bytes([byte]))
                except BrokenPipeError:
                    return
                if gone.wait(0.05):
                    return

        thread = threading.Thread(target=drip)
        thread.start()
        try:
            assert ask(path)[0] == 0  # the only worker is free again long before the drip ends
        finally:
            gone.set()
            thread.join()


@pytest.mark.parametrize(
    ("sent", "code"),
    [
        pytest.param(b"", None, id="nothing"),
        pytest.param(b"\0\0", None, id="half a length"),
        pytest.param(frame(body())[:-1], None, id="one byte short"),
        pytest.param(frame(b""), 6, id="empty"),
        pytest.param(frame(b"\0\0\0\0\0"), 6, id="five variables"),
        pytest.param((MAX_REQUEST + 1).to_bytes(4, "big"), 6, id="too long"),
        pytest.param(b"GET / HTTP/1.1\r\n\r\n", 6, id="another protocol"),
        pytest.param(frame(b"\0" * 6), 4, id="no verb"),
        pytest.param(frame(b"\xff" * 9 + b"\0" * 6 + b"\xff"), 4, id="no text"),
        pytest.param(frame(body(config=b"[" * 100_000)), 6, id="deep"),
    ],
)
def test_garbage_is_that_clients_own_trouble(path: Path, sent: bytes, code: int | None) -> None:
    with serving(path, Node(), workers=1, read_deadline=20):
        with connect(path) as connection:
            connection.sendall(sent)
            connection.shutdown(socket.SHUT_WR)
            try:
                status, output = receive(connection)
            except ConnectionResetError:
                status, output = -1, b""
        assert status == (-1 if code is None else 1)
        assert code is None or json.loads(output)["code"] == code
        assert ask(path)[0] == 0


def test_a_client_that_goes_before_its_answer_harms_nobody(path: Path) -> None:
    node = Node()
    node.gate.clear()
    with serving(path, node, workers=1):
        with connect(path) as connection:
            connection.sendall(frame(body(container="gone")))
            assert node.entered.acquire(timeout=20)
        node.gate.set()
        assert ask(path)[0] == 0
    assert [request.container for request in node.heard] == ["gone", "c1"]


def test_a_shortage_of_descriptors_passes(path: Path) -> None:
    """accept(2) fails and the connection stays queued: it is served when there is room again."""

    class Short:
        failures = 2

        def __init__(self, listener: socket.socket) -> None:
            self.listener = listener

        def accept(self) -> Any:
            if self.failures:
                self.failures -= 1
                raise OSError(errno.EMFILE, "Too many open files")
            return self.listener.accept()

        def __getattr__(self, name: str) -> Any:
            return getattr(self.listener, name)

    server = CniServer(path, Node(), workers=1)
    server._listener = Short(server._listener)  # type: ignore[assignment]
    server.start()
    with captured() as events:
        assert ask(path)[0] == 0
    assert server.stop()
    assert "cni.add" in [event["event"] for event in events]


# ── who may ask ─────────────────────────────────────────────────────────────────────────────────


def test_only_the_owner_can_reach_the_socket_whatever_the_umask(path: Path) -> None:
    before = os.umask(0)
    try:
        with serving(path, Node()):
            assert stat.S_IMODE(path.stat().st_mode) == 0o600
            assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    finally:
        os.umask(before)


@pytest.mark.parametrize(("uid", "status"), [(0, 0), (os.geteuid(), 0), (65534, -1)])
def test_a_stranger_is_hung_up_on(path: Path, uid: int, status: int) -> None:
    node = Node()
    with serving(path, node, peer_uid=lambda _: uid):
        assert ask(path)[0] == status
    assert bool(node.heard) == (status == 0)


def test_a_directory_that_others_may_write_is_refused(path: Path) -> None:
    path.parent.mkdir()
    path.parent.chmod(0o777)
    server = CniServer(path, Node())
    with pytest.raises(ConfigError, match="others may replace the socket"):
        server.start()
    assert server.stop()


def test_a_path_too_long_for_a_socket_is_refused(path: Path) -> None:
    server = CniServer(path.with_name("x" * 108), Node())
    with pytest.raises(ConfigError, match="longer than 107"):
        server.start()
    assert server.stop()


# ── one agent, and its end ──────────────────────────────────────────────────────────────────────


def test_a_second_agent_is_refused_and_the_first_keeps_serving(path: Path) -> None:
    with serving(path, Node()):
        second = CniServer(path, Node())
        with pytest.raises(ConfigError, match="another agent is running on"):
            second.start()
        assert second.stop()
        assert ask(path)[0] == 0


def test_of_many_agents_that_start_together_one_runs(path: Path) -> None:
    servers = [CniServer(path, Node(), workers=1) for _ in range(8)]

    def start(server: CniServer) -> bool:
        try:
            server.start()
        except ConfigError:
            return False
        return True

    with ThreadPoolExecutor(len(servers)) as pool:
        started = list(pool.map(start, servers))
    assert sum(started) == 1
    assert ask(path)[0] == 0
    stopped = [server.stop() for server in servers]
    assert all(stopped)


def test_a_stale_socket_is_replaced(path: Path) -> None:
    path.parent.mkdir(mode=0o700)
    with socket.socket(socket.AF_UNIX) as crashed:
        crashed.bind(str(path))
    with serving(path, Node()):
        assert ask(path)[0] == 0


def test_what_is_no_socket_is_not_removed(path: Path) -> None:
    path.parent.mkdir(mode=0o700)
    path.write_text("mine")
    server = CniServer(path, Node())
    with pytest.raises(ConfigError, match="not a socket"):
        server.start()
    assert server.stop()
    assert path.read_text() == "mine"


def test_stop_lets_a_running_call_end_and_removes_the_socket(path: Path) -> None:
    node = Node()
    node.gate.clear()
    server = CniServer(path, node)
    server.start()
    with ThreadPoolExecutor(2) as pool:
        answer = pool.submit(ask, path)
        assert node.entered.acquire(timeout=20)
        stopped = pool.submit(server.stop)
        node.gate.set()
        assert answer.result()[0] == 0
        assert stopped.result()
    assert not path.exists()


def test_stop_does_not_wait_for_ever(path: Path) -> None:
    node = Node()
    node.gate.clear()
    server = CniServer(path, node)
    server.start()
    with ThreadPoolExecutor(1) as pool:
        answer = pool.submit(ask, path)
        assert node.entered.acquire(timeout=20)
        assert not server.stop(timeout=0.05)
        node.gate.set()
        assert answer.result()[0] == 0


def test_stop_leaves_a_successors_socket_alone(path: Path) -> None:
    """The first one's listener is shut but it still drains: the next may start at once."""
    node = Node()
    node.gate.clear()
    first = CniServer(path, node)
    first.start()
    with ThreadPoolExecutor(2) as pool:
        answer = pool.submit(ask, path)
        assert node.entered.acquire(timeout=20)
        stopped = pool.submit(first.stop)
        wait_until_refused(path)
        with serving(path, Node()):
            node.gate.set()
            assert stopped.result()
            assert ask(path)[0] == 0
        assert answer.result()[0] == 0
