"""Names and metadata: what an object may be called, and what may be written about it."""

from __future__ import annotations

import re
import secrets

from .encode import Json
from .kinds import Kind
from .status import Fault, quoted

_SUBDOMAIN = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*")
_LABEL = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?")
_SERVICE = re.compile(r"[a-z]([-a-z0-9]*[a-z0-9])?")
_PATH_SEGMENT = re.compile(r"(?!\.\.?$)[^/%]+")
_LABEL_VALUE = re.compile(r"(([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9])?")
_LABEL_NAME = re.compile(r"([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]")
_ALPHABET = "bcdfghjklmnpqrstvwxz2456789"  # what generateName appends; no vowels, no words

_SUBDOMAIN_WORDS = (
    "a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or "
    "'.', and must start and end with an alphanumeric character (e.g. 'example.com', regex used "
    "for validation is '[a-z0-9]([-a-z0-9]*[a-z0-9])?(\\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*')"
)
_LABEL_WORDS = (
    "a lowercase RFC 1123 label must consist of lower case alphanumeric characters or '-', and "
    "must start and end with an alphanumeric character (e.g. 'my-name',  or '123-abc', regex "
    "used for validation is '[a-z0-9]([-a-z0-9]*[a-z0-9])?')"
)
_SERVICE_WORDS = (
    "a DNS-1035 label must consist of lower case alphanumeric characters or '-', start with an "
    "alphabetic character, and end with an alphanumeric character (e.g. 'my-name',  or 'abc-123',"
    " regex used for validation is '[a-z]([-a-z0-9]*[a-z0-9])?')"
)
_VALUE_WORDS = (
    "a valid label must be an empty string or consist of alphanumeric characters, '-', '_' or "
    "'.', and must start and end with an alphanumeric character (e.g. 'MyValue',  or 'my_value', "
    " or '12345', regex used for validation is '(([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9])?')"
)
_QUALIFIED_WORDS = (
    "name part must consist of alphanumeric characters, '-', '_' or '.', and must start and end "
    "with an alphanumeric character (e.g. 'MyName',  or 'my.name',  or '123-abc', regex used for "
    "validation is '([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]')"
)
_RULES = {
    "services": (_SERVICE, 63, _SERVICE_WORDS),
    "namespaces": (_LABEL, 63, _LABEL_WORDS),
    "clusterroles": (_PATH_SEGMENT, 1 << 30, "may not contain '/' or '%'"),
    "clusterrolebindings": (_PATH_SEGMENT, 1 << 30, "may not contain '/' or '%'"),
    "roles": (_PATH_SEGMENT, 1 << 30, "may not contain '/' or '%'"),
    "rolebindings": (_PATH_SEGMENT, 1 << 30, "may not contain '/' or '%'"),
}
ANNOTATIONS_LIMIT = 256 * 1024  # bytes of all keys and values


def generate(base: str) -> str:
    """A name from generateName."""
    return base[:58] + "".join(secrets.choice(_ALPHABET) for _ in range(5))


def faults(kind: Kind, meta: Json) -> list[Fault]:
    """Everything wrong with an object's metadata."""
    found = list(_name_faults(kind, meta))
    for key, value in (meta.get("labels") or {}).items():
        if not isinstance(value, str) or len(value) > 63 or not _LABEL_VALUE.fullmatch(value):
            detail = f"{quoted(value)}: {_VALUE_WORDS}"
            found.append(Fault("FieldValueInvalid", "metadata.labels", detail))
        found += _key_faults(key, "metadata.labels")
    size = 0
    for key, value in (meta.get("annotations") or {}).items():
        found += _key_faults(key.lower(), "metadata.annotations")
        size += len(key.encode()) + len(str(value).encode())
    if size > ANNOTATIONS_LIMIT:
        detail = f"may not be more than {ANNOTATIONS_LIMIT} bytes"
        found.append(Fault("FieldValueTooLong", "metadata.annotations", detail))
    for number, finalizer in enumerate(meta.get("finalizers") or ()):
        if "/" not in finalizer and finalizer not in ("foregroundDeletion", "orphan", "kubernetes"):
            detail = f"{quoted(finalizer)}: name is neither a standard finalizer name nor is it "
            detail += "fully qualified"
            found.append(Fault("FieldValueInvalid", f"metadata.finalizers[{number}]", detail))
    return found


def _name_faults(kind: Kind, meta: Json) -> list[Fault]:
    pattern, longest, words = _RULES.get(kind.plural, (_SUBDOMAIN, 253, _SUBDOMAIN_WORDS))
    if kind.custom:
        pattern, longest, words = _SUBDOMAIN, 253, _SUBDOMAIN_WORDS
    found = []
    base, name = meta.get("generateName", ""), meta.get("name", "")
    # A prefix may end in '-', for more follows; in '.' it may not, whatever follows.
    masked = base[:-1] + "a" if base.endswith("-") and len(base) > 1 else base
    if base and not pattern.fullmatch(masked):
        detail = f"{quoted(base)}: {words}"
        found.append(Fault("FieldValueInvalid", "metadata.generateName", detail))
    if not name:
        detail = "name or generateName is required"
        return [*found, Fault("FieldValueRequired", "metadata.name", detail)]
    if len(name) > longest:
        detail = f"{quoted(name)}: must be no more than {longest} bytes"
        found.append(Fault("FieldValueInvalid", "metadata.name", detail))
    elif not pattern.fullmatch(name):
        found.append(Fault("FieldValueInvalid", "metadata.name", f"{quoted(name)}: {words}"))
    return found


def _key_faults(key: str, field: str) -> list[Fault]:
    prefix, slash, name = key.rpartition("/")
    wrong = not _LABEL_NAME.fullmatch(name) or len(name) > 63
    if slash and not _SUBDOMAIN.fullmatch(prefix):
        detail = f"{quoted(key)}: prefix part {_SUBDOMAIN_WORDS}"
        return [Fault("FieldValueInvalid", field, detail)]
    if wrong:
        return [Fault("FieldValueInvalid", field, f"{quoted(key)}: {_QUALIFIED_WORDS}")]
    return []
