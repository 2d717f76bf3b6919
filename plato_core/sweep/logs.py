"""A trial's `result.json` and `progress.csv`: a line for each result, in its folder as soon as it is reported.

Tune's own loggers write to a folder of Ray's session and copy the files to storage now and then. At a trial's start
they copy them back over newer ones, and after a `kill -9` what was not copied yet is gone.
"""

from __future__ import annotations

import csv
import json
import math
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ray.air.constants import EXPR_PROGRESS_FILE, EXPR_RESULT_FILE, TRAINING_ITERATION
from ray.tune.experiment import Trial
from ray.tune.logger import CSVLoggerCallback, JsonLoggerCallback

from plato_core.training.spec import Resume

NAMES = (EXPR_RESULT_FILE, EXPR_PROGRESS_FILE)


class JsonLog(JsonLoggerCallback):
    """Writes `result.json`; a trial that starts again goes on after the line of its restored checkpoint."""

    def log_trial_start(self, trial: Trial) -> None:
        """Opens the trial's file (Tune's hook)."""
        self.log_trial_end(trial)
        trial.init_local_path()
        self.update_config(trial, trial.config)
        path = _log(trial, EXPR_RESULT_FILE)
        _cut_json(path, begins_after(trial))
        self._trial_files[trial] = path.open("a")


class CsvLog(CSVLoggerCallback):
    """Writes `progress.csv`; a trial that starts again goes on after the line of its restored checkpoint."""

    def log_trial_start(self, trial: Trial) -> None:
        """Opens the trial's file (Tune's hook)."""
        self._setup_trial(trial)

    def _setup_trial(self, trial: Trial) -> None:
        self.log_trial_end(trial)
        path = _log(trial, EXPR_PROGRESS_FILE)
        header = _cut_csv(path, begins_after(trial))
        file = self._trial_files[trial] = path.open("a", newline="")
        self._trial_continue[trial] = header is not None
        # Ray's would take the columns from the next result, which need not have the same.
        self._trial_csv[trial] = None if header is None else csv.DictWriter(file, header)  # type: ignore[assignment]


def carry_over(folders: Sequence[Path], to: Path) -> None:
    """Begin a new attempt's logs of a trial with those of the one before; at the trial's start they are cut."""
    to.mkdir(parents=True, exist_ok=True)
    for name in NAMES:
        source = next((folder / name for folder in reversed(folders) if (folder / name).is_file()), None)
        if source is not None:
            partial = to / f".{name}.partial"
            shutil.copyfile(source, partial)
            partial.replace(to / name)


def results(folders: Sequence[Path]) -> list[dict[str, Any]]:
    """Return the results of a trial's newest `result.json` that holds any, in their order."""
    newest = (found for folder in reversed(folders) if (found := _whole_results(folder / EXPR_RESULT_FILE)))
    return [result for _, result in next(newest, [])]


def last_logged(folders: Sequence[Path]) -> int:
    """Return the last iteration of a trial's newest `result.json` that holds any; 0 without one."""
    found = results(folders)
    return int(found[-1][TRAINING_ITERATION]) if found else 0


def last_judgement(
    folders: Sequence[Path], iteration: int, *, time_attribute: str, interval: float, metric: str
) -> tuple[float, float | None]:
    """Return when a trial was last judged by its scheduler, in the scheduler's time, and its metric then.

    Args:
        folders: The trial's folders in the attempts so far, oldest first.
        iteration: The trial's own count up to which its results count.
        time_attribute: The scheduler's time, as results name it.
        interval: Between two judgements, in that time.
        metric: The scheduler's.

    Returns:
        0 and None if it was not judged yet; None also for a metric that was unknown.
    """
    judged_at, value = 0.0, None
    for result in results(folders):
        if result[TRAINING_ITERATION] <= iteration and result[time_attribute] - judged_at >= interval:
            judged_at, value = float(result[time_attribute]), result.get(metric)
    return judged_at, value if isinstance(value, int | float) and math.isfinite(value) else None


def _log(trial: Trial, name: str) -> Path:
    path = Path(str(trial.path), name)
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


def begins_after(trial: Trial) -> int:
    """Return the trial's own count from which it goes on when it starts next."""
    checkpoints: Any = trial.run_metadata.checkpoint_manager
    latest = checkpoints.latest_checkpoint_result
    if latest is not None:
        return int(latest.metrics[TRAINING_ITERATION])
    resume = Resume.of(trial.config)
    return 0 if resume is None else int(resume.own["iteration"])


def _cut_json(path: Path, iteration: int) -> None:
    kept = [line for line, result in _whole_results(path) if result[TRAINING_ITERATION] <= iteration]
    _rewrite(path, "".join(kept))


def _cut_csv(path: Path, iteration: int) -> list[str] | None:
    """Return the columns; None where there is nothing yet."""
    lines = _whole_lines(path)
    if not lines:
        _rewrite(path, "")
        return None
    header = next(csv.reader(lines[:1]))
    if TRAINING_ITERATION not in header:  # damaged by a loss of power
        _rewrite(path, "")
        return None
    column = header.index(TRAINING_ITERATION)
    kept = (line for line in lines[1:] if _cell(line, column) <= iteration)
    _rewrite(path, "".join([lines[0], *kept]))
    return header


def _cell(line: str, column: int) -> float:
    try:
        return int(next(csv.reader([line]))[column])
    except (ValueError, IndexError, StopIteration, csv.Error):
        return math.inf


def _whole_results(path: Path) -> list[tuple[str, dict[str, Any]]]:
    """The lines of a `result.json`, up to the first that a loss of power has damaged."""
    found: list[tuple[str, dict[str, Any]]] = []
    for line in _whole_lines(path):
        try:
            result = json.loads(line)
            int(result[TRAINING_ITERATION])
        except (ValueError, KeyError, TypeError):
            break
        found.append((line, result))
    return found


def _whole_lines(path: Path) -> list[str]:
    """The lines of a file without the last one of a process that was killed while it wrote it."""
    try:
        with path.open(newline="", errors="replace") as file:
            lines = file.readlines()
    except FileNotFoundError:
        return []
    return lines if not lines or lines[-1].endswith("\n") else lines[:-1]


def _rewrite(path: Path, text: str) -> None:
    if path.exists():
        with path.open(newline="", errors="replace") as file:
            if file.read() == text:
                return
        path.write_text(text, newline="")
