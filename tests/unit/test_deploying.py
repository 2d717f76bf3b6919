"""What `prefect.yaml` says, and what is said where it cannot be applied."""

import importlib
from pathlib import Path

import pytest

from plato_core import config_yaml
from plato_core.config import SweepConfig
from plato_core.config_form import form_values
from plato_core.deploying import deploy, deployments, work_pools
from plato_core.errors import ConfigError

PROJECT = Path(__file__).parents[2]
DEPLOYMENTS = {deployment["name"]: deployment for deployment in deployments(PROJECT)}


def test_the_deployments_are_there() -> None:
    assert set(DEPLOYMENTS) == {"local", "nightly", "local-aml", "aml", "nightly-aml"}


@pytest.mark.parametrize("name", DEPLOYMENTS)
def test_a_form_gets_every_setting_from_the_build_step(name: str) -> None:
    deployment = DEPLOYMENTS[name]
    assert deployment["parameters"] == {field: f"{{{{ form.{field} }}}}" for field in SweepConfig.model_fields}
    [(step, inputs)] = [item for step in deployment["build"] for item in step.items()]
    module, _, function = step.rpartition(".")
    assert getattr(importlib.import_module(module), function) is form_values
    settings = {key: value for key, value in inputs.items() if key != "id"}
    assert inputs["id"] == "form"
    assert form_values(**settings)["num_tune_samples"] >= 1


@pytest.mark.parametrize("name", DEPLOYMENTS)
def test_prefect_reads_every_key(name: str) -> None:
    """Prefect ignores a key that it does not know, so a slip of the pen would pass in silence."""
    from prefect.cli.deploy._models import ConcurrencyLimitSpec, DeploymentConfig, PrefectYamlModel, RawScheduleConfig

    deployment = DEPLOYMENTS[name]
    assert set(deployment) <= set(DeploymentConfig.model_fields)
    assert set(deployment.get("concurrency_limit", ())) <= set(ConcurrencyLimitSpec.model_fields)
    for schedule in deployment.get("schedules", ()):
        RawScheduleConfig.model_validate(schedule)
        assert schedule["slug"]  # without one a second deploy would add the schedule again
        assert schedule["timezone"]
    top = set(config_yaml.read_mapping(PROJECT / "prefect.yaml")[0]) - {"definitions"}
    assert top <= {field.alias or key for key, field in PrefectYamlModel.model_fields.items()}


def test_nights_on_azure_ml_wait_until_they_are_switched_on() -> None:
    [schedule] = DEPLOYMENTS["nightly-aml"]["schedules"]
    assert schedule["active"] is False


@pytest.mark.parametrize("name", [name for name in DEPLOYMENTS if DEPLOYMENTS[name]["work_pool"]["name"] == "aml"])
def test_an_azure_ml_pool_knows_each_variable_that_a_deployment_sets(name: str) -> None:
    from plato_core.aml.pool import AzureMLVariables

    AzureMLVariables.model_validate(DEPLOYMENTS[name]["work_pool"]["job_variables"])
    assert set(DEPLOYMENTS[name]["work_pool"]["job_variables"]) <= set(AzureMLVariables.model_fields)


def test_each_work_pool_is_known_with_its_type(tmp_path: Path) -> None:
    assert work_pools(PROJECT) == {"local": "process", "aml": "azure-ml"}
    (tmp_path / "prefect.yaml").write_text(
        "definitions: {work_pool_types: {far: azure-ml}}\n"
        "deployments:\n- {work_pool: {name: far}}\n- {work_pool: {name: near}}\n- {work_pool: {name: far}}\n"
    )
    assert work_pools(tmp_path) == {"far": "azure-ml", "near": "process"}


def test_a_folder_without_deployments_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"prefect\.yaml: there is no such file; run this in the project's folder"):
        deploy(tmp_path)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("preset: nightly", "preset: nigtly", "deployment nightly: preset: there is no preset 'nigtly'"),
        ("preset: nightly\n", "preset: nightly\n          max_iteration: 3\n", "max_iteration: there is no such"),
        ('"0 2 * * *"', '"99 3 * * *"', 'deployment nightly, schedule: Invalid cron string: "99 3 * * *"'),
    ],
)
def test_a_mistake_in_the_file_is_named_before_anything_is_deployed(
    tmp_path: Path, old: str, new: str, message: str
) -> None:
    text = (PROJECT / "prefect.yaml").read_text()
    assert old in text
    (tmp_path / "prefect.yaml").write_text(text.replace(old, new, 1))
    with pytest.raises(ConfigError) as caught:
        deploy(tmp_path)
    assert message in str(caught.value)


def test_without_a_server_nothing_is_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PREFECT_API_URL", "http://127.0.0.1:9/api")
    from prefect.context import refresh_global_settings_context

    refresh_global_settings_context()
    try:
        with pytest.raises(ConfigError, match=r"no Prefect server answers at http://127\.0\.0\.1:9/api"):
            deploy(PROJECT)
    finally:
        monkeypatch.undo()
        refresh_global_settings_context()
