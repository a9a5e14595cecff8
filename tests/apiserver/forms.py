"""The shapes in which an object goes out: as it is, its metadata only, or a table for people."""

from __future__ import annotations

import re
from dataclasses import dataclass

from .core import Core
from .encode import Json, decode, encode
from .kinds import Kind
from .tables import columns, row

_ACCEPT = re.compile(r"as=(Table|PartialObjectMetadataList|PartialObjectMetadata)\b")
_META = "meta.k8s.io/v1"


@dataclass(frozen=True)
class Form:
    """One kind in one shape; `key` tells frames of different forms apart."""

    core: Core
    kind: Kind
    shape: str = ""
    include: str = "Metadata"

    @property
    def key(self) -> tuple[str, str, str]:
        return (self.kind.api_version, self.shape, self.include)

    @property
    def content_type(self) -> str:
        if not self.shape:
            return "application/json"
        return f"application/json;as={self.shape};g=meta.k8s.io;v=v1"

    def one(self, raw: bytes) -> bytes:
        """A stored object in this form."""
        raw = self.core.outbound(self.kind, raw)
        if not self.shape:
            return raw
        obj = decode(raw)
        if self.shape == "Table":
            return encode(self._table([obj], {"resourceVersion": _version(obj)}))
        return encode(_partial(obj))

    def many(self, raws: list[bytes], meta: Json) -> bytes:
        """A list in this form."""
        raws = [self.core.outbound(self.kind, raw) for raw in raws]
        if self.shape == "Table":
            return encode(self._table([decode(raw) for raw in raws], meta))
        if self.shape:
            items = [_partial(decode(raw)) for raw in raws]
            head = {"kind": "PartialObjectMetadataList", "apiVersion": _META}
            return encode({**head, "metadata": meta, "items": items})
        if self.kind.custom:
            meta = {"continue": "", **meta}
            head = encode(self.kind.api_version)
            tail = encode({"kind": self.kind.list_name, "metadata": meta}, ordered=True)
            return b'{"apiVersion":%s,"items":[%s],%s' % (head, b",".join(raws), tail[1:])
        # Items of built-in lists do not say what they are.
        known = f'{{"kind":"{self.kind.kind}","apiVersion":"{self.kind.api_version}",'.encode()
        items = b",".join(b"{" + raw[len(known) :] for raw in raws)
        version = self.kind.api_version
        list_head = {"kind": self.kind.list_name, "apiVersion": version, "metadata": meta}
        return encode(list_head)[:-1] + b',"items":[' + items + b"]}"

    def _table(self, objects: list[Json], meta: Json) -> Json:
        rows = []
        for obj in objects:
            shown = {"cells": row(self.kind, obj)}
            if self.include == "Object":
                shown["object"] = obj
            elif self.include == "Metadata":
                shown["object"] = _partial(obj)
            rows.append(shown)
        head = {"kind": "Table", "apiVersion": _META, "metadata": meta}
        return {**head, "columnDefinitions": columns(self.kind), "rows": rows}


def form(core: Core, kind: Kind, accept: str, include: str = "") -> Form:
    """The form that a client prefers."""
    first = accept.partition(",")[0]
    found = _ACCEPT.search(first)
    if not found:
        return Form(core, kind)
    return Form(core, kind, found[1].removesuffix("List"), include or "Metadata")


def _partial(obj: Json) -> Json:
    return {"kind": "PartialObjectMetadata", "apiVersion": _META, "metadata": obj["metadata"]}


def _version(obj: Json) -> str:
    return str(obj["metadata"].get("resourceVersion", ""))
