"""Runs the emulator until it is told to end: `python -m aml_emulator --folder FOLDER`, from `tests/`."""

from __future__ import annotations

import argparse
import json
import os
import secrets
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path

from aml_emulator import processes
from aml_emulator.arm import Arm
from aml_emulator.artifacts import Artifacts
from aml_emulator.blob import BlobStore
from aml_emulator.certificates import make_certificates
from aml_emulator.cloud import ARTIFACTS, DEFAULT_STORE
from aml_emulator.control import Control
from aml_emulator.faults import Faults
from aml_emulator.history import History
from aml_emulator.job_environment import World
from aml_emulator.jobs_api import Jobs
from aml_emulator.messages import Answer, Request
from aml_emulator.mlflow_api import MlflowApi
from aml_emulator.mlflow_limits import MlflowLimits
from aml_emulator.mlflow_server import MlflowServer
from aml_emulator.proxy import proxy_face
from aml_emulator.record import Record
from aml_emulator.router import Router
from aml_emulator.runner import Pace, Runner
from aml_emulator.server import plain_server, tls_server
from aml_emulator.state import State
from aml_emulator.tokens import Tokens


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m aml_emulator", description=__doc__)
    parser.add_argument("--folder", type=Path, required=True, help="for all of its data; empty")
    parser.add_argument("--phase", type=float, default=0.1, help="seconds in each state before a job runs")
    parser.add_argument(
        "--grace", type=float, default=20.0, help="seconds between SIGTERM and SIGKILL of a cancelled job"
    )
    parser.add_argument("--token-seconds", type=float, default=3600.0, help="how long tokens last")
    parser.add_argument("--image-home", type=Path, help="a folder: what images have in the home folder of their user")
    parser.add_argument("--node-cpus", type=int, help="CPUs of each node of a Ray distribution")
    parser.add_argument("--datastore-auth", default="sas", choices=["key", "sas", "identity"], help="of the datastores")
    parser.add_argument("--reject-ray-on", default="", help="an api-version that refuses distribution Ray; * is any")
    parser.add_argument(
        "--mlflow-per-second", type=int, default=0, help="MLflow calls a second before 429; 0 is any number"
    )
    parser.add_argument("--die-with-parent", action="store_true", help="end when standard input is closed")
    return parser.parse_args()


def _stop_at_the_end_of_input(stop: threading.Event) -> None:
    while os.read(0, 1024):  # not `sys.stdin`, whose lock the interpreter needs when it ends
        pass
    stop.set()


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as one:
        return one.getsockname()[1]


def main() -> None:
    """Starts all, writes `ready.json`, waits for a signal, and leaves nothing running."""
    options = _arguments()
    root: Path = options.folder.resolve()
    root.mkdir(parents=True, exist_ok=True)
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    if options.die_with_parent:
        threading.Thread(target=_stop_at_the_end_of_input, args=(stop,), daemon=True).start()

    client_secret = os.environ.get("AML_EMULATOR_CLIENT_SECRET") or secrets.token_urlsafe(24)
    state, tokens, faults = State(root), Tokens(options.token_seconds, client_secret), Faults()
    for container in (ARTIFACTS, DEFAULT_STORE):
        state.container(container).mkdir(parents=True, exist_ok=True)
    reaper = subprocess.Popen(
        [sys.executable, "-m", "aml_emulator.reaper", state.id], cwd=Path(__file__).parents[1], stdin=subprocess.PIPE
    )
    mlflow = MlflowServer(root, _free_port(), processes.marker(state.id))
    try:
        _serve(options, root, state, tokens, faults, mlflow, stop)
    finally:
        processes.kill(processes.NODE, f"{state.id}/")
        mlflow.stop()
        assert reaper.stdin
        reaper.stdin.close()
        reaper.wait()


def _serve(
    options: argparse.Namespace,
    root: Path,
    state: State,
    tokens: Tokens,
    faults: Faults,
    mlflow: MlflowServer,
    stop: threading.Event,
) -> None:
    ca_file, certificate = make_certificates(root / "certs")
    record, artifacts = Record(root / "requests.jsonl"), Artifacts(state, tokens)
    limits = MlflowLimits(options.mlflow_per_second)
    routers: list[Router] = []  # the ports are known before what answers on them

    def answer(request: Request) -> Answer:
        return routers[0].answer(request)

    tls = tls_server(certificate, answer, faults, record)
    face = proxy_face(record, tokens, faults, Control(state, tokens, faults), tls.server_address[1])
    plain = plain_server(face)
    world = World(plain.server_address[1], ca_file, options.image_home)
    pace = Pace(options.phase, options.grace, options.node_cpus)
    runner = Runner(state, tokens, mlflow, limits, artifacts, world, pace)
    arm = Arm(state, tokens, Jobs(state, runner, options.reject_ray_on), options.datastore_auth)
    history, api = History(state, tokens, artifacts, mlflow), MlflowApi(state, tokens, mlflow, limits)
    routers.append(Router(state, tokens, arm, history, api, BlobStore(state, tokens)))
    for server in (tls, plain):
        threading.Thread(target=server.serve_forever, daemon=True).start()
    mlflow.wait_ready()
    ports = {"tls": tls.server_address[1], "http": plain.server_address[1], "pid": os.getpid()}
    partial = root / "ready.json.part"
    partial.write_text(json.dumps(ports))
    partial.rename(root / "ready.json")
    stop.wait()


if __name__ == "__main__":
    main()
