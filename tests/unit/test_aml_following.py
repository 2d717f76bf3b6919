"""What a laptop makes of its sweep's job: which one it takes, what its log says. No Azure: it answers as told."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from plato_core import closing
from plato_core.aml import following
from plato_core.aml.client import Failure, JobState
from plato_core.aml.following import Following
from plato_core.aml.job import JobSpec
from plato_core.aml.joblog import EVENT
from plato_core.aml.jobnote import JobNote
from plato_core.aml.sweepsettings import SweepJobFields, check_job, settings_of, tracked
from plato_core.aml.workspace import Workspace
from plato_core.config import SweepConfig
from plato_core.errors import AmlError, AmlUnavailable, ConfigError, SweepError
from plato_core.prune import prune
from plato_core.sweep.events import Event, Notice, Result, SweepEnded, TrackingState
from plato_core.sweep.protocol import Go
from plato_core.tracking.runs import note_ended

SWEEP = "20260101-000000-abcdef"
SETTINGS: dict[str, Any] = {"max_iterations": 4, "scheduler": "median"}
WORKSPACE = Workspace(subscription_id="s", resource_group="g", name="w")
STOPPED = SweepEnded(outcome="stopped", fit_s=1, training_slot_s=1, slots=1, trials=1, message="all was saved")
FINISHED = STOPPED.model_copy(update={"outcome": "finished"})


@dataclass
class Jobs:
    """A job that goes through statuses, each with what its log has by then; the last one stays."""

    steps: list[tuple[str, list[Event]]]
    workspace: Workspace = WORKSPACE
    submitted: list[JobSpec] = field(default_factory=list)
    cancelled: int = 0
    lost_answers: int = 0
    _log: bytes = b""

    def check(self, spec: JobSpec) -> None:
        pass

    def find(self, name: str) -> JobState | None:
        status, events = self.steps.pop(0) if len(self.steps) > 1 else self.steps[0]
        if status == "away":
            raise AmlUnavailable("away")
        lines = [f"{EVENT}{event.model_dump_json()}\n" for event in events]
        self._log = b"Ray says something\n" + "".join(lines).encode()
        return JobState(name, status, "e", "https://studio") if status else None

    def submit(self, spec: JobSpec) -> None:
        self.submitted.append(spec)
        if self.lost_answers:
            raise AmlError("a job of that name is there")

    def cancel(self, name: str) -> None:
        self.cancelled += 1
        self.steps = [("Canceled", [])]

    def failure(self, name: str) -> Failure:
        return Failure("UserError", "Cannot allocate memory")

    def history(self, path: str, query: dict[str, str] | None = None) -> dict[str, str]:
        return {"contentUri": "https://log"}

    def read(self, url: str, offset: int, most: int) -> bytes | None:
        return self._log[offset:] or None

    def size(self, url: str) -> int:
        return len(self._log)


def result(iteration: int) -> Result:
    return Result(trial="t", iteration=iteration)


@pytest.fixture(autouse=True)
def no_store(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The tracking store is not asked; the fixture lists for which sweeps runs were to be ended."""
    asked: list[str] = []
    monkeypatch.setattr(following, "end_left_running", lambda *given, **_: asked.append(given[2]))
    return asked


class Followed:
    """A sweep's job, followed; `told` is what it told but for notices."""

    def __init__(self, folder: Path, *steps: tuple[str, list[Event]], **settings: Any) -> None:
        self.sweep_dir = folder / SWEEP
        self.sweep_dir.mkdir(exist_ok=True)
        self.jobs = Jobs(list(steps))
        self.events: list[Event] = []
        config = SweepConfig.from_flow_parameters(SETTINGS | {"tracking_uri": "azureml://x"} | settings)
        fields, go = SweepJobFields(poll_interval_s=0.001), Go(tracking_uri="u", experiment_id="1", parent_run_id="p")
        given: Any = self.jobs
        self.following = Following(config, self.sweep_dir, fields, given, go, self.events.append)

    def follow(self) -> Followed:
        self.following.follow()
        return self

    @property
    def told(self) -> list[Event]:
        return [event for event in self.events if not isinstance(event, Notice)]

    @property
    def notices(self) -> list[str]:
        return [event.text for event in self.events if isinstance(event, Notice)]


def test_a_new_sweep_is_submitted_once_and_noted_before(tmp_path: Path) -> None:
    followed = Followed(tmp_path, ("Queued", []), ("Running", [result(1)]), ("Running", [result(1), FINISHED])).follow()
    [spec] = followed.jobs.submitted
    note = JobNote.read(followed.sweep_dir)
    assert note is not None
    assert spec.name == note.name == followed.following.name == f"ps-{SWEEP}-000"
    assert "PREFECT_API_URL" not in spec.env
    assert followed.told == [result(1), FINISHED]
    assert followed.notices[1:] == [f"job {spec.name} is Queued: https://studio", f"job {spec.name} is Running"]


def test_a_submit_whose_answer_was_lost_is_no_failure(tmp_path: Path) -> None:
    followed = Followed(tmp_path, ("Running", [FINISHED]))
    followed.jobs.lost_answers = 1
    assert followed.follow().told == [FINISHED]


@pytest.mark.parametrize(
    ("status", "more", "number", "submitted"),
    [
        ("Running", {}, 0, 0),
        ("Completed", {}, 0, 0),  # all was done while nobody looked: its log tells
        ("Completed", {"max_iterations": 9}, 1, 1),
        ("Failed", {}, 1, 1),
        ("Canceled", {}, 1, 1),
        ("", {}, 0, 1),  # it was noted and never submitted
    ],
)
def test_whoever_comes_later_follows_the_job_or_begins_the_next(
    tmp_path: Path, status: str, more: dict[str, int], number: int, submitted: int
) -> None:
    Followed(tmp_path, ("Running", [FINISHED])).follow()
    after = Followed(tmp_path, (status, [FINISHED]), ("Running", [FINISHED]), **more).follow()
    assert len(after.jobs.submitted) == submitted
    assert after.following.name == f"ps-{SWEEP}-{number:03d}"
    assert after.told == [FINISHED]


def test_a_job_that_stops_in_order_and_begins_again_has_not_ended(tmp_path: Path) -> None:
    followed = Followed(
        tmp_path,
        ("Running", [result(1), STOPPED]),
        ("Queued", []),
        ("Running", [result(2)]),
        ("Running", [result(2), FINISHED]),
    ).follow()
    assert followed.told == [result(1), result(2), FINISHED]


def test_a_log_that_is_longer_than_what_was_read_of_the_one_before_is_told_whole(tmp_path: Path) -> None:
    longer: list[Event] = [result(2), result(3), result(4)]
    followed = Followed(
        tmp_path,
        ("Running", [result(1)]),
        ("Running", longer),  # nobody saw it wait in between
        ("Running", [*longer, FINISHED]),
    ).follow()
    assert followed.told == [result(1), *longer, FINISHED]


def test_a_job_that_was_cancelled_ends_as_stopped_and_its_runs_are_ended(tmp_path: Path, no_store: list[str]) -> None:
    followed = Followed(tmp_path, ("Queued", []))
    take = followed.following._take

    def cancel(event: Event) -> None:
        take(event)
        if isinstance(event, Notice) and "Queued" in event.text:
            followed.following.cancel()

    followed.following._talk._take = cancel
    [ended] = followed.follow().told
    assert isinstance(ended, SweepEnded)
    assert ended.outcome == "stopped"
    assert (followed.jobs.cancelled, no_store) == (1, [SWEEP])


def test_what_was_told_to_stop_before_it_had_a_job_gets_none(tmp_path: Path) -> None:
    followed = Followed(tmp_path, ("Running", []))
    followed.following.cancel()
    assert followed.follow().events == []
    assert followed.jobs.submitted == []


def test_a_job_that_died_is_mourned_with_its_cause(tmp_path: Path, no_store: list[str]) -> None:
    with pytest.raises(SweepError, match="out of memory on a node") as caught:
        Followed(tmp_path, ("Running", [result(1)]), ("Failed", [result(1)])).follow()
    assert "https://studio" in str(caught.value)
    assert "flow run" not in str(caught.value)
    assert no_store == [SWEEP]


def test_a_job_that_is_gone_is_mourned_too(tmp_path: Path) -> None:
    with pytest.raises(SweepError, match="no longer exists in Azure ML"):
        Followed(tmp_path, ("Running", []), ("Running", []), ("", [])).follow()


def test_an_azure_that_is_away_is_told_once_and_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("plato_core.aml.talk._WAITS_S", (0.001,))
    away = ("away", [])
    followed = Followed(tmp_path, ("Running", []), away, away, ("Running", [FINISHED])).follow()
    assert followed.told == [FINISHED]
    assert len([text for text in followed.notices if "trying again" in text]) == 1


def test_an_azure_that_is_away_once_more_later_is_told_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("plato_core.aml.talk._WAITS_S", (0.001,))
    monkeypatch.setattr("plato_core.aml.asking._AGAIN_S", 0.0)
    away, runs = ("away", []), ("Running", [])
    followed = Followed(tmp_path, runs, away, away, runs, away, ("Running", [FINISHED])).follow()
    told = [text.partition(" again")[0] for text in followed.notices if " again" in text]
    assert told == ["Azure ML could not be asked; trying", "Azure ML answers"] * 2


def test_a_job_that_completed_without_a_log_still_has_its_winner_selected(tmp_path: Path) -> None:
    [sent, ended] = Followed(tmp_path, ("Running", []), ("Completed", [])).follow().told
    assert sent == TrackingState()  # what was last told of its tracking is no longer so
    assert isinstance(ended, SweepEnded)
    assert (ended.outcome, ended.slots) == ("finished", 0)


def test_a_sweep_goes_on_where_its_files_are_only(tmp_path: Path) -> None:
    Followed(tmp_path, ("Running", [FINISHED])).follow()
    other = WORKSPACE.model_copy(update={"name": "other"})
    with pytest.raises(ConfigError, match=r"job_variables\.workspace: 'other"):
        JobNote.check(tmp_path / SWEEP, other, SweepJobFields().storage)
    with pytest.raises(ConfigError, match=r"job_variables\.storage: 'azureml://elsewhere'"):
        JobNote.check(tmp_path / SWEEP, WORKSPACE, "azureml://elsewhere")
    JobNote.check(tmp_path / SWEEP, WORKSPACE, SweepJobFields().storage)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"job_variables": {"instance_cuont": 2}}, r"job_variables\.instance_cuont: there is no such setting"),
        ({"job_variables": {"instance_count": 0}}, r"job_variables\.instance_count: 0"),
        ({"tracking_uri": "http://127.0.0.1:5000"}, "is on this machine, and the sweep trains in an Azure ML job"),
    ],
)
def test_what_a_job_cannot_be_is_refused(settings: dict[str, Any], message: str) -> None:
    config = SweepConfig.from_flow_parameters(SETTINGS | {"compute": "aml"} | settings)
    with pytest.raises(ConfigError, match=message):
        tracked(config)


def test_what_was_taken_out_of_a_form_has_its_default() -> None:
    config = SweepConfig.from_flow_parameters(SETTINGS | {"job_variables": {"compute": None}})
    assert settings_of(config).compute == SweepJobFields().compute


def test_the_order_says_which_runs_were_ended_meanwhile(tmp_path: Path) -> None:
    followed = Followed(tmp_path, ("Running", [FINISHED]))
    note_ended(followed.sweep_dir / "tracking", {"trial-1": "run-1"})
    [spec] = followed.follow().jobs.submitted
    assert '"ended":{"trial-1":"run-1"}' in spec.env["PLATO_AML_SWEEP"]


@pytest.mark.parametrize("lives", [True, False])
def test_the_runs_of_a_sweep_are_closed_only_where_its_job_has_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lives: bool
) -> None:
    followed = Followed(tmp_path, ("Running", [FINISHED])).follow()
    (followed.sweep_dir / "config.yaml").write_text(SweepConfig.from_flow_parameters(SETTINGS).to_yaml())
    (followed.sweep_dir / "running.lock").touch()  # of a process that is gone
    asked: list[str] = []
    monkeypatch.setattr(JobNote, "lives", lambda note: lives)
    monkeypatch.setattr(closing, "end_left_running", lambda *given, **_: asked.append(given[2]) or [])
    assert closing.close_left_running(tmp_path) == []
    assert asked == ([] if lives else [SWEEP])
    pruned = prune(tmp_path, older_than_days=0.0)
    assert [kept.why for kept in pruned.kept] == (["perhaps running"] if lives else [])


def test_a_cancel_that_is_not_heard_is_asked_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("plato_core.aml.talk._WAITS_S", (0.001,))
    followed = Followed(tmp_path, ("Running", []))
    heard, asked = followed.jobs.cancel, []

    def cancel(name: str) -> None:
        asked.append(name)
        if len(asked) < 3:
            raise AmlUnavailable("busy")
        heard(name)

    followed.jobs.cancel = cancel  # type: ignore[method-assign]
    take = followed.following._take

    def stop(event: Event) -> None:
        take(event)
        if isinstance(event, Notice) and "Running" in event.text:
            assert followed.following.cancel_was_heard is False
            followed.following.cancel()

    followed.following._talk._take = stop
    [ended] = followed.follow().told
    assert isinstance(ended, SweepEnded)
    assert (ended.outcome, len(asked), followed.following.cancel_was_heard) == ("stopped", 3, True)


def test_a_larger_budget_is_for_the_job_after_the_one_that_lives(tmp_path: Path) -> None:
    Followed(tmp_path, ("Running", [FINISHED])).follow()
    done: tuple[str, list[Event]] = ("Completed", [])
    steps: list[tuple[str, list[Event]]] = [
        ("Running", []),
        ("Running", [result(1), FINISHED]),
        done,
        done,
        ("Running", [FINISHED]),
    ]
    after = Followed(tmp_path, *steps, max_iterations=9)
    after.follow()
    assert [spec.name for spec in after.jobs.submitted] == [f"ps-{SWEEP}-001"]
    assert after.told.count(FINISHED) == 1


def test_a_job_that_its_time_limit_ended_says_so_though_its_sweep_stopped_in_order(tmp_path: Path) -> None:
    followed = Followed(tmp_path, ("Running", [STOPPED]), ("Canceled", [STOPPED]))
    followed.following._settings = SweepJobFields(poll_interval_s=0.001, timeout_seconds=1)
    followed.jobs.failure = lambda name: Failure("", "the job exceeded its timeout")  # type: ignore[method-assign]
    with pytest.raises(SweepError, match="Cause: the time limit of 1 s"):
        followed.follow()


def test_a_job_cancelled_by_somebody_else_ends_as_stopped_in_order(tmp_path: Path) -> None:
    assert Followed(tmp_path, ("Running", [STOPPED]), ("Canceled", [STOPPED])).follow().told == [STOPPED]


def test_a_log_that_stays_unreadable_keeps_nobody_waiting(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("plato_core.aml.talk._WAITS_S", (0.001,))
    monkeypatch.setattr(following, "_LOG_WITHIN_S", 0.05)
    followed = Followed(tmp_path, ("Running", []), ("Completed", []))

    def read(url: str, offset: int, most: int) -> bytes:
        raise AmlError("the storage refuses this address")

    followed.jobs.read = read  # type: ignore[method-assign]
    _, ended = followed.follow().told
    assert isinstance(ended, SweepEnded)
    assert ended.outcome == "finished"


@pytest.mark.parametrize("name", ["AZURE_CLIENT_SECRET", "PREFECT_API_KEY", "MLFLOW_TRACKING_PASSWORD"])
def test_a_secret_for_a_job_is_refused_before_anything_is_made(name: str, tmp_path: Path) -> None:
    variables = {"env": {name: "hidden"}, "code": str(tmp_path), "subscription_id": "s", "resource_group": "g"}
    settings = SETTINGS | {"compute": "aml", "job_variables": variables | {"workspace": "w"}}
    with pytest.raises(ConfigError, match=rf"job_variables: env\.{name}: a secret") as caught:
        check_job(SweepConfig.from_flow_parameters(settings))
    assert "hidden" not in str(caught.value)
