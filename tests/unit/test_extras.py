"""What is said where an extra is not installed, and that nothing needs one unasked."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Callable, Iterator
from importlib.metadata import Distribution, distribution, packages_distributions
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from muslin import extras
from muslin.agent.supervise import EX_CONFIG

ROOT = Path(__file__).resolve().parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
OPTIONAL: dict[str, list[str]] = PROJECT["optional-dependencies"]

Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.mark.parametrize("extra", sorted(extras.MODULES))
def test_the_modules_are_those_of_the_packages(extra: str) -> None:
    owners = packages_distributions()
    packages = {Requirement(text).name.lower() for text in OPTIONAL[extra]}
    found = {o.lower().replace("_", "-") for m in extras.MODULES[extra] for o in owners[m]}
    assert found == packages


def test_every_extra_of_the_project_is_known_and_developers_have_all() -> None:
    assert OPTIONAL.keys() - {"dev"} == extras.MODULES.keys()
    [own] = [r for r in map(Requirement, OPTIONAL["dev"]) if r.name == "muslin"]
    assert own.extras == extras.MODULES.keys()


# ── an environment as `pip install muslin` makes it, of what is installed here ──────────────────


def closure(requirements: list[str]) -> Iterator[Distribution]:
    """The distributions that pip would install for these."""
    asked, todo = set[str](), [(r, frozenset(r.extras)) for r in map(Requirement, requirements)]
    while todo:
        one, of = todo.pop()
        name = re.sub(r"[-_.]+", "-", one.name).lower()
        if f"{name}{sorted(of)}" in asked:
            continue
        asked.add(f"{name}{sorted(of)}")
        found = distribution(one.name)
        yield found
        for text in found.requires or ():
            more = Requirement(text)
            if not more.marker or any(more.marker.evaluate({"extra": e}) for e in ("", *of)):
                todo.append((more, frozenset(more.extras)))


@pytest.fixture
def muslin(tmp_path: Path, request: pytest.FixtureRequest) -> Run:
    """Run a module there."""
    site = tmp_path / "site"
    site.mkdir()
    (site / "muslin").symlink_to(ROOT / "src" / "muslin")
    given = [r for extra in getattr(request, "param", ()) for r in OPTIONAL[extra]]
    for found in closure([*PROJECT["dependencies"], *given]):
        for top in {f.parts[0] for f in found.files or () if f.parts[0] != ".."}:
            if not (site / top).exists():
                (site / top).symlink_to(str(found.locate_file(top)))

    def run(module: str, *words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-S", "-m", module, *words],
            env={"PATH": os.environ["PATH"], "PYTHONPATH": str(site), "HOME": str(tmp_path)},
            capture_output=True, text=True, check=False, cwd=tmp_path,
        )  # fmt: skip

    return run


def test_a_machine_of_its_own_needs_none(muslin: Run, tmp_path: Path) -> None:
    done = muslin("muslin", "networks", "list", "--store", f"sqlite:{tmp_path}/store.db")
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("extra", "words"),
    [
        ("etcd", ("networks", "list", "--store", "etcd://127.0.0.1:1")),
        ("kubernetes", ("networks", "list", "--store", "kubernetes:/nowhere")),
        ("kubernetes", ("controller",)),
        ("kubernetes", ("install",)),
    ],
)
def test_a_command_names_the_extra_that_it_needs(
    muslin: Run, extra: str, words: tuple[str, ...]
) -> None:
    done = muslin("muslin", *words)
    assert done.returncode == 1
    assert f"needs the extra '{extra}'; not installed: {extras.MODULES[extra][0]}" in done.stderr
    assert f"pip install 'muslin[{extra}]'" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("extra", "store"), [("etcd", "etcd://127.0.0.1:1"), ("kubernetes", "kubernetes:/nowhere")]
)
def test_an_agent_is_refused_with_it_and_not_started_again(
    muslin: Run, tmp_path: Path, extra: str, store: str
) -> None:
    file = tmp_path / "muslin.toml"
    file.write_text(f'node = "n"\nstore = "{store}"\nstate_dir = "{tmp_path}/s"\nrun_dir = "/r"\n')
    done = muslin("muslin.agent.main", "sync", "--config", str(file))
    assert done.returncode == EX_CONFIG
    assert f"muslin[{extra}]" in done.stdout + done.stderr


@pytest.mark.parametrize("muslin", [("etcd",)], indirect=True, ids="+".join)
def test_with_etcd_alone_etcd_is_asked(muslin: Run) -> None:
    done = muslin("muslin", "networks", "list", "--store", "etcd://127.0.0.1:1")
    assert "extra" not in done.stderr
    assert "etcd 127.0.0.1:1" in done.stderr
    other = muslin("muslin", "networks", "list", "--store", "kubernetes:/nowhere")
    assert "muslin[kubernetes]" in other.stderr


@pytest.mark.parametrize("muslin", [("kubernetes",)], indirect=True, ids="+".join)
def test_with_kubernetes_alone_the_kubeconfig_is_looked_for(muslin: Run) -> None:
    done = muslin("muslin", "networks", "list", "--store", "kubernetes:/nowhere")
    assert "extra" not in done.stderr
    assert "/nowhere" in done.stderr
