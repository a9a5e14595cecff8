"""flannel's texts: what is written is read back, and no text of others' makes more than a fault."""

from __future__ import annotations

import json
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network

from hypothesis import given
from hypothesis import strategies as st

from muslin.errors import ConfigError
from muslin.store import flannel
from muslin.store.flannel import Lease, NetConf

MACS = st.binary(min_size=6, max_size=6).map(
    lambda raw: (bytes([raw[0] & 0xFE | 0x02]) + raw[1:]).hex(":")
)
VNIS = st.integers(1, 9999)
FOUR = IPv4Network("10.244.0.0/16")
SIX = IPv6Network("fd00:244::/48")
CONFS = st.builds(
    lambda cidrs, kind, vni: NetConf(cidrs=cidrs, type=kind, vni=vni),
    st.sampled_from([(FOUR,), (SIX,), (FOUR, SIX)]),
    st.sampled_from(["vxlan", "host-gw"]),
    VNIS,
)


@st.composite
def leases(draw: st.DrawFn) -> tuple[NetConf, Lease]:
    conf = draw(CONFS)
    four = IPv4Address(draw(st.integers(1, 2**32 - 1)))
    six = IPv6Address(draw(st.integers(1, 2**128 - 1)))
    third = draw(st.integers(0, 255))
    subnets = (IPv4Network(f"10.244.{third}.0/24"), IPv6Network(f"fd00:244:0:{third:x}::/64"))
    macs = {v: draw(MACS) for v in conf.versions} if conf.type == "vxlan" else {}
    return conf, Lease(
        addresses=tuple(a for a in (four, six) if a.version in conf.versions),
        subnets=tuple(s for s in subnets if s.version in conf.versions),
        macs=macs,
    )


@given(leases())
def test_what_is_written_is_read_back(given: tuple[NetConf, Lease]) -> None:
    conf, lease = given
    told = flannel.written(lease, conf, {})
    assert flannel.read(told, [str(s) for s in lease.subnets], conf) == lease
    assert flannel.written(lease, conf, told) == told
    assert set(told) <= set(flannel.WRITTEN)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                ["Network", "Backend", "Type", "VNI", "Port", "EnableIPv6", "VtepMAC", "x"]
            ),
            inner,
            max_size=5,
        )
    ),
    max_leaves=12,
)


@given(JSON.map(json.dumps) | st.text(max_size=40))
def test_no_text_is_worse_than_a_fault(text: str) -> None:
    try:
        conf = flannel.parse(text)
    except ConfigError as e:
        assert e.faults
    else:
        network, pools = flannel.network(conf, "default")
        assert network.pools == tuple(p.name for p in pools)
    told = {
        flannel.MANAGED: "true",
        flannel.TYPE: "vxlan",
        flannel.PUBLIC[4]: "192.0.2.1",
        flannel.DATA[4]: text,
    }
    here = NetConf(cidrs=(FOUR,), type="vxlan")
    assert isinstance(flannel.read(told, ["10.244.1.0/24"], here), str | Lease)
