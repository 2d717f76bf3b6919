"""A webhook is called when a sweep ends, by a real Prefect server with the shipped automations."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from prefect_server import PrefectServer
from stack import ROOT
from waiting import wait_until

TRICKY = 'lr: "1e-3" is no number\nand </script> \\ {{ 1 + 1 }} äöü'
# Each flow run costs a second: they are all in one process.
FLOWS = f"""
import sys, time
from prefect import flow

@flow
def sweep(how):
    if how == "fail":
        raise ValueError({TRICKY!r})
    if how == "crash":
        raise SystemExit(3)
    if how == "time out":
        time.sleep(60)

@flow
def other():
    raise ValueError("not a sweep")

for how in sys.argv[1:]:
    changed = other if how == "other" else sweep.with_options(
        flow_run_name=how, timeout_seconds=1 if how == "time out" else None
    )
    try:
        changed(**({{}} if how == "other" else {{"how": how}}))
    except BaseException as error:
        print(repr(error))
"""


class Receiver(ThreadingHTTPServer):
    """Whom the webhook calls; it keeps what it gets."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.got: list[tuple[str, str, dict[str, Any]]] = []

    def url(self, path: str) -> str:
        return f"http://127.0.0.1:{self.server_port}{path}"

    def states(self, path: str) -> dict[str, str]:
        """Returns the state that each run was told to be in, by the run's name."""
        return {body["run"]: body["state"] for at, _, body in self.got if at == path}


class _Handler(BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        assert isinstance(self.server, Receiver)
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.got.append((self.path, self.headers["Content-Type"], json.loads(body)))
        self.send_response(204)
        self.end_headers()

    def log_message(self, format: str, *args: Any) -> None:
        pass


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PrefectServer]:
    with PrefectServer(tmp_path_factory.mktemp("prefect")) as server:
        yield server


@pytest.fixture(scope="module")
def receiver() -> Iterator[Receiver]:
    with Receiver() as receiver:
        thread = threading.Thread(target=receiver.serve_forever, daemon=True)
        thread.start()
        yield receiver
        receiver.shutdown()


@pytest.fixture(scope="module")
def flows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    (path := tmp_path_factory.mktemp("flows") / "flows.py").write_text(FLOWS)
    return path


def automations(server: PrefectServer) -> dict[str, bool]:
    return {one["name"]: one["enabled"] for one in server.request("POST", "/automations/filter", {})}


def test_the_webhook_hears_of_each_end_of_a_sweep(server: PrefectServer, receiver: Receiver, flows: Path) -> None:
    done = server.run("-m", "plato_core.cli", "notify", cwd=ROOT, text_in=receiver.url("/a?token=hidden") + "\n")
    assert (done.returncode, done.stdout) == (0, "the webhook is called when a sweep has failed or completed\n")
    assert "hidden" not in done.stderr
    assert automations(server) == {"sweep failed": True, "sweep completed": True}

    ran = server.run(str(flows), "other", "fail", "crash", "time out", "complete", cwd=flows.parent)
    expected = {"fail": "Failed", "crash": "Crashed", "time out": "TimedOut", "complete": "Completed"}
    wait_until(lambda: len(receiver.got) >= len(expected), f"all calls came: {ran.stdout} {receiver.got}")
    assert receiver.states("/a?token=hidden") == expected

    runs = {run["name"]: run for run in server.request("POST", "/flow_runs/filter", {})}
    for _, content_type, body in receiver.got:
        run = runs[body["run"]]
        assert content_type == "application/json"
        assert body["message"] == (run["state"]["message"] or "")
        assert body["url"] == f"{server.api_url.removesuffix('/api')}/runs/flow-run/{run['id']}"
        assert body["text"].startswith(f"sweep {run['name']}: {run['state']['name']}. ")
        assert body["deployment"] == ""
        assert 0 <= body["seconds"] < 60
    assert TRICKY in next(body["message"] for _, _, body in receiver.got if body["run"] == "fail")


def test_a_second_time_replaces_the_first(server: PrefectServer, receiver: Receiver, flows: Path) -> None:
    before = len(receiver.got)
    command = ("-m", "plato_core.cli", "notify", "--on", "failed")
    done = server.run(*command, cwd=ROOT, text_in=receiver.url("/b"))
    assert done.returncode == 0, done.stderr
    assert automations(server) == {"sweep failed": True, "sweep completed": False}
    server.run(str(flows), "complete", "fail", cwd=flows.parent)
    wait_until(lambda: len(receiver.got) > before, "the call came")
    assert receiver.states("/b") == {"fail": "Failed"}
    assert len(receiver.got) == before + 1


def test_the_address_is_kept_from_readers(server: PrefectServer, receiver: Receiver) -> None:
    blocks = server.request("POST", "/block_documents/filter", {})
    assert [block["name"] for block in blocks] == ["plato-notify"]
    assert str(receiver.server_port) not in json.dumps(blocks)


def test_the_file_is_one_that_prefect_takes(server: PrefectServer) -> None:
    off = server.run("-m", "plato_core.cli", "notify", "--off", cwd=ROOT)
    assert off.stdout == "no webhook is called any more: 2 automations removed\n"
    assert automations(server) == {}
    assert server.request("POST", "/block_documents/filter", {}) == []
    file = "deployments/automations/notify.yaml"
    done = server.run("-m", "prefect", "automation", "create", "--from-file", file, cwd=ROOT)
    assert done.returncode == 0, done.stdout
    assert automations(server) == {"sweep failed": True, "sweep completed": True}


def test_automations_of_the_same_names_that_call_something_else_are_left_alone(
    server: PrefectServer, receiver: Receiver
) -> None:
    def everything() -> list[dict[str, Any]]:
        return sorted(server.request("POST", "/automations/filter", {}), key=lambda one: one["created"])

    # Made by hand from the file in the test before.
    by_hand = everything()
    assert sorted(one["name"] for one in by_hand) == ["sweep completed", "sweep failed"]
    done = server.run("-m", "plato_core.cli", "notify", cwd=ROOT, text_in=receiver.url("/c"))
    assert done.returncode == 0, done.stderr
    assert everything()[:2] == by_hand
    assert len(everything()) == 4
    off = server.run("-m", "plato_core.cli", "notify", "--off", cwd=ROOT)
    assert off.stdout == "no webhook is called any more: 2 automations removed\n"
    assert everything() == by_hand


@pytest.mark.parametrize("given", ["hooks.example.com/secret\n", ""])
def test_what_cannot_be_called_is_refused(server: PrefectServer, given: str) -> None:
    done = server.run("-m", "plato_core.cli", "notify", cwd=ROOT, text_in=given)
    assert done.returncode == 2
    assert "no address of a webhook; give one line with https://..." in done.stderr
    assert done.stderr.count("\n") == 1
    assert "secret" not in done.stderr
