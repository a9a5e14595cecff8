"""Refusals: every Status body that this API server answers with, in the words of a real one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from .encode import Json

MISSING = object()  # a fault without a value

_WORDS = {
    "FieldValueRequired": "Required value",
    "FieldValueInvalid": "Invalid value",
    "FieldValueTypeInvalid": "Invalid value",
    "FieldValueDuplicate": "Duplicate value",
    "FieldValueForbidden": "Forbidden",
    "FieldValueNotSupported": "Unsupported value",
    "FieldValueTooLong": "Too long",
    "FieldValueTooMany": "Too many",
    "FieldValueNotFound": "Not found",
}


@dataclass(frozen=True, slots=True)
class Fault:
    """One thing wrong with one field."""

    reason: str
    field: str
    detail: str = ""

    @property
    def message(self) -> str:
        word = _WORDS[self.reason]
        return f"{word}: {self.detail}" if self.detail else word

    def cause(self) -> Json:
        return {"reason": self.reason, "message": self.message, "field": self.field}


class ApiError(Exception):
    """A request refused; `body` is what the client reads."""

    def __init__(
        self,
        code: int,
        reason: str,
        message: str,
        details: Json | None = None,
        meta: Json | None = None,
    ) -> None:
        super().__init__(message)
        self.code = code
        self.headers: dict[str, str] = {}
        self.text: str | None = None
        self.body: Json = {
            "kind": "Status",
            "apiVersion": "v1",
            "metadata": meta or {},
            "status": "Failure",
            "message": message,
        }
        if reason:
            self.body["reason"] = reason
        if details is not None:
            self.body["details"] = details
        self.body["code"] = code
        if details and (after := details.get("retryAfterSeconds")):
            self.headers["Retry-After"] = str(after)


def details(name: str, group: str, kind: str, causes: Sequence[Json] = ()) -> Json:
    found: Json = {"name": name, "group": group, "kind": kind, "causes": list(causes)}
    return {key: value for key, value in found.items() if value}


def qualified(group: str, word: str) -> str:
    return f"{word}.{group}" if group else word


def page_not_found() -> ApiError:
    """What a path that nothing serves gets: text, not a Status."""
    error = ApiError(404, "NotFound", "404 page not found")
    error.text = "404 page not found\n"
    return error


def not_found(group: str, plural: str, name: str) -> ApiError:
    message = f'{qualified(group, plural)} "{name}" not found'
    return ApiError(404, "NotFound", message, details(name, group, plural))


def already_exists(group: str, plural: str, name: str) -> ApiError:
    message = f'{qualified(group, plural)} "{name}" already exists'
    return ApiError(409, "AlreadyExists", message, details(name, group, plural))


MODIFIED = (
    "the object has been modified; please apply your changes to the latest version and try again"
)


def conflict(group: str, plural: str, name: str, why: str = MODIFIED) -> ApiError:
    message = f'Operation cannot be fulfilled on {qualified(group, plural)} "{name}": {why}'
    return ApiError(409, "Conflict", message, details(name, group, plural))


def invalid(group: str, kind: str, name: str, faults: Sequence[Fault]) -> ApiError:
    each = [f"{fault.field}: {fault.message}" for fault in faults]
    listed = each[0] if len(each) == 1 else f"[{', '.join(each)}]"
    message = f'{qualified(group, kind)} "{name}" is invalid: {listed}'
    causes = [fault.cause() for fault in faults]
    return ApiError(422, "Invalid", message, details(name, group, kind, causes))


def bad_request(message: str) -> ApiError:
    return ApiError(400, "BadRequest", message)


def bad_patch() -> ApiError:
    """A JSON patch that does not apply, its `test` included."""
    message = "the server rejected our request due to an error in our request"
    return ApiError(422, "Invalid", message, {})


def unsupported(content: str, known: Sequence[str]) -> ApiError:
    message = (
        "the body of the request was in an unknown format - accepted media types include: "
        f"{', '.join(known)}"
    )
    return ApiError(415, "UnsupportedMediaType", message)


def too_old(asked: int, floor: int) -> ApiError:
    return ApiError(410, "Expired", f"too old resource version: {asked} ({floor})")


def too_large(asked: int, current: int) -> ApiError:
    message = f"Too large resource version: {asked}, current: {current}"
    cause = {"reason": "ResourceVersionTooLarge", "message": "Too large resource version"}
    return ApiError(
        504, "Timeout", f"Timeout: {message}", {"causes": [cause], "retryAfterSeconds": 1}
    )


def initializing() -> ApiError:
    """What a watch gets while a kind's cache fills, after creation or a restart."""
    message = "storage is (re)initializing"
    return ApiError(429, "TooManyRequests", message, {"retryAfterSeconds": 1})


def internal(message: str) -> ApiError:
    return ApiError(500, "InternalError", message)


def unauthorized() -> ApiError:
    return ApiError(401, "Unauthorized", "Unauthorized")


def forbidden(group: str, plural: str, name: str, why: str) -> ApiError:
    subject = qualified(group, plural)
    if name:
        subject += f' "{name}"'
    return ApiError(
        403, "Forbidden", f"{subject} is forbidden: {why}", details(name, group, plural)
    )


def method_not_allowed() -> ApiError:
    message = "the server does not allow this method on the requested resource"
    return ApiError(405, "MethodNotAllowed", message, {})


def quoted(value: Any) -> str:
    """A value as Go's field errors print it."""
    if isinstance(value, str):
        return '"' + value.replace("\\", "\\\\").replace('"', '\\"') + '"'
    if isinstance(value, bool):
        return "true" if value else "false"
    if value is None:
        return '"null"'
    if isinstance(value, dict | list):
        from .encode import encode

        return encode(value, ordered=True).decode()
    return str(value)
