"""A sweep on a Ray cluster of two nodes, each on a loopback address of its own with one CPU."""

from __future__ import annotations

import contextlib
import json
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from product import PYTHONPATH, SHORT_CONFIG, Product, Script, free_port, wait_until
from thorough import thorough

from plato_core.aml.nodes import RayNode
from plato_core.manifest import read_manifest, verify

HEAD, OTHER = "127.0.0.4", "127.0.0.5"


class Cluster:
    """A head, and the node that joins it when told to; gone with the context."""

    def __init__(self, environment: dict[str, str]) -> None:
        self._held = contextlib.ExitStack()
        self._temp_dir = Path(tempfile.mkdtemp(prefix="r", dir="/tmp"))  # a short path, for sockets
        self._held.callback(shutil.rmtree, self._temp_dir, ignore_errors=True)
        self._environment = environment | {"PYTHONPATH": PYTHONPATH, "RAY_TMPDIR": str(self._temp_dir)}
        self.address = f"{HEAD}:{free_port()}"
        port = self.address.partition(":")[2]
        self._start(HEAD, "--head", f"--port={port}", "--include-dashboard=false")
        wait_until(lambda: answers(HEAD, int(port)), "the head answers", 90)

    def join(self) -> RayNode:
        return self._start(OTHER, f"--address={self.address}")

    def _start(self, address: str, *arguments: str) -> RayNode:
        own = [f"--node-ip-address={address}", "--num-cpus=1", "--object-store-memory=100000000"]
        return self._held.enter_context(RayNode([*arguments, *own], self._environment))

    def close(self) -> None:
        self._held.close()


@pytest.fixture
def cluster(environment: dict[str, str]) -> Iterator[Cluster]:
    # As on the nodes of a job: no login between them, whatever this user has in its home folder.
    cluster = Cluster(environment | {"RAY_AUTH_MODE": "disabled", "RAY_USAGE_STATS_ENABLED": "0"})
    try:
        yield cluster
    finally:
        cluster.close()


def answers(host: str, port: int) -> bool:
    with contextlib.suppress(OSError), socket.create_connection((host, port), timeout=1.0):
        return True
    return False


def sweep(product: Product, cluster: Cluster, wait_s: int = 60, iterations: int = 6) -> Script:
    return product.start(
        "--preset", "test-local", "--config", product.short_config, "--num-tune-samples", "3", "--seed", "3",
        "--max-iterations", str(iterations), "--perturbation-interval", "2", "--json", "--ray-address", cluster.address,
        "--ray-nodes", "2",
        RAY_AUTH_MODE="disabled", PLATO_RAY_WAIT_S=str(wait_s),
    )  # fmt: skip


def nodes_of_trials(script: Script) -> dict[str, str]:
    """On which node each trial trained last."""
    found = {}
    for path in script.sweep_dir.glob("tune/*/result.json"):
        found[path.parent.name] = json.loads(path.read_text().splitlines()[-1])["node_ip"]
    return found


@thorough
def test_trials_train_on_both_nodes_once_both_are_there(product: Product, cluster: Cluster) -> None:
    script = sweep(product, cluster)
    wait_until(lambda: "waiting for Ray nodes: 1 of 2" in script.stderr, "it says what it waits for", 90)
    cluster.join()
    assert script.wait() == 0, script.said
    trained = nodes_of_trials(script)
    assert len(trained) == 3
    assert set(trained.values()) == {HEAD, OTHER}
    result = json.loads(script.stdout.splitlines()[-1])
    assert result["slots"] == 2
    checkpoint = Path(result["checkpoint_path"])
    assert verify(checkpoint, read_manifest(checkpoint)) == []


def test_too_few_nodes_end_the_sweep_with_their_number(product: Product, cluster: Cluster) -> None:
    script = sweep(product, cluster, wait_s=1)
    assert script.wait() == 1, script.said
    assert "1 of 2 Ray nodes came within 1 s" in script.stderr


def test_a_node_that_does_not_see_the_sweeps_folder_is_named(cluster: Cluster, environment: dict[str, str]) -> None:
    program = (
        "import sys, ray; from pathlib import Path; from plato_core.sweep.nodes import check_nodes\n"
        "ray.init(address=sys.argv[1]); check_nodes(ray.nodes(), Path('/nowhere'), seen_within_s=0.1)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, cluster.address],
        env=environment | {"RAY_AUTH_MODE": "disabled", "PYTHONPATH": PYTHONPATH},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert f"the Ray node {HEAD} does not see /nowhere" in done.stderr


@thorough
def test_a_sweep_outlives_one_of_its_nodes(product: Product, cluster: Cluster) -> None:
    other = cluster.join()
    # Long enough an iteration that no trial is done before its node goes.
    product.short_config.write_text(f"{SHORT_CONFIG}  min_time_s_per_iteration: 1.5\n")
    script = sweep(product, cluster, iterations=16)
    script.wait_for_training()
    other.__exit__(None, None, None)
    assert script.wait() == 0, script.said
    assert set(nodes_of_trials(script).values()) == {HEAD}
