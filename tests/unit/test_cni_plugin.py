"""The installed executable against an agent that behaves, misbehaves or is not there."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from muslin.cni import install, plugin
from muslin.cni.environment import VARIABLES
from muslin.cni.protocol import NEWEST, parse, version_reply

ENV = {
    "CNI_COMMAND": "ADD",
    "CNI_CONTAINERID": "c1",
    "CNI_NETNS": "/proc/4711/ns/net",
    "CNI_IFNAME": "eth0",
    "CNI_ARGS": "IgnoreUnknown=1;K8S_POD_NAME=cart-0",
    "CNI_PATH": "/opt/cni/bin",
}
CONFIG = b'{"cniVersion":"1.0.0","name":"muslin","type":"muslin-cni"}'
OK = b'{"cniVersion":"1.0.0"}'
Agent = Callable[[socket.socket], None]


@pytest.fixture
def directory() -> Iterator[Path]:
    """A short path: a socket's has at most 107 bytes."""
    with tempfile.TemporaryDirectory(prefix="mu") as name:
        yield Path(name)


def executable(directory: Path, *, deadline: float = 20.0) -> Path:
    """The plugin, installed to ask at `directory`/s."""
    return install.install(
        bin_dir=directory,
        conf_dir=directory,
        socket=directory / "s",
        deadline=deadline,
    ).plugin


def run(
    program: Path, stdin: bytes = CONFIG, **env: str
) -> tuple[int, bytes, subprocess.CompletedProcess[bytes]]:
    done = subprocess.run(
        [program], input=stdin, env=ENV | env, capture_output=True, timeout=30, check=False
    )
    return done.returncode, done.stdout, done


def refusal(program: Path, stdin: bytes = CONFIG, **env: str) -> tuple[int, str]:
    """The code and message of the error object; nothing else is printed."""
    status, output, done = run(program, stdin, **env)
    assert status == 1
    assert done.stderr == b""
    error = json.loads(output)
    assert error["cniVersion"] == NEWEST
    return error["code"], error["msg"]


@contextmanager
def agent(directory: Path, behave: Agent) -> Iterator[None]:
    """Accept one connection and let `behave` have it."""
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(directory / "s"))
        listener.listen()
        listener.settimeout(20)

        def serve() -> None:
            connection, _ = listener.accept()
            with connection:
                behave(connection)

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield
        finally:
            thread.join(20)
            assert not thread.is_alive()


def request(connection: socket.socket) -> bytes:
    size = int.from_bytes(connection.recv(4, socket.MSG_WAITALL), "big")
    return connection.recv(size, socket.MSG_WAITALL)


def frame(status: int, output: bytes) -> bytes:
    return (1 + len(output)).to_bytes(4, "big") + bytes([status]) + output


def says(answer: bytes) -> Agent:
    """An agent that reads the request and sends these bytes."""

    def behave(connection: socket.socket) -> None:
        request(connection)
        connection.sendall(answer)

    return behave


# ── what passes through ─────────────────────────────────────────────────────────────────────────


def test_the_agent_hears_the_call_as_the_runtime_made_it(directory: Path) -> None:
    heard = []

    def behave(connection: socket.socket) -> None:
        heard.append(request(connection))
        connection.sendall(frame(0, OK))

    with agent(directory, behave):
        assert run(executable(directory))[:2] == (0, OK)
    *values, stdin = heard[0].split(b"\0", len(VARIABLES))
    env = dict(zip(VARIABLES, (v.decode() for v in values), strict=True))
    assert (env, stdin) == (ENV, CONFIG)
    assert parse(env, stdin).netns == "/proc/4711/ns/net"


def test_an_error_object_is_printed_as_it_came_and_the_status_is_1(directory: Path) -> None:
    error = b'{"cniVersion":"1.0.0","code":100,"msg":"pool blue: full"}'
    with agent(directory, says(frame(1, error))):
        assert run(executable(directory))[:2] == (1, error)


def test_an_empty_success_prints_nothing(directory: Path) -> None:
    with agent(directory, says(frame(0, b""))):
        assert run(executable(directory), CNI_COMMAND="DEL")[:2] == (0, b"")


def test_a_long_answer_and_a_long_configuration_pass_whole(directory: Path) -> None:
    config, answer = b"{" + b" " * (1 << 20), b"{" + b" " * (3 << 20) + b"}"
    heard = []

    def behave(connection: socket.socket) -> None:
        heard.append(request(connection))
        connection.sendall(frame(0, answer))

    with agent(directory, behave):
        assert run(executable(directory), config)[:2] == (0, answer)
    assert heard[0].endswith(config)


def test_a_variable_that_is_no_text_passes_as_its_bytes(directory: Path) -> None:
    heard = []

    def behave(connection: socket.socket) -> None:
        heard.append(request(connection))
        connection.sendall(frame(0, OK))

    with agent(directory, behave):
        run(executable(directory), CNI_ARGS=os.fsdecode(b"A=\xff"))
    assert heard[0].split(b"\0")[4] == b"A=\xff"


# ── an agent that cannot be reached ─────────────────────────────────────────────────────────────


def test_without_a_socket_the_runtime_is_told_to_try_again(directory: Path) -> None:
    code, message = refusal(executable(directory))
    assert code == 11
    assert str(directory / "s") in message
    assert "No such file" in message


def test_a_socket_that_nobody_listens_on_is_try_again(directory: Path) -> None:
    with socket.socket(socket.AF_UNIX) as stale:
        stale.bind(str(directory / "s"))
    code, message = refusal(executable(directory))
    assert code == 11
    assert "refused" in message


def test_status_without_an_agent_is_not_available(directory: Path) -> None:
    assert refusal(executable(directory), CNI_COMMAND="STATUS")[0] == 50


def test_an_agent_that_hangs_is_left_at_the_deadline(directory: Path) -> None:
    def behave(connection: socket.socket) -> None:
        request(connection)
        assert connection.recv(1) == b""  # until the plugin has gone

    with agent(directory, behave):
        code, message = refusal(executable(directory, deadline=0.2))
    assert code == 11
    assert "within 0.2 s" in message


def test_a_queue_that_stays_full_is_left_at_the_deadline(directory: Path) -> None:
    """The kernel makes connect(2) wait, so a burst of pods queues up instead of failing."""
    with ExitStack() as stack:
        listener = stack.enter_context(socket.socket(socket.AF_UNIX))
        listener.bind(str(directory / "s"))
        listener.listen(0)
        while True:
            waiting = stack.enter_context(socket.socket(socket.AF_UNIX))
            waiting.setblocking(False)
            try:
                waiting.connect(str(directory / "s"))
            except BlockingIOError:
                break
        assert refusal(executable(directory, deadline=0.2))[0] == 11


def test_a_blocked_alarm_signal_does_not_switch_the_deadline_off(directory: Path) -> None:

    def behave(connection: socket.socket) -> None:
        request(connection)
        assert connection.recv(1) == b""

    program = executable(directory, deadline=0.2)
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGALRM})
    try:
        with agent(directory, behave):
            assert refusal(program)[0] == 11
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGALRM})


@pytest.mark.parametrize("read", [True, False])
def test_an_agent_that_ends_before_it_answers_is_try_again(directory: Path, read: bool) -> None:
    def behave(connection: socket.socket) -> None:
        if read:
            request(connection)

    with agent(directory, behave):
        code, message = refusal(executable(directory))
    assert code == 11
    assert "ended before it answered" in message or "Broken pipe" in message


def test_standard_input_that_stays_open_is_an_io_failure(directory: Path) -> None:
    program = executable(directory, deadline=0.2)
    with subprocess.Popen(
        [program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=ENV
    ) as process:
        assert process.stdout is not None
        error = json.loads(process.stdout.read())
    assert (process.returncode, error["code"]) == (1, 5)


def test_closed_standard_input_is_an_io_failure(directory: Path) -> None:
    line = f"exec {executable(directory)} <&-"
    done = subprocess.run(["/bin/sh", "-c", line], env=ENV, capture_output=True, check=False)
    assert json.loads(done.stdout)["code"] == 5


# ── an agent that makes no sense ────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    "answer",
    [
        pytest.param(b"\0\0", id="half a length"),
        pytest.param(frame(0, OK)[:-1], id="one byte short"),
        pytest.param(b"\0\0\0\0", id="length 0"),
        pytest.param(b"\xff\xff\xff\xff" + OK, id="4 GiB announced"),
        pytest.param(frame(2, OK), id="unknown status"),
        pytest.param(frame(0, b"hello"), id="no object"),
        pytest.param(frame(1, b""), id="an error without its object"),
        pytest.param(b"HTTP/1.1 400 Bad Request\r\n\r\n", id="another protocol"),
    ],
)
def test_garbage_is_an_io_failure(directory: Path, answer: bytes) -> None:
    with agent(directory, says(answer)):
        code, message = refusal(executable(directory))
    assert code == 5
    assert "answer" in message


# ── without an agent ────────────────────────────────────────────────────────────────────────────


def test_version_is_the_agents_answer_if_it_can_be_had(directory: Path) -> None:
    newer = b'{"cniVersion":"1.0.0","supportedVersions":["9.9.9"]}'
    with agent(directory, says(frame(0, newer))):
        assert run(executable(directory), CNI_COMMAND="VERSION")[:2] == (0, newer)


def test_version_needs_no_agent(directory: Path) -> None:
    program = executable(directory)
    assert run(program, b"", CNI_COMMAND="VERSION")[:2] == (0, version_reply(NEWEST))


def test_version_survives_garbage_from_the_agent(directory: Path) -> None:
    with agent(directory, says(frame(0, b"hello"))):
        status, output, _ = run(executable(directory), CNI_COMMAND="VERSION")
    assert (status, output) == (0, version_reply(NEWEST))


def test_a_person_who_starts_it_is_told_what_it_is(directory: Path) -> None:
    code, message = refusal(executable(directory), CNI_COMMAND="")
    assert code == 4
    assert "CNI_COMMAND" in message


# ── what it costs ───────────────────────────────────────────────────────────────────────────────


def test_it_imports_next_to_nothing(directory: Path) -> None:
    """Everything here but `_socket` is in a bare interpreter; `json` alone would be 6 ms more."""
    bare = "import sys; print(*sys.modules, file=sys.stderr)"
    source = executable(directory).read_text()
    body = source.replace("posix._exit(main())", f"main(); {bare}")
    assert body != source
    plain, ours = (
        subprocess.run(
            [sys.executable, "-ISE", "-c", text],
            input=CONFIG,
            env=ENV,
            capture_output=True,
            check=True,
        )
        for text in (bare, body)
    )
    assert set(ours.stderr.split()) - set(plain.stderr.split()) <= {b"_socket"}


def test_its_copies_of_what_it_may_not_import_are_true() -> None:
    assert tuple(name.decode() for name in plugin.VARIABLES) == VARIABLES
    assert version_reply(NEWEST) == plugin.VERSION
    assert install.DEADLINE == plugin.DEADLINE
