"""Many jobs watched by one worker of type `azure-ml`: its memory and how often it asks, over time.

The workspace is the tests' emulator, and each job prints a line every 5 s and trains nothing. Writes a plot, and prints
a table and one line of JSON:

    python benchmarks/aml_watch.py --jobs 50 --minutes 2 --plot docs/images/aml_watch.png
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
import psutil
import stamina

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from aml_bed import Emulator, running_emulator
from aml_worker_bed import POOL, Bed, GuardedServer, project
from waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Sequence

EVERY_S = 5.0
AT_ONCE = 2
CLUSTER = "many-nodes"


@dataclass(frozen=True)
class Sample:
    """The worker at one time.

    Attributes:
        at_s: Since the first run was asked for.
        running: Jobs that run.
        memory_mb: Resident memory of the worker's process.
        threads: Of it.
        requests_s: Requests to Azure a second since the sample before.
    """

    at_s: float
    running: int
    memory_mb: float
    threads: int
    requests_s: float


def main(arguments: Sequence[str] | None = None) -> int:
    """Measures, and says what was found."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--jobs", type=int, default=50)
    parser.add_argument("--minutes", type=float, default=6.0, help="to watch after all jobs run")
    parser.add_argument("--poll-interval-s", type=float, default=10.0, help="as the pool has it")
    parser.add_argument("--plot", type=Path, help="a PNG to write")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory(prefix="aml-watch-") as folder:
        samples, kinds = measure(Path(folder), options.jobs, options.minutes * 60.0, options.poll_interval_s)
    found = summary(samples, options.jobs, options.poll_interval_s)
    if options.plot:
        plot(samples, options.plot)
    print(f"{'seconds':>8} {'running':>8} {'MB':>8} {'threads':>8} {'requests/s':>11}")
    for one in samples[:: max(1, len(samples) // 20)]:
        print(f"{one.at_s:8.0f} {one.running:8d} {one.memory_mb:8.1f} {one.threads:8d} {one.requests_s:11.2f}")
    print("requests while all ran:")
    for kind, count in kinds.most_common():
        print(f"{count:8d}  {kind}")
    print(json.dumps(found))
    return 0


def summary(samples: list[Sample], jobs: int, poll_interval_s: float) -> dict[str, Any]:
    """Returns what the samples come to while all jobs ran."""
    watched = [sample for sample in samples if sample.running >= jobs]
    if not watched:
        print(f"never did all {jobs} jobs run; see the samples", file=sys.stderr)
        watched = samples
    third = max(1, len(watched) // 3)
    return {
        "jobs": jobs,
        "most_running": max(one.running for one in watched),
        "poll_interval_s": poll_interval_s,
        "watched_s": round(watched[-1].at_s - watched[0].at_s),
        "memory_mb_first_third": round(_mean([one.memory_mb for one in watched[:third]]), 1),
        "memory_mb_last_third": round(_mean([one.memory_mb for one in watched[-third:]]), 1),
        "threads_most": max(one.threads for one in watched),
        "requests_s": round(_mean([one.requests_s for one in watched]), 2),
    }


def measure(folder: Path, jobs: int, watch_s: float, poll_interval_s: float) -> tuple[list[Sample], Counter[str]]:
    """Returns the samples of a worker, and what it asked for while all jobs ran."""
    password = "of-the-benchmark"
    with (
        running_emulator(folder / "emulator", phase=0.1, grace=1.0) as emulator,
        GuardedServer(folder / "prefect", f"admin:{password}") as server,
    ):
        secret = emulator.set_secret("prefect-auth-string", f"admin:{password}")
        emulator.control("compute", name=CLUSTER, vm_size="Standard_DS4_v2", max_nodes=jobs)
        settings = {
            "api_url": server.api_url,
            "api_auth_secret": secret,
            "identity": "managed",
            "compute": CLUSTER,
            "poll_interval_s": poll_interval_s,
            "command": "i=0; while true; do i=$((i+1)); echo line $i of this job; sleep 5; done",
        }
        bed = Bed(project(folder, emulator, **settings), server, emulator)
        bed.prefect("work-pool", "create", POOL, "--type", "azure-ml")
        bed.prefect("deploy", "--all")
        with bed.worker() as worker:
            return _sampled(bed, psutil.Process(worker.pid), jobs, watch_s)


def _sampled(bed: Bed, worker: psutil.Process, jobs: int, watch_s: float) -> tuple[list[Sample], Counter[str]]:
    samples: list[Sample] = []
    began, asked_before, all_since = time.monotonic(), len(_asked(bed.emulator)), None
    first_of_all = 0
    for number in range(1, jobs + 1):
        _start(bed)
        if number % AT_ONCE == 0:  # a server on SQLite refuses many at once
            wait_until(lambda number=number: len(bed.emulator.jobs()) >= number, "they are submitted", 300.0)
            print(f"{number} jobs", file=sys.stderr, flush=True)
    while all_since is None or time.monotonic() - all_since < watch_s:
        if time.monotonic() - began > watch_s + 600.0:
            break
        time.sleep(EVERY_S)
        states = Counter(job["status"] for job in bed.emulator.control("state")["jobs"].values())
        asked = len(_asked(bed.emulator))
        if states["Running"] >= jobs and all_since is None:
            all_since, first_of_all = time.monotonic(), asked
        now = time.monotonic() - began
        took = now - (samples[-1].at_s if samples else 0.0)
        memory = worker.memory_info().rss / 1e6
        samples.append(Sample(now, states["Running"], memory, worker.num_threads(), (asked - asked_before) / took))
        asked_before = asked
        print(json.dumps(asdict(samples[-1])), file=sys.stderr, flush=True)
    kinds = Counter(f"{one['m']} {_kind(one['path'])}" for one in _asked(bed.emulator)[first_of_all:])
    return samples, kinds


@stamina.retry(on=httpx.TransportError, attempts=5)
def _start(bed: Bed) -> None:
    bed.start()


def _asked(emulator: Emulator) -> list[dict[str, Any]]:
    """The requests for Azure itself; a proxy's CONNECT is none."""
    return [one for one in emulator.requests() if one["m"] != "CONNECT"]


def _kind(path: str) -> str:
    """What is asked for, without whose it is."""
    if "/workspaces/" in path:
        path = path.partition("/workspaces/")[2].partition("/")[2]
    parts = ["{job}" if part.startswith("pf-") or "dcid" in part else part for part in path.split("/")]
    return "/" + "/".join(parts)


def _mean(values: list[float]) -> float:
    return sum(values) / len(values)


def plot(samples: list[Sample], file: Path) -> None:
    """Draws memory and requests over time."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 4.5), layout="constrained")
    above, below = figure.subplots(2, sharex=True)
    minutes = [one.at_s / 60.0 for one in samples]
    above.plot(minutes, [one.memory_mb for one in samples])
    above.set_ylim(0, 1.3 * max(one.memory_mb for one in samples))
    above.set_ylabel("worker's memory, MB")
    above.set_title(f"One worker, up to {max(one.running for one in samples)} running jobs")
    below.plot(minutes, [one.requests_s for one in samples], label="requests to Azure a second")
    below.plot(minutes, [one.running / 10.0 for one in samples], label="running jobs, tens", linestyle="--")
    below.set_ylim(0, 1.3 * max(one.requests_s for one in samples))
    below.set_xlabel("minutes")
    below.legend()
    file.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(file, dpi=110)


if __name__ == "__main__":
    sys.exit(main())
