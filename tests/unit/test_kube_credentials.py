"""Tokens and certificates while they change; proxies on the wire."""

from __future__ import annotations

import asyncio
import os
import shutil
import ssl
import stat
import subprocess
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from muslin.errors import ConfigError, NotReady
from muslin.kube import Access, Api, Exec
from muslin.kube.credentials import Bearer, Tls
from muslin.kube.kinds import NODES
from muslin.log import log
from scripted import Reply, Request, Scripted, status


@pytest.fixture
async def server() -> AsyncIterator[Scripted]:
    async with Scripted() as server:
        yield server


async def fine(_: Request, reply: Reply) -> None:
    await reply.json(200, {})


def shown(server: Scripted) -> list[str]:
    return [r.headers.get("authorization", "") for r in server.requests]


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


async def test_a_renewed_token_is_read_at_once(server: Scripted, tmp_path: Path) -> None:
    """As the kubelet renews it: a link that leads to another directory."""
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "token").write_text(f"{name}\n")
    (tmp_path / "..data").symlink_to("one")
    (tmp_path / "token").symlink_to("..data/token")
    server.always = fine
    async with Api(Access(server=server.url, token_file=str(tmp_path / "token"))) as api:
        await api.get(NODES, "a")
        (tmp_path / "next").symlink_to("two")
        (tmp_path / "next").rename(tmp_path / "..data")
        await api.get(NODES, "a")
    assert shown(server) == ["Bearer one", "Bearer two"]


async def test_a_token_is_read_again_each_minute(tmp_path: Path) -> None:
    """For file systems that do not tell of a change."""
    path, clock = tmp_path / "token", Clock()
    path.write_text("one")
    then = path.stat().st_mtime_ns
    bearer = Bearer(Access(server="http://k", token_file=str(path)), clock)
    assert await bearer.header() == "Bearer one"
    path.write_text("two")
    os.utime(path, ns=(then, then))
    assert await bearer.header() == "Bearer one"
    clock.now += 61
    assert await bearer.header() == "Bearer two"


async def test_after_401_the_token_is_read_again_and_the_request_repeated_once(
    server: Scripted, tmp_path: Path
) -> None:
    path = tmp_path / "token"
    path.write_text("one")
    then = path.stat().st_mtime_ns

    async def refuse(_: Request, reply: Reply) -> None:
        path.write_text("two")
        os.utime(path, ns=(then, then))
        await reply.status(401, "Unauthorized")

    server.others = [refuse, fine, refuse, refuse, fine]
    async with Api(Access(server=server.url, token_file=str(path))) as api:
        assert await api.get(NODES, "a") == {}
        assert shown(server) == ["Bearer one", "Bearer two"]
        with pytest.raises(NotReady, match="not let in: Unauthorized"):
            await api.get(NODES, "a")
    assert len(server.requests) == 4


async def test_a_token_that_cannot_be_read_is_waited_for(server: Scripted, tmp_path: Path) -> None:
    path = tmp_path / "token"
    async with Api(Access(server=server.url, token_file=str(path))) as api:
        with pytest.raises(NotReady, match="No such file"):
            await api.get(NODES, "a")
        path.write_text("")
        with pytest.raises(NotReady, match="empty"):
            await api.get(NODES, "a")
        path.write_text("t")
        server.always = fine
        await api.get(NODES, "a")
        path.unlink()  # the last one that was read still counts
        await api.get(NODES, "a")
    assert shown(server) == ["Bearer t"] * 2


@pytest.mark.parametrize("text", ["a\nb", "a\0b", "ä", "a\x7fb"])
async def test_a_file_that_holds_no_token_is_a_configuration_error(
    tmp_path: Path, text: str
) -> None:
    """Nor does it become a header of its own."""
    (tmp_path / "token").write_text(text)
    bearer = Bearer(Access(server="http://k", token_file=str(tmp_path / "token")))
    with pytest.raises(ConfigError, match="is none"):
        await bearer.header()


def plugin(tmp_path: Path, script: str) -> Access:
    path = tmp_path / "login"
    path.write_text(f"#!/bin/sh\necho run >> {tmp_path}/runs\n{script}\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    runs = Exec(command=str(path), env=(("WHO", "me"),), hint="get it")
    return Access(server="http://k", exec=runs)


def runs(tmp_path: Path) -> int:
    return len((tmp_path / "runs").read_text().splitlines())


TOKEN = """cat <<END
{"kind": "ExecCredential", "status": {"token": "$WHO-$(wc -l < %s/runs)" %s}}
END"""


async def test_a_plugins_token_is_kept_until_it_expires(tmp_path: Path) -> None:
    clock = Clock()
    expires = ', "expirationTimestamp": "1970-01-01T00:20:00Z"'
    bearer = Bearer(plugin(tmp_path, TOKEN % (tmp_path, expires)), clock)
    assert await asyncio.gather(*(bearer.header() for _ in range(5))) == ["Bearer me-1"] * 5
    clock.now = 1191.0  # of 1200
    assert await bearer.header() == "Bearer me-2"


async def test_a_plugin_is_asked_again_after_401_but_once_for_all(tmp_path: Path) -> None:
    bearer = Bearer(plugin(tmp_path, TOKEN % (tmp_path, "")))
    header = await bearer.header()
    bearer.refused(header)
    assert await bearer.header() == "Bearer me-2"
    bearer.refused(header)  # a request from before
    assert await bearer.header() == "Bearer me-2"


async def test_a_plugin_is_told_what_it_is_asked(tmp_path: Path) -> None:
    at = plugin(tmp_path, f'echo "$KUBERNETES_EXEC_INFO" > {tmp_path}/info; exit 1')
    with pytest.raises(NotReady, match="exit code 1"):
        await Bearer(at).header()
    info = (tmp_path / "info").read_text()
    assert '"apiVersion":"client.authentication.k8s.io/v1"' in info
    assert '"interactive":false' in info


@pytest.mark.parametrize(
    ("script", "error", "words"),
    [
        ("echo oh no >&2; exit 3", NotReady, "exit code 3: oh no; get it"),
        ("echo hello", ConfigError, "no ExecCredential"),
        ("echo '{}'", ConfigError, "no token"),
        (
            """echo '{"status":{"clientCertificateData":"x"}}'""",
            ConfigError,
            "a client certificate",
        ),
        (
            """echo '{"status":{"token":"x","expirationTimestamp":"soon"}}'""",
            ConfigError,
            "no ExecCredential",
        ),
    ],
)
async def test_a_plugin_that_fails_says_how(
    tmp_path: Path, script: str, error: type[Exception], words: str
) -> None:
    with pytest.raises(error, match=words):
        await Bearer(plugin(tmp_path, script)).header()


async def test_a_plugin_that_is_missing_is_a_configuration_error(tmp_path: Path) -> None:
    at = Access(server="http://k", exec=Exec(command=str(tmp_path / "none"), hint="get it"))
    with pytest.raises(ConfigError, match="No such file or directory; get it"):
        await Bearer(at).header()


class Authority:
    """A CA that exists as long as a test, by openssl."""

    def __init__(self, directory: Path) -> None:
        if not shutil.which("openssl"):
            pytest.skip("needs openssl")
        directory.mkdir()
        self._dir = directory
        self.ca = directory / "ca.pem"
        subject = ("-subj", f"/CN=ca-{directory.name}")
        self._openssl("req", "-x509", *self._key("ca"), *subject, "-days", "2", "-out", self.ca)

    def issue(self, name: str, *, names: str = "IP:127.0.0.1") -> tuple[Path, Path]:
        cert, request, extra = (self._dir / f"{name}.{e}" for e in ("pem", "csr", "ext"))
        extra.write_text(f"subjectAltName={names}\n")
        self._openssl("req", *self._key(name), "-subj", f"/CN={name}", "-out", request)
        signed = ("-CA", self.ca, "-CAkey", self._dir / "ca.key", "-CAcreateserial")
        to = ("-extfile", extra, "-days", "2", "-out", cert)
        self._openssl("x509", "-req", "-in", request, *signed, *to)
        return cert, self._dir / f"{name}.key"

    def server(self, *, names: str = "IP:127.0.0.1", clients: bool = False) -> ssl.SSLContext:
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        context.load_cert_chain(*self.issue("server", names=names))
        if clients:
            context.verify_mode = ssl.CERT_REQUIRED
            context.load_verify_locations(self.ca)
        return context

    def _key(self, name: str) -> tuple[object, ...]:
        key = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-keyout")
        return (*key, self._dir / f"{name}.key")

    def _openssl(self, *words: object) -> None:
        subprocess.run(["openssl", *map(str, words)], check=True, capture_output=True)


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path / "one")


async def test_a_server_is_verified_by_file_or_data(authority: Authority) -> None:
    async with Scripted(authority.server()) as server:
        server.always = fine
        data = authority.ca.read_text()
        for at in (
            Access(server=server.url, ca_file=str(authority.ca)),
            Access(server=server.url, ca_data=data),
            Access(server=server.url, insecure=True),
        ):
            async with Api(at) as api:
                assert await api.get(NODES, "a") == {}
        async with Api(Access(server=server.url, source="kubeconfig x")) as api:
            with pytest.raises(NotReady, match="certificate verify failed") as raised:
                await api.get(NODES, "a")
        assert raised.value.hint == "check the certificate authority in kubeconfig x"


async def test_another_name_may_be_verified(authority: Authority) -> None:
    async with Scripted(authority.server(names="DNS:kubernetes")) as server:
        server.always = fine
        right = Access(server=server.url, ca_file=str(authority.ca), server_name="kubernetes")
        async with Api(right) as api:
            assert await api.get(NODES, "a") == {}
        async with Api(Access(server=server.url, ca_file=str(authority.ca))) as api:
            with pytest.raises(NotReady, match="verify failed"):
                await api.get(NODES, "a")


async def test_a_client_certificate_is_shown_from_file_or_data(authority: Authority) -> None:
    cert, key = authority.issue("me")
    async with Scripted(authority.server(clients=True)) as server:
        server.always = fine
        ca = str(authority.ca)
        files = Access(server=server.url, ca_file=ca, cert_file=str(cert), key_file=str(key))
        texts = Access(
            server=server.url, ca_file=ca, cert_data=cert.read_text(), key_data=key.read_text()
        )
        for at in (files, texts):
            async with Api(at) as api:
                assert await api.get(NODES, "a") == {}
        async with Api(Access(server=server.url, ca_file=ca)) as api:
            with pytest.raises(NotReady):
                await api.get(NODES, "a")


async def test_renewed_certificates_are_used_without_a_restart(
    authority: Authority, tmp_path: Path
) -> None:
    """The client's own and, while a cluster changes it, the CA; bad files change nothing."""
    other = Authority(tmp_path / "two")
    ca, cert, key = (tmp_path / n for n in ("ca", "cert", "key"))

    def install(source: Authority) -> None:
        for new, old in zip((source.ca, *source.issue("me")), (ca, cert, key), strict=True):
            temporary = tmp_path / "new"
            shutil.copy(new, temporary)
            temporary.rename(old)

    install(authority)
    first, second = (Scripted(a.server(clients=True)) for a in (authority, other))
    async with first:
        first.always = second.always = fine
        port = first.port
        at = Access(server=first.url, ca_file=str(ca), cert_file=str(cert), key_file=str(key))
        async with Api(at) as api:
            assert await api.get(NODES, "a") == {}
            cert.write_text("not yet")
            assert await api.get(NODES, "a") == {}
            await first.kill()
            install(other)
            await second.start(port)
            assert await api.get(NODES, "a") == {}
            await second.kill()


@pytest.mark.parametrize("field", ["ca_file", "ca_data", "cert_file", "cert_data"])
def test_certificates_that_are_none_are_named_at_once(
    tmp_path: Path, authority: Authority, field: str
) -> None:
    _, key = authority.issue("me")
    bad = tmp_path / "bad"
    bad.write_text("no PEM")
    values = {field: str(bad) if field.endswith("file") else "no PEM"}
    if field.startswith("cert"):
        values["key_file"] = str(key)
    with pytest.raises(ConfigError, match=r"kubeconfig x: (CA|client certificate)"):
        Api(Access(server="https://k", source="kubeconfig x", **values))
    missing = Access(server="https://k", ca_file=str(tmp_path / "missing"))
    with pytest.raises(ConfigError, match="No such file"):
        Tls(missing)


def test_an_encrypted_key_is_refused_and_not_asked_for(
    tmp_path: Path, authority: Authority
) -> None:
    cert, key = authority.issue("me")
    locked = tmp_path / "locked"
    words = ["openssl", "ec", "-in", key, "-aes128", "-passout", "pass:x", "-out", locked]
    subprocess.run(words, check=True, capture_output=True)
    with pytest.raises(ConfigError, match="client certificate"):
        Tls(Access(server="https://k", cert_file=str(cert), key_file=str(locked)))


def test_the_cas_of_older_clusters_are_accepted() -> None:
    """Python 3.13 began to refuse those without an Authority Key Identifier."""
    context = Tls(Access(server="https://k")).context
    assert not context.verify_flags & ssl.VERIFY_X509_STRICT
    assert context.verify_mode == ssl.CERT_REQUIRED
    assert context.check_hostname


class Proxy:
    """An HTTP proxy that notes what it is asked for."""

    async def __aenter__(self) -> Proxy:
        self.asked: list[str] = []
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self._tasks: set[asyncio.Task[None]] = set()
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        try:
            head = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
            self.asked.append(head)
            host, _, port = head.split()[1].rpartition(":")
            inner, outer = await asyncio.open_connection(host, int(port))
            writer.write(b"HTTP/1.1 200 Connection established\r\n\r\n")
            await asyncio.gather(pipe(reader, outer), pipe(inner, writer))
        except asyncio.CancelledError:
            pass
        finally:
            writer.transport.abort()


async def pipe(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        while data := await reader.read(1 << 16):
            writer.write(data)
    finally:
        writer.close()


async def test_a_proxy_is_used_for_requests_and_shown_its_password(authority: Authority) -> None:
    async with Scripted(authority.server()) as server, Proxy() as proxy:
        server.always = fine
        url = f"http://us%40er:pass@127.0.0.1:{proxy.port}"
        at = Access(server=server.url, ca_file=str(authority.ca), proxy=url)
        async with Api(at) as api:
            assert await api.get(NODES, "a") == {}
        assert proxy.asked[0].startswith(f"connect 127.0.0.1:{server.port} http/1.1")
        assert "proxy-authorization: basic dxnaz" in proxy.asked[0]


async def test_the_environment_changes_nothing_later(
    server: Scripted, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An Access says which proxy; the library that connects is not to look for one."""
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    server.always = fine
    async with Api(server.access) as api:
        assert await api.get(NODES, "a") == {}


async def test_a_401_of_a_watch_reads_the_token_again(server: Scripted, tmp_path: Path) -> None:
    path = tmp_path / "token"
    path.write_text("one")
    then = path.stat().st_mtime_ns
    at = Access(server=server.url, token_file=str(path))

    async def refuse(request: Request, reply: Reply) -> None:
        path.write_text("two")
        os.utime(path, ns=(then, then))
        await status(401, "Unauthorized")(request, reply)

    server.watches = [refuse]
    async with Api(at, uniform=lambda _, high: high / 1000) as api:
        batches = api.watch(NODES, type=dict)
        await anext(batches)
        reader = asyncio.ensure_future(anext(batches))
        await server.asked_times(3)
        reader.cancel()
        await asyncio.gather(reader, return_exceptions=True)
        await batches.aclose()
    assert shown(server) == ["Bearer one", "Bearer one", "Bearer two"]


@pytest.fixture(autouse=True)
def quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(log, "sink", lambda *_: None)
