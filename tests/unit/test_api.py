"""What a running agent says of itself, through its socket and as `muslin status` prints it."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from test_journal import leave
from test_sync import HOSTGW, POOL, Agent, running
from typer.testing import CliRunner, Result

from muslin.agent.api import Api
from muslin.agent.sync import Sync
from muslin.cli.main import app
from muslin.controller import networks
from muslin.kernel import boot
from muslin.store.memory import MemoryStore
from muslin.tally import Tally


@pytest.fixture
async def agent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Agent]:
    """One that answers at `api.sock`, as if its other part listened too."""
    monkeypatch.setattr(Sync, "serving", lambda _: True)
    store = MemoryStore()
    await networks.apply(store, HOSTGW, [POOL])
    made = Agent(tmp_path, store)
    async with running(made):
        await made.settled()
        api = Api(made.sync, made.ledger, made.config.journal_dir)
        serving = asyncio.create_task(api.serve(tmp_path / "api.sock"))
        await made.until((tmp_path / "api.sock").exists)
        yield made
        serving.cancel()
        await asyncio.gather(serving, return_exceptions=True)


async def status(home: Path, *words: str) -> Result:
    argv = ["status", "--socket", str(home / "api.sock"), *words]
    return await asyncio.to_thread(CliRunner().invoke, app, argv)


def attach(agent: Agent, name: str) -> None:
    agent.ledger.claim(
        name, "eth0", netns="/run/netns/x", conf="muslin", network="default", mtu=1500, pools=[POOL]
    )
    agent.ledger.ready(name, "eth0")


async def test_a_quiet_node_says_nothing_of_dels(agent: Agent, tmp_path: Path) -> None:
    attach(agent, "a")
    said = await status(tmp_path)
    assert said.exit_code == 0, said.output
    assert "  pods      1\n" in said.output
    assert "DEL" not in said.output
    assert "deleting" not in said.output
    told = json.loads((await status(tmp_path, "--json")).output)
    assert told["journal"] == {"waiting": 0, "oldest": 0.0}


async def test_dels_that_nobody_has_done_yet_are_told(agent: Agent, tmp_path: Path) -> None:
    for name in "abc":
        attach(agent, name)
    for name in "ab":
        agent.ledger.deleting(name, "eth0")
    for age in (7, 70):
        leave(agent.config.journal_dir, b"", at=boot.clock() - age)
    said = (await status(tmp_path)).output
    assert "  pods      3\n" in said
    assert "  deleting  2 of these pods\n" in said
    assert "  journal   2 DELs wait in the journal, the oldest for 70 s\n" in said
    told = json.loads((await status(tmp_path, "--json")).output)
    assert told["journal"]["waiting"] == 2
    assert 70 <= told["journal"]["oldest"] < 75
    assert sorted(a["state"] for a in told["attachments"]) == ["deleting", "deleting", "ready"]


async def test_what_watches_cost_the_api_server_is_told(
    agent: Agent, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    counts = Tally()
    monkeypatch.setattr("muslin.agent.api.tally", counts)
    assert json.loads((await status(tmp_path, "--json")).output)["watches"] == {}
    for _ in range(2):
        counts.listed("pods")
    counts.ended("pods", "gone")
    told = json.loads((await status(tmp_path, "--json")).output)
    assert told["watches"] == {"pods": {"lists": 2, "ends": {"gone": 1}}}


async def test_without_an_agent_the_dels_it_has_missed_are_told(tmp_path: Path) -> None:
    file = tmp_path / "muslin.toml"
    file.write_text(f'node = "n1"\nstate_dir = "{tmp_path}"\nrun_dir = "{tmp_path}"\n')
    leave(tmp_path / "journal", b"", at=boot.clock() - 3)
    said = CliRunner().invoke(app, ["status", "-c", str(file)])
    assert said.exit_code == 1
    assert "1 DEL waits in the journal, for 3 s" in said.output
    assert "is `muslin agent` running here" in said.output
    elsewhere = CliRunner().invoke(
        app, ["status", "-c", str(file), "--socket", str(tmp_path / "x.sock")]
    )
    assert "DEL" not in elsewhere.output
