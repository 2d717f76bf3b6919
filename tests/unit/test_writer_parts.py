import math
import os
import time
from dataclasses import replace
from pathlib import Path

import pytest
import requests
from hypothesis import given
from hypothesis import strategies as st

from plato_core.errors import ConfigError, TrackingError
from plato_core.tracking.artifacts import is_transient
from plato_core.tracking.client import absolute_uri, check_reachable, redact, sqlite_path
from plato_core.tracking.courtesy import LONGEST_PAUSE_S, Courtesy, meter
from plato_core.tracking.hold import hold_file, hold_tree
from plato_core.tracking.lanes import Lane
from plato_core.tracking.ops import Op
from plato_core.tracking.retention import checkpoints_to_keep
from plato_core.tracking.runs import RunRecord, RunTable
from plato_core.tracking.sender import batch_of
from plato_core.tracking.spool import Spool, Target, flush_command
from plato_core.tracking.summary import DrainSummary

RESULT: Op = {"op": "metrics", "key": "t", "step": 1, "time": 1, "values": {}}


def _target(uri: str = "sqlite:////nowhere/mlflow.db") -> Target:
    return Target(tracking_uri=uri, experiment_id="1", parent_run_id="p", sweep_id="s", keep_checkpoints=1, mode="max")


# ---- what may succeed a little later


def test_an_answer_that_broke_off_is_asked_for_again_and_a_refusal_is_not() -> None:
    for passing in (requests.exceptions.ChunkedEncodingError(), requests.exceptions.RetryError(), requests.Timeout()):
        assert is_transient(passing)
    refused = requests.Response()
    refused.status_code = 404
    assert not is_transient(requests.HTTPError(response=refused))


# ---- which checkpoints stay


def test_the_best_and_the_last_stay() -> None:
    scores = {10: 5.0, 20: 9.0, 30: 7.0, 40: 1.0}
    assert checkpoints_to_keep(scores, 1, "max") == {20, 40}
    assert checkpoints_to_keep(scores, 2, "max") == {20, 30, 40}
    assert checkpoints_to_keep(scores, 1, "min") == {40}
    assert checkpoints_to_keep(scores, 2, "min") == {10, 40}


def test_an_unknown_score_is_the_worst_in_both_modes() -> None:
    for mode in ("max", "min"):
        assert checkpoints_to_keep({1: None, 2: math.nan, 3: 0.0, 4: None}, 1, mode) == {3, 4}


def test_of_equal_scores_the_later_stays() -> None:
    assert checkpoints_to_keep({1: 500.0, 2: 500.0, 3: 1.0}, 1, "max") == {2, 3}


def test_with_no_checkpoints_none_stay() -> None:
    assert checkpoints_to_keep({}, 3, "max") == set()


@given(st.dictionaries(st.integers(0, 50), st.none() | st.floats()), st.integers(1, 5))
def test_never_more_than_the_best_and_one_stay(scores: dict[int, float | None], keep: int) -> None:
    kept = checkpoints_to_keep(scores, keep, "max")
    assert kept <= set(scores)
    assert min(keep, len(scores)) <= len(kept) <= keep + 1


def test_a_waiting_checkpoint_that_would_be_deleted_at_once_is_not_sent() -> None:
    lane = Lane("t")
    for number, (iteration, score) in enumerate([(1, 1.0), (2, 9.0), (3, 2.0), (4, 3.0)]):
        lane.add(number, {"op": "checkpoint", "iteration": iteration, "score": score})
    assert [job.op["iteration"] for job in lane.superseded({}, 1, "max")] == [1, 3]
    lane.jobs[2].running = True
    assert [job.op["iteration"] for job in lane.superseded({}, 1, "max")] == [1]
    assert [job.op["iteration"] for job in lane.superseded({0: 10.0}, 1, "max")] == [1, 2]


# ---- batches


def _metrics(count: int) -> dict[str, object]:
    return {"op": "metrics", "values": {f"m{i}": 1.0 for i in range(count)}}


@pytest.mark.parametrize(("limit", "fits"), [(1000, 20), (200, 4)])
def test_a_batch_is_as_full_as_the_store_allows(limit: int, fits: int) -> None:
    items = [(n, _metrics(50)) for n in range(100)]
    assert batch_of(items, limit) == items[:fits]


def test_params_and_tags_count_towards_their_own_limits_and_the_sum() -> None:
    tags = {"op": "tags", "values": {f"t{i}": "" for i in range(60)}}
    assert len(batch_of([(0, tags), (1, tags)], 1000)) == 1
    assert len(batch_of([(0, tags), (1, _metrics(950))], 1000)) == 1
    assert len(batch_of([(0, tags), (1, _metrics(940))], 1000)) == 2


def test_an_operation_that_is_too_big_goes_alone() -> None:
    assert len(batch_of([(0, _metrics(300)), (1, _metrics(1))], 200)) == 1


# ---- holding


def test_a_held_tree_outlives_its_source(tmp_path: Path) -> None:
    source = tmp_path / "checkpoint"
    (source / "sub").mkdir(parents=True)
    (source / "a.bin").write_bytes(b"a" * 100)
    (source / "sub" / "b.json").write_text("{}")
    hold_tree(source, tmp_path / "held" / "x")
    assert (tmp_path / "held" / "x" / "a.bin").stat().st_ino == (source / "a.bin").stat().st_ino
    (source / "a.bin").unlink()
    assert (tmp_path / "held" / "x" / "a.bin").read_bytes() == b"a" * 100
    assert (tmp_path / "held" / "x" / "sub" / "b.json").read_text() == "{}"


def test_holding_again_replaces_and_a_missing_source_leaves_nothing(tmp_path: Path) -> None:
    source, held = tmp_path / "checkpoint", tmp_path / "held"
    source.mkdir()
    (source / "old").write_text("1")
    hold_tree(source, held)
    (source / "old").rename(source / "new")
    hold_tree(source, held)
    assert [path.name for path in held.iterdir()] == ["new"]
    with pytest.raises(FileNotFoundError):
        hold_tree(tmp_path / "none", tmp_path / "held2")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint", "held"]


@pytest.mark.skipif(not os.access("/dev/shm", os.W_OK), reason="needs a second file system")
def test_where_no_hard_link_is_possible_a_copy_is_held(tmp_path: Path) -> None:
    source = Path("/dev/shm") / f"plato-{os.getpid()}"
    if source.parent.stat().st_dev == tmp_path.stat().st_dev:
        pytest.skip("needs a second file system")
    source.write_text("x")
    try:
        hold_file(source, tmp_path / "held")
    finally:
        source.unlink()
    assert (tmp_path / "held").read_text() == "x"


# ---- records, spool


def test_what_is_left_is_told_with_the_way_out_that_there_is() -> None:
    left = DrainSummary(pending_ops=3, rejected=1, spool=Path("/sweeps/s/tracking"))
    here, in_a_job = left.describe(), replace(left, spool=None).describe()
    assert "3 operations are not in the tracking store (no time left); `plato flush /sweeps/s/tracking` sends" in here
    assert "see /sweeps/s/tracking/rejected.jsonl" in here
    assert "(no time left); they are sent when the sweep goes on" in in_a_job
    assert "see rejected.jsonl among the sweep's files" in in_a_job
    assert "None" not in in_a_job


def test_records_survive_a_way_through_the_disk(tmp_path: Path) -> None:
    table = RunTable(tmp_path / "runs.json")
    record = table.record("t")
    for op in (
        {"op": "metrics", "step": 7},
        {"op": "checkpoint", "iteration": 5},
        {"op": "status", "status": "FINISHED"},
    ):
        record.note(op)
    record.uploaded = {5: None, 6: 1.5}
    table.save()
    again = RunTable(tmp_path / "runs.json")
    assert again["t"] == RunRecord(step=7, checkpoint=5, ended=True, uploaded={5: None, 6: 1.5})


def test_two_processes_never_send_one_spool(tmp_path: Path) -> None:
    spool = Spool.create(tmp_path / "s", _target())
    with pytest.raises(TrackingError, match=f"being sent by process {os.getpid()}"):
        Spool(tmp_path / "s")
    spool.close()
    Spool(tmp_path / "s").close(remove=True)
    assert not (tmp_path / "s").exists()


def test_a_password_is_used_and_never_written_down(tmp_path: Path) -> None:
    spool = Spool.create(tmp_path / "s", _target("https://ann:secret@host:5000/mlflow"))
    assert spool.target.tracking_uri == "https://ann:secret@host:5000/mlflow"
    spool.close()
    assert "secret" not in (tmp_path / "s" / "target.json").read_text()
    again = Spool(tmp_path / "s")
    assert again.target.tracking_uri == "https://host:5000/mlflow"
    again.close()


@pytest.mark.parametrize("made", [False, True])
def test_flush_of_a_folder_that_is_no_spool_says_so(tmp_path: Path, made: bool) -> None:
    folder = tmp_path / "x"
    if made:
        folder.mkdir()
    with pytest.raises(ConfigError, match="no spool"):
        flush_command(folder)


# ---- the store's address


def test_addresses_are_shown_without_password_and_kept_absolute(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert redact("http://u:p@h:1/x") == "http://u:***@h:1/x"
    assert redact("http://h:1/x") == "http://h:1/x"
    assert absolute_uri("sqlite:///mlflow.db") == f"sqlite:///{tmp_path}/mlflow.db"
    assert absolute_uri(f"sqlite:///{tmp_path}/mlflow.db") == f"sqlite:///{tmp_path}/mlflow.db"
    assert absolute_uri("http://h:1") == "http://h:1"
    assert sqlite_path("http://h:1") is None


def test_a_server_that_does_not_answer_is_named_at_once() -> None:
    with pytest.raises(TrackingError, match=r"http://u:\*\*\*@127.0.0.1:9 does not answer .*--tracking-uri"):
        check_reachable("http://u:hidden@127.0.0.1:9")


def test_a_database_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    with pytest.raises(TrackingError, match="there is no folder"):
        check_reachable(f"sqlite:///{tmp_path}/none/mlflow.db")
    with pytest.raises(TrackingError, match="is a folder"):
        check_reachable(f"sqlite:///{tmp_path}")
    check_reachable(f"sqlite:///{tmp_path}/mlflow.db")
    assert not list(tmp_path.iterdir())


def test_writer_pauses_only_while_many_results_come() -> None:
    clock = {"now": 100.0}
    courtesy = Courtesy(lambda: clock["now"])
    assert courtesy.pause_s(0.07) == 0.0
    for results, pause in ((300, 7.0), (4, 0.0), (60, 7.0), (50, 0.0)):
        clock["now"] += 1.0
        for _ in range(results):
            courtesy.count(RESULT)
        assert courtesy.pause_s(0.07) == pytest.approx(pause)
        clock["now"] += 0.1  # too short to tell
        assert courtesy.pause_s(0.07) == pytest.approx(pause)


def test_writer_pauses_as_soon_as_results_come_in_a_burst() -> None:
    clock = {"now": 100.0}
    courtesy = Courtesy(lambda: clock["now"])
    for _ in range(30):
        courtesy.count(RESULT)
    clock["now"] += 0.02
    assert courtesy.pause_s(0.07) == pytest.approx(7.0)


def test_writer_does_not_pause_for_the_start_of_a_large_population() -> None:
    clock = {"now": 100.0}
    courtesy = Courtesy(lambda: clock["now"])
    for number in range(100):
        courtesy.count({"op": "create", "key": f"t{number}", "name": "t", "time": 1, "tags": {}})
    clock["now"] += 1.0
    assert courtesy.pause_s(0.07) == 0.0


def test_writer_never_pauses_for_long() -> None:
    clock = {"now": 100.0}
    courtesy = Courtesy(lambda: clock["now"])
    for _ in range(100):
        courtesy.count(RESULT)
    clock["now"] += 1.0
    assert courtesy.pause_s(1.0) == LONGEST_PAUSE_S


@pytest.mark.parametrize(
    ("uri", "here"),
    [("sqlite:////tmp/mlflow.db", True), ("http://127.0.0.1:5000", True), ("http://localhost:5000", True),
     ("postgresql://u@localhost/mlflow", True), ("https://mlflow.example.org", False),
     ("azureml://eastus.api.azureml.ms/mlflow/v2.0/subscriptions/s", False)],
)  # fmt: skip
def test_writer_counts_the_work_of_a_store_that_shares_its_machine(uri: str, here: bool) -> None:
    clock = meter(uri)
    began = clock()
    time.sleep(0.05)  # the store is at work, and this thread waits
    assert (clock() - began > 0.04) is here
