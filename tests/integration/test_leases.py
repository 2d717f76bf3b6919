"""A place under a concurrency limit that cannot be renewed, in processes whose Prefect server is gone."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = """
import threading, time, uuid
{imports}
from prefect import flow_engine

lease = uuid.uuid4()
with flow_engine.maintain_concurrency_lease(lease, 300, raise_on_lease_renewal_failure=True):
    while any(str(lease) in thread.name for thread in threading.enumerate()):
        time.sleep(0.1)
    time.sleep(1)
    print("went on")
"""
PROJECT = Path(__file__).parents[2]
ALONE, OURS = "", "import flows.sweep_and_fetch"


@pytest.fixture(scope="module")
def ended(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[int, str, str]]:
    """Exit code, output and errors of the program with Prefect alone, and of one that loads our flow; side by side."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PREFECT_")}
    environment |= {"PREFECT_HOME": str(tmp_path_factory.mktemp("home")), "PREFECT_API_URL": "http://127.0.0.1:9/api"}
    started = {
        imports: subprocess.Popen(
            [sys.executable, "-c", PROGRAM.format(imports=imports)],
            cwd=PROJECT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )
        for imports in (ALONE, OURS)
    }  # fmt: skip
    outputs = {imports: process.communicate(timeout=120) for imports, process in started.items()}
    return {imports: (started[imports].returncode, *output) for imports, output in outputs.items()}


def test_a_sweep_goes_on_when_its_place_cannot_be_renewed(ended: dict[str, tuple[int, str, str]]) -> None:
    code, output, errors = ended[OURS]
    assert (code, output) == (0, "went on\n"), errors
    assert "Execution will continue" in errors


def test_prefect_by_itself_ends_the_run(ended: dict[str, tuple[int, str, str]]) -> None:
    """So that the cure goes when it is not needed any more."""
    code, output, _ = ended[ALONE]
    assert code != 0
    assert "went on" not in output
