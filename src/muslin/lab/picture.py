"""A topology as text: switches as bars, routers as columns, hosts as boxes with their pods.

    r1  (router, knows no pods)
    ├─────═ rack-a ══════════════════════ 192.0.2.0/24  2001:db8:a::/64
    │         ┌┴ n1 ─────────────┐ ┌┴ n2 ───────────┐
    │         │ 192.0.2.11       │ │ 192.0.2.12     │
    │         │ 2001:db8:a::11   │ │ 2001:db8:a::12 │
    │         │ ● web 10.244.0.1 │ └────────────────┘
    │         └──────────────────┘
    └─────═ rack-b ══════════════════════ 198.51.100.0/24

Pure: a topology and pods in, lines out.  Boxes that do not fit beside each
other go below.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from muslin.lab.state import Pod
from muslin.lab.topology import Host, Router, Switch, Topology

WIDTH = 100
_COLUMN = 6  # characters from one router's column to the next
_INDENT = 4  # of a box below its switch
_BAR = 44  # characters of a switch


def draw(topology: Topology, pods: Iterable[Pod] = (), *, width: int = WIDTH) -> str:
    """The whole lab; lines end with a newline."""
    known = list(pods)
    network = topology.network
    pools = "  ".join(str(p.cidr) for p in topology.pools)
    lines = [f"{topology.name}: network {network.name}, {_backend(topology)}, pods {pools}", ""]
    margin = _COLUMN * len(topology.routers)
    lines += _names(topology.routers)
    body: list[tuple[str, str]] = []  # the switch whose bar this line is, or ""; the text
    for switch in topology.switches:
        body.append((switch.name, _bar(switch, width - margin)))
        hosts = [h for h in topology.hosts if h.leg.switch == switch.name]
        boxes = [_box(h, [p for p in known if p.node == h.name]) for h in hosts]
        body += [("", line) for line in _beside(boxes, width - margin)]
        body.append(("", ""))
    body.pop()
    lines += [
        (_columns(topology.routers, index, [name for name, _ in body]) + text).rstrip()
        for index, (_, text) in enumerate(body)
    ]
    return "\n".join(lines) + "\n"


def _backend(topology: Topology) -> str:
    options = topology.network.options
    words = " ".join(f"{k}={v}" for k, v in options.items())
    return f"{topology.network.backend} ({words})" if words else topology.network.backend


def _names(routers: Sequence[Router]) -> list[str]:
    """Each router's name over its column, staggered so that long ones do not meet."""
    lines = []
    for index, router in enumerate(routers):
        columns = "".join("│".ljust(_COLUMN) for _ in range(index))
        lines.append(f"{columns}{router.name}  (router, knows no pods)")
    return lines


def _columns(routers: Sequence[Router], index: int, bars: Sequence[str]) -> str:
    """What stands left of line `index`: every router's column, and legs going to a bar here."""
    switch, text, reached = bars[index], "", False
    for router in routers:
        legs = [n for n, name in enumerate(bars) if name in {leg.switch for leg in router.legs}]
        is_leg = bool(switch) and index in legs
        if is_leg:
            sign = "└" if index == legs[-1] else "├"
            sign = {"└": "┴", "├": "┼"}[sign] if reached else sign
        elif index < legs[-1]:
            sign = "│"
        else:
            sign = "─" if reached else " "
        reached = reached or is_leg
        text += sign + ("─" if reached else " ") * (_COLUMN - 1)
    return text


def _bar(switch: Switch, width: int) -> str:
    prefixes = "  ".join(str(p) for p in switch.prefixes)
    mtu = f"  mtu {switch.mtu}" if switch.mtu != 1500 else ""
    # Prefixes of all switches begin in one column, if the width allows.
    line = max(len(switch.name) + 6, min(_BAR, width - len(prefixes) - len(mtu) - 1))
    return f"═ {switch.name} ".ljust(line, "═") + f" {prefixes}{mtu}"


def _box(host: Host, pods: Sequence[Pod]) -> list[str]:
    role = {"node": "", "member": "member", "static": f"static, via {host.via}"}
    kind = role.get(host.role, "outside")
    title = f"{host.name} ({kind})" if kind else host.name
    lines = [str(a.ip) for a in host.leg.addresses]
    label = max((len(p.name) for p in pods), default=0)
    for pod in pods:
        first, *rest = [str(a) for a in pod.addresses] or ["no address yet"]
        lines.append(f"● {pod.name.ljust(label)} {first}")
        lines += [f"  {' ' * label} {address}" for address in rest]
    inner = max(len(title) + 2, *(len(line) for line in lines))
    return [
        f"┌┴ {title} {'─' * (inner - len(title) - 1)}┐",
        *(f"│ {line.ljust(inner)} │" for line in lines),
        f"└{'─' * (inner + 2)}┘",
    ]


def _beside(boxes: Sequence[list[str]], width: int) -> list[str]:
    """Boxes in rows, as many in each as fit."""
    rows: list[list[list[str]]] = []
    used = width + 1
    for box in boxes:
        if used + len(box[0]) + 1 > width:
            rows.append([])
            used = _INDENT
        rows[-1].append(box)
        used += len(box[0]) + 1
    lines = []
    for row in rows:
        for level in range(max(len(box) for box in row)):
            parts = [box[level] if level < len(box) else " " * len(box[0]) for box in row]
            lines.append(" " * _INDENT + " ".join(parts))
    return lines
