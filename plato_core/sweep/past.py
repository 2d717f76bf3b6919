"""What a sweep that goes on tells of its earlier attempts, so that whoever watches sees all of it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ray.air.constants import TIMESTAMP, TRAINING_ITERATION

from plato_core.config import SweepConfig
from plato_core.sweep import lineage, logs, revival
from plato_core.sweep.events import Exploited, Past, Result, TrialEnded, TrialStarted
from plato_core.sweep.observer import result_event

# Of some 250 bytes each: a line of events stays below 64 KiB.
_EVENTS_A_PART = 100


def past(config: SweepConfig, sweep_dir: Path, points: Mapping[int, int]) -> list[Past]:
    """Returns what the attempts so far told, as far as it still holds.

    Args:
        config: The sweep's.
        sweep_dir: The sweep's folder.
        points: For trials that go on, by their place in the population, the iteration from which they do.
    """
    exploits = {(e.trial, e.iteration): e for e in lineage.read(sweep_dir / lineage.LINEAGE_NAME)}
    started: list[TrialStarted] = []
    told: list[tuple[tuple[float, int, int], Result | Exploited]] = []
    ended: list[TrialEnded] = []
    for index in range(config.num_tune_samples):
        trial = revival.trial_id(sweep_dir.name, index)
        folders = revival.folders_of(sweep_dir, trial)
        results = logs.results(folders)
        if index in points:
            results = [result for result in results if result[TRAINING_ITERATION] <= points[index]]
        elif (end := revival.end_of(folders)) is not None:
            ended.append(TrialEnded(trial=trial, status=end.status, iteration=end.iteration, error=end.error))
        if results:
            started.append(TrialStarted(trial=trial, index=index))
        for result in results:
            # Whole seconds: within one, by the trials' own counts. An exploit was told before the result it followed.
            when, iteration = float(result[TIMESTAMP]), int(result[TRAINING_ITERATION])
            if (exploit := exploits.get((trial, iteration))) is not None:
                told.append(((when, iteration, 0), _exploited(exploit)))
            told.append(((when, iteration, 1), result_event(trial, result, config.scheduler_metric_name)))
    told.sort(key=lambda one: one[0])
    events = [*started, *(event for _, event in told), *ended]
    parts = [events[start : start + _EVENTS_A_PART] for start in range(0, len(events), _EVENTS_A_PART)]
    return [Past(events=part, last=part is parts[-1]) for part in parts]


def _exploited(exploit: lineage.Exploit) -> Exploited:
    names = ("trial", "iteration", "donor", "donor_iteration", "checkpoint", "old", "new", "operations")
    values: dict[str, Any] = {name: getattr(exploit, name) for name in names}
    return Exploited(**values)
