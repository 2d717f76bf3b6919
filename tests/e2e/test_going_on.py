"""A sweep that was killed goes on: the same runs, every step once, from the last whole checkpoints."""

from __future__ import annotations

import json
import random
import time

import kills
import pytest
from product import Product, Script
from thorough import soaked, thorough

SEED = 20261122


@thorough
@pytest.mark.timeout(900)  # three sweeps, one after the other
def test_a_killed_sweep_goes_on_to_the_same_values(product: Product, unkilled: Script) -> None:
    script = product.start(*kills.clockwork(product))
    script.wait_for_training()
    time.sleep(random.Random(SEED).uniform(0.0, 1.5))
    kills.kill_all(script)
    assert not script.left()
    again = product.run("--resume", "last", "--json")
    assert again.process.returncode == 0, again.said
    assert json.loads(again.stdout.splitlines()[-1])["sweep_id"] == script.sweep_dir.name
    kills.assert_complete(again, trials=2)
    kills.assert_same_values(again, unkilled)


@soaked
def test_a_population_that_was_killed_twice_goes_on_as_one(product: Product) -> None:
    chance = random.Random(SEED + 1)
    arguments = kills.population(product)
    script = product.start(*arguments)
    script.wait_for_training()
    time.sleep(chance.uniform(0.0, 4.0))
    kills.kill_all(script)
    script = product.start("--resume", script.sweep_dir.name)
    time.sleep(chance.uniform(8.0, 14.0))
    kills.kill_all(script)
    again = product.run("--resume", script.sweep_dir.name)
    assert again.process.returncode == 0, again.said
    kills.assert_complete(again, trials=4)


@soaked
def test_a_sweep_whose_ray_dies_fails_in_one_line_and_goes_on(product: Product) -> None:
    kills.lose_the_raylet(product, random.Random(SEED + 2).uniform(6.0, 14.0))
