"""Both stores on a real PostgreSQL, that of Debian's package: what is in them is there after `plato down` and up."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import mlflow
import psycopg2
import pytest
from debian import require
from mlflow.entities import Run
from small_project import small_project
from stack import Stack, free_ports, new_stack

from plato_core.stack.processes import marked
from plato_core.stack.settings import MLFLOW, PREFECT, WORKER

PASSWORD = "pw-of-the-database"
_START_S = 60.0


@pytest.fixture(scope="module")
def postgresql() -> Iterator[str]:
    """A server with the empty databases `prefect` and `mlflow`; yields its URL up to the database's name."""
    programs = require("postgresql").parent
    # Not below pytest's folder, which only its user can read: PostgreSQL refuses to run as root.
    folder = Path(tempfile.mkdtemp(prefix="plato-postgresql-", dir="/tmp"))
    (password_file := folder / "password").write_text(PASSWORD)
    user = None
    if os.geteuid() == 0:
        user = "postgres"  # the package makes it
        for path in (folder, password_file):
            shutil.chown(path, user, user)
    (port,) = free_ports(1)
    options = {"listen_addresses": "127.0.0.1", "unix_socket_directories": "", "fsync": "off", "shared_buffers": "16MB"}
    try:
        subprocess.run(
            [
                programs / "initdb",
                "-D",
                folder / "data",
                "-U",
                "plato",
                "-A",
                "scram-sha-256",
                "--pwfile",
                password_file,
            ],
            user=user,
            group=user,
            cwd=folder,
            check=True,
            stdout=subprocess.DEVNULL,
        )
        server = subprocess.Popen(
            [programs / "postgres", "-D", folder / "data", "-p", str(port)]
            + [part for name, value in options.items() for part in ("-c", f"{name}={value}")],
            user=user,
            group=user,
            cwd=folder,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        try:
            _create_databases(port)
            yield f"postgresql://plato:{PASSWORD}@127.0.0.1:{port}"
        finally:
            server.send_signal(signal.SIGQUIT)  # at once, whoever is connected
            server.wait()
    finally:
        shutil.rmtree(folder)


def _create_databases(port: int) -> None:
    deadline = time.monotonic() + _START_S
    while True:
        try:
            connection = psycopg2.connect(
                host="127.0.0.1", port=port, user="plato", password=PASSWORD, dbname="postgres"
            )
            break
        except psycopg2.OperationalError:
            assert time.monotonic() < deadline, "PostgreSQL does not start"
            time.sleep(0.1)
    with contextlib.closing(connection):
        connection.autocommit = True
        with connection.cursor() as cursor:
            cursor.execute("CREATE DATABASE prefect")
            cursor.execute("CREATE DATABASE mlflow")


@pytest.fixture
def stack(postgresql: str, tmp_path: Path) -> Iterator[Stack]:
    variables = {
        "PLATO_STACK_PREFECT_DATABASE_URL": f"{postgresql}/prefect",
        "PLATO_STACK_MLFLOW_STORE_URI": f"{postgresql}/mlflow",
    }
    stack = new_stack(tmp_path, small_project(tmp_path), **variables)
    try:
        stack.up()
        yield stack
    finally:
        stack.close()


def test_both_stores_on_postgresql_keep_all_through_down_and_up(stack: Stack, tmp_path: Path) -> None:
    client = mlflow.MlflowClient(stack.mlflow_url)
    experiment = client.create_experiment("on postgresql")
    run = client.create_run(experiment)
    client.log_metric(run.info.run_id, "episode_reward_mean", 475.0, step=3)
    client.log_text(run.info.run_id, "as logged", "notes.txt")
    deployment = stack.request("GET", "/deployments/name/small/local")
    assert deployment["job_variables"]["working_dir"] == str(stack.project)
    _assert_logged(client, run)
    _assert_no_password(stack)

    stack.down()
    assert stack.processes() == []
    assert not list(stack.folder.rglob("*.db"))  # no SQLite beside
    stack.up()

    assert stack.request("GET", "/deployments/name/small/local")["id"] == deployment["id"]
    _assert_logged(client, run)


def _assert_logged(client: mlflow.MlflowClient, run: Run) -> None:
    logged = client.get_run(run.info.run_id)
    assert logged.data.metrics == {"episode_reward_mean": 475.0}
    assert logged.info.artifact_uri is not None
    assert logged.info.artifact_uri.startswith("mlflow-artifacts:")
    assert [file.path for file in client.list_artifacts(run.info.run_id)] == ["notes.txt"]
    with tempfile.TemporaryDirectory() as folder:
        assert Path(client.download_artifacts(run.info.run_id, "notes.txt", folder)).read_text() == "as logged"


def _assert_no_password(stack: Stack) -> None:
    """Each server has its own database's in its environment; nothing else has any."""
    allowed = {PREFECT: "prefect", MLFLOW: "mlflow", WORKER: None}
    for part, own in allowed.items():
        processes = marked(part, stack.folder)
        assert processes
        for process in processes:
            assert PASSWORD not in " ".join(process.cmdline())
            with_it = [value for value in process.environ().values() if PASSWORD in value]
            assert all(value.rpartition("/")[2] == own for value in with_it), part
    for path in [*stack.folder.rglob("*.log"), stack.folder / "state.json"]:
        assert PASSWORD not in path.read_text(), path
