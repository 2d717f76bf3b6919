"""Each endpoint of Azure ML that a run asks, with each class of faults in turn: `make soak`.

The suite itself takes one of each class at endpoints by chance (`tests/integration/test_aml_worker.py`). Which
endpoints there are is seen from runs without faults; so a new one is in the matrix by itself.

`PLATO_SOAK_ENDPOINT` and `PLATO_SOAK_CLASS`, regular expressions, choose some of it; `PLATO_SOAK_GROUPED=1` has all
endpoints of a run fail once each in the same run, for a first look: a class then takes minutes.
"""

from __future__ import annotations

import os
import random
import re
import subprocess
from collections.abc import Iterator

import pytest
from aml_faults import CLASSES, OF_A_JOB, SCENARIOS, Faulty, running_faulty

SEED = 20261123
pytestmark = pytest.mark.timeout(12_000)


@pytest.fixture(scope="module")
def faulty(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Faulty]:
    with running_faulty(tmp_path_factory.mktemp("faults")) as faulty:
        faulty.learn()
        yield faulty


def test_the_suite_knows_the_endpoints_of_a_run(faulty: Faulty) -> None:
    assert faulty.asked["job"].keys() >= OF_A_JOB


@pytest.mark.parametrize("scenario", SCENARIOS)
@pytest.mark.parametrize("kind", CLASSES)
def test_every_endpoint_fails_once(faulty: Faulty, kind: str, scenario: str) -> None:
    """All endpoints of a run, one after the other; each at a request by chance. Says all that failed at its end."""
    if not re.search(os.environ.get("PLATO_SOAK_CLASS", ""), kind):
        pytest.skip("not asked for")
    chance, failed, done = random.Random(f"{SEED} {kind} {scenario}"), [], 0
    wanted = os.environ.get("PLATO_SOAK_ENDPOINT", "")
    endpoints = [one for one in sorted(faulty.asked[scenario]) if re.search(wanted, one)]
    grouped = os.environ.get("PLATO_SOAK_GROUPED") == "1"
    for group in [endpoints] if grouped else [[one] for one in endpoints]:
        skips = {one: chance.randrange(min(3, faulty.asked[scenario][one])) for one in group}
        faulty.spoil(skips, kind)
        said = "ok"
        try:
            getattr(faulty, scenario)()
        except (AssertionError, subprocess.TimeoutExpired) as error:
            said = f"FAILED: {str(error)[:3000]}"
            failed.append(f"{kind} at {skips}: {said}")
        missed = faulty.unmet()
        done += len(group) - len(missed)
        print(f"{kind}, {scenario}, {skips}: {said}; met no request: {missed}", flush=True)
    print(f"{kind}, {scenario}: {done} of {len(endpoints)} endpoints failed once, {len(failed)} runs were spoilt")
    assert not failed, "\n\n".join(failed)
