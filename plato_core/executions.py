"""Which execution a sweep's config asks for, and one that was started ahead of the flow."""

from __future__ import annotations

from plato_core.config import SweepConfig
from plato_core.sweep.execution import SweepExecution

_prepared: SweepExecution | None = None


def execution_of(config: SweepConfig, at_once: bool = True) -> SweepExecution:
    """Returns a sweep to be run as its config says: in a process of this machine, or as a job of Azure ML.

    Args:
        config: What to run.
        at_once: Whether a process starts now, to load Ray while others get ready; a job is paid for, and waits.

    Raises:
        ConfigError: The sweep that is to go on is still being worked on by another process.
    """
    if config.compute == "aml":
        from plato_core.aml.sweepjob import SweepJob

        return SweepJob(config)
    from plato_core.sweep.process import SweepProcess

    return SweepProcess(config, at_once)


def prepare(config: SweepConfig) -> SweepExecution:
    """Starts a sweep's process ahead of the flow, so that Ray loads while Prefect starts."""
    global _prepared
    _prepared = execution_of(config)
    return _prepared


def is_prepared() -> bool:
    """Says whether a sweep was prepared: by a command line, which has checked its config."""
    return _prepared is not None


def adopt(config: SweepConfig) -> SweepExecution:
    """Returns the sweep that was prepared for this very config, or a new one.

    The process of a sweep that goes on starts with `go` only: its training may be done, and Ray takes seconds to load.
    """
    global _prepared
    prepared, _prepared = _prepared, None
    if prepared is not None and prepared.config == config:
        return prepared
    if prepared is not None:
        prepared.release()
    return execution_of(config, at_once=config.resume is None)


def discard() -> None:
    """Ends a sweep that was prepared and never adopted."""
    global _prepared
    prepared, _prepared = _prepared, None
    if prepared is not None:
        prepared.release()
