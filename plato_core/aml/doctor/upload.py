"""The code folder: what of it a job's upload would take along."""

from __future__ import annotations

import fnmatch
import json
from pathlib import Path, PurePosixPath

from plato_core.aml.codefolder import CodeFolder
from plato_core.aml.doctor.case import Case
from plato_core.aml.doctor.finding import Finding, broken, fine, of_error, warned
from plato_core.errors import ConfigError
from plato_core.report.text import counted

# Of a job's code ("snapshot"), from Azure ML's documentation ("where to save and write files for experiments").
_MOST_FILES, _MOST_BYTES = 2000, 300 * 2**20
_LARGE = 10 * 2**20
_SHOWN = 5
_SECRET = (
    ".env", ".env.*", "*.env", "*.key", "*.pfx", "*.p12", "*.jks", "*.kdbx", "id_rsa", "id_dsa", "id_ecdsa",
    "id_ed25519", ".netrc", "_netrc", ".pypirc", ".git-credentials", "credentials", "credentials.json", "prefect.toml",
    "profiles.toml", "secrets.json", "secrets.toml", "secrets.yaml", "secrets.yml", "accesstokens.json",
    "service_principal*.json", "*.publishsettings",
)  # fmt: skip
_HARMLESS = ("*.example", "*.sample", "*.template", "*.dist")
_PEM_READ = 65536


def code(case: Case) -> Finding:
    """See how much goes up."""
    try:
        case.upload = found = CodeFolder.read(Path(case.settings.code))
    except ConfigError as error:
        return of_error(ConfigError(str(error).removeprefix("code: ")))
    total = sum(found.files.values())
    kept = (
        f"{found.left_out} files and folders left out by {found.rules}"
        if found.rules
        else "no .amlignore or .gitignore leaves out any"
    )
    said = f"{counted(len(found.files), 'file')}, {total / 2**20:.1f} MB of {found.folder}; {kept}"
    large = sorted((path for path, size in found.files.items() if size > _LARGE), key=lambda path: -found.files[path])
    shown = [f"{path} ({found.files[path] / 2**20:.0f} MB)" for path in large[:_SHOWN]]
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
    found = case.upload
    assert found is not None
    secret = sorted(path for path in found.files if is_secret(found.folder / path))
    if secret:
        more = f" and {len(secret) - _SHOWN} more" if len(secret) > _SHOWN else ""
        return broken(
            f"{', '.join(secret[:_SHOWN])}{more} would be uploaded, for all who use the workspace to read",
            f"add to .amlignore: {' '.join(dict.fromkeys(PurePosixPath(path).name for path in secret[:_SHOWN]))}",
        )
    named = sorted(path for path in found.files if _names_a_workspace(found.folder / path))
    if named:
        return warned(f"{', '.join(named)} would be uploaded: no secret, but your ids", "add config.json to .amlignore")
    return fine("nothing that looks like a key or a password would be uploaded")


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


def _names_a_workspace(file: Path) -> bool:
    if file.name != "config.json":
        return False
    try:
        return "subscription_id" in json.loads(file.read_text("utf-8-sig"))
    except (OSError, ValueError, TypeError):
        return False
