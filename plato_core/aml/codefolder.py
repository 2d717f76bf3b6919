"""The code of a job: what of a folder goes up, and a folder that has nothing else.

The rules are the SDK's, which looks at every file of a folder four times for one job, also below folders that are left
out as a whole. A project's virtual environment is often such a folder, of 70 000 files: `benchmarks/code_folder.py`.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from plato_core.errors import AmlError, ConfigError

if TYPE_CHECKING:
    from azure.ai.ml._utils._pathspec import GitWildMatchPattern

_RULES = (".amlignore", ".gitignore")  # the first that is there
_NAME = "set code to the project's own folder"
_SHOWN = 5


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
        """Look through a folder. Links in it are followed; what nobody here may read stays behind.

        Raises:
            ConfigError: It is none that can go up.
        """
        code = code_folder(folder)
        walk = _Walk(code, rules := _Rules.of(code))
        walk.look("", "", frozenset({str(code)}))
        if walk.dangling:
            more = f" and {len(walk.dangling) - _SHOWN} more" if len(walk.dangling) > _SHOWN else ""
            raise ConfigError(
                f"code: links that lead to nothing: {', '.join(walk.dangling[:_SHOWN])}{more} in {code}; "
                "remove them, or name them in .amlignore"
            )
        if not walk.files:
            by = f", all is left out by {rules.name}" if rules.name else ""
            raise ConfigError(f"code: nothing of {code} would be uploaded{by}; {_NAME}")
        return cls(code, walk.files, walk.left_out, rules.name)

    @contextlib.contextmanager
    def gathered(self) -> Iterator[Path]:
        """A folder of the same name with links to what goes up, and nothing else; it is removed with the block.

        Raises:
            AmlError: It cannot be made.
        """
        with contextlib.ExitStack() as made:
            try:
                # That it cannot be removed is no reason to say that what was done in it has failed.
                above = tempfile.TemporaryDirectory(prefix="plato-code-", ignore_cleanup_errors=True)
                there = Path(made.enter_context(above), self.folder.name)
                self._link(there)
            except OSError as error:
                raise AmlError(
                    f"the code cannot be gathered in a temporary folder ({error}); make room, or set TMPDIR to another"
                ) from None
            yield there

    def _link(self, there: Path) -> None:
        for path in self.files:
            link = there / path
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to(self.folder / path)
        if self.rules:
            # The SDK reads them again. Of a link it takes them to be the other folder's, and where they are not there,
            # as they may leave out themselves, it takes others.
            (copy := there / self.rules).unlink(missing_ok=True)
            shutil.copyfile(self.folder / self.rules, copy)


@dataclass(frozen=True)
class _Rules:
    """What stays behind.

    Attributes:
        name: Of the file in the folder that says so; empty if there is none.
        patterns: One a line; later ones go over earlier ones.
    """

    name: str
    patterns: tuple[GitWildMatchPattern, ...]

    @classmethod
    def of(cls, folder: Path) -> _Rules:
        from azure.ai.ml._utils._pathspec import GitWildMatchPattern

        name = next((name for name in _RULES if (folder / name).exists()), "")
        try:
            lines = (folder / name).read_text("utf-8-sig").split("\n") if name else []
            return cls(name, tuple(GitWildMatchPattern(line.rstrip()) for line in lines))
        except (OSError, ValueError) as error:  # a line that is no pattern is a ValueError
            said = error.strerror if isinstance(error, OSError) else error
            raise ConfigError(f"code: {folder / name} cannot be read ({said}); mend it") from None

    def leave_out(self, path: str) -> bool:
        """Whether a file stays behind."""
        last = next((one for one in reversed(self.patterns) if one.match_file(path) is not None), None)
        return last is not None and bool(last.include)

    def name_folder(self, path: str) -> bool:
        """Whether a line leaves out all that is below a folder, whatever later lines take in again."""
        return any(one.include and _matches_below(one, path) for one in self.patterns)

    def leave_out_folder(self, path: str) -> bool:
        """Whether no file below a folder can go up."""
        for one in reversed(self.patterns):
            if one.include is False:
                return False  # it may take something in again, somewhere below
            if one.include and _matches_below(one, path):
                return True
        return False


def _matches_below(pattern: GitWildMatchPattern, folder: str) -> bool:
    """Whether a pattern matches every path below a folder: it has come to the slash after which it takes anything."""
    found = pattern.match_file(f"{folder}/")
    return found is not None and found.match.groupdict().get("ps_d") is not None


class _Walk:
    """One look through a folder."""

    def __init__(self, folder: Path, rules: _Rules) -> None:
        self._folder, self._rules = folder, rules
        self.files: dict[str, int] = {}
        self.dangling: list[str] = []
        self.left_out = 0

    def look(self, inner: str, real: str, above: frozenset[str]) -> None:
        """Look at what is in one folder.

        Args:
            inner: Its path in the whole; ends with a slash unless it is empty.
            real: The same without links. What the rules say of either path counts: one may lead to where something is
                left out, and the other may be a link that is.
            above: It and the folders that it is in, by their real paths.
        """
        try:
            with os.scandir(self._folder / inner) as entries:
                found = sorted(entries, key=lambda entry: entry.name)
        except (PermissionError, FileNotFoundError):  # is nothing for whoever is here, or is not there any more
            self.left_out += 1
            return
        for entry in found:
            path, really = inner + entry.name, real + entry.name
            if self._rules.leave_out(path) and (entry.is_symlink() or not entry.is_dir()):
                self.left_out += 1
            elif _is(entry.is_dir):
                self._look_below(path, really, above)
            elif self._rules.leave_out(really):
                self.left_out += 1
            elif _is(entry.is_file):
                self._add(path, entry)
            elif entry.is_symlink():
                self.dangling.append(path)
            else:
                self.left_out += 1  # a socket or a pipe

    def _look_below(self, path: str, really: str, above: frozenset[str]) -> None:
        there = os.path.realpath(self._folder / path)
        if os.path.islink(self._folder / path):
            really = os.path.relpath(there, self._folder)
        back = there in above
        leave_out = self._rules.name_folder if back else self._rules.leave_out_folder
        if leave_out(path) or leave_out(really):
            self.left_out += 1
        elif back:
            raise ConfigError(
                f"code: the link {self._folder / path} leads back to a folder that holds it, so the upload would not "
                "end; remove it, or name it in .amlignore"
            )
        else:
            self.look(f"{path}/", f"{really}/", above | {there})

    def _add(self, path: str, entry: os.DirEntry[str]) -> None:
        try:
            path.encode()
        except UnicodeEncodeError:
            raise ConfigError(
                f"code: {path!r} in {self._folder} has a name that is not UTF-8; rename it, or name it in .amlignore"
            ) from None
        with contextlib.suppress(FileNotFoundError):  # it is not there any more
            self.files[path] = entry.stat().st_size


def _is(kind: Callable[[], bool]) -> bool:
    """Whether an entry is of a kind; it is of none if it leads to where nobody here may look, or to itself."""
    try:
        return kind()
    except OSError:
        return False
