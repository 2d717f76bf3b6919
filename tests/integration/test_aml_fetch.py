"""Fetching from an Azure ML workspace, found by its `config.json` or by the tracking URI in force."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from aml_bed import Emulator, running_emulator
from aml_jobs import laptop_env

from plato_core.manifest import read_manifest, verify

FLOWS = Path(__file__).parents[2] / "flows"
# The newest activity is in the experiment that was begun first: its sweep ended last.
SWEEPS = """
import sys, time
from pathlib import Path
from trial_runs import new_sweep
from plato_core.tracking.client import make_client
client = make_client(sys.argv[1])
older = new_sweep(client, Path("scratch"), "older")
time.sleep(0.01)
newer = new_sweep(client, Path("scratch"), "newer")
newer.trial("only", 5.0)
client.set_terminated(newer.parent_run_id)
for number in (0, 2):
    older.trial(f"trial {number}", 100.0 * number, checkpoints={2: 1.0, 4: 9.0} if number == 2 else {2: 1.0})
crashed = older.trial("crashed", 900.0, "FAILED")
running = older.trial("running", None, "RUNNING")
client.log_metric(running, "episode_reward_max", 7.0)
client.set_terminated(running)
client.set_terminated(older.parent_run_id)
"""
THREE_LINES = """
from get_mlflow_artifacts import get_top_run, list_experiments
experiments = list_experiments()
experiment = experiments[-1].name          # the most recent one
top = get_top_run(experiment, "model_checkpoints", rank_metric="metrics.episode_reward_max")
import os
print(experiment)
print(os.fspath(top))
"""


@pytest.fixture(scope="module")
def emulator(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Emulator]:
    with running_emulator(tmp_path_factory.mktemp("azure")) as running:
        run(running, tmp_path_factory.mktemp("seed"), "-c", SWEEPS, running.tracking_uri)
        yield running


def run(
    emulator: Emulator, cwd: Path, *arguments: str, code: int = 0, **variables: str
) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        [sys.executable, *arguments],
        cwd=cwd,
        env=laptop_env(emulator) | variables,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == code, done.stdout + done.stderr
    return done


def script(emulator: Emulator, cwd: Path, *arguments: str, code: int = 0, **variables: str) -> tuple[str, str]:
    done = run(emulator, cwd, str(FLOWS / "get_mlflow_artifacts.py"), *arguments, code=code, **variables)
    return done.stdout, done.stderr


def test_the_three_lines_fetch_from_the_workspace_of_the_config_file(emulator: Emulator, tmp_path: Path) -> None:
    emulator.workspace_config(tmp_path / ".azureml")
    (below := tmp_path / "project" / "flows").mkdir(parents=True)  # found from a folder below it
    paths = os.pathsep.join([str(FLOWS), laptop_env(emulator)["PYTHONPATH"]])
    lines = run(emulator, below, "-c", THREE_LINES, PYTHONPATH=paths).stdout.splitlines()
    assert lines[0] == "older"
    path = Path(lines[1])
    assert path.is_relative_to(below / "model_checkpoints")
    assert verify(path, read_manifest(path)) == []
    core = THREE_LINES.replace("from get_mlflow_artifacts import", "from plato_core.fetch import")
    assert run(emulator, below, "-c", core).stdout.splitlines() == lines
    assert emulator.refused() == []


def test_the_script_lists_by_last_activity_and_fetches_the_best(emulator: Emulator, tmp_path: Path) -> None:
    file = emulator.workspace_config(tmp_path / "elsewhere")
    listed, _ = script(emulator, tmp_path, "--workspace-config", str(file))
    assert [line.split()[-1] for line in listed.splitlines()][-2:] == ["newer", "older"]
    fetched, said = script(emulator, tmp_path, "--experiment", "older", MLFLOW_TRACKING_URI=emulator.tracking_uri)
    path = Path(fetched.strip())
    assert path.name == "checkpoint_000004"  # of those of the best trial, the one with the best score
    assert verify(path, read_manifest(path)) == []
    assert "crashed" in said  # better, and not finished


def test_a_first_answer_that_is_cut_off_is_asked_for_again(emulator: Emulator, tmp_path: Path) -> None:
    file = emulator.workspace_config(tmp_path)
    emulator.fault(match=r"POST .*/experiments/search$", truncate=True)
    listed, _ = script(emulator, tmp_path, "--workspace-config", str(file))
    assert listed.splitlines()[-1].split()[-1] == "older"


def test_no_such_workspace_and_no_sign_in_are_one_line_each(emulator: Emulator, tmp_path: Path) -> None:
    file = emulator.workspace_config(tmp_path)
    _, said = script(emulator, tmp_path, code=1, AZURE_CLIENT_SECRET="wrong-and-secret")
    assert said.count("\n") == 1
    assert said.startswith("error: signing in to Azure")
    assert "wrong-and-secret" not in said
    file.write_text(file.read_text().replace(emulator.workspace, "ws-nowhere"))
    _, said = script(emulator, tmp_path, code=1)
    assert said.count("\n") == 1
    assert "Azure ML workspace ws-nowhere" in said
    _, said = script(emulator, tmp_path, "--workspace-config", "nowhere.json", code=2)
    assert said.count("\n") == 1
    assert "nowhere.json" in said
