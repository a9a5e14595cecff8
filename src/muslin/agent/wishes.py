"""What a pod's annotations ask of its network: read once, and put together with an ADD.  Pure.

    muslin.io/network                       this network, not the configuration's
    muslin.io/pools                         a,b: addresses out of these pools of it only
    muslin.io/addresses                     10.0.0.10,fd00::10: these and no others
    muslin.io/mac                           of the pod's end
    kubernetes.io/ingress-bandwidth, …/egress-bandwidth      bits per second: 20M
    muslin.io/nics                          further NICs: networks with commas between, or a
                                            JSON list that says as much of each as the above

More than one address of an IP version on a pod of a StatefulSet: the pod with
ordinal N takes the one at N, counted from 0, of each version.

Where the runtime asks for the same by itself (`cni.capabilities`), a limit of
the runtime's wins: it was read from the same annotations.  Addresses and a
MAC are somebody's explicit word, so two words that differ are refused.

The sync loop reads (`agent.pods`) and leaves the outcome in node.db, a fault
included, so that an ADD finds it decided.  What is under our prefix and not
known here is refused: a typing error must not become a default.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import replace
from ipaddress import ip_address

import msgspec

from muslin.agent.ground import Ground
from muslin.cni.capabilities import NO_BURST, addresses_of, mac_of, rate_of
from muslin.cni.environment import ifname_fault, shown
from muslin.cni.protocol import Request
from muslin.errors import RequestError
from muslin.model import Address, Rate
from muslin.model import mac_of as address_mac
from muslin.store.ledger import Attachment

PREFIX = "muslin.io/"
NETWORK, POOLS = PREFIX + "network", PREFIX + "pools"
ADDRESSES, MAC, NICS = PREFIX + "addresses", PREFIX + "mac", PREFIX + "nics"
STATUS = PREFIX + "status"  # ours, not a wish: what the pod was given
INGRESS, EGRESS = "kubernetes.io/ingress-bandwidth", "kubernetes.io/egress-bandwidth"
KNOWN = (NETWORK, POOLS, ADDRESSES, MAC, NICS)

MEND = "change the annotation, on the pod or in its template; the pod is tried again by itself"
MOST_ADDRESSES = 4096  # in one annotation; all of a pod's have 256 KiB
MOST_NICS = 8  # beside the first; each is a device, and some 1 ms of the ADD
_TAKEN = ("eth0", "lo", "all", "default")  # the last two are the kernel's, below net/ipv4/conf
_LABEL = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")
_LABEL_WORDS = "write a name of a-z, 0-9 and -, at most 63 characters"
# k8s.io/apimachinery/pkg/api/resource: a number and a suffix, or an exponent.
_QUANTITY = re.compile(
    r"\+?(?=\.?[0-9])([0-9]{0,30})\.?([0-9]{0,30})(?:([numkMGTPE]|[KMGTPE]i)?|[eE]([+-]?[0-9]{1,2}))"
)
_DECIMAL = {"n": -9, "u": -6, "m": -3, "": 0, "k": 3, "M": 6, "G": 9, "T": 12, "P": 15, "E": 18}
_MOST_BITS = 10**15  # per second: 1P, the kubelet's own limit for these two


class Wishes(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What the annotations of one pod come to."""

    network: str = ""
    pools: tuple[str, ...] = ()
    ips: tuple[Address, ...] = ()  # at most one of each IP version
    mac: str = ""
    ingress: Rate | None = None
    egress: Rate | None = None
    fault: str = ""  # why the pod cannot have what it asks for
    nics: tuple[Wishes, ...] = ()  # further ones, each with network and ifname
    ifname: str = ""  # of a further NIC


NONE = Wishes()


class _Listed(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    network: str
    name: str = ""
    pools: tuple[str, ...] = ()
    addresses: tuple[str, ...] = ()
    mac: str = ""
    ingress: str = ""
    egress: str = ""


_listed = msgspec.json.Decoder(tuple[_Listed, ...])


def read(annotations: Mapping[str, str], *, pod: str, stateful: bool) -> Wishes:
    """The wishes of the pod named `pod`; whatever is wrong stands in `fault`, all of it.

    `stateful`: a StatefulSet made it, so its name ends in an ordinal.
    """
    found: dict[str, object] = {}
    faults: list[str] = []
    for key in sorted(annotations):
        value = annotations[key].strip()
        try:
            found |= _one(key, value, pod, stateful)
        except RequestError as e:
            faults.append(f"annotation {key} {shown(value)}: {e}")
    if faults:
        return Wishes(fault="; ".join(faults))
    return Wishes(**found) if found else NONE  # type: ignore[arg-type]


def _one(key: str, value: str, pod: str, stateful: bool) -> dict[str, object]:
    match key:
        case "muslin.io/network":
            return {"network": _label(value)}
        case "muslin.io/pools":
            return {"pools": _labels(value.split(","))}
        case "muslin.io/addresses":
            return {"ips": _addresses(value, pod, stateful)}
        case "muslin.io/mac":
            if not value:
                raise RequestError(7, "is empty; write six bytes, such as 02:00:5e:10:00:07")
            return {"mac": mac_of(value)}
        case "kubernetes.io/ingress-bandwidth":
            return {"ingress": rate_of("ingress", bits(value), NO_BURST)}
        case "kubernetes.io/egress-bandwidth":
            return {"egress": rate_of("egress", bits(value), NO_BURST)}
        case "muslin.io/nics":
            return {"nics": _nics(value, pod, stateful)}
    if key.startswith(PREFIX) and key != STATUS:
        raise RequestError(7, f"not known; there are {', '.join(KNOWN)}")
    return {}


def _label(text: str) -> str:
    if not _LABEL.fullmatch(text):
        raise RequestError(7, f"{shown(text)} is no name; {_LABEL_WORDS}")
    return text


def _labels(texts: Iterable[str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(_label(t.strip()) for t in texts))


def _nics(text: str, pod: str, stateful: bool) -> tuple[Wishes, ...]:
    if text.startswith(("[", "{")):
        try:
            listed = _listed.decode(text)
        except msgspec.MsgspecError as e:
            why = 'write networks with commas between, or a list such as [{"network": "blue"}]'
            raise RequestError(7, f"{e}; {why}") from e
    else:
        listed = tuple(_Listed(network=name.strip()) for name in text.split(","))
    if len(listed) > MOST_NICS:
        raise RequestError(7, f"{len(listed)} NICs; {MOST_NICS} are the most")
    found: list[Wishes] = []
    for at, one in enumerate(listed, 1):
        try:
            found.append(_nic(one, f"net{at}", pod, stateful))
        except RequestError as e:
            raise RequestError(7, f"NIC {at}: {e}") from e
    for what, names in (
        ("name", [n.ifname for n in found]),
        ("network", [n.network for n in found]),
    ):
        if twice := next((n for n in names if names.count(n) > 1), ""):
            raise RequestError(7, f"{what} {twice} twice; each NIC has its own {what}")
    return tuple(found)


def _nic(one: _Listed, default: str, pod: str, stateful: bool) -> Wishes:
    name = one.name or default
    if name in _TAKEN:
        raise RequestError(7, f"name {name} is another's; leave it out, and it is {default}")
    if fault := ifname_fault(name):
        raise RequestError(7, f"name {shown(name)}: {fault}")
    return Wishes(
        ifname=name,
        network=_label(one.network),
        pools=_labels(one.pools),
        ips=_addresses(",".join(one.addresses), pod, stateful) if one.addresses else (),
        mac=mac_of(one.mac),
        ingress=rate_of("ingress", bits(one.ingress), NO_BURST) if one.ingress else None,
        egress=rate_of("egress", bits(one.egress), NO_BURST) if one.egress else None,
    )


def _addresses(text: str, pod: str, stateful: bool) -> tuple[Address, ...]:
    words = text.split(",")
    if len(words) > MOST_ADDRESSES:
        raise RequestError(7, f"{len(words)} addresses; {MOST_ADDRESSES} are the most")
    try:
        given = [ip_address(word.strip()) for word in words]
    except ValueError as e:
        raise RequestError(7, f"{e}; write addresses with commas between, without /length") from e
    by_version = {v: [a for a in given if a.version == v] for v in (4, 6)}
    if max(map(len, by_version.values())) == 1:
        return addresses_of(map(str, given))
    name, _, number = pod.rpartition("-")
    if not stateful or not name or not re.fullmatch(r"[0-9]{1,9}", number):
        why = "several addresses of one IP version are for the pods of a StatefulSet, by ordinal"
        raise RequestError(7, f"{why}; write one of each version")
    found: list[str] = []
    for version, addresses in by_version.items():
        if len(set(addresses)) != len(addresses):
            raise RequestError(7, f"names an IPv{version} address twice")
        if addresses and int(number) >= len(addresses):
            why = f"{len(addresses)} IPv{version} addresses, for the ordinals 0 to"
            raise RequestError(
                7, f"{why} {len(addresses) - 1}; {pod} needs one at {number}: write more of them"
            )
        found += [str(addresses[int(number)])] if addresses else []
    return addresses_of(found)


def bits(text: str) -> int:
    """A Kubernetes quantity as a whole number, rounded up as Kubernetes does."""
    mend = "write bits per second as a quantity, such as 20M"
    match = _QUANTITY.fullmatch(text)
    if not match:
        raise RequestError(7, f"not a quantity above 0; {mend}")
    whole, fraction, suffix, exponent = match[1], match[2], match[3] or "", match[4]
    value, ten = int(whole + fraction), (int(exponent) if exponent else 0) - len(fraction)
    if suffix.endswith("i"):
        value <<= 10 * ("KMGTPE".index(suffix[0]) + 1)
    else:
        ten += _DECIMAL[suffix]
    power = int(10 ** abs(ten))
    value = value * power if ten >= 0 else -(-value // power)
    if not 0 < value <= _MOST_BITS:
        raise RequestError(7, f"out of range, 8k to 1P; {mend}")
    return value


# ── together with an ADD ────────────────────────────────────────────────────────────────────────


def joined(request: Request, wishes: Wishes) -> Request:
    """The request with what its pod asks for; RequestError 7 when both ask and differ."""
    if wishes == NONE:
        return request
    if wishes.fault:
        raise RequestError(7, f"pod {request.wants.pod}: {wishes.fault}", hint=MEND)
    asked = request.wants
    for what, runtime, pod in (
        ("addresses", ", ".join(map(str, asked.ips)), ", ".join(map(str, wishes.ips))),
        ("mac", asked.mac, wishes.mac),
    ):
        if runtime and pod and runtime != pod:
            why = f"the runtime asks for {runtime}, annotation {PREFIX}{what} for {pod}"
            hint = "leave it to one of them: remove the annotation, or what the runtime was told"
            raise RequestError(7, f"pod {asked.pod}: {why}", hint=hint)
    wants = msgspec.structs.replace(
        asked,
        ips=asked.ips or wishes.ips,
        mac=asked.mac or wishes.mac,
        ingress=asked.ingress or wishes.ingress,
        egress=asked.egress or wishes.egress,
    )
    return replace(request, wants=wants, network=wishes.network or request.network)


def missed(
    wishes: Wishes, found: Attachment, pools: Collection[str], nics: Collection[str] = ()
) -> tuple[str, ...]:
    """What the pod asks for and `found` has not, in words.

    `pools`: of its addresses; `nics`: the networks of all the pod's NICs.

    A limit that differs is met: the runtime's wins over the annotation's.
    """
    if wishes.fault:
        return (wishes.fault,)
    given = found.wants
    mac = given.mac or address_mac(found.addresses[0])
    strange = [name for name in pools if wishes.pools and name not in wishes.pools]
    lacking = [nic.network for nic in wishes.nics if nic.network not in nics]
    unmet = (
        (NETWORK, wishes.network, wishes.network not in ("", found.network)),
        (POOLS, ",".join(wishes.pools), bool(strange)),
        (ADDRESSES, ",".join(map(str, wishes.ips)), not set(wishes.ips) <= set(found.addresses)),
        (MAC, wishes.mac, wishes.mac not in ("", mac)),
        (INGRESS, "", wishes.ingress is not None and given.ingress is None),
        (EGRESS, "", wishes.egress is not None and given.egress is None),
        (NICS, ",".join(lacking), bool(lacking)),
    )
    return tuple(f"annotation {key} {value}".rstrip() for key, value, is_so in unmet if is_so)


def narrowed(where: Ground, wishes: Wishes) -> Ground:
    """The network with only the pools that the pod asks for; RequestError 7 for one it has not."""
    if not wishes.pools:
        return where
    key = NICS if wishes.ifname else POOLS
    known = {p.name: p for p in where.pools}
    if strange := [name for name in wishes.pools if name not in known]:
        why = f"network {where.network.name} has no pool {', '.join(strange)}"
        there = f"it has {', '.join(known) or 'none'}"
        raise RequestError(7, f"annotation {key}: {why}; {there}", hint=MEND)
    return msgspec.structs.replace(where, pools=tuple(known[name] for name in wishes.pools))
