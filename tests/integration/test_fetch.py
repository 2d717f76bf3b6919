import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from mlflow.tracking import MlflowClient
from trial_runs import Sweep, mlflow_server, new_sweep

from plato_core.errors import ConfigError, SelectionError
from plato_core.fetch import get_top_run, list_experiments
from plato_core.manifest import read_manifest, verify
from plato_core.tracking.client import make_client

FLOWS = Path(__file__).parents[2] / "flows"
SCRIPT = FLOWS / "get_mlflow_artifacts.py"


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("store")


@pytest.fixture(scope="module")
def client(store: Path) -> Iterator[MlflowClient]:
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(store)  # the store makes its folder of artifacts in the working directory
        yield make_client("sqlite:///mlflow.db")


@pytest.fixture
def sweep(client: MlflowClient, tmp_path: Path, request: pytest.FixtureRequest) -> Sweep:
    return new_sweep(client, tmp_path / "scratch", request.node.name)


@pytest.fixture
def experiment(sweep: Sweep) -> str:
    return sweep.client.get_experiment(sweep.experiment_id).name


@pytest.fixture
def home(tmp_path: Path, store: Path, sweep: Sweep, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory from which the store is found by the environment alone."""
    folder = tmp_path / "home"
    folder.mkdir()
    monkeypatch.chdir(folder)
    monkeypatch.delenv("PLATO_TRACKING_URI", raising=False)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{store / 'mlflow.db'}")
    return folder


def script(*arguments: str, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    variables = {key: value for key, value in os.environ.items() if not key.startswith(("PLATO_", "MLFLOW_"))}
    return subprocess.run(
        [sys.executable, str(SCRIPT), *arguments],
        cwd=cwd,
        env=variables | environment,
        capture_output=True,
        text=True,
        timeout=60,
    )


def test_the_best_of_all_sweeps_of_the_experiment_is_fetched(sweep: Sweep, experiment: str, home: Path) -> None:
    sweep.trial("this one", 100.0)
    other = sweep.client.create_run(sweep.experiment_id, tags={"note": "a second sweep"})
    second = Sweep(sweep.client, sweep.experiment_id, other.info.run_id, sweep.scratch)
    best = second.trial("that one", 475.0, checkpoints={4: 3.0, 8: 9.0})
    lonely = sweep.client.create_run(sweep.experiment_id)  # no trial of a sweep
    sweep.client.log_metric(lonely.info.run_id, "episode_reward_mean", 1e6)
    sweep.client.set_terminated(lonely.info.run_id)

    top = get_top_run(experiment, "model_checkpoints", rank_metric="metrics.episode_reward_mean")
    assert (top.run_id, top.rank_value, top.iteration) == (best, 475.0, 8)
    assert top.checkpoint_path == home / "model_checkpoints" / best / "checkpoint_000008"
    assert verify(top, read_manifest(top)) == []
    assert top.warnings == ()

    of_first = get_top_run(experiment, parent_run_id=sweep.parent_run_id)
    assert of_first.rank_value == 100.0
    lowest = get_top_run(experiment, mode="min")
    assert lowest.run_id == of_first.run_id


def test_warnings_tell_of_better_runs_and_of_a_replaced_copy(sweep: Sweep, experiment: str, home: Path) -> None:
    sweep.trial("crashed", 499.0, "FAILED")
    sweep.trial("good", 400.0)
    first = get_top_run(experiment)
    assert ["crashed" in warning for warning in first.warnings] == [True]
    (first.checkpoint_path / "algorithm_state.pkl").write_bytes(b"broken")
    second = get_top_run(experiment)
    assert second.checkpoint_path == first.checkpoint_path
    assert "did not match its manifest: it was moved to" in second.warnings[1]


def test_a_run_far_below_the_best_is_found_if_it_is_the_first_with_a_checkpoint(
    sweep: Sweep, experiment: str, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("plato_core.fetch._BEST_KEPT", 2)
    for number in range(5):
        sweep.trial(f"empty {number}", 100.0 + number, checkpoints={})
    only = sweep.trial("only", 1.0)
    top = get_top_run(experiment)
    assert top.run_id == only
    assert len(top.warnings) == 5


def test_if_no_run_qualifies_nothing_is_made(sweep: Sweep, experiment: str, home: Path) -> None:
    sweep.trial("crashed", 499.0, "FAILED")
    with pytest.raises(SelectionError, match=f"the trials of experiment '{experiment}'"):
        get_top_run(experiment)
    assert list(home.iterdir()) == []


def test_an_unknown_experiment_is_refused_with_near_names(sweep: Sweep, experiment: str, home: Path) -> None:
    with pytest.raises(ConfigError, match=f"There is no experiment '{experiment}_x'.*{experiment}"):
        get_top_run(experiment + "_x")


def test_an_unknown_sweep_is_refused(sweep: Sweep, experiment: str, home: Path) -> None:
    with pytest.raises(SelectionError, match="the children of run nobody"):
        get_top_run(experiment, parent_run_id="nobody")


def test_experiments_are_in_order_of_their_last_activity(sweep: Sweep, home: Path) -> None:
    quiet = sweep.client.create_experiment(f"{home.parent.name} quiet")
    new = sweep.client.create_experiment(f"{home.parent.name} new")
    sweep.client.create_run(quiet, start_time=4_000_000_000_000)
    sweep.client.create_run(quiet, start_time=1_000)
    names = [summary.name for summary in list_experiments()]
    assert names.index(f"{home.parent.name} new") < names.index(f"{home.parent.name} quiet")
    assert list_experiments()[-1].experiment_id == quiet
    assert list_experiments()[-1].last_activity.year == 2096
    sweep.client.create_run(new, start_time=4_100_000_000_000)
    assert list_experiments()[-1].experiment_id == new
    for experiment_id in (quiet, new):
        sweep.client.delete_experiment(experiment_id)
    assert {quiet, new}.isdisjoint(summary.experiment_id for summary in list_experiments())


def test_the_script_lists_and_fetches_in_the_sweep_s_folder(sweep: Sweep, experiment: str, store: Path) -> None:
    sweep.trial("crashed", 499.0, "FAILED")
    run_id = sweep.trial("good", 400.0)
    listed = script(cwd=store)
    assert listed.returncode == 0
    assert experiment in listed.stdout.splitlines()[-1]

    fetched = script("--experiment", experiment, "--local-path", "results", cwd=store)
    assert fetched.returncode == 0, fetched.stderr
    path = store / "results" / run_id / "checkpoint_000002"
    assert fetched.stdout.splitlines() == [str(path)]
    assert verify(path, read_manifest(path)) == []
    assert fetched.stderr.count("warning: Run crashed") == 1
    assert len(fetched.stderr.splitlines()) == 2


def test_the_script_refuses_bad_input_in_one_line_and_makes_nothing(tmp_path: Path) -> None:
    no_store = script(cwd=tmp_path)
    assert (no_store.returncode, no_store.stdout) == (2, "")
    assert len(no_store.stderr.splitlines()) == 1
    assert "sqlite:///mlflow.db' does not exist" in no_store.stderr
    assert script("--rank-metrics", "x", cwd=tmp_path).returncode == 2
    assert list(tmp_path.iterdir()) == []


def test_both_functions_can_be_imported_from_the_flows_folder(
    sweep: Sweep, experiment: str, store: Path, tmp_path: Path
) -> None:
    sweep.trial("good", 400.0)
    lines = (
        "from get_mlflow_artifacts import get_top_run, list_experiments\n"
        "experiment = list_experiments()[-1].name\n"
        f"print(get_top_run(experiment, {str(tmp_path / 'm')!r}, rank_metric='metrics.episode_reward_mean'))"
    )
    environment = os.environ | {"PLATO_TRACKING_URI": f"sqlite:///{store / 'mlflow.db'}"}
    done = subprocess.run(
        [sys.executable, "-c", lines], cwd=FLOWS, env=environment, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    assert Path(done.stdout.strip()).name == "checkpoint_000002"
    assert not (FLOWS / "mlruns").exists()


def test_the_lowest_of_a_metric_with_a_slash_wins_where_low_is_good(
    sweep: Sweep, experiment: str, store: Path, tmp_path: Path
) -> None:
    runs = {value: sweep.trial(f"t{value}", 1.0) for value in (3e-4, -2.5e-7, 0.1)}
    for value, run_id in runs.items():
        sweep.client.log_metric(run_id, "hp/lr", value)
    top = get_top_run(
        experiment, tmp_path / "results", "metrics.hp/lr", mode="min", tracking_uri=f"sqlite:///{store / 'mlflow.db'}"
    )
    assert (top.run_id, top.rank_value) == (runs[-2.5e-7], -2.5e-7)


def test_all_runs_are_read_where_none_of_those_that_lead_qualifies(
    sweep: Sweep, experiment: str, store: Path, tmp_path: Path
) -> None:
    for number in range(12):
        sweep.trial(f"crashed {number}", 400.0 + number, "FAILED")
    good = sweep.trial("good", 1.0)
    top = get_top_run(experiment, tmp_path / "results", tracking_uri=f"sqlite:///{store / 'mlflow.db'}")
    assert top.run_id == good
    assert len(top.warnings) == 11
    assert "2 more runs" in top.warnings[-1]


def test_a_server_s_experiment_is_fetched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with mlflow_server(tmp_path) as uri:
        sweep = new_sweep(make_client(uri), tmp_path / "scratch", "pbt_ppo")
        run_id = sweep.trial("good", 400.0)
        monkeypatch.setenv("PLATO_TRACKING_URI", uri)
        assert [summary.name for summary in list_experiments()] == ["Default", "pbt_ppo"]
        top = get_top_run("pbt_ppo", tmp_path / "results")
        assert (top.run_id, top.rank_value) == (run_id, 400.0)
        assert verify(top, read_manifest(top)) == []
