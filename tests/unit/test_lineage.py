"""The lineage file: one line an exploit, read back as it was written."""

import json
from dataclasses import fields, replace
from pathlib import Path

import pytest

from plato_core.sweep.lineage import LINEAGE_NAME, Exploit, append, read

EXPLOIT = Exploit(
    time=1700000000.25,
    trial="a_00001",
    trial_name="PPO_CartPole-v1_a_00001",
    iteration=4,
    score=21.5,
    donor="a_00000",
    donor_name="PPO_CartPole-v1_a_00000",
    donor_iteration=5,
    donor_score=101.125,
    checkpoint="checkpoint_000005",
    old={"lr": 1e-3, "num_sgd_iter": 8, "activation": "relu"},
    new={"lr": 8e-4, "num_sgd_iter": 9, "activation": "tanh"},
    operations={"lr": "* 0.8", "num_sgd_iter": "* 1.2", "activation": "resample"},
)


def test_lineage_comes_back_in_the_order_of_the_exploits(tmp_path: Path) -> None:
    exploits = [EXPLOIT, replace(EXPLOIT, iteration=8, donor_score=None), replace(EXPLOIT, trial="a_00002")]
    for exploit in exploits:
        append(tmp_path / LINEAGE_NAME, exploit)

    assert read(tmp_path / LINEAGE_NAME) == exploits


def test_whole_numbers_stay_whole(tmp_path: Path) -> None:
    append(tmp_path / LINEAGE_NAME, EXPLOIT)
    (exploit,) = read(tmp_path / LINEAGE_NAME)

    assert exploit.new == EXPLOIT.new
    assert isinstance(exploit.new["num_sgd_iter"], int)


def test_each_line_stands_for_itself(tmp_path: Path) -> None:
    path = tmp_path / LINEAGE_NAME
    append(path, EXPLOIT)
    append(path, EXPLOIT)

    lines = path.read_text().splitlines()
    assert len(lines) == 2
    assert list(json.loads(lines[1])) == [field.name for field in fields(Exploit)]


def test_sweep_without_an_exploit_has_an_empty_lineage(tmp_path: Path) -> None:
    assert read(tmp_path / LINEAGE_NAME) == []


def test_line_that_is_no_exploit_is_not_read_as_one(tmp_path: Path) -> None:
    (tmp_path / LINEAGE_NAME).write_text('{"trial": "a"}\n')
    with pytest.raises(TypeError):
        read(tmp_path / LINEAGE_NAME)
