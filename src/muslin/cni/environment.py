"""The six variables of a CNI call, and what may stand in them.  Pure.

They become file names, device names and log fields, so what is hostile or
only odd is refused here, once, with code 4 and the variable's name (which the
specification demands).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping

from muslin.errors import RequestError

VERBS = ("ADD", "DEL", "CHECK", "GC", "STATUS", "VERSION")
# Also the order on the wire (agent.server, cni.plugin).
VARIABLES = (
    "CNI_COMMAND",
    "CNI_CONTAINERID",
    "CNI_NETNS",
    "CNI_IFNAME",
    "CNI_ARGS",
    "CNI_PATH",
)
LENIENT = ("DEL", "GC")  # what they do not understand never keeps them from giving back

_REQUIRED: Mapping[str, tuple[str, ...]] = {
    "ADD": ("CNI_CONTAINERID", "CNI_NETNS", "CNI_IFNAME"),
    "DEL": ("CNI_CONTAINERID", "CNI_IFNAME"),
    "CHECK": ("CNI_CONTAINERID", "CNI_NETNS", "CNI_IFNAME"),
}
_NAME = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9_.-]*")  # spec sections 1 and 2
_NAME_MAX = 255  # linux/limits.h: runtimes and libcni's cache make file names of these
# net/core/dev.c: dev_valid_name() refuses white space, '/' and ':', and dev_get_valid_name()
# takes '%' for a template ("eth%d" becomes eth0).  Only visible ASCII: names go into logs.
_IFNAME = re.compile(r"[!-~]{1,15}")
_IFNAME_FORBIDDEN = re.compile(r"[/:%]|^\.{1,2}$")
_PATH_MAX = 4096  # linux/limits.h, with the closing NUL
_ARGS = (
    "IgnoreUnknown",
    "K8S_POD_NAMESPACE",
    "K8S_POD_NAME",
    "K8S_POD_INFRA_CONTAINER_ID",
    "K8S_POD_UID",
    "IP",
    "MAC",
)
_TRUTH = {"1": True, "true": True, "0": False, "false": False}  # as libcni reads it


def verb(env: Mapping[str, str]) -> str:
    """Judge all variables and return the verb; RequestError 4 names each that is wrong."""
    command = env.get("CNI_COMMAND", "")
    if command not in VERBS:
        raise RequestError(4, f"CNI_COMMAND {shown(command)}: not one of {' '.join(VERBS)}")
    required = _REQUIRED.get(command, ())
    if missing := [name for name in required if not env.get(name)]:
        raise RequestError(4, f"{command} needs {', '.join(missing)}")
    faults = []
    for name in VARIABLES[1:]:
        value = env.get(name, "")
        # The others are about no container: what a runtime left in its variables is not judged.
        judge = _JUDGES.get(name) if required and value else None
        if fault := (judge and judge(value)) or _text_fault(value):
            faults.append(f"{name} {shown(value)}: {fault}")
    if faults:
        raise RequestError(4, "; ".join(faults))
    return command


def arguments(text: str, *, lenient: bool) -> dict[str, str]:
    """CNI_ARGS as a dict.  An unknown name needs IgnoreUnknown=1, and is then kept.

    A value may contain '='; libcni splits there and refuses, which helps nobody.
    """
    args: dict[str, str] = {}
    for pair in filter(None, text.split(";")):
        name, equals, value = pair.partition("=")
        if name and equals:
            args[name] = value
        elif not lenient:
            raise RequestError(4, f"CNI_ARGS: {shown(pair)} is not of the form NAME=VALUE")
    ignore = args.get("IgnoreUnknown", "0").lower()
    if lenient or _TRUTH.get(ignore):
        return args
    if ignore not in _TRUTH:
        raise RequestError(4, f"CNI_ARGS: IgnoreUnknown {shown(ignore)}: not 0 or 1")
    if unknown := [name for name in args if name not in _ARGS]:
        names = ", ".join(shown(name) for name in unknown[:8])
        hint = "add IgnoreUnknown=1 to pass arguments that are not for this plugin"
        raise RequestError(4, f"CNI_ARGS: unknown {names}", hint=hint)
    return args


def name_fault(value: str) -> str:
    """Why this is no name of a container or network; "" if it is one."""
    if _NAME.fullmatch(value) and len(value) <= _NAME_MAX:
        return ""
    return f"a letter or digit, then letters, digits, '_', '.' and '-', at most {_NAME_MAX}"


def ifname_fault(value: str) -> str:
    """Why this is no name of an interface; "" if it is one."""
    if _IFNAME.fullmatch(value) and not _IFNAME_FORBIDDEN.search(value):
        return ""
    return "1 to 15 visible characters, none of '/', ':' and '%', and not '.' or '..'"


def _netns_fault(value: str) -> str:
    if value.startswith("/") and len(value.encode(errors="replace")) < _PATH_MAX:
        return ""
    return f"not an absolute path of less than {_PATH_MAX} bytes"


def _text_fault(value: str) -> str:
    if "\0" in value:
        return "contains a NUL"
    # Bytes that are no UTF-8 arrive as lone surrogates (os.fsdecode); they fit in no JSON answer.
    return "" if plain(value) == value else "not UTF-8"


_JUDGES: Mapping[str, Callable[[str], str]] = {
    "CNI_CONTAINERID": name_fault,
    "CNI_NETNS": _netns_fault,
    "CNI_IFNAME": ifname_fault,
}


def shown(value: object) -> str:
    """A value for a message: quoted, and cut."""
    text = repr(value) if isinstance(value, str) else str(value)
    return text if len(text) <= 64 else text[:62] + "…" + text[-1]


def plain(text: str) -> str:
    """Text that fits in JSON: lone surrogates spelled out."""
    return text.encode("utf-8", "backslashreplace").decode()
