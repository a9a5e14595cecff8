"""Our nft table by libnftables: text in, JSON and text out, in process, nothing executed.

    observe   `list table` twice: tersely as text for the mark and the rules
              (1.0.6 leaves table comments out of its JSON), as JSON for the elements
    apply     every change of one call in one text, which is one transaction; if all are
              of pods' elements, in one batch of hand-packed messages (kernel/nfelem.py)

A context is made per call: its netlink socket belongs to the namespace of the
thread that makes it, and making one takes less time than one listing.  One
context at a time, as the library does not promise more.

What counts as damage is that a chain has another number of rules than the
text it was made from.  The kernel gives rules back in nft's own spelling, so a
comparison of texts would need nft's parser; nobody edits a rule in place.
"""

from __future__ import annotations

import ctypes
import json
import os
import re
import threading
from collections.abc import Iterable, Iterator, Mapping
from errno import EINVAL, EMSGSIZE, ENOBUFS, ENOENT
from typing import Any

from muslin.errors import ConfigError, KernelError
from muslin.kernel import conntrack, nfelem
from muslin.plan.diff import Change
from muslin.plan.objects import (
    NFT_TABLE,
    PODS_SETS,
    SENDERS,
    Element,
    InTable,
    Object,
    Plan,
    Police,
    Ruleset,
)
from muslin.plan.render import police_text, table_text, words

_TABLE = f"table inet {NFT_TABLE}"
_JSON, _TERSE = 1 << 4, 1 << 11  # NFT_CTX_OUTPUT_* of nftables/libnftables.h
_NO_SUCH = os.strerror(ENOENT)
_COMMENT = re.compile(r'^\tcomment "(.*)"$', re.MULTILINE)
_CHAIN = re.compile(r"\s*chain\s+(\S+)\s*\{")
_PROTOCOLS = {str(number): name for name, number in nfelem.PROTOCOLS.items()}
# libnftables names a rate in the largest unit of which it is a multiple.
_UNITS = {"bytes": 1, "kbytes": 1 << 10, "mbytes": 1 << 20}
_PERIODS = {"second": 1, "minute": 60, "hour": 3600, "day": 86400, "week": 604800}
_ERROR = re.compile(r"^[^\n:]*:(\d+):\d+-\d+: Error: (.*)$", re.MULTILINE)


def observe(ns: str | None, about: Plan) -> Plan:
    """Our table and its elements, in the namespace of the calling thread.

    The table is the one in `about` if it bears its mark and is whole;
    otherwise a Ruleset of another body, so that it gets rebuilt.
    """
    with _Context() as nft:
        listing = nft.table(_TERSE)
        if listing is None:
            return frozenset()
        elements = _elements(nft, ns)
    wanted = next((o for o in about if isinstance(o, Ruleset)), None)
    if wanted is not None and _is_whole(wanted, listing):
        return frozenset({wanted}) | elements
    return frozenset({Ruleset(ns=ns, body=listing)}) | elements


def apply(changes: Iterable[Change]) -> None:
    """Make all changes in one transaction, in the namespace of the calling thread.

    Those of pods' elements alone, which an ADD waits for, are packed by hand.
    """
    wanted = list(changes)
    try:
        by_hand = all(nfelem.packs(c.obj) for c in wanted)
        (nfelem.apply if by_hand else by_library)(wanted)
    except KernelError as e:
        if e.errno not in {EMSGSIZE, ENOBUFS}:
            raise
        by_library(wanted)
    conntrack.forget(wanted)


def by_library(wanted: list[Change]) -> None:
    """The same through libnftables, whatever the changes are."""
    with _Context() as nft:
        if any(c.verb == "remove" and isinstance(c.obj, InTable) for c in wanted):
            wanted = list(_without_absent(wanted, nft))
        lines: list[str] = []
        starts: list[int] = []  # the line on which each change begins
        for change in wanted:
            starts.append(len(lines) + 1)
            for command in _commands(change):
                lines += command.splitlines()
        if lines and nft.run("\n".join(lines) + "\n") is None:
            raise _refused(nft.error, wanted, starts)


def count_rules(body: str) -> dict[str, int]:
    """How many rules each chain in `body` has; one rule is one line, as nft prints them."""
    counts: dict[str, int] = {}
    chain = None
    for line in body.splitlines():
        opening = _CHAIN.match(line)
        if opening:
            counts[opening[1]] = 0
            chain = None if line.rstrip().endswith("}") else opening[1]
        elif line.strip() == "}":
            chain = None
        elif chain and line.strip() and not line.strip().startswith(("type ", "policy ", "#")):
            counts[chain] += 1
    return counts


def _is_whole(ruleset: Ruleset, listing: str) -> bool:
    comment = _COMMENT.search(listing)
    marked = comment is not None and comment[1] == ruleset.mark
    return marked and count_rules(ruleset.body) == count_rules(listing)


def _commands(change: Change) -> Iterator[str]:
    obj = change.obj
    if isinstance(obj, Ruleset):
        # `delete` alone fails if it is absent (`destroy` is nft 1.0.7, Linux 6.3).
        yield f"add {_TABLE}"
        yield f"delete {_TABLE}"
        if change.verb != "remove":
            yield table_text(obj)
    elif isinstance(obj, Police):
        yield from police_text(change.verb, obj)
    elif isinstance(obj, Element):
        where = f"element inet {NFT_TABLE} {obj.set}"
        if change.verb != "add":
            yield f"delete {where} {{ {obj.item} }}"
        if change.verb != "remove":
            item = obj.item if obj.data is None else f"{obj.item} : {obj.data}"
            yield f"add {where} {{ {item} }}"


def _without_absent(changes: list[Change], nft: _Context) -> Iterator[Change]:
    """Drop removals of elements that are not there: one would refuse the whole transaction."""
    there = {o.key for o in _elements(nft, changes[0].obj.ns)}
    for change in changes:
        if change.verb == "remove" and isinstance(change.obj, InTable):
            if change.obj.key in there:
                yield change
        else:
            yield change


def _refused(error: str, changes: list[Change], starts: list[int]) -> KernelError:
    found = _ERROR.search(error)
    line, why = (int(found[1]), found[2]) if found else (1, error.strip())
    at = max(i for i, start in enumerate(starts) if start <= line)
    code = ENOENT if _NO_SUCH in why else EINVAL
    return KernelError(changes[at].verb, words(changes[at].obj), code, f"nft: {why}")


def _elements(nft: _Context, ns: str | None) -> frozenset[Object]:
    listing = nft.table(_JSON)
    if listing is None:
        return frozenset()
    found: set[Object] = set()
    entries = json.loads(listing)["nftables"]
    limits = {e["limit"]["name"]: e["limit"] for e in entries if "limit" in e}
    for entry in entries:
        for kind in ("set", "map"):
            if kind not in entry:
                continue
            name = entry[kind]["name"]
            for item in entry[kind].get("elem", ()):
                if name != SENDERS:
                    found.add(_listed(kind, name, item, ns))
                elif item[0] == item[1]:
                    found.add(_police(limits[item[1]], ns))
    return frozenset(found)


def _police(limit: Mapping[str, Any], ns: str | None) -> Police:
    rate = limit["rate"] * _UNITS[limit["rate_unit"]] // _PERIODS[limit["per"]]
    burst = limit["burst"] * _UNITS[limit["burst_unit"]]
    return Police(ns=ns, name=limit["name"], rate=rate, burst=burst)


def _listed(kind: str, name: str, item: Any, ns: str | None) -> Element:
    key, data = item if kind == "map" else (item, None)
    text = _item(key)
    if kind == "map" and name in PODS_SETS:
        # nft says 6 for tcp where there is no /etc/protocols (slim containers).
        *first, protocol, port = text.split(" . ")
        text = " . ".join((*first, _PROTOCOLS.get(protocol, protocol), port))
    return Element(ns=ns, set=name, item=text, data=None if data is None else _item(data))


def _item(value: Any) -> str:
    """An element of the JSON listing as nft's own text."""
    match value:
        case {"prefix": {"addr": addr, "len": length}}:
            return f"{addr}/{length}"
        case {"range": [low, high]}:
            return f"{_item(low)}-{_item(high)}"
        case {"concat": parts}:
            return " . ".join(_item(part) for part in parts)
        case {"elem": {"val": inner}}:
            return _item(inner)
        case _:
            return str(value)


class _Context:
    """One nft context, bound to the namespace in which it is made."""

    def __init__(self) -> None:
        self._lib = _library()

    def __enter__(self) -> _Context:
        _one_at_a_time.acquire()
        self._handle = self._lib.nft_ctx_new(0)
        self._lib.nft_ctx_buffer_output(self._handle)
        self._lib.nft_ctx_buffer_error(self._handle)
        return self

    def __exit__(self, *_: object) -> None:
        self._lib.nft_ctx_free(self._handle)
        _one_at_a_time.release()

    def table(self, flags: int) -> str | None:
        """Our table as listed with those flags, or None if there is none."""
        listing = self.run(f"list {_TABLE}", flags)
        if listing is None and _NO_SUCH not in self.error:
            raise KernelError("list", f"nft {_TABLE}", EINVAL, self.error.strip())
        return listing

    def run(self, commands: str, flags: int = 0) -> str | None:
        """The output, or None if it failed, for the reason in `error`."""
        self._lib.nft_ctx_output_set_flags(self._handle, flags)
        # A file, for only of a file's commands does an error name the line.
        file = os.memfd_create("nft")
        try:
            with open(file, "wb", closefd=False) as writer:
                writer.write(commands.encode())
            path = f"/proc/self/fd/{file}".encode()
            if self._lib.nft_run_cmd_from_filename(self._handle, path):
                return None
        finally:
            os.close(file)
        output: bytes = self._lib.nft_ctx_get_output_buffer(self._handle)
        return output.decode()

    @property
    def error(self) -> str:
        words: bytes = self._lib.nft_ctx_get_error_buffer(self._handle)
        return words.decode()


def _library() -> Any:
    global _loaded  # noqa: PLW0603 - one library per process, found when first needed
    if _loaded is None:
        _loaded = _load()
    return _loaded


_loaded: Any = None
_one_at_a_time = threading.Lock()


def _load() -> Any:
    try:
        lib = ctypes.CDLL("libnftables.so.1")
    except OSError as e:
        hint = "install the package libnftables1 (Debian, Ubuntu) or nftables-libs (Fedora)"
        raise ConfigError("nftables", [f"the library does not load: {e}"], hint=hint) from e
    context, text = ctypes.c_void_p, ctypes.c_char_p
    for name, result, arguments in (
        ("nft_ctx_new", context, (ctypes.c_uint32,)),
        ("nft_ctx_free", None, (context,)),
        ("nft_ctx_buffer_output", ctypes.c_int, (context,)),
        ("nft_ctx_buffer_error", ctypes.c_int, (context,)),
        ("nft_ctx_output_set_flags", None, (context, ctypes.c_uint)),
        ("nft_run_cmd_from_filename", ctypes.c_int, (context, text)),
        ("nft_ctx_get_output_buffer", text, (context,)),
        ("nft_ctx_get_error_buffer", text, (context,)),
    ):
        function = getattr(lib, name)
        function.restype, function.argtypes = result, arguments
    return lib
