from pathlib import Path

import pytest
from results import a_result

from plato_core.report import markdown
from plato_core.report.links import run_page
from plato_core.report.progress import Snapshot, SweepFacts, SweepProgress
from plato_core.sweep.events import (
    Event,
    Exploited,
    Result,
    SweepEnded,
    TrackingState,
    TrialEnded,
    TrialRestarted,
    TrialStarted,
)

FACTS = SweepFacts(population=3, stop_reward=475.0, max_iterations=40, tuned=("lr",))
RESULT = a_result(
    checkpoint_path="/results/abc123/checkpoint_000018",
    tracking_uri="http://bob:hunter2@127.0.0.1:5000",
    trials=3,
    experiment_id="7",
    winner="PPO_CartPole-v1_37fba_00001",
)


def at_the_end(*more: Event, facts: SweepFacts = FACTS) -> Snapshot:
    progress = SweepProgress(facts)
    for index, value in enumerate([120.0, 481.25]):
        trial = f"t{index}"
        progress.apply(TrialStarted(trial=trial, index=index, hyperparameters={"lr": 0.001}), 0.0)
        progress.apply(
            Result(
                trial=trial,
                iteration=18,
                episode_return=value,
                metric_value=value,
                hyperparameters={"lr": 0.001},
            ),
            60.0,
        )
    progress.apply(Exploited(trial="t0", donor="t1", iteration=18, old={"lr": 0.001}, new={"lr": 0.0012}), 61.0)
    for event in more:
        progress.apply(event, 63.0)
    return progress.snapshot()


def ended(spool: str | None = None) -> SweepEnded:
    return SweepEnded(outcome="finished", fit_s=44, training_slot_s=62.8, slots=2, trials=3, spool=spool)


def test_the_leaderboard_has_the_best_first_with_what_each_trial_trains_with_now() -> None:
    snapshot = at_the_end()
    assert markdown.leaderboard_records(snapshot.rows, FACTS) == [
        {"trial": "1", "return": "481.2", "best return": "481.2", "iteration": "18", "lr": "0.001",
         "state": "running", "generation": "0"},
        {"trial": "0", "return": "120.0", "best return": "120.0", "iteration": "18", "lr": "0.0012",
         "state": "running", "generation": "1"},
        {"trial": "2", "return": "-", "best return": "-", "iteration": "0", "lr": "-",
         "state": "pending", "generation": "0"},
    ]  # fmt: skip


def test_the_metric_that_ranks_has_a_column_unless_it_is_the_return() -> None:
    snapshot = at_the_end(facts=SweepFacts(population=2, metric="kl", mode="min"))
    assert markdown.leaderboard_records(snapshot.rows, snapshot.facts)[0]["kl"] == "120.0"


def test_the_summary_says_who_won_where_it_lies_and_how_to_load_and_see_it() -> None:
    text = markdown.summary("pbt_ppo: PPO on CartPole-v1", at_the_end(ended()), RESULT, None, "learning_curves.png")
    for words in (
        "# pbt_ppo: PPO on CartPole-v1",
        "**finished: 18/40 iterations, best 481.2 of 475, 1 min 03 s**",
        "| winner | PPO_CartPole-v1_37fba_00001, run `abc123` |",
        "| episode_reward_mean | 481.2 |",
        "| checkpoint | iteration 18, verified |",
        "\n```\n/results/abc123/checkpoint_000018\n```\n",
        "| time | 3 trials in 1 min 03 s, of which 44 s to train |",
        "| sweep efficiency | 0.71 on 2 CPUs |",
        "| exploits | 1 |",
        "| tracking | complete: everything was sent |",
        "| 0 | 120.0 | 120.0 | 18 | 0.0012 | stopped | 1 |",
        "![learning curves](learning_curves.png)",
        "Algorithm.from_checkpoint('/results/abc123/checkpoint_000018')",
        "[the winner's run in MLflow](http://127.0.0.1:5000/#/experiments/7/runs/abc123?workflowType=machine_learning)",
    ):
        assert words in text
    assert "hunter2" not in text


def test_the_summary_of_a_job_says_how_to_fetch_what_its_disk_does_not_keep(monkeypatch: pytest.MonkeyPatch) -> None:
    workspace = "/subscriptions/s/resourceGroups/g/providers/Microsoft.MachineLearningServices/workspaces/w"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"azureml://x.api.azureml.ms/mlflow/v2.0{workspace}")
    monkeypatch.setenv("AZUREML_RUN_ID", "pf-1-000")
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "of-the-job")
    path = str(Path("outputs/model_checkpoints/abc123/checkpoint_000018").absolute())
    result = RESULT.model_copy(update={"checkpoint_path": path})
    text = markdown.summary("t", at_the_end(ended()), result, None, None)
    assert "\n```\noutputs/model_checkpoints/abc123/checkpoint_000018 of job pf-1-000\n```\n" in text
    assert f"get_top_run('of-the-job', rank_metric='{RESULT.rank_metric}', mode='max', parent_run_id=" in text
    assert str(Path.cwd()) not in text


def test_a_sweep_without_a_result_has_what_was_seen_and_why_it_ended() -> None:
    tracking = TrackingState(pending=12, last_error="away")
    snapshot = at_the_end(tracking, ended("/sweeps/x/tracking"))
    text = markdown.summary("t", snapshot, None, "no run of the sweep qualifies\nat all", None)
    assert "No checkpoint was fetched: no run of the sweep qualifies at all" in text
    assert "| best episode_reward_mean | 481.2 (trial 1, iteration 18) |" in text
    assert "12 entries wait in the spool; send them: plato flush /sweeps/x/tracking" in text
    assert "learning" not in text
    assert "Load it" not in text


def test_the_summary_has_what_started_again_and_what_failed_only_where_something_did() -> None:
    assert "restarts" not in markdown.summary("t", at_the_end(ended()), RESULT, None, None)
    restarted = TrialRestarted(trial="t0", iteration=9, error="ValueError: no")
    failed = TrialEnded(trial="t0", status="FAILED", iteration=18, error="ValueError: no|sensor")
    text = markdown.summary("t", at_the_end(restarted, restarted, failed, ended()), RESULT, None, None)
    assert "| restarts | 2 of trial 0 |" in text
    assert "| failed | trial 0 failed at iteration 18 after 2 restarts: ValueError: no\\|sensor |" in text


def test_a_sweep_stopped_before_its_first_trial_still_has_a_summary() -> None:
    progress = SweepProgress(SweepFacts(population=2))
    text = markdown.summary("t", progress.snapshot(), None, None, None)
    assert "No checkpoint was fetched: the sweep was stopped" in text


def test_what_others_named_cannot_break_a_table() -> None:
    facts = SweepFacts(population=1, tuned=("a|b",))
    progress = SweepProgress(facts)
    progress.apply(TrialStarted(trial="t", index=0, hyperparameters={"a|b": "x\n|y"}), 0.0)
    _header, rule, row = markdown.leaderboard(progress.leaderboard(), facts).splitlines()
    assert row == "| 0 | - | - | 0 | x \\|y | running | 0 |"
    assert rule.count("---") == 7


def test_a_description_has_as_many_trials_as_fit() -> None:
    progress = SweepProgress(SweepFacts(population=100))
    for index in range(100):
        progress.apply(
            Result(trial=f"t{index}", iteration=1, episode_return=float(index), metric_value=float(index)), 0.0
        )
    text = markdown.note(progress.snapshot(), 1000)
    assert 900 < len(text) <= 1000
    assert "| 99 | 99.0 |" in text
    shown = sum(line.startswith("| ") for line in text.splitlines()) - 2
    assert text.endswith(f"... and {100 - shown} more trials")
    assert markdown.note(progress.snapshot(), 40) == "**1 iteration, best 99.0, 0 s**"


def test_a_store_without_a_server_comes_with_the_command_that_shows_it() -> None:
    page = run_page("sqlite:////data/my runs/mlflow.db", "7", "abc")
    text = markdown.way_to_see(page, "the run", "pbt_ppo")
    assert "mlflow ui --backend-store-uri 'sqlite:////data/my runs/mlflow.db'" in text
    assert "(http://127.0.0.1:5000/#/experiments/7/runs/abc?workflowType=machine_learning)" in text


def test_azure_ml_shows_it_in_its_studio() -> None:
    page = run_page("azureml://westeurope.api.azureml.ms/x", "7", "abc")
    assert "Azure ML Studio, under the experiment pbt_ppo" in markdown.way_to_see(page, "the run", "pbt_ppo")
