"""What runs on an emulated Azure ML track that do not train: two trials, whole and once."""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Collection
from pathlib import Path

from aml_bed import Emulator

from plato_core.manifest import read_manifest, verify

TRIALS, STEPS, PARAMS = ("t0", "t1"), 6, 5
UNTIL = "TRAIN_UNTIL"  # names a file: trials of a laptop's sweep end when it is there


def assert_tracked_once(
    emulator: Emulator,
    experiment: str,
    parents: Collection[str],
    others: Collection[str] = (),
    status: str = "FINISHED",
    held: Path | None = None,
) -> None:
    """Reads what MLflow has, without the way to it: the sweep's run, its trials' runs, and nothing else.

    Args:
        emulator: The workspace.
        experiment: Whose runs.
        parents: What trials may call the sweep's run: its id and, of a job's own, the job's name.
        others: Ids of further runs that must be there.
        status: Of the trials' runs.
        held: Of a sweep that was cut off: where files of a trial may be that were not sent. Points and parameters, and
            whole runs, may be missing too; none is there twice or wrong.
    """
    with contextlib.closing(sqlite3.connect(f"file:{emulator.folder / 'mlflow.db'}?mode=ro", uri=True)) as db:
        runs = dict(
            db.execute(
                "SELECT run_uuid, status FROM runs JOIN experiments USING (experiment_id) "
                "WHERE experiments.name = ? AND runs.lifecycle_stage = 'active'",
                (experiment,),
            ).fetchall()
        )
        trials = runs.keys() - {*parents, *others}
        assert len(trials) == len(TRIALS) or (held is not None and len(trials) < len(TRIALS)), runs
        assert len(runs) == len(trials) + 1 + len(others), runs
        assert {runs[run] for run in trials} <= {status}, runs
        assert {runs[run] for run in runs.keys() & {*parents}} == {status}, runs
        for run in trials:
            tags = dict(db.execute("SELECT key, value FROM tags WHERE run_uuid = ?", (run,)).fetchall())
            assert tags["mlflow.parentRunId"] in parents
            points = db.execute("SELECT key, step FROM metrics WHERE run_uuid = ?", (run,)).fetchall()
            names = {name for name, _ in points}
            params = dict(db.execute("SELECT key, value FROM params WHERE run_uuid = ?", (run,)).fetchall())
            all_points = {(name, step) for name in names for step in range(1, STEPS + 1)}
            all_params = {f"p{number}": "1" for number in range(PARAMS)}
            assert len(points) == len(set(points))
            assert set(points) <= all_points
            assert params.items() <= all_params.items()
            if held is None:
                assert {"training_iteration", "episode_reward_mean"} <= names
                assert set(points) == all_points
                assert params == all_params
            places = [emulator.artifacts(run)] + ([] if held is None else [held / tags["plato.trial_id"]])
            _assert_kept(places)


def _assert_kept(places: Collection[Path]) -> None:
    """A whole checkpoint and the results of a trial are in some of these folders."""
    whole = []
    for path in (found for place in places for found in place.glob("*checkpoint_*")):
        if (path / "manifest.json").is_file() and not verify(path, read_manifest(path)):
            whole.append(path.name)
    assert whole, [file for place in places for file in place.rglob("*")]
    notes = [path.read_text() for place in places for path in place.glob("result*.json")]
    assert "of this job" in notes
