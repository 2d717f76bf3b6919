"""Running a sweep from the command line: its process and Prefect's start side by side, its progress in the terminal."""

from __future__ import annotations

import atexit
import contextlib
import os
import shlex
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType

import psutil

from plato_core.config import SweepConfig
from plato_core.errors import PlatoError, SweepError, SweepStopped, Terminated, TrackingError
from plato_core.report.text import counted
from plato_core.resuming import resume_command
from plato_core.sweep.protocol import TRACKING_FOLDER

# Read by Prefect when it is imported; what the user has set stays.
PREFECT_ENVIRONMENT = {
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "DO_NOT_TRACK": "1",
    # A temporary server on a new database took 16 s on 2 cores; Prefect gives up after 20.
    "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": "60",
    # As in prefect.yaml: a server that stays marks a run Crashed whose signs of life, in seconds, stop coming.
    "PREFECT_FLOWS_HEARTBEAT_FREQUENCY": "30",
    # The flow's log goes to Prefect's UI; the terminal has the live table, and at the end the error itself.
    "PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL": "CRITICAL",
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
    signal.signal(signal.SIGTERM, _on_sigterm)
    from plato_core import executions

    at_exit = contextlib.ExitStack()
    atexit.register(at_exit.close)  # before Prefect's own, so after them: they tell the server the last of it
    prepared = executions.prepare(config)  # Ray loads in its own process while Prefect is imported and started below
    # Not a daemon for a SQLite file: one whose tables are half made when the process ends is of no use any more.
    daemon = not config.store_uri.startswith("sqlite")
    store = threading.Thread(target=_open_store, args=(config.store_uri,), name="store", daemon=daemon)
    store.start()
    try:
        from plato_core.report.sinks import terminal
        from plato_core.report.summary import final_lines

        stream = sys.stderr if as_json else sys.stdout
        print(_opening(config), file=stream, flush=True)
        for name, value in PREFECT_ENVIRONMENT.items():
            os.environ.setdefault(name, value)
        with _signals_wait():
            wait_for_prefect = _start_prefect(prepared.sweep_dir / "prefect.log", at_exit)
            from flows.sweep_and_fetch import sweep
        store.join()
        wait_for_prefect()
        with terminal(stream) as followed:
            result = sweep(**config.flow_parameters())
    except (KeyboardInterrupt, SweepStopped) as error:
        executions.discard()
        if isinstance(error, SweepStopped):
            how, number = str(error), error.signal_number
        elif isinstance(error, Terminated):
            how, number = "stopped by SIGTERM", signal.SIGTERM
        else:
            how, number = "stopped by Ctrl-C", signal.SIGINT
        raise SweepStopped(f"{how}; {_what_is_left(prepared.sweep_dir)}", number) from None
    except PlatoError as error:
        if not isinstance(error, SweepError) and not _spool(prepared.sweep_dir).exists():
            raise
        raise type(error)(f"{error}; {_what_is_left(prepared.sweep_dir)}") from error
    finally:
        executions.discard()
    result = result.model_copy(update={"wall_s": round(time.time() - psutil.Process().create_time(), 3)})
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
    print("\n".join([*(f"warning: {warning}" for warning in result.warnings), *lines]), file=stream, flush=True)
    if as_json:
        print(result.model_dump_json(), flush=True)
    return 0


def _open_store(uri: str) -> None:
    """Imports MLflow and makes its first request, which for a new SQLite file creates the tables (seconds)."""
    from plato_core.tracking.client import make_client, tracking_errors

    with contextlib.suppress(TrackingError):  # the flow's first task meets it again, and says so
        client = make_client(uri)
        with tracking_errors(uri):
            client.search_experiments(max_results=1)


@contextlib.contextmanager
def _signals_wait() -> Iterator[None]:
    """Lets Ctrl-C and SIGTERM take effect after what runs inside: C code in imports swallows what a handler raises."""
    came: list[int] = []
    handlers = {n: signal.signal(n, lambda number, frame: came.append(number)) for n in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
    if came:
        signal.raise_signal(came[0])


def _start_prefect(log: Path, at_exit: contextlib.ExitStack) -> Callable[[], None]:
    """Has Prefect use the server that the user named, else one of this process, and returns how to wait for it."""
    from prefect.context import refresh_global_settings_context
    from prefect.settings import get_current_settings

    from plato_core.prefect_client import check_answers

    settings = get_current_settings()
    if (named := settings.api.url) is not None:
        return lambda: check_answers(named)
    if not settings.server.ephemeral.enabled:
        return lambda: None
    from plato_core.prefect_server import TemporaryServer

    server = at_exit.enter_context(TemporaryServer(log))
    os.environ["PREFECT_API_URL"] = server.api_url
    refresh_global_settings_context()
    return lambda: server.wait(settings.server.ephemeral.startup_timeout_seconds)


def _what_is_left(sweep_dir: Path) -> str:
    """What a sweep that did not come to its end leaves, and what can be done with it."""
    if not sweep_dir.exists():
        return "no trial had begun"
    shown = sweep_dir.relative_to(Path.cwd()) if sweep_dir.is_relative_to(Path.cwd()) else sweep_dir
    left = f"its files are in {shown}; go on with it: {resume_command(sweep_dir)}"
    if _spool(sweep_dir).exists():
        left += f" (what is not in the tracking store yet is sent then, or by: plato flush {shlex.quote(str(shown))})"
    return left


def _spool(sweep_dir: Path) -> Path:
    return sweep_dir / TRACKING_FOLDER


def _opening(config: SweepConfig) -> str:
    population = counted(config.num_tune_samples, "trial")
    return (
        f"sweep of {population}: {config.algorithm} on {config.env_name}, {config.scheduler}, seed {config.seed}; "
        "starting Ray and Prefect"
    )


def _on_sigterm(number: int, frame: FrameType | None) -> None:
    signal.signal(number, signal.SIG_IGN)  # the end has begun; it takes up to 20 s
    raise Terminated
