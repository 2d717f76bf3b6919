"""Holding files that somebody else is about to delete."""

import os
import shutil
from pathlib import Path


def hold_file(src: Path, dst: Path) -> None:
    """Make ``dst`` hold what ``src`` holds now.

    A hard link, or a copy where the file system has no such link.
    Only for files that are replaced and never changed in place; take a copy of one that grows.

    Raises:
        OSError: ``src`` is missing, or there is no room for the copy.
    """
    try:
        os.link(src, dst)
    except FileNotFoundError:
        raise
    except OSError:  # another file system, or one without hard links
        shutil.copy2(src, dst)


def hold_tree(src: Path, dst: Path) -> None:
    """Make ``dst`` a directory that holds all files under ``src`` and outlives it.

    ``dst`` appears under its name only when it is complete; one that stands there already is replaced.

    Raises:
        OSError: ``src`` is missing or there is no room for a copy; nothing is left at ``dst`` then.
    """
    partial = dst.with_name(f".{dst.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        for folder, _, names in os.walk(src, onerror=_raise):
            target = partial / Path(folder).relative_to(src)
            target.mkdir(exist_ok=True)
            for name in names:
                hold_file(Path(folder, name), target / name)
        shutil.rmtree(dst, ignore_errors=True)
        partial.rename(dst)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise


def _raise(error: OSError) -> None:
    raise error
