"""How a population is laid over slots: everybody at once where memory allows, and never more than there is."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from plato_core.sweep.packing import MEMORY_FRACTION, PROCESS_BYTES, Packing, pack

GIB = float(2**30)


def _packed(population: int = 4, slots: int = 2, gpus: float = 0.0, memory: float = 16 * GIB, runners: int = 0):
    return pack(population, slots=slots, gpus=gpus, memory_bytes=memory, num_env_runners=runners)


def test_population_shares_the_slots_where_memory_allows() -> None:
    assert _packed() == Packing(slots=2, resident=4, cpus_per_trial=0.5, gpus_per_trial=0.0)


def test_no_more_trials_at_once_than_fit_into_memory() -> None:
    memory = 2.5 * PROCESS_BYTES / MEMORY_FRACTION
    packing = _packed(memory=memory)
    assert (packing.resident, packing.cpus_per_trial) == (2, 1.0)


def test_env_runners_need_memory_and_cpus_too() -> None:
    memory = 6.5 * PROCESS_BYTES / MEMORY_FRACTION
    packing = _packed(memory=memory, runners=2)
    assert packing.resident == 2
    assert packing.cpus_per_trial == pytest.approx(1.0, abs=1e-3)
    assert packing.bundles(2) == [{"CPU": 0.3333}] * 3


@pytest.mark.parametrize("memory", [0.0, 1.0, PROCESS_BYTES / 2])
def test_one_trial_always_runs(memory: float) -> None:
    packing = _packed(memory=memory)
    assert (packing.resident, packing.cpus_per_trial) == (1, 2.0)


def test_trial_gets_no_more_than_the_slots_where_there_are_many() -> None:
    # Whole CPUs from one on: Ray refuses 2.5.
    assert _packed(population=4, slots=10).cpus_per_trial == 2.0


def test_gpus_are_shared_and_stand_with_the_trials_own_process() -> None:
    packing = _packed(gpus=1.0, runners=1)
    assert packing.gpus_per_trial == 0.25
    assert packing.bundles(1) == [{"CPU": 0.25, "GPU": 0.25}, {"CPU": 0.25}]
    assert "GPU" not in _packed().bundles(0)[0]


@given(
    population=st.integers(1, 64),
    slots=st.integers(1, 128),
    gpus=st.sampled_from([0.0, 1.0, 2.0, 8.0]),
    memory=st.floats(0, 512 * GIB),
    runners=st.integers(0, 4),
)
def test_residents_fit_together_in_amounts_that_ray_takes(
    population: int, slots: int, gpus: float, memory: float, runners: int
) -> None:
    packing = pack(population, slots=slots, gpus=gpus, memory_bytes=memory, num_env_runners=runners)
    bundles = packing.bundles(runners)

    assert 1 <= packing.resident <= population
    assert len(bundles) == 1 + runners
    for name, available in (("CPU", slots), ("GPU", gpus)):
        amounts = [bundle.get(name, 0.0) for bundle in bundles]
        assert sum(amounts) * packing.resident <= available + 1e-9
        for amount in amounts:
            assert amount == int(amount) if amount >= 1 else amount * 10_000 == pytest.approx(round(amount * 10_000))
    assert all(bundle["CPU"] > 0 for bundle in bundles)
    assert sum(bundle["CPU"] for bundle in bundles) == pytest.approx(packing.cpus_per_trial, abs=1e-3)
    if packing.resident > 1:
        used = packing.resident * (1 + runners) * PROCESS_BYTES
        assert used <= math.ceil(memory * MEMORY_FRACTION)
