"""JSON as Go writes it: what a client of a real API server finds on the wire.

Go's encoder escapes `<`, `>`, `&`, U+2028 and U+2029, and leaves U+0085 alone.  All five
can only stand inside strings, so they are replaced in the finished bytes.
"""

from __future__ import annotations

from typing import Any

import msgspec

Json = dict[str, Any]

_ESCAPES = (
    (b"<", b"\\u003c"),
    (b">", b"\\u003e"),
    (b"&", b"\\u0026"),
    ("\u2028".encode(), b"\\u2028"),
    ("\u2029".encode(), b"\\u2029"),
)


def escape(raw: bytes) -> bytes:
    for plain, escaped in _ESCAPES:
        if plain in raw:
            raw = raw.replace(plain, escaped)
    return raw


def encode(obj: Any, *, ordered: bool = False) -> bytes:
    """Encode; `ordered` sorts keys, as Go does for maps (custom resources)."""
    return escape(msgspec.json.encode(obj, order="sorted" if ordered else None))


decode = msgspec.json.decode


def clone(obj: Json) -> Json:
    """A deep copy; ten times as fast as copy.deepcopy."""
    copied: Json = decode(msgspec.json.encode(obj))
    return copied
