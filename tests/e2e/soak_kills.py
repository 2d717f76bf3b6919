"""`kill -9` at random moments, many times over: `make soak`. The suite itself takes a seeded few of each.

Files here are not named as tests are, so that only `make soak` finds them.
"""

from __future__ import annotations

import contextlib
import os
import random
import signal
import time

import kills
import psutil
import pytest
import test_unattended as unattended
from product import Product, Script, marked
from stack import Stack
from test_unattended import stack  # noqa: F401
from waiting import wait_until

from plato_core.stack.parts import WORKER

SEED = 20261122
KILLS_OF_ALL, KILLS_OF_ONE = 20, 10

pytestmark = pytest.mark.timeout(900)


@pytest.mark.parametrize("number", range(KILLS_OF_ALL))
def test_a_sweep_whose_whole_tree_is_killed(product: Product, unkilled: Script, number: int) -> None:
    """At any moment between the script's start and its end; every other sweep is the deterministic one."""
    chance = random.Random(SEED + number)
    deterministic = number % 2 == 0
    arguments = kills.clockwork(product) if deterministic else kills.population(product)
    script = product.start(*arguments)
    after_s = chance.uniform(0.0, 30.0)
    deadline = time.monotonic() + after_s
    while time.monotonic() < deadline and script.process.poll() is None:
        time.sleep(0.01)
    ended = script.process.poll() is not None
    kills.kill_all(script)
    print(f"killed after {after_s:.2f} s" if not ended else "it had ended by itself")
    begun = list(product.folder.glob(".plato/sweeps/*/config.yaml"))
    again = product.run(*(["--resume", begun[0].parent.name] if begun else arguments), timeout_s=kills.END_S)
    assert again.process.returncode == 0, again.said
    kills.assert_complete(again, trials=2 if deterministic else 4)
    if deterministic:
        kills.assert_same_values(again, unkilled)


@pytest.mark.parametrize("number", range(KILLS_OF_ONE))
def test_a_sweep_of_which_a_trials_process_is_killed(product: Product, number: int) -> None:
    """It restarts from its last checkpoint, and the sweep ends as if nothing had happened."""
    chance = random.Random(SEED + 100 + number)
    script = product.start(*kills.population(product))
    wait_until(lambda: trainers(script), "the trials' processes", kills.END_S)
    time.sleep(chance.uniform(0.0, 12.0))
    found = trainers(script)
    if found:
        chance.choice(found).kill()
    assert script.wait(kills.END_S) == 0, script.said
    kills.assert_complete(script, trials=4)


@pytest.mark.parametrize("number", range(KILLS_OF_ONE))
def test_a_sweep_of_which_the_raylet_is_killed(product: Product, number: int) -> None:
    """It fails with one line, leaves nothing, and goes on when it is told to."""
    chance = random.Random(SEED + 200 + number)
    kills.lose_the_raylet(product, chance.uniform(0.0, 16.0))


@pytest.mark.parametrize("number", range(KILLS_OF_ONE))
def test_a_deployed_sweep_whose_worker_is_killed(stack: Stack, number: int) -> None:  # noqa: F811
    """The worker is started again, and the run ends as if nothing had happened, or is marked and can be tried again."""
    chance = random.Random(SEED + 300 + number)
    run = unattended.start(stack)
    time.sleep(chance.uniform(0.0, 40.0))
    os.kill(stack.state.parts[WORKER].pid, signal.SIGKILL)
    ends = ("Completed", "Failed", "Crashed", "Cancelled")
    wait_until(lambda: unattended.state(stack, run) in ends, "the run ends", kills.END_S)
    if unattended.state(stack, run) == "Crashed":
        print("it was marked, and is tried again")
        time.sleep(10.0)  # its worker may say so twice
        unattended.retry(stack, run)
        unattended.wait_for_end(stack, run)
    assert unattended.state(stack, run) == "Completed"
    unattended.assert_whole(stack, unattended.sweep_folder(stack, run))


def trainers(script: Script) -> list[psutil.Process]:
    """The trials' processes."""
    found = []
    for process in marked(script.mark):
        with contextlib.suppress(psutil.NoSuchProcess):  # it may end just now
            if "Trainable" in " ".join(process.cmdline()):
                found.append(process)
    return found
