"""What `plato doctor` says of sweeps, by their folders alone: the MLflow store is not asked in any of these."""

from __future__ import annotations

import fcntl
import json
import logging
import subprocess
import sys
from pathlib import Path

import pytest

from plato_core.cli import main
from plato_core.closing import CLOSED_NAME, close_left_running, forget_closing
from plato_core.config_sources import load_config
from plato_core.doctor import Checkup, examine, look
from plato_core.sweep import folder
from plato_core.sweep.revival import trial_id
from plato_core.tracking.journal import Journal
from tasks.closing import close_left_behind

HEAVY = ("ray", "mlflow", "prefect", "torch", "matplotlib")


def make(storage: Path, number: int = 1, *, outcome: folder.Outcome | None = None, store: str = "") -> Path:
    """A sweep that is over, whose MLflow runs are closed already."""
    sweep = storage / f"2026080{number}-020000-aaaaa{number}"
    sweep.mkdir(parents=True)
    given = {"preset": "test-local", "num_tune_samples": 2, "tracking_uri": store or "http://127.0.0.1:9"}
    (sweep / folder.CONFIG_NAME).write_text(load_config(given, None, {}).to_yaml())
    folder.hold(sweep).release()
    if outcome is not None:
        folder.record_end(sweep, outcome)
    (sweep / CLOSED_NAME).write_text('{"unsent": 0}')
    return sweep


def trained(sweep: Path, index: int, *iterations: int, attempt: str = "tune", torn: str = "") -> None:
    """A trial's log."""
    trial = sweep / attempt / f"PPO_CartPole-v1_{trial_id(sweep.name, index)}"
    trial.mkdir(parents=True)
    lines = [json.dumps({"training_iteration": iteration, "config": {}}) + "\n" for iteration in iterations]
    (trial / "result.json").write_text("".join(lines) + torn)


@pytest.mark.parametrize(
    ("outcome", "state"),
    [(None, "died"), ("stopped", "stopped"), ("failed", "failed"), ("finished", "trained")],
)
def test_a_sweep_that_is_not_done_is_listed_with_how_to_go_on(
    tmp_path: Path, outcome: folder.Outcome | None, state: str
) -> None:
    sweep = make(tmp_path, outcome=outcome)
    checkup = examine(tmp_path)
    (seen,) = checkup.open
    assert (seen.sweep_id, seen.state, seen.what) == (sweep.name, state, "PPO on CartPole-v1")
    assert seen.resume == f"plato sweep --resume {sweep.name} --storage-path {tmp_path}"
    assert str(seen.resume) in checkup.describe()
    assert checkup.all_well


def test_a_done_sweep_is_not_listed_until_it_is_taken_up_again(tmp_path: Path) -> None:
    sweep = make(tmp_path, outcome="finished")
    folder.record_done(sweep)
    assert examine(tmp_path).open == ()
    assert examine(tmp_path).describe() == f"1 sweep in {tmp_path}, none unfinished"
    folder.forget_end(sweep)
    assert [seen.state for seen in examine(tmp_path).open] == ["died"]


def test_a_running_sweep_is_listed_and_cannot_be_resumed(tmp_path: Path) -> None:
    held = folder.hold(sweep := make(tmp_path))
    assert (look(sweep).state, look(sweep).resume) == ("running", None)
    held.release()
    assert look(sweep).state == "died"


def test_without_locks_a_fresh_sweep_may_be_running(tmp_path: Path) -> None:
    sweep = make(tmp_path)
    (sweep / folder.RUNNING_NAME).unlink()
    (sweep / CLOSED_NAME).unlink()
    assert (look(sweep).state, look(sweep).resume) == ("perhaps running", None)
    assert close_left_running(tmp_path) == [], "nobody was asked"


def test_how_far_it_is_comes_from_the_newest_logs(tmp_path: Path) -> None:
    sweep = make(tmp_path)
    trained(sweep, 0, 1, 2, 3)
    trained(sweep, 0, 1, 2, 3, 4, attempt="tune-2", torn='{"training_iteration": 5, "conf')
    assert look(sweep).iterations == (4, 0)
    trained(sweep, 1, 1, 2, attempt="tune-2")
    trained(sweep, 1, attempt="tune-3")  # it was killed before the first result of that attempt
    assert look(sweep).iterations == (4, 2)
    assert "2-4 of 60" in examine(tmp_path).describe()


def test_what_is_not_sent_is_listed_with_how_to_send_it_also_of_a_done_sweep(tmp_path: Path) -> None:
    sweep = make(tmp_path, outcome="finished")
    folder.record_done(sweep)
    journal = Journal(sweep / "tracking")
    journal.append({"op": "status"})
    journal.close()
    checkup = examine(tmp_path)
    assert [(seen.state, seen.unsent, seen.resume) for seen in checkup.open] == [("done", 1, None)]
    assert f"{sweep.name} has 1 operation to send: plato flush {sweep}" in checkup.describe()
    assert checkup.all_well


def test_a_damaged_spool_is_said(tmp_path: Path) -> None:
    sweep = make(tmp_path, outcome="stopped")
    (sweep / "tracking").mkdir()
    (sweep / "tracking" / "cursor.json").write_text("{")
    checkup = examine(tmp_path)
    assert f"{sweep.name}: what is not in the tracking store yet cannot be read" in checkup.describe()
    assert not checkup.all_well


def test_a_sweep_that_is_being_sent_is_left_alone(tmp_path: Path) -> None:
    sweep = make(tmp_path)
    (sweep / CLOSED_NAME).unlink()
    (sweep / "tracking").mkdir()
    with (sweep / "tracking" / "lock").open("w") as flushing:
        fcntl.flock(flushing, fcntl.LOCK_EX)
        assert look(sweep).state == "sending"
        assert close_left_running(tmp_path) == []


def test_a_config_that_cannot_be_read_is_why_a_sweep_cannot_be_resumed(tmp_path: Path) -> None:
    sweep = make(tmp_path)
    (sweep / folder.CONFIG_NAME).write_text("algorithm: TD9\n")
    (seen,) = examine(tmp_path).open
    assert seen.resume is None
    assert seen.obstacle is not None
    assert "TD9" in seen.obstacle
    assert f"{sweep.name} cannot be resumed: " in examine(tmp_path).describe()


def test_runs_that_could_not_be_closed_are_said_and_tried_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sweep = make(tmp_path)
    (sweep / CLOSED_NAME).unlink()
    for _ in range(2):
        assert main(["doctor", "--storage-path", str(tmp_path)]) == 1
        assert f"{sweep.name}: its MLflow runs could not be closed: tracking server" in capsys.readouterr().out


def test_a_store_that_is_not_there_is_said_and_not_made(tmp_path: Path) -> None:
    sweep = make(tmp_path / "sweeps", store=f"sqlite:///{tmp_path}/mlflow.db")
    (sweep / CLOSED_NAME).unlink()
    (closing,) = close_left_running(tmp_path / "sweeps")
    assert "there is no such file; go to the folder that the sweep was started in" in (closing.error or "")
    assert not (tmp_path / "mlflow.db").exists()


def test_a_sweep_that_is_taken_up_again_will_be_looked_at_anew(tmp_path: Path) -> None:
    sweep = make(tmp_path)
    assert close_left_running(tmp_path) == []
    held = folder.hold(sweep)
    forget_closing(sweep)
    held.release()
    assert [closing.error is None for closing in close_left_running(tmp_path)] == [False]


def test_no_sweeps_are_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["doctor"]) == 0
    assert capsys.readouterr().out == "0 sweeps in .plato/sweeps, none unfinished\n"
    sweep = make(tmp_path / ".plato" / "sweeps", outcome="stopped")
    assert main(["doctor", "--json"]) == 0
    checkup = Checkup.model_validate_json(capsys.readouterr().out)
    assert [seen.resume for seen in checkup.open] == [f"plato sweep --resume {sweep.name}"]


def test_a_folder_that_cannot_be_read_is_bad_input(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("")
    assert main(["doctor", "--storage-path", str(tmp_path / "file")]) == 2
    assert "is no folder" in capsys.readouterr().err


def test_looking_imports_nothing_heavy(tmp_path: Path) -> None:
    trained(make(tmp_path), 0, 1)
    code = (
        "import json, sys; from plato_core.cli import main; code = main(['doctor', '--storage-path', sys.argv[1]]);"
        f"print(json.dumps([code, [m for m in {HEAVY} if m in sys.modules]]))"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout.splitlines()[-1]) == [0, []]


def test_a_new_sweep_is_not_hindered_by_what_goes_wrong(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    caplog.set_level(logging.INFO)
    monkeypatch.setattr("tasks.closing.get_run_logger", lambda: logging.getLogger("flow"))
    (make(tmp_path, 1) / CLOSED_NAME).unlink()
    close_left_behind(tmp_path).join()
    assert [(r.levelname, r.message[:44]) for r in caplog.records] == [
        ("WARNING", "runs of sweep 20260801-020000-aaaaa1 are not")
    ]
    caplog.clear()
    monkeypatch.setattr("tasks.closing.close_left_running", lambda storage: 1 / 0)
    close_left_behind(tmp_path).join()
    assert [r.message for r in caplog.records] == ["the runs of dead sweeps were not closed"]
