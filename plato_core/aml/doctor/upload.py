"""The code folder: what of it a job's upload would take along, by the SDK's own rules."""

from __future__ import annotations

import fnmatch
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from plato_core.aml.doctor.case import Case
from plato_core.aml.doctor.finding import Finding, broken, fine, warned
from plato_core.report.text import counted

# Of a job's code ("snapshot"), from Azure ML's documentation ("where to save and write files for experiments").
_MOST_FILES, _MOST_BYTES = 2000, 300 * 2**20
_LARGE = 10 * 2**20
_SHOWN = 5
_NAME = "set code to the project's own folder"
_SECRET = (
    ".env", ".env.*", "*.env", "*.key", "*.pfx", "*.p12", "*.jks", "*.kdbx", "id_rsa", "id_dsa", "id_ecdsa",
    "id_ed25519", ".netrc", "_netrc", ".pypirc", ".git-credentials", "credentials", "credentials.json", "prefect.toml",
    "profiles.toml", "secrets.json", "secrets.toml", "secrets.yaml", "secrets.yml", "accesstokens.json",
    "service_principal*.json", "*.publishsettings",
)  # fmt: skip
_HARMLESS = ("*.example", "*.sample", "*.template", "*.dist")
_PEM_READ = 65536


@dataclass(frozen=True)
class Upload:
    """What would be uploaded.

    Attributes:
        files: Sizes in bytes by their paths in the folder.
        dangling: Links among them that lead to nothing.
        left_out: How many files stay behind.
        rules: The file that says which; empty if none does.
    """

    files: dict[str, int]
    dangling: tuple[str, ...]
    left_out: int
    rules: str


def code(case: Case) -> Finding:
    """See how much goes up."""
    folder = Path(case.settings.code).expanduser()
    if not folder.is_dir():
        return broken(f"there is no folder {case.settings.code!r} here ({Path.cwd()})", _NAME)
    if folder.resolve() in (Path.home(), Path("/")):
        return broken(f"{folder.resolve()} would be uploaded whole", _NAME)
    loop = next(_loops(folder), None)
    if loop is not None:
        return broken(
            f"the link {loop} leads back to a folder that holds it, so the upload would not end",
            "remove the link, also where it is ignored: the SDK follows it all the same",
        )
    case.upload = found = survey(folder)
    total = sum(found.files.values())
    kept = (
        f"{found.left_out} left out by {found.rules}" if found.rules else "no .amlignore or .gitignore leaves out any"
    )
    said = f"{counted(len(found.files), 'file')}, {total / 2**20:.1f} MB of {folder.resolve()}; {kept}"
    large = sorted((path for path, size in found.files.items() if size > _LARGE), key=lambda path: -found.files[path])
    shown = [f"{path} ({found.files[path] / 2**20:.0f} MB)" for path in large[:_SHOWN]]
    if found.dangling:
        return broken(
            f"links that lead to nothing, with which an upload ends: {', '.join(found.dangling[:_SHOWN])}",
            "remove them, or name them in .amlignore",
        )
    if not found.files:
        return broken(said, f"{_NAME}, or let .amlignore leave out less")
    if len(found.files) > _MOST_FILES or total > _MOST_BYTES:
        return warned(
            f"{said}; Azure ML documents a limit of {_MOST_FILES} files and {_MOST_BYTES // 2**20} MB",
            "name what no job needs in .amlignore" + (f", such as {', '.join(shown)}" if shown else ""),
        )
    if shown:
        return warned(f"{said}; large ones: {', '.join(shown)}", "name them in .amlignore if no job needs them")
    return fine(said)


def private(case: Case) -> Finding:
    """See whether something would go up that is nobody else's business: all who use the workspace can read it."""
    folder, found = Path(case.settings.code).expanduser(), case.upload
    assert found is not None
    secret = sorted(path for path in found.files if is_secret(folder / path))
    if secret:
        more = f" and {len(secret) - _SHOWN} more" if len(secret) > _SHOWN else ""
        return broken(
            f"{', '.join(secret[:_SHOWN])}{more} would be uploaded, for all who use the workspace to read",
            f"add to .amlignore: {' '.join(dict.fromkeys(PurePosixPath(path).name for path in secret[:_SHOWN]))}",
        )
    named = sorted(path for path in found.files if _names_a_workspace(folder / path))
    if named:
        return warned(f"{', '.join(named)} would be uploaded: no secret, but your ids", "add config.json to .amlignore")
    return fine("nothing that looks like a key or a password would be uploaded")


def survey(folder: Path) -> Upload:
    """Return what the SDK would upload of a folder: the same walk and the same rules."""
    from azure.ai.ml._utils._asset_utils import get_ignore_file, traverse_directory

    rules = get_ignore_file(folder)
    files: dict[str, int] = {}
    dangling: list[str] = []
    seen = 0
    for root, _, names in os.walk(folder, followlinks=True):
        seen += len(names)
        inner = Path(root).relative_to(folder).as_posix()
        for local, path in traverse_directory(root, names, prefix=inner, ignore_file=rules):
            there = Path(local).exists()
            files[path] = Path(local).stat().st_size if there else 0
            dangling += [] if there else [path]
    return Upload(files, tuple(dangling), seen - len(files), Path(rules.path).name if rules.exists() else "")


def is_secret(file: Path) -> bool:
    """Say whether a file's name, or a certificate's content, is one that secrets have."""
    name = file.name.lower()
    if any(fnmatch.fnmatch(name, pattern) for pattern in _HARMLESS):
        return False
    if name.endswith(".pem"):
        try:
            with file.open("rb") as content:
                return b"PRIVATE KEY" in content.read(_PEM_READ)
        except OSError:
            return True
    return any(fnmatch.fnmatch(name, pattern) for pattern in _SECRET)


def _loops(folder: Path) -> Iterator[Path]:
    for root, names, _ in os.walk(folder):
        for name in names:
            link = Path(root, name)
            if link.is_symlink() and link.parent.resolve().is_relative_to(link.resolve()):
                yield link


def _names_a_workspace(file: Path) -> bool:
    if file.name != "config.json":
        return False
    try:
        return "subscription_id" in json.loads(file.read_text("utf-8-sig"))
    except (OSError, ValueError, TypeError):
        return False
