"""Submitting an Azure ML job from a project that has much beside its code, which `.amlignore` leaves out.

::

    python benchmarks/code_folder.py                    # 70 000 such files, as a virtual environment here has
    python benchmarks/code_folder.py --beside 5000

Ours (`plato_core.aml.client.JobClient.submit`) beside the SDK's own `MLClient.jobs.create_or_update` of the same job
from the same folder: for the first job, whose code is uploaded, and for the next, whose code is there. The workspace is
the tests' emulator on this machine, so of the upload only the requests count, and no network. Each side is a process of
its own that is signed in and has imported everything before its clock starts. A ratio is ours over the SDK's. The last
line of the output is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from measuring import end_in_order, measured, show
from running import machine_now, say

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from aml_bed import running_emulator

ROOT = Path(__file__).resolve().parents[1]
SIDES = ("ours", "SDK")
LIMIT_S = 600.0
CODE = ("flows", "tasks", "plato_core", "deployments")
A_FOLDER = 100  # files


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the benchmark and returns its exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--beside", type=int, default=70_000, help="files that are left out")
    parser.add_argument("--submit", nargs=3, help=argparse.SUPPRESS)  # of a side's own process
    options = parser.parse_args(argv)
    if options.submit:
        print(json.dumps(submit(*options.submit)), flush=True)
        return 0
    end_in_order()
    now = machine_now()
    folder = Path(tempfile.mkdtemp(prefix="plato-bench-code-"))
    try:
        rows = measure(folder, options.beside)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    show(rows)
    ours, sdk = rows
    found = {key: round(ours[key] / sdk[key], 3) for key in ("first_s", "next_s")}
    print(json.dumps({"ratio": found, "beside": options.beside, "sides": rows, **now}), flush=True)
    return 0


def measure(folder: Path, beside: int) -> list[dict[str, Any]]:
    """Makes the project, and has each side submit from it."""
    (project := folder / "project").mkdir()
    for name in CODE:
        shutil.copytree(ROOT / name, project / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / ".amlignore", project)
    for first in range(0, beside, A_FOLDER):
        (package := project / ".venv" / f"package_{first}").mkdir(parents=True)
        for number in range(first, min(first + A_FOLDER, beside)):
            (package / f"module_{number}.py").touch()
    say(f"a project of {sum(1 for path in project.rglob('*') if path.is_file())} files")
    rows: list[dict[str, Any]] = []
    with running_emulator(folder / "emulator", phase=0.1) as emulator:
        os.environ.update(emulator.env())
        for side in SIDES:
            (project / "side.txt").write_text(side)  # code of its own, so that it is uploaded
            told = measured(
                [str(Path(__file__)), "--submit", side, str(project), emulator.tracking_uri], folder, LIMIT_S
            )
            if told is None:
                raise RuntimeError(f"{side}: no end within {LIMIT_S:g} s")
            rows.append({"side": side, **told})
    return rows


def submit(side: str, project: str, tracking_uri: str) -> dict[str, float]:
    """Submits two jobs of the same code, and returns the seconds of each."""
    from plato_core.aml.client import JobClient
    from plato_core.aml.fields import JobFields
    from plato_core.aml.job import command_job, job_spec
    from plato_core.aml.workspace import Workspace

    jobs = JobClient(Workspace.of(tracking_uri))
    fields = JobFields.model_validate({"code": project, "compute": "cpu-cluster"})
    taken = []
    for number in range(2):
        spec = job_spec(
            fields,
            name=f"{side}-{number}".lower(),
            display_name=side,
            command="true",
            experiment="code",
            tags={},
            env={},
        )
        jobs.check(spec)  # this and the next line also import, connect and sign in
        job = command_job(spec)
        began = time.monotonic()
        if side == "ours":
            jobs.submit(spec)
        else:
            jobs._ml.jobs.create_or_update(job)
        taken.append(time.monotonic() - began)
    return {"first_s": taken[0], "next_s": taken[1]}


if __name__ == "__main__":
    sys.exit(main())
