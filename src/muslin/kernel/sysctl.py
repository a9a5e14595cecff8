"""Values below /proc/sys, in the namespace of the calling thread.

/proc/sys/net shows the network namespace of the thread that looks
(net/sysctl_net.c), so `netns.inside` around these calls is enough.

What the switches of plan/ do was measured on 6.18: `net.ipv4.conf.<dev>.forwarding`
on the two devices is enough with ip_forward=0, and
`net.ipv6.conf.<dev>.force_forwarding` (6.17) with all.forwarding=0.
"""

from __future__ import annotations

import errno
import os
from pathlib import Path

from muslin.errors import KernelError

_ROOT = Path("/proc/sys")


def read(name: str) -> str | None:
    """The value of `net/ipv4/…`, or None if this kernel or device has no such thing."""
    try:
        return _path(name).read_text().strip()
    except OSError as e:
        # EINVAL: some entries are write-only, which for us is as good as absent
        if e.errno in {errno.ENOENT, errno.EINVAL, errno.EACCES}:
            return None
        raise KernelError("read", f"sysctl {name}", e.errno or 0) from e


def write(name: str, value: str) -> None:
    """Set it; KernelError if it does not exist or refuses the value."""
    try:
        file = os.open(_path(name), os.O_WRONLY | os.O_TRUNC | os.O_CLOEXEC)
        try:
            os.write(file, value.encode())
        finally:
            os.close(file)
    except OSError as e:
        hint = "is /proc/sys mounted read-only?" if e.errno in {errno.EROFS, errno.EACCES} else ""
        raise KernelError("set", f"sysctl {name}={value}", e.errno or 0, hint=hint) from e


def _path(name: str) -> Path:
    parts = name.split("/")
    if not name or any(part in {"", ".", ".."} for part in parts):
        raise KernelError("find", f"sysctl {name!r}", errno.EINVAL, "not a name below /proc/sys")
    return _ROOT.joinpath(*parts)
