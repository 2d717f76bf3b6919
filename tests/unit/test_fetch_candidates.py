import math
import os
import random
from pathlib import Path

import pytest

from plato_core.errors import ConfigError
from plato_core.fetch import TopRun, best_candidates
from plato_core.reading import reading_uri
from plato_core.selection import RunRecord


def trial(run_id: str, value: float, status: str = "FINISHED") -> RunRecord:
    return RunRecord(run_id, run_id, status, 0, None, {"reward": value})


def test_only_the_best_of_many_runs_are_kept_the_best_first() -> None:
    runs = [trial(f"r{number:04}", float(number)) for number in range(1000)]
    runs += [trial(f"f{number:04}", 5000.0 + number, "FAILED") for number in range(1000)]
    runs += [trial(f"n{number:04}", math.nan) for number in range(1000)]
    random.Random(0).shuffle(runs)
    best, total = best_candidates(iter(runs), "metrics.reward", "max", 3)
    assert total == 3000
    assert [run.run_id for run in best[:6]] == ["f0999", "f0998", "f0997", "r0999", "r0998", "r0997"]
    assert all(math.isnan(run.metrics["reward"]) for run in best[6:])
    assert len(best) == 9


def test_the_lowest_are_the_best_of_mode_min() -> None:
    runs = [trial(f"r{number}", float(number)) for number in (5, 3, 9, 1)]
    best, _ = best_candidates(runs, "reward", "min", 2)
    assert [run.run_id for run in best] == ["r1", "r3"]


def test_the_store_is_the_argument_then_platos_then_mlflows_variable() -> None:
    both = {"PLATO_TRACKING_URI": "http://plato", "MLFLOW_TRACKING_URI": "http://mlflow"}
    assert reading_uri("http://given", both) == "http://given"
    assert reading_uri(None, both) == "http://plato"
    assert reading_uri(None, {"MLFLOW_TRACKING_URI": "http://mlflow"}) == "http://mlflow"


def test_a_store_that_is_no_file_is_refused_and_not_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=r"sqlite:///mlflow.db' does not exist"):
        reading_uri(None, {})
    with pytest.raises(ConfigError, match=r"elsewhere/runs.db"):
        reading_uri("sqlite:///elsewhere/runs.db", {})
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "mlflow.db").touch()
    assert reading_uri(None, {}) == "sqlite:///mlflow.db"


def test_a_top_run_is_a_path_to_its_checkpoint(tmp_path: Path) -> None:
    top = TopRun("r1", 475.0, tmp_path / "r1" / "checkpoint_000012", 12)
    assert os.fspath(top) == str(top) == str(top.checkpoint_path)
    assert Path(top).name == "checkpoint_000012"
