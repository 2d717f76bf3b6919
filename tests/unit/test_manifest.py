import hashlib
import json
import math
import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from plato_core.errors import CheckpointError
from plato_core.manifest import (
    MANIFEST_NAME,
    Manifest,
    checkpoint_name,
    read_manifest,
    verify,
    write_manifest,
)


def write(directory: Path, **changes) -> Manifest:
    described = {
        "sweep_id": "s1",
        "trial_id": "t1",
        "trial_name": "trial 1",
        "iteration": 12,
        "metric": "episode_reward_mean",
        "score": 475.5,
        "hyperparameters": {"lr": 1e-4, "lambda": 0.95},
        "versions": {"ray": "2.60.0"},
    }
    return write_manifest(directory, **(described | changes))


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    (tmp_path / "learner").mkdir()
    (tmp_path / "learner" / "module.pkl").write_bytes(b"weights")
    (tmp_path / "state.pkl").write_bytes(b"state")
    (tmp_path / "empty").touch()
    return tmp_path


def test_it_holds_the_digest_and_size_of_every_file_but_itself(checkpoint: Path) -> None:
    write(checkpoint)
    manifest = write(checkpoint)
    assert list(manifest.files) == ["empty", "learner/module.pkl", "state.pkl"]
    assert manifest.files["state.pkl"].sha256 == hashlib.sha256(b"state").hexdigest()
    assert manifest.files["state.pkl"].size == 5
    assert manifest.size == 12


def test_what_was_written_is_read_back_the_same(checkpoint: Path) -> None:
    manifest = write(checkpoint)
    assert read_manifest(checkpoint) == manifest
    assert (checkpoint / MANIFEST_NAME).read_text() == manifest.to_json()
    assert verify(checkpoint, manifest) == []


def test_writing_leaves_no_temporary_file(checkpoint: Path) -> None:
    write(checkpoint)
    assert sorted(path.name for path in checkpoint.iterdir()) == [
        "empty",
        "learner",
        "manifest.json",
        "state.pkl",
    ]


@pytest.mark.parametrize("score", [math.nan, math.inf, -math.inf, None, np.float64("nan")])
def test_an_unknown_score_is_null(checkpoint: Path, score: float | None) -> None:
    assert write(checkpoint, score=score).score is None
    assert json.loads((checkpoint / MANIFEST_NAME).read_text())["score"] is None


def test_numpy_values_of_hyperparameters_become_plain_numbers(checkpoint: Path) -> None:
    values = {"lr": np.float32(0.5), "num_sgd_iter": np.int64(7), "layers": (64, np.int32(32)), "x": None}
    manifest = write(checkpoint, hyperparameters=values)
    assert manifest.hyperparameters == {"lr": 0.5, "num_sgd_iter": 7, "layers": [64, 32], "x": None}
    assert read_manifest(checkpoint) == manifest


def test_verify_names_each_file_that_differs(checkpoint: Path) -> None:
    manifest = write(checkpoint)
    (checkpoint / "empty").unlink()
    (checkpoint / "state.pkl").write_bytes(b"other")
    (checkpoint / "learner" / "module.pkl").write_bytes(b"short")
    (checkpoint / "stranger").write_bytes(b"not in the manifest")
    state, other = hashlib.sha256(b"state").hexdigest(), hashlib.sha256(b"other").hexdigest()
    assert verify(checkpoint, manifest) == [
        "empty: missing",
        "learner/module.pkl: expected 7 bytes, found 5",
        f"state.pkl: expected sha256 {state}, found {other}",
    ]


def test_a_folder_in_place_of_a_file_is_a_problem(checkpoint: Path) -> None:
    manifest = write(checkpoint)
    (checkpoint / "empty").unlink()
    (checkpoint / "empty").mkdir()
    assert verify(checkpoint, manifest) == ["empty: not a regular file"]


@pytest.mark.parametrize(
    "path", ["../outside", "/etc/passwd", "a/../../b", "a//b", "./a", "", ".", "a\\..\\b", "manifest.json"]
)
def test_a_path_that_leads_out_of_the_checkpoint_is_refused(checkpoint: Path, path: str) -> None:
    text = json.loads(write(checkpoint).to_json())
    text["files"][path] = {"sha256": "0" * 64, "size": 1}
    (checkpoint / MANIFEST_NAME).write_text(json.dumps(text))
    with pytest.raises(CheckpointError, match="not a valid manifest"):
        read_manifest(checkpoint)


def test_a_missing_manifest_says_that_the_checkpoint_is_not_complete(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="not complete"):
        read_manifest(tmp_path)


@pytest.mark.parametrize("text", ["", "{", "[]", '{"version": 2}', '{"version": 1}', "\xff"])
def test_a_damaged_manifest_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / MANIFEST_NAME).write_text(text, encoding="latin-1")
    with pytest.raises(CheckpointError, match="not a valid manifest"):
        read_manifest(tmp_path)


def test_a_missing_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="cannot be described"):
        write(tmp_path / "nowhere")


def test_a_link_to_a_file_that_is_gone_is_refused(checkpoint: Path) -> None:
    os.symlink(checkpoint / "gone", checkpoint / "link")
    with pytest.raises(CheckpointError, match="cannot be described"):
        write(checkpoint)


@given(st.integers(0, 10_000_000))
def test_names_sort_as_their_iterations_and_give_them_back(iteration: int) -> None:
    name = checkpoint_name(iteration)
    assert int(name.removeprefix("checkpoint_")) == iteration
    if iteration < 999_999:
        assert name < checkpoint_name(iteration + 1)


def test_the_name_has_six_digits() -> None:
    assert checkpoint_name(12) == "checkpoint_000012"
