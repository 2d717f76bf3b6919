import os
from pathlib import Path

import pytest

from plato_core.tracking.localstore import get_files, put_files


@pytest.fixture
def source(tmp_path: Path) -> Path:
    folder = tmp_path / "source"
    (folder / "a" / "b").mkdir(parents=True)
    (folder / "top.txt").write_bytes(b"top")
    (folder / "a" / "b" / "large.bin").write_bytes(os.urandom(300_000))
    (folder / "empty").write_bytes(b"")
    return folder


PATHS = ["top.txt", "a/b/large.bin", "empty"]


def contents(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_files_are_copied_to_the_same_paths(source: Path, tmp_path: Path) -> None:
    put_files(source, tmp_path / "target", PATHS)
    assert contents(tmp_path / "target") == contents(source)
    assert (tmp_path / "target" / "top.txt").stat().st_ino != (source / "top.txt").stat().st_ino


def test_what_stands_there_is_replaced_and_never_changed_in_place(source: Path, tmp_path: Path) -> None:
    target = tmp_path / "target"
    put_files(source, target, PATHS)
    os.link(target / "top.txt", tmp_path / "before")
    (source / "top.txt").write_bytes(b"other")
    put_files(source, target, PATHS)
    assert contents(target) == contents(source)
    assert (tmp_path / "before").read_bytes() == b"top"


def test_a_missing_file_is_an_error_to_put_and_left_out_of_what_is_got(source: Path, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        put_files(source, tmp_path / "put", ["gone"])
    os.mkfifo(source / "pipe")
    get_files(source, tmp_path / "got", ["gone", "top.txt/under", "a", "pipe", "top.txt"])
    assert contents(tmp_path / "got") == {"top.txt": b"top"}
