"""The writer against a real MLflow server that is slow, busy, away or lying about it, and against SQLite."""

import os
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
import requests
from mlflow.entities import Run
from mlflow.exceptions import MlflowException, RestException
from mlflow.protos.databricks_pb2 import ENDPOINT_NOT_FOUND
from mlflow.tracking import MlflowClient
from tracking_bed import Fault, Proxy, mlflow_server, proxy_before
from waiting import wait_until

from plato_core.errors import CheckpointError, TrackingError
from plato_core.manifest import checkpoint_name, write_manifest
from plato_core.tracking.hold import hold_tree
from plato_core.tracking.ops import UploadCheckpoint
from plato_core.tracking.parent import ParentRun, close_parent, leave_to_flush, open_parent, upload_lineage
from plato_core.tracking.sender import Away, Refused, Sender, outcome
from plato_core.tracking.spool import Spool, Target, flush_command
from plato_core.tracking.writer import Writer

NAMES = [f"m{i}" for i in range(10)]
_NOW = 1_790_000_000_000


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    with mlflow_server(tmp_path_factory.mktemp("server")) as port:
        yield port


@pytest.fixture
def proxy(server: int) -> Iterator[Proxy]:
    with proxy_before(server) as proxy:
        yield proxy


@pytest.fixture
def parent(proxy: Proxy) -> ParentRun:
    parent = open_parent(proxy.uri, "writer", "sweep", {}, {})
    proxy.seen.clear()
    return parent


def _writer(folder: Path, uri: str, parent: ParentRun, keep: int = 1) -> Writer:
    target = Target(
        tracking_uri=uri,
        experiment_id=parent.experiment_id,
        parent_run_id=parent.run_id,
        sweep_id=parent.run_id,
        keep_checkpoints=keep,
        mode="max",
    )
    return Writer(Spool.create(folder, target))


def _begin(writer: Writer, *keys: str) -> None:
    target = writer.spool.target
    for key in keys:
        tags = {
            "mlflow.parentRunId": target.parent_run_id,
            "plato.sweep_id": target.sweep_id,
            "plato.trial_id": key,
        }
        writer.append({"op": "create", "key": key, "name": key, "tags": tags, "time": _NOW})
        writer.append({"op": "params", "key": key, "values": {"lr": "0.1"}})


def _points(writer: Writer, key: str, steps: range) -> None:
    for step in steps:
        values = {name: float(step) for name in NAMES}
        writer.append({"op": "metrics", "key": key, "step": step, "time": _NOW + step, "values": values})


def _end(writer: Writer, *keys: str) -> None:
    for key in keys:
        writer.append({"op": "status", "key": key, "status": "FINISHED", "time": _NOW + 10_000})


def _runs(uri: str, parent: ParentRun) -> dict[str, Run]:
    """The trials' runs by key; none twice."""
    found = MlflowClient(uri).search_runs([parent.experiment_id], f"tags.plato.sweep_id = '{parent.run_id}'")
    counts = Counter(run.data.tags["plato.trial_id"] for run in found)
    assert set(counts.values()) <= {1}, counts
    return {run.data.tags["plato.trial_id"]: run for run in found}


def _assert_whole(uri: str, parent: ParentRun, keys: list[str], steps: int, status: str = "FINISHED") -> None:
    client, runs = MlflowClient(uri), _runs(uri, parent)
    assert sorted(runs) == keys
    for run in runs.values():
        assert run.info.status == status
        assert run.data.params == {"lr": "0.1"}
        for name in NAMES:
            history = client.get_metric_history(run.info.run_id, name)
            points = sorted((m.step, m.value, m.timestamp) for m in history)
            assert points == [(s, float(s), _NOW + s) for s in range(1, steps + 1)]


def _checkpoint(writer: Writer, source: Path, key: str, iteration: int, score: float | None) -> None:
    source.mkdir(parents=True)
    (source / "model.bin").write_bytes(bytes([iteration]) * 5000)
    (source / "state.json").write_text("{}")
    write_manifest(
        source,
        sweep_id="s",
        trial_id=key,
        trial_name=key,
        iteration=iteration,
        metric="episode_reward_mean",
        score=score,
        hyperparameters={},
        versions={},
    )
    held = writer.spool.held(key, checkpoint_name(iteration))
    hold_tree(source, held)
    shutil.rmtree(source)  # as Tune does
    op: UploadCheckpoint = {
        "op": "checkpoint",
        "key": key,
        "path": writer.spool.relative(held),
        "iteration": iteration,
        "score": score,
    }
    writer.append(op)


def test_every_point_arrives_exactly_once_whatever_the_server_answers(
    tmp_path: Path, proxy: Proxy, parent: ParentRun
) -> None:
    faults: list[Fault] = [
        429,
        "reset",
        "lost reply",
        500,
        503,
        "lost reply",
        429,
        "lost reply",
        "reset",
        500,
    ]
    proxy.fail_first(faults)
    writer = _writer(tmp_path / "spool", proxy.uri, parent)
    _begin(writer, "a", "b")
    writer.start()
    for first in range(1, 101, 20):
        _points(writer, "a", range(first, first + 20))
        _points(writer, "b", range(first, first + 20))
        time.sleep(0.1)
    _end(writer, "a", "b")
    summary = writer.drain(60)
    assert summary.complete
    assert summary.rejected == 0
    assert len([seen for seen in proxy.seen if seen.answer in faults]) == len(faults)
    assert not (tmp_path / "spool").exists()
    _assert_whole(proxy.uri, parent, ["a", "b"], 100)


def test_runs_whose_creation_had_no_answer_are_there_once(tmp_path: Path, proxy: Proxy, parent: ParentRun) -> None:
    """MLflow by itself sends such a request again, and has two runs then."""
    proxy.fail_first(["lost reply", "lost reply"], "runs/create")
    writer = _writer(tmp_path / "spool", proxy.uri, parent)
    _begin(writer, "a", "b")
    for key in ("a", "b"):
        _points(writer, key, range(1, 4))
    _end(writer, "a", "b")
    writer.start()
    assert writer.drain(30).complete
    assert [seen.answer for seen in proxy.seen if seen.name == "POST runs/create"] == ["lost reply", "lost reply"]
    _assert_whole(proxy.uri, parent, ["a", "b"], 3)

    proxy.fail_first(["lost reply", 503], "runs/create")
    tags = {"plato.sweep_id": "answer-lost", "plato.kind": "sweep"}
    opened = open_parent(proxy.uri, "answer-lost", "sweep", tags, {})
    runs = MlflowClient(proxy.uri).search_runs([opened.experiment_id])
    assert [run.info.run_id for run in runs] == [opened.run_id]


def test_while_results_come_by_the_hundred_a_store_on_this_machine_is_left_alone(
    tmp_path: Path, proxy: Proxy, parent: ParentRun
) -> None:
    writer, keys = _writer(tmp_path / "spool", proxy.uri, parent), [f"t{number}" for number in range(8)]
    writer.start()
    until, step, asked = time.monotonic() + 5.0, 0, len(proxy.seen)
    while time.monotonic() < until:
        step += 1
        for key in keys:
            if step == 1:
                _begin(writer, key)
            _points(writer, key, range(step, step + 1))
            if step % 10 == 0:
                writer.append({"op": "tags", "key": key, "values": {"step": str(step)}})
        time.sleep(0.02)
    while_busy = len(proxy.seen) - asked
    _end(writer, *keys)
    assert writer.drain(60).complete
    _assert_whole(proxy.uri, parent, keys, step)
    requests = len(proxy.seen) - asked
    assert 0 < while_busy < 20 < requests, (while_busy, requests)


def test_a_run_is_created_then_logged_then_ended(tmp_path: Path, proxy: Proxy, parent: ParentRun) -> None:
    writer = _writer(tmp_path / "spool", proxy.uri, parent)
    _begin(writer, "a")
    _points(writer, "a", range(1, 4))
    _end(writer, "a")
    writer.start()
    assert writer.drain(30).complete
    names = [name for name in proxy.names() if name.startswith("POST runs/")]
    assert names[0] == "POST runs/create"
    assert names[-1] == "POST runs/update"
    assert set(names[1:-1]) == {"POST runs/log-batch"}


def test_a_slow_store_gets_fewer_and_fuller_batches(tmp_path: Path, proxy: Proxy, parent: ParentRun) -> None:
    def batches(key: str, delay_s: float) -> int:
        proxy.delay_s = delay_s
        writer = _writer(tmp_path / key, proxy.uri, parent)
        _begin(writer, key)
        writer.start()
        for step in range(1, 101):
            _points(writer, key, range(step, step + 1))
            time.sleep(0.02)
        summary = writer.drain(60)
        assert summary.complete
        assert summary.sent_metrics == 1000
        return summary.sent_batches

    quick, slow = batches("quick", 0.0), batches("slow", 0.3)
    assert quick < 40, "100 results need not be 100 requests"
    assert slow <= min(quick, 12), "what is journaled while a request is under way goes with the next"


def test_points_journaled_while_the_store_is_away_arrive_when_it_is_back(
    tmp_path: Path, proxy: Proxy, parent: ParentRun
) -> None:
    writer = _writer(tmp_path / "spool", proxy.uri, parent)
    proxy.away = True
    _begin(writer, "a")
    writer.start()
    _points(writer, "a", range(1, 51))
    wait_until(lambda: writer.summary().last_error)
    assert writer.summary().sent_batches == 0
    proxy.away = False
    _points(writer, "a", range(51, 101))
    _end(writer, "a")
    assert writer.drain(60).complete
    _assert_whole(proxy.uri, parent, ["a"], 100)


def test_what_cannot_be_sent_at_the_end_stays_and_flush_sends_it(
    tmp_path: Path, proxy: Proxy, parent: ParentRun, capsys: pytest.CaptureFixture[str]
) -> None:
    spool = tmp_path / "sweep" / "tracking"
    writer = _writer(spool, proxy.uri, parent)
    _begin(writer, "a")
    _points(writer, "a", range(1, 11))
    writer.start()
    wait_until(lambda: writer.summary().sent_batches)
    proxy.away = True
    _points(writer, "a", range(11, 31))
    _end(writer, "a")
    summary = writer.drain(1.0)
    assert summary.pending_ops == 21
    assert summary.spool == spool
    assert f"`plato flush {spool}` sends them" in summary.describe()
    with pytest.raises(TrackingError, match="does not answer"):
        flush_command(spool)
    proxy.away = False
    assert flush_command(spool.parent) == 0
    assert "20" in capsys.readouterr().err
    assert not spool.exists()
    _assert_whole(proxy.uri, parent, ["a"], 30)


def test_ctrl_c_ends_a_flush_whose_upload_hangs(tmp_path: Path, proxy: Proxy, parent: ParentRun) -> None:
    spool = tmp_path / "sweep" / "tracking"
    writer = _writer(spool, proxy.uri, parent)
    _begin(writer, "a")
    _checkpoint(writer, tmp_path / "source", "a", 10, 1.0)
    proxy.away = True
    writer.start()
    writer.close()
    proxy.away = False
    proxy.fault = lambda method, path: "silent" if method == "PUT" else None
    process = subprocess.Popen(
        [sys.executable, "-m", "plato_core.cli", "flush", str(spool.parent)], stderr=subprocess.PIPE, text=True
    )
    wait_until(lambda: "silent" in [seen.answer for seen in list(proxy.seen)])
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=60)  # its request would be given up after minutes
    assert process.returncode == 130
    assert said.endswith(f"error: stopped by Ctrl-C; what is left stays in {spool.parent}\n")
    assert (spool / "held" / "a" / checkpoint_name(10)).is_dir()


def test_a_trial_that_was_cut_off_ends_though_its_upload_hangs(tmp_path: Path, proxy: Proxy, parent: ParentRun) -> None:
    spool = tmp_path / "sweep" / "tracking"
    writer = _writer(spool, proxy.uri, parent)
    proxy.fault = lambda method, path: "silent" if method == "PUT" and path.endswith("model.bin") else None
    _begin(writer, "a")
    _checkpoint(writer, tmp_path / "source", "a", 10, 1.0)
    writer.start()
    wait_until(lambda: "silent" in [seen.answer for seen in list(proxy.seen)])
    _points(writer, "a", range(1, 11))
    writer.append({"op": "status", "key": "a", "status": "KILLED", "time": _NOW + 10_000})
    assert writer.drain(60.0, limit_s=lambda: 3.0).pending_ops == 1
    _assert_whole(proxy.uri, parent, ["a"], 10, "KILLED")
    proxy.fault = lambda method, path: None
    assert flush_command(spool) == 0
    run_id = _runs(proxy.uri, parent)["a"].info.run_id
    stored = {file.path for file in MlflowClient(proxy.uri).list_artifacts(run_id, checkpoint_name(10))}
    assert f"{checkpoint_name(10)}/manifest.json" in stored


_KILLED = """
import sys, time
from pathlib import Path
sys.path[:0] = {folders!r}
from test_tracking_writer import ParentRun, _begin, _end, _points, _writer
writer = _writer(Path({spool!r}), {uri!r}, ParentRun({run!r}, {experiment!r}, ""))
_begin(writer, "a", "b")
writer.start()
for step in range(1, 301):
    _points(writer, "a", range(step, step + 1))
    _points(writer, "b", range(step, step + 1))
    time.sleep(0.002)
_end(writer, "a", "b")
print("journaled", flush=True)
time.sleep(60)
"""


def test_a_killed_writer_loses_and_doubles_nothing(tmp_path: Path, proxy: Proxy, parent: ParentRun) -> None:
    spool = tmp_path / "spool"
    proxy.delay_s = 0.15  # so that it is killed in the middle of its work
    proxy.fail_first(["lost reply"], "log-batch")
    code = _KILLED.format(
        folders=[str(folder) for folder in Path(__file__).parents[:2]],
        spool=str(spool),
        uri=proxy.uri,
        run=parent.run_id,
        experiment=parent.experiment_id,
    )
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, env=dict(os.environ))
    assert process.stdout is not None
    assert process.stdout.readline() == b"journaled\n"
    wait_until(lambda: proxy.names().count("POST runs/log-batch") >= 2)
    process.send_signal(signal.SIGKILL)
    process.wait(10)
    assert spool.exists(), "the test must kill it before it is done"
    proxy.delay_s = 0.0
    assert flush_command(spool) == 0
    _assert_whole(proxy.uri, parent, ["a", "b"], 300)


def test_what_the_store_refuses_is_set_aside_and_the_rest_arrives(
    tmp_path: Path, proxy: Proxy, parent: ParentRun
) -> None:
    spool = tmp_path / "spool"
    writer = _writer(spool, proxy.uri, parent)
    _begin(writer, "a")
    writer.start()
    wait_until(lambda: writer.summary().sent_batches)
    _points(writer, "a", range(1, 5))
    writer.append({"op": "params", "key": "a", "values": {"lr": "0.2"}})
    _points(writer, "a", range(5, 11))
    _end(writer, "a")
    summary = writer.drain(30)
    assert (summary.rejected, summary.pending_ops, summary.spool) == (1, 0, spool)
    assert "refused 1 operations" in summary.describe()
    assert "Changing param values is not allowed" in (spool / "rejected.jsonl").read_text()
    _assert_whole(proxy.uri, parent, ["a"], 10)


def test_a_checkpoint_goes_up_with_its_manifest_last_though_its_source_is_gone(
    tmp_path: Path, proxy: Proxy, parent: ParentRun
) -> None:
    writer = _writer(tmp_path / "spool", proxy.uri, parent)
    _begin(writer, "a")
    _checkpoint(writer, tmp_path / "tune" / "checkpoint_000000", "a", 7, 100.0)
    _end(writer, "a")
    writer.start()
    summary = writer.drain(30)
    assert summary.complete
    assert summary.uploads == 1
    assert summary.bytes > 5000
    puts = [seen.path.rpartition("/")[2] for seen in proxy.seen if seen.method == "PUT"]
    assert sorted(puts) == ["manifest.json", "model.bin", "state.json"]
    assert puts[-1] == "manifest.json"
    order = [name for name in proxy.names() if name.startswith(("PUT", "POST runs/update"))]
    assert order[-1] == "POST runs/update", "the run ends after its uploads"
    run = _runs(proxy.uri, parent)["a"]
    downloaded = MlflowClient(proxy.uri).download_artifacts(
        run.info.run_id, "checkpoint_000007/model.bin", str(tmp_path)
    )
    assert Path(downloaded).read_bytes() == bytes([7]) * 5000


def test_an_upload_that_is_cut_off_leaves_no_manifest_and_is_completed_by_flush(
    tmp_path: Path, proxy: Proxy, parent: ParentRun
) -> None:
    proxy.fault = lambda method, path: 500 if path.endswith("state.json") else None
    writer = _writer(tmp_path / "spool", proxy.uri, parent)
    _begin(writer, "a")
    _checkpoint(writer, tmp_path / "c", "a", 3, 1.0)
    _points(writer, "a", range(1, 4))
    _end(writer, "a")
    writer.start()
    wait_until(lambda: any(seen.answer == 500 for seen in proxy.seen))
    wait_until(lambda: writer.summary().pending_ops == 2)  # the metrics did not wait for the upload; the end did
    writer.close()
    client, run = MlflowClient(proxy.uri), _runs(proxy.uri, parent)["a"]
    assert run.info.status == "RUNNING"
    assert "checkpoint_000003/manifest.json" not in [
        file.path for file in client.list_artifacts(run.info.run_id, "checkpoint_000003")
    ]
    proxy.fault = lambda method, path: None
    wait_until(lambda: _flushes(tmp_path / "spool"))
    assert len(client.list_artifacts(run.info.run_id, "checkpoint_000003")) == 3
    _assert_whole(proxy.uri, parent, ["a"], 3)


def _flushes(spool: Path) -> bool:
    try:
        return flush_command(spool) == 0
    except TrackingError:  # the closed writer's thread may still be at its last request
        return False


def test_the_store_keeps_the_best_and_the_last_checkpoint(tmp_path: Path, proxy: Proxy, parent: ParentRun) -> None:
    writer = _writer(tmp_path / "spool", proxy.uri, parent, keep=1)
    _begin(writer, "a")
    writer.start()
    for iteration, score in [(1, 5.0), (2, 50.0), (3, None), (4, 10.0)]:
        _checkpoint(writer, tmp_path / "c", "a", iteration, score)
        wait_until(lambda done=iteration: writer.summary().uploads == done)
    _end(writer, "a")
    assert writer.drain(30).complete
    run = _runs(proxy.uri, parent)["a"]
    folders = [file.path for file in MlflowClient(proxy.uri).list_artifacts(run.info.run_id)]
    assert folders == ["checkpoint_000002", "checkpoint_000004"]
    deletes = [seen.path.rpartition("checkpoint_")[2] for seen in proxy.seen if seen.method == "DELETE"]
    assert deletes[0] == "000001/manifest.json", "half a checkpoint must never look whole"


def test_a_store_that_cannot_delete_is_reported_and_gets_everything(
    tmp_path: Path, proxy: Proxy, parent: ParentRun
) -> None:
    proxy.fault = lambda method, path: 405 if method == "DELETE" else None
    writer = _writer(tmp_path / "spool", proxy.uri, parent, keep=1)
    _begin(writer, "a")
    writer.start()
    for iteration in (1, 2, 3):
        _checkpoint(writer, tmp_path / "c", "a", iteration, float(iteration))
        wait_until(lambda done=iteration: writer.summary().uploads == done)
    _end(writer, "a")
    summary = writer.drain(30)
    assert summary.complete
    assert summary.undeletable == 2
    assert "cannot delete: 2 checkpoints" in summary.describe()
    run = _runs(proxy.uri, parent)["a"]
    assert len(MlflowClient(proxy.uri).list_artifacts(run.info.run_id)) == 3


def test_checkpoints_that_pile_up_while_the_store_is_away_do_not_fill_the_disk(
    tmp_path: Path, proxy: Proxy, parent: ParentRun
) -> None:
    proxy.away = True
    writer = _writer(tmp_path / "spool", proxy.uri, parent, keep=1)
    _begin(writer, "a")
    for iteration in range(1, 11):
        _checkpoint(writer, tmp_path / "c", "a", iteration, 100.0 - iteration)
    writer.start()
    held = tmp_path / "spool" / "held" / "a"
    wait_until(lambda: len(list(held.iterdir())) == 2)
    proxy.away = False
    summary = writer.drain(30)
    assert (summary.superseded, summary.uploads) == (8, 2)
    run = _runs(proxy.uri, parent)["a"]
    folders = [file.path for file in MlflowClient(proxy.uri).list_artifacts(run.info.run_id)]
    assert folders == ["checkpoint_000001", "checkpoint_000010"]


# ---- SQLite, and the parent run


def test_a_parent_run_that_cannot_be_filled_is_not_left_running_and_the_next_try_takes_it(tmp_path: Path) -> None:
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    (tmp_path / "mlruns").write_text("a file where the artifacts' folder should be")
    tags, texts = {"plato.sweep_id": "x", "plato.kind": "sweep"}, {"config.yaml": "seed: 1\n"}
    with pytest.raises(TrackingError):
        open_parent(uri, "pbt_ppo", "sweep", tags, {"lr": 1}, texts=texts)
    client = MlflowClient(uri)
    experiment = client.get_experiment_by_name("pbt_ppo")
    assert experiment is not None
    [failed] = client.search_runs([experiment.experiment_id])
    assert failed.info.status == "FAILED"

    (tmp_path / "mlruns").unlink()
    opened = open_parent(uri, "pbt_ppo", "sweep", tags, {"lr": 1}, texts=texts, again=True)
    [run] = client.search_runs([experiment.experiment_id])
    assert (run.info.run_id, opened.run_id) == (failed.info.run_id,) * 2
    assert (run.info.status, run.data.params) == ("RUNNING", {"lr": "1"})
    assert [file.path for file in client.list_artifacts(opened.run_id)] == ["config.yaml"]


def test_the_end_of_a_parent_run_is_left_to_flush_while_the_store_is_away(tmp_path: Path) -> None:
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    parent = open_parent(uri, "pbt_ppo", "sweep", {}, {})
    (tmp_path / "lineage.jsonl").write_text("{}\n")
    target = Target(
        tracking_uri=uri,
        experiment_id=parent.experiment_id,
        parent_run_id=parent.run_id,
        sweep_id="x",
        keep_checkpoints=1,
        mode="max",
    )
    files = [tmp_path / "lineage.jsonl"]
    spool = tmp_path / "spool"
    leave_to_flush(spool, target, "FINISHED", tags={"top": "a"}, metrics={"fit_s": 2.0}, files=files)
    assert flush_command(spool) == 0
    client = MlflowClient(uri)
    run = client.get_run(parent.run_id)
    assert (run.info.status, run.data.tags["top"], run.data.metrics) == ("FINISHED", "a", {"fit_s": 2.0})
    assert [file.path for file in client.list_artifacts(parent.run_id)] == ["lineage.jsonl"]
    assert not spool.exists()


def test_sqlite_gets_the_same_and_its_artifacts_lie_beside_it(tmp_path: Path) -> None:
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    params = {f"p{i}": "v" * 600 for i in range(250)} | {"not a = name": 1}
    texts = {"config.yaml": "seed: 1\n"}
    parent = open_parent(uri, "pbt_ppo", "sweep", {"plato.sweep_id": "x"}, params, texts=texts)
    writer = _writer(tmp_path / "spool", uri, parent)
    _begin(writer, "a", "b")
    for key in ("a", "b"):
        _points(writer, key, range(1, 300))
        _checkpoint(writer, tmp_path / key, key, 5, 1.0)
    _end(writer, "a", "b")
    writer.start()
    summary = writer.drain(60)
    assert summary.complete
    assert summary.sent_batches == 6, "2 990 points a run, 1 000 a request"
    _assert_whole(uri, parent, ["a", "b"], 299)
    run = _runs(uri, parent)["a"]
    manifest = tmp_path / "mlruns" / "pbt_ppo" / run.info.run_id / "artifacts" / "checkpoint_000005" / "manifest.json"
    assert manifest.exists()

    (tmp_path / "lineage.jsonl").write_text("{}\n")
    upload_lineage(uri, parent.run_id, tmp_path / "lineage.jsonl")
    close_parent(uri, parent.run_id, "FINISHED", tags={"top": "a"}, metrics={"trials": 2})
    client = MlflowClient(uri)
    own = client.get_run(parent.run_id)
    assert (own.info.status, own.data.tags["top"], own.data.metrics) == ("FINISHED", "a", {"trials": 2.0})
    assert len(own.data.params) == 200
    assert {len(value) for value in own.data.params.values()} == {500}
    assert [file.path for file in client.list_artifacts(parent.run_id)] == ["config.yaml", "lineage.jsonl"]


def test_a_deleted_experiment_is_named_with_the_way_out(tmp_path: Path) -> None:
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    parent = open_parent(uri, "gone", "sweep", {}, {})
    again = open_parent(uri, "gone", "sweep", {}, {})
    assert again.experiment_id == parent.experiment_id
    MlflowClient(uri).delete_experiment(parent.experiment_id)
    with pytest.raises(TrackingError, match=r"'gone' is deleted .*mlflow experiments restore --experiment-id 1"):
        open_parent(uri, "gone", "sweep", {}, {})


# ---- what can be sent again, and what cannot


def _http_error(status: int) -> requests.HTTPError:
    response = requests.Response()
    response.status_code = status
    return requests.HTTPError(f"{status} from the artifact store", response=response)


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (RestException({"error_code": "REQUEST_LIMIT_EXCEEDED", "message": "slow down"}), Away),
        (RestException({"error_code": "UNAUTHENTICATED", "message": "token expired"}), Away),
        (RestException({"error_code": "TEMPORARILY_UNAVAILABLE", "message": "database is locked"}), Away),
        (RestException({"error_code": "INVALID_PARAMETER_VALUE", "message": "bad name"}), Refused),
        (RestException({"error_code": "RESOURCE_DOES_NOT_EXIST", "message": "no such run"}), Refused),
        (MlflowException("a gateway's own page", error_code=ENDPOINT_NOT_FOUND), Away),
        (_http_error(503), Away),
        (_http_error(413), Refused),
        (requests.ConnectionError("refused"), Away),
        (OSError(28, "No space left on device"), Away),
        (CheckpointError("a file is missing"), Refused),
        (NotImplementedError("cannot delete"), Refused),
        (KeyError("a bug"), Refused),
    ],
)
def test_failures_are_sorted_into_later_and_never(error: Exception, kind: type[Exception]) -> None:
    with pytest.raises(kind), outcome():
        raise error


def test_azure_ml_gets_smaller_batches() -> None:
    assert Sender("azureml://eastus.api.azureml.ms/mlflow", "1", "s").max_metrics == 200
    assert Sender("http://localhost:5000", "1", "s").max_metrics == 1000
