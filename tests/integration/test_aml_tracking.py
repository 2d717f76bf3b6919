"""A sweep's runs in Azure ML: the job's own run as the parent, its limits, its artifacts, its tokens."""

import contextlib
import json
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from aml_bed import Emulator, running_emulator
from aml_driver import SWEEP_ID
from aml_jobs import laptop_env, start_job, wait_for_job
from thorough import soaked, thorough

# Of a process of its own each: the SDKs keep what they know of a workspace, and the next test has another.
LOOK = """
import json, sys
from plato_core.tracking.artifacts import artifact_repository
from plato_core.tracking.client import make_client
client, found = make_client(sys.argv[1]), {}
for name in sys.argv[2:]:
    experiment = client.get_experiment_by_name(name)
    for run in client.search_runs([experiment.experiment_id]):
        repository = artifact_repository(client, run.info.run_id)
        paths = sorted(info.path for info in repository.list_artifacts(None))
        found[run.info.run_name] = {
            "id": run.info.run_id, "status": run.info.status, "tags": run.data.tags, "params": len(run.data.params),
            "metrics": run.data.metrics, "artifacts": paths}
print(json.dumps(found))
"""
ARTIFACTS = """
import json, sys
from pathlib import Path
from trial_runs import make_checkpoint
from plato_core.manifest import read_manifest, verify
from plato_core.tracking.artifacts import artifact_repository, put_file
from plato_core.tracking.client import make_client
from plato_core.tracking.parent import open_parent
from plato_core.tracking.queries import complete_checkpoints
from plato_core.tracking.transfer import download_checkpoint, upload_checkpoint
uri, here = sys.argv[1], Path.cwd()
run = open_parent(uri, "artifacts", "one", {}, {f"p{n}": n for n in range(250)}).run_id
client = make_client(uri)
repository = artifact_repository(client, run)
(note := here / "note.txt").write_text("a")
names = [put_file(client, run, note), put_file(client, run, note)]
note.write_text("b")
names += [put_file(client, run, note), put_file(client, run, note)]
for number in (2, 4, 6):
    make_checkpoint(here / str(number), number, 1.0)
repository.log_artifact(str(here / "2" / "algorithm_state.pkl"), "checkpoint_000002")  # killed here
refused = ""
try:
    repository.log_artifact(str(here / "4" / "manifest.json"), "checkpoint_000004")  # announced, and never there
except Exception as error:
    refused = str(error)
for _ in range(2):  # the second time all of it is there
    for number in (2, 4, 6):
        upload_checkpoint(client, run, here / str(number), read_manifest(here / str(number)))
records = complete_checkpoints(client, run)
down = [download_checkpoint(client, run, r.artifact_path, here / "down", r.manifest) for r in records]
print(json.dumps({
    "names": names, "refused": refused, "paths": [r.artifact_path for r in records],
    "whole": [verify(d.path, d.manifest) for d in down], "local": [d.path.name for d in down],
    "artifacts": sorted(info.path for info in repository.list_artifacts(None))}))
"""
UNANSWERED = """
import json, sys
from pathlib import Path
from plato_core.tracking.artifacts import artifact_repository, put_file
from plato_core.tracking.client import make_client
from plato_core.tracking.parent import open_parent
run = open_parent(sys.argv[1], "unanswered", "one", {}, {}).run_id
client = make_client(sys.argv[1])
(note := Path("note.txt")).write_text("a")
put_file(client, run, note)
print(json.dumps({"paths": [info.path for info in artifact_repository(client, run).list_artifacts(None)]}))
"""
TAKE_OVER = """
import json, sys, threading
from plato_core.aml.jobrun import JobRun
from plato_core.aml.workspace import Workspace
from plato_core.errors import ConfigError
from plato_core.tracking.client import make_client
from plato_core.tracking.jobs import JOB_TAG, take_over
from plato_core.tracking.parent import ParentRun
uri = sys.argv[1]
client = make_client(uri)
experiment = client.create_experiment("taken-over")
before, job = [client.create_run(experiment).info.run_id for _ in range(2)]
client.set_tag(before, JOB_TAG, before)
parent, said, refused = ParentRun(before, experiment, uri), [], ""
at_work = JobRun(job, Workspace.of(uri), "", "")
try:
    take_over(uri, parent, at_work, said.append, patience_s=2.0)
except ConfigError as error:
    refused = str(error)
tags = [client.get_run(run).data.tags for run in (before, job)]
threading.Timer(1.0, client.set_terminated, [before]).start()
take_over(uri, parent, at_work, said.append)
print(json.dumps({
    "before": before, "job": job, "refused": refused, "said": said, "worked": tags[0][JOB_TAG],
    "untouched": not [name for name in tags[1] if name.startswith("plato.")],
    "works": client.get_run(before).data.tags[JOB_TAG]}))
"""
REVOKED = """
import json, os, sys, time
from pathlib import Path
os.environ["AZURE_ML_OUTPUT_sweeps"] = str(Path.cwd())
import aml_driver
from aml_bed import Emulator
from plato_core.tracking.client import make_client
from plato_core.tracking.parent import close_parent, open_parent
from plato_core.tracking.queries import children_of, complete_checkpoints
from plato_core.tracking.transfer import download_checkpoint
uri, secret = sys.argv[1], os.environ["AZURE_CLIENT_SECRET"]
azure = Emulator(Path(sys.argv[2]), int(sys.argv[3]), secret)
revoke = lambda: azure.control("client_secret", value=secret)  # the same again: its tokens open nothing any more
config = aml_driver.settings(tracking_uri=uri)
(Path.cwd() / aml_driver.SWEEP_ID).mkdir()
opened = open_parent(uri, "revoked", "one", {}, {})
writer = aml_driver.track(config, opened)
aml_driver.create(writer, opened, "t0")
for step in range(1, 4):
    aml_driver.log(writer, "t0", step, names=3)
aml_driver.upload(writer, "t0", 3)
while writer.spool.journal.pending:
    time.sleep(0.02)
revoke()
for step in range(4, 7):
    aml_driver.log(writer, "t0", step, names=3)
aml_driver.upload(writer, "t0", 6)
aml_driver.upload_results(writer, "t0", "of this job")
writer.append({"op": "status", "key": "t0", "status": "FINISHED", "time": aml_driver.now_ms()})
drained = writer.drain(8.0)
client = make_client(uri)
revoke()
[child] = children_of(client, [opened.experiment_id], opened.run_id)
revoke()
record = complete_checkpoints(client, child.run_id)[-1]
revoke()
down = download_checkpoint(client, child.run_id, record.artifact_path, Path("down"), record.manifest)
revoke()
close_parent(uri, opened.run_id, "FINISHED", metrics={"best": 6.0})
os.environ["AZURE_CLIENT_SECRET"] = "of-nobody"
revoke()
refused = ""
try:
    client.get_run(opened.run_id)
except Exception as error:
    refused = type(error).__name__
print(json.dumps({
    "said": drained.describe(), "complete": drained.complete, "rejected": drained.rejected, "status": child.status,
    "child": child.run_id, "iteration": down.manifest.iteration, "refused": refused}))
"""


@pytest.fixture(scope="module")
def emulator(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Emulator]:
    with running_emulator(tmp_path_factory.mktemp("azure")) as running:
        yield running


def ask(emulator: Emulator, code: str, *arguments: str, cwd: Path, **variables: str) -> dict[str, Any]:
    """Runs code on the laptop; returns the JSON that it printed."""
    done = subprocess.run(
        [sys.executable, "-c", code, emulator.tracking_uri, *arguments],
        cwd=cwd,
        env=laptop_env(emulator) | variables,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def told(emulator: Emulator, job: str) -> dict[str, Any]:
    path = emulator.artifacts(job) / "outputs" / "told.json"
    assert path.exists(), emulator.log(job)
    return json.loads(path.read_text())


def test_the_jobs_own_run_is_the_parent_and_a_later_job_only_points_to_it(emulator: Emulator, tmp_path: Path) -> None:
    start_job(emulator, "pf-first-001", ["-m", "aml_driver", "first"], experiment="of-the-job")
    assert wait_for_job(emulator, "pf-first-001")["status"] == "Failed"
    first = told(emulator, "pf-first-001")
    assert (first["experiment"], first["parents"]) == ("of-the-job", ["pf-first-001"] * 2)
    assert first["rejected"] == 0
    assert "the store cannot delete: 2 checkpoints more than asked for stay in it" in first["said"]

    start_job(emulator, "pf-first-002", ["-m", "aml_driver", "second"], experiment="of-the-job")
    assert wait_for_job(emulator, "pf-first-002")["status"] == "Completed", emulator.log("pf-first-002")
    second = told(emulator, "pf-first-002")
    assert second == {"parent": "pf-first-001", "left": None, "rejected": 0}

    runs = ask(emulator, LOOK, "of-the-job", cwd=tmp_path)
    other = runs.pop("pf-first-002")
    assert other["tags"]["plato.resumes"] == "pf-first-001"
    assert "https://ml.azure.com/runs/pf-first-001?wsid=" in other["tags"]["mlflow.note.content"]
    assert not [name for name in other["tags"] if name.startswith("plato.") and name != "plato.resumes"]
    assert (other["params"], other["metrics"]) == (0, {})
    (parent,) = [run for run in runs.values() if run["id"] == "pf-first-001"]
    assert parent["status"] == "FINISHED"
    assert parent["tags"]["plato.sweep_id"] == SWEEP_ID
    assert parent["tags"]["mlflow.runName"].endswith(SWEEP_ID)
    assert parent["metrics"] == {"best": 11.0}
    assert {"config.yaml", "lineage.jsonl"} <= set(parent["artifacts"])
    trials = [runs["t0"], runs["t1"]]
    assert len(runs) == 3
    for trial in trials:
        assert trial["status"] == "FINISHED"
        assert trial["tags"]["mlflow.parentRunId"] == "pf-first-001"
        assert (len(trial["metrics"]), trial["params"]) == (50, 100)
        assert trial["metrics"]["training_iteration"] == 11.0
        assert {"checkpoint_000010", "checkpoint_000015", "result.json", "result-2.json"} <= set(trial["artifacts"])
        assert not [path for path in trial["artifacts"] if path.startswith("upload-")]  # the same again is not sent
    assert emulator.refused() == []


def test_a_token_that_is_taken_back_is_renewed_and_all_arrives_once(emulator: Emulator, tmp_path: Path) -> None:
    before = len(emulator.requests())
    found = ask(emulator, REVOKED, str(emulator.folder), str(emulator.http_port), cwd=tmp_path)
    assert (found["complete"], found["rejected"]) == (True, 0), found["said"]
    assert (found["status"], found["iteration"]) == ("FINISHED", 6)
    assert found["refused"] == "ClientAuthenticationError"  # where nobody is signed in any more, that stands
    refused = [one for one in emulator.requests()[before:] if one["status"] == 401 and "api.azureml.ms" in one["host"]]
    assert len(refused) >= 5
    with contextlib.closing(sqlite3.connect(f"file:{emulator.folder / 'mlflow.db'}?mode=ro", uri=True)) as db:
        points = db.execute("SELECT key, step FROM metrics WHERE run_uuid = ?", (found["child"],)).fetchall()
    names = ("metric/0", "training_iteration", "episode_reward_mean")
    assert sorted(points) == sorted((name, step) for name in names for step in range(1, 7))


def test_a_job_waits_for_the_end_of_the_job_before_and_says_so(emulator: Emulator, tmp_path: Path) -> None:
    found = ask(emulator, TAKE_OVER, cwd=tmp_path)
    assert f"resume: job {found['before']} still works on this sweep" in found["refused"]
    assert (found["worked"], found["untouched"]) == (found["before"], True)
    assert found["works"] == found["job"]
    minutes = [f"job {found['before']} has not ended yet; waiting for that, for {left} min at most" for left in (1, 10)]
    assert found["said"] == minutes


def test_what_is_stored_again_gets_a_path_of_its_own_unless_it_is_whole(emulator: Emulator, tmp_path: Path) -> None:
    emulator.fault(match=r"PUT .*checkpoint_000004/manifest\.json", status=400)
    found = ask(emulator, ARTIFACTS, cwd=tmp_path)
    assert found["refused"]
    assert found["names"] == ["note.txt", "note.txt", "note-2.txt", "note-2.txt"]
    assert found["paths"] == ["upload-2_checkpoint_000002", "upload-2_checkpoint_000004", "checkpoint_000006"]
    assert found["whole"] == [[], [], []]
    assert found["local"] == ["checkpoint_000002", "checkpoint_000004", "checkpoint_000006"]
    assert "upload-3_checkpoint_000002" not in found["artifacts"]


@thorough
def test_a_question_about_artifacts_that_is_never_answered_is_asked_again(emulator: Emulator, tmp_path: Path) -> None:
    emulator.fault(match=r"GET .*/artifacts$", silent=True)
    found = ask(emulator, UNANSWERED, cwd=tmp_path, MLFLOW_HTTP_REQUEST_TIMEOUT="2")  # the plugin's own: 300 s
    assert "note.txt" in found["paths"]
    assert emulator.control("faults") == []


def test_a_sweep_of_the_laptop_is_refused_in_one_line_before_anything_is_made(
    emulator: Emulator, tmp_path: Path
) -> None:
    command = [sys.executable, "-m", "plato_core.cli", "sweep", "--max-iterations", "1"]

    def said(uri: str, **variables: str) -> str:
        done = subprocess.run(
            [*command, "--tracking-uri", uri],
            cwd=tmp_path,
            env=laptop_env(emulator) | variables,
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert done.returncode in (1, 2), done.stderr
        assert done.stderr.count("\n") == 1, done.stderr
        assert list(tmp_path.iterdir()) == [file for file in (tmp_path / "config.json",) if file.exists()]
        return done.stderr

    line = said(emulator.tracking_uri, AZURE_CLIENT_SECRET="wrong-and-secret")
    assert "tracking_uri: signing in to Azure" in line
    assert "wrong-and-secret" not in line
    assert "no config.json lies here" in said("azureml")
    emulator.workspace_config(tmp_path)
    content = (tmp_path / "config.json").read_text()
    (tmp_path / "config.json").write_text(content.replace(emulator.workspace, "ws-nowhere"))
    assert "Azure ML workspace ws-nowhere" in (line := said("config.json"))
    assert "does not exist" in line


@soaked
def test_tokens_that_end_during_a_sweep_are_renewed_and_no_point_is_lost(tmp_path: Path) -> None:
    # Longer than the plugin takes to look at its token again, 30 s; the job lasts 60 s.
    with running_emulator(tmp_path / "azure", token_seconds=45) as emulator:
        start_job(emulator, "pf-long-001", ["-m", "aml_driver", "long"])
        assert wait_for_job(emulator, "pf-long-001")["status"] == "Completed", emulator.log("pf-long-001")
        assert told(emulator, "pf-long-001") == {"sent": 180, "complete": True}
        renewed = [one for one in emulator.requests() if one["path"].endswith("/token") and "/runs/" in one["path"]]
        assert len(renewed) >= 2
