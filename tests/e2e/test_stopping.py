"""Ctrl-C, SIGTERM and worse: a sweep ends in order, in time, and leaves nothing running."""

from __future__ import annotations

import contextlib
import json
import sqlite3
import time
from pathlib import Path

import pytest
from product import SHORT_CONFIG, Product, Script, marked
from store import statuses, tracked
from thorough import SOAKED, soaked
from tracking_bed import mlflow_server, proxy_before
from waiting import wait_until

from plato_core.manifest import read_manifest, verify
from plato_core.sweep import forkserver
from plato_core.sweep.folder import read_end

STOP_S = 20.0
NEVER = 100_000


def its_ray_folder(script: Script) -> Path:
    """Returns where the script's Ray keeps its session, as the command line of one of its processes has it."""
    for line in script.left():
        for word in line.replace("=", " ").split():
            if word.startswith("/tmp/plato-"):
                return Path(*Path(word).parts[:3])
    raise AssertionError(f"no Ray runs; {script.said}")


def forked_trials(script: Script) -> int:
    """Returns how many processes of trials are forks, or 2 where they cannot be."""
    if not forkserver.available(Path("/tmp")):
        return 2
    [server] = [each for each in marked(script.mark) if each.cmdline()[1:3] == ["-m", "plato_core.sweep.forkserver"]]
    return sum("ray::" in " ".join(each.cmdline()) for each in server.children())


def assert_last_checkpoints(script: Script) -> None:
    """Each trial's newest checkpoint is whole, and of the iteration that it reported last."""
    trials = [path for path in (script.sweep_dir / "tune").iterdir() if path.is_dir()]
    assert len(trials) == 2
    for trial in trials:
        folders = list(trial.glob("checkpoint_*"))
        manifests = {folder: read_manifest(folder) for folder in folders}
        newest = max(folders, key=lambda folder: manifests[folder].iteration)
        assert verify(newest, manifests[newest]) == []
        last = json.loads((trial / "result.json").read_text().splitlines()[-1])
        assert manifests[newest].iteration == last["training_iteration"]


def state_of_the_run(prefect_home: Path, sweep_id: str) -> tuple[str, str]:
    """Returns type and message of the last state of a sweep's flow run, from the database of the script's server."""
    query = (
        "SELECT state.type, state.message FROM flow_run JOIN flow_run_state AS state ON state.id = flow_run.state_id "
        "WHERE flow_run.tags LIKE ?"
    )
    with contextlib.closing(sqlite3.connect(prefect_home / "prefect.db")) as database:
        [found] = database.execute(query, [f"%sweep:{sweep_id}%"]).fetchall()
    return found


@pytest.mark.parametrize(
    ("how", "code", "said"), [("Ctrl-C", 130, "Ctrl-C"), pytest.param("SIGTERM", 143, "SIGTERM", marks=SOAKED)]
)
def test_a_sweep_that_is_stopped_ends_in_order_and_goes_on(
    product: Product, prefect_home: Path, how: str, code: int, said: str
) -> None:
    # Iterations of 3 s: an end that does not wait for them would lose the last checkpoints.
    product.short_config.write_text(f"{SHORT_CONFIG}  min_time_s_per_iteration: 3\n")
    script = product.start(*product.short(iterations=6))
    script.wait_for_training()
    assert any("raylet" in line for line in script.left())
    assert forked_trials(script) == 2
    assert script.listens_on() == {"127.0.0.1"}
    ray_folder = its_ray_folder(script)
    began = time.monotonic()
    script.interrupt() if how == "Ctrl-C" else script.process.terminate()
    assert script.wait(60.0) == code, script.said
    wait_until(lambda: not script.left(), "all of it is gone", 5.0)
    assert time.monotonic() - began < STOP_S

    assert not ray_folder.exists()
    assert script.stderr.count("\n") == 1, script.said
    assert said in script.stderr
    assert f".plato/sweeps/{script.sweep_dir.name}" in script.stderr
    assert f"plato sweep --resume {script.sweep_dir.name}" in script.stderr
    state, message = state_of_the_run(prefect_home, script.sweep_dir.name)
    assert state == "CANCELLED"
    assert f"plato sweep --resume {script.sweep_dir.name}" in message
    runs = tracked(script.store)
    assert runs.parent.info.status == "KILLED"
    assert [run.info.status for run in runs.children] == ["KILLED", "KILLED"]
    assert_last_checkpoints(script)
    assert not (script.sweep_dir / "tracking").exists()  # all of it is in the store
    end = read_end(script.sweep_dir)
    assert end is not None
    assert end.outcome == "stopped"
    assert "Fatal" not in (script.sweep_dir / "sweep.log").read_text()

    again = product.run("--resume", script.sweep_dir.name)
    assert again.process.returncode == 0, again.said
    runs = tracked(script.store)
    assert [run.info.status for run in [runs.parent, *runs.children]] == ["FINISHED"] * 3
    for run in runs.children:
        assert [step for step, _ in runs.history(run, "training_iteration")] == [1, 2, 3, 4, 5, 6]


def test_a_sweep_whose_script_is_killed_ends_by_itself(product: Product) -> None:
    script = product.start(*product.short(iterations=NEVER))
    script.wait_for_training()
    ray_folder = its_ray_folder(script)
    script.process.kill()
    wait_until(lambda: not script.left(), "all of it is gone", 25.0)
    assert not ray_folder.exists()
    runs = tracked(script.store)
    assert [run.info.status for run in runs.children] == ["KILLED", "KILLED"]
    assert_last_checkpoints(script)


@soaked
def test_ctrl_c_does_not_wait_for_uploads_that_hang(product: Product, tmp_path_factory: pytest.TempPathFactory) -> None:
    with mlflow_server(tmp_path_factory.mktemp("server")) as port, proxy_before(port) as proxy:
        script = product.start(*product.short("--tracking-uri", proxy.uri, iterations=NEVER))
        script.wait_for_training()
        proxy.fault = lambda method, path: "silent" if method == "PUT" and "/mlflow-artifacts/" in path else None
        wait_until(lambda: "silent" in [seen.answer for seen in list(proxy.seen)], "an upload hangs")
        script.interrupt()
        assert script.wait(STOP_S + 10.0) == 130, script.said  # the client's own time-outs are 30 s a try
        wait_until(lambda: not script.left(), "all of it is gone", 5.0)
        assert f"plato flush .plato/sweeps/{script.sweep_dir.name}" in script.stderr
        assert statuses(proxy.uri) == ["KILLED"] * 3


@pytest.mark.parametrize("after_s", [0.5, 2.5])
def test_ctrl_c_before_any_training_leaves_nothing(product: Product, after_s: float) -> None:
    script = product.start(*product.short(iterations=NEVER))
    wait_until(lambda: "starting Ray and Prefect" in script.stdout, "its first line")
    time.sleep(after_s)
    script.interrupt()
    assert script.wait(60.0) == 130, script.said
    wait_until(lambda: not script.left(), "all of it is gone", 5.0)
    assert script.stderr.count("\n") == 1, script.said
    assert "Ctrl-C" in script.stderr
    assert "RUNNING" not in statuses(script.store)
    assert not list(script.folder.glob(".plato/sweeps/*"))
