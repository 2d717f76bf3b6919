"""What a job runs in: there, and with the Ray of this machine."""

from __future__ import annotations

import re
from importlib.metadata import version
from pathlib import Path
from typing import Any

from plato_core.aml.doctor.case import Case
from plato_core.aml.doctor.finding import Finding, broken, fine, skipped, warned
from plato_core.aml.environments import MAKE, Registered
from plato_core.aml.versions import WAY_OUT
from plato_core.report.text import counted

_RAY = re.compile(r"(?im)^[\s\-\"']*ray(?:\[[\w\s,-]*\])?\s*={2,3}\s*(?P<version>[\w.+!-]+)")
_READ = (".txt", ".yaml", ".yml", ".toml", ".in")
# Of a Docker build context, from Azure ML's documentation ("resource limits and capacity").
_MOST_FILES, _MOST_BYTES = 100, 2**20


def environment(case: Case) -> Finding:
    """See whether the environment is there, and whether its Ray is the one that sweeps are submitted with."""
    named = case.settings.environment
    folder = Path(case.settings.code).expanduser() / named
    if folder.is_dir():
        return _folder(folder, named)
    found = Registered.of(named)
    if named.startswith("azureml://"):
        return warned(f"{named} is named in full, which is not looked up", "look at it in Studio, Environments")
    if found is None:
        return broken(
            f"{named!r} is neither a folder in {case.settings.code} nor like name:version or name@latest", MAKE
        )
    if not case.region:
        return skipped("the workspace is not known")
    return _registered(case, found)


def ray_of(folder: Path) -> set[str]:
    """Return the versions of Ray that the files of a folder pin."""
    files = (file for file in sorted(folder.iterdir()) if file.is_file())
    texts = (file.read_text("utf-8", "replace") for file in files if file.suffix in _READ or file.name == "Dockerfile")
    return {match["version"] for text in texts for match in _RAY.finditer(text)}


def _folder(folder: Path, named: str) -> Finding:
    if not (folder / "Dockerfile").is_file():
        return broken(f"there is no Dockerfile in {folder}", "set environment to a folder that has one")
    files = [file for file in folder.rglob("*") if file.is_file()]
    size = sum(file.stat().st_size for file in files)
    if len(files) > _MOST_FILES or size > _MOST_BYTES:
        return broken(
            f"the folder {named} has {counted(len(files), 'file')}, {size / 2**20:.1f} MB; Azure ML builds from "
            f"{_MOST_FILES} files and 1 MB at most",
            "keep in it only what its Dockerfile copies",
        )
    return _judged(f"the folder {named}, built when a job first needs it", ray_of(folder))


def _registered(case: Case, named: Registered) -> Finding:
    there = named.find(case.ml)
    if there is None:
        return broken(f"the workspace has no environment {named}; it has {named.others(case.ml)}", MAKE)
    content: Any = there.conda_file
    conda = content if isinstance(content, dict) else {}
    return _judged(f"{named.name}:{there.version} of the workspace", _ray_in(conda))


def _ray_in(conda: dict[str, Any]) -> set[str]:
    lines = []
    for one in conda.get("dependencies") or ():
        lines += one.get("pip", []) if isinstance(one, dict) else [one]
    return {match["version"] for match in _RAY.finditer("\n".join(map(str, lines)))}


def _judged(what: str, found: set[str]) -> Finding:
    here = version("ray")
    if found == {here}:
        return fine(f"{what}, with Ray {here} as here")
    if not found:
        return warned(
            f"{what}; which Ray it has cannot be told from here, and a job that finds another than {here} ends at once",
            f"see that it has ray=={here}",
        )
    return broken(f"{what}, has Ray {' and '.join(sorted(found))}, and this machine {here}", WAY_OUT)
