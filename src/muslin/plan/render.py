"""A plan as the text a person would type: runnable iproute2, bridge, sysctl and nft commands.

`muslin plan` prints it, every applied change is logged in these words, the
golden tests compare it, and one test runs it verbatim in real namespaces.
Nothing in Muslin ever executes this text: the kernel is driven by netlink.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterable

from muslin.plan.diff import Change, Verb, diff
from muslin.plan.objects import (
    ALIAS,
    NFT_TABLE,
    PROTOCOL,
    SENDERS,
    TABLE_MAIN,
    Addr,
    Element,
    Fdb,
    Link,
    Neigh,
    Object,
    Plan,
    Police,
    Present,
    Route,
    Rule,
    Ruleset,
    Shaper,
    Sysctl,
    Veth,
    Vxlan,
)


def render(plan: Plan) -> str:
    """The commands that bring `plan` up from nothing, one per line, in order."""
    return render_changes(diff(plan, frozenset()))


def render_changes(changes: Iterable[Change]) -> str:
    """One command per line (several for a link); empty when there are no changes."""
    return "".join(f"{line}\n" for change in changes for line in describe(change))


def describe(change: Change) -> list[str]:
    """The command lines of one change."""
    lines = _lines(change.verb, change.obj, change.was)
    if change.obj.ns is None:
        return lines
    return [f"nsenter --net={shlex.quote(change.obj.ns)} {line}" for line in lines]


def words(obj: Object) -> str:
    """The object in one line, for an error message or a log."""
    return describe(Change("add", obj))[0].replace(" add ", " ", 1)


def _lines(verb: Verb, obj: Object, was: Object | None) -> list[str]:
    match obj:
        case Link():
            return _link(verb, obj, was)
        case Sysctl():
            return [f"sysctl -q -w {obj.name}={obj.value}"]
        case Addr():
            nodad = " nodad" if obj.address.version == 6 and verb != "remove" else ""
            return [f"ip addr {_plain(verb)} {obj.address} dev {obj.dev}{nodad}"]
        case Neigh():
            mac = "" if verb == "remove" else f" lladdr {obj.mac} nud permanent"
            return [f"ip neigh {_plain(verb)} {obj.address}{mac} dev {obj.dev}"]
        case Fdb():
            end = "" if verb == "remove" else " self permanent"
            return [f"bridge fdb {_plain(verb)} {obj.mac} dev {obj.dev} dst {obj.dst}{end}"]
        case Route():
            return [_route(verb, obj)]
        case Rule():
            family = "-6 " if obj.src.version == 6 else ""
            mark = f" fwmark 0/{obj.unless:#x}" if obj.unless else ""
            return [
                f"ip {family}rule {_plain(verb)} from {obj.src}{mark} lookup {obj.table}"
                f" priority {obj.priority} protocol {PROTOCOL}"
            ]
        case Shaper():
            where = f"dev {obj.dev} root handle {PROTOCOL:x}:"
            rate = f" tbf rate {obj.rate * 8}bit burst {obj.burst} limit {obj.queue}"
            return [f"tc qdisc {_plain(verb)} {where}{'' if verb == 'remove' else rate}"]
        case Police():
            return [_nft("; ".join(police_text(verb, obj)))]
        case Ruleset():
            return [_nft(f"delete table inet {NFT_TABLE}" if verb == "remove" else table_text(obj))]
        case Element():
            item = obj.item if obj.data is None or verb == "remove" else f"{obj.item} : {obj.data}"
            where = f"element inet {NFT_TABLE} {obj.set}"
            if verb == "remove":
                return [_nft(f"delete {where} {{ {item} }}")]
            # A map's entry with other data is refused; both in one transaction replace it.
            before = f"delete {where} {{ {obj.item} }}; " if verb == "replace" else ""
            return [_nft(f"{before}add {where} {{ {item} }}")]


def _link(verb: Verb, link: Link, was: Object | None) -> list[str]:
    if verb == "remove":
        return [f"ip link del dev {link.name}"]
    settings = ""
    if link.mtu is not None:
        settings += f" mtu {link.mtu}"
    if link.mac is not None:
        settings += f" address {link.mac}"
    if verb == "replace" or isinstance(link.kind, Present):
        return [f"ip link set dev {link.name}{settings} up"]
    alias = shlex.quote(f"{ALIAS} {link.purpose}".strip())
    return [
        f"ip link add {link.name}{settings} {_kind(link.kind)}",
        # Two commands: `ip` sends one message, in which the kernel does `up` first.
        f"ip link set dev {link.name} alias {alias} addrgenmode none",
        f"ip link set dev {link.name} up",
    ]


def _kind(kind: Veth | Vxlan | Present) -> str:
    match kind:
        case Veth():
            where = f" netns {shlex.quote(kind.peer_ns)}" if kind.peer_ns else ""
            return f"type veth peer name {kind.peer}{where}"
        case Vxlan():
            return f"type vxlan id {kind.vni} dstport {kind.port} local {kind.local} nolearning"
        case Present():
            return ""


def _route(verb: Verb, route: Route) -> str:
    family = "-6 " if route.dst.version == 6 else ""
    text = f"ip {family}route {_plain(verb)} "
    text += str(route.dst) if route.dev else f"unreachable {route.dst}"
    if route.via:
        text += f" via {route.via}"
    if route.dev:
        text += f" dev {route.dev}"
        if route.via is None and route.dst.version == 4:
            text += " scope link"
    if route.onlink:
        text += " onlink"
    if route.src:
        text += f" src {route.src}"
    if route.table != TABLE_MAIN:
        text += f" table {route.table}"
    return f"{text} proto {PROTOCOL}"


def _plain(verb: Verb) -> str:
    return {"add": "add", "replace": "replace", "remove": "del"}[verb]


def table_text(ruleset: Ruleset) -> str:
    """The table in nft's language, with the mark by which it is recognised later."""
    return f'table inet {NFT_TABLE} {{\n\tcomment "{ruleset.mark}"\n{ruleset.body}}}'


def police_text(verb: Verb, police: Police) -> list[str]:
    """The commands of nft that put or take away both of its parts."""
    limit, sender = f"limit inet {NFT_TABLE} {police.name}", f"element inet {NFT_TABLE} {SENDERS}"
    commands = []
    if verb != "add":
        commands += [f"delete {sender} {{ {police.name} }}", f"delete {limit}"]
    if verb != "remove":
        rate = f"rate over {police.rate} bytes/second burst {police.burst} bytes"
        commands += [f"add {limit} {{ {rate} ; }}"]
        commands += [f"add {sender} {{ {police.name} : {police.name} }}"]
    return commands


def _nft(text: str) -> str:
    return "nft -- " + shlex.quote(text)
