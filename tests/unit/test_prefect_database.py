"""Where Prefect's database made beforehand is used, and where not."""

import os
import sys
from pathlib import Path

import pytest

from plato_core.prefect_database import NAME, made_beforehand, put_in_place


@pytest.fixture
def made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(sys, "prefix", str(tmp_path / "venv"))
    path = made_beforehand()
    path.parent.mkdir(parents=True)
    path.write_bytes(b"tables")
    return path


def test_a_new_home_gets_a_copy(made: Path, tmp_path: Path) -> None:
    home = tmp_path / "new" / "home"

    put_in_place(home)

    assert [path.name for path in home.iterdir()] == [NAME]
    assert (home / NAME).read_bytes() == b"tables"
    (home / NAME).write_bytes(b"runs")
    assert made.read_bytes() == b"tables"


def test_a_database_that_is_there_is_left_alone(made: Path, tmp_path: Path) -> None:
    (tmp_path / NAME).write_bytes(b"years of runs")

    put_in_place(tmp_path)

    assert (tmp_path / NAME).read_bytes() == b"years of runs"


def test_where_none_was_made_prefect_is_left_to_it(made: Path, tmp_path: Path) -> None:
    made.unlink()

    put_in_place(tmp_path / "home")

    assert not (tmp_path / "home").exists()


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_home_that_cannot_be_written_is_for_prefect_to_complain_of(made: Path, tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    try:
        put_in_place(tmp_path / "home")
    finally:
        tmp_path.chmod(0o700)


def test_another_version_of_prefect_has_another(made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("plato_core.prefect_database.version", lambda name: "99.0")

    assert made_beforehand() != made
