"""`plato aml doctor` against an emulated workspace and a real Prefect server: a sound setup, and each kind of fault."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import yaml
from aml_bed import Emulator, running_emulator
from aml_jobs import laptop_env
from aml_worker_bed import GuardedServer
from prefect_server import PrefectServer
from thorough import SOAKED, soaked, thorough

from plato_core.aml.pool import template

pytestmark = pytest.mark.timeout(600)
PASSWORD = "a-password-of-this-test"
CHECKS = [
    "settings", "login", "workspace", "compute", "cost", "environment", "code", "private files", "quota", "identity",
    "key vault", "storage", "Prefect API", "MLflow",
]  # fmt: skip


@dataclass
class Seen:
    """What one run of the command said."""

    code: int
    out: str
    err: str

    @property
    def lines(self) -> dict[str, dict[str, str]]:
        """Its lines of JSON, by the names of their checks."""
        found = [json.loads(line) for line in self.out.splitlines()]
        return {line["check"]: line for line in found}


@dataclass
class Desk:
    """Where the command is typed.

    Args:
        project: The working folder.
        emulator: The workspace.
        server: Prefect's.
        driver: Runs the command.
    """

    project: Path
    emulator: Emulator
    server: PrefectServer
    driver: subprocess.Popen[str]

    def doctor(
        self, *arguments: str, cwd: Path | None = None, limits: dict[str, float] | None = None, **env: str | None
    ) -> Seen:
        asked = {"argv": ["aml", "doctor", *arguments], "cwd": str(cwd or self.project), "env": env}
        assert self.driver.stdin
        assert self.driver.stdout
        self.driver.stdin.write(json.dumps(asked | {"limits": limits or {}}) + "\n")
        self.driver.stdin.flush()
        seen = Seen(**json.loads(self.driver.stdout.readline()))
        assert not [value for value in (PASSWORD, *self.emulator.secrets()) if value in seen.out + seen.err]
        return seen

    def checked(
        self, *variables: str, cwd: Path | None = None, limits: dict[str, float] | None = None, **env: str | None
    ) -> Seen:
        """With variables over the deployment's, without what takes long."""
        given = [part for one in variables for part in ("--job-variable", one)]
        return self.doctor("--json", "--no-write", *given, cwd=cwd, limits=limits, **env)


def make_project(folder: Path, emulator: Emulator, ray: str = version("ray")) -> Path:
    (folder / "flows").mkdir(parents=True)
    (folder / "flows" / "sweep_and_fetch.py").write_text("print('a flow')\n")
    (folder / ".amlignore").write_text("config.json\n.azureml/\n.env*\n")
    (folder / ".env").write_text("TOKEN=hidden\n")
    (image := folder / "deployments" / "aml").mkdir(parents=True)
    (image / "Dockerfile").write_text("FROM python:3.11\nCOPY constraints.txt .\n")
    (image / "constraints.txt").write_text(f"raylib==1.0\nray[rllib]=={ray}\n")
    emulator.workspace_config(folder / ".azureml")
    return folder


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Desk]:
    folder = tmp_path_factory.mktemp("doctor")
    with (
        running_emulator(folder / "emulator") as emulator,
        GuardedServer(folder / "prefect", f"admin:{PASSWORD}") as server,
    ):
        api = emulator.control("publish", port=urlsplit(server.api_url).port)["url"] + "/api"
        secret = emulator.set_secret("prefect-auth-string", f"admin:{PASSWORD}")
        server.request("POST", "/work_pools/", {"name": "aml", "type": "azure-ml", "base_job_template": template()})
        flow = server.request("POST", "/flows/", {"name": "sweep"})
        variables = {"api_url": api, "api_auth_secret": secret, "identity": "managed", "instance_count": 2}
        body = {"name": "aml", "flow_id": flow["id"], "work_pool_name": "aml", "job_variables": variables}
        server.request("POST", "/deployments/", body)
        server.request("POST", "/work_pools/", {"name": "local", "type": "process", "base_job_template": {}})
        server.request(
            "POST", "/deployments/", body | {"name": "local", "work_pool_name": "local", "job_variables": {}}
        )
        prefect = {name: value for name, value in server.environment.items() if name.startswith("PREFECT_")}
        with subprocess.Popen(
            [sys.executable, "-m", "doctor_driver"],
            cwd=Path(__file__).parent,
            env=laptop_env(emulator) | prefect,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        ) as driver:
            yield Desk(make_project(folder / "project", emulator), emulator, server, driver)
            assert driver.stdin
            driver.stdin.close()


def test_a_sound_setup_is_all_well_and_nothing_of_the_look_stays(desk: Desk) -> None:
    before = len(desk.emulator.requests())
    seen = desk.doctor()
    assert (seen.code, seen.err) == (0, "")
    *lines, last = seen.out.splitlines()
    assert [line[:8].strip() for line in lines] == ["ok"] * len(CHECKS), seen.out
    assert [line[9:23].strip() for line in lines] == CHECKS
    assert last == f"{len(CHECKS)} checks: all is well"
    said = dict(zip(CHECKS, lines, strict=True))
    assert "deployment sweep/aml and pool aml" in said["settings"]
    assert "a service principal of the environment: application emu-app" in said["login"]
    assert "ws-emu" in said["workspace"]
    assert "eastus" in said["workspace"]
    assert "2 nodes of at most 4" in said["compute"]
    assert f"Ray {version('ray')}" in said["environment"]
    assert "4 files" in said["code"]  # the ignore file itself goes up too
    assert "2 files and folders left out by .amlignore" in said["code"]
    assert "2 nodes of 2 cores" in said["quota"]
    assert "takes the key" in said["Prefect API"]
    assert "their run is deleted" in said["MLflow"]

    state = desk.emulator.control("state")
    assert (state["jobs"], state["codes"], state["envs"]) == ({}, [], [])
    asked = desk.emulator.requests()[before:]
    managed = [one["m"] for one in asked if one["host"] == "management.azure.com"]
    assert set(managed) == {"CONNECT", "GET"}
    made = [one for one in asked if one.get("path", "").endswith(("runs/create", "runs/delete"))]
    assert [one["path"].rpartition("/")[2] for one in made] == ["create", "delete"]
    assert not desk.emulator.refused()


@pytest.mark.parametrize(
    ("variables", "check", "found", "remedy"),
    [
        (["compute=nowhere"], "compute", "no compute 'nowhere'", "set compute to one of: cpu-cluster, gpu-cluster"),
        (
            ["instance_count=5"],
            "compute",
            "5 nodes of a job, but cluster",
            "--max-instances 5",
        ),
        (["compute=my-instance"], "compute", "is no cluster but an instance", "set compute to one of: cpu-cluster"),
        (["compute=bare"], "identity", "'bare' has no managed identity", "--name bare --identity-type SystemAssigned"),
        (["compute=no-quota"], "quota", "2 nodes of 96 cores, but the quota", "more quota"),
        (["environment=plato:9"], "environment", "no environment plato:9", "az ml environment create --file"),
        (["environment=plato@latest"], "environment", "no environment plato@latest", "az ml environment create"),
        (["environment=nothing"], "environment", "'nothing' is neither a folder", "set environment to deployments/aml"),
        (["storage=azureml://datastores/no/paths/x"], "storage", "no datastore 'no'", "one of: workspaceblobstore"),
        (["api_url=http://127.0.0.1:4200/api"], "Prefect API", "leads each node to itself", "the cluster's network"),
        (["api_url=https://prefect.example.org/api"], "Prefect API", "does not answer from here", "set api_url"),
        (["api_url=https://prefect.example.com"], "Prefect API", "is no Prefect API", "ends in /api"),
        (["identity=aml_token"], "identity", "opens no key vault", "set identity to managed"),
        (["api_auth_secret=https://kv-emu.vault.azure.net/secrets/no"], "key vault", "no such secret", "create it"),
        (["api_auth_secret=prefect-auth-string"], "key vault", "is no secret's URL", "give one like https://VAULT"),
        (["code=missing"], "code", "no folder 'missing'", "set code to the project's own folder"),
        (["ray_port=10002"], "settings", "ray_port: 10002 comes into the way", "give one outside 10002 to 19999"),
        (["api_url=null"], "settings", "leads to this machine only", "set api_url of the pool to an address"),
    ],
)
def test_a_fault_is_named_with_its_remedy(
    desk: Desk, variables: list[str], check: str, found: str, remedy: str
) -> None:
    if "compute=bare" in variables:
        desk.emulator.control("compute", name="bare", vm_size="STANDARD_D2_V2", max_nodes=4, identity=False)
    seen = desk.checked(*variables)
    line = seen.lines[check]
    assert (seen.code, line["level"]) == (1, "failed"), seen.out
    assert found in line["found"]
    assert remedy in line["remedy"]
    assert list(seen.lines) == CHECKS


def test_checks_that_need_a_failed_one_are_skipped_and_say_so(desk: Desk) -> None:
    lines = desk.checked("compute=nowhere").lines
    skipped = {name: line["found"] for name, line in lines.items() if line["level"] == "skipped"}
    assert skipped == dict.fromkeys(("cost", "quota", "identity"), "needs compute")


def test_a_workspace_that_is_not_there_is_named_with_its_remedy(desk: Desk, tmp_path: Path) -> None:
    content = json.loads(desk.emulator.workspace_config(tmp_path).read_text()) | {"workspace_name": "elsewhere"}
    (tmp_path / "config.json").write_text(json.dumps(content))
    seen = desk.doctor("--json", "--no-write", "--workspace-config", str(tmp_path / "config.json"))
    line = seen.lines["workspace"]
    assert (seen.code, line["level"]) == (1, "failed")
    assert "elsewhere" in line["found"]
    assert "does not exist" in line["found"]
    assert line["remedy"] == "look at its config.json"
    assert seen.lines["MLflow"]["found"] == "needs workspace"


@pytest.mark.parametrize(
    ("env", "found"),
    [
        ({"AZURE_CLIENT_SECRET": "wrong"}, "AADSTS7000215"),
        (dict.fromkeys(("AZURE_TENANT_ID", "AZURE_CLIENT_ID", "AZURE_CLIENT_SECRET")), "nobody is signed in"),
    ],
)
def test_who_is_not_signed_in_is_told_how(desk: Desk, env: dict[str, str | None], found: str) -> None:
    seen = desk.checked(cwd=None, limits=None, **env)
    line = seen.lines["login"]
    assert (seen.code, line["level"]) == (1, "failed")
    assert found in line["found"]
    assert line["remedy"].startswith("sign in with `az login`")
    assert {name for name, line in seen.lines.items() if line["level"] == "ok"} == {
        "settings", "environment", "code", "private files", "Prefect API",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("silent", "unmade"),
    [
        ("GET management.azure.com/", {"workspace": "failed"}),
        pytest.param("login.microsoftonline.com/", {"login": "failed"}, marks=SOAKED),
        pytest.param(
            "management.azure.com/.*/(computes|environments|datastores)",
            {"compute": "failed", "environment": "failed", "storage": "failed"},
            marks=SOAKED,
        ),
        pytest.param("kv-emu.vault.azure.net/", {"key vault": "warning"}, marks=SOAKED),
    ],
)
def test_a_service_that_says_nothing_is_given_up_and_told_of(desk: Desk, silent: str, unmade: dict[str, str]) -> None:
    """Each limit is there to be made shorter: without one, this test would not end."""
    desk.emulator.fault(silent, silent=True, times=10**6)
    try:
        seen = desk.checked("environment=plato:3", limits={"connection_timeout": 5.0, "read_timeout": 0.2})
    finally:
        desk.emulator.control("clear_faults")
    lines = seen.lines
    assert (seen.code, seen.err, list(lines)) == (1, "", CHECKS)
    for name, level in unmade.items():
        assert lines[name]["level"] == level, seen.out
        assert "Read timed out" in lines[name]["found"]
        assert (
            "look at the network" in lines[name]["remedy"] or "network reaches the key vault" in lines[name]["remedy"]
        )
    first = next(iter(unmade))
    skipped = {line["found"] for line in lines.values() if line["level"] == "skipped"}
    assert skipped <= {f"needs {first}", "the workspace is not known"}


@soaked
def test_a_network_that_lets_nothing_out_is_told_of_too(desk: Desk) -> None:
    with socket.create_server(("127.0.0.1", 0), backlog=0) as full, contextlib.ExitStack() as waiting:
        for _ in range(4):  # those that nobody takes: the next one's first packet has no answer
            one = waiting.enter_context(socket.socket())
            one.setblocking(False)
            one.connect_ex(full.getsockname())
        proxy = f"http://127.0.0.1:{full.getsockname()[1]}"
        seen = desk.doctor(
            "--json", "--no-write", "--no-prefect", limits={"connection_timeout": 0.2},
            HTTPS_PROXY=proxy, https_proxy=proxy,
        )  # fmt: skip
    login = seen.lines["login"]
    assert (seen.code, login["level"]) == (1, "failed"), seen.out
    assert "timed out" in login["found"]
    assert login["remedy"].startswith("look at the network")
    assert seen.lines["MLflow"]["found"] == "needs login"


def test_a_key_that_the_prefect_api_refuses_is_found(desk: Desk) -> None:
    wrong = desk.emulator.set_secret("stale", "admin:of-last-year")
    seen = desk.checked(f"api_auth_secret={wrong}")
    line = seen.lines["Prefect API"]
    assert (seen.code, line["level"]) == (1, "failed")
    assert "refuses the key of the key vault (401)" in line["found"]
    assert "az keyvault secret set --file" in line["remedy"]


def test_a_secret_with_a_line_break_at_its_end_is_found(desk: Desk) -> None:
    broken = desk.emulator.set_secret("broken", f"admin:{PASSWORD}\n")
    seen = desk.checked(f"api_auth_secret={broken}")
    line = seen.lines["key vault"]
    assert (seen.code, line["level"], line["remedy"]) == (1, "failed", "store it anew without")


def test_another_ray_in_the_environment_and_a_secret_in_the_code_are_found(desk: Desk, tmp_path: Path) -> None:
    project = make_project(tmp_path / "project", desk.emulator, ray="2.9.3")
    (project / ".amlignore").write_text("")
    seen = desk.checked(cwd=project)
    lines = seen.lines
    assert seen.code == 1
    assert lines["environment"]["level"] == lines["private files"]["level"] == "failed"
    assert f"has Ray 2.9.3, and this machine {version('ray')}" in lines["environment"]["found"]
    assert "build the environment again" in lines["environment"]["remedy"]
    assert ".env would be uploaded" in lines["private files"]["found"]
    assert lines["private files"]["remedy"] == "add to .amlignore: .env"


def test_mlflow_that_refuses_to_be_written_to_is_found(desk: Desk) -> None:
    desk.emulator.fault(r"POST .*/mlflow/runs/create", status=403)
    seen = desk.doctor("--json")
    line = seen.lines["MLflow"]
    assert (seen.code, line["level"]) == (1, "failed"), seen.out
    assert "can be read, but writing to it fails" in line["found"]
    assert "the role AzureML Data Scientist" in line["remedy"]


def test_what_only_costs_or_cannot_be_known_is_a_warning(desk: Desk) -> None:
    desk.emulator.control("compute", name="kept", vm_size="STANDARD_D2_V2", max_nodes=4, min_nodes=1)
    desk.emulator.fault(r"GET management.azure.com/.*/locations/.*/usages", status=403)
    desk.emulator.fault(r"GET kv-emu.vault.azure.net/", status=403)
    seen = desk.checked("compute=kept")
    warned = {name: line["remedy"] for name, line in seen.lines.items() if line["level"] == "warning"}
    assert seen.code == 0, seen.out
    assert warned == {
        "cost": "az ml compute update --name kept --min-instances 0",
        "quota": "look in the Azure portal: Quotas, Machine learning",
        "key vault": "give the job's identity the role Key Vault Secrets User",
    }
    assert "could not be tried from here" in seen.lines["Prefect API"]["found"]


def test_low_priority_nodes_are_told_of(desk: Desk) -> None:
    seen = desk.checked("compute=spot-cluster")
    assert seen.code == 0, seen.out
    assert "low-priority" in seen.lines["cost"]["found"]
    assert "LowPriority" in seen.lines["quota"]["found"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--job-variable", "compute"], "must be like name=value"),
        (["--job-variable", "computer=x"], "there is no setting 'computer'"),
        (["--job-variable", "instance_count=0"], "instance_count: 0 is not possible"),
        (["--deployment", "sweep/nothing"], "is neither on the Prefect server"),
        (
            ["--no-prefect", "--job-variable", "api_url=https://prefect.example.com/api"],
            "job_variables.api_url: there is no such setting",
        ),
        (["--no-prefect", "--job-variable", "instance_cuont=2"], "job_variables.instance_cuont: there is no such"),
        (["--deployment", "sweep/local"], "runs in the pool local, which is not of type azure-ml"),
    ],
)
def test_bad_input_is_told_as_such(desk: Desk, arguments: list[str], said: str) -> None:
    seen = desk.doctor(*arguments)
    assert (seen.code, seen.out) == (2, "")
    assert said in seen.err


def test_a_job_without_prefect_is_examined_without_its_api_and_its_secrets(desk: Desk) -> None:
    seen = desk.doctor("--json", "--no-write", "--no-prefect", "--job-variable", "instance_count=5")
    lines = seen.lines
    assert seen.code == 1
    assert list(lines) == [name for name in CHECKS if name not in ("key vault", "Prefect API")]
    assert {name for name, line in lines.items() if line["level"] == "failed"} == {"compute"}


@pytest.mark.parametrize(
    ("variable", "found", "remedy"),
    [
        ("ray_port=10002", "job_variables: ray_port: 10002 comes into the way", "give one outside 10002 to 19999"),
        ("env.AZURE_CLIENT_SECRET=mine", "job_variables: env.AZURE_CLIENT_SECRET: a secret would stand", "remove it"),
    ],
)
def test_settings_that_a_sweep_of_a_flow_at_home_refuses_are_found(
    desk: Desk, variable: str, found: str, remedy: str
) -> None:
    seen = desk.doctor("--json", "--no-write", "--no-prefect", "--job-variable", variable)
    line = seen.lines["settings"]
    assert (seen.code, line["level"], line["remedy"]) == (1, "failed", remedy), seen.out
    assert found in line["found"]
    assert "mine" not in seen.out


def test_a_pool_without_the_deployment_is_a_warning(desk: Desk) -> None:
    """The last one here that needs the deployment: it goes."""
    deployment = desk.server.request("GET", "/deployments/name/sweep/aml")
    desk.server.request("DELETE", f"/deployments/{deployment['id']}")
    settings = deployment["job_variables"]
    given = [f"{name}={settings[name]}" for name in ("api_url", "api_auth_secret", "identity")]
    seen = desk.checked(*given)
    line = seen.lines["settings"]
    assert (seen.code, line["level"]) == (0, "warning"), seen.out
    assert line["found"].startswith("pool aml of http")
    assert "has no deployment sweep/aml" in line["found"]
    assert "prefect --no-prompt deploy --name aml" in line["remedy"]


@thorough
def test_without_a_prefect_server_the_settings_are_those_of_the_project(desk: Desk, tmp_path: Path) -> None:
    project = make_project(tmp_path / "project", desk.emulator)
    deployment = {"name": "aml", "work_pool": {"name": "aml", "job_variables": {"compute": "gpu-cluster"}}}
    (project / "prefect.yaml").write_text(yaml.safe_dump({"name": "x", "deployments": [deployment]}))
    done = subprocess.run(
        [sys.executable, "-m", "plato_core.cli", "aml", "doctor", "--json", "--no-write"],
        cwd=project,
        env=laptop_env(desk.emulator) | {"PREFECT_HOME": str(tmp_path), "PATH": os.environ["PATH"]},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    lines: dict[str, Any] = Seen(done.returncode, done.stdout, done.stderr).lines
    assert (done.returncode, done.stderr) == (1, "")
    assert "set api_url of the pool" in lines["settings"]["remedy"]
    assert "cluster 'gpu-cluster'" in lines["compute"]["found"]
    assert lines["Prefect API"]["found"] == "needs settings"
