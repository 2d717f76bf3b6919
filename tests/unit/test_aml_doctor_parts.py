"""The parts of `plato aml doctor` that ask nobody: what would go up, which quota counts, what a token tells."""

from __future__ import annotations

import base64
import json
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest

from plato_core.aml.doctor import upload
from plato_core.aml.doctor.case import Case
from plato_core.aml.doctor.cluster import Limit, judged, limits_of
from plato_core.aml.doctor.environment import environment, ray_of
from plato_core.aml.doctor.finding import Finding, Line, of_error
from plato_core.aml.doctor.route import may_send, older
from plato_core.aml.doctor.settings import Found, look_up
from plato_core.aml.doctor.signin import claims, whom
from plato_core.aml.pool import AzureMLJobConfiguration
from plato_core.aml.variables import parsed
from plato_core.errors import AmlError, ConfigError

ROOT = Path(__file__).parents[2]


def case(folder: Path, **settings: Any) -> Case:
    return Case(AzureMLJobConfiguration.model_validate({"code": str(folder), **settings}))


def write(folder: Path, **files: str) -> None:
    """Files by their names, `__` for a slash and `_dot_` for a dot."""
    for name, content in files.items():
        path = folder / name.replace("_dot_", ".").replace("__", "/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)


def test_a_line_is_its_level_its_check_and_its_remedy() -> None:
    line = Line(check="compute", level="failed", found="it is not there", remedy="make one")
    assert line.describe() == "failed   compute        it is not there; make one"


def test_an_errors_way_out_is_the_remedy() -> None:
    assert of_error(AmlError("one; two; do this")) == Finding("failed", "one; two", "do this")
    assert of_error(AmlError("no way out")) == Finding("failed", "no way out", "")


# What goes up


@pytest.mark.parametrize(
    ("name", "secret"),
    [
        (".env", True), (".env.local", True), (".env.example", False), ("prod.env", True), ("id_rsa", True),
        ("id_rsa.pub", False), ("server.key", True), ("keys.py", False), (".netrc", True), ("environment.yaml", False),
        ("credentials.json", True), ("Secrets.toml", True), ("config.json", False),
    ],
)  # fmt: skip
def test_files_with_secrets_are_known_by_their_names(tmp_path: Path, name: str, secret: bool) -> None:
    assert upload.is_secret(tmp_path / name) is secret


def test_a_certificate_is_a_secret_only_with_its_key(tmp_path: Path) -> None:
    write(tmp_path, ca_dot_pem="-----BEGIN CERTIFICATE-----", key_dot_pem="-----BEGIN PRIVATE KEY-----")
    assert not upload.is_secret(tmp_path / "ca.pem")
    assert upload.is_secret(tmp_path / "key.pem")


def test_a_workspaces_config_that_goes_up_is_a_warning(tmp_path: Path) -> None:
    write(tmp_path, config_dot_json='{"subscription_id": "s"}', other__config_dot_json='{"layers": 2}')
    one = case(tmp_path)
    assert upload.code(one).level == "ok"
    found = upload.private(one)
    assert (found.level, found.remedy) == ("warning", "add config.json to .amlignore")
    assert found.found.startswith("config.json would be uploaded")


def test_too_many_files_and_large_ones_are_warnings_that_name_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with (tmp_path / "large.bin").open("wb") as file:
        file.truncate(12 * 2**20)  # sparse
    found = upload.code(case(tmp_path))
    assert (found.level, "large.bin (12 MB)" in found.found) == ("warning", True)
    monkeypatch.setattr(upload, "_MOST_BYTES", 2**20)
    found = upload.code(case(tmp_path))
    assert found.level == "warning"
    assert "a limit of 2000 files and 1 MB" in found.found
    assert found.remedy == "name what no job needs in .amlignore, such as large.bin (12 MB)"


def test_a_folder_that_cannot_go_up_is_found_with_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path)
    found = upload.code(case(tmp_path))
    assert (found.level, found.remedy) == ("failed", "remove it, or name it in .amlignore")
    assert found.found.startswith("the link ")


def test_a_home_folder_is_not_uploaded(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    found = upload.code(case(tmp_path))
    assert (found.level, found.remedy) == ("failed", "set code to the project's own folder")


# The environment


def test_the_projects_own_environment_has_the_ray_of_this_machine() -> None:
    assert ray_of(ROOT / "deployments" / "aml") == {version("ray")}
    assert environment(case(ROOT)).level == "ok"


@pytest.mark.parametrize(
    ("content", "level"),
    [("ray==1.0\n", "failed"), ("raylib==1.0\n", "warning"), ("  - ray[rllib]==1.0\n  - ray==2.0\n", "failed")],
)
def test_another_ray_or_none_that_can_be_told_is_found(tmp_path: Path, content: str, level: str) -> None:
    write(tmp_path, image__Dockerfile="FROM x\n", image__conda_dot_yaml=content)
    assert environment(case(tmp_path, environment="image")).level == level


def test_a_folder_without_a_dockerfile_is_no_environment(tmp_path: Path) -> None:
    (tmp_path / "image").mkdir()
    found = environment(case(tmp_path, environment="image"))
    assert (found.level, found.remedy) == ("failed", "set environment to a folder that has one")


# Quota: Azure's own spellings, of its documentation (the first) and of what people saw it answer (the second)


def usage(kind: str, value: str, limit: int, used: int) -> dict[str, Any]:
    named = {"value": value, "localizedValue": f"shown {value}"}
    provider = "Microsoft.MachineLearningServices"
    return {"type": f"{provider}/{kind}/usages", "name": named, "limit": limit, "currentValue": used}


USAGES = [
    usage("totalCores", "Clusters", 200, 1),
    usage("dedicatedCores", "Total Cluster Dedicated Regional vCPUs", 100, 20),
    usage("vmFamily/dedicatedCores", "Standard DSv2 Family Cluster Dedicated vCPUs", 24, 14),
    usage("vmFamily/dedicatedCores", "standardDSv3Family", 48, 0),
    usage("lowPriorityCores", "TotalLowPriorityCores", 10, 0),
    usage("vmFamily/lowPriorityCores", "standardDSv3Family", -1, 0),
]


@pytest.mark.parametrize("family", ["standardDSv2Family", "Standard DSv2 Family"])
def test_the_quotas_of_a_family_are_its_own_and_that_of_all(family: str) -> None:
    found = limits_of(USAGES, family, low_priority=False)
    assert [(one.limit, one.used) for one in found] == [(100, 20), (24, 14)]


def test_low_priority_cores_have_one_quota_for_all_families() -> None:
    assert [one.limit for one in limits_of(USAGES, "standardDSv3Family", low_priority=True)] == [10]


@pytest.mark.parametrize(("cores", "level"), [(10, "ok"), (11, "warning"), (25, "failed")])
def test_a_quota_is_enough_in_use_or_too_small(cores: int, level: str) -> None:
    found = judged([Limit("all", 100, 20), Limit("DSv2", 24, 14)], cores, 2)
    assert (found.level, "DSv2" in found.found) == (level, True)


# Who is signed in


def test_a_token_tells_whom_it_is_for() -> None:
    body = base64.urlsafe_b64encode(json.dumps({"upn": "me@x.org", "tid": "t-1", "appid": "a"}).encode()).decode()
    assert whom(claims(f"head.{body.rstrip('=')}.signature")) == "user me@x.org, tenant t-1"
    assert whom({"appid": "a-1", "tid": "t-1"}) == "application a-1, tenant t-1"


@pytest.mark.parametrize("token", ["", "opaque", "a.b.c", "a.!!.c", "a.W10.c"])
def test_a_token_that_tells_nothing_is_no_error(token: str) -> None:
    assert claims(token) == {}


# The way to the Prefect API


@pytest.mark.parametrize(
    ("server", "client", "is_older"),
    [("3.8.8", "3.8.8", False), ("3.8.7", "3.8.8", True), ("3.10.0", "3.8.8", False), ("2.20.1", "3.8.8", True),
     ("3.8.8+dirty", "3.8.8", False), ("3.8", "3.8.8", False)],
)  # fmt: skip
def test_a_server_that_is_older_than_its_clients_is_known(server: str, client: str, is_older: bool) -> None:
    assert older(server, client) is is_older


@pytest.mark.parametrize(
    ("url", "may"),
    [("https://10.0.0.4/api", True), ("http://10.0.0.4/api", False), ("http://own:4200/api", True)],
)
def test_a_key_goes_unencrypted_only_where_it_goes_anyway(url: str, may: bool) -> None:
    assert may_send(url, "http://own:4200/other") is may


# Where the settings come from


def test_job_variables_are_json_or_text_as_prefect_has_them() -> None:
    given = ["instance_count=4", "compute=gpu=1", 'tags={"team": "rl"}', "api_url=null", "env.A=5", "env.B=x"]
    assert parsed(given) == {
        "instance_count": 4,
        "compute": "gpu=1",
        "tags": {"team": "rl"},
        "api_url": None,
        "env": {"A": "5", "B": "x"},
    }


def test_a_runs_variables_are_over_the_deployments_and_join_its_environment() -> None:
    found = Found("a test", variables={"compute": "one", "experiment": "kept", "env": {"A": "1", "B": "1"}})
    filled = found.filled({"compute": "two", "env": {"B": "2"}})
    assert (filled.compute, filled.experiment, filled.env) == ("two", "kept", {"A": "1", "B": "2"})


def test_a_deployments_name_has_two_parts(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="must be like flow/name"):
        look_up("aml", tmp_path)
