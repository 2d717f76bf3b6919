"""Running a sweep from the command line: its process and Prefect's start side by side, its progress in the terminal."""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path
from types import FrameType

from plato_core.config import SweepConfig
from plato_core.errors import SweepStopped

# Read by Prefect when it is imported; what the user has set stays.
PREFECT_ENVIRONMENT = {
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "DO_NOT_TRACK": "1",
    # A temporary server on a new database took 16 s on 2 cores; Prefect gives up after 20.
    "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": "60",
    # The flow's log goes to Prefect's UI; the terminal has the live table.
    "PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL": "ERROR",
    "PREFECT_SERVER_LOGGING_LEVEL": "ERROR",
}


def run_sweep(config: SweepConfig, as_json: bool) -> int:
    """Runs one sweep to its verified checkpoint.

    Args:
        config: A checked config.
        as_json: Whether the last line of standard output is the result as one JSON object; what is meant for a
            person then goes to standard error.

    Returns:
        The exit code.
    """
    began = time.monotonic()
    signal.signal(signal.SIGTERM, _on_sigterm)
    from plato_core.sweep import process

    process.prepare(config)  # Ray loads in its own process while Prefect is imported and started below
    try:
        for name, value in PREFECT_ENVIRONMENT.items():
            os.environ.setdefault(name, value)
        from plato_core.report.sinks import terminal
        from plato_core.report.summary import final_lines

        stream = sys.stderr if as_json else sys.stdout
        print(_opening(config), file=stream, flush=True)
        from flows.sweep_and_fetch import sweep

        with terminal(stream) as followed:
            result = sweep(**config.flow_parameters())
    finally:
        process.discard()
    result = result.model_copy(update={"wall_s": round(time.monotonic() - began, 3)})
    progress = followed.progress
    ended = progress.ended() if progress is not None else None
    lines = final_lines(
        result,
        experiment_id=result.experiment_id,
        cwd=Path.cwd(),
        winner_name=result.winner,
        tracking=progress.tracking() if progress is not None else None,
        spool=ended.spool if ended is not None else None,
    )
    print("\n".join(lines), file=stream, flush=True)
    if as_json:
        print(result.model_dump_json(), flush=True)
    return 0


def _opening(config: SweepConfig) -> str:
    population = f"{config.num_tune_samples} trial{'' if config.num_tune_samples == 1 else 's'}"
    return (
        f"sweep of {population}: {config.algorithm} on {config.env_name}, {config.scheduler}, seed {config.seed}; "
        "starting Ray and Prefect"
    )


def _on_sigterm(number: int, frame: FrameType | None) -> None:
    raise SweepStopped("stopped by SIGTERM", number)
