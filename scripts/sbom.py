"""Print what a Python environment consists of, as a CycloneDX 1.5 document.

    python scripts/sbom.py                                  this interpreter's own
    python scripts/sbom.py --path ROOT/opt/muslin           a venv elsewhere, such as an image's

Name, version and licence of every distribution, from its own metadata; nothing
is asked of any registry.  The same environment gives the same document, to the
byte, so there is no time and no serial number in it.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Iterable, Iterator
from importlib.metadata import Distribution, distributions
from pathlib import Path
from typing import Any

Json = dict[str, Any]


def document(found: Iterable[Distribution], *, subject: str = "muslin") -> Json:
    """The whole document; `subject` is what the others are components of, if it is there."""
    components = {c["bom-ref"]: c for c in map(component, found)}
    about = next((c for c in components.values() if c["name"] == subject), None)
    made: Json = {"bomFormat": "CycloneDX", "specVersion": "1.5", "version": 1}
    if about is not None:
        made["metadata"] = {"component": {**about, "type": "application"}}
    made["components"] = [
        components[ref] for ref in sorted(components) if components[ref] is not about
    ]
    return made


def component(found: Distribution) -> Json:
    """One distribution."""
    name = normalised(found.metadata["Name"])
    ref = f"pkg:pypi/{name}@{found.version}"
    made: Json = {
        "type": "library",
        "bom-ref": ref,
        "name": name,
        "version": found.version,
        "purl": ref,
    }
    if licences := list(licences_of(found)):
        made["licenses"] = licences
    return made


def licences_of(found: Distribution) -> Iterator[Json]:
    """An SPDX expression where the distribution has one (PEP 639), else its own words."""
    expression = found.metadata.get("License-Expression")
    if expression:
        yield {"expression": expression}
        return
    classified = [
        c.rpartition(" :: ")[2]
        for c in found.metadata.get_all("Classifier") or ()
        if c.startswith("License :: ")
    ]
    text = (found.metadata.get("License") or "").strip().partition("\n")[0]
    for words in classified or [text]:
        if words and words != "UNKNOWN":
            yield {"license": {"name": words[:200]}}


def normalised(name: str) -> str:
    """As package URLs have it (PEP 503)."""
    return re.sub(r"[-_.]+", "-", name).lower()


def of(path: Path | None) -> Iterator[Distribution]:
    """The distributions of a venv, or of this interpreter."""
    if path is None:
        return iter(distributions())
    places = sorted(str(p) for p in path.glob("lib/python3*/site-packages"))
    if not places:
        raise SystemExit(f"{path}: no lib/python3*/site-packages in it")
    return iter(distributions(path=places))


def main(arguments: list[str] | None = None) -> int:
    """Write the document to standard output."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--path", type=Path, help="a venv; this interpreter's own unless given")
    json.dump(document(of(parser.parse_args(arguments).path)), sys.stdout, indent=2)
    sys.stdout.write("\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
