"""Pruning old sweeps: what goes, what stays, and that nothing else is touched."""

import fcntl
import json
import logging
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from plato_core import prune as prune_module
from plato_core.cli import main
from plato_core.errors import ConfigError, SweepError
from plato_core.prune import prune
from plato_core.pruned import Pruned
from plato_core.sweep.folder import (
    END_NAME,
    SWEEP_ID,
    End,
    Outcome,
    hold,
    new_sweep_id,
    read_end,
    record_done,
    record_end,
)
from plato_core.tracking.journal import Journal, pending
from tasks.prune import prune_old_sweeps

NOW = datetime.now(UTC)
NOBODY = 65534


def make(folder: Path, number: int, *, days: float, outcome: Outcome | None = "finished", locked: bool = True) -> Path:
    """A sweep that ended, or last wrote something, so many days ago."""
    sweep = folder / f"20260101-000000-{number:06x}"
    (sweep / "tune").mkdir(parents=True)
    (sweep / "config.yaml").write_text("env_name: CartPole-v1\n")
    (sweep / "tune" / "checkpoint").write_bytes(b"x" * 1000)
    if locked:
        hold(sweep).release()
    when = NOW - timedelta(days=days)
    if outcome is not None:
        (sweep / END_NAME).write_text(End(outcome=outcome, when=when, done=outcome == "finished").model_dump_json())
    for path in (*sweep.rglob("*"), sweep):
        os.utime(path, (when.timestamp(), when.timestamp()))
    return sweep


def contents(folder: Path) -> dict[str, str]:
    return {path.name: path.read_text() for path in folder.iterdir()}


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def why_kept(pruned: Pruned) -> dict[str, str]:
    return {kept.sweep_id: kept.why for kept in pruned.kept}


def test_sweeps_that_ended_longer_ago_go(tmp_path: Path) -> None:
    make(tmp_path, 1, days=10.1)
    young = make(tmp_path, 2, days=9.9)
    pruned = prune(tmp_path, older_than_days=10)
    assert names(tmp_path) == {young.name}
    assert [(gone.sweep_id, gone.why) for gone in pruned.gone] == [("20260101-000000-000001", "too old")]
    assert 1000 < pruned.gone[0].bytes < 1200
    assert why_kept(pruned) == {young.name: "within the limits"}


def test_all_but_the_newest_finished_sweeps_go(tmp_path: Path) -> None:
    made = [make(tmp_path, number, days=20 - number) for number in range(5)]
    pruned = prune(tmp_path, keep=2)
    assert names(tmp_path) == {made[3].name, made[4].name}
    assert [gone.why for gone in pruned.gone] == ["too many"] * 3


def test_either_limit_is_enough_to_go(tmp_path: Path) -> None:
    made = [make(tmp_path, number, days=days) for number, days in enumerate([30, 3, 2, 1])]
    pruned = prune(tmp_path, older_than_days=10, keep=2)
    assert {gone.sweep_id: gone.why for gone in pruned.gone} == {made[0].name: "too old", made[1].name: "too many"}


def test_the_recorded_end_counts_and_not_a_file_touched_since(tmp_path: Path) -> None:
    (make(tmp_path, 1, days=30) / "looked-at").write_text("")
    assert len(prune(tmp_path, older_than_days=10).gone) == 1


@pytest.mark.parametrize("outcome", [None, "stopped", "failed"])
def test_an_unfinished_sweep_goes_by_age_only(tmp_path: Path, outcome: Outcome | None) -> None:
    sweep = make(tmp_path, 1, days=5, outcome=outcome)
    assert why_kept(prune(tmp_path, keep=0)) == {sweep.name: "unfinished"}
    (sweep / "tune" / "result.json").write_text("it wrote something a moment ago")
    if outcome is None:
        assert prune(tmp_path, older_than_days=4).gone == ()
        os.utime(sweep / "tune" / "result.json", (0, 0))
        os.utime(sweep / "tune", (0, 0))
    assert len(prune(tmp_path, older_than_days=4).gone) == 1


def test_a_sweep_that_trained_and_was_not_fetched_goes_by_age_only(tmp_path: Path) -> None:
    sweep = make(tmp_path, 1, days=5, outcome=None)
    record_end(sweep, "finished")
    assert why_kept(prune(tmp_path, keep=0)) == {sweep.name: "unfinished"}
    record_done(sweep)
    assert [gone.why for gone in prune(tmp_path, keep=0).gone] == ["too many"]


def test_an_unfinished_sweep_takes_no_finished_ones_place(tmp_path: Path) -> None:
    finished = make(tmp_path, 1, days=5)
    make(tmp_path, 2, days=1, outcome=None)
    assert finished.exists()
    assert prune(tmp_path, keep=1).gone == ()


def test_a_running_sweep_stays_until_its_process_dies(tmp_path: Path) -> None:
    sweep = make(tmp_path, 1, days=100)
    code = f"from pathlib import Path; from plato_core.sweep.folder import hold; hold(Path({str(sweep)!r}));"
    with subprocess.Popen([sys.executable, "-c", code + "print(flush=True); input()"], stdout=-1, stdin=-1) as process:
        assert process.stdout is not None
        process.stdout.readline()
        assert why_kept(prune(tmp_path, older_than_days=1)) == {sweep.name: "running"}
        process.kill()
    assert len(prune(tmp_path, older_than_days=1).gone) == 1


def test_a_sweep_that_two_processes_hold_stays_until_both_let_go(tmp_path: Path) -> None:
    sweep = make(tmp_path, 1, days=100)
    parent, child = hold(sweep), hold(sweep)
    parent.release()
    assert why_kept(prune(tmp_path, keep=0)) == {sweep.name: "running"}
    child.release()
    child.release()
    assert len(prune(tmp_path, keep=0).gone) == 1


def test_a_sweep_that_is_being_pruned_cannot_be_taken_up(tmp_path: Path) -> None:
    sweep = make(tmp_path, 1, days=100)
    found, _ = prune_module._look(tmp_path)
    with prune_module._claimed(found[0], time.time()) as user:
        assert user is None
        with pytest.raises(SweepError, match="being pruned"):
            hold(sweep)


def test_without_a_lock_only_a_day_of_silence_says_that_a_sweep_has_ended(tmp_path: Path) -> None:
    fresh = make(tmp_path, 1, days=0.9, locked=False)
    make(tmp_path, 2, days=1.1, locked=False)
    pruned = prune(tmp_path, older_than_days=0)
    assert why_kept(pruned) == {fresh.name: "perhaps running"}
    assert names(tmp_path) == {fresh.name}


def test_a_file_system_without_locks_is_no_reason_to_fail(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def unsupported(descriptor: int, operation: int) -> None:
        raise OSError(38, "Function not implemented")

    monkeypatch.setattr("fcntl.flock", unsupported)
    fresh, old = make(tmp_path, 1, days=0.5), make(tmp_path, 2, days=5)
    assert why_kept(prune(tmp_path, older_than_days=0)) == {fresh.name: "perhaps running"}
    assert not old.exists()


def test_results_that_are_not_sent_are_not_lost_unless_asked_for(tmp_path: Path) -> None:
    sweep = make(tmp_path, 1, days=100)
    spool = sweep / "tracking"
    spool.mkdir()
    (spool / "lock").write_text("")
    (spool / "journal-000000000003.jsonl").write_text('{"number": 3}\n{"number": 4}\n{"number": 5}\n{"torn')
    (spool / "cursor.json").write_text('{"low": 4, "done": [[5, 5]]}')
    before = contents(spool)
    pruned = prune(tmp_path, older_than_days=1)
    assert contents(spool) == before
    assert why_kept(pruned) == {sweep.name: "unsent"}
    assert f"plato flush {sweep}" in pruned.describe()
    with (sweep / "tracking" / "lock").open("rb") as flushing:
        fcntl.flock(flushing, fcntl.LOCK_EX)
        assert why_kept(prune(tmp_path, older_than_days=1, unsent=True)) == {sweep.name: "running"}
    assert len(prune(tmp_path, older_than_days=1, unsent=True).gone) == 1


@pytest.mark.parametrize(
    ("cursor", "why"), [('{"low": 6, "done": []}', None), ('{"low": 4, "done": [[4, 5]]}', None), ('{"low"', "unsent")]
)
def test_a_spool_with_nothing_left_to_send_keeps_no_sweep(tmp_path: Path, cursor: str, why: str | None) -> None:
    sweep = make(tmp_path, 1, days=100)
    spool = sweep / "tracking"
    spool.mkdir()
    (spool / "lock").write_text("")
    (spool / "journal-000000000004.jsonl").write_text('{"number": 4}\n{"number": 5}\n')
    (spool / "cursor.json").write_text(cursor)
    (spool / "rejected.jsonl").write_text('{"error": "no", "op": {}}\n' * 2)
    pruned = prune(tmp_path, older_than_days=1)
    if why is not None:
        assert why_kept(pruned) == {sweep.name: why}
        return
    assert not sweep.exists()
    first, _ = pruned.describe().splitlines()
    assert first.endswith("kB, with 2 operations that the tracker refused (rejected.jsonl)")


def test_a_sweep_is_unsent_as_long_as_its_journal_says_so(tmp_path: Path) -> None:
    sweep = make(tmp_path, 1, days=100)
    journal = Journal(sweep / "tracking")
    assert pending(sweep / "tracking") == 0
    for number in range(40):
        journal.append({"number": number})
    read = [number for number, _ in journal.read(100)]
    for done in ([3, 7], range(1, 31), range(1, 41)):
        journal.done(done)
        journal.commit()
        assert pending(sweep / "tracking") == journal.pending
    assert len(read) == 40
    journal.close()
    assert len(prune(tmp_path, older_than_days=1).gone) == 1


def test_what_is_no_sweep_is_left_alone(tmp_path: Path) -> None:
    outside, folder = tmp_path / "outside", tmp_path / "sweeps"
    target = make(outside, 1, days=100)
    folder.mkdir()
    (folder / target.name).symlink_to(target)
    (folder / ".pruned-20260101-000000-00000f").symlink_to(target)
    (folder / "20260101-000000-000002").mkdir()  # no config.yaml
    make(folder, 3, days=100).rename(folder / "20260101-000000-mine")
    make(folder, 4, days=100).rename(folder / "my sweep 20260101-000000-000004")
    (folder / "20260101-000000-000005").write_text("a file")
    (folder / ".pruned-notes").mkdir()
    before = names(folder)
    pruned = prune(folder, older_than_days=0, keep=0, unsent=True)
    assert (pruned.gone, pruned.kept, pruned.failed) == ((), (), ())
    assert names(folder) == before
    assert (target / "tune" / "checkpoint").exists()


def test_a_link_inside_a_sweep_goes_and_not_what_it_points_at(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "precious").write_text("x")
    sweep = make(tmp_path / "sweeps", 1, days=100)
    (sweep / "tune" / "data").symlink_to(tmp_path / "data")
    prune(tmp_path / "sweeps", older_than_days=1)
    assert not sweep.exists()
    assert (tmp_path / "data" / "precious").exists()


def test_a_dry_run_says_the_same_and_removes_nothing(tmp_path: Path) -> None:
    make(tmp_path, 1, days=100)
    make(tmp_path, 2, days=100).rename(tmp_path / ".pruned-20260101-000000-000002")
    dry = prune(tmp_path, keep=0, dry_run=True)
    assert len(names(tmp_path)) == 2
    assert "would remove 2 sweeps, 2.2 kB" in dry.describe()
    assert prune(tmp_path, keep=0).gone == dry.gone
    assert names(tmp_path) == set()


def test_what_an_interrupted_prune_left_is_removed_by_the_next(tmp_path: Path) -> None:
    rest = make(tmp_path, 1, days=0).rename(tmp_path / ".pruned-20260101-000000-000001")
    (rest / "config.yaml").unlink()
    (rest / "running.lock").unlink()
    pruned = prune(tmp_path, older_than_days=1000)
    assert [gone.why for gone in pruned.gone] == ["left over"]
    assert names(tmp_path) == set()


def test_prunes_at_once_share_the_work(tmp_path: Path) -> None:
    made = {make(tmp_path, number, days=100).name for number in range(60)}
    with ThreadPoolExecutor(4) as pool:
        done = list(pool.map(lambda _: prune(tmp_path, keep=0), range(4)))
    assert [pruned.failed for pruned in done] == [()] * 4
    assert sorted(gone.sweep_id for pruned in done for gone in pruned.gone) == sorted(made)
    assert names(tmp_path) == set()


def test_one_that_cannot_be_removed_is_reported_and_the_others_go(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    stuck = make(tmp_path, 1, days=100)
    (tmp_path / f".pruned-{stuck.name}").write_text("in the way")
    gone = make(tmp_path, 2, days=100)
    assert main(["prune", str(tmp_path), "--keep", "0", "--json"]) == 1
    said = json.loads(capsys.readouterr().out)
    assert [(failed["sweep_id"], "Not a directory" in failed["error"]) for failed in said["failed"]] == [
        (stuck.name, True)
    ]
    assert not gone.exists()
    assert stuck.exists()


@pytest.fixture
def folder_of_nobody() -> Iterator[Path]:
    """A folder of sweeps, seen by somebody whom permissions stop: not by root."""
    root = os.geteuid() == 0
    with tempfile.TemporaryDirectory() as name:
        make(Path(name), 1, days=100)
        if root:
            for path in (Path(name), *Path(name).rglob("*")):
                os.chown(path, NOBODY, -1)
            os.seteuid(NOBODY)
        yield Path(name)
        if root:
            os.seteuid(0)


def test_what_permissions_protect_is_reported_and_removed_later(folder_of_nobody: Path) -> None:
    (protected := next(folder_of_nobody.glob("*/tune"))).chmod(0o500)
    pruned = prune(folder_of_nobody, keep=0)
    assert pruned.gone == ()
    assert "Permission denied" in pruned.failed[0].error
    (rest,) = folder_of_nobody.iterdir()
    (rest / protected.name).chmod(0o700)
    assert [gone.why for gone in prune(folder_of_nobody, keep=0).gone] == ["left over"]
    assert names(folder_of_nobody) == set()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "give --older-than-days, --keep, or both"),
        (["--keep", "-1"], "--keep: -1 is no number of sweeps"),
        (["--older-than-days", "-0.5"], "--older-than-days: -0.5 is no number of days"),
        (["--older-than-days", "nan"], "--older-than-days: nan is no number of days"),
        (["--keep", "1", "--dryrun"], "--dryrun"),
    ],
)
def test_a_prune_without_a_possible_limit_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], said: str
) -> None:
    sweep = make(tmp_path, 1, days=100)
    assert main(["prune", str(tmp_path), *arguments]) == 2
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1
    assert sweep.exists()


def test_a_folder_that_holds_no_sweeps_is_told_apart(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no such folder"):
        prune(tmp_path / "none", keep=1)
    with pytest.raises(ConfigError, match=f"single sweep; give the folder that it is in, {tmp_path}"):
        prune(make(tmp_path, 1, days=100), keep=0)
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="Not a directory"):
        prune(tmp_path / "file", keep=0)


def test_the_command_tells_a_person_what_it_did(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make(tmp_path, 1, days=100)
    make(tmp_path, 2, days=1)
    make(tmp_path, 3, days=1, outcome="stopped")
    assert main(["prune", str(tmp_path), "--keep", "1"]) == 0
    first, last = capsys.readouterr().out.splitlines()
    assert first == "20260101-000000-000001  too many, 1.1 kB"
    assert last == "removed 1 sweep, 1.1 kB; kept 2: 1 within the limits, 1 unfinished"


def logged(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch, folder: Path) -> list[tuple[str, str]]:
    """What the task says in its log, each line with its level."""
    caplog.clear()
    monkeypatch.setattr("tasks.prune.get_run_logger", lambda: logging.getLogger("task"))
    with caplog.at_level(logging.INFO, "task"):
        prune_old_sweeps.fn(folder, 14, 30)
    return [(record.levelname, record.getMessage()) for record in caplog.records if record.name == "task"]


def test_a_sweep_goes_on_when_old_ones_cannot_be_pruned(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(folder: Path, **limits: object) -> Pruned:
        raise ZeroDivisionError

    (tmp_path / "file").write_text("")
    ((level, said),) = logged(caplog, monkeypatch, tmp_path / "file")
    assert level == "WARNING"
    assert said.startswith("old sweeps were not pruned: ")
    monkeypatch.setattr("tasks.prune.prune", broken)
    assert logged(caplog, monkeypatch, tmp_path) == [("WARNING", "old sweeps were not pruned")]


def test_the_first_sweep_of_a_machine_has_nothing_to_prune(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    none = tmp_path / "none"
    assert logged(caplog, monkeypatch, none) == [("INFO", f"there are no old sweeps: {none} is not there yet")]


def test_the_task_prunes(tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    sweep = make(tmp_path, 1, days=100)
    ((level, said),) = logged(caplog, monkeypatch, tmp_path)
    assert level == "INFO"
    assert "removed 1 sweep" in said
    assert not sweep.exists()


def test_the_end_of_a_sweep_reads_back(tmp_path: Path) -> None:
    assert SWEEP_ID.fullmatch(new_sweep_id())
    assert read_end(tmp_path) is None
    record_end(tmp_path, "stopped")
    end = read_end(tmp_path)
    assert end is not None
    assert end.outcome == "stopped"
    assert timedelta(0) <= datetime.now(UTC) - end.when < timedelta(minutes=1)
    (tmp_path / END_NAME).write_text('{"outcome": "fin')
    assert read_end(tmp_path) is None
    record_end(tmp_path / "gone", "finished")  # no error: an end cannot fail for want of a note
