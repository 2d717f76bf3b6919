"""Ray's workers are forks of a process that has imported torch, and plain Python where there is none to fork."""

import json
import os
import select
import signal
import subprocess
import sys
import tempfile
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import ray

from plato_core.sweep.forkserver import ForkServer, available

pytestmark = pytest.mark.skipif(not available(Path("/tmp")), reason="no forks on this machine")

WORKER = "default_worker.py"  # what Ray's is called
TELLING = """
import json, os, sys
print(json.dumps({
    "parent": os.getppid(), "arguments": sys.argv, "name": __name__, "folder": os.getcwd(), "path": sys.path[0],
    "variable": os.environ.get("OF_THE_CLIENT"), "torch": "torch" in sys.modules, "ray": "ray" in sys.modules,
    "group": os.getpgid(0), "read": sys.stdin.read(),
}))
sys.exit(3)
"""


@pytest.fixture
def folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="plato-") as folder:  # a socket's path is short
        yield Path(folder)


@pytest.fixture
def server(folder: Path) -> Iterator[ForkServer]:
    server = ForkServer(folder)
    yield server
    server.process.kill()
    server.process.wait()


def _run(server: ForkServer, script: Path, *arguments: str, cwd: Path) -> subprocess.Popen[str]:
    with server.in_place_of_python():
        python = sys.executable
    return subprocess.Popen(
        [python, "-u", str(script), *arguments],
        cwd=cwd,
        env=os.environ | {"OF_THE_CLIENT": "yes"},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def _told(process: subprocess.Popen[str]) -> dict[str, object]:
    out, err = process.communicate("a word", timeout=60)
    assert out, err
    return json.loads(out)


def test_a_fork_is_what_python_would_be_and_has_torch_already(server: ForkServer, folder: Path, tmp_path: Path) -> None:
    script = folder / WORKER
    script.write_text(TELLING)

    told = _told(_run(server, script, "--one", "two", cwd=tmp_path))

    assert told == {
        "parent": server.process.pid,
        "arguments": [str(script), "--one", "two"],
        "name": "__main__",
        "folder": str(tmp_path),
        "path": str(folder),
        "variable": "yes",
        "torch": True,
        "ray": False,
        "group": os.getpgid(0),
        "read": "a word",
    }


def test_an_error_is_shown_where_python_would_show_it(server: ForkServer, folder: Path, tmp_path: Path) -> None:
    script = folder / WORKER
    script.write_text("raise ValueError('no such thing')")

    _, err = _run(server, script, cwd=tmp_path).communicate(timeout=60)

    assert "ValueError: no such thing" in err


def test_who_stands_in_ends_when_the_fork_is_killed(server: ForkServer, folder: Path, tmp_path: Path) -> None:
    script = folder / WORKER
    script.write_text("import os, time; print(os.getpid(), flush=True); time.sleep(300)")
    process = _run(server, script, cwd=tmp_path)
    assert process.stdout is not None
    fork = int(process.stdout.readline())
    assert process.poll() is None

    os.kill(fork, signal.SIGKILL)

    process.communicate(timeout=60)


@pytest.mark.parametrize(("name", "served"), [(WORKER, False), ("telling.py", False), ("telling.py", True)])
def test_without_a_server_and_for_anything_else_it_is_python(
    server: ForkServer, folder: Path, tmp_path: Path, name: str, served: bool
) -> None:
    script = folder / name
    script.write_text(TELLING)
    if not served:
        server.process.kill()
        server.process.wait()

    process = _run(server, script, cwd=tmp_path)
    told = _told(process)

    assert (told["torch"], told["parent"], process.returncode) == (False, os.getpid(), 3)


def test_the_server_ends_with_the_process_that_started_it(folder: Path) -> None:
    script = (
        "import os, sys; from pathlib import Path; from plato_core.sweep.forkserver import ForkServer\n"
        "server = ForkServer(Path(sys.argv[1])); print(server.process.pid, flush=True); os.kill(os.getpid(), 9)"
    )
    out = subprocess.run([sys.executable, "-c", script, str(folder)], stdout=subprocess.PIPE, timeout=60, check=False)

    watched = os.pidfd_open(int(out.stdout))  # type: ignore[attr-defined]  # Linux alone has it
    assert select.select([watched], [], [], 30.0)[0]
    os.close(watched)


def test_no_command_is_put_where_nothing_may_be_executed(monkeypatch: pytest.MonkeyPatch) -> None:
    mounted = types.SimpleNamespace(f_flag=os.ST_NOEXEC)  # only an administrator can mount a folder so
    monkeypatch.setattr(os, "statvfs", lambda folder: mounted)
    assert not available(Path("/tmp"))


def test_rays_workers_are_forks_and_one_that_dies_is_followed_by_another(server: ForkServer, folder: Path) -> None:
    class Trial:
        def told(self) -> tuple[int, int]:
            return os.getpid(), os.getppid()

    python = sys.executable
    with server.in_place_of_python():
        ray.init(
            address="local", num_cpus=1, include_dashboard=False, log_to_driver=False, object_store_memory=2**27,
            _temp_dir=str(folder / "ray"),
        )  # fmt: skip
    assert sys.executable == python
    try:
        actor: Any = ray.remote(max_restarts=1, max_task_retries=1, num_cpus=0.5)(Trial)
        trials = [actor.remote() for _ in range(2)]
        told = ray.get([trial.told.remote() for trial in trials], timeout=90)
        assert {parent for _, parent in told} == {server.process.pid}
        first = told[0][0]
        os.kill(first, signal.SIGKILL)
        again = ray.get(trials[0].told.remote(), timeout=90)
    finally:
        ray.shutdown()

    assert again[0] != first
    assert again[1] == server.process.pid


TUNE = """
import json, os, sys
from pathlib import Path
from plato_core.sweep.environment import prepare_environment
prepare_environment(local=True)
from plato_core.sweep.forkserver import ForkServer
folder = Path(sys.argv[1])
server = ForkServer(folder)
import ray
from plato_core.config import SweepConfig
from plato_core.sweep import cluster
mutations = {"lr": {"type": "loguniform", "low": 1e-5, "high": 1e-3}}
config = SweepConfig(num_cpus=1, max_iterations=1, mutations=mutations)
cluster.connect(config, folder / "ray", folder, server)
from ray.tune.execution.class_cache import _ActorClassCache
class Trial:
    def told(self):
        return os.getppid(), os.environ.get("PL_DISABLE_FORK"), os.environ.get("RAY_CHDIR_TO_TRIAL_DIR")
trial = _ActorClassCache().get(Trial).options(num_cpus=0.5).remote()
print(json.dumps([server.process.pid, ray.get(trial.told.remote(), timeout=90)]))
ray.shutdown()
"""


def test_the_trials_that_tune_starts_are_forks_and_have_the_variables_that_it_sets(folder: Path) -> None:
    script = folder / "tune.py"
    script.write_text(TUNE)
    command = [sys.executable, str(script), str(folder)]
    ended = subprocess.run(command, stdout=subprocess.PIPE, text=True, timeout=120, check=True)

    server, told = json.loads(ended.stdout.splitlines()[-1])

    assert told == [server, "1", "0"]
