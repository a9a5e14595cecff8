"""Events are one thing under two names: core/v1 and events.k8s.io/v1 share their storage."""

from __future__ import annotations

from .encode import Json

_NEW_TO_CORE = {
    "note": "message",
    "regarding": "involvedObject",
    "reportingController": "reportingComponent",
    "deprecatedSource": "source",
    "deprecatedFirstTimestamp": "firstTimestamp",
    "deprecatedLastTimestamp": "lastTimestamp",
    "deprecatedCount": "count",
}
_CORE_TO_NEW = {core: new for new, core in _NEW_TO_CORE.items()}


def to_core(obj: Json) -> Json:
    renamed = {_NEW_TO_CORE.get(name, name): value for name, value in obj.items()}
    if not renamed.get("message"):
        renamed.pop("message", None)  # omitempty: a real 1.36.2 gives no empty note back
    return {**renamed, "apiVersion": "v1"}


def from_core(obj: Json) -> Json:
    renamed = {_CORE_TO_NEW.get(name, name): value for name, value in obj.items()}
    return {**renamed, "apiVersion": "events.k8s.io/v1"}
