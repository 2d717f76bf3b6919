"""`--compute aml`: the flow on a laptop, with no Prefect server of its own, and its sweep a job of emulated Azure ML."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from aml_bed import Emulator, inherited_env, running_emulator
from aml_stack import NODE, SHORT, project_of_jobs
from product import Product, Script

from plato_core.manifest import read_manifest, verify

pytestmark = pytest.mark.timeout(900)
TRIALS, ITERATIONS = 3, 6


@pytest.fixture(scope="module")
def emulator(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Emulator]:
    folder = tmp_path_factory.mktemp("aml-home")
    (home := folder / "image-home").mkdir()
    (home / "ray_bootstrap_config.yaml").write_text("{}\n")
    with running_emulator(folder / "emulator", phase=0.3, image_home=home) as emulator:
        yield emulator


@pytest.fixture
def laptop(emulator: Emulator, tmp_path: Path, prefect_home: Path) -> Iterator[Product]:
    """The project's folder on somebody's laptop, with the workspace's `config.json` in it."""
    project = project_of_jobs(tmp_path)
    emulator.workspace_config(project)
    settings = SHORT["hyperparameters"] | {"min_time_s_per_iteration": 0.1}
    (config := tmp_path / "short.yaml").write_text(json.dumps({"hyperparameters": settings}))
    environment = inherited_env() | emulator.env() | {"PREFECT_HOME": str(prefect_home)}
    with Product(project, environment, config) as product:
        yield product


def start(laptop: Product, *more: str, nodes: int = 1, iterations: int = ITERATIONS) -> Script:
    return laptop.start(
        "--compute", "aml", "--preset", "test-local", "--config", laptop.short_config, "--json", "--seed", "3",
        "--num-tune-samples", str(TRIALS), "--max-iterations", str(iterations), "--perturbation-interval", "2",
        "--job-variable", f"instance_count={nodes}", "--job-variable", "poll_interval_s=0.5",
        "--job-variable", f"ray_head_arguments='{NODE}'", "--job-variable", f"ray_worker_arguments='{NODE}'",
        *more, program=laptop.folder / "flows" / "sweep_and_fetch.py",
    )  # fmt: skip


def test_the_checkpoint_is_on_the_laptop_at_the_end(laptop: Product, emulator: Emulator) -> None:
    before = set(emulator.jobs())
    script = start(laptop, "--experiment-name", "from-home", nodes=2)
    assert script.wait(400) == 0, script.said
    result = json.loads(script.stdout.splitlines()[-1])
    checkpoint = Path(result["checkpoint_path"])
    assert checkpoint.is_relative_to(laptop.folder / "model_checkpoints")
    assert verify(checkpoint, read_manifest(checkpoint)) == []
    [job] = set(emulator.jobs()) - before
    assert job == f"ps-{result['sweep_id']}-000"
    assert result["slots"] == 2
    assert result["trials"] == TRIALS
    print(script.said)
