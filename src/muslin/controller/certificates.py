"""The webhook's certificates: an authority of our own, renewed long before it ends.

    Secret muslin-webhook   ca.crt    authorities, the newest first        ──► caBundle
                            ca.key    of the newest
                            tls.crt   for muslin-webhook.<namespace>.svc   ──► the HTTPS server
                            tls.key

    an authority lives a year, a serving certificate 30 days, each is renewed at two thirds
    a new authority is only told at first; an hour later it signs, and the old one is
    told until it has ended; while nobody tells, the old certificate serves to its end

So whatever a replica serves, and whichever caBundle the API server goes by
just now, one belongs to the other.  Every replica may renew: the Secret is
written over the version that was seen, so one is first and the others take
what it made.  ECDSA on P-256, which every Go program verifies quickest.

What has to be known of a certificate is asked of OpenSSL by public ways: a
handshake with oneself in memory says whether chain, key, authority and name
go together, and until when.  Only making one needs the cryptography package:
31 ms and 12 MiB in a replica that does (28 MiB before it), and 18 MB on disk,
against a program `openssl` that not every image has and whose options differ.
So issuing.py is imported when there is something to make, and only then.

A Secret that somebody else makes (cert-manager, kubectl) is served and never
written: ours is the one with the label MARK.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import contextlib
import os
import re
import ssl
import time
from collections.abc import Callable, Mapping
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import msgspec

from muslin.errors import ConfigError, Conflict, MuslinError
from muslin.kube import Api, Kind
from muslin.kube.kinds import VALIDATING_WEBHOOKS
from muslin.kube.slim import Meta
from muslin.log import log

NAME = "muslin-webhook"  # of the Secret, and of the Service
MARK = "muslin.io/webhook"  # label of a Secret of our own making
OTHERS = "cert-manager.io/certificate-name"  # annotation of one that cert-manager keeps

CONFIGURATION = "muslin"  # the ValidatingWebhookConfiguration
INJECTED = "cert-manager.io/inject-"  # how annotations begin by which it writes the caBundle
SECRETS = Kind("", "v1", "secrets", "Secret", True)

PAUSE = 2.0  # seconds between two looks whether we lead by now
LEAST = 60.0  # between two renewals by one replica: two whose clocks differ by years do not fight
HOUR, DAY = 3600.0, 86400.0
SETTLE = HOUR  # from when an authority is told until it signs; API servers have it in seconds
BACKDATE = HOUR  # how much earlier a certificate begins, since the clocks of nodes differ
NO_CHECK_TIME = 0x200000  # X509_V_FLAG_NO_CHECK_TIME: dates are compared here, with our clock

_PEM = re.compile(r"-----BEGIN CERTIFICATE-----.+?-----END CERTIFICATE-----\n?", re.S)


What = Literal["all", "serving", "authority"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Material:
    """What the Secret holds; PEM."""

    authorities: tuple[str, ...] = ()  # the newest first
    authority_key: str = ""
    chain: str = ""
    key: str = ""

    @property
    def bundle(self) -> str:
        """What verifies us."""
        return "".join(self.authorities)


class Life(NamedTuple):
    """When a certificate is valid, in seconds since 1970."""

    begins: float
    ends: float

    def holds(self, now: float) -> bool:
        return self.begins <= now < self.ends

    @property
    def due(self) -> float:
        """When another should be made."""
        return self.begins + (self.ends - self.begins) * 2 / 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Lives:
    """What `inspect` found."""

    authority: Life  # the newest
    serving: Life | None = None  # None: it does not fit key, authorities or name
    newest: bool = False  # whether the newest authority has signed it


# ── when: pure ──────────────────────────────────────────────────────────────────────────────────


def due(found: Lives | None, now: float, *, told: bool) -> What | None:
    """What is to be made now; `told`: who verifies us knows the newest authority."""
    if found is None or not found.authority.holds(now):
        return "all"
    authority, serving = found.authority, found.serving
    if serving is None or not serving.holds(now):
        return "serving"
    if found.newest:
        if now >= serving.due:
            return "serving"
        return "authority" if now >= authority.due else None
    settled = now >= authority.begins + BACKDATE + SETTLE
    return "serving" if settled and told else None


# ── what there is ───────────────────────────────────────────────────────────────────────────────


def inspect(material: Material, name: str) -> Lives | None:
    """What OpenSSL makes of it; None without an authority that could sign another."""
    if not material.authorities:
        return None
    try:
        newest = authority_of(material.authorities[0])
        rehearsal = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        _load(rehearsal, f"{material.authority_key}\n{material.authorities[0]}".encode())
    except (ssl.SSLError, OSError, ValueError):
        return None
    authority = life_of(newest)
    try:
        peer = _handshake(material, name)
    except (ssl.SSLError, OSError, ValueError):
        return Lives(authority=authority)
    by_newest = peer["issuer"] == newest["subject"]
    return Lives(authority=authority, serving=life_of(peer), newest=by_newest)


def install(context: ssl.SSLContext, material: Material) -> None:
    """Serve with this chain and key from the next handshake on; ConfigError leaves it as it was."""
    text = f"{material.key}\n{material.chain}".encode()
    try:
        for one in (ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), context):  # the first is a rehearsal
            _load(one, text)
    except (ssl.SSLError, OSError) as e:
        raise ConfigError(f"Secret {NAME}", [f"tls.crt and tls.key do not fit: {e}"]) from e


def _load(context: ssl.SSLContext, text: bytes) -> None:
    """OpenSSL reads a key from a file only: one that is in no file system."""
    fd = os.memfd_create(NAME)
    try:
        os.write(fd, text)
        path = f"/proc/self/fd/{fd}"
        context.load_cert_chain(path, path, password="")  # an encrypted key: fail, do not ask
    finally:
        os.close(fd)


def _handshake(material: Material, name: str) -> Mapping[str, Any]:
    """Our certificate as one who verifies us sees it; SSLError if they would refuse it."""
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    _load(server, f"{material.key}\n{material.chain}".encode())
    client = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    client.verify_flags |= ssl.VerifyFlags(NO_CHECK_TIME)
    client.load_verify_locations(cadata=material.bundle)
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    one = client.wrap_bio(to_client, to_server, server_hostname=name)
    other = server.wrap_bio(to_server, to_client, server_side=True)
    for side in (one, other, one):  # hello; certificate; and the client has seen it
        try:
            side.do_handshake()
        except ssl.SSLWantReadError:
            continue
    peer = one.getpeercert()
    if not peer:
        raise ValueError("no certificate")
    return peer


def authority_of(pem: str) -> Mapping[str, Any]:
    """Subject and dates of one authority, as `get_ca_certs` has them; else ValueError."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    try:
        context.load_verify_locations(cadata=pem)
    except ssl.SSLError as e:
        raise ValueError(str(e)) from e
    found = context.get_ca_certs()
    if not found:
        raise ValueError("not an authority")
    return found[0]


def life_of(certificate: Mapping[str, Any]) -> Life:
    """The dates of a certificate that OpenSSL has read."""
    return Life(
        ssl.cert_time_to_seconds(certificate["notBefore"]),
        ssl.cert_time_to_seconds(certificate["notAfter"]),
    )


# ── where it is kept ────────────────────────────────────────────────────────────────────────────


class Secret(msgspec.Struct, frozen=True):
    """The Secret, as it is stored."""

    metadata: Meta
    data: dict[str, str] | None = None

    @property
    def ours(self) -> bool:
        return MARK in (self.metadata.labels or {}) and OTHERS not in (
            self.metadata.annotations or {}
        )

    @property
    def material(self) -> Material:
        """What is in it; what cannot be read is as if it were not there."""
        texts = {name: _text(value) for name, value in (self.data or {}).items()}
        return Material(
            authorities=tuple(_PEM.findall(texts.get("ca.crt", ""))),
            authority_key=texts.get("ca.key", ""),
            chain=texts.get("tls.crt", ""),
            key=texts.get("tls.key", ""),
        )


def _text(value: str) -> str:
    try:
        return base64.b64decode(value, validate=True).decode()
    except (binascii.Error, ValueError):
        return ""


def secret(material: Material) -> dict[str, Any]:
    """The body of a Secret of our own."""
    parts = {
        "ca.crt": material.bundle,
        "ca.key": material.authority_key,
        "tls.crt": material.chain,
        "tls.key": material.key,
    }
    labels = {"app.kubernetes.io/name": "muslin", MARK: "own"}
    return {
        "metadata": {"name": NAME, "labels": labels},
        "type": "kubernetes.io/tls",
        "data": {name: _base64(text) for name, text in parts.items()},
    }


def _base64(text: str) -> str:
    return base64.b64encode(text.encode()).decode()


class _Service(msgspec.Struct, frozen=True):
    name: str = ""
    namespace: str = ""


class _Client(msgspec.Struct, frozen=True, rename="camel"):
    service: _Service | None = None
    ca_bundle: str = ""


class _Hook(msgspec.Struct, frozen=True, rename="camel"):
    name: str = ""
    client_config: _Client = _Client()


class Configuration(msgspec.Struct, frozen=True):
    """The ValidatingWebhookConfiguration: of each webhook, whom it asks and who verifies that."""

    metadata: Meta
    webhooks: tuple[_Hook, ...] | None = None

    @property
    def injected(self) -> bool:
        """Whether cert-manager writes every caBundle in it."""
        return any(name.startswith(INJECTED) for name in self.metadata.annotations or {})

    def ours(self, namespace: str) -> list[int]:
        """Which of its webhooks lead to us and have a caBundle that is ours to write."""
        return [
            at
            for at, hook in enumerate(self.webhooks or ())
            if not self.injected and hook.client_config.service == _Service(NAME, namespace)
        ]

    def bundle(self, at: int) -> str:
        """The caBundle of one of them."""
        return (self.webhooks or ())[at].client_config.ca_bundle


class Certificates:
    """Keeps `context` served with what the Secret holds, the Secret fresh, and verifiers told."""

    def __init__(
        self,
        api: Api,
        namespace: str,
        *,
        leading: Callable[[], bool],
        wall: Callable[[], float] = time.time,
    ) -> None:
        self.context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self.name = f"{NAME}.{namespace}.svc"
        self._api, self._namespace = api, namespace
        self._leading, self._wall = leading, wall
        self._secret: Secret | None = None
        self._configuration: Configuration | None = None
        self._listed = set[Kind]()
        self._wake = asyncio.Event()
        self._served, self._inspected = Material(), Material()
        self._lives: Lives | None = None
        self._renewed, self._fault = float("-inf"), ""

    async def run(self) -> None:
        """Until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._follow_secret())
            tasks.create_task(self._follow_configuration())
            tasks.create_task(self._tend())

    async def _follow_secret(self) -> None:
        one = f"metadata.name={NAME}"
        watch = self._api.watch(SECRETS, namespace=self._namespace, fields=one, type=Secret)
        async with aclosing(watch) as batches:
            async for batch in batches:
                for change in batch:
                    self._secret = change.object
                self._listed.add(SECRETS)
                self._wake.set()

    async def _follow_configuration(self) -> None:
        one = f"metadata.name={CONFIGURATION}"
        watch = self._api.watch(VALIDATING_WEBHOOKS, fields=one, type=Configuration)
        async with aclosing(watch) as batches:
            async for batch in batches:
                for change in batch:
                    self._configuration = change.object
                self._listed.add(VALIDATING_WEBHOOKS)
                self._wake.set()

    async def _tend(self) -> None:
        faults: dict[str, str] = {}
        while True:
            self._wake.clear()
            for what, part in (
                ("serve", self._serve),
                ("tell", self._tell),
                ("renew", self._renew),
            ):
                fault = ""
                try:
                    await part()
                except Conflict:
                    pass  # another was first; the watch brings what it made
                except MuslinError as e:
                    fault = str(e)
                if fault and fault != faults.get(what):
                    log.warning("certificates.failed", what=what, error=fault)
                faults[what] = fault
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(PAUSE):
                    await self._wake.wait()

    async def _serve(self) -> None:
        found = self._secret
        if found is None or found.material == self._served:
            return
        install(self.context, found.material)
        self._served = found.material
        log.info("certificates.served", name=self.name, ours=found.ours)

    async def _tell(self) -> None:
        """Write the caBundle where it is another; only the leader, so that it is done once."""
        found, configuration = self._secret, self._configuration
        if not self._leading() or found is None or configuration is None:
            return
        bundle = _base64(found.material.bundle)
        patch: list[dict[str, Any]] = [
            {"op": "add", "path": f"/webhooks/{at}/clientConfig/caBundle", "value": bundle}
            for at in configuration.ours(self._namespace)
            if bundle and configuration.bundle(at) != bundle
        ]
        if not patch:
            return
        version = configuration.metadata.resource_version
        patch.insert(0, {"op": "test", "path": "/metadata/resourceVersion", "value": version})
        await self._api.patch(VALIDATING_WEBHOOKS, CONFIGURATION, patch, how="json")
        log.info("certificates.told", configuration=CONFIGURATION)

    async def _renew(self) -> None:
        found, configuration = self._secret, self._configuration
        if len(self._listed) < 2 or (found is not None and not found.ours):
            return
        if found is None and configuration is not None and configuration.injected:
            return  # who writes the caBundle makes the Secret
        before = found.material if found else Material()
        if before != self._inspected or self._lives is None:
            self._inspected, self._lives = before, inspect(before, self.name)
        now, told = self._wall(), self._is_told(before)
        what, clock = due(self._lives, now, told=told), asyncio.get_running_loop().time()
        if what is None or clock - self._renewed < LEAST:
            return
        from muslin.controller import issuing  # late: it costs what the module's text says

        made = secret(await asyncio.to_thread(issuing.make, before, what, self.name, now))
        if found is None:
            await self._api.create(SECRETS, made, namespace=self._namespace)
        else:
            version = {"resourceVersion": found.metadata.resource_version}
            body = {"metadata": version, "data": made["data"]}
            await self._api.patch(SECRETS, NAME, body, namespace=self._namespace)
        self._renewed = clock
        log.info("certificates.renewed", what=what, name=self.name)

    def _is_told(self, material: Material) -> bool:
        """Whether our verifiers know the newest authority, or are told by somebody else."""
        configuration = self._configuration
        if configuration is None or not material.authorities:
            return True
        return all(
            material.authorities[0].strip() in _text(configuration.bundle(at))
            for at in configuration.ours(self._namespace)
        )
