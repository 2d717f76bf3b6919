"""What the tests of training share: one small Ray, and trials driven in this process without Tune."""

import logging
from collections.abc import Iterator
from pathlib import Path

import pytest

from plato_core.sweep.environment import prepare_environment

prepare_environment(local=True)

import ray  # noqa: E402


@pytest.fixture(scope="module")
def small_ray() -> Iterator[None]:
    """A Ray of four CPUs, so that four trials need not wait for one another.

    Of one module, since other modules start a Ray of their own kind.
    """
    ray.shutdown()  # RLlib starts a Ray by itself where a test before this one built an algorithm without
    ray.init(
        address="local",
        num_cpus=4,
        include_dashboard=False,
        log_to_driver=False,
        logging_level=logging.ERROR,
        object_store_memory=128 * 2**20,
        # Trials' processes import the environments of `odd_envs` from this folder.
        runtime_env={"env_vars": {"PYTHONPATH": str(Path(__file__).parent)}},
    )
    yield
    ray.shutdown()
