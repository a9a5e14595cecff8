"""What an answer of the API server that is not a success means.  Pure.

The contract's errors are those of `muslin.errors`.  The subclasses here say
more to `watch`, which treats some of them differently; nobody else needs them.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import msgspec

from muslin.errors import ConfigError, Conflict, MuslinError, NotReady
from muslin.kube.kinds import MUSLIN_GROUP, Kind

# Seconds; what a server may ask us to wait, whatever it says.  1.36 says 1 to 16.
SHORTEST, LONGEST = 0.5, 60.0


class Busy(NotReady):
    """The server answered that it cannot now; not before `after` seconds."""

    def __init__(self, message: str, after: float, *, hint: str = "") -> None:
        super().__init__(message, hint=hint)
        self.after = after


class Gone(NotReady):
    """410: the version asked for, or the rest of a list, is no longer kept."""


class Denied(ConfigError):
    """403: whoever we are may not do this."""


class Unserved(ConfigError):
    """404 of a whole kind: this API server does not have it."""


class Answer(NamedTuple):
    """What the server said: status code, body, and its Retry-After header (0: none)."""

    code: int
    body: bytes
    retry_after: float = 0.0

    @property
    def ok(self) -> bool:
        return 200 <= self.code < 300


class Ask(NamedTuple):
    """What was asked of it, as far as an error must name it."""

    verb: str  # as RBAC calls it
    kind: Kind
    namespace: str = ""
    name: str = ""
    how: str = ""  # of a patch
    subresource: str = ""

    def __str__(self) -> str:
        return f"{self.verb} {self.kind.title(self.namespace, self.name)}"


class _Cause(msgspec.Struct, frozen=True):
    reason: str = ""
    message: str = ""
    field: str = ""


class _Details(msgspec.Struct, frozen=True):
    name: str = ""
    kind: str = ""
    causes: tuple[_Cause, ...] | None = None
    retryAfterSeconds: float = 0.0  # noqa: N815  (the wire's word)


class Status(msgspec.Struct, frozen=True):
    """metav1.Status: the body of every error that the API server itself made."""

    kind: str = ""
    message: str = ""
    reason: str = ""
    code: int = 0
    details: _Details | None = None


_status = msgspec.json.Decoder(Status)


def status_of(body: bytes | msgspec.Raw) -> Status:
    """The Status in an answer; one made of its text if something in between answered.

    A proxy, a load balancer, and the API server itself for an unknown path,
    answer with text, with or without a Content-Type.
    """
    try:
        status = _status.decode(body)
    except msgspec.MsgspecError:
        text = " ".join(bytes(body[:300]).decode(errors="replace").split())
        return Status(message=text)
    return status if status.kind == "Status" else Status()


def explain(ask: Ask, answer: Answer) -> MuslinError:
    """The error that `answer` to `ask` is."""
    status = status_of(answer.body)
    details = status.details or _Details()
    causes = details.causes or ()
    words = status.message or f"HTTP status {answer.code}"
    target = ask.kind.title(ask.namespace, ask.name)
    match answer.code:
        case 401:
            hint = "check the token or certificate that we present"
            return NotReady(f"{ask}: not let in: {words}", hint=hint)
        case 403:
            return Denied(str(ask), [words], hint=_grant(ask, words))
        case 404 if status.reason == "NotFound" and details.name:
            if ask.verb == "patch" and details.name == ask.name:
                return Conflict(target, f"{target}: gone")
            return ConfigError(str(ask), [words])
        case 404:
            return _unserved(ask.kind)
        case 409 if any(c.reason == "FieldManagerConflict" for c in causes):
            held = "; ".join(f"{c.field}: {c.message}" for c in causes)
            return Conflict(target, f"{target}: fields of another manager: {held}")
        case 409:
            return Conflict(target, f"{target}: {words}")
        case 410:
            return Gone(f"{ask}: {words}")
        case 422 if ask.how == "json" and not causes:
            # How 1.36 answers a failed `test`: reason Invalid, and not a word of what failed.
            return Conflict(target, f"{target}: it is not as the patch expects")
        case code if 400 <= code < 500 and code not in (408, 429):
            fields = [f"{c.field}: {c.message}" if c.field else c.message for c in causes]
            return ConfigError(str(ask), fields or [words])
    return Busy(f"{ask}: {words}", pause(answer, details))


def pause(answer: Answer, details: Any = None) -> float:
    """How long the server wants us to wait; 0 when it did not say."""
    if details is None:
        details = status_of(answer.body).details or _Details()
    said: float = answer.retry_after or details.retryAfterSeconds
    return min(max(said, SHORTEST), LONGEST) if said > 0 else 0.0


def _unserved(kind: Kind) -> Unserved:
    fault = f"the API server does not serve {kind.api_version}"
    if kind.group == MUSLIN_GROUP:
        return Unserved(
            kind.resource,
            [f"the CRDs are not installed: {fault}"],
            hint="apply Muslin's custom resource definitions to the cluster",
        )
    return Unserved(kind.resource, [fault], hint="check the version of the cluster")


def _grant(ask: Ask, words: str) -> str:
    # A webhook, a quota or a dying namespace says 403 too; only RBAC says "cannot".
    if " cannot " not in words:
        return ""
    resource = f"{ask.kind.plural}/{ask.subresource}" if ask.subresource else ask.kind.plural
    scope = f" in namespace {ask.namespace}" if ask.namespace else ""
    group = f'"{ask.kind.group}"'
    return f"grant the verb {ask.verb} on {resource} (API group {group}){scope} by a role"
