"""Topology files on disk: a path, or the bare name of one that comes with the source."""

from __future__ import annotations

from pathlib import Path

from muslin.errors import MuslinError

# Examples and test beds at once, so they stand beside the source, not inside the package.
SHIPPED = Path(__file__).parents[3] / "labs"


def read(path: Path) -> str:
    """The text of a topology file; MuslinError says why it cannot be read."""
    if path.suffix == "" and len(path.parts) == 1 and not path.exists():
        shipped = SHIPPED / f"{path}.toml"
        path = shipped if shipped.exists() else path
    try:
        return path.read_text()
    except OSError as e:
        known = ", ".join(sorted(p.stem for p in SHIPPED.glob("*.toml")))
        hint = f"labs to begin with: {known}" if known else "see docs/lab.md for the format"
        raise MuslinError(f"{path}: {e.strerror}", hint=hint) from e
    except UnicodeDecodeError as e:
        raise MuslinError(f"{path}: not text: {e}") from e
