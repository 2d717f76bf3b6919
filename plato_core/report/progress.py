"""The state of a running sweep, from its events: one source for the terminal, Prefect and MLflow.

Pure: it draws nothing, waits for nothing and reads no clock. One thread applies events; others may read its
views meanwhile, each of which is an immutable snapshot.
"""

import math
import threading
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from plato_core.report import notable
from plato_core.report.curves import Curve, CurveRecorder, in_order
from plato_core.report.facts import END_STATES, RETURN_METRIC, Best, Snapshot, SweepFacts, TrialRow
from plato_core.report.notable import BestSoFar, end_line, exploit_line, largest, past_line, restart_line
from plato_core.report.text import counted, duration, measure, number, plain
from plato_core.report.tracking_outages import TrackingOutages, kept_line
from plato_core.sweep.events import (
    Event,
    Exploited,
    Failed,
    NodeChanged,
    Notice,
    Past,
    Phase,
    Result,
    Stopping,
    SweepEnded,
    TrackingState,
    TrialEnded,
    TrialRestarted,
    TrialStarted,
    TrialWaits,
)

__all__ = ["Best", "Snapshot", "SweepFacts", "SweepProgress", "TrialRow"]


class SweepProgress:
    """Where a sweep stands.

    Times are seconds on any clock that does not run backwards, the same one for all calls.
    """

    def __init__(self, facts: SweepFacts) -> None:
        self.facts = facts
        self._lock = threading.RLock()
        self._rows: dict[str, TrialRow] = {}
        self._recorders: dict[str, CurveRecorder] = {}
        self._best = BestSoFar(facts)
        self._fraction = 0.0
        self._began: float | None = None
        self._trials_began: float | None = None
        self._now = -math.inf
        self._phase = "starting"
        self._stopping: str | None = None
        self._in_past = False
        self._ended: SweepEnded | None = None
        self._tracking: TrackingState | None = None
        self._outages = TrackingOutages()
        self._nodes: NodeChanged | None = None
        self._noted: tuple[Event | None, str | None] = (None, None)
        self._restored: Snapshot | None = None

    def restore(self, snapshot: Snapshot) -> None:
        """Show `snapshot`, the last of a sweep that has ended, from now on: another process may have seen it."""
        self._restored = snapshot

    def apply(self, event: Event, now: float) -> None:
        """Take in `event`, which arrived at `now`."""
        with self._lock:
            self._set_clock(now)
            self._noted = (event, self._take(event))
            self._fraction = max(self._fraction, self._current_fraction())

    def tick(self, now: float) -> None:
        """Let the clock go on to `now` without an event."""
        with self._lock:
            self._set_clock(now)
            self._fraction = max(self._fraction, self._current_fraction())

    def notable(self, event: Event) -> str | None:
        """Return the line to log for `event`, the last one applied; None if it is not worth a line."""
        with self._lock:
            noted, line = self._noted
            return line if noted is event else None

    def leaderboard(self) -> list[TrialRow]:
        """Return a row for each trial: best first by the latest value of the metric, unknown ones last."""
        with self._lock:
            rows = list(self._rows.values())
            if self._ended is None:
                taken = {row.index for row in rows}
                rows += [TrialRow(None, index) for index in range(self.facts.population) if index not in taken]
        sign = -1.0 if self.facts.mode == "max" else 1.0

        def order(row: TrialRow) -> tuple[bool, bool, float, int]:
            value = row.metric_value
            return (value is None, row.trial is None, 0.0 if value is None else sign * value, row.index)

        return sorted(rows, key=order)

    def best(self) -> Best | None:
        """Return the best value of the metric that any trial has had; None while there is none."""
        return self._best.value

    def fraction(self) -> float:
        """Return how far the sweep is, in [0, 1], never falling.

        That is the way from the first known return to the target, or the budget spent (iterations, seconds),
        whichever is further; 0 while neither says anything, 1 once the sweep has finished.
        """
        return self._fraction

    def elapsed_s(self) -> float:
        """Return the seconds from the first event or `tick` to the last one."""
        return 0.0 if self._began is None else self._now - self._began

    def tracking(self) -> TrackingState | None:
        """Return what the tracking writer said last."""
        return self._tracking

    def ended(self) -> SweepEnded | None:
        """Return the sweep's last word; None while it runs."""
        return self._ended

    def curves(self) -> tuple[Curve, ...]:
        """Return the learning curve of each trial that has started, in the order of their numbers."""
        with self._lock:
            return in_order(recorder.curve(self._rows[trial].index) for trial, recorder in self._recorders.items())

    def snapshot(self) -> Snapshot:
        """Return all of it, at one moment."""
        if self._restored is not None:
            return self._restored
        with self._lock:
            return Snapshot(
                facts=self.facts,
                headline=self.headline(),
                fraction=self.fraction(),
                rows=tuple(self.leaderboard()),
                best=self.best(),
                curves=self.curves(),
                elapsed_s=self.elapsed_s(),
                tracking=self.tracking(),
                ended=self.ended(),
            )

    def headline(self) -> str:
        """Return the state in one line: `12/40 iterations, best 312.4 of 475, 1 min 03 s`."""
        with self._lock:
            rows = list(self._rows.values())
            stopping = f"stopping ({self._stopping}): " if self._stopping else ""
            state = f"{self._ended.outcome}: " if self._ended else stopping
            parts = [self._iterations(rows), *self._bests()]
            if not any(row.iteration for row in rows):
                parts = [] if state else [self._phase]
            over = sum(row.over for row in rows)
            if over and self._ended is None:
                parts.append(f"{over} of {max(len(rows), self.facts.population)} trials ended")
            if (nodes := self._nodes) is not None and nodes.nodes < nodes.most and self._ended is None:
                parts.append(f"{nodes.nodes} of {nodes.most} nodes left")
            return state + ", ".join([*parts, duration(self.elapsed_s())])

    def _iterations(self, rows: Sequence[TrialRow]) -> str:
        furthest = max((row.iteration for row in rows), default=0)
        if self.facts.max_iterations:
            return f"{furthest}/{self.facts.max_iterations} iterations"
        return counted(furthest, "iteration")

    def _bests(self) -> list[str]:
        parts, plain_return = [], self.facts.metric == RETURN_METRIC
        if not plain_return and self._best.value:
            parts.append(f"best {self.facts.metric} {measure(self._best.value.value)}")
        if self._best.best_return is not None:
            goal = "" if self.facts.stop_reward is None else f" of {number(self.facts.stop_reward)}"
            parts.append(f"best{'' if plain_return else ' return'} {measure(self._best.best_return)}{goal}")
        return parts

    def _set_clock(self, now: float) -> None:
        self._began = now if self._began is None else self._began
        self._now = max(self._began, self._now, now)

    def _take(self, event: Event) -> str | None:
        """Change the state by `event` and return its line, if it deserves one."""
        match event:
            case Phase():
                self._phase = plain(event.text)
            case Notice():
                self._phase = plain(event.text)
                return self._phase
            case TrialStarted():
                self._start(event)
            case Result():
                return self._best.take(self._result(event), event)
            case Exploited():
                row, donor = self._row(event.trial), self._row(event.donor)
                tuned = self._tuned(event.new, row)
                self._rows[event.trial] = replace(row, generation=row.generation + 1, tuned=tuned)
                self._recorders[event.trial].exploit(event.iteration, donor.index)
                return exploit_line(event, row, donor, self.facts.tuned)
            case TrialRestarted():
                row = self._row(event.trial)
                restarts = row.restarts + (not event.lost_node)
                self._rows[event.trial] = row = replace(row, state="pending", restarts=restarts)
                return restart_line(event, row)
            case TrialWaits():
                self._rows[event.trial] = replace(self._row(event.trial), state="waiting")
            case NodeChanged():
                self._nodes = event
                return notable.node_line(event)
            case TrialEnded():
                row, iteration = self._row(event.trial), event.iteration
                row = replace(row, iteration=max(row.iteration, iteration), error=event.error)
                self._rows[event.trial] = row = replace(row, state=END_STATES[event.status])
                # While stopping, that the others end too goes without saying.
                return end_line(event, row) if event.status == "FAILED" or not self._stopping else None
            case Past():
                if not self._in_past:  # also of a job that begins again, whose first life was seen
                    self._rows.clear()
                    self._recorders.clear()
                    self._stopping = None
                self._in_past = not event.last
                for one in event.events:  # their lines were printed then
                    self._take(one)
                self._trials_began = None
                return past_line(self._rows.values()) if event.last else None
            case Stopping():
                self._stopping = plain(event.reason)
                return f"stopping: {self._stopping}"
            case TrackingState():
                self._tracking = event
                return self._outages.take(event, self._now)
            case SweepEnded():
                self._ended = event
                left = {trial: row for trial, row in self._rows.items() if not row.over}
                self._rows.update({trial: replace(row, state="stopped") for trial, row in left.items()})
                if event.spool is None and self._tracking is not None and self._tracking.pending:
                    return kept_line(self._tracking.pending)
            case Failed():
                self._stopping = self._stopping or "an error"
        return None

    def _row(self, trial: str) -> TrialRow:
        if trial not in self._rows:
            taken = {row.index for row in self._rows.values()}
            index = next(i for i in range(len(taken) + 1) if i not in taken)
            self._rows[trial] = TrialRow(trial, index, state="running")
            self._recorders[trial] = CurveRecorder()
        return self._rows[trial]

    def _tuned(self, values: Mapping[str, Any], row: TrialRow) -> Mapping[str, Any]:
        known = {**row.tuned, **values}
        return {name: known[name] for name in self.facts.tuned if name in known}

    def _start(self, event: TrialStarted) -> None:
        if self._trials_began is None:
            self._trials_began = self._now
        row = self._row(event.trial)
        tuned = self._tuned(event.hyperparameters, row)
        self._rows[event.trial] = replace(row, index=event.index, state="running", tuned=tuned)

    def _result(self, event: Result) -> TrialRow:
        row = self._row(event.trial)
        known_return, known_value = event.episode_return, event.metric_value
        self._rows[event.trial] = row = replace(
            row,
            iteration=max(row.iteration, event.iteration),
            episode_return=row.episode_return if known_return is None else known_return,
            best_return=largest(row.best_return, known_return),
            metric_value=row.metric_value if known_value is None else known_value,
            tuned=self._tuned(event.hyperparameters, row),
            env_steps=max(row.env_steps, event.env_steps),
            state=row.state if row.over else "running",
        )
        self._recorders[event.trial].result(event.iteration, known_return)
        return row

    def _current_fraction(self) -> float:
        if self._ended is not None:
            return 1.0 if self._ended.outcome == "finished" else self._fraction
        facts, rows = self.facts, list(self._rows.values())
        population = max(facts.population, len(rows), 1)
        shares = [0.0]
        if facts.stop_reward is not None:
            if facts.stop_when == "first":
                shares.append(self._way_to_target(self._best.best_return))
            else:
                shares.append(sum(self._way_to_target(row.best_return) for row in rows) / population)
        if facts.max_iterations:
            bound = facts.max_iterations
            done = ("finished", "failed")  # one that was stopped has not spent what it had left
            spent = [1.0 if row.state in done else min(1.0, row.iteration / bound) for row in rows]
            shares.append(sum(spent) / population)
        if facts.time_budget_s and self._trials_began is not None:
            shares.append((self._now - self._trials_began) / facts.time_budget_s)
        return min(1.0, max(share for share in shares if math.isfinite(share)))

    def _way_to_target(self, best: float | None) -> float:
        target, first = self.facts.stop_reward, self._best.first_return
        if best is None or target is None or first is None:
            return 0.0
        if best >= target:
            return 1.0
        return max(0.0, (best - first) / (target - first)) if first < target else 0.0
