"""`muslin install`, `upgrade` and `uninstall`: the whole of it on a Kubernetes cluster."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from muslin.cli.output import JsonOption, emit, err, out, reported
from muslin.errors import ConfigError

if TYPE_CHECKING:  # each command imports it: `muslin agent` comes through this door too
    from muslin.controller.rollout import Outcome, Rollout

KubeconfigOption = Annotated[
    Path | None,
    typer.Option(help="Which kubeconfig [default: $KUBECONFIG, or ~/.kube/config]."),
]
ContextOption = Annotated[str, typer.Option(help="A context of it [default: the current one].")]
DryRunOption = Annotated[
    bool, typer.Option("--dry-run", help="Ask the server what would change, and change nothing.")
]
ForceOption = Annotated[
    bool, typer.Option("--force", help="Take over fields that somebody else has set.")
]
WaitOption = Annotated[bool, typer.Option("--wait/--no-wait", help="Wait until all is ready.")]
TimeoutOption = Annotated[float, typer.Option(help="Seconds to wait for anything.")]
ImageOption = Annotated[str, typer.Option(help="The image, as name:tag.")]

_SIGNS = {"created": "+", "changed": "~", "same": "=", "removed": "-", "absent": " "}


@dataclass(frozen=True, slots=True, kw_only=True)
class Where:
    """Which cluster, and how it is spoken to."""

    kubeconfig: Path | None
    context: str
    dry_run: bool = False
    timeout: float = 300.0
    quiet: bool = False


def install(
    *,
    kubeconfig: KubeconfigOption = None,
    context: ContextOption = "",
    overlay: Annotated[
        Literal["vxlan", "hostgw", "podcidr"], typer.Option(help="The ground: docs/kubernetes.md.")
    ] = "vxlan",
    cidr: Annotated[
        list[str] | None,
        typer.Option(
            help="The pods' range; twice for both families.  The overlay's own unless set."
        ),
    ] = None,
    image: ImageOption = "",
    dry_run: DryRunOption = False,
    force: ForceOption = False,
    wait: WaitOption = True,
    timeout: TimeoutOption = 300.0,
    json: JsonOption = False,
) -> None:
    """Install Muslin on a Kubernetes cluster.  Doing it again changes nothing."""
    where = Where(
        kubeconfig=kubeconfig, context=context, dry_run=dry_run, timeout=timeout, quiet=json
    )

    async def work(rollout: Rollout) -> list[Outcome]:
        from muslin.controller import manifests

        targets = manifests.targets(overlay, cidrs=cidr or (), image=image)
        await rollout.check()
        done = await _collect(rollout.apply(targets, force=force), quiet=json)
        if wait and not dry_run:
            await rollout.wait(targets)
        return done

    with reported():
        done = _run(where, work)
    _finish(done, json=json, dry_run=dry_run)
    if not json and not dry_run:
        out.print("next: kubectl wait --for=condition=Ready network/default")


def upgrade(
    *,
    kubeconfig: KubeconfigOption = None,
    context: ContextOption = "",
    image: ImageOption = "",
    dry_run: DryRunOption = False,
    force: ForceOption = False,
    wait: WaitOption = True,
    timeout: TimeoutOption = 300.0,
    json: JsonOption = False,
) -> None:
    """Bring an installation to this version.  Settings, networks and pools stay as they are."""
    where = Where(
        kubeconfig=kubeconfig, context=context, dry_run=dry_run, timeout=timeout, quiet=json
    )

    async def work(rollout: Rollout) -> list[Outcome]:
        await rollout.check()
        targets = await rollout.upgradable(image)
        done = await _collect(rollout.apply(targets, force=force), quiet=json)
        if wait and not dry_run:
            await rollout.wait(targets)
        return done

    with reported():
        done = _run(where, work)
    _finish(done, json=json, dry_run=dry_run)


def uninstall(
    *,
    kubeconfig: KubeconfigOption = None,
    context: ContextOption = "",
    purge: Annotated[
        bool, typer.Option("--purge", help="Also the CRDs, and with them all networks and pools.")
    ] = False,
    dry_run: DryRunOption = False,
    force: Annotated[
        bool, typer.Option("--force", help="Also while pods use it, or a node cannot be cleaned.")
    ] = False,
    timeout: TimeoutOption = 300.0,
    json: JsonOption = False,
) -> None:
    """Remove Muslin from a cluster and from its nodes."""
    where = Where(
        kubeconfig=kubeconfig, context=context, dry_run=dry_run, timeout=timeout, quiet=json
    )

    async def work(rollout: Rollout) -> list[Outcome]:
        return await _collect(rollout.remove(force=force, purge=purge), quiet=json)

    with reported():
        done = _run(where, work)
    _finish(done, json=json, dry_run=dry_run)


def _run(where: Where, work: Callable[[Rollout], Awaitable[list[Outcome]]]) -> list[Outcome]:
    from muslin.controller.manifests import MANAGER
    from muslin.controller.rollout import Rollout
    from muslin.kube import Api, kubeconfig

    def say(line: str) -> None:
        if not where.quiet:
            err.print(line, markup=False, style="dim")

    async def main() -> list[Outcome]:
        access = kubeconfig(where.kubeconfig or _default(), where.context)
        async with Api(access, manager=MANAGER, timeout=30.0, dry_run=where.dry_run) as api:
            made = Rollout(api, dry_run=where.dry_run, say=say, timeout=where.timeout)
            return await work(made)

    return asyncio.run(main())


def _default() -> Path:
    """As kubectl looks for it; of several in $KUBECONFIG the first, since none are merged here."""
    named = [p for p in os.environ.get("KUBECONFIG", "").split(os.pathsep) if p]
    if len(named) > 1:
        raise ConfigError(
            "KUBECONFIG", ["names several files"], hint="choose one with --kubeconfig"
        )
    return Path(named[0]) if named else Path.home() / ".kube" / "config"


async def _collect(outcomes: AsyncIterator[Outcome], *, quiet: bool) -> list[Outcome]:
    """All of them, each printed when it is known."""
    done = []
    async for outcome in outcomes:
        done.append(outcome)
        if not quiet and outcome.verb not in ("same", "absent"):
            out.print(f"{_SIGNS[outcome.verb]} {outcome.what}", markup=False)
            for line in outcome.changes:
                out.print(f"    {line}", markup=False)
    return done


def _finish(done: Iterable[Outcome], *, json: bool, dry_run: bool) -> None:
    found = list(done)
    if json:
        emit(
            {
                "dry_run": dry_run,
                "objects": [
                    {"what": o.what, "verb": o.verb, "changes": list(o.changes)} for o in found
                ],
            }
        )
        return
    counts = {verb: sum(o.verb == verb for o in found) for verb in _SIGNS}
    words = ", ".join(f"{n} {verb}" for verb, n in counts.items() if n and verb != "absent")
    out.print(f"{'would be: ' if dry_run else ''}{words or 'nothing to do'}")
