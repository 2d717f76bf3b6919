"""The best runs of an experiment, found without reading all of it.

Sorting by a metric takes minutes in a large SQLite store, and Azure ML cannot do it at all; but every store filters by
one. So a page of runs says how good some are, the next asks for better ones only, and after a few questions the answer
is not a full page any more: then it holds all that lead. Whatever a filter lets through, no run that it leaves out can
rank before one that it lets through, so that a winner among the leading runs is the winner of all.
"""

import re
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from decimal import Decimal
from typing import TYPE_CHECKING

from plato_core.errors import TrackingError
from plato_core.selection import Mode, RunRecord, metric_name, rank_key
from plato_core.tracking.artifacts import is_transient
from plato_core.tracking.queries import iter_runs, runs_page

if TYPE_CHECKING:
    from mlflow import MlflowClient

# MLflow's server spends some 5 ms on each run that it returns. Where a page holds nothing but runs that are no trials,
# the next is larger: parents have their best trial's metrics.
_PAGES = (25, 250, 1000)
_MOST_QUESTIONS = 60
_NEAR_AT_FIRST = 3
_WIDER = (10, 100, 1000)
_WORST = -sys.float_info.max
_PLAIN_NAME = re.compile(r"[A-Za-z_]\w*")


def leading_runs(
    client: "MlflowClient", experiment_id: str, rank_metric: str, mode: Mode
) -> Iterator[Iterable[RunRecord]]:
    """Yield the trials that lead an experiment, in ever larger groups of any order.

    Each group holds all trials that rank before any of its own, as `rank_key` ranks them. The groups end before they
    hold all trials, and at once in a store that cannot filter so: whoever found none that is fit then reads them all.

    Args:
        client: Of the tracking store.
        experiment_id: Where to look for child runs.
        rank_metric: With or without the prefix `metrics.`.
        mode: Whether a high or a low value is good.

    Raises:
        TrackingError: The store did not answer.
    """
    search = _Search(client, experiment_id, metric_name(rank_metric), mode)
    if "`" in search.metric or '"' in search.metric:
        return
    try:
        if group := _rise(search):
            yield group
    except TrackingError as error:
        if not isinstance(error.__cause__, Exception) or is_transient(error.__cause__):
            raise
        return  # the store refuses such a question
    merits = sorted(search.seen.values(), reverse=True)
    for count in _WIDER:
        if count < len(merits):
            yield search.at_least(merits[count - 1])


@dataclass
class _Search:
    """Questions to the store, by merit: the metric's value, or its negative where low values are good.

    Attributes:
        seen: Merit of each trial that an answer held.
    """

    client: "MlflowClient"
    experiment_id: str
    metric: str
    mode: Mode
    seen: dict[str, float] = field(default_factory=dict)

    def better_than(self, merit: float | None) -> tuple[list[RunRecord], bool]:
        """Return a page of trials that are better (None: that have a value at all), and whether that is all of them."""
        return self._asked(self._filter(merit, ""))

    def earliest(self, merit: float) -> tuple[list[RunRecord], bool]:
        """Return the trials of at least this merit that started first, and whether that is all of them."""
        return self._asked(self._filter(merit, "="), "attributes.start_time ASC")

    def at_least(self, merit: float) -> Iterator[RunRecord]:
        """Yield all trials of at least this merit."""
        runs = iter_runs(self.client, [self.experiment_id], self._filter(merit, "="))
        return (run for run in runs if run.parent_run_id is not None)

    def merit(self, run: RunRecord) -> float:
        """Return how good a ranked trial is."""
        value = run.metrics[self.metric]
        return value if self.mode == "max" else -value

    def _asked(self, condition: str, *order: str) -> tuple[list[RunRecord], bool]:
        ranked: list[RunRecord] = []
        complete = False
        for size in _PAGES:
            runs, token = runs_page(self.client, [self.experiment_id], condition, max_results=size, order_by=order)
            ranked, complete = self._ranked(runs), token is None
            if ranked or complete:
                break
        return ranked, complete

    def _ranked(self, runs: Iterable[RunRecord]) -> list[RunRecord]:
        # A store may let NaN, which it holds as 0, and infinities through any filter.
        trials = (run for run in runs if run.parent_run_id is not None)
        ranked = [run for run in trials if rank_key(run, self.metric, self.mode) is not None]
        self.seen.update((run.run_id, self.merit(run)) for run in ranked)
        return ranked

    def _filter(self, merit: float | None, equal: str) -> str:
        name = self.metric if _PLAIN_NAME.fullmatch(self.metric) else f"`{self.metric}`"
        merit = _WORST if merit is None else merit
        value = merit if self.mode == "max" else -merit
        # All digits and no exponent, which not every store's parser knows.
        return f"metrics.{name} {'>' if self.mode == 'max' else '<'}{equal} {Decimal(repr(value)):f}"


def _rise(search: _Search) -> list[RunRecord]:
    """Return all trials that are better than some merit, or the earliest of those that share the best one.

    The first questions are for what is better than the best seen, which leaves a hundredth with each if the store's
    pages have nothing to do with merit. If they have (ever worse ones first), every other question is far ahead of the
    best seen, in growing steps until nobody is there, and then at half the distance.

    Returns:
        An empty list if there are none, or if what the store lets through every filter hides them.
    """
    bound: float | None = None
    best, ceiling, stride = -float("inf"), float("inf"), 0.0
    for question in range(1, _MOST_QUESTIONS + 1):
        better, complete = search.better_than(bound)
        if better and complete:
            return better
        if better:
            merits = [search.merit(run) for run in better]
            best = max(merits)
            stride = max(4 * stride, best - min(merits), 1e-3 * abs(best))
        elif bound is None or not complete:
            return []
        elif bound == best:
            return _first_to_start(*search.earliest(best))
        else:
            ceiling = bound
        near = question < _NEAR_AT_FIRST or question % 2 == 0
        ahead = min(best + stride, best + (ceiling - best) / 2)
        bound = ahead if not near and best < ahead < ceiling else best
    return []


def _first_to_start(runs: list[RunRecord], complete: bool) -> list[RunRecord]:
    """Return of equally good runs those that certainly started first; none if the store did not sort them."""
    if complete:
        return runs
    starts = [run.start_time or 0 for run in runs]
    if starts != sorted(starts):
        return []
    return [run for run, start in zip(runs, starts, strict=True) if start < starts[-1]]
