"""A database made beforehand is whole: Prefect's server has nothing left to do to it."""

import contextlib
import sqlite3
import sys
from pathlib import Path

import pytest

from plato_core import prefect_database
from plato_core.prefect_server import TemporaryServer


def test_prefect_takes_the_database_made_beforehand_as_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home = tmp_path / "home"
    monkeypatch.setattr(sys, "prefix", str(tmp_path))
    monkeypatch.setenv("PREFECT_API_DATABASE_CONNECTION_URL", "postgresql+asyncpg://nobody@127.0.0.1:1/no")
    prefect_database.make()
    monkeypatch.delenv("PREFECT_API_DATABASE_CONNECTION_URL")
    made = prefect_database.made_beforehand()
    assert [path.name for path in made.parent.iterdir()] == [made.name]
    prefect_database.put_in_place(home)
    before = _tables(home / prefect_database.NAME)
    assert _rows(home / prefect_database.NAME) == {"alembic_version"}, "nothing of the machine that made it"

    monkeypatch.setenv("PREFECT_HOME", str(home))
    server = TemporaryServer(tmp_path / "prefect.log")
    try:
        server.wait(60)
    finally:
        server.close()

    assert _tables(home / prefect_database.NAME) == before


def _tables(database: Path) -> list[tuple[str, str]]:
    with contextlib.closing(sqlite3.connect(database)) as connection:
        version = connection.execute("select 'version', version_num from alembic_version").fetchall()
        return version + connection.execute("select name, sql from sqlite_master order by name").fetchall()


def _rows(database: Path) -> set[str]:
    with contextlib.closing(sqlite3.connect(database)) as connection:
        names = [name for (name,) in connection.execute("select name from sqlite_master where type = 'table'")]
        return {name for name in names if connection.execute(f'select 1 from "{name}" limit 1').fetchone()}
