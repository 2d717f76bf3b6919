"""A new database of MLflow's is there whole or not at all."""

import subprocess
import sys
import time
from pathlib import Path

import pytest

from plato_core.tracking.client import make_client

MAKE = "import sys; from plato_core.tracking.client import make_client; make_client(sys.argv[1])"


def start(path: Path) -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-W", "ignore", "-c", MAKE, f"sqlite:///{path}"])


def is_usable(path: Path) -> bool:
    return [one.name for one in make_client(f"sqlite:///{path}").search_experiments()] == ["Default"]


@pytest.mark.parametrize("kilobytes", [1, 100, 400])
def test_a_start_that_was_killed_while_it_made_the_database_spoils_nothing(tmp_path: Path, kilobytes: int) -> None:
    path = tmp_path / "mlflow.db"
    with start(path) as maker:
        deadline = time.monotonic() + 60.0
        meanwhile = tmp_path / ".mlflow.db.new"
        while not meanwhile.exists() or meanwhile.stat().st_size < kilobytes * 1024:
            assert maker.poll() is None, "it was made before it could be killed"
            assert time.monotonic() < deadline
        maker.kill()
    assert not path.exists()

    assert is_usable(path)
    assert [file.name for file in tmp_path.iterdir()] == ["mlflow.db"]


def test_two_starts_at_once_make_one_database(tmp_path: Path) -> None:
    path = tmp_path / "mlflow.db"
    with start(path) as first, start(path) as second:
        assert (first.wait(60.0), second.wait(60.0)) == (0, 0)

    assert is_usable(path)
    assert [file.name for file in tmp_path.iterdir()] == ["mlflow.db"]
