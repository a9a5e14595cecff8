"""What the API server itself refuses, as CEL rules with the fault and the mend in words.

Only what one object shows can be said here: that pools do not overlap, that a
network's pools exist, stays with `ipam.pools.faults`, from which the words
for a pool are taken (its numbers too; a test holds them equal).  `ip()` and
`cidr()` make Kubernetes 1.31 the oldest that takes these rules.

Traps of CEL.  A rule that calls `cidr()` on what is none does not fail, it
breaks, with a message for nobody; so each asks `isCIDR` first and leaves the
word to the field's own rule.  There are no variables: the pieces below are
text that is put together here.  And versions differ: before 1.32 `==` of two
addresses counts as endlessly dear and the definition is refused (`_same`),
before 1.33 `containsCIDR` is wrong for all but the first range within another
(`_within`).
"""

from __future__ import annotations

from collections.abc import Mapping
from ipaddress import ip_network
from typing import Any, NamedTuple

from muslin.model import Address, Block, Interface, Network, Pool, Prefix, Reservation

SMALLEST = {4: 30, 6: 126}  # ipam.pools has the reasons
LARGEST = 64


class Rule(NamedTuple):
    """One entry of x-kubernetes-validations."""

    rule: str
    message: str  # the fault and the mend; the server puts the value before it where it is a scalar
    found: str = ""  # CEL for the same with what was found in it; the server prefers it
    at: str = ""  # the field that is to blame, below where the rule stands

    def schema(self) -> dict[str, str]:
        """The rule as a schema has it."""
        made = {"rule": self.rule, "message": self.message}
        if self.found:
            made["messageExpression"] = self.found
        if self.at:
            made["fieldPath"] = self.at
        return made


def _say(words: str, *values: str) -> str:
    """CEL for `words` with values in it.

    One `format` and no `+`: the API server takes a text made by `string()` for
    endless, and joining it to another for too dear.
    """
    return f'"{words}".format([{", ".join(values)}])'


def _same(one: str, other: str) -> str:
    """CEL for: two addresses, or two ranges, are equal however they are written."""
    return f"{one} in [{other}]"


def _within(inner: str, outer: str) -> str:
    """CEL for: one range lies in another, both as text."""
    return (
        f"(cidr({outer}).containsIP(cidr({inner}).ip())"
        f" && cidr({outer}).prefixLength() <= cidr({inner}).prefixLength())"
    )


_LABEL = r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$"  # RFC 1123; maxLength has its 63
_NO_LABEL = "not a valid name; use a-z, 0-9 and -, at most 63 characters (RFC 1123 label)"
_LABELLED = Rule(f"self.matches('{_LABEL}')", _NO_LABEL)

TYPES: Mapping[Any, tuple[Rule, ...]] = {
    Address: (Rule("isIP(self)", "not an address; write 10.0.0.5 or fd00::5"),),
    Prefix: (
        Rule("isCIDR(self)", "not a range; write 10.0.0.0/16 or fd00::/48"),
        Rule(
            f"!isCIDR(self) || {_same('cidr(self)', 'cidr(self).masked()')}",
            "has host bits set; write the range's first address",
        ),
    ),
    Interface: (Rule("isCIDR(self)", "not an address with a prefix length; write 192.0.2.1/24"),),
}
"""For every field of that type."""


def _fixed(what: str) -> Rule:
    return Rule("self == oldSelf", f"{what} cannot change; make a new one beside it")


FIELDS: Mapping[str, tuple[Rule, ...]] = {
    "Network.backend": (
        Rule(
            "self.matches('^[a-z][a-z0-9]*$')",
            "not a backend's name, which is a-z and 0-9; docs/backends.md has them",
        ),
    ),
    "Network.pools": (
        Rule("self.size() > 0", "names no pool"),
        Rule(f"self.all(p, p.matches('{_LABEL}'))", _NO_LABEL),
    ),
    "Pool.cooldown": (Rule("self >= 0.0", "cooldown is negative"),),
    "Block.pool": (_LABELLED, _fixed("the pool of a block")),
    "Block.cidr": (_fixed("the range of a block"),),
    "Reservation.pool": (_LABELLED, _fixed("the pool of an address")),
    "Reservation.address": (_fixed("an address"),),
}
"""By the struct that declares the field, and the field."""


def _length(pool: str) -> str:
    """CEL for `Pool.block_length`."""
    four, six = (
        Pool(name="", cidr=ip_network(any_of)).block_length for any_of in ("0.0.0.0/0", "::/0")
    )
    family = f"cidr({pool}.cidr).ip().family()"
    return f"({pool}.block != 0 ? {pool}.block : ({family} == 4 ? {four} : {six}))"


def _of_pool() -> tuple[Rule, ...]:
    length, was, family = _length("self"), _length("oldSelf"), "cidr(self.cidr).ip().family()"
    smallest = f"({family} == 4 ? {SMALLEST[4]} : {SMALLEST[6]})"
    no_hosts = ("224.0.0.0/4", "ff00::/8", "127.0.0.0/8", "::1/128", "169.254.0.0/16", "fe80::/10")
    within = " || ".join(_within("self.cidr", f"'{r}'") for r in no_hosts)
    # Two ranges overlap where one contains the other.
    meets = f"{_within('e', 'self.cidr')} || {_within('self.cidr', 'e')}"
    unread, both = "!isCIDR(self.cidr)", "!isCIDR(self.cidr) || !isCIDR(oldSelf.cidr)"
    return (
        Rule(
            f"{unread} || {length} <= {smallest}",
            f"blocks are too small; at most /{SMALLEST[4]}, for IPv6 /{SMALLEST[6]}",
            _say("blocks of /%d are too small; at most /%d", length, smallest),
            ".block",
        ),
        Rule(
            f"{unread} || {length} >= cidr(self.cidr).prefixLength()",
            "a block does not fit in the cidr; widen the cidr or set a longer block",
            _say(
                "a block of /%d does not fit in %s; widen the cidr or set a longer block",
                length,
                "self.cidr",
            ),
            ".block",
        ),
        Rule(
            f"{unread} || {family} == 4 || {length} >= {LARGEST}",
            f"IPv6 blocks are /{LARGEST} or longer",
            _say(f"IPv6 blocks are /{LARGEST} or longer, not /%d", length),
            ".block",
        ),
        Rule(
            f"{unread} || !({within})",
            "not a range for hosts: multicast, loopback or link-local",
            _say("%s is not a range for hosts", "self.cidr"),
            ".cidr",
        ),
        Rule(
            f"{unread} || self.exclude.all(e, !isCIDR(e) || {meets})",
            "an exclude is outside the cidr",
            _say(
                "exclude %s is outside %s",
                f"self.exclude.filter(e, isCIDR(e) && !({meets}))[0]",
                "self.cidr",
            ),
            ".exclude",
        ),
        Rule(
            f"{both} || {_same('cidr(self.cidr)', 'cidr(oldSelf.cidr)')}",
            "cidr cannot change, nodes may hold blocks of it; make a new pool beside it",
            at=".cidr",
        ),
        Rule(
            f"{both} || {length} == {was}",
            "block cannot change, nodes may hold blocks of that size; make a new pool beside it",
            at=".block",
        ),
    )


SPEC: Mapping[Any, tuple[Rule, ...]] = {Pool: _of_pool()}
"""For a spec as a whole."""


def _named_for(read: str, field: str, says: str) -> Rule:
    """`metadata.name` is the pool's name, a dot, what `field` holds; see muslin.kube.values.

    One value has one right name: that is what keeps two nodes from holding
    the same block.  `read` is ip or cidr.  The name is read and not written
    (`string()` is too dear); an IPv6 address has 39 characters there, so that
    no group can be short, and ip() takes only one spelling of IPv4.
    """
    valid = {"ip": "isIP", "cidr": "isCIDR"}[read]
    name, start = "self.metadata.name", "self.spec.pool.size() + 1"
    end = "self.spec.pool.size() + 40"
    four = six = f"{name}.substring({start})"
    colons, exact = f"{six}.replace('-', ':')", f"{name}.size() == {end}"
    value, family = f"{read}({field})", f"{read}({field}).family()"
    if read == "cidr":
        four = f"{four}.replace('-', '/')"
        six = f"{name}.substring({start}, {end})"
        colons = f"{six}.replace('-', ':') + {name}.substring({end}).replace('-', '/')"
        exact, family = f"{name}.size() > {end}", f"cidr({field}).ip().family()"
    return Rule(
        f"!{valid}({field}) || ({name}.startsWith(self.spec.pool + '.') && ({family} == 4"
        f" ? {valid}({four}) && {_same(f'{read}({four})', value)} : {exact}"
        f" && !{six}.contains('.') && {valid}({colons}) && {_same(f'{read}({colons})', value)}))",
        f"the name must say what it is: {says}, an IPv6 address in full with - for :",
        at=".metadata.name",
    )


# That it is a subdomain the API server sees to; what is left is that it has no dots.
_NO_DOTS = Rule("!self.metadata.name.contains('.')", _NO_LABEL, at=".metadata.name")

OBJECT: Mapping[Any, tuple[Rule, ...]] = {
    Network: (_NO_DOTS,),
    Pool: (_NO_DOTS,),
    Block: (_named_for("cidr", "self.spec.cidr", "<pool>.<address>-<prefix length>"),),
    Reservation: (_named_for("ip", "self.spec.address", "<pool>.<address>"),),
}
"""For an object with its metadata."""

NAMES: Mapping[Any, int] = {Network: 63, Pool: 63, Block: 107, Reservation: 103}
"""How long a name may be: the pool's 63, a dot, 39 of IPv6, a dash and three digits."""
