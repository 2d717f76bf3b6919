"""What a real Prefect server makes of runs that were heard of, and then no more; with the shipped automation.

The heartbeats are sent by the test, some with a time that has passed: nobody has to wait for five minutes.
"""

from __future__ import annotations

import json
import re
import sqlite3
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from prefect_server import PrefectServer
from stack import ROOT
from thorough import soaked, thorough
from waiting import wait_until

from plato_core import config_yaml
from plato_core.automations import LOST

WITHIN_S = config_yaml.read_mapping(ROOT / LOST)[0]["automations"][0]["trigger"]["within"]
# So long ago the runs were heard of for the first time.
HEARD_S = 150.0
# A server marks none that is overdue when it starts, if it looks before it listens to itself. So it gets time to start.
DUE_S = 30.0
LIVE_FLOW = """
import sys, threading, time
from prefect import flow

@flow
def sweep(busy):
    deadline = time.monotonic() + 600
    while time.monotonic() < deadline:
        sum(range(10**6)) if busy else time.sleep(0.1)

sweep(sys.argv[1] == "busy")
"""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PrefectServer]:
    with PrefectServer(tmp_path_factory.mktemp("prefect")) as server:
        yield server


def install(server: PrefectServer, project: Path = ROOT) -> None:
    """As `plato deploy` does after the deployments, which need a work pool and are another test's."""
    call = "from pathlib import Path; from plato_core.automations import install_lost; install_lost(Path.cwd())"
    done = server.run("-c", call, cwd=project)
    assert done.returncode == 0, done.stderr


def automations(server: PrefectServer) -> list[dict[str, Any]]:
    return server.request("POST", "/automations/filter", {"sort": "NAME_ASC"})


def remove(server: PrefectServer) -> None:
    for one in automations(server):
        server.request("DELETE", f"/automations/{one['id']}")


def flow_of(server: PrefectServer, name: str) -> str:
    return server.request("POST", "/flows/", {"name": name})["id"]


def running(server: PrefectServer, flow: str = "sweep") -> str:
    """A run that is Running, without any process."""
    body = {"flow_id": flow_of(server, flow), "state": {"type": "RUNNING"}}
    return server.request("POST", "/flow_runs/", body)["id"]


def beat(server: PrefectServer, run: str, ago_s: float = 0.0, flow: str = "sweep", event: str = "heartbeat") -> None:
    """A heartbeat as Prefect's engine sends it, or another event of a run."""
    body = {
        "id": str(uuid4()),
        "occurred": (datetime.now(UTC) - timedelta(seconds=ago_s)).isoformat(),
        "event": f"prefect.flow-run.{event}",
        "resource": {"prefect.resource.id": f"prefect.flow-run.{run}"},
        "related": [
            {
                "prefect.resource.id": f"prefect.flow.{flow_of(server, flow)}",
                "prefect.resource.role": "flow",
                "prefect.resource.name": flow,
            }
        ],
    }
    server.request("POST", "/events", [body])


def state(server: PrefectServer, run: str) -> str:
    return server.request("GET", f"/flow_runs/{run}")["state"]["name"]


def set_state(server: PrefectServer, run: str, kind: str, name: str | None = None) -> None:
    body = {"state": {"type": kind, "name": name}, "force": True}
    server.request("POST", f"/flow_runs/{run}/set_state", body)


def database(server: PrefectServer) -> sqlite3.Connection:
    [file] = server.folder.rglob("prefect.db")
    return sqlite3.connect(file, timeout=10.0)


def buckets(server: PrefectServer) -> dict[str, list[tuple[datetime, int]]]:
    """What the automations wait for, by run: since when, and how much of it has come."""
    with closing(database(server)) as opened:
        rows = opened.execute("SELECT bucketing_key, start, count FROM automation_bucket").fetchall()
    found = defaultdict[str, list[tuple[datetime, int]]](list)
    for key, start, count in rows:
        run = json.loads(key)[0].removeprefix("prefect.flow-run.")
        found[run].append((datetime.fromisoformat(start).replace(tzinfo=UTC), count))
    return found


def pass_time(server: PrefectServer, by_s: float) -> None:
    """Makes what a stopped server waits for due so much sooner."""
    moved = ", ".join(
        f"\"{column}\" = strftime('%Y-%m-%d %H:%M:%f000', \"{column}\", '-{by_s} seconds')"
        for column in ("start", "end")
    )
    with closing(database(server)) as opened, opened:
        opened.execute(f"UPDATE automation_bucket SET {moved}")


def say(*what: tuple[Callable[[], None], Callable[[], bool]]) -> None:
    """Says each thing, and again what is not heard: Prefect's server gives an event up when its SQLite file is busy."""
    for tell, _ in what:
        tell()
    for tell, heard in what:
        deadline = time.monotonic() + 120.0
        until = time.monotonic() + 5.0
        while not heard():
            assert time.monotonic() < deadline, f"the automations did not hear {what}"
            if time.monotonic() > until:
                tell()
                until = time.monotonic() + 5.0
            time.sleep(0.1)


@thorough
def test_the_dead_are_marked_and_no_other(server: PrefectServer) -> None:
    dead, living, other, cancelling = running(server), running(server), running(server, "other"), running(server)
    completed, waiting, paused, ended = running(server), running(server), running(server), running(server)
    set_state(server, ended, "CANCELLED")
    set_state(server, cancelling, "CANCELLING")
    install(server)
    began = datetime.now(UTC)

    def beaten(run: str) -> tuple[Callable[[], None], Callable[[], bool]]:
        return lambda: beat(server, run, HEARD_S), lambda: len(buckets(server)[run]) > 0

    def leaves(run: str, kind: str, name: str) -> tuple[Callable[[], None], Callable[[], bool]]:
        def tell() -> None:
            if state(server, run) != name:
                set_state(server, run, kind, name)
            else:  # the event of another state would follow the one that was given up, and wait for it in vain
                beat(server, run, event=name)

        return tell, lambda: not any(count == 0 for _, count in buckets(server)[run])

    beat(server, ended, HEARD_S)  # which came late
    beat(server, other, HEARD_S, "other")
    say(*(beaten(run) for run in (dead, living, completed, waiting, paused, cancelling)))
    say(
        (lambda: beat(server, cancelling, HEARD_S, event="Cancelling"), lambda: len(buckets(server)[cancelling]) == 2),
        leaves(completed, "COMPLETED", "Completed"),
        leaves(waiting, "SCHEDULED", "AwaitingRetry"),
        leaves(paused, "PAUSED", "Paused"),
        (lambda: beat(server, living), lambda: buckets(server)[living][0][0] > began),
    )
    server.stop()
    pass_time(server, WITHIN_S - HEARD_S - DUE_S - (datetime.now(UTC) - began).total_seconds())
    server.start()  # that it finds again what it waited for is a part of this test
    expected = ["Crashed", "Cancelled"]
    wait_until(lambda: [state(server, run) for run in (dead, cancelling)] == expected, "they are marked")
    message = server.request("GET", f"/flow_runs/{dead}")["state"]["message"]
    assert "Retry this run" in message
    assert "plato sweep --resume last" in message
    time.sleep(6.0)  # once more the server looks
    left = [state(server, run) for run in (living, other, completed, waiting, paused, ended)]
    assert left == ["Running", "Running", "Completed", "AwaitingRetry", "Paused", "Cancelled"]


@thorough
def test_installing_again_changes_nothing_and_respects_the_switch(server: PrefectServer, tmp_path: Path) -> None:
    install(server)
    before, other = automations(server)
    install(server)
    assert automations(server) == [before, other]

    server.request("PATCH", f"/automations/{before['id']}", {"enabled": False})
    (folder := tmp_path / LOST.parent).mkdir(parents=True)
    (folder / LOST.name).write_text((ROOT / LOST).read_text().replace("within: 300", "within: 301"))
    install(server, tmp_path)
    after, _ = automations(server)
    assert (after["id"], after["enabled"], after["trigger"]["within"]) == (before["id"], False, 301.0)
    remove(server)


def test_one_of_the_same_name_that_does_something_else_is_left_alone(server: PrefectServer) -> None:
    install(server)
    ours, _ = automations(server)
    own = {key: ours[key] for key in ("name", "trigger")} | {"actions": [{"type": "do-nothing"}]}
    server.request("DELETE", f"/automations/{ours['id']}")
    server.request("POST", "/automations/", own)
    before = automations(server)
    install(server)
    assert len(automations(server)) == 3
    assert all(one in automations(server) for one in before)
    remove(server)


@soaked
@pytest.mark.timeout(500)
def test_a_killed_process_is_marked_and_a_busy_one_beside_it_is_not(server: PrefectServer, tmp_path: Path) -> None:
    """With true heartbeats, the shortest that Prefect has, and a restart of the server between two of them."""
    (folder := tmp_path / LOST.parent).mkdir(parents=True)
    (folder / LOST.name).write_text(re.sub(r"within: \d+", "within: 90", (ROOT / LOST).read_text()))
    install(server, tmp_path)
    (flows := tmp_path / "live.py").write_text(LIVE_FLOW)
    environment = server.environment | {"PREFECT_FLOWS_HEARTBEAT_FREQUENCY": "30"}
    known = {run["id"] for run in server.request("POST", "/flow_runs/filter", {})}

    def runs() -> dict[bool, str]:
        found = server.request("POST", "/flow_runs/filter", {"sort": "START_TIME_ASC"})
        return {run["parameters"]["busy"]: run["id"] for run in found if run["id"] not in known and run["start_time"]}

    processes = [subprocess.Popen([sys.executable, str(flows), how], env=environment) for how in ("idle", "busy")]
    try:
        wait_until(lambda: len(runs()) == 2, "both run")
        [idle, busy] = [runs()[how] for how in (False, True)]
        time.sleep(5.0)
        processes[0].kill()
        killed = time.monotonic()
        server.stop()
        server.start()
        wait_until(lambda: state(server, idle) == "Crashed", "the killed one is marked")
        assert time.monotonic() - killed > 30
        for _ in range(6):
            time.sleep(10.0)
            assert state(server, busy) == "Running"
    finally:
        for process in processes:
            process.kill()
            process.wait()
