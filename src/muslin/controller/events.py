"""Events (events.k8s.io/v1): what `kubectl describe` and `kubectl get events` tell a person.

One for each turn of a condition, so a state that lasts is told once, also by
the next leader: that a turn is one stands in the object's status.  The same
words about the same object are not repeated within ten minutes, however often
it turns.  An Event that cannot be written is logged and is nobody's fault.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable
from typing import Any, Literal

from muslin.controller.seen import Found
from muslin.errors import MuslinError
from muslin.kube import Api, Kind, micro_time
from muslin.kube.kinds import EVENTS
from muslin.log import log

CONTROLLER = "muslin.io/controller"
NAMESPACE = "default"  # where the API server wants events on what has no namespace
QUIET = 600.0  # seconds
LONGEST = 1024  # bytes of a note


class Events:
    """Writes them for one replica."""

    def __init__(
        self,
        api: Api,
        identity: str,
        now: Callable[[], float],
        *,
        wall: Callable[[], float] = time.time,
    ) -> None:
        self._api, self._identity, self._now, self._wall = api, identity, now, wall
        self._told: dict[tuple[str, str, str], float] = {}

    async def tell(
        self,
        kind: Kind,
        about: Found[Any, Any],
        type: Literal["Normal", "Warning"],  # noqa: A002 - the field's name
        reason: str,
        note: str,
    ) -> None:
        """One Event; `reason` is a word for scripts, `note` a sentence for people."""
        now = self._now()
        self._told = {k: at for k, at in self._told.items() if now - at < QUIET}
        key = (about.uid, reason, note)
        if key in self._told:
            return
        self._told[key] = now
        regarding = {"apiVersion": kind.api_version, "kind": kind.kind, "name": about.name}
        body = {
            "metadata": {"name": f"{about.name}.{secrets.token_hex(8)}"},
            "eventTime": micro_time(self._wall()),
            "reportingController": CONTROLLER,
            "reportingInstance": self._identity[:128],
            "action": "Check",
            "reason": reason,
            "type": type,
            "note": note.encode()[:LONGEST].decode(errors="ignore"),
            "regarding": {**regarding, "uid": about.uid},
        }
        try:
            await self._api.create(EVENTS, body, namespace=NAMESPACE)
        except MuslinError as e:
            log.warning("event.lost", about=about.name, note=note, error=str(e))
