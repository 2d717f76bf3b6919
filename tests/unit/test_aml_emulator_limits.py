"""The limits of Azure ML that the emulator keeps, one by one."""

from __future__ import annotations

from typing import Any

import pytest
from aml_emulator.cloud import is_azure
from aml_emulator.mlflow_limits import MlflowLimits

API = "/api/2.0/mlflow/"


def refusal(endpoint: str, body: dict[str, Any], limits: MlflowLimits | None = None) -> str:
    answer = (limits or MlflowLimits(0)).refusal(API + endpoint, body)
    return f"{answer.status} {answer.body.decode()}" if answer else ""


def items(count: int, length: int = 1) -> list[dict[str, Any]]:
    return [{"key": f"k{number}", "value": "v" * length} for number in range(count)]


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ({"metrics": items(201)}, "metrics over the limit of 200"),
        ({"metrics": items(51)}, "FieldName=Metrics, Limit=50"),
        ({"params": items(101)}, "params over the limit of 100"),
        ({"params": items(1, 501)}, "FieldName=ParametersValue, Limit=500"),
        ({"tags": items(51)}, "FieldName=Tags, Limit=50"),
        ({"tags": items(1, 1001)}, "FieldName=TagsValue, Limit=1000"),
        ({"tags": [{"key": "k" * 101, "value": ""}]}, "FieldName=TagsKey, Limit=100"),
        ({"metrics": [{"key": "k" * 256, "value": 1.0}]}, "FieldName=MetricsKey, Limit=255"),
        ({"metrics": items(50), "params": items(100, 500), "tags": items(50, 1000)}, ""),
    ],
)
def test_a_batch_is_taken_up_to_the_limits(body: dict[str, Any], said: str) -> None:
    answer = refusal("runs/log-batch", {"run_id": "r", **body})
    assert said in answer
    assert bool(answer) == bool(said)


def test_names_of_a_run_add_up_and_the_same_name_counts_once() -> None:
    limits = MlflowLimits(0)
    for number in range(50):
        for _ in range(2):
            assert not refusal("runs/log-metric", {"run_id": "r", "key": f"m{number}", "value": 1.0}, limits)
    assert "Limit=50" in refusal("runs/log-metric", {"run_id": "r", "key": "m50", "value": 1.0}, limits)
    assert not refusal("runs/log-metric", {"run_id": "another", "key": "m50", "value": 1.0}, limits)


def test_tags_of_a_new_run_count_and_deleted_ones_do_not() -> None:
    limits = MlflowLimits(0)
    limits.created("r", items(50))
    assert "Limit=50" in refusal("runs/set-tag", {"run_id": "r", "key": "more", "value": ""}, limits)
    assert not refusal("runs/delete-tag", {"run_id": "r", "key": "k0"}, limits)
    assert not refusal("runs/set-tag", {"run_id": "r", "key": "more", "value": ""}, limits)


@pytest.mark.parametrize(
    ("body", "taken"),
    [
        ({"order_by": ["attributes.start_time DESC"]}, True),
        ({"order_by": ["metrics.m DESC"]}, False),
        ({"order_by": ["params.p"]}, False),
        ({"order_by": ["tags.t"]}, False),
        ({"filter": "metrics.m > 1 AND tags.t = 'this OR that'"}, True),
        ({"filter": "metrics.`m` > 1"}, False),
        ({"filter": "tags.t != 'x'"}, False),
        ({"filter": "tags.`a.b` != 'x'"}, False),
        ({"filter": "params.p != 'x'"}, True),
        ({"filter": "tags.t = 'x' or tags.t = 'y'"}, False),
    ],
)
def test_a_search_is_answered_only_in_the_words_that_the_service_knows(body: dict[str, Any], taken: bool) -> None:
    assert bool(refusal("runs/search", body)) != taken


def test_endpoints_of_mlflow_3_are_not_there() -> None:
    for endpoint in ("logged-models/search", "traces", "assessments"):
        assert refusal(endpoint, {}).startswith("404")


def test_too_many_calls_in_a_second_are_put_off() -> None:
    limits = MlflowLimits(per_second=3)
    answers = [refusal("runs/get", {}, limits)[:3] for _ in range(4)]
    assert answers == ["", "", "", "429"]


@pytest.mark.parametrize(
    ("host", "theirs"),
    [
        ("management.azure.com", True),
        ("eastus.api.azureml.ms", True),
        ("kv-emu.vault.azure.net", True),
        ("management.azure.com.example.org", False),
        ("evil-management.azure.com", False),
        ("example.org", False),
    ],
)
def test_a_host_is_azures_by_its_whole_name(host: str, theirs: bool) -> None:
    assert is_azure(host) == theirs
