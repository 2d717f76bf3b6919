"""The product as a user runs it: a script in a folder of its own, with a Prefect home that is not the user's."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import kills
import pytest
from product import SHORT_CONFIG, Product, Script


@pytest.fixture(scope="session")
def prefect_home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One for all: the temporary server's database takes seconds to make."""
    return tmp_path_factory.mktemp("prefect")


@pytest.fixture(scope="session")
def environment(prefect_home: Path) -> dict[str, str]:
    """The user's environment without what would lead a run elsewhere."""
    kept = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("PREFECT_", "PLATO_", "MLFLOW_", "RAY_", "PYTEST_"))
    }
    return kept | {"PREFECT_HOME": str(prefect_home)}


@pytest.fixture
def product(tmp_path: Path, environment: dict[str, str]) -> Iterator[Product]:
    """The product in an empty folder; what it started is ended with the test."""
    with product_in(tmp_path, environment) as product:
        yield product


@pytest.fixture(scope="session")
def make_product(
    tmp_path_factory: pytest.TempPathFactory, environment: dict[str, str]
) -> Iterator[Callable[[str], Product]]:
    """The product in a folder that several tests share."""
    made: list[Product] = []

    def make(name: str) -> Product:
        product = product_in(tmp_path_factory.mktemp(name), environment)
        made.append(product)
        return product

    yield make
    for product in made:
        product.close()


def product_in(folder: Path, environment: dict[str, str]) -> Product:
    (config := folder.parent / f"{folder.name}-short.yaml").write_text(SHORT_CONFIG)
    return Product(folder, environment, config)


@pytest.fixture(scope="session")
def main_job(make_product: Callable[[str], Product]) -> Script:
    """The one full run of the suite: a population on CartPole-v1 up to a mean return of 475."""
    return make_product("main-job").run("--test-local", "--json", "--seed", "1")


@pytest.fixture(scope="session")
def unkilled(make_product: Callable[[str], Product]) -> Script:
    """The deterministic sweep, left alone."""
    product = make_product("unkilled")
    script = product.run(*kills.clockwork(product))
    assert script.process.returncode == 0, script.said
    kills.assert_complete(script, trials=2)
    return script
