"""A project with one small flow, for tests of what runs it."""

from __future__ import annotations

from pathlib import Path

FLOW = '''\
import os
import time
from pathlib import Path

from prefect import flow


@flow(name="small", persist_result=False)
def small(seconds: float = 0.0, last_words_s: float = 1.0):
    """Says where it would track, and how it ended."""
    said = Path(os.environ["PREFECT__FLOW_RUN_ID"] + ".said")
    said.write_text(os.environ["MLFLOW_TRACKING_URI"])
    try:
        time.sleep(seconds)
    except BaseException:
        time.sleep(last_words_s)
        said.write_text("ended in order")
        raise
'''
DEPLOYMENTS = """\
name: small
pull:
  - prefect.deployments.steps.set_working_directory: {directory: "."}
deployments:
  - name: local
    entrypoint: flows/small.py:small
    work_pool: {name: local, job_variables: {working_dir: "{{ $PWD }}"}}
"""


def small_project(folder: Path) -> Path:
    """Writes the project to a new folder below, and returns that."""
    (project := folder / "project").mkdir()
    (project / "flows").mkdir()
    (project / "flows" / "small.py").write_text(FLOW)
    (project / "prefect.yaml").write_text(DEPLOYMENTS)
    return project
