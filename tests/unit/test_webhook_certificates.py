"""Certificates: what is made when, and that no step parts the server from its verifiers."""

from __future__ import annotations

import base64
import ssl
import subprocess
import sys
from dataclasses import replace
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from muslin.controller import certificates, issuing
from muslin.controller.certificates import (
    BACKDATE,
    DAY,
    HOUR,
    SETTLE,
    Configuration,
    Life,
    Lives,
    Material,
    Secret,
    due,
    inspect,
    install,
    secret,
)
from muslin.errors import ConfigError

HOST = "muslin-webhook.muslin-system.svc"
NOW = 1_800_000_000.0
FIRST = issuing.make(Material(), "all", HOST, NOW)


def lives(material: Material) -> Lives:
    found = inspect(material, HOST)
    assert found is not None
    return found


def trusts(verifiers: str, server: Material) -> bool:
    """Whether one who goes by that bundle takes what is served."""
    try:
        certificates._handshake(replace(server, authorities=(verifiers,)), HOST)
    except ssl.SSLError:
        return False
    return True


def test_what_is_made_fits_together_and_is_for_our_name_only() -> None:
    found = lives(FIRST)
    assert found.authority == Life(NOW - BACKDATE, NOW + 365 * DAY)
    assert found.serving == Life(NOW - BACKDATE, NOW + 30 * DAY)
    assert found.newest
    elsewhere = inspect(FIRST, "muslin-webhook.other.svc")
    assert elsewhere is not None
    assert elsewhere.serving is None


def test_it_holds_for_openssl_and_its_strict_mode() -> None:
    """Python 3.13 verifies so by default, Go nearly so."""
    client = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    client.verify_flags |= ssl.VERIFY_X509_STRICT | ssl.VerifyFlags(certificates.NO_CHECK_TIME)
    client.load_verify_locations(cadata=FIRST.bundle)
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    install(server, FIRST)
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    one = client.wrap_bio(to_client, to_server, server_hostname=HOST)
    other = server.wrap_bio(to_server, to_client, server_side=True)
    for side in (one, other):
        with pytest.raises(ssl.SSLWantReadError):
            side.do_handshake()
    one.do_handshake()
    assert one.version() == "TLSv1.3"


def test_long_namespaces_have_certificates_too() -> None:
    name = f"muslin-webhook.{'n' * 63}.svc"
    assert inspect(issuing.make(Material(), "all", name, NOW), name) is not None


@pytest.mark.parametrize(
    ("after", "told", "what"),
    [
        (0, True, None),
        (19.9 * DAY, True, None),
        (20.1 * DAY, True, "serving"),
        (29.9 * DAY, False, "serving"),
        (31 * DAY, True, "serving"),
        (366 * DAY, True, "all"),
        (-2 * HOUR, True, "all"),
    ],
)
def test_a_serving_certificate_is_renewed_at_two_thirds(
    after: float, told: bool, what: str | None
) -> None:
    assert due(lives(FIRST), NOW + after, told=told) == what


def test_nothing_that_can_sign_means_everything_anew() -> None:
    for broken in (
        Material(),
        replace(FIRST, authority_key=""),
        replace(FIRST, authority_key=FIRST.key),
        replace(FIRST, authorities=()),
        replace(
            FIRST, authorities=("-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----",)
        ),
        replace(FIRST, authorities=(FIRST.chain,)),
    ):
        assert inspect(broken, HOST) is None
        made = issuing.make(broken, "all", HOST, NOW)
        assert lives(made).serving is not None
    assert due(None, NOW, told=True) == "all"


@pytest.mark.parametrize("wrong", ["chain", "key"])
def test_what_does_not_fit_is_signed_again(wrong: str) -> None:
    other = issuing.make(Material(), "all", HOST, NOW)
    for text in (getattr(other, wrong), "", "nonsense"):
        found = lives(replace(FIRST, **{wrong: text}))
        assert found.serving is None
        assert due(found, NOW, told=True) == "serving"


def test_a_new_authority_signs_when_it_is_known() -> None:
    later = NOW + 250 * DAY
    fresh = issuing.make(FIRST, "serving", HOST, later)
    assert due(lives(fresh), later, told=True) == "authority"
    two = issuing.make(fresh, "authority", HOST, later)
    assert two.authorities[1:] == FIRST.authorities
    assert two.chain == fresh.chain, "still by the old one"
    found = lives(two)
    assert not found.newest
    assert due(found, later + SETTLE - 1, told=True) is None
    assert due(found, later + SETTLE + 1, told=False) is None
    assert due(found, later + SETTLE + 1, told=True) == "serving"
    assert due(found, later + 29 * DAY, told=False) is None
    assert due(found, later + 31 * DAY, told=False) == "serving", "rather than nothing"
    three = issuing.make(two, "serving", HOST, later + SETTLE + 1)
    assert lives(three).newest
    assert due(lives(three), later + SETTLE + 1, told=True) is None


def test_an_authority_that_has_ended_is_forgotten() -> None:
    two = issuing.make(FIRST, "authority", HOST, NOW + 250 * DAY)
    three = issuing.make(two, "serving", HOST, NOW + 366 * DAY)
    assert three.authorities == two.authorities[:1]


def test_no_serving_certificate_outlives_its_authority() -> None:
    late = issuing.make(FIRST, "serving", HOST, NOW + 360 * DAY)
    assert lives(late).serving == Life(NOW + 360 * DAY - BACKDATE, NOW + 365 * DAY)


@settings(max_examples=2, deadline=None)
@given(st.lists(st.floats(0.1 * DAY, 25 * DAY), min_size=40, max_size=50))
def test_through_years_of_looks_server_and_verifiers_never_part(pauses: list[float]) -> None:
    """Verifiers learn of a new bundle up to an hour late, servers of a new certificate at once."""
    now, material, authorities = NOW, FIRST, set(FIRST.authorities)
    for pause in [p for gap in pauses for p in (gap, SETTLE + 60.0)]:
        now += pause
        known = material.bundle  # told since the last look, which is longer ago than an hour
        while (what := due(lives(material), now, told=True)) is not None:
            material = issuing.make(material, what, HOST, now)
            assert trusts(known, material), what
        found = lives(material)
        assert found.serving is not None
        assert found.serving.holds(now)
        assert found.authority.holds(now)
        assert len(material.authorities) <= 2
        authorities |= set(material.authorities)
    assert len(authorities) >= (now - NOW) / DAY // 300


# ── the Secret ──────────────────────────────────────────────────────────────────────────────────


def stored(body: dict[str, Any], **metadata: Any) -> Secret:
    body = {**body, "metadata": {**body["metadata"], **metadata}}
    return msgspec.convert(body, Secret)


def test_a_secret_holds_it_all() -> None:
    found = stored(secret(FIRST))
    assert found.ours
    assert found.material == FIRST


def test_one_of_somebody_else_is_not_ours() -> None:
    assert not stored(secret(FIRST), labels={}).ours
    keeper = {"cert-manager.io/certificate-name": "x"}
    assert not stored(secret(FIRST), annotations=keeper).ours


@given(st.dictionaries(st.sampled_from(["ca.crt", "ca.key", "tls.crt", "tls.key"]), st.text()))
def test_a_secret_may_hold_anything(data: dict[str, str]) -> None:
    found = Secret(metadata=stored(secret(FIRST)).metadata, data=data).material
    assert inspect(found, HOST) is None
    encoded = {k: base64.b64encode(v.encode()).decode() for k, v in data.items()}
    found = Secret(metadata=stored(secret(FIRST)).metadata, data=encoded).material
    assert inspect(found, HOST) is None
    assert lives(issuing.make(found, "all", HOST, NOW)).newest


def test_what_does_not_fit_is_not_served() -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    install(context, FIRST)
    other = issuing.make(Material(), "all", HOST, NOW)
    with pytest.raises(ConfigError, match=r"tls.crt and tls.key do not fit"):
        install(context, replace(FIRST, chain=other.chain))
    client = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    client.load_verify_locations(cadata=FIRST.bundle)
    assert trusts(FIRST.bundle, FIRST)
    assert not trusts(other.bundle, FIRST)


def test_an_encrypted_key_fails_and_asks_nobody() -> None:
    from cryptography.hazmat.primitives import serialization

    key = serialization.load_pem_private_key(FIRST.key.encode(), None)
    locked = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.BestAvailableEncryption(b"x"),
    ).decode()
    with pytest.raises(ConfigError):
        install(ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), replace(FIRST, key=locked))


# ── the configuration ───────────────────────────────────────────────────────────────────────────


def configuration(name: str = "muslin-webhook", **annotations: str) -> Configuration:
    service = {"name": name, "namespace": "muslin-system"}
    hooks = [
        {"name": "a", "clientConfig": {"url": "https://elsewhere"}},
        {"name": "b", "clientConfig": {"service": service}},
    ]
    made = {"metadata": {"name": "muslin", "annotations": annotations}, "webhooks": hooks}
    return msgspec.convert(made, Configuration)


def test_only_webhooks_that_lead_to_us_are_ours() -> None:
    assert configuration().ours("muslin-system") == [1]
    assert configuration().ours("other") == []
    assert configuration("another").ours("muslin-system") == []


@pytest.mark.parametrize("how", ["ca-from", "ca-from-secret", "apiserver-ca"])
def test_what_cert_manager_injects_is_left_to_it(how: str) -> None:
    found = configuration(**{f"cert-manager.io/inject-{how}": "x"})
    assert found.injected
    assert found.ours("muslin-system") == []


def test_cryptography_is_imported_only_to_make_something() -> None:
    code = "import sys, muslin.controller.webhook; sys.exit('cryptography' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
