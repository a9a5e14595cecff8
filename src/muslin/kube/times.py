"""Times as Kubernetes writes them: RFC 3339, UTC.

A Lease's `renewTime` and `acquireTime` are MicroTime: the API server refuses
a time whose fraction is missing (400; measured with 1.36), which is what
`datetime.isoformat()` makes of a whole second.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def micro_time(now: float) -> str:
    """Seconds since the epoch as a MicroTime: always six digits, always Z."""
    # By integers: float arithmetic in fromtimestamp() would round 0.9999999 up to 1000000 µs.
    then = _EPOCH + timedelta(microseconds=round(now * 1_000_000))
    return then.strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def parse_time(text: str) -> float:
    """Seconds since the epoch of any RFC 3339 time, however many digits its fraction has.

    A time without an offset is taken as UTC; anything else is a ValueError.
    """
    then = datetime.fromisoformat(text)
    then = then if then.tzinfo else then.replace(tzinfo=UTC)
    return (then - _EPOCH) / timedelta(seconds=1)
