"""Making the certificates of certificates.py; nothing else imports the cryptography package.

What Go's verifier, OpenSSL and its strict mode (Python 3.13) ask for: names in
subjectAltName, key identifiers, usages, and on the authority a path length of
0, so that what it signs can sign nothing.
"""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from muslin.controller.certificates import (
    BACKDATE,
    DAY,
    NAME,
    Life,
    Material,
    What,
    authority_of,
    life_of,
)

AUTHORITY, SERVING = 365 * DAY, 30 * DAY  # lives


def make(before: Material, what: What, name: str, now: float) -> Material:
    """What the Secret should hold next; authorities that have ended are left out."""
    kept = tuple(a for a in before.authorities if _ends(a) > now)
    if what == "serving":
        return _served(replace(before, authorities=kept), name, now)
    key, subject = ec.generate_private_key(ec.SECP256R1()), f"{NAME}-{secrets.token_hex(4)}"
    usage = _usage(sign=True)
    life = Life(now - BACKDATE, now + AUTHORITY)
    pem = _certificate(key, subject, life, usage, by=(subject, key))
    made = replace(before, authorities=(pem, *kept), authority_key=_pem(key))
    return _served(made, name, now) if what == "all" else made


def _ends(authority: str) -> float:
    try:
        return life_of(authority_of(authority)).ends
    except ValueError:
        return 0.0


def _served(found: Material, name: str, now: float) -> Material:
    """The same with another serving certificate, by the newest authority."""
    authority = x509.load_pem_x509_certificate(found.authorities[0].encode())
    signer = serialization.load_pem_private_key(found.authority_key.encode(), None)
    assert isinstance(signer, ec.EllipticCurvePrivateKey)  # no other was made
    [issuer] = authority.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
    life = Life(now - BACKDATE, min(now + SERVING, authority.not_valid_after_utc.timestamp()))
    key = ec.generate_private_key(ec.SECP256R1())
    more: Sequence[tuple[x509.ExtensionType, bool]] = (
        *_usage(sign=False),
        (x509.SubjectAlternativeName([x509.DNSName(name)]), False),
        (x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), False),
    )
    pem = _certificate(key, NAME, life, more, by=(str(issuer.value), signer))
    return replace(found, chain=pem, key=_pem(key))


def _usage(*, sign: bool) -> Sequence[tuple[x509.ExtensionType, bool]]:
    usage = x509.KeyUsage(
        digital_signature=not sign,
        key_cert_sign=sign,
        crl_sign=sign,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )
    return (x509.BasicConstraints(ca=sign, path_length=0 if sign else None), True), (usage, True)


def _certificate(
    key: ec.EllipticCurvePrivateKey,
    subject: str,
    life: Life,
    more: Sequence[tuple[x509.ExtensionType, bool]],
    *,
    by: tuple[str, ec.EllipticCurvePrivateKey],
) -> str:
    """One certificate as PEM; `more` are its extensions, and whether each is critical."""
    issuer, signer = by
    ours, theirs = key.public_key(), signer.public_key()
    builder = (
        x509.CertificateBuilder()
        .subject_name(_name(subject))
        .issuer_name(_name(issuer))
        .public_key(ours)
        .serial_number(x509.random_serial_number())
        .not_valid_before(datetime.fromtimestamp(life.begins, UTC))
        .not_valid_after(datetime.fromtimestamp(life.ends, UTC))
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(ours), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(theirs), critical=False)
    )
    for extension, critical in more:
        builder = builder.add_extension(extension, critical=critical)
    made = builder.sign(signer, hashes.SHA256())
    return made.public_bytes(serialization.Encoding.PEM).decode()


def _name(common: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common)])


def _pem(key: ec.EllipticCurvePrivateKey) -> str:
    return key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    ).decode()
