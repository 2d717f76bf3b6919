"""What is found out about this machine and the tracking store before a sweep starts."""

import http.server
import sqlite3
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from plato_core.config import SweepConfig
from plato_core.config_machine import available_cpus, check_machine
from plato_core.config_sources import load_config
from plato_core.config_store import check_store
from plato_core.errors import ConfigError
from plato_core.training.environments import check_environment


@pytest.fixture(autouse=True)
def in_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def config(**settings: Any) -> SweepConfig:
    return load_config(settings, None, {})


@pytest.fixture
def answering() -> Iterator[tuple[str, dict[str, int]]]:
    """A server that answers every request with the status in the dictionary."""
    status = {"code": 200}

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(status["code"])
            self.end_headers()

        def log_message(self, format: str, *args: Any) -> None:
            pass

    server = http.server.HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}", status
    server.shutdown()
    thread.join()
    server.server_close()


def test_a_sweep_that_can_run_here_passes_and_creates_nothing(tmp_path: Path) -> None:
    check_machine(config(test_local=True))
    assert list(tmp_path.iterdir()) == []


def test_a_cluster_may_have_more_cpus_than_this_machine() -> None:
    many = available_cpus() + 1
    check_machine(config(ray_address="auto", num_cpus=many))
    with pytest.raises(ConfigError, match=f"num_cpus: {many} are more"):
        check_machine(config(num_cpus=many))


@pytest.mark.parametrize(("code", "there"), [(200, True), (401, True), (404, True), (503, False)])
def test_a_server_that_answers_is_there_unless_it_is_broken(
    answering: tuple[str, dict[str, int]], code: int, there: bool
) -> None:
    uri, status = answering
    status["code"] = code
    if there:
        check_store(uri)
    else:
        with pytest.raises(ConfigError, match="answers 503"):
            check_store(uri)


def test_an_existing_database_is_accepted(tmp_path: Path) -> None:
    with sqlite3.connect(tmp_path / "mlflow.db") as database:
        database.execute("create table t (x)")
    database.close()
    check_store(f"sqlite:///{tmp_path}/mlflow.db")
    with pytest.raises(ConfigError, match="is a folder"):
        check_store(f"sqlite:///{tmp_path}")


@pytest.mark.parametrize(
    ("env_name", "algorithm"),
    [("CartPole-v1", "PPO"), ("CartPole-v1", "DQN"), ("Pendulum-v1", "PPO"), ("Pendulum-v1", "SAC")],
)
def test_environments_that_suit_the_algorithm_pass(env_name: str, algorithm: str) -> None:
    check_environment(env_name, {}, algorithm)


def test_an_environment_of_a_module_is_imported_and_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "grid_of_test.py").write_text(
        """
import gymnasium
import numpy as np

class Grid(gymnasium.Env):
    observation_space = gymnasium.spaces.Box(-1, 1, (2,))

    def __init__(self, kind):
        self.action_space = {
            "multi": gymnasium.spaces.MultiDiscrete([2, 3]),
            "matrix": gymnasium.spaces.Box(-1, 1, (2, 2)),
            "whole": gymnasium.spaces.Box(0, 3, (2,), np.int64),
            "bits": gymnasium.spaces.MultiBinary(3),
        }[kind]

gymnasium.register("GridOfTest-v0", entry_point=Grid)
"""
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    name = "grid_of_test:GridOfTest-v0"
    check_environment(name, {"kind": "multi"}, "PPO")
    for kind, algorithm, said in [
        ("multi", "SAC", "give --algorithm PPO or APPO or IMPALA"),
        ("matrix", "PPO", "more than one dimension"),
        ("whole", "PPO", "whole numbers"),
        ("bits", "PPO", "no algorithm here can"),
        ("none", "PPO", "cannot be made with env_config {'kind': 'none'}"),
    ]:
        with pytest.raises(ConfigError, match=said):
            check_environment(name, {"kind": kind}, algorithm)
    with pytest.raises(ConfigError, match="did you mean GridOfTest-v0"):
        check_environment("grid_of_test:GridOfTst-v0", {}, "PPO")


@pytest.mark.parametrize("name", ["CartPole-v99", "a b/c d", "x:y:z", "cartpole-v1"])
def test_an_environment_name_that_cannot_be_is_refused_in_one_line(name: str) -> None:
    with pytest.raises(ConfigError) as error:
        check_environment(name, {}, "PPO")
    assert "\n" not in str(error.value)
    assert repr(name) in str(error.value)
