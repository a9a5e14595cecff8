"""scripts/sbom.py: what is installed, told as others read it."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from importlib.metadata import distributions
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "scripts" / "sbom.py"


def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("sbom", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


SBOM = script()


def installed(venv: Path, name: str, *metadata: str) -> None:
    place = venv / "lib" / "python3.11" / "site-packages" / f"{name}-1.dist-info"
    place.mkdir(parents=True)
    words = ["Metadata-Version: 2.4", f"Name: {name}", "Version: 1.0", *metadata]
    (place / "METADATA").write_text("\n".join(words) + "\n")


def test_everything_installed_is_in_it_once() -> None:
    made = SBOM.document(distributions())
    wanted = {SBOM.normalised(d.metadata["Name"]) for d in distributions()}
    names = [c["name"] for c in made["components"]]
    assert made["metadata"]["component"]["name"] == "muslin"
    assert set(names) == wanted - {"muslin"}
    assert len(names) == len(set(names))


def test_each_licence_is_told_in_the_best_words_there_are(tmp_path: Path) -> None:
    installed(tmp_path, "a", "License-Expression: MIT OR Apache-2.0", "License: other words")
    installed(tmp_path, "b", "Classifier: License :: OSI Approved :: BSD License")
    installed(tmp_path, "c", "License: A very own licence")
    installed(tmp_path, "d", "License: UNKNOWN")
    found = SBOM.document(SBOM.of(tmp_path))["components"]
    assert [c.get("licenses") for c in found] == [
        [{"expression": "MIT OR Apache-2.0"}],
        [{"license": {"name": "BSD License"}}],
        [{"license": {"name": "A very own licence"}}],
        None,
    ]


def test_names_are_those_of_package_urls(tmp_path: Path) -> None:
    installed(tmp_path, "Some_Package.Name")
    [found] = SBOM.document(SBOM.of(tmp_path))["components"]
    assert found["purl"] == "pkg:pypi/some-package-name@1.0" == found["bom-ref"]


def test_the_same_environment_gives_the_same_bytes() -> None:
    asked = [sys.executable, str(SCRIPT)]
    first, second = (subprocess.run(asked, capture_output=True, check=True).stdout for _ in "12")
    assert first == second
    assert json.loads(first)["specVersion"] == "1.5"


def test_a_place_without_packages_is_named(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="no lib/python3"):
        SBOM.of(tmp_path)
