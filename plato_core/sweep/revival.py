"""Going on with a sweep that ended before its time: what its folder says of each trial, and from where it goes on.

Not Tune's own restore: its snapshot of the experiment is up to ten seconds old, may be half-written after a `kill -9`,
and knows nothing of exploits in place. What counts here is what stands on disk whole: a checkpoint that verifies
against its manifest, or a donor's that a trial had taken over, with the note of what it became.

::

    <sweep>/tune, tune-2 ...                  one folder of Tune's for each attempt
      <trial>/checkpoint_NNNNNN/              manifest.json, trial.json
      <trial>/exploited_NNNNNN/               the donor's checkpoint, taken over at the trial's own iteration
      <trial>/exploited_NNNNNN.json           the values and counters that the trial went on with
      <trial>/ended.json                      how the trial ended, if it did by itself
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from plato_core.errors import CheckpointError
from plato_core.manifest import TRIAL_STATE_NAME, Manifest, read_manifest, verify
from plato_core.sweep.folder import write_whole
from plato_core.training.spec import EXPLOITED_PREFIX

TUNE_FOLDER = "tune"
TRIAL_END_NAME = "ended.json"


@dataclass(frozen=True)
class Point:
    """Where a trial goes on.

    Attributes:
        iteration: Its own count there.
        checkpoint: The folder to restore from.
        exploited: Whether that is a donor's that it had taken over, and not its own.
        hyperparameters: Its values from there on.
        own: Its own counters there.
    """

    iteration: int
    checkpoint: Path
    exploited: bool
    hyperparameters: dict[str, Any]
    own: dict[str, Any]


@dataclass(frozen=True)
class TrialEnd:
    """How a trial ended by itself.

    Attributes:
        status: FINISHED or FAILED.
        iteration: Its own count then.
        why: `stopping.Why`, or `error`.
        error: What it failed with, in one line, if it did.
    """

    status: Literal["FINISHED", "FAILED"]
    iteration: int
    why: str
    error: str | None = None


def trial_id(sweep_id: str, index: int) -> str:
    """Return a trial's id: the same in each attempt, so that its run, folder and lineage stay one."""
    return f"{sweep_id.rpartition('-')[2]}_{index:05d}"


def attempts(sweep_dir: Path) -> list[Path]:
    """Return Tune's folders of a sweep, oldest first."""
    found = [path for path in sweep_dir.glob(f"{TUNE_FOLDER}*") if path.is_dir()]
    return sorted(found, key=lambda path: _number(path.name))


def next_attempt(sweep_dir: Path) -> str:
    """Return the name of the next of Tune's folders."""
    before = attempts(sweep_dir)
    return TUNE_FOLDER if not before else f"{TUNE_FOLDER}-{_number(before[-1].name) + 1}"


def _number(name: str) -> int:
    tail = name.removeprefix(TUNE_FOLDER).removeprefix("-")
    return int(tail) if tail.isdigit() else 1


def note_exploit(folder: Path, iteration: int, hyperparameters: Mapping[str, Any], own: Mapping[str, Any]) -> None:
    """Write down what a trial went on with after it had taken over a donor's checkpoint."""
    note = {"hyperparameters": dict(hyperparameters), "own": dict(own)}
    write_whole(folder / f"{EXPLOITED_PREFIX}{iteration:06d}.json", json.dumps(note))


def note_end(folder: Path, end: TrialEnd) -> None:
    """Write down that a trial ended by itself."""
    write_whole(folder / TRIAL_END_NAME, json.dumps(asdict(end)))


def end_of(folders: Sequence[Path]) -> TrialEnd | None:
    """Return how a trial ended in its last attempt, of whose folders these are, oldest first; None if it has not."""
    note = _read(folders[-1] / TRIAL_END_NAME) if folders else None
    return None if note is None else TrialEnd(**note)


def folders_of(sweep_dir: Path, trial: str) -> list[Path]:
    """Return a trial's folders in the attempts so far, oldest first."""
    found = (sorted(attempt.glob(f"*_{trial}")) for attempt in attempts(sweep_dir))
    return [folder for folders in found for folder in folders if folder.is_dir()]


def last_point(folders: Iterable[Path], at_most: int) -> Point | None:
    """Return the furthest point that stands on disk whole; None if there is none.

    Of two at one iteration, the exploit is the later: it is decided on after the checkpoint was written.

    Args:
        folders: The trial's folders in the attempts so far.
        at_most: The last iteration whose result was logged. A checkpoint or exploit beyond it stands on disk where
            the sweep was killed between the two; going on from there would leave that result out for ever.
    """
    candidates: list[tuple[int, bool, Path]] = []
    for folder in folders:
        for path in folder.glob("checkpoint_*"):
            if (manifest := _manifest(path)) is not None:
                candidates.append((manifest.iteration, False, path))
        for note in folder.glob(f"{EXPLOITED_PREFIX}*.json"):
            candidates.append((int(note.stem.removeprefix(EXPLOITED_PREFIX)), True, note.with_suffix("")))
    for iteration, exploited, path in sorted(candidates, reverse=True):
        manifest = _manifest(path)
        if iteration > at_most or manifest is None or verify(path, manifest):
            continue  # half-written, or damaged since
        # A donor's checkpoint says the donor's values and counters.
        note = _read(path.with_name(f"{path.name}.json")) if exploited else _read(path / TRIAL_STATE_NAME)
        if note is not None:
            values = note["hyperparameters"] if exploited else dict(manifest.hyperparameters)
            return Point(iteration, path, exploited, values, note["own"])
    return None


def forget_beyond(folders: Iterable[Path], point: Point | None) -> None:
    """Remove what stands beyond the point from which a trial goes on: once its log is past there, it would count."""
    here = (0, False) if point is None else (point.iteration, point.exploited)
    for folder in folders:
        for path in folder.glob("checkpoint_*"):
            if (manifest := _manifest(path)) is None or (manifest.iteration, False) > here:
                shutil.rmtree(path, ignore_errors=True)
        for note in folder.glob(f"{EXPLOITED_PREFIX}*.json"):
            if (int(note.stem.removeprefix(EXPLOITED_PREFIX)), True) > here:
                note.unlink()
                shutil.rmtree(note.with_suffix(""), ignore_errors=True)


def forget_attempts_before(attempt: Path, trial: str) -> None:
    """Remove what earlier attempts hold of a trial that has come to its end in this one."""
    *before, last = folders_of(attempt.parent, trial)
    end = end_of([last])
    if last.parent != attempt or end is None or end.status != "FINISHED":
        return
    for folder in before:
        shutil.rmtree(folder, ignore_errors=True)


def _manifest(path: Path) -> Manifest | None:
    try:
        return read_manifest(path)
    except (CheckpointError, OSError):
        return None


def _read(path: Path) -> dict[str, Any] | None:
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError):
        return None
