"""What `Kernel` promises of what pods have: elements of maps, limits, token buckets."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from errno import EEXIST, ENOBUFS, ENOENT

import pytest

from grounds import Ground, RealGround, fake_ground, own_link, real_ground
from muslin.errors import KernelError
from muslin.kernel import nfelem, nft, settle
from muslin.plan.diff import Change, diff
from muslin.plan.node import RULES
from muslin.plan.objects import Element, InTable, Object, Plan, Police, Ruleset, Shaper
from namespaces import run

TABLE = Ruleset(body=RULES)
HTTP = Element(set="ports4", item="tcp . 8080", data="10.0.0.1 . 80")
DNS = Element(set="ports6", item="udp . 53", data="fd00::1 . 5353")
LIMIT = Police(name="mu12345678", rate=1_250_000, burst=262_144)
PODS: tuple[Element | Police, ...] = (
    HTTP,
    DNS,
    Element(set="ports4", item="sctp . 65535", data="10.0.0.1 . 1"),
    Element(set="ipports4", item="192.0.2.1 . udp . 53", data="10.0.0.1 . 53"),
    Element(set="ipports6", item="2001:db8::1 . tcp . 443", data="fd00::1 . 8443"),
    Element(set="hairpins4", item="10.0.0.1 . 10.0.0.1"),
    Element(set="hairpins6", item="fd00::1 . fd00::1"),
    LIMIT,
    Police(name="mu.odd-name_15c", rate=3, burst=5),
)
BUCKET = Shaper(dev="mu.a", rate=2_500_000, burst=262_144)


@pytest.fixture(params=["fake", pytest.param("real", marks=pytest.mark.root)])
def ground(request: pytest.FixtureRequest) -> Iterator[Ground]:
    with fake_ground() if request.param == "fake" else real_ground() as made:
        yield made


@pytest.fixture
def real() -> Iterator[RealGround]:
    with real_ground() as made:
        assert isinstance(made, RealGround)
        yield made


def make(ground: Ground, *objects: Object) -> None:
    ground.kernel.apply([Change("add", o) for o in objects])


def remove(ground: Ground, *objects: Object) -> None:
    ground.kernel.apply([Change("remove", o) for o in objects])


def in_table(ground: Ground) -> Plan:
    return frozenset(o for o in ground.kernel.observe() if isinstance(o, InTable))


def test_what_was_put_is_seen_again_repeated_is_success_and_removed_is_gone(
    ground: Ground,
) -> None:
    make(ground, TABLE)
    make(ground, *PODS)
    assert in_table(ground) == set(PODS)
    make(ground, *(o for o in PODS if isinstance(o, Element)))
    remove(ground, *PODS[::2])
    assert in_table(ground) == set(PODS[1::2])
    remove(ground, *PODS)  # half of them are absent
    remove(ground, *PODS)
    assert in_table(ground) == set()


def test_another_pods_entry_is_not_overwritten_and_nothing_else_of_the_call_is_done(
    ground: Ground,
) -> None:
    make(ground, TABLE, HTTP)
    for theirs in (replace(HTTP, data="10.0.0.2 . 80"), replace(HTTP, data="10.0.0.1 . 81")):
        with pytest.raises(KernelError, match=r"tcp \. 8080 : 10\.0\.0\.") as caught:
            make(ground, DNS, theirs)
        assert caught.value.errno == EEXIST
    assert in_table(ground) == {HTTP}


def test_a_limit_that_is_there_is_not_made_again(ground: Ground) -> None:
    make(ground, TABLE, LIMIT)
    with pytest.raises(KernelError, match="mu12345678") as caught:
        make(ground, replace(LIMIT, rate=1))
    assert caught.value.errno == EEXIST
    assert in_table(ground) == {LIMIT}


def test_entries_and_limits_are_replaced_in_one_go(ground: Ground) -> None:
    make(ground, TABLE, HTTP, LIMIT)
    after = {replace(HTTP, data="10.0.0.9 . 90"), replace(LIMIT, rate=9, burst=99)}
    ground.kernel.apply(diff(frozenset(after), frozenset({HTTP, LIMIT})))
    assert in_table(ground) == after


def test_without_the_table_nothing_can_be_put_and_all_is_absent(ground: Ground) -> None:
    for obj in (HTTP, LIMIT):
        with pytest.raises(KernelError) as caught:
            make(ground, obj)
        assert caught.value.errno == ENOENT
    remove(ground, *PODS)


def test_a_table_made_anew_has_what_the_same_call_puts(ground: Ground) -> None:
    make(ground, TABLE, *PODS)
    other = Ruleset(body=RULES + "\t# a newer version\n")
    ground.kernel.apply([Change("remove", TABLE), Change("add", other)])
    assert in_table(ground) == set()
    ground.kernel.apply([Change("remove", other), *(Change("add", o) for o in (TABLE, *PODS))])
    assert in_table(ground) == set(PODS)


# ── token buckets ───────────────────────────────────────────────────────────────────────────────


def test_a_bucket_stands_on_its_device_and_goes_with_it(ground: Ground) -> None:
    settle(ground.kernel, frozenset({own_link(), BUCKET}))
    assert BUCKET in ground.kernel.observe()
    settle(ground.kernel, frozenset({own_link()}))
    assert BUCKET not in ground.kernel.observe()
    make(ground, BUCKET)
    remove(ground, own_link())
    assert ground.kernel.observe() == set()


def test_a_bucket_is_not_put_twice_and_is_changed_in_place(ground: Ground) -> None:
    make(ground, own_link(), BUCKET)
    with pytest.raises(KernelError) as caught:
        make(ground, BUCKET)
    assert caught.value.errno == EEXIST
    faster: Plan = frozenset({own_link(), replace(BUCKET, rate=1 << 33, burst=1 << 20)})
    assert [c.verb for c in settle(ground.kernel, faster)] == ["replace"]
    assert settle(ground.kernel, faster) == []


def test_removing_an_absent_bucket_is_success(ground: Ground) -> None:
    remove(ground, BUCKET)
    make(ground, own_link())
    remove(ground, BUCKET, replace(BUCKET, ns=f"{ground.pod}-gone"))


@pytest.mark.parametrize("burst", [1024, 65_536, 131_072, 10_000_384, 1 << 31])
@pytest.mark.parametrize("rate", [1000, 125_000, 12_500_000, 1_250_000_000, 7_999_999_999])
@pytest.mark.root
def test_a_buckets_numbers_come_back_as_they_were(real: RealGround, rate: int, burst: int) -> None:
    """Up to 200 seconds' worth, which is as much as a plan asks for."""
    wanted = replace(BUCKET, rate=rate, burst=min(burst, rate * 200 // 1024 * 1024))
    make(real, own_link(), wanted)
    assert wanted in real.kernel.observe()


@pytest.mark.root
def test_a_strangers_bucket_is_neither_seen_nor_touched(real: RealGround) -> None:
    make(real, own_link())
    run(real.node, "tc qdisc add dev mu.a root handle 9: tbf rate 1mbit burst 10kb latency 1s")
    assert not [o for o in real.kernel.observe() if isinstance(o, Shaper)]
    with pytest.raises(KernelError) as caught:
        make(real, BUCKET)
    assert caught.value.errno == EEXIST
    remove(real, BUCKET)
    run(real.node, "tc qdisc show dev mu.a | grep -q 'tbf 9:'")


# ── two ways into one table ─────────────────────────────────────────────────────────────────────


@pytest.mark.root
@pytest.mark.parametrize("put", [nfelem.apply, nft.by_library], ids=["by hand", "by library"])
@pytest.mark.parametrize("take", [nfelem.apply, nft.by_library], ids=["by hand", "by library"])
def test_both_ways_leave_the_same(
    real: RealGround,
    put: Callable[[list[Change]], None],
    take: Callable[[list[Change]], None],
) -> None:
    make(real, TABLE)
    put([Change("add", o) for o in PODS])
    assert in_table(real) == set(PODS)
    other = replace(HTTP, data="10.0.0.7 . 7"), replace(LIMIT, burst=1 << 20)
    put([Change("replace", o) for o in other])
    assert in_table(real) == set(PODS) - {HTTP, LIMIT} | set(other)
    take([Change("remove", o) for o in PODS])
    take([Change("remove", o) for o in PODS])
    assert in_table(real) == set()


@pytest.mark.root
def test_what_is_too_much_for_a_socket_goes_by_the_library(
    real: RealGround, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As for an ordinary user's namespace, which may not widen its buffers."""

    def refuse(_: object) -> None:
        raise KernelError("ask the kernel", "by netlink", ENOBUFS)

    monkeypatch.setattr(nfelem, "apply", refuse)
    make(real, TABLE)
    make(real, *PODS)
    assert in_table(real) == set(PODS)
