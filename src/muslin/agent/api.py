"""Asking a running agent: one line of JSON each way over a root-only unix socket.

    → {"ask": "status"}        ← {"node": "n1", "ready": true, …}
    → {"ask": "plan"}          ← {"plan": "ip link add …", "pending": ""}

Read only: nothing can be changed here.
"""

from __future__ import annotations

import asyncio
import json
import os
import socket
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any

from muslin.agent.journal import waiting
from muslin.agent.sync import Sync
from muslin.errors import MuslinError, NotReady, RequestError
from muslin.plan.render import render, render_changes
from muslin.store.ledger import Ledger
from muslin.tally import tally

LONGEST = 1 << 16  # bytes of a question
TIMEOUT = 10.0  # seconds for a question to arrive, and for an answer

Answer = Callable[[], Awaitable[dict[str, Any]]]


def ask(path: Path, what: str, *, timeout: float = TIMEOUT) -> dict[str, Any]:
    """One question to the agent that listens at `path`.  Blocks; NotReady when nobody answers."""
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as s:
            s.settimeout(timeout)
            s.connect(os.fspath(path))
            s.sendall(json.dumps({"ask": what}).encode() + b"\n")
            with s.makefile("rb") as lines:
                answer = json.loads(lines.readline())
    except (OSError, ValueError) as e:
        hint = "is `muslin agent` running here, and are you root?"
        raise NotReady(f"agent at {path}: {e}", hint=hint) from e
    if "error" in answer:
        raise MuslinError(answer["error"])
    return dict(answer)


class Api:
    """The agent's side."""

    def __init__(self, sync: Sync, ledger: Ledger, journal: Path) -> None:
        self._sync, self._ledger, self._journal = sync, ledger, journal
        self._answers: Mapping[str, Answer] = {"status": self._status, "plan": self._plan}

    async def serve(self, path: Path) -> None:
        """Answer until cancelled.  A socket that a dead agent left is replaced."""
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)  # the other part may be later
        path.unlink(missing_ok=True)
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        os.fchmod(listener.fileno(), 0o600)  # before bind: the file is never anybody else's
        listener.bind(os.fspath(path))
        server = await asyncio.start_unix_server(self._client, sock=listener, limit=LONGEST)
        async with server:
            await server.serve_forever()

    async def _client(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            line = await asyncio.wait_for(reader.readline(), TIMEOUT)
            writer.write(json.dumps(await self._answer(line)).encode() + b"\n")
            await asyncio.wait_for(writer.drain(), TIMEOUT)
        except (TimeoutError, OSError, ValueError):
            pass  # a client that went away, or sent more than a question
        finally:
            writer.close()

    async def _answer(self, line: bytes) -> dict[str, Any]:
        try:
            what = json.loads(line)["ask"]
            if what not in self._answers:
                known = ", ".join(sorted(self._answers))
                raise RequestError(4, f"unknown question {what!r} (known: {known})")
            return await self._answers[what]()
        except (ValueError, KeyError, TypeError):
            return {"error": 'not a question: {"ask": "status"} is one'}
        except MuslinError as e:
            return {"error": str(e)}

    async def _status(self) -> dict[str, Any]:
        state, standing = self._sync.state, self._sync.standing()
        peers = {p.node.name: p for s in state.sites for p in s.peers}
        dels = waiting(self._journal)
        return {
            "node": state.me.name if state.me else "",
            "ready": standing.ready,
            "faults": list(standing.faults),
            "mtu": state.mtu,
            "addresses": [str(a) for a in state.me.addresses] if state.me else [],
            "uplink": state.me.uplink if state.me else "",
            "networks": [
                {"name": s.network.name, "backend": s.network.backend} for s in state.sites
            ],
            "blocks": [str(cidr) for _, cidr in self._ledger.blocks()],
            "free": {u.pool: u.free for u in self._ledger.usage()},
            "peers": [
                {"name": name, "blocks": [str(b) for b in peer.blocks]}
                for name, peer in sorted(peers.items())
            ],
            "journal": {"waiting": dels.count, "oldest": round(dels.oldest, 1)},
            "watches": tally.shown(),
            "attachments": [
                {
                    "container": a.container,
                    "ifname": a.ifname,
                    "netns": a.netns,
                    "dev": a.dev,
                    "network": a.network,
                    "state": a.state,
                    "addresses": [str(x) for x in a.addresses],
                }
                for a in self._ledger.attachments()
            ],
        }

    async def _plan(self) -> dict[str, Any]:
        plan, changes = await asyncio.to_thread(self._sync.pending)
        return {"plan": render(plan), "pending": render_changes(changes)}
