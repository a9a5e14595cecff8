"""Which proxy the environment names for a server.  Pure.

The rules are those of Go's `http.ProxyFromEnvironment` (golang.org/x/net/http/httpproxy), since
kubectl follows them: lower-case variables are as good as upper-case ones, NO_PROXY holds hosts,
domain suffixes, addresses and networks, each perhaps with a port, and the local machine is never
reached through a proxy.
"""

from __future__ import annotations

from collections.abc import Mapping
from ipaddress import ip_address, ip_network
from urllib.parse import urlsplit


def proxy_for(server: str, environ: Mapping[str, str]) -> str:
    """The proxy's URL for requests to `server`, or "" for none."""
    try:
        url = urlsplit(server)
        host, port = url.hostname or "", url.port or {"https": 443}.get(url.scheme, 80)
    except ValueError:
        return ""  # not a URL: whoever asks says so better

    def value(name: str) -> str:
        return environ.get(name.upper()) or environ.get(name) or ""

    proxy = value(f"{url.scheme}_proxy")
    if not proxy or _is_local(host):
        return ""
    if any(_matches(rule.strip(), host, port) for rule in value("no_proxy").split(",")):
        return ""
    return proxy if "://" in proxy else f"http://{proxy}"


def _is_local(host: str) -> bool:
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _matches(rule: str, host: str, port: int) -> bool:
    rule = rule.lower()
    if rule == "*":
        return True
    try:
        return ip_address(host) in ip_network(rule, strict=False)
    except ValueError:
        pass  # one of the two is no address
    name, colon, digits = rule.rpartition(":")
    if colon and digits.isdecimal():
        if int(digits) != port:
            return False
        rule = name.strip("[]")
    if not rule:
        return False
    suffix = rule.removeprefix("*")
    return host == rule or host.endswith(suffix if suffix.startswith(".") else f".{suffix}")
