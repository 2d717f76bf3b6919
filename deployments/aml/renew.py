"""Writes what the job's environment installs from what the project itself does: `python deployments/aml/renew.py`.

Azure ML builds the image from this folder alone, so the pinned set of the project's root stands here once more.
"""

from __future__ import annotations

import tomllib
from pathlib import Path

FOLDER = Path(__file__).parent
ROOT = FOLDER.parents[1]
_HEADER = "# From pyproject.toml, written by renew.py.\n"


def contents() -> dict[str, str]:
    """Returns what the generated files are to hold, by name."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    return {
        "constraints.txt": (ROOT / "constraints.txt").read_text(),
        "requirements.txt": _HEADER + "".join(f"{one}\n" for one in project["dependencies"]),
    }


if __name__ == "__main__":
    for name, text in contents().items():
        (FOLDER / name).write_text(text)
