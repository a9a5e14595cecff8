"""The three pages, and the settings that the controller takes."""

from __future__ import annotations

import asyncio
import contextlib
from pathlib import Path

import pytest

from muslin import config
from muslin.controller.health import Pages, Pulse, verdict
from muslin.errors import ConfigError


async def ask(port: int, request: bytes) -> bytes:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(request)
    answer = await asyncio.wait_for(reader.read(), 10)
    writer.close()
    return answer


async def test_pages_are_served_and_nothing_else() -> None:
    pages = Pages({"/healthz": lambda: verdict(""), "/readyz": lambda: verdict("not yet")})
    server = await pages.listen("127.0.0.1", 0)
    good = await ask(pages.port, b"GET /healthz?verbose HTTP/1.1\r\nHost: x\r\n\r\n")
    assert good.startswith(b"HTTP/1.1 200 OK\r\n")
    assert good.endswith(b"\r\n\r\nok\n")
    bad = await ask(pages.port, b"GET /readyz HTTP/1.1\r\n\r\n")
    assert bad.startswith(b"HTTP/1.1 503 ")
    assert b"not yet" in bad
    assert (await ask(pages.port, b"HEAD /healthz HTTP/1.1\r\n\r\n")).endswith(b"\r\n\r\n")
    assert b" 404 " in await ask(pages.port, b"GET /../etc/passwd HTTP/1.1\r\n\r\n")
    assert b" 405 " in await ask(pages.port, b"POST /healthz HTTP/1.1\r\n\r\n")
    for nonsense in (b"\r\n\r\n", b"\xff\x00 \r\n\r\n", b"GET\r\n\r\n"):
        assert b" 40" in await ask(pages.port, nonsense)
    for cut_off in (b"x" * 100_000, b""):
        reader, writer = await asyncio.open_connection("127.0.0.1", pages.port)
        writer.write(cut_off)
        writer.write_eof()
        with contextlib.suppress(ConnectionError):
            assert await asyncio.wait_for(reader.read(), 10) == b""
        writer.close()
    server.close()


async def test_an_address_that_cannot_be_had_names_the_setting() -> None:
    pages = Pages({})
    server = await pages.listen("127.0.0.1", 0)
    for host, port in (("127.0.0.1", pages.port), ("192.0.2.77", 9808), ("no.such.invalid", 1)):
        with pytest.raises(ConfigError, match=f"setting listen = {host}:{port}"):
            await Pages({}).listen(host, port)
    server.close()


def test_a_loop_that_stood_still_is_not_alive() -> None:
    now = [0.0]
    pulse = Pulse(lambda: now[0])
    assert pulse.fault() == ""
    now[0] = 9.0
    assert pulse.fault() == ""
    now[0] = 30.0
    assert pulse.fault() == "the event loop stood still for 30.0 s"
    pulse._beat()
    assert pulse.fault() != ""  # it is asked just after: still worth a word
    now[0] = 31.0
    pulse._beat()
    assert pulse.fault() == ""


def load(tmp_path: Path, text: str = "", **environ: str) -> config.Controller:
    file = tmp_path / "controller.toml"
    file.write_text(text)
    return config.controller(file, environ)


def test_the_controller_needs_no_settings_in_a_pod(tmp_path: Path) -> None:
    loaded = load(tmp_path)
    assert loaded.store == "kubernetes:"
    assert loaded.identity != ""
    assert loaded.address == ("127.0.0.1", 9808)
    assert load(tmp_path, MUSLIN_LISTEN="[::]:80").address == ("::", 80)


def test_all_its_faults_are_reported_together(tmp_path: Path) -> None:
    text = 'store = "etcd://u:secret@h"\nidentity = "a b"\nlisten = "80"\nlease = 0\ngrace = -1.0\n'
    with pytest.raises(ConfigError) as caught:
        load(tmp_path, text + 'log_level = "loud"')
    words = " ".join(caught.value.faults)
    for part in ("store", "identity 'a b'", "listen '80'", "lease 0", "grace -1", "log_level"):
        assert part in words
    assert "secret" not in words
    with pytest.raises(ConfigError, match="listen"):
        load(tmp_path, MUSLIN_LISTEN="h:65536")


def test_both_programs_may_be_given_one_environment(tmp_path: Path) -> None:
    both = {"MUSLIN_NODE": "n1", "MUSLIN_LISTEN": "127.0.0.1:1", "MUSLIN_LOG_LEVEL": "debug"}
    services = {
        "MUSLIN_WEBHOOK_SERVICE_HOST": "10.96.0.7",
        "MUSLIN_WEBHOOK_SERVICE_PORT_HTTPS": "443",
        "MUSLIN_WEBHOOK_PORT": "tcp://10.96.0.7:443",
        "MUSLIN_WEBHOOK_PORT_443_TCP_ADDR": "10.96.0.7",
    }
    assert load(tmp_path, **both, **services).listen == "127.0.0.1:1"
    file = tmp_path / "agent.toml"
    file.write_text("")
    assert config.load(file, {**both, **services}).node == "n1"
    with pytest.raises(ConfigError, match="unknown variable MUSLIN_LISTN"):
        load(tmp_path, MUSLIN_LISTN="x")
    with pytest.raises(ConfigError, match="unknown setting 'node'"):
        load(tmp_path, 'node = "n1"')
