"""The environment of a job installs what the project does."""

import runpy
import tomllib
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "deployments" / "aml"


@pytest.mark.parametrize("name", ["constraints.txt", "requirements.txt"])
def test_the_generated_files_are_the_projects_own(name: str) -> None:
    wanted = runpy.run_path(str(FOLDER / "renew.py"))["contents"]()[name]
    assert (FOLDER / name).read_text() == wanted, "run: python deployments/aml/renew.py"


def test_every_dependency_is_pinned() -> None:
    pinned = {line.partition("==")[0] for line in (FOLDER / "constraints.txt").read_text().splitlines()}
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    names = {one.split("[")[0].split("=")[0].split("<")[0].split(">")[0].lower() for one in project["dependencies"]}
    assert names - pinned == set()


def test_the_image_is_built_from_files_that_are_there() -> None:
    copied = next(line for line in (FOLDER / "Dockerfile").read_text().splitlines() if line.startswith("COPY"))
    assert all((FOLDER / name).is_file() for name in copied.split()[1:-1])
    conda = yaml.safe_load((FOLDER / "conda.yaml").read_text())
    assert conda["dependencies"][0] == "python=3.11"
    assert conda["dependencies"][-1]["pip"] == ["--constraint constraints.txt", "--requirement requirements.txt"]
    assert yaml.safe_load((FOLDER / "environment.yaml").read_text())["build"] == {"path": "."}
