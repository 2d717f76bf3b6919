"""From where the trials of an interrupted sweep go on."""

import json
from pathlib import Path

import pytest

from plato_core.manifest import MANIFEST_NAME, TRIAL_STATE_NAME, write_manifest
from plato_core.sweep import revival
from plato_core.sweep.revival import TrialEnd

SWEEP = "20260801-020000-abcdef"
TRIAL = "abcdef_00001"


def checkpoint(folder: Path, iteration: int, lr: float = 0.1, name: str | None = None) -> Path:
    """A whole checkpoint of a trial."""
    path = folder / (name or f"checkpoint_{iteration // 5:06d}")
    path.mkdir(parents=True)
    (path / "weights").write_bytes(bytes(iteration))
    (path / TRIAL_STATE_NAME).write_text(json.dumps({"trial_id": TRIAL, "own": {"iteration": iteration}}))
    write_manifest(
        path, sweep_id=SWEEP, trial_id=TRIAL, trial_name="a trial", iteration=iteration, metric="episode_reward_mean",
        score=1.0, hyperparameters={"lr": lr}, versions={},
    )  # fmt: skip
    return path


@pytest.fixture
def trial(tmp_path: Path) -> Path:
    (folder := tmp_path / SWEEP / "tune" / f"PPO_CartPole-v1_{TRIAL}").mkdir(parents=True)
    return folder


def test_a_trial_has_one_id_in_every_attempt() -> None:
    assert revival.trial_id(SWEEP, 1) == TRIAL


def test_attempts_follow_one_another(tmp_path: Path) -> None:
    assert revival.next_attempt(tmp_path) == "tune"
    for expected in ("tune", "tune-2", "tune-3"):
        assert revival.next_attempt(tmp_path) == expected
        (tmp_path / expected).mkdir()
    for number in range(4, 12):
        (tmp_path / f"tune-{number}").mkdir()
    assert [path.name for path in revival.attempts(tmp_path)][-2:] == ["tune-10", "tune-11"]


def test_the_furthest_whole_checkpoint_is_where_a_trial_goes_on(trial: Path) -> None:
    checkpoint(trial, 5)
    newest = checkpoint(trial, 10, lr=0.2)
    point = revival.last_point([trial], 99)
    assert point is not None
    assert (point.iteration, point.checkpoint, point.hyperparameters) == (10, newest, {"lr": 0.2})
    assert point.own == {"iteration": 10}


@pytest.mark.parametrize("damage", ["no manifest", "half a manifest", "a file is gone", "a file is cut", "no state"])
def test_a_half_written_checkpoint_is_ignored_and_the_one_before_it_used(trial: Path, damage: str) -> None:
    before, newest = checkpoint(trial, 5), checkpoint(trial, 10)
    if damage == "no manifest":
        (newest / MANIFEST_NAME).unlink()
    elif damage == "half a manifest":
        (newest / MANIFEST_NAME).write_text((newest / MANIFEST_NAME).read_text()[:50])
    elif damage == "a file is gone":
        (newest / "weights").unlink()
    elif damage == "a file is cut":
        (newest / "weights").write_bytes(b"")
    else:
        (newest / TRIAL_STATE_NAME).unlink()
    point = revival.last_point([trial], 99)
    assert point is not None
    assert point.checkpoint == before


def test_an_exploit_at_a_checkpoints_iteration_is_the_later_of_the_two(trial: Path) -> None:
    checkpoint(trial, 10)
    held = checkpoint(trial, 12, lr=0.3, name="exploited_000010")  # the donor's own count is 12
    revival.note_exploit(trial, 10, {"lr": 0.36}, {"iteration": 10, "time_total_s": 7.0})
    point = revival.last_point([trial], 99)
    assert point is not None
    assert (point.iteration, point.checkpoint, point.hyperparameters) == (10, held, {"lr": 0.36})
    assert point.own == {"iteration": 10, "time_total_s": 7.0}
    assert checkpoint(trial, 15) == getattr(revival.last_point([trial], 99), "checkpoint")  # noqa: B009


def test_an_exploit_that_was_not_written_down_did_not_happen(trial: Path) -> None:
    own = checkpoint(trial, 10)
    checkpoint(trial, 12, name="exploited_000010")
    point = revival.last_point([trial], 99)
    assert point is not None
    assert point.checkpoint == own


def test_a_trial_without_any_checkpoint_begins_anew(trial: Path) -> None:
    assert revival.last_point([trial], 99) is None
    assert revival.last_point([], 99) is None


def test_the_last_attempt_says_whether_a_trial_has_ended(trial: Path) -> None:
    assert revival.end_of([trial]) is None
    end = TrialEnd(status="FINISHED", iteration=12, why="iterations")
    revival.note_end(trial, end)
    assert revival.end_of([trial]) == end
    (again := trial.parents[1] / "tune-2" / trial.name).mkdir(parents=True)
    assert revival.folders_of(trial.parents[1], TRIAL) == [trial, again]
    assert revival.end_of([trial, again]) is None


def test_what_stands_beyond_the_last_logged_result_is_left_alone(trial: Path) -> None:
    before = checkpoint(trial, 5)
    checkpoint(trial, 10)
    point = revival.last_point([trial], 9)
    assert point is not None
    assert point.checkpoint == before


def test_earlier_attempts_go_once_a_trial_has_finished_in_a_later_one(trial: Path) -> None:
    other = trial.parent / "PPO_CartPole-v1_abcdef_00002"
    other.mkdir()
    attempt = trial.parents[1] / "tune-2"
    (again := attempt / trial.name).mkdir(parents=True)
    revival.forget_attempts_before(attempt, TRIAL)
    assert trial.is_dir()  # it has not ended
    revival.note_end(again, TrialEnd(status="FINISHED", iteration=12, why="iterations"))
    revival.forget_attempts_before(attempt, TRIAL)
    assert not trial.exists()
    assert again.is_dir()
    revival.forget_attempts_before(attempt, "abcdef_00002")
    assert other.is_dir()  # it had ended before


def test_what_stands_beyond_where_a_trial_goes_on_is_gone(trial: Path) -> None:
    """Once its log is past there again, an old checkpoint of the same iteration would count."""
    kept = checkpoint(trial, 10)
    (half := trial / "checkpoint_000004").mkdir()
    beyond = checkpoint(trial, 15)
    point = revival.last_point([trial], 12)
    assert point is not None
    assert point.checkpoint == kept
    exploited = checkpoint(trial, 15, name="exploited_000010")
    (trial / "exploited_000010.json").write_text("{}")
    revival.forget_beyond([trial], point)
    assert [path.exists() for path in (kept, half, beyond, exploited)] == [True, False, False, False]
    assert not list(trial.glob("exploited_*"))
