"""Both twins of the installed executable against an agent that behaves, misbehaves or is away."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Protocol

import pytest

from muslin.agent.server import split
from muslin.cni import build, install, plugin
from muslin.cni.environment import VARIABLES
from muslin.cni.protocol import NEWEST, parse, version_reply
from muslin.kernel import boot

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
ENTRY = rf"\d{{20}}-\d{{10}}-{boot.identity()}"
Agent = Callable[[socket.socket], None]


class Install(Protocol):
    def __call__(self, directory: Path, *, deadline: float = 20.0) -> Path: ...


@pytest.fixture
def directory() -> Iterator[Path]:
    """A short path: a socket's has at most 107 bytes."""
    with tempfile.TemporaryDirectory(prefix="mu") as name:
        yield Path(name)


@pytest.fixture(params=["c", "python"])
def executable(request: pytest.FixtureRequest) -> Install:
    """Install one of the twins so that it asks at `directory`/s and writes into `directory`/j."""
    if request.param == "c" and (fault := build.build()):
        pytest.skip(f"no C twin: {fault}")

    def put(directory: Path, *, deadline: float = 20.0) -> Path:
        return install.install(
            bin_dir=directory,
            conf_dir=directory,
            socket=directory / "s",
            journal=directory / "j",
            deadline=deadline,
            twin=request.param,
        ).plugin

    return put


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


def test_the_agent_hears_the_call_as_the_runtime_made_it(
    executable: Install, directory: Path
) -> None:
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


def test_an_error_object_is_printed_as_it_came_and_the_status_is_1(
    executable: Install, directory: Path
) -> None:
    error = b'{"cniVersion":"1.0.0","code":100,"msg":"pool blue: full"}'
    with agent(directory, says(frame(1, error))):
        assert run(executable(directory))[:2] == (1, error)


def test_an_empty_success_prints_nothing(executable: Install, directory: Path) -> None:
    with agent(directory, says(frame(0, b""))):
        assert run(executable(directory), CNI_COMMAND="DEL")[:2] == (0, b"")


def test_a_long_answer_and_a_long_configuration_pass_whole(
    executable: Install, directory: Path
) -> None:
    config, answer = b"{" + b" " * (1 << 20), b"{" + b" " * (3 << 20) + b"}"
    heard = []

    def behave(connection: socket.socket) -> None:
        heard.append(request(connection))
        connection.sendall(frame(0, answer))

    with agent(directory, behave):
        assert run(executable(directory), config)[:2] == (0, answer)
    assert heard[0].endswith(config)


def test_a_variable_that_is_no_text_passes_as_its_bytes(
    executable: Install, directory: Path
) -> None:
    heard = []

    def behave(connection: socket.socket) -> None:
        heard.append(request(connection))
        connection.sendall(frame(0, OK))

    with agent(directory, behave):
        run(executable(directory), CNI_ARGS=os.fsdecode(b"A=\xff"))
    assert heard[0].split(b"\0")[4] == b"A=\xff"


# ── an agent that cannot be reached ─────────────────────────────────────────────────────────────


def test_without_a_socket_the_runtime_is_told_to_try_again(
    executable: Install, directory: Path
) -> None:
    code, message = refusal(executable(directory))
    assert code == 11
    assert str(directory / "s") in message
    assert "No such file" in message


def test_a_socket_that_nobody_listens_on_is_try_again(executable: Install, directory: Path) -> None:
    with socket.socket(socket.AF_UNIX) as stale:
        stale.bind(str(directory / "s"))
    code, message = refusal(executable(directory))
    assert code == 11
    assert "refused" in message


def test_status_without_an_agent_is_not_available(executable: Install, directory: Path) -> None:
    assert refusal(executable(directory), CNI_COMMAND="STATUS")[0] == 50


def test_an_agent_that_hangs_is_left_at_the_deadline(executable: Install, directory: Path) -> None:
    def behave(connection: socket.socket) -> None:
        request(connection)
        assert connection.recv(1) == b""  # until the plugin has gone

    with agent(directory, behave):
        code, message = refusal(executable(directory, deadline=0.2))
    assert code == 11
    assert "within 0.2 s" in message


def test_a_queue_that_stays_full_is_left_at_the_deadline(
    executable: Install, directory: Path
) -> None:
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


def test_a_blocked_alarm_signal_does_not_switch_the_deadline_off(
    executable: Install, directory: Path
) -> None:

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
def test_an_agent_that_ends_before_it_answers_is_try_again(
    executable: Install, directory: Path, read: bool
) -> None:
    def behave(connection: socket.socket) -> None:
        if read:
            request(connection)

    with agent(directory, behave):
        code, message = refusal(executable(directory))
    assert code == 11
    assert "ended before it answered" in message or "Broken pipe" in message


def test_standard_input_that_stays_open_is_an_io_failure(
    executable: Install, directory: Path
) -> None:
    program = executable(directory, deadline=0.2)
    with subprocess.Popen(
        [program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=ENV
    ) as process:
        assert process.stdout is not None
        error = json.loads(process.stdout.read())
    assert (process.returncode, error["code"]) == (1, 5)


def test_closed_standard_input_is_an_io_failure(executable: Install, directory: Path) -> None:
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
def test_garbage_is_an_io_failure(executable: Install, directory: Path, answer: bytes) -> None:
    with agent(directory, says(answer)):
        code, message = refusal(executable(directory))
    assert code == 5
    assert "answer" in message


# ── without an agent ────────────────────────────────────────────────────────────────────────────


def test_version_is_the_agents_answer_if_it_can_be_had(
    executable: Install, directory: Path
) -> None:
    newer = b'{"cniVersion":"1.0.0","supportedVersions":["9.9.9"]}'
    with agent(directory, says(frame(0, newer))):
        assert run(executable(directory), CNI_COMMAND="VERSION")[:2] == (0, newer)


def test_version_needs_no_agent(executable: Install, directory: Path) -> None:
    program = executable(directory)
    assert run(program, b"", CNI_COMMAND="VERSION")[:2] == (0, version_reply(NEWEST))


def test_version_survives_garbage_from_the_agent(executable: Install, directory: Path) -> None:
    with agent(directory, says(frame(0, b"hello"))):
        status, output, _ = run(executable(directory), CNI_COMMAND="VERSION")
    assert (status, output) == (0, version_reply(NEWEST))


def test_a_person_who_starts_it_is_told_what_it_is(executable: Install, directory: Path) -> None:
    code, message = refusal(executable(directory), CNI_COMMAND="")
    assert code == 4
    assert "CNI_COMMAND" in message


# ── a DEL that nobody hears ─────────────────────────────────────────────────────────────────────


def delete(program: Path, **env: str) -> tuple[int, bytes]:
    return run(program, CNI_COMMAND="DEL", **env)[:2]


@pytest.fixture
def journal(directory: Path) -> Callable[[], list[str]]:
    """The names in the journal, unfinished ones included."""
    return lambda: sorted(os.listdir(directory / "j"))


def test_its_request_is_left_in_the_journal_whole_and_for_root_alone(
    executable: Install, directory: Path
) -> None:
    began = boot.clock()
    assert delete(executable(directory)) == (0, b"")
    (entry,) = (directory / "j").iterdir()
    assert re.fullmatch(ENTRY, entry.name)
    assert began <= int(entry.name[:20]) / 1e9 <= boot.clock()
    assert stat.S_IMODE(entry.stat().st_mode) == 0o600
    assert stat.S_IMODE((directory / "j").stat().st_mode) == 0o700
    size, body = entry.read_bytes()[:4], entry.read_bytes()[4:]
    assert int.from_bytes(size, "big") == len(body)
    env, stdin = split(body)
    assert (env, stdin) == (ENV | {"CNI_COMMAND": "DEL"}, CONFIG)


def test_what_the_agent_hears_is_what_the_journal_keeps(
    executable: Install, directory: Path
) -> None:
    program, heard = executable(directory), []

    def behave(connection: socket.socket) -> None:
        heard.append(request(connection))
        connection.sendall(frame(0, b""))

    with agent(directory, behave):
        assert delete(program) == (0, b"")
    assert list((directory / "j").iterdir()) == []
    assert delete(program) == (0, b"")  # the socket is still there, and nobody listens
    (entry,) = (directory / "j").iterdir()
    assert entry.read_bytes()[4:] == heard[0]


@pytest.mark.parametrize("read", [True, False])
def test_an_agent_that_ends_or_hangs_in_the_middle_of_a_del_is_no_agent(
    executable: Install, directory: Path, read: bool, journal: Callable[[], list[str]]
) -> None:
    def behave(connection: socket.socket) -> None:
        if read:
            request(connection)
            assert connection.recv(1) == b""  # until the plugin has gone

    with agent(directory, behave):
        assert delete(executable(directory, deadline=0.2)) == (0, b"")
    assert len(journal()) == 1


def test_what_an_agent_says_is_passed_on_and_leaves_no_entry(
    executable: Install, directory: Path, journal: Callable[[], list[str]]
) -> None:
    program = executable(directory)
    refused = b'{"cniVersion":"1.0.0","code":11,"msg":"not yet"}'
    with agent(directory, says(frame(1, refused))):
        assert delete(program) == (1, refused)
    (directory / "s").unlink()
    with agent(directory, says(frame(0, b"hello"))):
        assert refusal(program, CNI_COMMAND="DEL")[0] == 5
    assert journal() == []


@pytest.mark.parametrize("verb", ["ADD", "CHECK", "GC", "STATUS", "VERSION", "DELETE"])
def test_no_other_call_is_left_in_the_journal(
    executable: Install, directory: Path, verb: str, journal: Callable[[], list[str]]
) -> None:
    run(executable(directory), CNI_COMMAND=verb)
    assert journal() == []


def test_entries_sort_by_time(
    executable: Install, directory: Path, journal: Callable[[], list[str]]
) -> None:
    program = executable(directory)
    for number in range(5):
        delete(program, CNI_CONTAINERID=f"c{number}")
    texts = [(directory / "j" / name).read_bytes() for name in journal()]
    assert [b"\0c%d\0" % n in text for n, text in enumerate(texts)] == [True] * 5


def test_fifty_at_once_leave_fifty_entries(
    executable: Install, directory: Path, journal: Callable[[], list[str]]
) -> None:
    program = executable(directory)
    calls = [
        subprocess.Popen(
            [program],
            env=ENV | {"CNI_COMMAND": "DEL", "CNI_CONTAINERID": f"c{number}"},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
        )
        for number in range(50)
    ]
    assert {call.communicate(timeout=30)[0] for call in calls} == {b""}
    assert {call.returncode for call in calls} == {0}
    bodies = [(directory / "j" / name).read_bytes()[4:] for name in journal()]
    assert {split(body)[0]["CNI_CONTAINERID"] for body in bodies} == {f"c{n}" for n in range(50)}
    assert len(bodies) == 50


def test_a_full_journal_takes_no_more_and_the_runtime_is_told_to_try_again(
    executable: Install, directory: Path, journal: Callable[[], list[str]]
) -> None:
    program = executable(directory)
    for number in range(plugin.MAX_ENTRIES - 1):
        (directory / "j" / str(number)).touch()
    assert delete(program) == (0, b"")
    code, message = refusal(program, CNI_COMMAND="DEL")
    assert code == 11
    assert "is it running?; journal" in message
    assert message.endswith(": full")
    assert len(journal()) == plugin.MAX_ENTRIES


def test_without_its_directory_the_runtime_is_told_to_try_again(
    executable: Install, directory: Path
) -> None:
    program = executable(directory)
    (directory / "j").rmdir()
    code, message = refusal(program, CNI_COMMAND="DEL")
    assert (code, message.endswith("No such file or directory")) == (11, True)


def test_an_entry_that_does_not_fit_is_taken_back(
    executable: Install, directory: Path, journal: Callable[[], list[str]]
) -> None:
    """A limit of this process stands for a quota: writing fails in the middle."""
    done = subprocess.run(
        ["prlimit", "--fsize=100", executable(directory)],
        input=CONFIG,
        env=ENV | {"CNI_COMMAND": "DEL"},
        capture_output=True,
        check=False,
    )
    assert json.loads(done.stdout)["code"] == 11
    assert "File too large" in json.loads(done.stdout)["msg"]
    assert journal() == []


@pytest.mark.root
@pytest.mark.parametrize(
    ("options", "why"), [("size=16k", "No space left"), ("ro", "Read-only file system")]
)
def test_a_disk_that_takes_nothing_is_try_again(
    executable: Install, directory: Path, options: str, why: str
) -> None:
    script = f"""
        mount -t tmpfs -o {options} none "$1/j"
        (head -c 16384 /dev/zero >"$1/j/fill") 2>/dev/null
        "$1/muslin-cni"
        status=$?
        ls -A "$1/j" >&2
        exit $status
    """
    executable(directory)
    done = subprocess.run(
        ["unshare", "--mount", "sh", "-c", script, "sh", directory],
        input=CONFIG,
        env=ENV | {"CNI_COMMAND": "DEL", "PATH": os.environ["PATH"]},
        capture_output=True,
        check=False,
    )
    error = json.loads(done.stdout)
    assert (done.returncode, error["code"]) == (1, 11)
    assert why in error["msg"]
    assert done.stderr.split() in ([], [b"fill"])


def test_one_that_is_killed_before_the_end_leaves_no_entry(
    executable: Install, directory: Path, journal: Callable[[], list[str]]
) -> None:
    """SIGKILL where the entry is to get its name: the file is written and nobody will read it."""
    tracer = ["strace", "-f", "-o", "/dev/null"]
    if not shutil.which("strace") or subprocess.run([*tracer, "true"], check=False).returncode:
        pytest.skip("strace is not installed or may not trace")
    inject = "inject=?rename,?renameat,?renameat2:signal=SIGKILL"
    done = subprocess.run(
        [*tracer, "-e", inject, executable(directory)],
        input=CONFIG,
        env=ENV | {"CNI_COMMAND": "DEL"},
        capture_output=True,
        check=False,
    )
    assert done.returncode == -signal.SIGKILL  # strace ends as its child did
    assert done.stdout == b""
    (name,) = journal()
    assert re.fullmatch(rf"\.{ENTRY}", name)


def test_with_standard_output_closed_the_answer_goes_nowhere_else(
    executable: Install, directory: Path
) -> None:
    """The socket to the agent then has descriptor 1."""
    late = []

    def behave(connection: socket.socket) -> None:
        request(connection)
        connection.sendall(frame(0, OK))
        late.append(connection.recv(1))

    line = f"exec {executable(directory)} >&-"
    with agent(directory, behave):
        done = subprocess.run(["/bin/sh", "-c", line], input=CONFIG, env=ENV, check=False)
    assert (done.returncode, late) == (1, [b""])


# ── what it costs ───────────────────────────────────────────────────────────────────────────────


def test_it_imports_next_to_nothing(directory: Path) -> None:
    """Everything here but `_socket` is in a bare interpreter; `json` alone would be 6 ms more."""
    bare = "import sys; print(*sys.modules, file=sys.stderr)"
    settings = install.Settings(socket=str(directory / "s"), journal="/none", deadline=20.0)
    source = install.script(settings, sys.executable).decode()
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


def test_the_c_twin_compiles_without_a_warning(tmp_path: Path) -> None:
    compiler = next(filter(None, map(shutil.which, build.COMPILERS)), None)
    if compiler is None:
        pytest.skip(f"no C compiler: {', '.join(build.COMPILERS)}")
    argv = [compiler, *build.FLAGS, "-Werror", "-o", str(tmp_path / "shim"), str(build.SOURCE)]
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    assert done.stderr == ""
    assert done.returncode == 0


def test_the_c_twin_is_kernel_style_and_short_enough_to_read() -> None:
    lines = build.SOURCE.read_text().expandtabs(8).splitlines()
    assert [line for line in lines if len(line) > 100] == []
    assert len(lines) <= 320
