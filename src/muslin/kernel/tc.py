"""Token buckets at the root of a device ↔ their rtnetlink messages (net/sched/sch_tbf.c).

Our handle, 6d:, is the mark: a root qdisc with another is a stranger's.
`tc` sends a table of transmission times along, which the kernel reads for
link layers it knows nothing of; saying Ethernet spares it.

The kernel keeps the burst as time, in ticks of 64 ns, and tells only that.
Turned back into bytes it is short by some, so it is rounded to whole KiB,
which is right up to 64 Gbit/s.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping

from muslin.kernel.netlink import CREATE, EXCL, REPLACE, Request, attribute, attributes, nested
from muslin.kernel.netlink import text as string
from muslin.plan.objects import PROTOCOL, Shaper

NEWQDISC, DELQDISC, GETQDISC = 36, 37, 38
_HEADER = struct.Struct("=BxxxiIII")  # family, index, handle, parent, info: struct tcmsg
_ROOT, _HANDLE = 0xFFFFFFFF, PROTOCOL << 16
_KIND, _OPTIONS = 1, 2
_PARMS, _RATE64, _BURST = 1, 4, 6  # TCA_TBF_*
# struct tc_tbf_qopt: rate and peak rate (cell log, link layer, overhead, align, mpu, rate), limit,
# buffer, mtu
_QOPT = struct.Struct("=BBHhHIBBHhHIIII")
_ETHERNET = 1  # TC_LINKLAYER_ETHERNET
_TICK = 64  # ns; net/pkt_sched.h: PSCHED_SHIFT is 6


def put(obj: Shaper, index: Callable[[str], int], *, replace: bool) -> Request:
    """The message that makes `obj`, over one of ours only if `replace`."""
    rate = min(obj.rate, 0xFFFFFFFF)
    parms = _QOPT.pack(0, _ETHERNET, 0, 0, 0, rate, 0, 0, 0, 0, 0, 0, obj.queue, 0, 0)
    options = attribute(_PARMS, parms) + attribute(_BURST, struct.pack("=I", obj.burst))
    if obj.rate > 0xFFFFFFFF:
        options += attribute(_RATE64, struct.pack("=Q", obj.rate))
    body = _header(obj, index) + string(_KIND, "tbf") + nested(_OPTIONS, options)
    return Request(NEWQDISC, CREATE | (REPLACE if replace else EXCL), body)


def drop(obj: Shaper, index: Callable[[str], int]) -> Request:
    """The message that takes `obj` away; EINVAL means that there is none of ours."""
    return Request(DELQDISC, 0, _header(obj, index))


def everything() -> bytes:
    """The body of a dump of every device's qdiscs."""
    return _HEADER.pack(0, 0, 0, 0, 0)


def read(ns: str | None, body: bytes, names: Mapping[int, str]) -> Shaper | None:
    """The token bucket in an RTM_NEWQDISC message, if it is ours."""
    _family, index, handle, parent, _info = _HEADER.unpack_from(body)
    found = attributes(body[_HEADER.size :])
    ours = parent == _ROOT and handle == _HANDLE and found.get(_KIND) == b"tbf\0"
    if not ours or index not in names:
        return None
    options = attributes(found[_OPTIONS])
    parms = _QOPT.unpack_from(options[_PARMS])
    rate, ticks = parms[5], parms[13]
    if _RATE64 in options:
        rate = struct.unpack("=Q", options[_RATE64])[0]
    burst = round(ticks * _TICK * rate / 1e9 / 1024) * 1024
    return Shaper(ns=ns, dev=names[index], rate=rate, burst=burst)


def _header(obj: Shaper, index: Callable[[str], int]) -> bytes:
    return _HEADER.pack(0, index(obj.dev), _HANDLE, _ROOT, 0)
