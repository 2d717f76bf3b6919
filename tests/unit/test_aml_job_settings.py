"""What a job's program makes of its environment, before anything is started."""

import pytest

from plato_core.aml import entry
from plato_core.aml.flowrun import OVERDUE_S, Kind, Overdue, RunState, ends_in_order, exit_code
from plato_core.aml.jobsettings import JobSettings, Rank
from plato_core.aml.nodes import ray_environment
from plato_core.aml.secrets import secret
from plato_core.errors import AmlUnavailable, ConfigError

WHOLE = {
    "PREFECT__FLOW_RUN_ID": "11111111-2222-3333-4444-555555555555",
    "PREFECT_API_URL": "https://user:hidden@prefect.example.com/api",
    "PLATO_AML_RAY_VERSION": "2.60.0",
    "AZURE_ML_OUTPUT_sweeps": "/mnt/sweeps",
}


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in WHOLE.items():
        monkeypatch.setenv(name, value)


def test_what_is_not_set_has_its_default() -> None:
    job = JobSettings.read()
    assert (job.launcher, job.nodes, job.sweeps, job.api_key_secret) == ("single", 1, "/mnt/sweeps", None)
    assert "hidden" not in job.shown_api_url


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("PREFECT__FLOW_RUN_ID", "7", "PREFECT__FLOW_RUN_ID: '7'"),
        ("PLATO_AML_LAUNCHER", "slurm", "PLATO_AML_LAUNCHER: 'slurm'"),
        ("PLATO_AML_NODES", "0", "PLATO_AML_NODES: '0'"),
        ("PLATO_AML_RAY_PORT", "10500", "outside 10002 to 19999"),
        ("PLATO_AML_RAY_PORT", "10001", "outside 10002 to 19999"),
        ("PLATO_AML_RAY_VERSION", "", "PLATO_AML_RAY_VERSION is not set"),
    ],
)
def test_what_is_not_possible_is_named(monkeypatch: pytest.MonkeyPatch, name: str, value: str, words: str) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(ConfigError) as caught:
        JobSettings.read()
    assert words in str(caught.value)


def test_a_rank_knows_its_head(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match=r"AZUREML_CR_NODE_RANK is not set.*MPI"):
        Rank.read()
    monkeypatch.setenv("OMPI_COMM_WORLD_RANK", "3")
    monkeypatch.setenv("AZ_BATCH_MASTER_NODE", "10.0.0.4:6000")
    rank = Rank.read()
    assert (rank.number, rank.head, rank.own) == (3, "10.0.0.4", None)


def test_ray_inherits_neither_prefects_settings_nor_the_jobs_run() -> None:
    given = {"PREFECT_API_KEY": "k", "MLFLOW_RUN_ID": "r", "RAY_ADDRESS": "a:1", "PATH": "/bin"}
    assert ray_environment(given) == {"PATH": "/bin"}


@pytest.mark.parametrize("url", ["", "http://v.vault.azure.net/secrets/a", "https://v.vault.azure.net/keys/a", "key"])
def test_only_a_secrets_url_is_one(url: str) -> None:
    with pytest.raises(ConfigError, match="is no secret's URL"):
        secret(url)


@pytest.mark.parametrize(
    ("kind", "told", "code"),
    [
        ("COMPLETED", False, 0), ("COMPLETED", True, 0), ("CANCELLED", False, 143), ("OTHER", False, 1),
        ("OTHER", True, 143),
    ],
)  # fmt: skip
def test_the_exit_code_tells_the_outcome(kind: str, told: bool, code: int) -> None:
    assert exit_code(kind, told_to_stop=told) == code  # type: ignore[arg-type]


def state(kind: Kind = "OTHER", final: bool = False) -> RunState:
    return RunState(kind, "Some", None, final)


@pytest.mark.parametrize(
    ("known", "in_order"),
    [
        (state(), False),  # its node is taken away
        (None, False),
        (state("CANCELLING"), True),
        (state("CANCELLED", final=True), True),
        (state("COMPLETED", final=True), True),
    ],
)
def test_a_flow_ends_its_run_only_where_somebody_has_cancelled_it(known: RunState | None, in_order: bool) -> None:
    assert ends_in_order(known) is in_order


def test_a_process_may_outlive_its_run_for_a_while_only() -> None:
    overdue = Overdue()
    final = state("COMPLETED", final=True)
    assert not overdue.after(final, 1000.0)
    assert not overdue.after(state(), 1060.0)  # taken for dead, but it lives
    assert not overdue.after(final, 1120.0)
    assert not overdue.after(None, 1121.0 + OVERDUE_S)
    assert not overdue.after(final, 1119.0 + OVERDUE_S)
    assert overdue.after(final, 1121.0 + OVERDUE_S)


def test_a_secret_is_asked_for_again_while_the_vault_does_not_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    answers = [AmlUnavailable("the vault does not answer"), AmlUnavailable("no token yet"), "the key"]

    def vault(url: str) -> str:
        if isinstance(answer := answers.pop(0), Exception):
            raise answer
        return answer

    monkeypatch.setattr(entry, "secret", vault)
    monkeypatch.setenv("PLATO_AML_API_KEY_SECRET", "https://v.vault.azure.net/secrets/key")
    assert entry._secrets(JobSettings.read()) == {"PREFECT_API_KEY": "the key"}
