"""The CNI plugin: pass one call to the agent, print what it answers.

shim.c is the same in C and thirty times as fast; this one serves where Muslin
was installed without a C compiler, and one suite of tests holds both.
`cni.install` copies this file to /opt/cni/bin/muslin-cni with the first line
`#!<python> -ISE` and its own SOCKET, DEADLINE and JOURNAL.  A runtime starts
it for every call, so what it costs is the interpreter (9 ms) and as little as
can be on top: it imports only what is in the interpreter already (`json` alone
is 6 ms, `socket` 11), reads no JSON and judges nothing.  The agent does that.

    request   4 bytes length, then CNI_COMMAND CNI_CONTAINERID CNI_NETNS CNI_IFNAME
              CNI_ARGS CNI_PATH, a NUL after each, then standard input as it came
    answer    4 bytes length, then 1 byte: 0 done, 1 an error object; then standard output

Lengths are big-endian and count what follows them.  The agent shares the
runtime's mount and process namespaces, so paths go as they are.

One timer bounds the whole call, reading standard input included.  It is a
signal and not a socket timeout, because a socket with a timeout does not wait
for a place in the agent's queue: connect(2) then fails with EAGAIN at once
when several hundred pods start together.

A DEL that no agent answers has still succeeded, once its request lies in the
journal: a runtime that may not forget a pod keeps it for as long as the agent
is away.  The entry is the request as it would have gone over the socket, in a
file that is renamed into place when it is on the disk.  Its name says when, by
the clock that nobody sets (kernel/boot.py), and in which boot that clock began.
Where that cannot be had (no room, too many) the answer is "try again later".
What becomes of entries is in `agent.journal`, which also makes the directory.
"""

import _signal  # type: ignore[import-not-found]  # the C part of `signal`, which imports enum
import _socket
import posix
import time

SOCKET = "/run/muslin/cni.sock"
# Seconds for one call.  An ADD may wait behind others for the kernel's RTNL and for a block of
# addresses; kubelet gives a pod sandbox 4 minutes, so the reason arrives before its deadline.
DEADLINE = 60
JOURNAL = "/var/lib/muslin/journal"
BOOT_ID = "/proc/sys/kernel/random/boot_id"
VERSION_DEADLINE = 2  # a runtime asks at its start, when the agent may not be there
VERSION = b'{"cniVersion":"1.1.0","supportedVersions":["0.3.0","0.3.1","0.4.0","1.0.0","1.1.0"]}'
VARIABLES = (
    b"CNI_COMMAND",
    b"CNI_CONTAINERID",
    b"CNI_NETNS",
    b"CNI_IFNAME",
    b"CNI_ARGS",
    b"CNI_PATH",
)
MAX_CONFIG = 1 << 20  # bytes of standard input; one more is sent on, for the agent to refuse
MAX_ANSWER = 4 << 20
MAX_ENTRIES = 4096  # names in the journal: a node has some hundred pods


class Failed(Exception):
    """The call ends here; the code is the specification's."""

    def __init__(self, code: int, message: str) -> None:
        self.code = code
        self.message = message


class Late(Exception):
    """DEADLINE seconds have passed."""


class Unreachable(Failed):
    """No agent has answered: try again later; for STATUS, not available."""

    def __init__(self, command: bytes, why: str) -> None:
        super().__init__(50 if command == b"STATUS" else 11, f"muslin-agent at {SOCKET}: {why}")


def main() -> int:
    """Serve the call that the environment describes; the exit status."""
    command = posix.environ.get(b"CNI_COMMAND", b"")
    try:
        if not command:
            raise Failed(4, "CNI_COMMAND is not set: a container runtime starts this program")
        status, output = serve(command)
    except Failed as e:
        status, output = 1, error_object(e)
        if command == b"VERSION":
            status, output = 0, VERSION
    try:
        while output:
            output = output[posix.write(1, output) :]
    except OSError:
        return 1  # nobody reads: there is no one left to tell
    return status


def serve(command: bytes) -> tuple[int, bytes]:
    """The agent's status and output; for a DEL that it does not answer, those of success."""
    deadline = min(VERSION_DEADLINE, DEADLINE) if command == b"VERSION" else DEADLINE
    request = b""
    start_timer(deadline)
    try:
        request = frame(read_config())
        return ask(request)
    except Late:
        failed = Unreachable(command, f"does not answer within {deadline} s")
    except OSError as e:
        failed = Unreachable(command, f"{e.strerror}; is it running?")
    finally:
        _signal.setitimer(_signal.ITIMER_REAL, 0)
    # No timer from here on: what waits for a disk cannot be interrupted.
    if command != b"DEL" or not request:
        raise failed
    try:
        journal(request)
    except OSError as e:
        failed.message += f"; journal {JOURNAL}: {e.strerror}"
        raise failed from None
    return 0, b""


def start_timer(seconds: float) -> None:
    """Raise Late in whatever is going on after `seconds`."""

    def late(*_: object) -> None:
        _signal.setitimer(_signal.ITIMER_REAL, 0)
        raise Late

    _signal.signal(_signal.SIGALRM, late)
    # A parent's signal mask is inherited through exec.
    _signal.pthread_sigmask(_signal.SIG_UNBLOCK, {_signal.SIGALRM})
    # Should it come between a check and a system call, it comes again.
    _signal.setitimer(_signal.ITIMER_REAL, seconds, 0.1)


def read_config() -> bytes:
    """Standard input to its end."""
    parts = []
    room = MAX_CONFIG + 1
    try:
        while room and (part := posix.read(0, min(room, 65536))):
            parts.append(part)
            room -= len(part)
    except Late:
        raise Failed(5, "standard input was not closed") from None
    except OSError as e:
        raise Failed(5, f"standard input: {e.strerror}") from None
    return b"".join(parts)


def frame(config: bytes) -> bytes:
    """The request, as it goes to the agent or into the journal."""
    body = b"".join(posix.environ.get(name, b"") + b"\0" for name in VARIABLES) + config
    return len(body).to_bytes(4, "big") + body


def ask(request: bytes) -> tuple[int, bytes]:
    """The agent's status and output; OSError while it has not begun to answer."""
    agent = _socket.socket(_socket.AF_UNIX, _socket.SOCK_STREAM)
    agent.connect(SOCKET)
    try:  # noqa: SIM105  (contextlib is a costly import)
        agent.sendall(request)
    except BrokenPipeError:
        pass  # refused without being read: the answer says why
    head = receive(agent, 4, begun=False)
    size = int.from_bytes(head, "big")
    if not 1 <= size <= MAX_ANSWER:
        raise Failed(5, f"the agent's answer is not one: length {size}")
    answer = receive(agent, size, begun=True)
    status, output = answer[0], answer[1:]
    # No JSON parser here, but what is plainly no object never reaches the runtime.
    if status > 1 or output[:1] not in ((b"{",) if status else (b"{", b"")):
        raise Failed(5, f"the agent's answer is not one: status {status}")
    return status, output


def receive(agent: _socket.socket, size: int, *, begun: bool) -> bytes:
    """Exactly `size` bytes; an end before the first of an answer is the agent's end."""
    parts: list[bytes] = []
    while size:
        try:
            part = agent.recv(min(size, 65536))
        except ConnectionResetError:  # it died with our request unread
            part = b""
        if not part and not begun and not parts:
            raise OSError(104, "ended before it answered")  # ECONNRESET; `errno` is not loaded
        if not part:
            raise Failed(5, "the agent's answer ends early")
        parts.append(part)
        size -= len(part)
    return b"".join(parts)


def journal(request: bytes) -> None:
    """Leave the request for the agent's next start, whole and durable; OSError if it cannot."""
    if len(posix.listdir(JOURNAL)) >= MAX_ENTRIES:
        raise OSError(122, "full")  # EDQUOT
    name = f"{time.clock_gettime_ns(time.CLOCK_BOOTTIME):020}-{posix.getpid():010}-{boot_id()}"
    directory = posix.open(JOURNAL, posix.O_RDONLY | posix.O_DIRECTORY)
    hidden = "." + name
    flags = posix.O_WRONLY | posix.O_CREAT | posix.O_EXCL
    file = posix.open(hidden, flags, 0o600, dir_fd=directory)
    try:
        while request:
            request = request[posix.write(file, request) :]
        posix.fsync(file)
        posix.rename(hidden, name, src_dir_fd=directory, dst_dir_fd=directory)
    except OSError:
        posix.unlink(hidden, dir_fd=directory)
        raise
    posix.fsync(directory)


def boot_id() -> str:
    """Which boot this is: 36 characters."""
    file = posix.open(BOOT_ID, posix.O_RDONLY)
    try:
        return posix.read(file, 36).decode()
    finally:
        posix.close(file)


def error_object(failed: Failed) -> bytes:
    """The error as the runtime reads it; the messages above need no more escaping than this."""
    message = failed.message.replace("\\", "\\\\").replace('"', '\\"')
    return b'{"cniVersion":"1.1.0","code":%d,"msg":"%s"}' % (failed.code, message.encode())


if __name__ == "__main__":
    posix._exit(main())  # nothing is buffered, so there is nothing to tidy
