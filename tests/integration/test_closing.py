"""The MLflow runs of dead sweeps are closed, and nobody else's; a sweep that is taken up again opens its own again."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from mlflow.entities import Run
from mlflow.tracking import MlflowClient
from ray.train._internal.storage import StorageContext
from ray.tune.experiment import Trial
from tracking_bed import Proxy, mlflow_server, proxy_before
from waiting import wait_until

from plato_core.cli import main
from plato_core.closing import Closing, close_left_running, forget_closing
from plato_core.config import SweepConfig
from plato_core.config_sources import load_config
from plato_core.resuming import write_parent
from plato_core.sweep import folder
from plato_core.tracking.callback import SweepTrackingCallback
from plato_core.tracking.client import make_client
from plato_core.tracking.parent import ParentRun, close_parent, open_parent, reopen_parent
from plato_core.tracking.spool import Target, flush_command

DEAD, RUNNING, DONE = "20260801-020000-aaaaaa", "20260802-020000-bbbbbb", "20260803-020000-cccccc"
OTHERS, AWAY, TWICE = "20260804-020000-dddddd", "20260805-020000-eeeeee", "20260806-020000-ffffff"


@dataclass(frozen=True)
class Tracked:
    """A sweep with its folder and its own run, whose trials are tracked in this process."""

    config: SweepConfig
    sweep_id: str
    parent: ParentRun

    @property
    def sweep_dir(self) -> Path:
        return self.config.storage_folder / self.sweep_id

    def callback(self) -> SweepTrackingCallback:
        target = Target(
            tracking_uri=self.config.store_uri,
            experiment_id=self.parent.experiment_id,
            parent_run_id=self.parent.run_id,
            sweep_id=self.sweep_id,
            keep_checkpoints=1,
            mode="max",
        )
        return SweepTrackingCallback(
            target=target, spool_dir=self.sweep_dir / "tracking", tuned=(), params=params_of_a_trial
        )

    def trial(self, number: int) -> Trial:
        storage = StorageContext(str(self.sweep_dir), "tune", trial_dir_name=f"t{number}")
        return Trial("trainable", trial_id=f"{self.sweep_id[-6:]}_{number:05d}", storage=storage, stub=True)

    def trains(self) -> None:
        """Two trials report to the store, and the process dies before either has ended."""
        callback = self.callback()
        for number in (0, 1):
            callback.log_trial_start(self.trial(number))
            callback.log_trial_result(1, self.trial(number), {"training_iteration": 1, "time_total_s": 1.0})
        callback.drain(30)

    def runs(self) -> list[Run]:
        client = make_client(self.config.store_uri)
        return list(client.search_runs([self.parent.experiment_id], f"tags.`plato.sweep_id` = '{self.sweep_id}'"))

    def statuses(self) -> set[str]:
        return {run.info.status for run in self.runs()}


def params_of_a_trial(config: dict[str, Any]) -> dict[str, str]:
    return {"env": "none"}


def track(storage: Path, sweep_id: str, store: str) -> Tracked:
    """A sweep that has opened its run."""
    given = {"test_local": True, "num_tune_samples": 2, "storage_path": str(storage), "tracking_uri": store}
    config = load_config(given, None, {})
    tags = {"plato.sweep_id": sweep_id, "plato.kind": "sweep"}
    parent = open_parent(store, config.experiment_name, "sweep", tags, {})
    sweep = Tracked(config, sweep_id, parent)
    sweep.sweep_dir.mkdir(parents=True)
    folder.hold(sweep.sweep_dir).release()
    (sweep.sweep_dir / folder.CONFIG_NAME).write_text(config.to_yaml())
    write_parent(sweep.sweep_dir, parent)
    return sweep


def closed_runs(closings: list[Closing]) -> dict[str, int]:
    assert [closing.error for closing in closings if closing.error] == []
    return {closing.sweep_id: len(closing.runs) for closing in closings}


@pytest.fixture
def store(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path}/mlflow.db"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    with mlflow_server(tmp_path_factory.mktemp("server")) as port:
        yield port


@pytest.fixture
def proxy(server: int) -> Iterator[Proxy]:
    with proxy_before(server) as proxy:
        yield proxy


def test_of_a_dead_a_running_a_done_and_somebody_elses_sweep_only_the_dead_ones_runs_are_closed(
    tmp_path: Path, store: str, capsys: pytest.CaptureFixture[str]
) -> None:
    storage = tmp_path / "sweeps"
    dead, running, done = (track(storage, sweep_id, store) for sweep_id in (DEAD, RUNNING, DONE))
    others = track(tmp_path / "elsewhere", OTHERS, store)
    for sweep in (dead, running, done, others):
        sweep.trains()
    folder.record_end(done.sweep_dir, "finished")
    folder.record_done(done.sweep_dir)
    holds = (
        f"from pathlib import Path; from plato_core.sweep.folder import hold; kept = hold(Path('{running.sweep_dir}'))"
    )
    with subprocess.Popen(
        [sys.executable, "-c", f"{holds}; print(flush=True); input()"], stdout=-1, stdin=-1
    ) as process:
        assert process.stdout is not None
        process.stdout.readline()
        assert main(["doctor", "--storage-path", str(storage)]) == 0
        said = capsys.readouterr().out
        assert f"{DEAD}: 3 MLflow runs left RUNNING, KILLED now" in said
        assert dead.statuses() == {"KILLED"}
        assert {"RUNNING"} == running.statuses() == done.statuses() == others.statuses()
        process.kill()
    assert closed_runs(close_left_running(storage)) == {RUNNING: 3}
    assert running.statuses() == {"KILLED"}
    (tmp_path / "mlflow.db").rename(tmp_path / "away.db")  # from here on a request would fail, and be said
    assert close_left_running(storage) == []


def test_the_sweeps_run_says_that_it_died_when_and_how_to_go_on(tmp_path: Path, store: str) -> None:
    dead = track(tmp_path / "sweeps", DEAD, store)
    dead.trains()
    client = MlflowClient(store)
    before = max(path.stat().st_mtime for path in dead.sweep_dir.rglob("*"))
    close_left_running(tmp_path / "sweeps")
    run = client.get_run(dead.parent.run_id)
    way_on = f"plato sweep --resume {DEAD} --storage-path {tmp_path}/sweeps"
    assert run.data.tags["plato.error"] == f"the sweep's process died; go on with it: {way_on}"
    assert [abs(run.info.end_time / 1000 - before) < 0.1 for run in dead.runs()] == [True] * 3
    reopen_parent(store, dead.parent)
    run = client.get_run(dead.parent.run_id)
    assert run.info.status == "RUNNING"
    assert "plato.error" not in run.data.tags


def test_the_runs_of_a_sweep_that_did_not_come_to_write_down_its_own_are_found(tmp_path: Path, store: str) -> None:
    dead = track(tmp_path / "sweeps", DEAD, store)
    (dead.sweep_dir / "parent.json").unlink()
    assert closed_runs(close_left_running(tmp_path / "sweeps")) == {DEAD: 1}
    assert dead.statuses() == {"KILLED"}


def test_a_store_that_does_not_know_the_sweep_is_not_taken_for_one_with_nothing_to_close(
    tmp_path: Path, store: str
) -> None:
    dead = track(tmp_path / "sweeps", DEAD, store)
    write_parent(dead.sweep_dir, replace(dead.parent, run_id="0" * 32))
    for _ in range(2):
        (closing,) = close_left_running(tmp_path / "sweeps")
        assert f"has no run {'0' * 32} of the sweep" in (closing.error or "")


def test_a_resumed_sweeps_runs_are_running_again_and_finish(tmp_path: Path, store: str) -> None:
    sweep = track(tmp_path / "sweeps", DEAD, store)
    for killed in (1, 2):
        sweep.trains()
        assert closed_runs(close_left_running(tmp_path / "sweeps")) == {DEAD: 3}, f"killed for the {killed}. time"
        forget_closing(sweep.sweep_dir)
        reopen_parent(store, sweep.parent)
    callback = sweep.callback()
    for number in (0, 1):
        callback.log_trial_start(sweep.trial(number))
        callback.log_trial_result(2, sweep.trial(number), {"training_iteration": 2, "time_total_s": 2.0})
    callback.drain(30)
    assert sweep.statuses() == {"RUNNING"}
    callback = sweep.callback()
    for number in (0, 1):
        callback.log_trial_start(sweep.trial(number))
        callback.log_trial_end(sweep.trial(number))
    assert callback.drain(30).complete
    close_parent(store, sweep.parent.run_id, "FINISHED")
    assert sweep.statuses() == {"FINISHED"}
    assert len(sweep.runs()) == 3


def test_what_a_dead_sweep_had_sent_is_not_sent_again_after_its_runs_were_closed(tmp_path: Path, store: str) -> None:
    dead = track(tmp_path / "sweeps", DEAD, store)
    alive = replace(dead, config=dead.config.model_copy(update={"storage_path": str(tmp_path / "alive")}))
    callback = alive.callback()
    callback.log_trial_start(dead.trial(0))
    for step in (1, 2):
        callback.log_trial_result(step, dead.trial(0), {"training_iteration": step, "pid": 1})
    wait_until(lambda: not callback.writer.summary().pending_ops, "all is sent")
    shutil.copytree(alive.sweep_dir / "tracking", dead.sweep_dir / "tracking")  # as `kill -9` leaves it
    callback.drain(30)
    assert closed_runs(close_left_running(tmp_path / "sweeps")) == {DEAD: 2}
    assert flush_command(dead.sweep_dir) == 0
    known = json.loads((dead.sweep_dir / "runs.json").read_text())
    assert [(record["step"], record["ended"]) for record in known.values()] == [(2, True)]
    callback = dead.callback()
    callback.log_trial_start(dead.trial(0))
    for step in (2, 3):
        callback.log_trial_result(step, dead.trial(0), {"training_iteration": step, "pid": 2})
    callback.drain(30)
    (run,) = [run for run in dead.runs() if run.info.run_id != dead.parent.run_id]
    assert run.info.status == "RUNNING"
    points = make_client(store).get_metric_history(run.info.run_id, "pid")
    assert [(point.step, point.value) for point in points] == [(1, 1.0), (2, 1.0), (3, 2.0)]


def test_runs_that_a_later_flush_makes_are_closed_too(tmp_path: Path, proxy: Proxy) -> None:
    sweep = track(tmp_path / "sweeps", DEAD, proxy.uri)
    proxy.away = True
    callback = sweep.callback()
    callback.log_trial_start(sweep.trial(0))
    callback.writer.close()  # as good as killed: the spool has it all
    proxy.away = False
    assert closed_runs(close_left_running(tmp_path / "sweeps")) == {DEAD: 1}
    proxy.seen.clear()
    assert close_left_running(tmp_path / "sweeps") == []
    assert proxy.seen == []
    assert flush_command(sweep.sweep_dir) == 0
    assert sweep.statuses() == {"KILLED", "RUNNING"}
    assert closed_runs(close_left_running(tmp_path / "sweeps")) == {DEAD: 1}
    assert sweep.statuses() == {"KILLED"}


def test_a_store_that_is_away_is_said_and_does_not_keep_the_others_from_being_closed(
    tmp_path: Path, store: str, proxy: Proxy, capsys: pytest.CaptureFixture[str]
) -> None:
    storage = tmp_path / "sweeps"
    away, here = track(storage, AWAY, proxy.uri), track(storage, DEAD, store)
    proxy.away = True
    assert main(["doctor", "--storage-path", str(storage)]) == 1
    said = capsys.readouterr().out
    assert f"{AWAY}: its MLflow runs could not be closed: tracking server {proxy.uri} does not answer" in said
    assert f"{DEAD}: 1 MLflow run left RUNNING, KILLED now" in said
    assert here.statuses() == {"KILLED"}
    proxy.away = False
    assert away.statuses() == {"RUNNING"}
    assert main(["doctor", "--storage-path", str(storage)]) == 0
    assert away.statuses() == {"KILLED"}


def test_two_at_once_close_a_run_once_and_who_takes_the_sweep_up_waits_for_them(tmp_path: Path, proxy: Proxy) -> None:
    sweep = track(tmp_path / "sweeps", TWICE, proxy.uri)
    sweep.trains()
    proxy.seen.clear()
    proxy.delay_s = 0.2
    begun = threading.Event()
    proxy.fault = lambda method, path: begun.set()
    done: list[Closing] = []
    threads = [threading.Thread(target=lambda: done.extend(close_left_running(tmp_path / "sweeps"))) for _ in range(2)]
    for thread in threads:
        thread.start()
    assert begun.wait(30)
    held = folder.hold(sweep.sweep_dir)  # at once: closing does not take the sweep for itself
    forget_closing(sweep.sweep_dir)
    asked = len(proxy.seen)
    for thread in threads:
        thread.join(30)
    assert len(proxy.seen) == asked, "nobody was still at it"
    assert closed_runs(done) == {TWICE: 3}
    assert proxy.names().count("POST runs/update") == 3
    reopen_parent(proxy.uri, sweep.parent)
    assert close_left_running(tmp_path / "sweeps") == []
    assert sweep.statuses() == {"KILLED", "RUNNING"}, "the trials' runs follow when they go on"
    held.release()
