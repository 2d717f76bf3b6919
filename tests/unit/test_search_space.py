"""Search spaces: every move stays inside, and the same seed makes the same moves."""

import random
from collections.abc import Mapping
from typing import Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from plato_core.search_space import (
    Choice,
    Distribution,
    Integer,
    LogUniform,
    Uniform,
    clamp,
    contains,
    explore,
    initial_population,
    is_distribution,
    parse,
    parse_start,
    perturb,
    repair,
    sample,
    unrepairable,
)

finite = st.floats(min_value=-1e9, max_value=1e9, allow_nan=False)


@st.composite
def ranges(draw: st.DrawFn) -> Distribution:
    kind = draw(st.sampled_from(["uniform", "loguniform", "integer"]))
    if kind == "integer":
        low = draw(st.integers(-1000, 1000))
        return Integer(low=low, high=low + draw(st.integers(1, 10_000)))
    low, high = draw(finite), draw(finite)
    if kind == "loguniform":
        low, high = abs(low) + 1e-9, abs(high) + 1e-9
    assume(low != high)
    return parse({"type": kind, "low": min(low, high), "high": max(low, high)})


scalars = st.one_of(st.integers(-100, 100), finite, st.text(max_size=4), st.booleans())
choices = st.builds(
    lambda values: Choice(values=tuple(values)),
    st.lists(scalars, min_size=1, max_size=6, unique_by=lambda v: (isinstance(v, bool), v)),
)
distributions = st.one_of(ranges(), choices)
sizes = st.one_of(
    st.integers(1, 300).flatmap(lambda low: st.integers(1, 500).map(lambda width: Integer(low=low, high=low + width))),
    st.lists(st.integers(1, 600), min_size=1, max_size=5, unique=True).map(lambda v: Choice(values=tuple(v))),
)
seeds = st.integers(0, 2**31 - 1)


@given(distributions, seeds)
def test_sample_is_one_of_its_own_values(distribution: Distribution, seed: int) -> None:
    value = sample(distribution, random.Random(seed))
    assert contains(distribution, value)
    if isinstance(distribution, Integer):
        assert type(value) is int


@given(distributions, st.one_of(scalars, st.just(float("nan")), st.just(float("inf"))), st.booleans())
def test_perturb_and_clamp_stay_inside_whatever_the_value(distribution: Distribution, value: Any, up: bool) -> None:
    assert contains(distribution, clamp(distribution, value))
    assert contains(distribution, perturb(distribution, value, up))


@given(ranges(), seeds, st.booleans())
def test_perturb_moves_in_the_direction_asked_for(distribution: Distribution, seed: int, up: bool) -> None:
    value: Any = sample(distribution, random.Random(seed))
    moved: Any = perturb(distribution, value, up)
    assert moved >= value if up else moved <= value


@given(st.integers(-50, 50), st.integers(1, 200), st.data(), st.booleans())
def test_an_integer_moves_by_at_least_one_unless_at_its_bound(
    low: int, width: int, data: st.DataObject, up: bool
) -> None:
    distribution = Integer(low=low, high=low + width)
    value = data.draw(st.integers(low, low + width))
    moved = perturb(distribution, value, up)
    assert type(moved) is int
    at_bound = value == (distribution.high if up else distribution.low)
    assert (moved == value) == at_bound


def test_perturb_multiplies_by_the_factors_of_pbt() -> None:
    space = Uniform(low=0, high=10)
    assert perturb(space, 2.0, up=True) == pytest.approx(2.4)
    assert perturb(space, 2.0, up=False) == pytest.approx(1.6)
    assert perturb(Integer(low=1, high=30), 10, up=True) == 12
    assert perturb(Integer(low=1, high=30), 29, up=True) == 30


def test_a_choice_moves_to_its_neighbours_from_the_nearest_value() -> None:
    space = Choice(values=(1e-3, 5e-4, 1e-4, 5e-5, 1e-5))
    assert perturb(space, 1e-4, up=True) == 5e-5
    assert perturb(space, 1e-4, up=False) == 5e-4
    assert perturb(space, 1e-3, up=False) == 1e-3
    assert perturb(space, 4.4e-4, up=True) == 1e-4
    assert perturb(Choice(values=("relu", "tanh")), "elu", up=True) == "tanh"


def test_true_is_not_taken_for_one() -> None:
    space = Choice(values=(0, 1, True))
    assert contains(Choice(values=(1, 2)), True) is False
    assert contains(Integer(low=1, high=2), float("inf")) is False
    assert clamp(space, True) is True


@given(
    st.dictionaries(st.sampled_from(["lr", "gamma", "clip_param", "a", "b"]), distributions, min_size=1),
    st.floats(0, 1),
    seeds,
    st.randoms(use_true_random=False),
)
def test_explore_is_determined_by_the_seed_and_stays_inside(
    mutations: dict[str, Distribution], probability: float, seed: int, shuffler: random.Random
) -> None:
    donor = {name: sample(space, random.Random(seed)) for name, space in mutations.items()} | {"fixed": 3}
    shuffled = list(mutations.items())
    shuffler.shuffle(shuffled)
    first = explore(donor, mutations, probability, random.Random(seed))
    again = explore(donor, dict(shuffled), probability, random.Random(seed))
    assert first == again
    values, operations = first
    assert values["fixed"] == 3
    assert set(operations) == set(mutations)
    assert all(contains(space, values[name]) for name, space in mutations.items())


def test_explore_names_its_operations() -> None:
    mutations = {"lr": Uniform(low=0, high=1), "act": Choice(values=("relu", "tanh"))}
    donor = {"lr": 0.5, "act": "relu"}
    _, always = explore(donor, mutations, 1.0, random.Random(0))
    assert always == {"lr": "resample", "act": "resample"}
    seen = [explore(donor, mutations, 0.0, random.Random(seed)) for seed in range(20)]
    assert {(values["lr"], operations["lr"]) for values, operations in seen} == {
        (0.6, "* 1.2"),
        (0.4, "* 0.8"),
    }
    assert {operations["act"] for _, operations in seen} == {"shift left", "shift right"}


def test_a_donor_value_outside_the_bounds_is_brought_back() -> None:
    mutations = {"lambda": Uniform(low=0.9, high=1.0)}
    for seed in range(20):
        values, _ = explore({"lambda": 1.08}, mutations, 0.0, random.Random(seed))
        assert 0.9 <= values["lambda"] <= 1.0


@given(sizes, sizes, st.integers(1, 900), st.integers(1, 900), seeds, st.floats(0, 1))
def test_a_minibatch_never_exceeds_its_batch(
    minibatch: Distribution, batch: Distribution, m: int, b: int, seed: int, probability: float
) -> None:
    mutations = {"sgd_minibatch_size": minibatch, "train_batch_size": batch}
    assume(unrepairable({}, mutations) is None)
    fitted = [repair({"sgd_minibatch_size": m, "train_batch_size": b}, mutations)]
    trial = initial_population({}, mutations, 1, seed)[0]
    explored, _ = explore(trial, mutations, probability, random.Random(seed))
    for values in (*fitted, trial, explored):
        assert values["sgd_minibatch_size"] <= values["train_batch_size"]
    for values in (trial, explored):
        assert contains(minibatch, values["sgd_minibatch_size"])
        assert contains(batch, values["train_batch_size"])


@given(st.one_of(sizes, st.integers(1, 600)), st.one_of(sizes, st.integers(1, 600)), st.sets(
    st.sampled_from(["sgd_minibatch_size", "train_batch_size"])), seeds)  # fmt: skip
def test_any_space_that_is_accepted_can_be_repaired(minibatch: Any, batch: Any, tuned: set[str], seed: int) -> None:
    start = {"sgd_minibatch_size": minibatch, "train_batch_size": batch}
    mutations = {name: start[name] for name in tuned if is_distribution(start[name])}
    assume(unrepairable(start, mutations) is None)
    for trial in initial_population(start, mutations, 3, seed):
        assert trial["sgd_minibatch_size"] <= trial["train_batch_size"]
        for round_seed in range(5):
            trial, _ = explore(trial, mutations, 0.5, random.Random(round_seed))
            assert trial["sgd_minibatch_size"] <= trial["train_batch_size"]


def test_repair_lowers_the_minibatch_and_only_then_raises_the_batch() -> None:
    batch, minibatch = Integer(low=100, high=4000), Integer(low=64, high=2000)
    both: dict[str, Distribution] = {"train_batch_size": batch, "sgd_minibatch_size": minibatch}
    values = {"train_batch_size": 200, "sgd_minibatch_size": 1000}
    assert repair(values, both) == {"train_batch_size": 200, "sgd_minibatch_size": 200}
    assert repair(values, {"train_batch_size": batch}) == {
        "train_batch_size": 1000,
        "sgd_minibatch_size": 1000,
    }


def test_explore_says_when_a_value_was_fitted_to_the_batch() -> None:
    mutations: dict[str, Distribution] = {"sgd_minibatch_size": Integer(low=1, high=1000)}
    donor = {"sgd_minibatch_size": 100, "train_batch_size": 100}
    seen = [explore(donor, mutations, 0.0, random.Random(seed)) for seed in range(20)]
    assert (donor, {"sgd_minibatch_size": "* 1.2, fitted to the batch"}) in seen


@pytest.mark.parametrize(
    ("hyperparameters", "mutations"),
    [
        ({"sgd_minibatch_size": 512, "train_batch_size": 256}, {}),
        ({"train_batch_size": 100}, {"sgd_minibatch_size": Integer(low=128, high=256)}),
        ({"sgd_minibatch_size": 256}, {"train_batch_size": Integer(low=16, high=128)}),
        (
            {},
            {
                "sgd_minibatch_size": Integer(low=300, high=400),
                "train_batch_size": Choice(values=(100, 200)),
            },
        ),
    ],
)
def test_a_space_that_no_repair_can_help_is_named(
    hyperparameters: dict[str, Any], mutations: dict[str, Distribution]
) -> None:
    problem = unrepairable(hyperparameters, mutations)
    assert problem is not None
    assert "sgd_minibatch_size" in problem
    assert "train_batch_size" in problem


STARTS: Mapping[str, Any] = {"lr": 1e-4, "num_sgd_iter": Choice(values=(10, 20, 30))}
MUTATIONS: Mapping[str, Distribution] = {
    "lr": LogUniform(low=1e-5, high=1e-3),
    "lambda": Uniform(low=0.9, high=1.0),
}


@given(seeds, st.integers(1, 6), st.integers(1, 6))
def test_the_first_trials_do_not_depend_on_the_population(seed: int, few: int, more: int) -> None:
    small = initial_population(STARTS, MUTATIONS, few, seed)
    large = initial_population(
        dict(reversed(list(STARTS.items()))), dict(reversed(list(MUTATIONS.items()))), few + more, seed
    )
    assert large[:few] == small


def test_the_initial_population_is_pinned_by_its_seed() -> None:
    trials = initial_population(STARTS, MUTATIONS, 4, seed=1)
    assert trials == initial_population(STARTS, MUTATIONS, 4, seed=1)
    assert trials != initial_population(STARTS, MUTATIONS, 4, seed=2)
    assert {trial["lr"] for trial in trials} == {1e-4}
    assert len({trial["lambda"] for trial in trials}) == 4
    assert {trial["num_sgd_iter"] for trial in trials} <= {10, 20, 30}


def test_starting_points_are_told_from_fixed_values() -> None:
    assert parse_start([128, 512]) == Choice(values=(128, 512))
    assert parse_start([[0, 1.0], [10000, 0.05]]) == [[0, 1.0], [10000, 0.05]]
    replay = {"type": "PrioritizedEpisodeReplayBuffer", "capacity": 1000}
    assert parse_start(replay) == replay
    assert parse_start({"type": "uniform", "low": 0, "high": 1}) == Uniform(low=0, high=1)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ({"type": "uniform", "low": 2.0, "high": 1.0}, "low 2.0 must be less than high 1.0"),
        ({"type": "integer", "low": 3, "high": 3}, "the same"),
        ({"type": "loguniform", "low": 0, "high": 1}, "greater than 0"),
        ({"type": "unifrom", "low": 0, "high": 1}, "did you mean uniform?"),
        ({"type": "uniform", "lo": 0, "high": 1}, "did you mean low?"),
        ({"type": "integer", "low": 1.5, "high": 4}, "low 1.5"),
        ({"type": "uniform", "low": 0, "high": float("inf")}, "finite"),
        ({"type": "choice", "values": [1, 1.0]}, "twice"),
        ([], "at least 1 item"),
        (5, "give {type:"),
        ({"low": 0, "high": 1}, "give {type:"),
    ],
)
def test_a_distribution_that_cannot_be_is_refused_in_one_line(text: Any, said: str) -> None:
    with pytest.raises(ValueError) as error:
        parse(text)
    assert said in str(error.value)
    assert "\n" not in str(error.value)
