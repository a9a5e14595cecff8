"""Every error Muslin raises on purpose, and what each one means to a caller.

    MuslinError              cni_code, retry, hint
    ├── ConfigError          a person must change something; lists every fault   CNI 7
    ├── RequestError         the runtime's call is malformed                      CNI 2-6
    ├── NotReady             ask again; nothing was done                          CNI 11
    │   └── Conflict         lost a compare-and-swap: re-read, then retry
    ├── Unavailable          STATUS: this node cannot serve ADD now, and why      CNI 50
    │   └── Limited          STATUS: and the pods there are cannot reach others       CNI 51
    ├── Exhausted            no free address; names the pool and its size         CNI 100
    ├── Unreachable          one peer cannot be served by this backend; names it
    ├── KernelError          operation, object as text, errno                     CNI 101
    ├── CheckFailed          the kernel does not hold what ADD promised           CNI 103
    └── Taken                a port or address asked for by name is in use        CNI 104

Errors are raised where the fact is known, with the object in them, and are
translated once, at the door (`cni.protocol`, `cli.main`).  The numbers below
100 are the CNI specification's ("Error", spec 1.1.0); 100 and up are ours.
"""

from __future__ import annotations

import errno as _errno
import os
from collections.abc import Iterable


class MuslinError(Exception):
    """Something failed in a way we understand: what, on which object, and the mend.

    `hint` is one imperative sentence for a person, or empty.  `retry` says
    whether the same call may succeed later without anybody changing anything.
    """

    cni_code = 999
    retry = False

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message}; {self.hint}" if self.hint else self.message


class ConfigError(MuslinError):
    """A file, an option or an object in the store is wrong; `faults` lists all of them."""

    cni_code = 7

    def __init__(self, subject: str, faults: Iterable[str], *, hint: str = "") -> None:
        self.subject = subject
        self.faults = tuple(faults)
        super().__init__(f"{subject}: " + "; ".join(self.faults), hint=hint)


class RequestError(MuslinError):
    """The runtime's CNI call cannot be served as it stands.

    Codes: 1 incompatible version, 2 unsupported field, 4 bad environment
    variable, 5 I/O failure, 6 undecodable content, 7 invalid configuration.
    """

    def __init__(self, code: int, message: str, *, hint: str = "") -> None:
        super().__init__(message, hint=hint)
        self.cni_code = code


class NotReady(MuslinError):
    """Nothing was done and the same call may succeed later."""

    cni_code = 11
    retry = True


class Conflict(NotReady):
    """Somebody else changed `key` first; nothing was written."""

    def __init__(self, key: str, message: str = "") -> None:
        super().__init__(message or f"{key}: changed by another writer")
        self.key = key


class Unavailable(MuslinError):
    """The answer to STATUS while this node cannot serve ADD: what is missing.

    For a call that was to *do* something raise `NotReady`: 50 has a meaning
    only in the answer to STATUS (spec 1.1.0).
    """

    cni_code = 50
    retry = True


class Limited(Unavailable):
    """As Unavailable, and the pods that are there have limited connectivity."""

    cni_code = 51


class Exhausted(MuslinError):
    """A pool has no free address or block left."""

    cni_code = 100
    retry = True


class Unreachable(MuslinError):
    """This backend cannot carry packets to `peer`; the others are unaffected."""

    def __init__(self, peer: str, why: str, *, hint: str = "") -> None:
        super().__init__(f"peer {peer}: {why}", hint=hint)
        self.peer = peer


class KernelError(MuslinError):
    """The kernel refused `op` on `obj` (the object in iproute2 or nft words)."""

    cni_code = 101

    def __init__(self, op: str, obj: str, errno: int, detail: str = "", *, hint: str = "") -> None:
        self.op, self.obj, self.errno = op, obj, errno
        name = _errno.errorcode.get(errno, str(errno))
        why = detail or os.strerror(errno)
        super().__init__(f"{op} {obj}: {why} ({name})", hint=hint)


class CheckFailed(MuslinError):
    """CHECK found the kernel without something that ADD put there."""

    cni_code = 103


class Taken(MuslinError):
    """What was asked for by name is another's, or not free yet; says whose, or when."""

    cni_code = 104
    retry = True
