"""Fifty jobs of Azure ML watched by one worker, as `benchmarks/aml_watch.py` measures it: `make soak`."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))

from aml_watch import measure, summary

JOBS, POLL_S, WATCH_S = 50, 10.0, 300.0
pytestmark = pytest.mark.timeout(2400)


def test_fifty_jobs_are_watched_in_even_memory_and_with_two_requests_a_poll_each(tmp_path: Path) -> None:
    samples, kinds = measure(tmp_path, JOBS, WATCH_S, POLL_S)
    found = summary(samples, JOBS, POLL_S)
    print(found, kinds)
    assert found["most_running"] >= JOBS
    assert found["memory_mb_last_third"] <= 1.05 * found["memory_mb_first_third"]
    assert found["requests_s"] <= 1.1 * 2 * JOBS / POLL_S  # each job's state and the news of its log
