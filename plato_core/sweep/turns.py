"""Whose turn it is where trials outnumber the places to run in."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ray.tune.execution.tune_controller import TuneController
from ray.tune.experiment import Trial


def in_line(tune_controller: TuneController, trained: Callable[[Trial], float]) -> Trial | None:
    """Returns the trial that Tune should look after next: it takes a process that is free, or gets in line for one.

    Ray's own names the one that has trained least until that one runs, and only then the next. So where a trial pauses
    while nobody else is in line, Tune ends its process; the next one asks for a new, which takes seconds to start; and
    before it has, another trial pauses, whose process it takes instead. From then on one of two slots stood idle.
    The same happens at a sweep's start, where turns are shorter than the start of a process: so while others wait, a
    trial whose own is starting does not take another's.

    Args:
        tune_controller: As the scheduler is given it.
        trained: How far a trial is, in the scheduler's time.
    """
    # What a scheduler is given hides this one, and says so in the log at each attribute.
    controller: Any = getattr(tune_controller, "_tune_controller", tune_controller)
    waiting = [
        trial
        for trial in controller.get_trials()
        if trial.status in (Trial.PENDING, Trial.PAUSED) and trial not in controller._resetting_trials
    ]
    if not controller._actor_cache.num_cached_objects:  # a paused one would take it before those in line
        waiting = [trial for trial in waiting if trial.status == Trial.PAUSED]
    starting = set(controller._actor_manager.live_actors) - controller._started_actors
    waiting = [trial for trial in waiting if controller._trial_to_actor.get(trial) not in starting]
    return min(waiting, key=trained, default=None)
