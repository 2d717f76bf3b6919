"""A flow run that is tried again goes on with the sweep that it had begun."""

from __future__ import annotations

import os
from collections.abc import Mapping

from prefect import get_run_logger
from prefect.runtime import flow_run

from plato_core.config import SweepConfig
from plato_core.config_form import storage_of
from plato_core.config_sources import machines_in
from plato_core.resuming import resumed_config, sweep_of, wait_for_end
from plato_core.sweep.process import STOP_S
from tasks.form import deployment_parameters

# Of a run whose engine was killed the sweep ends by itself, in order.
PATIENCE_S = STOP_S + 10.0


def begun_before(parameters: Mapping[str, object]) -> SweepConfig | None:
    """Returns the config with which the current flow run goes on, or None where it has begun no sweep.

    What it has begun counts for more than its parameter `resume`: `last` may be another sweep by now.

    Args:
        parameters: The flow's.

    Raises:
        ConfigError: The sweep still runs.
    """
    if flow_run.id is None:
        return None
    storage = storage_of(parameters, os.environ, deployment_parameters())
    begun = sweep_of(storage, flow_run.id)
    if begun is None:
        if flow_run.run_count > 1:
            get_run_logger().warning("this run was tried before, but no sweep of it is in %s: it starts anew", storage)
        return None
    wait_for_end(begun, PATIENCE_S)
    get_run_logger().info("this run had begun sweep %s and goes on with it", begun.name)
    return resumed_config(begun, machines_in(os.environ))
