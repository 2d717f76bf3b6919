"""What of a folder becomes a job's code: what the SDK would take itself, found without looking below all else."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import pytest
from azure.ai.ml._utils._asset_utils import get_ignore_file, get_upload_files_from_folder
from hypothesis import given
from hypothesis import strategies as st

from plato_core.aml.codefolder import CodeFolder
from plato_core.errors import ConfigError

NAMES = st.sampled_from(["a", "b", "ab", "a.py", "b.log", ".a"])
PATHS = st.lists(NAMES, min_size=1, max_size=3).map("/".join)
PATTERNS = st.one_of(
    PATHS,
    PATHS.map("/{}".format),
    PATHS.map("{}/".format),
    PATHS.map("{}/*".format),
    PATHS.map("{}/**".format),
    PATHS.map("**/{}".format),
    st.sampled_from(["*.log", "*", "**", "a?", "[!a]*", "a*", "# a", "", "/", "**/", "a/**/b", "*/b"]),
)
RULES = st.lists(st.builds(str.__add__, st.sampled_from(["", "", "!"]), PATTERNS), max_size=5)


def write(folder: Path, *paths: str) -> None:
    for path in paths:
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_text(path)


def by_the_sdk(folder: Path) -> list[str]:
    return sorted(path for _, path in get_upload_files_from_folder(folder, ignore_file=get_ignore_file(folder)))


@given(paths=st.sets(PATHS, min_size=1, max_size=8), rules=RULES, file=st.sampled_from([".amlignore", ".gitignore"]))
def test_what_goes_up_is_what_the_sdk_would_take(paths: set[str], rules: list[str], file: str) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        above = {path for path in paths if not any(other.startswith(f"{path}/") for other in paths)}
        write(folder, "kept", *above)
        (folder / ".gitignore").write_text("*")  # not in force beside the other
        (folder / file).write_text("\n".join([*rules, "!kept", ""]))
        found = CodeFolder.read(folder)
        assert sorted(found.files) == by_the_sdk(folder)
        assert found.rules == file
        with found.gathered() as there:
            assert there.name == folder.name
            assert by_the_sdk(there) == sorted(found.files)
            assert {path: (there / path).read_bytes() for path in found.files} == {
                path: (folder / path).read_bytes() for path in found.files
            }
        assert not there.parent.exists()


def test_below_a_folder_that_is_left_out_nothing_is_looked_at(tmp_path: Path) -> None:
    write(tmp_path, "flow.py", "inner/.venv/bin/python", "inner/more.py", "logs/a.log")
    (tmp_path / ".amlignore").write_text(".venv/\n*.log\n.amlignore\n")
    (tmp_path / "inner" / ".venv" / "itself").symlink_to(tmp_path)  # one that does so would never come to an end
    found = CodeFolder.read(tmp_path)
    assert sorted(found.files) == ["flow.py", "inner/more.py"]
    assert found.left_out == 3  # .venv, a.log and .amlignore


def test_linked_files_and_folders_go_up_as_if_they_stood_there(tmp_path: Path) -> None:
    write(tmp_path, "elsewhere/shared/one.py", "elsewhere/two.py", "code/flow.py")
    (tmp_path / "code" / "shared").symlink_to(tmp_path / "elsewhere" / "shared")
    (tmp_path / "code" / "two.py").symlink_to("../elsewhere/two.py")
    with CodeFolder.read(tmp_path / "code").gathered() as there:
        assert by_the_sdk(there) == ["flow.py", "shared/one.py", "two.py"]
        assert (there / "shared" / "one.py").read_text() == "elsewhere/shared/one.py"


@pytest.mark.parametrize(
    ("link", "target", "said"),
    [
        ("inner/link", "..", "leads back to a folder that holds it"),
        ("inner/link", "../other", "leads back to a folder that holds it"),  # which has one to `inner`
        ("inner/link", "gone", "links that lead to nothing: inner/link"),
    ],
)
def test_links_with_which_an_upload_would_fail_are_named(tmp_path: Path, link: str, target: str, said: str) -> None:
    write(tmp_path, "inner/a.py", "other/b.py")
    (tmp_path / link).symlink_to(target)
    (tmp_path / "other" / "back").symlink_to("../inner")
    with pytest.raises(ConfigError, match=said) as caught:
        CodeFolder.read(tmp_path)
    assert str(caught.value).startswith("code: ")
    assert "name " in str(caught.value).partition("; ")[2]

    (tmp_path / ".amlignore").write_text("link\nback\n")
    assert sorted(CodeFolder.read(tmp_path).files) == [".amlignore", "inner/a.py", "other/b.py"]


def test_what_is_neither_file_nor_folder_stays_behind(tmp_path: Path) -> None:
    write(tmp_path, "flow.py")
    os.mkfifo(tmp_path / "pipe")
    assert list(CodeFolder.read(tmp_path).files) == ["flow.py"]


def test_a_folder_of_which_nothing_goes_up_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"would be uploaded; set code to the project's own folder"):
        CodeFolder.read(tmp_path)
    write(tmp_path, "flow.py")
    (tmp_path / ".amlignore").write_text("*\n")
    with pytest.raises(ConfigError, match=r"would be uploaded, all is left out by \.amlignore; set code"):
        CodeFolder.read(tmp_path)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read anything")
def test_a_folder_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    write(tmp_path, "flow.py", "closed/a.py")
    (tmp_path / "closed").chmod(0)
    try:
        with pytest.raises(ConfigError, match=r"closed cannot be read \(Permission denied\); make it readable"):
            CodeFolder.read(tmp_path)
    finally:
        (tmp_path / "closed").chmod(0o700)
