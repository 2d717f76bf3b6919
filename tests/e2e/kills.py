"""What a sweep must come to however often it was killed, and how to kill it."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest
from mlflow.entities import Run
from product import Product, Script, marked
from store import Tracked, tracked
from waiting import wait_until

from plato_core.sweep import lineage

ITERATIONS = 40
INTERVAL = 4
# After this a script whose sweep lost something must have come to an end.
END_S = 300.0
# Of these no two runs have the same values.
OF_CHANCE = frozenset(
    {
        "pid", "timestamp", "time_total_s", "time_since_restore", "time_this_iter_s", "warmup_time",
        # They begin anew where a process does.
        "iterations_since_restore", "timesteps_since_restore",
    }
)  # fmt: skip
CLOCKWORK = """\
env_name: clockwork:Clockwork-v0
scheduler: median
hyperparameters:
  train_batch_size: 128
  sgd_minibatch_size: 128
  num_sgd_iter: 2
  num_envs_per_env_runner: 1
  shuffle_batch_per_epoch: false
  model_config: {fcnet_hiddens: [16], fcnet_activation: tanh, vf_share_layers: false}
"""


@dataclass(frozen=True)
class Trial:
    """What a trial's run holds.

    Attributes:
        status: Its status.
        series: Steps and values of each metric.
        checkpoints: The iterations of its complete checkpoints.
        logged: The iterations in its `result.json`.
    """

    status: str
    series: dict[str, list[tuple[int, float]]]
    checkpoints: list[int]
    logged: list[int]


def trials_of(script: Script) -> dict[str, Trial]:
    """Returns the trials of a script's one sweep by their place in the population."""
    runs = tracked(script.store)
    return {
        run.data.tags["plato.trial_id"].rpartition("_")[2]: _trial(runs, run, script.folder) for run in runs.children
    }


def _trial(runs: Tracked, run: Run, folder: Path) -> Trial:
    names = [name for name in runs.artifacts(run) if name.startswith("checkpoint_")]
    complete = [name for name in names if f"{name}/manifest.json" in runs.artifacts(run, name)]
    text = runs.text(run, "result.json", folder.parent)
    return Trial(
        status=run.info.status,
        series={name: runs.history(run, name) for name in run.data.metrics},
        checkpoints=[int(name.rpartition("_")[2]) for name in complete],
        logged=[json.loads(line)["training_iteration"] for line in text.splitlines()],
    )


def assert_complete(script: Script, trials: int, iterations: int = ITERATIONS) -> None:
    """The sweep is as one that nothing had happened to: each step once, each checkpoint there, all runs finished."""
    runs = tracked(script.store)
    assert runs.parent.info.status == "FINISHED"
    assert "plato.error" not in runs.parent.data.tags
    assert len(runs.children) == trials
    found = trials_of(script)
    assert sorted(found) == [f"{index:05d}" for index in range(trials)]
    exploits = {
        (e.trial.rpartition("_")[2], e.iteration) for e in lineage.read(script.sweep_dir / lineage.LINEAGE_NAME)
    }
    steps = list(range(1, iterations + 1))
    for index, trial in found.items():
        assert trial.status == "FINISHED"
        assert trial.logged == steps
        for name, points in trial.series.items():
            mine = [step for step, _ in points]
            assert mine == steps or (name.startswith("episode_") and set(mine) < set(steps)), (index, name)
        # One that takes over a donor's policy has nothing of its own to save.
        due = {step for step in steps if step % INTERVAL == 0 and (index, step) not in exploits} | {iterations}
        assert set(trial.checkpoints) == due, index


def assert_same_values(script: Script, unkilled: Script) -> None:
    """Each trial reported what it reported in a sweep that was not killed."""
    expected = trials_of(unkilled)
    for index, trial in trials_of(script).items():
        assert trial.series.keys() == expected[index].series.keys()
        for name in trial.series.keys() - OF_CHANCE:
            wanted = [(step, pytest.approx(value, rel=1e-3, abs=1e-6)) for step, value in expected[index].series[name]]
            assert trial.series[name] == wanted, (index, name)


def kill_all(script: Script) -> None:
    """`kill -9` of the whole process tree, at once."""
    processes = marked(script.mark)
    for process in processes:
        process.kill()
    psutil.wait_procs(processes, 10)
    script.process.wait()


def lose_the_raylet(product: Product, after_s: float) -> None:
    """Kills Ray's own daemon under a sweep, which fails with one line, leaves nothing, and goes on when it is told to.

    Args:
        product: Where the sweep runs.
        after_s: How long that daemon has run by then, in seconds.
    """
    script = product.start(*population(product))
    wait_until(lambda: _raylets(script), "the raylet", END_S)
    time.sleep(after_s)
    for raylet in _raylets(script):
        raylet.kill()
    if script.wait(END_S) != 0:  # else it had come to its end before
        assert script.process.returncode == 1, script.said
        assert script.stderr.count("\n") == 1, script.said
        assert f"plato sweep --resume {script.sweep_dir.name}" in script.stderr
        wait_until(lambda: not script.left(), "all of it is gone", 10.0)
        script = product.run("--resume", script.sweep_dir.name, timeout_s=END_S)
        assert script.process.returncode == 0, script.said
    assert_complete(script, trials=4)


def _raylets(script: Script) -> list[psutil.Process]:
    return [process for process in marked(script.mark) if process.name() == "raylet"]


def clockwork(product: Product, *arguments: str) -> list[str | Path]:
    """Returns the arguments of a deterministic sweep of two trials."""
    product.short_config.write_text(CLOCKWORK)
    return _arguments(product, 2, *arguments)


def population(product: Product, *arguments: str) -> list[str | Path]:
    """Returns the arguments of a sweep of four trials that exploit one another."""
    return _arguments(product, 4, *arguments)


def _arguments(product: Product, trials: int, *arguments: str) -> list[str | Path]:
    return [
        "--test-local", "--config", product.short_config, "--num-tune-samples", str(trials), "--seed", "3",
        "--max-iterations", str(ITERATIONS), "--perturbation-interval", str(INTERVAL),
        "--keep-checkpoints", "100", "--stop-reward", "10000", *arguments,
    ]  # fmt: skip
