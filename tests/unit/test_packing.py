"""How a population is laid over slots: everybody at once where memory allows, and never more than there is."""

import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from plato_core.sweep.packing import MEMORY_FRACTION, PROCESS_BYTES, Node, Packing, pack

GIB = float(2**30)


def _packed(population: int = 4, slots: int = 2, gpus: float = 0.0, memory: float = 16 * GIB, runners: int = 0):
    return pack(population, [Node(slots, gpus, memory)], num_env_runners=runners)


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


def _cluster(*cpus: int, gpus: float = 0.0, memory: float = 16 * GIB) -> list[Node]:
    return [Node(each, gpus, memory) for each in cpus]


def test_a_share_fits_node_by_node() -> None:
    # Of 0.6667 only one fits on a node, and the third trial would wait for ever.
    packing = pack(3, _cluster(1, 1), num_env_runners=0)
    assert (packing.slots, packing.resident, packing.cpus_per_trial) == (2, 3, 0.5)


def test_trials_of_whole_cpus_fit_node_by_node_too() -> None:
    # Of the 2.4 CPUs that each could have in sum, a node of 4 has room for one trial only.
    assert pack(5, _cluster(4, 4, 4), num_env_runners=0).cpus_per_trial == 2.0


def test_a_smaller_node_takes_fewer_trials() -> None:
    assert pack(4, _cluster(6, 2), num_env_runners=0).cpus_per_trial == 2.0
    assert pack(3, _cluster(8, 1), num_env_runners=0).cpus_per_trial == 2.0


def test_env_runners_may_stand_on_another_node_than_their_trial() -> None:
    packing = pack(1, _cluster(1, 1, 1), num_env_runners=2)
    assert packing.bundles(2) == [{"CPU": 1.0}] * 3


def test_memory_is_that_of_each_node() -> None:
    # Three halves of a process are none.
    halves = _cluster(2, 2, 2, memory=1.5 * PROCESS_BYTES / MEMORY_FRACTION)
    assert pack(6, halves, num_env_runners=0).resident == 3


def test_gpus_are_shared_node_by_node() -> None:
    packing = pack(3, _cluster(4, 4, gpus=1.0), num_env_runners=0)
    assert (packing.cpus_per_trial, packing.gpus_per_trial) == (2.0, 0.5)
    assert pack(3, _cluster(4, 4, gpus=4.0), num_env_runners=0).gpus_per_trial == 2.0


def test_a_fraction_is_of_one_gpu() -> None:
    # Of 0.8 there is one on each of four, and the fifth trial would wait for ever.
    assert pack(5, _cluster(8, gpus=4.0), num_env_runners=0).gpus_per_trial == 0.5


def test_a_trials_own_process_stands_where_there_is_a_gpu() -> None:
    nodes = [Node(2, 1.0, 16 * GIB), Node(64, 0.0, 16 * GIB)]
    packing = pack(4, nodes, num_env_runners=0)
    assert (packing.cpus_per_trial, packing.gpus_per_trial) == (0.5, 0.25)
    without = pack(4, nodes, max_gpus=0.0, num_env_runners=0)
    assert (without.cpus_per_trial, without.gpus_per_trial) == (16.0, 0.0)


def test_env_runners_leave_a_place_beside_a_gpu_for_every_trial() -> None:
    """Ray lays out one trial at a time, and puts its runners beside it."""
    packing = pack(4, [Node(4, 1.0, 64 * GIB), Node(12, 0.0, 64 * GIB)], num_env_runners=3)
    assert 4 // packing.bundles(3)[0]["CPU"] > 3 * 4
    alike = pack(4, [Node(8, 1.0, 64 * GIB)] * 2, num_env_runners=2)
    assert (alike.bundles(2)[0]["CPU"], alike.gpus_per_trial) == (1.0, 0.5)


def test_a_sweep_takes_no_more_than_it_is_given() -> None:
    packing = pack(4, _cluster(8, 8, gpus=2.0), max_cpus=4, max_gpus=1.0, num_env_runners=0)
    assert (packing.slots, packing.cpus_per_trial, packing.gpus_per_trial) == (4, 1.0, 0.25)


@given(
    population=st.integers(1, 64),
    cpus=st.lists(st.integers(0, 128), min_size=1, max_size=5).filter(any),
    gpus=st.lists(st.sampled_from([0.0, 0.0, 1.0, 2.0, 8.0]), min_size=5, max_size=5),
    max_cpus=st.none() | st.integers(1, 200),
    max_gpus=st.none() | st.sampled_from([0.0, 0.5, 1.0, 3.0]),
    memory=st.floats(0, 512 * GIB),
    runners=st.integers(0, 4),
    chance=st.randoms(use_true_random=False),
)
def test_residents_fit_together_in_amounts_that_ray_takes(
    population: int,
    cpus: list[int],
    gpus: list[float],
    max_cpus: int | None,
    max_gpus: float | None,
    memory: float,
    runners: int,
    chance: random.Random,
) -> None:
    nodes = [Node(cpu, gpu, memory) for cpu, gpu in zip(cpus, gpus, strict=False)]
    packing = pack(population, nodes, max_cpus=max_cpus, max_gpus=max_gpus, num_env_runners=runners)
    bundles = packing.bundles(runners)

    assert 1 <= packing.resident <= population
    assert len(bundles) == 1 + runners
    for name, limit in (
        ("CPU", min(sum(cpus), max_cpus or math.inf)),
        ("GPU", math.inf if max_gpus is None else max_gpus),
    ):
        amounts = [bundle.get(name, 0.0) for bundle in bundles]
        assert sum(amounts) * packing.resident <= limit + 1e-9
        for amount in amounts:
            assert amount == int(amount) if amount >= 1 else amount * 10_000 == pytest.approx(round(amount * 10_000))
    assert all(bundle["CPU"] > 0 for bundle in bundles)
    assert sum(bundle["CPU"] for bundle in bundles) == pytest.approx(packing.cpus_per_trial, abs=1e-3)
    _place(packing, nodes, runners, chance)
    if packing.resident > 1:
        used = packing.resident * (1 + runners) * PROCESS_BYTES
        assert used <= math.ceil(memory * MEMORY_FRACTION * len(nodes))


def _place(packing: Packing, nodes: list[Node], runners: int, chance: random.Random) -> None:
    """Puts one trial after the other, each process on any node that has room; one that wants a GPU to one of these."""
    cpus = [10_000 * node.cpus for node in nodes]
    gpus = [[10_000] * int(node.gpus) for node in nodes]
    for bundle in packing.bundles(runners) * packing.resident:
        cpu, gpu = (round(1e4 * bundle.get(name, 0.0)) for name in ("CPU", "GPU"))
        needed = max(1, gpu // 10_000) if gpu else 0  # whole GPUs, or a part of one
        fitting = {
            node: [index for index, left in enumerate(free) if left >= min(gpu, 10_000)][:needed]
            for node, free in enumerate(gpus)
            if cpus[node] >= cpu
        }
        rooms = [node for node, found in fitting.items() if len(found) == needed]
        assert rooms, f"no room for {bundle}"
        # Most often beside the GPUs, where a later trial would have to stand.
        beside = [node for node in rooms if gpus[node]]
        node = chance.choice(beside if beside and chance.random() < 0.9 else rooms)
        cpus[node] -= cpu
        for index in fitting[node]:
            gpus[node][index] -= min(gpu, 10_000)


@given(
    population=st.integers(1, 64),
    slots=st.integers(1, 128),
    gpus=st.sampled_from([0.0, 1.0]),
    runners=st.integers(0, 4),
)
def test_on_one_machine_the_slots_are_shared_evenly(population: int, slots: int, gpus: float, runners: int) -> None:
    packing = pack(population, [Node(slots, gpus, 512 * GIB)], num_env_runners=runners)
    for share, amount in (
        (packing.bundles(runners)[0]["CPU"], slots / packing.resident / (1 + runners)),
        (packing.gpus_per_trial, gpus / packing.resident),
    ):
        assert share == (math.floor(amount) if amount >= 1 else pytest.approx(amount, abs=1e-4))


@given(population=st.integers(1, 32), cpus=st.lists(st.integers(1, 64), min_size=1, max_size=5))
def test_no_larger_share_would_fit(population: int, cpus: list[int]) -> None:
    packing = pack(population, _cluster(*cpus, memory=512 * GIB), num_env_runners=0)
    share = packing.cpus_per_trial
    larger = share + 1 if share >= 1 else min(1.0, share + 1e-4)
    assert sum(math.floor(cpu / larger + 1e-9) for cpu in cpus) < packing.resident or larger == share


def test_what_is_left_of_the_nodes_has_room_for_fewer() -> None:
    nodes = [Node(1, 0.0, 4 * GIB)] * 2
    packing = pack(3, nodes, num_env_runners=0)
    assert [packing.holds(nodes[:count], 0) for count in range(3)] == [0, 2, 4]


def test_a_trials_own_process_has_room_beside_a_gpu_only() -> None:
    nodes = [Node(4, 1.0, 16 * GIB), Node(4, 0.0, 16 * GIB)]
    packing = pack(2, nodes, num_env_runners=1)
    assert packing.gpus_per_trial == 0.5
    assert [packing.holds([node], 1) for node in nodes] == [2, 0]


@given(
    st.integers(1, 12), st.lists(st.tuples(st.integers(1, 9), st.integers(0, 3)), min_size=1, max_size=4),
    st.integers(0, 3),
)  # fmt: skip
def test_the_nodes_that_a_population_was_laid_over_have_room_for_it(
    population: int, sizes: list[tuple[int, int]], runners: int
) -> None:
    nodes = [Node(cpus, float(gpus), 64 * GIB) for cpus, gpus in sizes]
    packing = pack(population, nodes, num_env_runners=runners)
    assert packing.holds(nodes, runners) >= packing.resident
