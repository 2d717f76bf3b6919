"""Each endpoint of Azure ML that a run asks, with each class of faults in turn: `make soak`.

The suite itself takes one of each class at endpoints by chance (`tests/integration/test_aml_worker.py`). Which
endpoints there are is seen from runs without faults; so a new one is in the matrix by itself.

Each endpoint fails once in nine ways; in three of them also more often than the SDK asks again by itself.

`PLATO_SOAK_ENDPOINT`, `PLATO_SOAK_CLASS` and `PLATO_SOAK_SCENARIO`, regular expressions, choose some of it;
`PLATO_SOAK_GROUPED=1` has all endpoints of a run fail in the same run, for a first look: a class then takes minutes.
What fails for long does so one endpoint at a time all the same: no patience is as long as all of it in a row.
"""

from __future__ import annotations

import os
import random
import re
import subprocess
from collections.abc import Iterator

import pytest
from aml_faults import CLASSES, KEPT, LASTING, OF_A_JOB, OF_HOME, OF_THE_LAPTOP, SCENARIOS, Faulty, running_faulty

SEED = 20261123
pytestmark = pytest.mark.timeout(12_000)


@pytest.fixture(scope="module")
def faulty(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Faulty]:
    with running_faulty(tmp_path_factory.mktemp("faults")) as faulty:
        faulty.learn(os.environ.get("PLATO_SOAK_SCENARIO", ""))
        yield faulty


def test_the_suite_knows_the_endpoints_of_a_run(faulty: Faulty) -> None:
    known = {"job": OF_A_JOB, "home job": OF_HOME}
    for scenario in known.keys() & faulty.asked.keys():
        assert faulty.asked[scenario].keys() >= known[scenario]


@pytest.mark.parametrize("scenario", SCENARIOS)
@pytest.mark.parametrize("kind", CLASSES | LASTING)
def test_every_endpoint_fails(faulty: Faulty, kind: str, scenario: str) -> None:
    """All endpoints of a run, one after the other; each at a request by chance. Says all that failed at its end."""
    chosen = {"PLATO_SOAK_CLASS": kind, "PLATO_SOAK_SCENARIO": scenario}
    if not all(re.search(os.environ.get(name, ""), value) for name, value in chosen.items()):
        pytest.skip("not asked for")
    chance, failed, done = random.Random(f"{SEED} {kind} {scenario}"), [], 0
    wanted = os.environ.get("PLATO_SOAK_ENDPOINT", "")
    endpoints = [one for one in sorted(faulty.asked[scenario]) if re.search(wanted, one)]
    grouped = os.environ.get("PLATO_SOAK_GROUPED") == "1" and kind not in LASTING
    for group in [endpoints] if grouped else [[one] for one in endpoints]:
        skips = {one: chance.randrange(max(1, min(3, faulty.asked[scenario][one] // 2))) for one in group}
        faulty.spoil(skips, kind)
        said = "ok"
        try:
            SCENARIOS[scenario](faulty)
        except (AssertionError, subprocess.TimeoutExpired) as error:
            said = f"FAILED: {str(error)[:3000]}"
            failed.append(f"{kind} at {skips}: {said}")
        missed = faulty.unmet()
        if unmet := set(missed) - (KEPT if scenario not in OF_THE_LAPTOP else set()):
            failed.append(f"{kind} met no request: {sorted(unmet)}")
        done += len(group) - len(missed)
        print(f"{kind}, {scenario}, {skips}: {said}; met no request: {missed}", flush=True)
    print(f"{kind}, {scenario}: {done} of {len(endpoints)} endpoints failed, {len(failed)} complaints")
    assert not failed, "\n\n".join(failed)
