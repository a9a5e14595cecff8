"""Getting and listing: pages bound to a revision, selectors, and the forms of an answer."""

from __future__ import annotations

import base64
import binascii
import bisect
import json

from .call import Answer, Call
from .core import Core
from .encode import Json
from .forms import Form, form
from .kinds import Kind
from .selectors import Selector, parse_fields, parse_labels
from .status import ApiError, bad_request, too_large, too_old
from .storage import Entry, Key, Table

_EXPIRED = (
    "The provided continue parameter is too old to display a consistent list result. You can "
    "start a new list without the continue parameter, or use the continue token in this response "
    "to retrieve the remainder of the results. Continuing with the provided token results in an "
    "inconsistent list - objects that were created, modified, or deleted between the time the "
    "first chunk was returned and now may show up in the list."
)


def selector(call: Call) -> Selector:
    """What a request selects."""
    kind, query = call.kind, call.query
    fields = parse_fields(query.get("fieldSelector", ""), kind)
    return Selector(call.namespace, parse_labels(query.get("labelSelector", "")), fields)


def revision(text: str | None, name: str = "resourceVersion") -> int | None:
    """A resourceVersion of a query: None where it is not given."""
    if not text:
        return None
    if not text.isdigit():
        raise ApiError(400, "BadRequest", f'invalid {name}: Invalid value: "{text}"')
    return int(text)


class Reads:
    """The verbs get and list."""

    def __init__(self, core: Core) -> None:
        self._core = core

    def get(self, call: Call) -> Answer:
        core, kind = self._core, call.kind
        entry = core.get(kind, call.namespace, call.name)
        shape = form(core, kind, call.accept, call.query.get("includeObject", ""))
        return Answer(200, shape.one(entry.raw), shape.content_type)

    def list(self, call: Call) -> Answer:
        core, kind, query = self._core, call.kind, call.query
        shape = form(core, kind, call.accept, query.get("includeObject", ""))
        limit = int(query.get("limit") or 0)
        wanted = selector(call)
        table = core.storage.table(kind.storage)
        if token := query.get("continue"):
            at, start = self._continued(token, table)
        else:
            at, start = self._at(call), ("", "")
        entries, rest = self._page(table, wanted, at, start, limit)
        meta: Json = {"resourceVersion": str(at)}
        if rest:
            meta["continue"] = _token(at, entries[-1].key, kind)
            if wanted.everything:
                meta["remainingItemCount"] = rest
        raws = [entry.raw for entry in entries]
        return Answer(200, shape.many(raws, meta), shape.content_type)

    def selected(self, call: Call) -> list[Entry]:
        """The entries of now that a request selects."""
        table = self._core.storage.table(call.kind.storage)
        at = self._core.storage.revision
        return self._page(table, selector(call), at, ("", ""), 0)[0]

    def shown(self, shape: Form, entries: list[Entry]) -> bytes:
        meta = {"resourceVersion": str(self._core.storage.revision)}
        return shape.many([entry.raw for entry in entries], meta)

    def _at(self, call: Call) -> int:
        """The revision to list at: now, unless an exact one is asked for."""
        now = self._core.storage.revision
        asked = revision(call.query.get("resourceVersion"))
        if asked is None or asked == 0:
            return now
        if asked > now:
            raise too_large(asked, now)
        match = call.query.get("resourceVersionMatch")
        exact = match == "Exact" or (match is None and call.query.get("limit"))
        if not exact:
            return now
        floor = self._core.storage.table(call.kind.storage).floor
        if asked < floor:
            raise too_old(asked, floor)
        return asked

    def _page(
        self, table: Table, wanted: Selector, at: int, start: Key, limit: int
    ) -> tuple[list[Entry], int]:
        """One page of what was there at a revision, and how much is left after it."""
        then = table.at(at) if at < table.last else {}
        keys = table.order()
        if then:
            keys = sorted({*keys, *then})
        at_key = bisect.bisect_right(keys, start) if start != ("", "") else 0
        if wanted.namespace and not at_key:
            at_key = bisect.bisect_left(keys, (wanted.namespace, ""))
        found: list[Entry] = []
        rest = 0
        for key in keys[at_key:]:
            if wanted.namespace and key[0] != wanted.namespace:
                break
            entry = then[key] if key in then else table.entries[key]
            if entry is None or not wanted.wants(key, entry.labels, entry.fields):
                continue
            if limit and len(found) == limit:
                rest += 1
                if not wanted.everything:
                    break
            else:
                found.append(entry)
        return found, rest

    def _continued(self, token: str, table: Table) -> tuple[int, Key]:
        asked, start = _parsed(token)
        if asked < 0:  # from an earlier refusal: go on with what is there now
            return self._core.storage.revision, start
        if asked < table.floor:
            meta = {"continue": _encoded(-1, start)}
            raise ApiError(410, "Expired", _EXPIRED, meta=meta)
        return asked, start


def _token(at: int, last: Key, kind: Kind) -> str:
    return _encoded(at, last)


def _encoded(at: int, last: Key) -> str:
    start = f"{last[0]}/{last[1]}" if last[0] else last[1]
    fields = {"v": "meta.k8s.io/v1", "rv": at, "start": f"{start}\0"}
    text = json.dumps(fields, separators=(",", ":")).encode()
    return base64.urlsafe_b64encode(text).rstrip(b"=").decode()


def _parsed(token: str) -> tuple[int, Key]:
    def bad(why: str) -> ApiError:
        return bad_request(f"invalid continue token: continue key is not valid: {why}")

    try:
        text = base64.urlsafe_b64decode(token + "=" * (-len(token) % 4))
    except (binascii.Error, ValueError):
        raise bad("illegal base64 data at input byte 0") from None
    try:
        fields = json.loads(text)
        namespace, _, name = fields["start"].rstrip("\0").lstrip("/").rpartition("/")
        return int(fields["rv"]), (namespace, name)
    except (ValueError, KeyError, TypeError):
        first = text[:1].decode("latin-1")
        raise bad(f"invalid character '{first}' looking for beginning of value") from None
