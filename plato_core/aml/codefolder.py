"""The code of a job: what of a folder goes up, by the SDK's own rules, and a folder that has nothing else.

The SDK looks at every file of a folder, four times for one job, also below folders that are left out as a whole. A
project's virtual environment is often such a folder, of 70 000 files: see `benchmarks/code_folder.py`.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from plato_core.errors import ConfigError

if TYPE_CHECKING:
    from azure.ai.ml._utils._asset_utils import IgnoreFile

_SHOWN = 5
# Of what a pattern matches below a folder, it matches all if it matches these; no name in use is like them.
_INSIDE = ("", "\x01", "\x01/\x01")
_NAME = "set code to the project's own folder"


def code_folder(folder: Path) -> Path:
    """Return a folder in full, without links.

    Raises:
        ConfigError: It is not there, or is none whose files belong together.
    """
    code = folder.expanduser()
    if not code.is_dir():
        raise ConfigError(f"code: there is no folder {str(folder)!r} on this machine ({Path.cwd()}); {_NAME}")
    code = code.resolve()
    if code in (Path.home(), Path("/")):
        raise ConfigError(f"code: {code} would be uploaded whole; {_NAME}")
    return code


@dataclass(frozen=True)
class CodeFolder:
    """What of a folder goes up.

    Attributes:
        folder: Which, without links.
        files: Sizes in bytes by their paths in the folder.
        left_out: How many entries stay behind, a folder that does so as a whole being one.
        rules: The file that says which; empty if none does.
    """

    folder: Path
    files: dict[str, int]
    left_out: int
    rules: str

    @classmethod
    def read(cls, folder: Path) -> CodeFolder:
        """Look through a folder; links in it are followed.

        Raises:
            ConfigError: It is none that can go up.
        """
        code = code_folder(folder)
        walk = _Walk(code)
        try:
            walk.look("", frozenset({str(code)}))
        except OSError as error:
            raise ConfigError(
                f"code: {error.filename} cannot be read ({error.strerror}); make it readable, or name it in .amlignore"
            ) from None
        if walk.dangling:
            more = f" and {len(walk.dangling) - _SHOWN} more" if len(walk.dangling) > _SHOWN else ""
            raise ConfigError(
                f"code: links that lead to nothing: {', '.join(walk.dangling[:_SHOWN])}{more} in {code}; "
                "remove them, or name them in .amlignore"
            )
        rules = Path(walk.rules.path).name if walk.rules.exists() else ""
        if not walk.files:
            raise ConfigError(
                f"code: nothing of {code} would be uploaded{f', all is left out by {rules}' if rules else ''}; {_NAME}"
            )
        return cls(code, walk.files, walk.left_out, rules)

    @contextlib.contextmanager
    def gathered(self) -> Iterator[Path]:
        """A folder of the same name with links to what goes up, and nothing else; it is removed with the block."""
        with tempfile.TemporaryDirectory(prefix="plato-code-") as above:
            there = Path(above, self.folder.name)
            for path in self.files:
                link = there / path
                link.parent.mkdir(parents=True, exist_ok=True)
                link.symlink_to(self.folder / path)
            if self.rules:
                # The SDK reads them again; of a link it takes them to be the other folder's, and where they are not
                # there, as they may leave out themselves, it takes others.
                (copy := there / self.rules).unlink(missing_ok=True)
                shutil.copyfile(self.folder / self.rules, copy)
            yield there


class _Walk:
    """One look through a folder."""

    def __init__(self, folder: Path) -> None:
        from azure.ai.ml._utils._asset_utils import get_ignore_file

        self._folder = folder
        self.rules: IgnoreFile = get_ignore_file(folder)
        self._patterns = self.rules._create_pathspec()
        self.files: dict[str, int] = {}
        self.dangling: list[str] = []
        self.left_out = 0

    def look(self, inner: str, above: frozenset[str]) -> None:
        """Look at what is in one folder.

        Args:
            inner: Its path in the whole; ends with a slash unless it is empty.
            above: It and the folders that it is in, by their real paths.
        """
        with os.scandir(self._folder / inner) as entries:
            found = sorted(entries, key=lambda entry: entry.name)
        for entry in found:
            path = inner + entry.name
            if entry.is_dir():
                if self._all_left_out(path):
                    self.left_out += 1
                    continue
                real = os.path.realpath(entry.path)
                if real in above:
                    raise ConfigError(
                        f"code: the link {entry.path} leads back to a folder that holds it, so the upload would not "
                        "end; remove it, or name it in .amlignore"
                    )
                self.look(f"{path}/", above | {real})
            elif self.rules.is_file_excluded(self._folder / path):
                self.left_out += 1
            elif entry.is_file():
                self.files[path] = entry.stat().st_size
            elif entry.is_symlink():
                self.dangling.append(path)
            else:
                self.left_out += 1  # a socket or a pipe

    def _all_left_out(self, folder: str) -> bool:
        """Whether no file below a folder goes up: later lines of the rules go over earlier ones."""
        for pattern in reversed(self._patterns):
            if pattern.include is False:
                return False  # it may take something in again, somewhere below
            if pattern.include and all(pattern.match_file(f"{folder}/{inside}") is not None for inside in _INSIDE):
                return True
        return False
