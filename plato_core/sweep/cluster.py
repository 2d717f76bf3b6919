"""The Ray that a sweep runs on: one of this machine, started for it, or a cluster that is there."""

from __future__ import annotations

import contextlib
import logging
import math
import os
import socket
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import ray
from ray.tune.execution import class_cache

from plato_core.aml import jobrun
from plato_core.config import SweepConfig
from plato_core.config_machine import available_cpus
from plato_core.errors import SweepError
from plato_core.sweep.channel import emit
from plato_core.sweep.events import Phase
from plato_core.sweep.forkserver import ForkServer
from plato_core.sweep.nodes import check_nodes
from plato_core.sweep.packing import Node, Packing, pack

# Policies and metrics travel through it, not data sets; Ray's default is 30 % of the machine's memory.
OBJECT_STORE_BYTES = 256 * 2**20
# For the head of a cluster that is there; where nodes are waited for, it may still be starting.
_HEAD_WITHIN_S = 10.0
# Between two looks at what has come.
_LOOK_S = 1.0


def connect(config: SweepConfig, temp_dir: Path, sweep_dir: Path, forks: ForkServer | None) -> None:
    """Starts a Ray of this machine, or connects to the cluster that the config names and waits for its nodes.

    Args:
        config: Names the cluster, or the CPUs and GPUs of the local Ray.
        temp_dir: Where a local Ray keeps its session; a short path, since sockets in it may have 107 characters.
        sweep_dir: The sweep's folder, which every node of a cluster has to see.
        forks: What a local Ray's processes of trials are forked from; None where they import for themselves.

    Raises:
        SweepError: The cluster does not answer, has too few nodes after the time that the config gives it, or one
            that cannot train this sweep's trials.
    """
    quiet: dict[str, Any] = {"logging_level": logging.ERROR, "log_to_driver": False}
    if config.ray_address is not None:
        wait_for_head(config.ray_address, _HEAD_WITHIN_S if config.ray_nodes is None else config.ray_wait_s)
        try:
            ray.init(address=config.ray_address, runtime_env=jobrun.runtime_env(), **quiet)
        except (ConnectionError, RuntimeError, ValueError) as error:
            raise _no_cluster(config.ray_address, str(error).strip().splitlines()[0]) from error
        wait_for_nodes(config.ray_nodes or 1, config.ray_wait_s)
        if len(nodes := alive_nodes()) > 1:
            emit(Phase(text=f"looking at {len(nodes)} Ray nodes"))
            check_nodes(nodes, sweep_dir)
        return
    _inherit_what_tune_sets()
    with contextlib.nullcontext() if forks is None else forks.in_place_of_python():
        ray.init(
            address="local",
            num_cpus=config.num_cpus or available_cpus(),
            num_gpus=None if config.num_gpus is None else math.ceil(config.num_gpus),
            include_dashboard=False,
            object_store_memory=OBJECT_STORE_BYTES,
            _temp_dir=str(temp_dir),
            **quiet,
        )


def _inherit_what_tune_sets() -> None:
    """Has trials inherit from this process the environment variables that Tune would set for each.

    To set them Ray starts another Python, which imports Ray (0.5 s of CPU a trial), and starts no process beforehand.
    """
    os.environ.update(class_cache.DEFAULT_ENV_VARS)
    class_cache.DEFAULT_ENV_VARS.clear()
    class_cache.ENV_VARS_TO_PROPAGATE.clear()


def wait_for_head(address: str, limit_s: float) -> None:
    """Waits until something listens where the cluster's head should be; Ray itself would try for many minutes.

    Args:
        address: `host:port`, or `auto`, which means what `RAY_ADDRESS` says; any other Ray looks after itself.
        limit_s: How long, in seconds.

    Raises:
        SweepError: Nothing does.
    """
    host, _, port = (os.environ.get("RAY_ADDRESS", "") if address == "auto" else address).rpartition(":")
    if "/" in host or not host or not port.isdecimal():
        return
    began, told = time.monotonic(), False
    while True:
        try:
            socket.create_connection((host.strip("[]"), int(port)), timeout=5.0).close()
            return
        except OSError as error:
            if time.monotonic() - began >= limit_s:
                raise _no_cluster(f"{host}:{port}", error.strerror or str(error)) from None
        if not told:
            emit(Phase(text=f"waiting for Ray's head at {host}:{port}"))
            told = True
        time.sleep(_LOOK_S)


def _no_cluster(address: str, reason: str) -> SweepError:
    return SweepError(
        f"no Ray cluster answers at {address} ({reason}); start one with `ray start --head`, "
        "or leave out --ray-address for a Ray of this machine"
    )


def wait_for_nodes(expected: int, limit_s: float) -> None:
    """Waits until so many nodes of the cluster are alive, and says how many are, whenever that changes.

    Args:
        expected: Nodes.
        limit_s: How long, in seconds.

    Raises:
        SweepError: Fewer came.
    """
    began, told = time.monotonic(), 0
    while (alive := len(alive_nodes())) < expected:
        if time.monotonic() - began >= limit_s:
            raise SweepError(
                f"{alive} of {expected} Ray nodes came within {limit_s:g} s; look why the others did not start (their "
                "logs, quota), ask for fewer with ray_nodes, or give them longer with ray_wait_s"
            )
        if alive != told:
            emit(Phase(text=f"waiting for Ray nodes: {alive} of {expected}"))
            told = alive
        time.sleep(_LOOK_S)


def plan(config: SweepConfig, process_bytes: float) -> Packing:
    """Lays the population over what Ray has, node by node.

    Args:
        config: The sweep's.
        process_bytes: Memory of each process of a trial.

    Raises:
        SweepError: It has no CPU.
    """
    nodes = [size(alive) for alive in alive_nodes()]
    if config.ray_address is None:  # Ray's own word is of the whole machine, whatever else runs there
        nodes = [replace(node, memory_bytes=available_memory()) for node in nodes]
    if not any(node.cpus for node in nodes):
        raise SweepError("the Ray cluster has no CPUs to train on; start its nodes with `ray start --num-cpus`")
    return pack(
        config.num_tune_samples,
        nodes,
        max_cpus=config.num_cpus,
        max_gpus=config.num_gpus,
        num_env_runners=config.num_env_runners,
        process_bytes=process_bytes,
    )


def alive_nodes() -> list[dict[str, Any]]:
    """Returns the nodes that Ray does not miss, as it describes them."""
    return [node for node in ray.nodes() if node["Alive"]]


def size(node: dict[str, Any]) -> Node:
    """Returns what trials may use of a node that Ray describes."""
    resources: dict[str, float] = node["Resources"]
    return Node(
        cpus=int(resources.get("CPU", 0)),
        gpus=float(resources.get("GPU", 0.0)),
        memory_bytes=float(resources.get("memory", 0.0)),
    )


def available_memory() -> float:
    """Bytes of memory that this process may still use, by the machine and by its control group."""
    available = float(psutil.virtual_memory().available)
    limit, used = Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory.current")
    try:
        return min(available, float(limit.read_text()) - float(used.read_text()))
    except (OSError, ValueError):  # no control group, or "max"
        return available
