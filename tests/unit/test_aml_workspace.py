"""Which Azure ML workspace is meant, found where Azure's own tools look."""

import json
from pathlib import Path

import pytest

from plato_core.aml.credentials import sign_in_error, sign_in_message
from plato_core.aml.workspace import Workspace
from plato_core.errors import AmlError, AmlUnavailable, ConfigError

MINE = {"subscription_id": "s-1", "resource_group": "group", "workspace_name": "mine"}
ID = "/subscriptions/s-1/resourceGroups/group/providers/Microsoft.MachineLearningServices/workspaces/mine"


def write(path: Path, content: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


@pytest.mark.parametrize("place", ["config.json", ".azureml/config.json", "aml_config/project.json"])
def test_it_is_found_from_a_folder_below(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str) -> None:
    write(tmp_path / place, MINE)
    (below := tmp_path / "a" / "b").mkdir(parents=True)
    monkeypatch.chdir(below)
    found = Workspace.find()
    assert found == Workspace(subscription_id="s-1", resource_group="group", name="mine")
    assert Workspace.of(ID).resource_id == ID
    assert Workspace.find(tmp_path) == found
    assert Workspace.find(tmp_path / place) == found


def test_a_hidden_folder_above_comes_before_a_plain_file_here(tmp_path: Path) -> None:
    """The order of the SDK; tests/integration/test_aml_worker.py asks the SDK itself."""
    write(tmp_path / ".azureml" / "config.json", MINE)
    here = write(tmp_path / "below" / "config.json", MINE | {"workspace_name": "other"}).parent
    found = Workspace.find(here)
    assert found is not None
    assert found.name == "mine"


def test_a_config_of_something_else_is_passed_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "config.json", {"model": "gpt"})
    monkeypatch.chdir(tmp_path)
    assert Workspace.find() is None


def test_a_scope_names_it_too(tmp_path: Path) -> None:
    assert Workspace.find(write(tmp_path / "config.json", {"Scope": ID})) == Workspace.of(ID)
    assert Workspace.of(f"azureml://westeurope.api.azureml.ms/mlflow/v1.0{ID}?") == Workspace.of(ID)
    assert Workspace.of(
        f"azureml://westeurope.api.azureml.ms/mlflow/v1.0{Workspace.of(ID).resource_id}"
    ) == Workspace.of(ID)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"subscription_id": "s"}, "resource_group, workspace_name missing or empty"),
        (MINE | {"resource_group": " "}, "resource_group missing or empty"),
        ("{", "not JSON"),
        ([1], "no object in it"),
        ({"Scope": "/subscriptions/s-1"}, "must be like /subscriptions/ID/resourceGroups/GROUP"),
    ],
)
def test_what_is_wrong_with_a_file_is_said_in_one_line(tmp_path: Path, content: object, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        Workspace.find(write(tmp_path / "config.json", content))
    assert "\n" not in str(caught.value)


def test_a_path_that_leads_nowhere_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="there is no such file or folder; download"):
        Workspace.find(tmp_path / "no.json")


NOBODY = """DefaultAzureCredential failed to retrieve a token from the included credentials.
Attempted credentials:
\tEnvironmentCredential: EnvironmentCredential authentication unavailable. Environment variables are not configured.
\tManagedIdentityCredential: ManagedIdentityCredential authentication unavailable, no response from the IMDS endpoint.
\tAzureCliCredential: Please run 'az login' to set up an account
To mitigate this issue, please refer to the troubleshooting guidelines here at https://aka.ms/azsdk"""
REFUSED = """DefaultAzureCredential failed to retrieve a token from the included credentials.
Attempted credentials:
\tEnvironmentCredential: Authentication failed: AADSTS7000215: Invalid client secret provided. Trace ID: 1
To mitigate this issue, please refer to the troubleshooting guidelines here at https://aka.ms/azsdk"""


def test_what_azure_says_about_signing_in_becomes_one_line() -> None:
    nobody = sign_in_message(NOBODY)
    assert nobody.startswith(
        "nobody is signed in to Azure (tried: Environment, ManagedIdentity, AzureCli); sign in with"
    )
    refused = sign_in_message(REFUSED)
    assert refused.startswith(
        "signing in to Azure (EnvironmentCredential) failed: AADSTS7000215: Invalid client secret"
    )
    assert "\n" not in nobody + refused


@pytest.mark.parametrize(
    ("why", "kind"),
    [
        (
            "HTTPSConnection(host='127.0.0.1', port=9): Failed to establish: [Errno 111] Connection refused",
            AmlUnavailable,
        ),
        ("503 Service Unavailable", AmlUnavailable),
        ("AADSTS7000215: Invalid client secret provided. Trace ID: 1", AmlError),
        ("(invalid_client) Client authentication failed", AmlError),
    ],
)
def test_azure_that_is_not_reached_is_asked_again_and_one_that_refuses_is_not(why: str, kind: type[AmlError]) -> None:
    text = REFUSED.replace("AADSTS7000215: Invalid client secret provided. Trace ID: 1", why)
    error = sign_in_error(text)
    assert type(error) is kind
    assert ("look at the network" in str(error)) == (kind is AmlUnavailable)
    assert ("sign in with" in str(error)) == (kind is AmlError)
    assert type(sign_in_error(NOBODY)) is AmlError


def test_a_managed_identity_whose_service_throttles_is_asked_again() -> None:
    asked = "Azure ML managed identity configuration not found in environment. Token request error: (invalid_scope) {}"
    imds = "ManagedIdentityCredential authentication unavailable, no response from the IMDS endpoint."
    error = sign_in_error(NOBODY.replace(imds, asked))
    assert type(error) is AmlUnavailable
    assert "(ManagedIdentityCredential) failed: the identity's service gave no token: {}" in str(error)
    elsewhere = f"authentication unavailable. {asked.partition('. ')[2]}"  # a laptop's proxy answers for IMDS
    assert type(sign_in_error(NOBODY.replace(imds, elsewhere))) is AmlError
