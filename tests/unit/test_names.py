"""Canonical names and suggestions."""

import pytest

from plato_core.names import ALIASES, canonical, canonicalise, did_you_mean, nearest


@pytest.mark.parametrize(("alias", "name"), ALIASES.items())
def test_rllib_names_map_to_the_names_users_filter_by(alias: str, name: str) -> None:
    assert canonical(alias) == name
    assert canonical(name) == name


def test_an_alias_beside_its_canonical_name_is_refused() -> None:
    assert canonicalise({"lambda_": 0.9, "lr": 1}) == {"lambda": 0.9, "lr": 1}
    with pytest.raises(ValueError, match="num_epochs and num_sgd_iter"):
        canonicalise({"num_epochs": 1, "num_sgd_iter": 2})


def test_the_nearest_name_is_found_across_case_and_dashes() -> None:
    assert nearest("Num-Tune-Sample", ["num_tune_samples", "num_cpus"]) == "num_tune_samples"
    assert nearest("zzz", ["num_tune_samples"]) is None
    assert did_you_mean("ppo", ["PPO", "DQN"]) == " (did you mean PPO?)"
    assert did_you_mean("zzz", ["PPO"]) == ""
