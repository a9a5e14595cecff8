"""The CNI plugin: pass one call to the agent, print what it answers.

`cni.install` copies this file to /opt/cni/bin/muslin-cni with the first line
`#!<python> -ISE` and its own SOCKET and DEADLINE.  A runtime starts it for
every call, so what it costs is the interpreter (9 ms) and as little as can be
on top: it imports only what is in the interpreter already (`json` alone is
6 ms, `socket` 11), reads no JSON and judges nothing.  The agent does that.

    request   4 bytes length, then CNI_COMMAND CNI_CONTAINERID CNI_NETNS CNI_IFNAME
              CNI_ARGS CNI_PATH, a NUL after each, then standard input as it came
    answer    4 bytes length, then 1 byte: 0 done, 1 an error object; then standard output

Lengths are big-endian and count what follows them.  The agent shares the
runtime's mount and process namespaces, so paths go as they are.

One timer bounds the whole call, reading standard input included.  It is a
signal and not a socket timeout, because a socket with a timeout does not wait
for a place in the agent's queue: connect(2) then fails with EAGAIN at once
when several hundred pods start together.
"""

import _signal  # type: ignore[import-not-found]  # the C part of `signal`, which imports enum
import _socket
import posix

SOCKET = "/run/muslin/cni.sock"
# Seconds for one call.  An ADD may wait behind others for the kernel's RTNL and for a block of
# addresses; kubelet gives a pod sandbox 4 minutes, so the reason arrives before its deadline.
DEADLINE = 60
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


class Failed(Exception):
    """The call ends here; the code is the specification's."""

    def __init__(self, code: int, message: str) -> None:
        self.code = code
        self.message = message


class Late(Exception):
    """DEADLINE seconds have passed."""


def main() -> int:
    """Serve the call that the environment describes; the exit status."""
    command = posix.environ.get(b"CNI_COMMAND", b"")
    deadline = min(VERSION_DEADLINE, DEADLINE) if command == b"VERSION" else DEADLINE
    try:
        if not command:
            raise Failed(4, "CNI_COMMAND is not set: a container runtime starts this program")
        start_timer(deadline)
        try:
            status, output = ask(read_config())
        except Late:
            raise unreachable(command, f"does not answer within {deadline} s") from None
        except OSError as e:
            raise unreachable(command, f"{e.strerror}; is it running?") from None
        finally:
            _signal.setitimer(_signal.ITIMER_REAL, 0)
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


def start_timer(seconds: float) -> None:
    """Raise Late in whatever is going on after `seconds`."""

    def late(*_: object) -> None:
        raise Late

    _signal.signal(_signal.SIGALRM, late)
    # A parent's signal mask is inherited through exec.
    _signal.pthread_sigmask(_signal.SIG_UNBLOCK, {_signal.SIGALRM})
    _signal.setitimer(_signal.ITIMER_REAL, seconds)


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


def ask(config: bytes) -> tuple[int, bytes]:
    """The agent's status and output; OSError while it has not begun to answer."""
    body = b"".join(posix.environ.get(name, b"") + b"\0" for name in VARIABLES) + config
    agent = _socket.socket(_socket.AF_UNIX, _socket.SOCK_STREAM)
    agent.connect(SOCKET)
    try:  # noqa: SIM105  (contextlib is a costly import)
        agent.sendall(len(body).to_bytes(4, "big") + body)
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


def unreachable(command: bytes, why: str) -> Failed:
    """Try again later; for STATUS, not available."""
    return Failed(50 if command == b"STATUS" else 11, f"muslin-agent at {SOCKET}: {why}")


def error_object(failed: Failed) -> bytes:
    """The error as the runtime reads it; the messages above need no more escaping than this."""
    message = failed.message.replace("\\", "\\\\").replace('"', '\\"')
    return b'{"cniVersion":"1.1.0","code":%d,"msg":"%s"}' % (failed.code, message.encode())


if __name__ == "__main__":
    posix._exit(main())  # nothing is buffered, so there is nothing to tidy
