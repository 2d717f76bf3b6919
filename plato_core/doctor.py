"""A look at the sweeps of this machine: which can be resumed, what is left to send, and what a dead one left behind."""

from __future__ import annotations

import json
import os
import shlex
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

from pydantic import AwareDatetime, BaseModel, ConfigDict

from plato_core.closing import Closing, close_left_running, life_of
from plato_core.config import SweepConfig
from plato_core.errors import ConfigError
from plato_core.prune import count_unsent, newest_and_size
from plato_core.report.text import counted
from plato_core.resuming import resume_command
from plato_core.sweep import revival
from plato_core.sweep.folder import CONFIG_NAME, is_done, read_end, sweeps_in

_RESULTS_NAME = "result.json"
# The last result of a trial is in so many last bytes of its log; a line has some 10 kB.
_TAIL_BYTES = 2**20

State = Literal["running", "perhaps running", "sending", "done", "trained", "stopped", "failed", "died"]


class SweepSeen(BaseModel):
    """A sweep as its folder shows it.

    Attributes:
        sweep_id: The sweep.
        state: `running`; `sending`, while `plato flush` is at it; `done`; `trained`, but nothing was selected and
            downloaded; told to stop (`stopped`); `failed`; or `died` without a word. `perhaps running` where the file
            system has no locks and it changed within a day.
        what: The algorithm and the environment.
        last_sign: When something in its folder last changed.
        iterations: How far each trial is, by its own count, in the order of the population.
        max_iterations: How far a trial may go.
        unsent: Operations that are not in the tracking store yet; None if what is there is damaged.
        resume: The command to go on with it, None if that cannot be.
        obstacle: Why it cannot be resumed, None if it can or need not be.
        flush: The command that sends what is not sent yet, None if there is nothing.
    """

    model_config = ConfigDict(frozen=True)

    sweep_id: str
    state: State
    what: str
    last_sign: AwareDatetime
    iterations: tuple[int, ...]
    max_iterations: int | None
    unsent: int | None
    resume: str | None
    obstacle: str | None
    flush: str | None


class Checkup(BaseModel):
    """What was found in a folder of sweeps, and what was done about it.

    Attributes:
        storage: The folder.
        sweeps: How many sweeps are in it.
        open: Those that are not done, or not wholly in the tracking store, oldest first.
        closings: What became of the MLflow runs of those that died.
    """

    model_config = ConfigDict(frozen=True)

    storage: Path
    sweeps: int
    open: tuple[SweepSeen, ...]
    closings: tuple[Closing, ...]

    @property
    def all_well(self) -> bool:
        """Whether nothing is wrong that was not mended."""
        return not any(closing.error for closing in self.closings) and not any(s.unsent is None for s in self.open)

    def describe(self) -> str:
        """What a person should know of it, one fact a line."""
        lines = [_closed(closing) for closing in self.closings]
        if self.open:
            lines += _table(self.open)
        else:
            lines.append(f"{counted(self.sweeps, 'sweep')} in {self.storage}, none unfinished")
        for sweep in self.open:
            if sweep.obstacle is not None:
                lines.append(f"{sweep.sweep_id} cannot be resumed: {sweep.obstacle}")
            if sweep.unsent is None:
                lines.append(f"{sweep.sweep_id}: what is not in the tracking store yet cannot be read")
            if sweep.flush is not None:
                lines.append(f"{sweep.sweep_id} has {counted(sweep.unsent or 0, 'operation')} to send: {sweep.flush}")
        return "\n".join(lines)


def examine(storage: Path) -> Checkup:
    """Looks at the sweeps in a folder, and ends the MLflow runs that dead ones left RUNNING.

    Args:
        storage: The folder of sweeps; one that is not there has none.

    Raises:
        ConfigError: It is no folder, or cannot be read.
    """
    if storage.exists() and not storage.is_dir():
        raise ConfigError(f"{storage} is no folder; give the --storage-path of the sweeps")
    try:
        closings = close_left_running(storage)
        sweeps = sweeps_in(storage)
    except OSError as error:
        raise ConfigError(
            f"{storage} cannot be read: {error.strerror}; give the --storage-path of the sweeps"
        ) from error
    open_ones = [sweep for sweep in sweeps if not is_done(sweep) or count_unsent(sweep) != 0]
    return Checkup(
        storage=storage,
        sweeps=len(sweeps),
        open=tuple(look(sweep) for sweep in open_ones),
        closings=tuple(closings),
    )


def look(sweep: Path) -> SweepSeen:
    """Says how a sweep is and what can be done with it, by its folder alone."""
    state, to_send = _state(sweep), count_unsent(sweep)
    what, obstacle, config = "", None, None
    try:
        config = SweepConfig.from_yaml(sweep / CONFIG_NAME)
        what = f"{config.algorithm} on {config.env_name}"
    except ConfigError as error:
        obstacle = str(error)
    at_rest = state in ("trained", "stopped", "failed", "died")
    where = shlex.quote(str(sweep.parent))
    return SweepSeen(
        sweep_id=sweep.name,
        state=state,
        what=what,
        last_sign=datetime.fromtimestamp(newest_and_size(sweep)[0], UTC),
        iterations=() if config is None else _iterations(sweep, config.num_tune_samples),
        max_iterations=None if config is None else config.max_iterations,
        unsent=to_send,
        resume=resume_command(sweep) if at_rest and obstacle is None else None,
        obstacle=obstacle if at_rest else None,
        flush=f"plato flush {where}/{sweep.name}" if to_send and (at_rest or state == "done") else None,
    )


def _state(sweep: Path) -> State:
    if (life := life_of(sweep)) != "over":
        return life
    if (end := read_end(sweep)) is None:
        return "died"
    if end.outcome == "finished":
        return "done" if end.done else "trained"
    return end.outcome


def _iterations(sweep: Path, trials: int) -> tuple[int, ...]:
    ids = (revival.trial_id(sweep.name, index) for index in range(trials))
    return tuple(_last_iteration(revival.folders_of(sweep, trial)) for trial in ids)


def _last_iteration(folders: list[Path]) -> int:
    """The last iteration in a trial's newest log that has any; 0 without one. Unlike Tune's reader it needs no Ray."""
    for folder in reversed(folders):
        try:
            with (folder / _RESULTS_NAME).open("rb") as file:
                file.seek(max(0, file.seek(0, os.SEEK_END) - _TAIL_BYTES))
                whole = file.read().rpartition(b"\n")[0]
            return int(json.loads(whole.rpartition(b"\n")[2])["training_iteration"])
        except (OSError, ValueError, KeyError, TypeError):
            continue
    return 0


def _closed(closing: Closing) -> str:
    if closing.error is not None:
        return f"{closing.sweep_id}: its MLflow runs could not be closed: {closing.error}"
    return f"{closing.sweep_id}: {counted(len(closing.runs), 'MLflow run')} left RUNNING, KILLED now"


def _table(sweeps: tuple[SweepSeen, ...]) -> list[str]:
    rows = [("SWEEP", "WHAT", "STATE", "LAST SIGN", "ITERATIONS", "GO ON WITH")]
    for sweep in sweeps:
        when = f"{sweep.last_sign.astimezone():%Y-%m-%d %H:%M}"
        rows.append((sweep.sweep_id, sweep.what, sweep.state, when, _how_far(sweep), sweep.resume or ""))
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]


def _how_far(sweep: SweepSeen) -> str:
    if not sweep.iterations:
        return ""
    low, high = min(sweep.iterations), max(sweep.iterations)
    reached = str(low) if low == high else f"{low}-{high}"
    return reached if sweep.max_iterations is None else f"{reached} of {sweep.max_iterations}"
