"""The API server as a process of its own: `python -m tests.apiserver --port 8001`.

Prints its URL when it listens.  With `--state FILE` a killed server's successor finds what
was stored, as after the death of an API server whose etcd lives on.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import tempfile
from pathlib import Path

from .server import ApiServer
from .settings import Settings
from .storage import Storage
from .tls import Certificate


async def _serve(args: argparse.Namespace) -> None:
    with tempfile.TemporaryDirectory(prefix="fake-apiserver-") as scratch:
        tls = Certificate.make(args.certs or Path(scratch)) if args.tls else None
        settings = Settings(rbac=args.rbac, collect=not args.no_collect)
        storage = Storage(journal=args.state)
        api = ApiServer(settings=settings, storage=storage, host=args.host, port=args.port, tls=tls)
        async with api:
            if args.kubeconfig:
                api.kubeconfig(args.kubeconfig)
            print(api.url, flush=True)
            await asyncio.Event().wait()


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.apiserver", description=__doc__)
    parser.add_argument("--port", type=int, default=0, help="0 takes a free one")
    parser.add_argument("--host", default="127.0.0.1", help="the address to listen on")
    parser.add_argument("--kubeconfig", type=Path, help="write a kubeconfig here")
    parser.add_argument("--tls", action="store_true", help="serve HTTPS")
    parser.add_argument("--certs", type=Path, help="directory for the certificates")
    parser.add_argument("--state", type=Path, help="keep the objects in this file")
    parser.add_argument("--rbac", action="store_true", help="ask the stored roles")
    parser.add_argument("--no-collect", action="store_true", help="run no garbage collector")
    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(_serve(parser.parse_args()))


main()
