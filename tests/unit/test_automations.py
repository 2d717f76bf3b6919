"""The files of automations, and what the deployments have to do with them."""

from pathlib import Path

import pytest

from plato_core import config_yaml
from plato_core.automations import LOST, install_lost, read
from plato_core.cli.run import PREFECT_ENVIRONMENT
from plato_core.errors import ConfigError

ROOT = Path(__file__).parents[2]
AZURE_ML = ("NotStarted", "Provisioning", "Preparing", "Queued", "Starting")  # of a job that waits for its nodes
HEARTBEAT = "PREFECT_FLOWS_HEARTBEAT_FREQUENCY"


def test_ten_heartbeats_must_be_missing() -> None:
    lost, _ = config_yaml.read_mapping(ROOT / LOST)[0]["automations"]
    deployments = config_yaml.read_mapping(ROOT / "prefect.yaml")[0]["deployments"]
    every_s = [float(one["work_pool"]["job_variables"]["env"][HEARTBEAT]) for one in deployments]
    for seconds in (*every_s, float(PREFECT_ENVIRONMENT[HEARTBEAT])):
        assert lost["trigger"]["within"] >= 10 * seconds


def test_prefect_has_a_state_of_each_name_that_is_waited_for() -> None:
    """A slip of the pen would mark runs that have ended in order."""
    import prefect.states
    from prefect.states import Cancelled

    for automation in read(ROOT / LOST):
        for event in (*automation.trigger.expect, *automation.trigger.after):  # type: ignore[union-attr]
            name = event.removeprefix("prefect.flow-run.")
            known = hasattr(prefect.states, name) or name in ("heartbeat", "TimedOut", "Suspended", Cancelled().name)
            known = known or name in AZURE_ML
            assert known, event


def test_a_project_without_the_file_needs_no_server(tmp_path: Path) -> None:
    assert install_lost(tmp_path) == []


@pytest.mark.parametrize("text", ["automations:\n  - name: x\n", "other: 1\n"])
def test_a_file_that_is_none_is_named(tmp_path: Path, text: str) -> None:
    (path := tmp_path / "some.yaml").write_text(text)
    with pytest.raises(ConfigError, match=r"some\.yaml: the automations in it are not readable"):
        read(path)
    with pytest.raises(ConfigError, match="there is no such file; run this in the project's folder"):
        read(tmp_path / "none.yaml")
