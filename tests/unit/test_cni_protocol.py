"""What a runtime may say, under which code it is refused, and what it is answered."""

from __future__ import annotations

import json
from dataclasses import replace
from ipaddress import ip_address, ip_network
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from muslin.cni import environment, protocol
from muslin.cni.protocol import VERSIONS, Attached, Request, parse
from muslin.errors import ConfigError, Exhausted, KernelError, NotReady, RequestError, Unavailable
from muslin.model import Apart, Host, Nic, Wants

ENV = {
    "CNI_COMMAND": "ADD",
    "CNI_CONTAINERID": "4f1b" * 16,
    "CNI_NETNS": "/var/run/netns/blue",
    "CNI_IFNAME": "eth0",
    "CNI_ARGS": "IgnoreUnknown=1;K8S_POD_NAMESPACE=shop;K8S_POD_NAME=cart-0",
    "CNI_PATH": "/opt/cni/bin",
}
CONFIG: dict[str, Any] = {"cniVersion": "1.0.0", "name": "muslin", "type": "muslin-cni"}
PREV: dict[str, Any] = {"cniVersion": "1.0.0", "interfaces": [], "ips": []}


def call(verb: str = "ADD", *, env: dict[str, str] | None = None, **config: Any) -> Request:
    """Parse ENV and CONFIG with these changes; a value of ... removes a key."""
    changed = {k: v for k, v in (CONFIG | config).items() if v is not ...}
    return parse(ENV | {"CNI_COMMAND": verb} | (env or {}), json.dumps(changed).encode())


def refusal(verb: str = "ADD", *, env: dict[str, str] | None = None, **config: Any) -> RequestError:
    with pytest.raises(RequestError) as caught:
        call(verb, env=env, **config)
    return caught.value


# ── the environment ─────────────────────────────────────────────────────────────────────────────


def test_a_plain_add_arrives_whole() -> None:
    request = call(network="blue", runtimeConfig={"mac": "00:11:22:33:44:55"})
    assert request == Request(
        verb="ADD",
        version="1.0.0",
        container="4f1b" * 16,
        netns="/var/run/netns/blue",
        ifname="eth0",
        args={"IgnoreUnknown": "1", "K8S_POD_NAMESPACE": "shop", "K8S_POD_NAME": "cart-0"},
        path="/opt/cni/bin",
        name="muslin",
        network="blue",
        wants=Wants(mac="00:11:22:33:44:55", pod="shop/cart-0"),
    )


@pytest.mark.parametrize(
    ("verb", "required"),
    [
        ("ADD", {"CNI_CONTAINERID", "CNI_NETNS", "CNI_IFNAME"}),
        ("DEL", {"CNI_CONTAINERID", "CNI_IFNAME"}),
        ("CHECK", {"CNI_CONTAINERID", "CNI_NETNS", "CNI_IFNAME"}),
        ("GC", set()),
        ("STATUS", set()),
        ("VERSION", set()),
    ],
)
def test_each_verb_says_which_variables_it_lacks(verb: str, required: set[str]) -> None:
    def bare() -> Request:
        return parse({"CNI_COMMAND": verb}, json.dumps(CONFIG | {"cniVersion": "1.1.0"}).encode())

    if not required:
        assert bare().verb == verb
        return
    with pytest.raises(RequestError) as caught:
        bare()
    assert caught.value.cni_code == 4
    assert {name for name in environment.VARIABLES if name in str(caught.value)} == required


@pytest.mark.parametrize("command", ["", "add", "ADD ", "ADD\0", "UPDATE"])
def test_an_unknown_verb_is_refused_by_the_variables_name(command: str) -> None:
    error = refusal(env={"CNI_COMMAND": command})
    assert error.cni_code == 4
    assert "CNI_COMMAND" in str(error)


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        *(
            ("CNI_CONTAINERID", value)
            for value in ("../x", "a/b", "a b", "-a", ".a", "a" * 256, "a\0b", "ä", "a\n", "\udcff")
        ),
        *(
            ("CNI_IFNAME", value)
            for value in (".", "..", "a/b", "a:b", "a b", "a\t", "eth%d", "x" * 16, "ä", "a\0")
        ),
        *(
            ("CNI_NETNS", value)
            for value in ("netns/blue", "/a\0b", "/" + "x" * 4096, "/\udc80", "proc")
        ),
        ("CNI_ARGS", "IgnoreUnknown=1;K8S_POD_NAME=\udc80"),
        ("CNI_ARGS", "IgnoreUnknown=1;K8S_POD_NAME"),
        ("CNI_ARGS", "IgnoreUnknown=maybe"),
        ("CNI_ARGS", "COLOUR=blue"),
        ("CNI_PATH", "/opt\0"),
    ],
)
def test_a_hostile_variable_is_refused_by_name(variable: str, value: str) -> None:
    error = refusal(env={variable: value})
    assert error.cni_code == 4
    assert variable in str(error)


@pytest.mark.parametrize("value", ["a", "A.b_c-1", "0" * 255, "cnitool-77383ca0a0715733ca6f"])
def test_container_ids_of_known_runtimes_pass(value: str) -> None:
    assert call(env={"CNI_CONTAINERID": value}).container == value


def test_all_wrong_variables_are_named_at_once() -> None:
    error = refusal(env={"CNI_CONTAINERID": "../x", "CNI_IFNAME": "..", "CNI_NETNS": "x"})
    assert all(name in str(error) for name in ("CNI_CONTAINERID", "CNI_IFNAME", "CNI_NETNS"))


def test_gc_and_status_do_not_judge_the_variables_of_a_container() -> None:
    leftovers = {"CNI_CONTAINERID": "../x", "CNI_IFNAME": "..", "CNI_NETNS": "x"}
    for verb in ("GC", "STATUS"):
        assert call(verb, env=leftovers, cniVersion="1.1.0").verb == verb


def test_arguments_may_contain_an_equals_sign_and_an_empty_pair() -> None:
    args = call(env={"CNI_ARGS": "IgnoreUnknown=true;K8S_POD_NAME=a=b;;X=;"}).args
    assert args == {"IgnoreUnknown": "true", "K8S_POD_NAME": "a=b", "X": ""}


def test_del_is_not_kept_from_giving_back_by_what_it_does_not_know() -> None:
    request = call("DEL", env={"CNI_ARGS": "IP=10.0.0.1;junk", "CNI_NETNS": ""}, colour="red")
    assert (request.args, request.netns) == ({"IP": "10.0.0.1"}, "")


# ── the configuration ───────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("stdin", "what"),
    [
        (b"", "not JSON"),
        (b"{", "not JSON"),
        (b"\xff", "not JSON"),
        (b'{"name":"\xff"}', "not JSON"),
        (b"[]", "list"),
        (b'"x"', "str"),
        (b"null", "NoneType"),
        (b'{"a":' + b"[" * 40 + b"]" * 40 + b"}", "deeper"),
        (b"[" * 100_000 + b"]" * 100_000, "recursion"),
        (b'{"name":"a\\u0000b"}', "NUL"),
        (b'{"x":[{"\\u0000":1}]}', "NUL"),
        (b'{"x":"' + b"y" * (1 << 20) + b'"}', "more than"),
    ],
)
def test_what_is_no_configuration_is_code_6(stdin: bytes, what: str) -> None:
    with pytest.raises(RequestError, match=what) as caught:
        parse(ENV, stdin)
    assert caught.value.cni_code == 6


@pytest.mark.parametrize(
    "config",
    [
        {"name": ...},
        {"name": ""},
        {"name": "a b"},
        {"name": "../etc"},
        {"name": 3},
        {"name": "x" * 256},
        {"type": ...},
        {"type": ""},
        {"type": "/bin/sh"},
        {"type": ["x"]},
        {"network": "a/b"},
        {"network": None},
        {"runtimeConfig": []},
        {"prevResult": "x"},
        {"dns": {"nameservers": "10.0.0.1"}},
    ],
)
def test_an_invalid_value_is_code_7_and_named(config: dict[str, Any]) -> None:
    error = refusal(**config)
    assert error.cni_code == 7
    assert next(iter(config)) in str(error)


@pytest.mark.parametrize("version", ["0.1.0", "0.2.0", "1.2.0", "2.0.0", "1.0", "latest", "", ...])
def test_a_version_that_is_not_served_is_code_1_and_lists_those_that_are(version: Any) -> None:
    error = refusal(cniVersion=version)
    assert error.cni_code == 1
    assert ", ".join(VERSIONS) in str(error)


EXISTS = {
    "ADD": "0.3.0 0.3.1 0.4.0 1.0.0 1.1.0",
    "DEL": "0.3.0 0.3.1 0.4.0 1.0.0 1.1.0",
    "CHECK": "0.4.0 1.0.0 1.1.0",
    "GC": "1.1.0",
    "STATUS": "1.1.0",
    "VERSION": "0.3.0 0.3.1 0.4.0 1.0.0 1.1.0",
}


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("verb", EXISTS)
def test_a_verb_exists_from_its_version_on(verb: str, version: str) -> None:
    config = {"prevResult": PREV} if verb == "CHECK" else {}
    if version in EXISTS[verb].split():
        request = call(verb, cniVersion=version, **config)
        assert (request.verb, request.version) == (verb, version)
    else:
        assert refusal(verb, cniVersion=version, **config).cni_code == 1


def test_an_unknown_key_is_code_2_with_key_and_cut_value() -> None:
    error = refusal(colour="red" * 1000)
    assert error.cni_code == 2
    assert "'colour'" in error.message
    assert "'redred" in error.message
    assert len(error.message) < 120


def test_a_key_of_other_plugins_says_where_the_setting_lives() -> None:
    assert "pools" in refusal(ipam={"type": "host-local"}).hint


def test_keys_that_a_runtime_adds_are_not_unknown() -> None:
    call(**{"args": {"cni": {}}, "capabilities": {"mac": True}, "cni.dev/anything": 1})


def test_version_is_answered_whatever_the_configuration_is() -> None:
    assert parse({"CNI_COMMAND": "VERSION"}, b"junk").version == "1.1.0"
    assert parse({"CNI_COMMAND": "VERSION"}, b'{"cniVersion":"0.4.0"}').version == "0.4.0"
    assert parse({"CNI_COMMAND": "VERSION"}, b'{"cniVersion":"9.9.9"}').version == "1.1.0"


# ── earlier results and attachments ─────────────────────────────────────────────────────────────


def test_add_must_start_its_chain() -> None:
    error = refusal(prevResult=PREV)
    assert error.cni_code == 7
    assert "first" in error.hint


def test_check_needs_the_earlier_result_and_del_does_not() -> None:
    assert refusal("CHECK").cni_code == 7
    assert call("DEL").prev_result is None
    assert call("DEL", prevResult=PREV).prev_result == PREV


def test_only_the_addresses_of_this_interface_were_promised() -> None:
    prev = {
        "interfaces": [
            {"name": "mu12345678", "mac": "ee:ee:ee:ee:ee:ee"},
            {"name": "eth0", "mac": "0a:58:0a:f4:00:05", "sandbox": "/var/run/netns/blue"},
            {"name": "net1", "sandbox": "/var/run/netns/blue", "pciID": "0000:00:03.0"},
        ],
        "ips": [
            {"version": "4", "address": "10.244.0.5/32", "interface": 1},
            {"address": "2001:db8::5/128", "gateway": "fe80::1", "interface": 1},
            {"address": "192.0.2.9/24", "interface": 2},
        ],
    }
    request = call("CHECK", prevResult=prev)
    assert [str(a) for a in protocol.promised(request)] == ["10.244.0.5", "2001:db8::5"]


@pytest.mark.parametrize("ips", [[{"address": "10.0.0.300/24"}], [{}], "x", [{"address": 1}]])
def test_an_earlier_result_that_is_none_is_code_7(ips: object) -> None:
    with pytest.raises(RequestError) as caught:
        protocol.promised(call("CHECK", prevResult={"ips": ips}))
    assert caught.value.cni_code == 7


def gc(**config: Any) -> Request:
    return call("GC", cniVersion="1.1.0", **config)


def test_gc_takes_the_list_under_both_names_that_libcni_sends() -> None:
    entries = [{"containerID": "c1", "ifname": "eth0"}, {"containerID": "c2", "ifname": "net1"}]
    for key in ("cni.dev/valid-attachments", "cni.dev/attachments"):
        assert gc(**{key: entries}).valid_attachments == (("c1", "eth0"), ("c2", "net1"))


def test_no_list_is_not_an_empty_list() -> None:
    """With none the runtime has said nothing; with an empty one, that nothing is valid."""
    assert gc().valid_attachments is None
    assert gc(**{"cni.dev/valid-attachments": None}).valid_attachments is None
    assert gc(**{"cni.dev/valid-attachments": []}).valid_attachments == ()


@pytest.mark.parametrize("bad", [{}, "x", [{"containerID": "c1"}], ["c1"], [{"ifname": 1}]])
def test_one_bad_entry_refuses_the_whole_list(bad: object) -> None:
    with pytest.raises(RequestError) as caught:
        gc(**{"cni.dev/valid-attachments": bad})
    assert caught.value.cni_code == 7


# ── any input ───────────────────────────────────────────────────────────────────────────────────

anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)
keys = st.sampled_from(
    [*protocol._KEYS, "ipam", "cni.dev/valid-attachments", "cni.dev/attachments", "x"]
)
likely = st.builds(
    lambda base, more: json.dumps({**base, **more}).encode(),
    st.sampled_from([{}, CONFIG, CONFIG | {"cniVersion": "1.1.0"}]),
    st.dictionaries(keys, anything, max_size=4),
)
texts = st.text(st.characters(exclude_categories=[]), max_size=20)
variables = st.builds(
    lambda base, more: base | more,
    st.sampled_from([{}, ENV, *({**ENV, "CNI_COMMAND": verb} for verb in environment.VERBS)]),
    st.dictionaries(st.sampled_from(environment.VARIABLES), texts, max_size=2),
)


# The first run on a machine tabulates all characters, which takes more than a second.
@settings(suppress_health_check=[HealthCheck.too_slow], deadline=None)
@given(env=variables, stdin=st.binary() | likely)
def test_any_input_is_a_request_or_a_request_error(env: dict[str, str], stdin: bytes) -> None:
    try:
        request = parse(env, stdin)
        protocol.promised(request)
    except RequestError as e:
        assert e.cni_code in (1, 2, 4, 6, 7)
        reply = json.loads(protocol.error_reply(e, protocol.spoken(stdin)))
        assert reply["cniVersion"] in VERSIONS
    else:
        assert request.verb in environment.VERBS
        assert request.version in VERSIONS


# ── answers ─────────────────────────────────────────────────────────────────────────────────────

ATTACHED = Attached(
    nic=Nic(
        container="4f1b" * 16,
        ifname="eth0",
        netns="/var/run/netns/blue",
        addresses=(ip_address("10.244.0.5"), ip_address("2001:db8::5")),
        mtu=1450,
        host=Host(uplink="ens3"),
    ),
    gateways=(ip_address("169.254.1.1"), ip_address("fe80::1")),
    host_mac="ee:ee:ee:ee:ee:ee",
)
GOLDEN = {
    "1.1.0": """{
  "cniVersion": "1.1.0",
  "interfaces": [
    {"name": "mu453364e8", "mac": "ee:ee:ee:ee:ee:ee", "mtu": 1450},
    {"name": "eth0", "mac": "0a:58:0a:f4:00:05", "sandbox": "/var/run/netns/blue", "mtu": 1450}
  ],
  "ips": [
    {"address": "10.244.0.5/32", "gateway": "169.254.1.1", "interface": 1},
    {"address": "2001:db8::5/128", "gateway": "fe80::1", "interface": 1}
  ],
  "routes": [
    {"dst": "0.0.0.0/0", "gw": "169.254.1.1"},
    {"dst": "::/0", "gw": "fe80::1"}
  ]
}""",
    "1.0.0": """{
  "cniVersion": "1.0.0",
  "interfaces": [
    {"name": "mu453364e8", "mac": "ee:ee:ee:ee:ee:ee"},
    {"name": "eth0", "mac": "0a:58:0a:f4:00:05", "sandbox": "/var/run/netns/blue"}
  ],
  "ips": [
    {"address": "10.244.0.5/32", "gateway": "169.254.1.1", "interface": 1},
    {"address": "2001:db8::5/128", "gateway": "fe80::1", "interface": 1}
  ],
  "routes": [
    {"dst": "0.0.0.0/0", "gw": "169.254.1.1"},
    {"dst": "::/0", "gw": "fe80::1"}
  ]
}""",
    "0.4.0": """{
  "cniVersion": "0.4.0",
  "interfaces": [
    {"name": "mu453364e8", "mac": "ee:ee:ee:ee:ee:ee"},
    {"name": "eth0", "mac": "0a:58:0a:f4:00:05", "sandbox": "/var/run/netns/blue"}
  ],
  "ips": [
    {"version": "4", "address": "10.244.0.5/32", "gateway": "169.254.1.1", "interface": 1},
    {"version": "6", "address": "2001:db8::5/128", "gateway": "fe80::1", "interface": 1}
  ],
  "routes": [
    {"dst": "0.0.0.0/0", "gw": "169.254.1.1"},
    {"dst": "::/0", "gw": "fe80::1"}
  ]
}""",
}
GOLDEN |= {old: GOLDEN["0.4.0"].replace("0.4.0", old) for old in ("0.3.0", "0.3.1")}


@pytest.mark.parametrize("version", VERSIONS)
def test_a_result_has_the_shape_of_its_version(version: str) -> None:
    assert json.loads(protocol.result(version, ATTACHED)) == json.loads(GOLDEN[version])


STORAGE = Nic(
    container="4f1b" * 16,
    ifname="net1",
    netns="/var/run/netns/blue",
    addresses=(ip_address("10.9.0.7"),),
    mtu=1500,
    host=Host(uplink="ens3"),
    wants=Wants(
        apart=Apart(
            of="eth0", table=10901, routes=(ip_network("10.9.0.0/16"), ip_network("fd09::/64"))
        )
    ),
)


def test_further_nics_come_after_the_first_in_every_list() -> None:
    """CNI 1.1, section 5; go-cni takes the addresses of `eth0`, others the first of each family."""
    storage = Attached(
        nic=STORAGE, gateways=(ip_address("169.254.1.1"),), host_mac=ATTACHED.host_mac
    )
    both = replace(ATTACHED, further=(storage,))
    alone, reply = (json.loads(protocol.result("1.1.0", a)) for a in (ATTACHED, both))
    assert reply["interfaces"] == [
        *alone["interfaces"],
        {"name": STORAGE.dev, "mac": "ee:ee:ee:ee:ee:ee", "mtu": 1500},
        {
            "name": "net1",
            "mac": "0a:58:0a:09:00:07",
            "sandbox": "/var/run/netns/blue",
            "mtu": 1500,
        },
    ]
    further = {"address": "10.9.0.7/32", "gateway": "169.254.1.1", "interface": 3}
    assert reply["ips"] == [*alone["ips"], further]
    # No way to fd09::/64 by a NIC without an IPv6 address, and no second default route.
    assert reply["routes"] == [*alone["routes"], {"dst": "10.9.0.0/16", "gw": "169.254.1.1"}]
    request = call("CHECK", cniVersion="1.1.0", prevResult=reply)
    assert protocol.promised(request) == ATTACHED.nic.addresses


def test_check_finds_in_a_result_what_add_put_there() -> None:
    prev = json.loads(protocol.result("1.1.0", ATTACHED))
    request = call("CHECK", cniVersion="1.1.0", prevResult=prev)
    assert protocol.promised(request) == ATTACHED.nic.addresses


def test_a_pod_without_a_host_device_has_one_interface_at_index_0() -> None:
    alone = Attached(nic=ATTACHED.nic, gateways=())
    reply = json.loads(protocol.result("1.0.0", alone))
    assert [end["name"] for end in reply["interfaces"]] == ["eth0"]
    assert [ip["interface"] for ip in reply["ips"]] == [0, 0]
    assert reply["routes"] == []


def test_the_configurations_dns_is_handed_through() -> None:
    request = call(dns={"nameservers": ["10.96.0.10"], "search": ["svc.cluster.local"]})
    reply = json.loads(protocol.result("1.0.0", ATTACHED, request.dns))
    assert reply["dns"] == {"nameservers": ["10.96.0.10"], "search": ["svc.cluster.local"]}


def test_a_version_reply_lists_what_is_served() -> None:
    assert json.loads(protocol.version_reply("0.4.0")) == {
        "cniVersion": "0.4.0",
        "supportedVersions": ["0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"],
    }


@pytest.mark.parametrize(
    ("exc", "expected"),
    [
        (
            Exhausted("pool blue: all 64 addresses are taken", hint="add a pool"),
            {"code": 100, "msg": "pool blue: all 64 addresses are taken", "details": "add a pool"},
        ),
        (NotReady("the store is away"), {"code": 11, "msg": "the store is away"}),
        (Unavailable("no block yet"), {"code": 50, "msg": "no block yet"}),
        (ConfigError("x", ["a", "b"]), {"code": 7, "msg": "x: a; b"}),
        (
            KernelError("add", "link mu1", 17),
            {"code": 101, "msg": "add link mu1: File exists (EEXIST)"},
        ),
        (ZeroDivisionError("oh"), {"code": 999, "msg": "internal error: ZeroDivisionError: oh"}),
        (
            ExceptionGroup("del", [NotReady("a"), Exhausted("b")]),
            {"code": 11, "msg": "a; b"},
        ),
        (
            ExceptionGroup("del", [NotReady("a"), KeyError("b")]),
            {"code": 999, "msg": "internal error: ExceptionGroup: del (2 sub-exceptions)"},
        ),
        (NotReady("path /\udcff"), {"code": 11, "msg": "path /\\udcff"}),
    ],
)
def test_an_error_object_says_what_failed(exc: Exception, expected: dict[str, object]) -> None:
    reply = json.loads(protocol.error_reply(exc, "0.4.0"))
    assert reply == {"cniVersion": "0.4.0"} | expected


def test_a_long_message_is_cut() -> None:
    assert len(protocol.error_reply(NotReady("x" * 10_000), "1.0.0")) < 600
