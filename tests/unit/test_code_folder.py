"""What of a folder becomes a job's code: what the SDK would take itself, found without looking below all else."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import pytest
from azure.ai.ml._utils._asset_utils import get_ignore_file, get_upload_files_from_folder
from hypothesis import given, settings
from hypothesis import strategies as st

from plato_core.aml.codefolder import CodeFolder
from plato_core.errors import AmlError, ConfigError

NAMES = st.sampled_from(["a", "b", "ab", "a.py", "b.log", ".a"])
PATHS = st.lists(NAMES, min_size=1, max_size=3).map("/".join)
PATTERNS = st.one_of(
    PATHS,
    PATHS.map("/{}".format),
    PATHS.map("{}/".format),
    PATHS.map("{}/*".format),
    PATHS.map("{}/**".format),
    PATHS.map("**/{}".format),
    st.sampled_from(
        ["*.log", "*", "**", "a?", "[!a]*", "a*", "# a", "", "/", "**/", "a/**/b", "*/b", "*[!a]", "a[!b]/", "*[!a]/b"]
    ),
)
RULES = st.lists(st.builds(str.__add__, st.sampled_from(["", "", "!"]), PATTERNS).filter("!".__ne__), max_size=5)


def write(folder: Path, *paths: str) -> None:
    for path in paths:
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_text(path)


def by_the_sdk(folder: Path) -> list[str]:
    return sorted(path for _, path in get_upload_files_from_folder(folder, ignore_file=get_ignore_file(folder)))


def gathered(folder: Path) -> list[str]:
    """What the SDK takes of what it is given, which is what was found."""
    found = CodeFolder.read(folder)
    with found.gathered() as there:
        assert there.name == folder.name
        assert by_the_sdk(there) == sorted(found.files)
        for path, size in found.files.items():
            assert (there / path).read_bytes() == (folder / path).read_bytes()
            assert (there / path).stat().st_size == size
    assert not there.parent.exists()
    return sorted(found.files)


@settings(deadline=None)
@given(paths=st.sets(PATHS, min_size=1, max_size=8), rules=RULES, file=st.sampled_from([".amlignore", ".gitignore"]))
def test_what_goes_up_is_what_the_sdk_would_take(paths: set[str], rules: list[str], file: str) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write(folder, "kept", *(path for path in paths if not any(other.startswith(f"{path}/") for other in paths)))
        (folder / ".gitignore").write_text("*")  # not in force beside the other
        (folder / file).write_text("\n".join([*rules, "!kept", ""]))
        assert gathered(folder) == by_the_sdk(folder)
        assert CodeFolder.read(folder).rules == file


def test_below_a_folder_that_is_left_out_nothing_is_looked_at(tmp_path: Path) -> None:
    write(tmp_path, "flow.py", "inner/.venv/bin/python", "inner/more.py", "logs/a.log")
    (tmp_path / ".amlignore").write_text(".venv/\n*.log\n.amlignore\n")
    (tmp_path / "inner" / ".venv" / "itself").symlink_to(tmp_path)  # one that does so would never come to an end
    assert gathered(tmp_path) == ["flow.py", "inner/more.py"]
    assert CodeFolder.read(tmp_path).left_out == 3  # .venv, a.log and .amlignore


def test_linked_files_and_folders_go_up_as_if_they_stood_there(tmp_path: Path) -> None:
    write(tmp_path, "elsewhere/shared/one.py", "elsewhere/two.py", "code/flow.py")
    (tmp_path / "code" / "shared").symlink_to(tmp_path / "elsewhere" / "shared")
    (tmp_path / "code" / "two.py").symlink_to("../elsewhere/two.py")
    assert gathered(tmp_path / "code") == ["flow.py", "shared/one.py", "two.py"] == by_the_sdk(tmp_path / "code")


@pytest.mark.parametrize("rule", ["outputs/", "latest", "latest/", "/latest", "run.txt"])
def test_a_link_leads_around_no_rule(tmp_path: Path, rule: str) -> None:
    write(tmp_path, "flow.py", "outputs/run/run.txt")
    (tmp_path / "latest").symlink_to("outputs/run")
    (tmp_path / ".amlignore").write_text(f"{rule}\n.amlignore\noutputs/\n")
    assert gathered(tmp_path) == ["flow.py"]


def test_rules_that_are_linked_are_those_of_the_folder(tmp_path: Path) -> None:
    write(tmp_path, "shared/rules", "code/tmp/a", "code/flow.py")
    (tmp_path / "shared" / "rules").write_text("tmp/\n")
    (tmp_path / "code" / ".amlignore").symlink_to("../shared/rules")
    assert gathered(tmp_path / "code") == [".amlignore", "flow.py"]


@pytest.mark.parametrize(
    ("link", "target", "said"),
    [
        ("inner/link", "..", "leads back to a folder that holds it"),
        ("inner/link", "../other", "leads back to a folder that holds it"),  # which has one to `inner`
        ("inner/link", "gone", "links that lead to nothing: inner/link"),
        ("inner/link", "link", "links that lead to nothing: inner/link"),
    ],
)
def test_links_with_which_an_upload_would_fail_are_named(tmp_path: Path, link: str, target: str, said: str) -> None:
    write(tmp_path, "inner/a.py", "other/b.py")
    (tmp_path / link).symlink_to(target)
    (tmp_path / "other" / "back").symlink_to("../inner")
    with pytest.raises(ConfigError, match=said) as caught:
        CodeFolder.read(tmp_path)
    assert str(caught.value).startswith("code: ")
    assert str(caught.value).endswith("in .amlignore")

    (tmp_path / ".amlignore").write_text("link\nback\n!*.py\n")
    assert gathered(tmp_path) == [".amlignore", "inner/a.py", "other/b.py"]


def test_a_link_that_leads_back_stays_behind_as_a_folder_whatever_else_goes_up(tmp_path: Path) -> None:
    write(tmp_path, "inner/a.py")
    (tmp_path / "inner" / "link").symlink_to(tmp_path)
    (tmp_path / ".amlignore").write_text("link/\n!*.py\n")
    assert gathered(tmp_path) == [".amlignore", "inner/a.py"]


def test_what_is_neither_file_nor_folder_stays_behind(tmp_path: Path) -> None:
    write(tmp_path, "flow.py")
    os.mkfifo(tmp_path / "pipe")
    assert gathered(tmp_path) == ["flow.py"]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read anything")
def test_a_folder_that_may_not_be_read_stays_behind(tmp_path: Path) -> None:
    write(tmp_path, "flow.py", "closed/a.py")
    (tmp_path / "closed").chmod(0)
    try:
        assert gathered(tmp_path) == ["flow.py"] == by_the_sdk(tmp_path)
    finally:
        (tmp_path / "closed").chmod(0o700)


def test_a_folder_of_which_nothing_goes_up_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"would be uploaded; set code to the project's own folder"):
        CodeFolder.read(tmp_path)
    write(tmp_path, "flow.py")
    (tmp_path / ".amlignore").write_text("*\n")
    with pytest.raises(ConfigError, match=r"would be uploaded, all is left out by \.amlignore; set code"):
        CodeFolder.read(tmp_path)


@pytest.mark.parametrize(("rules", "said"), [(b"\xff", "can't decode byte"), (b"!\n", "Invalid git pattern: '!'")])
def test_rules_that_cannot_be_read_are_refused(tmp_path: Path, rules: bytes, said: str) -> None:
    write(tmp_path, "flow.py")
    (tmp_path / ".amlignore").write_bytes(rules)
    with pytest.raises(ConfigError, match=rf"code: .*\.amlignore cannot be read \(.*{said}.*\); mend it"):
        CodeFolder.read(tmp_path)


def test_a_name_that_cannot_go_up_is_refused(tmp_path: Path) -> None:
    write(tmp_path, "flow.py")
    os.close(os.open(bytes(tmp_path) + b"/caf\xe9.py", os.O_CREAT))
    with pytest.raises(ConfigError, match=r"code: 'caf\\udce9.py' .* rename it"):
        CodeFolder.read(tmp_path)


def test_where_there_is_no_room_for_temporary_files_that_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path, "flow.py")
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "gone"))
    with pytest.raises(AmlError, match=r"the code cannot be gathered in .*gone.* or set TMPDIR"):
        CodeFolder.read(tmp_path).gathered().__enter__()
