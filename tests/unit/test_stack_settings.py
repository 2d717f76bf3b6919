"""What can be set about the local stack, what is refused, and what each of its processes is given."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from plato_core.config import SweepConfig
from plato_core.errors import ConfigError
from plato_core.stack.parts import SERVERS, parts
from plato_core.stack.settings import MLFLOW, PREFECT, PREFIX, WORKER, StackSettings, load_settings

DATABASE = "postgresql://plato:pw-of-the-database@127.0.0.1/stores"
ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    for name in StackSettings.model_fields:
        monkeypatch.delenv(f"{PREFIX}{name.upper()}", raising=False)


def test_the_folder_is_below_the_working_folder_and_absolute(tmp_path: Path) -> None:
    assert load_settings().folder == tmp_path / ".plato" / "stack"


def test_a_plain_postgresql_url_gets_the_driver_that_prefect_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PLATO_STACK_PREFECT_DATABASE_URL", DATABASE)
    url = load_settings().prefect_database_url
    assert url is not None
    assert url.get_secret_value() == DATABASE.replace("postgresql:", "postgresql+asyncpg:")


def test_postgresql_for_mlflow_without_its_driver_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PLATO_STACK_MLFLOW_STORE_URI", DATABASE)
    monkeypatch.setattr("plato_core.stack.settings.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"PLATO_STACK_MLFLOW_STORE_URI: .* pip install 'plato-sweeps\[postgres\]'"):
        load_settings()


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("PREFECT_PORT", "70000", "PLATO_STACK_PREFECT_PORT: Input should be less than or equal to 65535"),
        ("PREFECT_PORT", "5000", "PLATO_STACK_PREFECT_PORT and PLATO_STACK_MLFLOW_PORT are both 5000"),
        ("CONCURRENCY_LIMIT", "0", "PLATO_STACK_CONCURRENCY_LIMIT: Input should be greater than or equal to 1"),
        ("MLFLOW_STORE_URI", "oracle://me:pw-of-the-database@x/y", "PLATO_STACK_MLFLOW_STORE_URI: the URL of a "),
    ],
)
def test_a_wrong_setting_is_named_without_its_secrets(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str, message: str
) -> None:
    monkeypatch.setenv(f"{PREFIX}{name}", value)
    with pytest.raises(ConfigError) as raised:
        load_settings()
    assert str(raised.value).startswith(message)
    assert "pw-of-the-database" not in str(raised.value)


def test_a_database_url_reaches_its_own_server_alone_and_no_command_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PLATO_STACK_PREFECT_DATABASE_URL", f"{DATABASE}-of-prefect")
    monkeypatch.setenv("PLATO_STACK_MLFLOW_STORE_URI", f"{DATABASE}-of-mlflow")
    settings = load_settings()
    assert "pw-of-the-database" not in repr(settings)
    started = parts(settings, {f"{PREFIX}MLFLOW_STORE_URI": f"{DATABASE}-of-mlflow", "HOME": "/home/me"})
    with_it = {
        part.name: [value.rpartition("-of-")[2] for value in part.environment.values() if "pw-of" in value]
        for part in started.values()
    }
    assert with_it == {PREFECT: ["prefect"], MLFLOW: ["mlflow"], WORKER: []}
    assert "pw-of" not in " ".join(word for part in started.values() for word in part.command)


def test_what_the_shell_is_set_up_for_reaches_no_part() -> None:
    foreign = {
        "PREFECT_API_KEY": "pnu_key",
        "PREFECT_API_URL": "https://api.prefect.cloud/api",
        "PREFECT_PROFILE": "cloud",
        "MLFLOW_TRACKING_URI": "https://elsewhere.example",
        "MLFLOW_TRACKING_TOKEN": "token",
        "_MLFLOW_SERVER_FILE_STORE": "/elsewhere",
        "RAY_ADDRESS": "ray://elsewhere.example:10001",
        "PLATO_TRACKING_URI": "https://elsewhere.example",
        "PLATO_RAY_ADDRESS": "ray://elsewhere.example:10001",
        "PLATO_NUM_TUNE_SAMPLES": "64",
    }
    settings = StackSettings()
    for part in parts(settings, {**foreign, "HOME": "/home/me"}).values():
        kept = {name for name, value in foreign.items() if part.environment.get(name) == value}
        assert kept == set()
        assert part.environment["HOME"] == "/home/me"
        assert part.environment["PREFECT_API_URL"] == "http://127.0.0.1:4200/api"
        assert part.environment["MLFLOW_TRACKING_URI"] == "http://127.0.0.1:5000"


def test_requests_to_this_machine_go_through_no_proxy() -> None:
    started = parts(StackSettings(), {"HTTP_PROXY": "http://proxy:3128", "NO_PROXY": "intranet"})
    assert started[WORKER].environment["NO_PROXY"] == "intranet,127.0.0.1,localhost"


def test_no_setting_of_a_sweep_is_read_from_a_variable_of_the_stack() -> None:
    assert not [name for name in SweepConfig.model_fields if f"PLATO_{name.upper()}".startswith(PREFIX)]


def test_the_documented_table_is_that_of_the_settings() -> None:
    text = (ROOT / "docs" / "deploying.md").read_text()
    documented = re.findall(rf"^\| `({PREFIX}[A-Z_]+)` \|", text, flags=re.MULTILINE)
    assert documented == [f"{PREFIX}{name.upper()}" for name in StackSettings.model_fields]


def test_both_servers_have_a_port_and_a_name() -> None:
    assert tuple(StackSettings().ports) == SERVERS
