import io
import os
import pty
import re
import sys
import threading
from pathlib import Path
from typing import TextIO

import pytest
from results import a_result
from rich.console import Console

from plato_core.report.links import ui_command
from plato_core.report.progress import SweepFacts, SweepProgress
from plato_core.report.summary import final_lines
from plato_core.report.table import leaderboard_table
from plato_core.report.terminal import TerminalReporter
from plato_core.result import SweepResult
from plato_core.sweep.events import (
    Event,
    Exploited,
    Phase,
    Result,
    SweepEnded,
    TrackingState,
    TrialEnded,
    TrialStarted,
)

GUIDE_TUNED = ("lambda", "clip_param", "lr", "num_sgd_iter", "sgd_minibatch_size", "train_batch_size")
VALUES = {
    "lambda": 0.95123,
    "clip_param": 0.2,
    "lr": 5e-5,
    "num_sgd_iter": 17,
    "sgd_minibatch_size": 2048,
    "train_batch_size": 40000,
}
OVER = SweepEnded(outcome="finished", fit_s=30, training_slot_s=40, slots=2, trials=4)
ESCAPE = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


def started(index: int) -> TrialStarted:
    return TrialStarted(trial=f"t_{index}", index=index, hyperparameters=VALUES)


def result(index: int, iteration: int, value: float | None) -> Result:
    return Result(
        trial=f"t_{index}",
        iteration=iteration,
        episode_return=value,
        metric_value=value,
        env_steps=4000 * iteration,
    )


def sweep(trials: int) -> list[Event]:
    new = {**VALUES, "lr": 6e-5}
    return [
        Phase(text="Ray is ready"),
        *(started(index) for index in range(trials)),
        *(result(index, iteration, 10.0 * iteration + index) for iteration in (1, 2) for index in range(trials)),
        Exploited(trial="t_0", iteration=2, donor="t_1", old=VALUES, new=new),
        result(0, 3, 100.0),
        TrialEnded(trial="t_1", status="FAILED", iteration=2, error="ValueError: [/red] \x1b[31mno\x1b[0m \u2192"),
        OVER,
    ]


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def play(
    events: list[Event],
    stream: TextIO,
    console: Console | None = None,
    facts: SweepFacts | None = None,
    step_s: float = 1.0,
) -> None:
    clock = Clock()
    progress = SweepProgress(facts or SweepFacts(4, stop_reward=475.0, max_iterations=40, tuned=GUIDE_TUNED))
    with TerminalReporter(progress, stream, console=console, clock=clock) as reporter:
        for event in events:
            clock.now += step_s
            progress.apply(event, clock.now)
            reporter.update(event)


def terminal(width: int = 120, height: int = 40) -> Console:
    return Console(file=io.StringIO(), force_terminal=True, width=width, height=height, legacy_windows=False)


def screen(console: Console) -> str:
    """What stands there at the end: the text after the last time that the table was wiped."""
    assert isinstance(console.file, io.StringIO)
    return ESCAPE.sub("", console.file.getvalue().split("\x1b[2K")[-1])


def table_lines(width: int, trials: int = 4, max_rows: int = 20) -> tuple[list[str], list[str]]:
    facts = SweepFacts(trials, tuned=GUIDE_TUNED)
    progress = SweepProgress(facts)
    for event in sweep(trials)[:-1]:
        progress.apply(event, 0.0)
    table, notes = leaderboard_table(progress.leaderboard(), facts, width, max_rows)
    console = Console(file=io.StringIO(), width=500, record=True)
    console.print(table)
    return console.export_text().splitlines(), notes


def test_in_a_file_there_are_plain_lines_and_no_control_codes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    stream = io.StringIO()
    play(sweep(4), stream)
    lines = stream.getvalue().splitlines()
    assert not re.search(r"[\x00-\x09\x0b-\x1f]", stream.getvalue())
    assert lines[0] == "Ray is ready"
    exploits = [line for line in lines if "exploits" in line]
    assert len(exploits) == 1
    assert exploits[0].startswith("trial 0 exploits trial 1 at iteration 2: lambda 0.9512 (kept), ")
    assert "trial 1 failed at iteration 2: ValueError: [/red] no \u2192" in lines
    assert lines[-1] == "finished: 3/40 iterations, best 100.0 of 475, 17 s"


def test_in_a_file_there_is_at_most_one_progress_line_in_five_seconds() -> None:
    stream = io.StringIO()
    play([started(0), *(result(0, i, 1.0) for i in range(1, 100)), OVER], stream, step_s=0.5)
    lines = [line for line in stream.getvalue().splitlines() if "iterations, best" in line]
    assert 8 <= len(lines) <= 11
    assert len(set(lines)) == len(lines)


def test_a_long_sweep_says_how_it_is_doing_less_often() -> None:
    stream = io.StringIO()
    play([started(0), *(result(0, i, 1.0) for i in range(1, 3000)), OVER], stream, step_s=10.0)
    assert len(stream.getvalue().splitlines()) < 300  # of 8 hours


def test_a_stream_that_cannot_say_a_character_gets_its_code() -> None:
    raw = io.BytesIO()
    stream = io.TextIOWrapper(raw, encoding="ascii")
    play(sweep(4), stream)
    assert b"ValueError: [/red] no \\u2192" in raw.getvalue()


class _ClosedPipe(io.StringIO):
    def write(self, text: str) -> int:
        raise BrokenPipeError


def test_a_closed_pipe_ends_the_reporting_but_not_the_sweep() -> None:
    play(sweep(4), _ClosedPipe())


def test_the_table_shows_every_trial_and_each_tuned_value() -> None:
    console = terminal(width=120)
    play(sweep(4), io.StringIO(), console)
    lines = screen(console).splitlines()
    assert lines[0].strip() == "finished: 3/40 iterations, best 100.0 of 475, 17 s"
    rows = [line.split() for line in lines if line.strip() and line.split()[0].isdigit()]
    assert rows == [
        ["0", "3", "100.0", "0.9512", "0.2", "6e-05", "17", "2048", "40000", "12.0k", "stopped"],
        ["3", "2", "23.0", "0.9512", "0.2", "5e-05", "17", "2048", "40000", "8.00k", "stopped"],
        ["2", "2", "22.0", "0.9512", "0.2", "5e-05", "17", "2048", "40000", "8.00k", "stopped"],
        ["1", "2", "21.0", "0.9512", "0.2", "5e-05", "17", "2048", "40000", "8.00k", "failed"],
    ]


def test_notable_lines_stand_above_the_table() -> None:
    console = terminal(width=200)
    play(sweep(4), io.StringIO(), console)
    assert isinstance(console.file, io.StringIO)
    text = ESCAPE.sub("", console.file.getvalue())
    assert text.count("trial 0 exploits trial 1 at iteration 2") == 1
    assert text.count("trial 1 failed at iteration 2: ValueError: [/red] no \u2192") == 1
    assert "exploits trial" not in screen(console)


def test_before_the_first_trial_the_phase_stands_there_alone() -> None:
    console = terminal()
    play([Phase(text="starting Ray")], io.StringIO(), console)
    assert screen(console).split("\n")[0].strip() == "starting Ray, 1 s"
    assert "trial" not in screen(console)


@pytest.mark.parametrize("width", [20, 40, 60, 80, 100, 160])
def test_the_table_never_is_wider_than_the_terminal(width: int) -> None:
    lines, _ = table_lines(width)
    assert max(len(line.rstrip()) for line in lines) <= width
    assert "return" in " ".join(lines)


def test_a_narrow_terminal_names_the_tuned_values_that_it_cannot_show() -> None:
    lines, notes = table_lines(60)
    assert "lambda" in " ".join(lines)
    assert "state" in " ".join(lines)
    assert notes == ["not shown here: num_sgd_iter, sgd_minibatch_size, train_batch_size"]


def test_a_wide_terminal_leaves_nothing_out() -> None:
    lines, notes = table_lines(120)
    assert notes == []
    assert "minibatch_" in " ".join(lines)


def test_the_twenty_first_trial_is_folded() -> None:
    lines, notes = table_lines(120, trials=23)
    rows = [line.split()[0] for line in lines if line.strip() and line.split()[0].isdigit()]
    assert len(rows) == 20
    assert rows[:2] == ["0", "22"]
    assert notes == ["... and 3 more trials"]


def test_a_low_terminal_shows_the_first_trials_only() -> None:
    console = terminal(height=14)
    play(sweep(12), io.StringIO(), console)
    assert "... and 6 more trials" in screen(console)
    assert len(screen(console).splitlines()) < 14


def test_another_metric_has_its_own_column() -> None:
    facts = SweepFacts(1, metric="episode_len_mean", tuned=("lr",))
    console = terminal()
    event = Result(trial="t_0", iteration=1, episode_return=5.0, metric_value=77.0)
    play([started(0), event], io.StringIO(), console, facts)
    assert "len_mean" in screen(console)
    assert "77.0" in screen(console)


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
def test_the_terminal_is_given_back_when_something_goes_wrong(error: type[BaseException]) -> None:
    console, progress = terminal(), SweepProgress(SweepFacts(1))
    before = sys.stdout, sys.stderr
    progress.apply(started(0), 0.0)
    with pytest.raises(error), TerminalReporter(progress, io.StringIO(), console=console):
        raise error
    assert isinstance(console.file, io.StringIO)
    text = console.file.getvalue()
    assert text.rindex("\x1b[?25h") > text.rindex("\x1b[?25l")
    assert (sys.stdout, sys.stderr) == before


def test_on_a_real_terminal_no_color_means_no_colour(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm-256color")
    assert "\x1b[?25l" in (shown := on_a_pty(sweep(4)))  # the live table
    assert not re.search(r"\x1b\[(?:\d+;)*(?:3[0-8]|9[0-7])m", shown)


def test_a_dumb_terminal_gets_plain_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "dumb")
    shown = on_a_pty(sweep(4))
    assert "\x1b" not in shown
    assert "finished: 3/40 iterations" in shown


def on_a_pty(events: list[Event]) -> str:
    master, slave = pty.openpty()
    shown = bytearray()

    def read() -> None:
        try:
            while chunk := os.read(master, 4096):
                shown.extend(chunk)
        except OSError:
            pass  # how Linux says that the other end is closed

    reader = threading.Thread(target=read)
    reader.start()
    with os.fdopen(slave, "w") as stream:
        play(events, stream)
    reader.join(timeout=10)
    os.close(master)
    return shown.decode()


OUTCOME = a_result(
    checkpoint_path="/home/me/project/model_checkpoints/abc123/checkpoint_000018",
    tracking_uri="sqlite:////home/me/project/mlflow.db",
)
HOME = Path("/home/me/project")


def tracked_in(uri: str) -> SweepResult:
    return OUTCOME.model_copy(update={"tracking_uri": uri})


def test_the_last_words_name_the_winner_its_checkpoint_and_the_way_to_see_it() -> None:
    assert final_lines(OUTCOME, experiment_id="1", cwd=HOME, winner_name="trial 2") == [
        "winner      trial 2, run abc123: episode_reward_mean 481.2",
        "checkpoint  model_checkpoints/abc123/checkpoint_000018 (iteration 18, verified)",
        "sweep       4 trials in 1 min 03 s, efficiency 0.71 on 2 CPUs",
        "tracking    complete: everything was sent",
        "see it      mlflow ui --backend-store-uri sqlite:///mlflow.db",
        "            then http://127.0.0.1:5000/#/experiments/1/runs/abc123?workflowType=machine_learning",
    ]


def test_a_tracking_server_needs_no_command_and_shows_no_password() -> None:
    outcome = tracked_in("https://bob:hunter2@mlflow.example/base/")
    lines = final_lines(outcome, experiment_id="7", cwd=HOME)
    page = "https://mlflow.example/base/#/experiments/7/runs/abc123?workflowType=machine_learning"
    assert lines[-1] == f"see it      {page}"
    assert "hunter2" not in "\n".join(lines)


def test_what_waits_in_the_spool_comes_with_the_command_that_sends_it() -> None:
    tracking = TrackingState(pending=12, rejected=2, last_error="400 from http://u:pw@h/")
    text = "\n".join(final_lines(OUTCOME, experiment_id="1", cwd=HOME, tracking=tracking, spool="/my sweeps/spool"))
    assert "12 entries wait in the spool; send them: plato flush '/my sweeps/spool'" in text
    assert "refused 2 entries for good: 400 from http://***@h/" in text
    assert "everything was sent" not in text


def test_what_waits_in_a_jobs_storage_is_told_without_a_command_that_would_not_find_it() -> None:
    tracking = TrackingState(pending=12)
    text = "\n".join(final_lines(OUTCOME, experiment_id="1", cwd=HOME, tracking=tracking))
    assert "tracking    not in the tracking store yet: 12 entries, kept with the sweep's files" in text
    assert "plato flush" not in text


def test_what_was_refused_in_a_job_is_not_called_complete() -> None:
    text = "\n".join(final_lines(OUTCOME, experiment_id="1", cwd=HOME, tracking=TrackingState(rejected=2)))
    assert "tracking    the tracker refused 2 entries for good" in text
    assert "everything was sent" not in text


def test_a_store_elsewhere_is_named_wholly_and_quoted_for_the_shell() -> None:
    assert ui_command("sqlite:////data/my runs/m.db", HOME) == (
        "mlflow ui --backend-store-uri 'sqlite:////data/my runs/m.db'"
    )


def test_a_database_password_is_left_for_the_person_to_fill_in() -> None:
    outcome = tracked_in("postgresql://bob:hunter2@db/mlflow")
    lines = final_lines(outcome, experiment_id="1", cwd=HOME)
    assert "see it      mlflow ui --backend-store-uri 'postgresql://bob:***@db/mlflow'" in lines
    assert any("password" in line for line in lines)
    assert "hunter2" not in "\n".join(lines)


def test_in_azure_ml_the_way_leads_to_the_studio() -> None:
    lines = final_lines(tracked_in("azureml://westeurope.api.azureml.ms/x"), experiment_id="1", cwd=HOME)
    assert lines[-1] == "see it      in Azure ML Studio, under the experiment pbt_ppo"
