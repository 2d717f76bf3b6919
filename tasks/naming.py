"""What a sweep's runs are called in Prefect, and the tags that find them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import httpx
from prefect.client.schemas.filters import FlowFilter, FlowRunFilter
from prefect.exceptions import PrefectException
from prefect.runtime import flow_run

from plato_core.config import SweepConfig
from plato_core.report.prefect_artifacts import brief_client

FLOW_NAME = "sweep"


def flow_run_name() -> str:
    """Returns the current flow run's name, such as `pbt_ppo CartPole-v1 x4 #12`, the flow's twelfth run.

    A run that is tried again keeps its number; without a word from Prefect's server there is none.
    """
    name = sweep_name(flow_run.parameters)
    given = re.search(r" #\d+$", flow_run.name or "")
    number = given[0] if given else _number()
    return f"{name}{number}"


def sweep_name(parameters: Mapping[str, Any]) -> str:
    """Returns what a sweep is called for short, from its settings."""
    method = f"{parameters['scheduler']}_{parameters['algorithm'].lower()}"
    return f"{method} {parameters['env_name']} x{parameters['num_tune_samples']}"


def tag_flow_run(config: SweepConfig, *more: str) -> None:
    """Adds `plato`, the environment, the algorithm and what else is given to the tags of the current flow run.

    Not to its tasks': before one with tags begins, Prefect looks for limits on them, and where another of the run's
    writes is just under way SQLite refuses that, which Prefect's client tries again after 2 s. Limits on tags would
    also hold a sweep half-way.
    """
    if (run_id := flow_run.id) is None:
        return
    tags = sorted({*flow_run.tags, "plato", config.env_name, config.algorithm, *more})
    try:
        with brief_client() as client:
            client.update_flow_run(run_id, tags=tags)
    except (httpx.HTTPError, PrefectException):
        pass  # tags are for finding runs; a sweep does without


def _number() -> str:
    try:
        with brief_client() as client:
            before = client.count_flow_runs(
                flow_filter=FlowFilter.model_validate({"name": {"any_": [FLOW_NAME]}}),
                # Those that have begun: schedules put runs on the list days before.
                flow_run_filter=FlowRunFilter.model_validate(
                    {"start_time": {"is_null_": False}, "id": {"not_any_": [flow_run.id]}}
                ),
            )
    except (httpx.HTTPError, PrefectException):
        return ""
    return f" #{before + 1}"
