"""What is remembered of a lab between two commands: one directory and one small file.

    /run/muslin-lab/<lab>/lab.json     what exists, or is about to
    /run/muslin-lab/<lab>/<thing>/…    config, state and sockets of one agent
    /run/muslin-lab/<lab>.lock         held by the command that is changing the lab

The file is written *before* anything is made, so it names everything that a
crash at any instant could leave.  It is replaced whole (rename), so a crash
while writing leaves the one before.
"""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import msgspec

from muslin.errors import MuslinError
from muslin.kernel import netns
from muslin.lab.process import Process
from muslin.lab.topology import Topology, parse
from muslin.model import Address, decode, encode

DEFAULT_ROOT = Path("/run/muslin-lab")
FILE = "lab.json"
StoreKind = Literal["sqlite", "etcd"]


class Pod(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A pod of a lab; it has no addresses until its ADD has answered."""

    name: str
    node: str
    container: str
    addresses: tuple[Address, ...] = ()

    def address(self, version: int) -> Address | None:
        """The pod's address of that IP version, if it has one."""
        return next((a for a in self.addresses if a.version == version), None)


class State(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One lab, as far as its commands have come."""

    lab: str
    source: str  # the topology file's text: later commands need no file
    store: StoreKind
    phase: Literal["building", "up"] = "building"
    namespaces: tuple[str, ...] = ()  # of everything but pods
    processes: tuple[Process, ...] = ()
    pods: tuple[Pod, ...] = ()

    @property
    def topology(self) -> Topology:
        """The topology, read again, under the name that this lab was given."""
        return dataclasses.replace(parse(self.source, stem=self.lab), name=self.lab)

    def pod(self, name: str) -> Pod | None:
        """The pod of that name."""
        return next((p for p in self.pods if p.name == name), None)


def root() -> Path:
    """Where labs are remembered; MUSLIN_LAB_DIR moves it, for tests that must not meet others."""
    return Path(os.environ.get("MUSLIN_LAB_DIR") or DEFAULT_ROOT).absolute()


def directory(lab: str) -> Path:
    """One lab's own directory."""
    return root() / lab


def labs() -> list[str]:
    """Every lab that is remembered, up or half built; MuslinError if that is not ours to see."""
    if root().exists() and not os.access(root(), os.R_OK | os.X_OK):
        raise MuslinError(f"{root()} cannot be read", hint="labs belong to root: use sudo")
    return sorted(p.parent.name for p in root().glob(f"*/{FILE}"))


def load(lab: str) -> State | None:
    """What is remembered of a lab, or None."""
    try:
        data = (directory(lab) / FILE).read_bytes()
    except FileNotFoundError:
        return None
    return decode(State, data, subject=f"lab {lab}")


def save(state: State) -> None:
    """Remember it, whole or not at all."""
    where = directory(state.lab)
    where.mkdir(mode=0o700, parents=True, exist_ok=True)
    new = where / f"{FILE}.new"
    new.write_bytes(encode(state))
    new.replace(where / FILE)


def forget(lab: str) -> None:
    """Remove what is remembered, last of all; absent is success."""
    # The file goes first, so that a crash in between leaves no lab that looks alive.
    (directory(lab) / FILE).unlink(missing_ok=True)
    with contextlib.suppress(FileNotFoundError):
        shutil.rmtree(directory(lab))
    with contextlib.suppress(OSError):  # not empty: other labs live there
        root().rmdir()


@contextlib.contextmanager
def locked(lab: str) -> Iterator[None]:
    """Change a lab alone; MuslinError if another command is at it.  Not held after a crash."""
    path = root() / f"{lab}.lock"
    while True:
        root().mkdir(mode=0o700, parents=True, exist_ok=True)
        try:
            fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except FileNotFoundError:  # the last lab has just removed the directory
            continue
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as e:
            os.close(fd)
            hint = "wait for it, or end it"
            raise MuslinError(f"lab {lab}: another command is changing it", hint=hint) from e
        # Its last holder may have removed the file between our open and our lock.
        with contextlib.suppress(FileNotFoundError):
            if os.fstat(fd).st_ino == path.stat().st_ino:
                break
        os.close(fd)
    try:
        yield
    finally:
        path.unlink(missing_ok=True)
        os.close(fd)
        with contextlib.suppress(OSError):  # not empty, or already gone
            root().rmdir()


def refuse_foreign(lab: str, wanted: tuple[str, ...]) -> None:
    """Refuse namespaces that somebody has already.

    Lab `a` with a node `b-c` and lab `a-b` with a node `c` would want the same
    name, and taking one down would break the other.
    """
    taken = sorted(set(wanted) & set(netns.names()))
    if taken:
        hint = "name this lab otherwise (--name), or `muslin lab down --all`"
        raise MuslinError(f"lab {lab}: namespace {', '.join(taken)} exists already", hint=hint)
