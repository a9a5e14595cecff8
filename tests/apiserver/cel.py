"""CEL as a real server evaluates it, on Google's C++ library, with Kubernetes' functions.

Covered: the standard library and macros, `has`, optionals, strings (split, join, replace,
lowerAscii, ...), math; from Kubernetes' own libraries IP and CIDR, `find`/`findAll`,
lists (`isSorted`, `sum`, `min`, `max`), sets, `isURL` and `isQuantity`.  Not covered: the
authorizer, parts of url(), arithmetic of quantities, semver, format(), named formats,
two-variable comprehensions, `indexOf` of lists, cost limits, and a number field that holds a
whole number is an int here.  What is not covered does not compile, and a rule that does not
compile or evaluate is an error, never taken for valid.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable, Iterator, Mapping
from functools import lru_cache
from typing import Any
from urllib.parse import urlparse

from cel_expr_python import cel
from cel_expr_python.ext import ext_bindings, ext_math, ext_optional, ext_strings

from .schema import Rule
from .status import Fault

_T = cel.Type
# An address and a prefix are maps of one text each: a type of their own, which the library
# cannot be given from Python.
_NET = _T.Map(_T.STRING, _T.STRING)
_VARIABLES = ("self", "oldSelf", "object", "oldObject", "request", "params", "variables")


class CelError(Exception):
    """An expression that cannot be compiled or evaluated."""


def _address(text: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address:
    if "%" in text:
        raise ValueError(f"IP address with zone value is not allowed: {text}")
    return ipaddress.ip_address(text)


def _ip(text: str) -> dict[str, str]:
    return {"ip": str(_address(text))}


def _prefix(text: str) -> ipaddress.IPv4Interface | ipaddress.IPv6Interface:
    if not re.fullmatch(r"[^/%]+/(0|[1-9]\d*)", text):
        raise ValueError(f"invalid CIDR address: {text}")
    return ipaddress.ip_interface(text)


def _cidr(text: str) -> dict[str, str]:
    return {"cidr": str(_prefix(text))}


def _of_ip(value: Mapping[str, str]) -> ipaddress.IPv4Address | ipaddress.IPv6Address:
    return ipaddress.ip_address(value["ip"])


def _of_cidr(value: Mapping[str, str]) -> ipaddress.IPv4Interface | ipaddress.IPv6Interface:
    return ipaddress.ip_interface(value["cidr"])


def _contains_ip(outer: Mapping[str, str], inner: Any) -> bool:
    address = _address(inner) if isinstance(inner, str) else _of_ip(inner)
    network = _of_cidr(outer).network
    return address.version == network.version and address in network


def _contains_cidr(outer: Mapping[str, str], inner: Any) -> bool:
    small = (_prefix(inner) if isinstance(inner, str) else _of_cidr(inner)).network
    big = _of_cidr(outer).network
    return big.version == small.version and small.subnet_of(big)  # type: ignore[arg-type]


def _says(parse: Callable[[str], object]) -> Callable[[str], bool]:
    def check(text: str) -> bool:
        try:
            parse(text)
        except ValueError:
            return False
        return True

    return check


def _url(text: str) -> object:
    found = urlparse(text)
    if not (found.scheme or text.startswith("/")) or " " in text:
        raise ValueError(text)
    return found


def _quantity(text: str) -> object:
    if not re.fullmatch(r"[+-]?(\d+(\.\d*)?|\.\d+)([KMGTPE]i|[numkMGTPE]|[eE][+-]?\d+)?", text):
        raise ValueError(text)
    return text


def _find(text: str, pattern: str) -> str:
    found = re.search(pattern, text)
    return found.group(0) if found else ""


def _find_all(text: str, pattern: str) -> list[str]:
    return [found.group(0) for found in re.finditer(pattern, text)]


def _same_text(text: str) -> bool:
    """ip.isCanonical, for what the library calls with a text."""
    return str(_address(text)) == text


def _functions() -> Iterator[cel.FunctionDecl]:
    def one(name: str, *overloads: cel.Overload) -> cel.FunctionDecl:
        return cel.FunctionDecl(name, list(overloads))

    def plain(name: str, impl: Any, result: Any, *given: Any) -> cel.Overload:
        return cel.Overload(f"k8s_{name}", result, list(given), impl=impl)

    def member(name: str, impl: Any, result: Any, *given: Any) -> cel.Overload:
        return cel.Overload(f"k8s_{name}_m", result, list(given), is_member=True, impl=impl)

    yield one("isIP", plain("isIP", _says(_address), _T.BOOL, _T.STRING))
    yield one("isCIDR", plain("isCIDR", _says(_prefix), _T.BOOL, _T.STRING))
    yield one("isURL", plain("isURL", _says(_url), _T.BOOL, _T.STRING))
    yield one("isQuantity", plain("isQuantity", _says(_quantity), _T.BOOL, _T.STRING))
    yield one(
        "ip",
        plain("ip", _ip, _NET, _T.STRING),
        member("ip", lambda c: _ip(str(_of_cidr(c).ip)), _NET, _NET),
    )
    yield one("cidr", plain("cidr", _cidr, _NET, _T.STRING))
    yield one("ip.isCanonical", plain("canonical", _same_text, _T.BOOL, _T.STRING))
    yield one("family", member("family", lambda a: _of_ip(a).version, _T.INT, _NET))
    for name, impl in (
        ("isLoopback", lambda a: _of_ip(a).is_loopback),
        ("isUnspecified", lambda a: _of_ip(a).is_unspecified),
        ("isLinkLocalMulticast", lambda a: _of_ip(a).is_multicast and _link_local(_of_ip(a))),
        ("isLinkLocalUnicast", lambda a: _of_ip(a).is_link_local),
        ("isGlobalUnicast", lambda a: _global_unicast(_of_ip(a))),
    ):
        yield one(name, member(name, impl, _T.BOOL, _NET))
    yield one(
        "containsIP",
        member("containsIP_s", _contains_ip, _T.BOOL, _NET, _T.STRING),
        member("containsIP", _contains_ip, _T.BOOL, _NET, _NET),
    )
    yield one(
        "containsCIDR",
        member("containsCIDR_s", _contains_cidr, _T.BOOL, _NET, _T.STRING),
        member("containsCIDR", _contains_cidr, _T.BOOL, _NET, _NET),
    )
    prefix = member("prefixLength", lambda c: _of_cidr(c).network.prefixlen, _T.INT, _NET)
    yield one("prefixLength", prefix)
    yield one("masked", member("masked", lambda c: {"cidr": str(_of_cidr(c).network)}, _NET, _NET))
    yield one("find", member("find", _find, _T.STRING, _T.STRING, _T.STRING))
    found = member("findAll", _find_all, _T.List(_T.STRING), _T.STRING, _T.STRING)
    yield one("findAll", found)
    many = _T.List(_T.DYN)
    yield one("isSorted", member("isSorted", lambda v: v == sorted(v), _T.BOOL, many))
    yield one("sum", member("sum", sum, _T.DYN, many))
    yield one("min", member("min", min, _T.DYN, many))
    yield one("max", member("max", max, _T.DYN, many))
    for name, test in (
        ("contains", lambda a, b: all(item in a for item in b)),
        ("intersects", lambda a, b: any(item in a for item in b)),
        ("equivalent", lambda a, b: all(i in a for i in b) and all(i in b for i in a)),
    ):
        yield one(f"sets.{name}", plain(f"sets_{name}", test, _T.BOOL, many, many))


def _link_local(address: ipaddress.IPv4Address | ipaddress.IPv6Address) -> bool:
    packed = address.packed
    return packed[:3] == b"\xe0\x00\x00" or (address.version == 6 and packed[1] & 0x0F == 2)


def _global_unicast(address: ipaddress.IPv4Address | ipaddress.IPv6Address) -> bool:
    """As Go means it: private addresses count."""
    never = address.is_multicast or address.is_loopback or address.is_unspecified
    return not never and not address.is_link_local and str(address) != "255.255.255.255"


@lru_cache(maxsize=1)
def _environment() -> Any:
    names = (*_VARIABLES, "namespaceObject")
    return cel.NewEnv(
        variables=dict.fromkeys(names, _T.DYN),
        functions=list(_functions()),
        extensions=[
            ext_strings.ExtStrings(),
            ext_optional.ExtOptional(),
            ext_math.ExtMath(),
            ext_bindings.ExtBindings(),
        ],
    )


@lru_cache(maxsize=1024)
def compiled(expression: str) -> Any:
    """Compile, or raise CelError with the reason."""
    try:
        return _environment().compile(expression)
    except RuntimeError as error:
        first = str(error).removeprefix("INVALID_ARGUMENT: ")
        raise CelError(f"compilation failed: {first}") from error


def evaluate(expression: str, data: Mapping[str, Any]) -> Any:
    """The value of an expression, or CelError."""
    try:
        value = compiled(expression).eval(data=dict(data))
    except RuntimeError as error:
        raise CelError(str(error)) from error
    if value.type() == _T.ERROR:
        raise CelError(str(value.plain_value()))
    return value.plain_value()


def rule_fault(rule: Rule) -> Fault | None:
    """What a rule of a schema complains about."""
    text = rule.raw["rule"]
    transition = re.search(r"\boldSelf\b", text) is not None
    data: dict[str, Any] = {"self": rule.value}
    if transition:
        if rule.raw.get("optionalOldSelf"):
            return Fault("FieldValueInvalid", rule.path, "optionalOldSelf is not covered here")
        if not rule.had_old:
            return None
        data["oldSelf"] = rule.old
    try:
        if evaluate(text, data) is True:
            return None
    except CelError as error:
        # A real server says the same of a rule that fails at run time.
        detail = f"rule evaluation error: {error}: {text}"
        return Fault("FieldValueInvalid", rule.path, detail)
    path = rule.path + (rule.raw.get("fieldPath") or "")
    return Fault(rule.raw.get("reason") or "FieldValueInvalid", path, _message(rule, data))


def _message(rule: Rule, data: Mapping[str, Any]) -> str:
    if expression := rule.raw.get("messageExpression"):
        try:
            return str(evaluate(expression, data))
        except CelError:
            pass  # a real server falls back to `message`, too
    return str(rule.raw.get("message") or f"failed rule: {rule.raw['rule']}").strip()
