"""A sweep that was killed goes on: the same runs, every step once, from the last whole checkpoints."""

from __future__ import annotations

import json
import random
import time
from collections.abc import Callable
from typing import Any

import psutil
import pytest
from product import Product, Script, marked
from store import tracked

ITERATIONS = 40
SEED = 20261122


@pytest.fixture(scope="module")
def unkilled(make_product: Callable[[str], Product]) -> dict[str, Any]:
    product = make_product("unkilled")
    script = product.run(*product.short("--json", iterations=ITERATIONS))
    assert script.process.returncode == 0, script.said
    return what_is_there(script)


def what_is_there(script: Script) -> dict[str, Any]:
    """What a tracked sweep consists of, but for values that depend on chance and time."""
    runs = tracked(script.store)
    client = runs.client
    trials = {}
    for run in runs.children:
        names = sorted(run.data.metrics)
        steps = {
            name: [step for step, _ in runs.history(run, name)] for name in names if not name.startswith("episode_")
        }
        trials[run.data.tags["plato.trial_id"].rpartition("_")[2]] = {
            "status": run.info.status,
            "steps": steps,
            "checkpoints": [
                file.path for file in client.list_artifacts(run.info.run_id) if file.path.startswith("checkpoint_")
            ],
        }
    return {"parent": runs.parent.info.status, "trials": trials}


def kill_all(script: Script) -> None:
    """`kill -9` of the whole process tree, at once."""
    processes = marked(script.mark)
    for process in processes:
        process.kill()
    psutil.wait_procs(processes, 10)


@pytest.mark.parametrize("number", [0, 1])
def test_a_killed_sweep_goes_on_as_if_nothing_had_happened(
    product: Product, unkilled: dict[str, Any], number: int
) -> None:
    script = product.start(*product.short(iterations=ITERATIONS))
    script.wait_for_training()
    time.sleep(random.Random(SEED + number).uniform(0.0, 4.0))
    kill_all(script)
    assert not script.left()
    again = product.run("--resume", "last", "--json")
    assert again.process.returncode == 0, again.said
    assert what_is_there(again) == unkilled
    result = json.loads(again.stdout.splitlines()[-1])
    assert result["sweep_id"] == script.sweep_dir.name
