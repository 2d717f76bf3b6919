import math
import random
import re
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, cast

import pytest
from mlflow.exceptions import MlflowException

from plato_core.errors import TrackingError
from plato_core.selection import Mode, RunRecord, rank_key
from plato_core.tracking import leading
from plato_core.tracking.leading import leading_runs

_CONDITION = re.compile(r"metrics\.(\S+) (>=|<=|>|<) (-?[\d.]+)")
_COMPARISONS: dict[str, Callable[[float, float], bool]] = {
    ">": lambda a, b: a > b,
    ">=": lambda a, b: a >= b,
    "<": lambda a, b: a < b,
    "<=": lambda a, b: a <= b,
}


class Page(list[Any]):
    token: str | None = None


@dataclass
class Store:
    """A store as MLflow's own: NaN is held as 0, an infinity as the largest number; the newest come first."""

    runs: list[RunRecord]
    tracking_uri: str = "fake"
    questions: int = 0
    error: Exception | None = None
    can_sort: bool = True

    def __post_init__(self) -> None:
        self.runs = sorted(self.runs, key=lambda run: (run.start_time or 0, run.run_id), reverse=True)

    def search_runs(
        self, experiment_ids: list[str], filter_string: str, max_results: int, order_by: list[str], page_token: str
    ) -> Page:
        self.questions += 1
        if self.error:
            raise self.error
        found = _CONDITION.fullmatch(filter_string)
        assert found, filter_string
        name, compare, bound = found.group(1).strip("`"), _COMPARISONS[found.group(2)], float(found.group(3))
        kept = [run for run in self.runs if name in run.metrics and compare(_held(run.metrics[name]), bound)]
        if order_by and self.can_sort:
            kept.reverse()
        start = int(page_token or 0)
        page = Page(_as_mlflow(run) for run in kept[start : start + max_results])
        page.token = str(start + max_results) if len(kept) > start + max_results else None
        return page


def _held(value: float) -> float:
    return 0.0 if math.isnan(value) else max(-sys.float_info.max, min(sys.float_info.max, value))


def _as_mlflow(run: RunRecord) -> Any:
    info = SimpleNamespace(
        run_id=run.run_id, run_name=run.name, status=run.status, start_time=run.start_time, end_time=None
    )
    metrics = {name: value if math.isnan(value) else _held(value) for name, value in run.metrics.items()}
    return SimpleNamespace(info=info, data=SimpleNamespace(metrics=metrics, params={}, tags=run.tags))


def trials(values: list[float], name: str = "reward") -> list[RunRecord]:
    """Trials that started in the order of `values`."""
    tags = {"mlflow.parentRunId": "p"}
    numbers = random.Random(1).sample(range(10 * len(values)), len(values))
    return [
        RunRecord(f"r{number:06}", "t", "FINISHED", start, None, {name: value}, {}, tags)
        for start, (number, value) in enumerate(zip(numbers, values, strict=True))
    ]


def groups(store: Store, mode: Mode = "max", metric: str = "reward") -> Iterator[list[RunRecord]]:
    return (list(group) for group in leading_runs(cast(Any, store), "1", metric, mode))


def assert_lead(group: list[RunRecord], runs: list[RunRecord], mode: Mode) -> None:
    """Whatever is not in the group ranks after all that is."""
    keys = {run.run_id: key for run in runs if (key := rank_key(run, "reward", mode)) is not None}
    inside = {run.run_id for run in group} & set(keys)
    assert inside
    outside = [key for run_id, key in keys.items() if run_id not in inside]
    assert not outside or max(keys[run_id] for run_id in inside) < min(outside)


def _values(kind: str, count: int) -> list[float]:
    draw = random.Random(7)
    match kind:
        case "random":
            return [draw.gauss(-200.0, 100.0) for _ in range(count)]
        case "rising":
            return [float(number) for number in range(count)]
        case "falling":
            return [-float(number) for number in range(count)]
        case "falling ever slower":
            return [math.exp(-number / 3000.0) for number in range(count)]
        case "saturated":
            return [min(500.0, draw.uniform(0.0, 800.0)) for _ in range(count)]
        case "two kinds":
            return [draw.uniform(0, 500.0) for _ in range(count // 2)] + [draw.uniform(-500.0, -60.0)] * (count // 2)
        case "with unknown ones":
            odd = [math.nan, math.inf, -math.inf]
            return [draw.choice(odd) if draw.random() < 0.01 else draw.uniform(-9.0, 9.0) for _ in range(count)]
        case _:
            return [1.0] * count


KINDS = (
    "random", "rising", "falling", "falling ever slower", "saturated", "two kinds", "with unknown ones", "all the same",
)  # fmt: skip


@pytest.mark.parametrize("mode", ["max", "min"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_few_questions_find_those_that_lead(kind: str, mode: Mode) -> None:
    runs = trials(_values(kind, 10_000))
    store = Store(runs)
    first = next(groups(store, mode))
    assert 0 < len(first) <= 100
    assert_lead(first, runs, mode)
    assert store.questions <= 25


@pytest.mark.parametrize("mode", ["max", "min"])
@pytest.mark.parametrize("kind", KINDS)
def test_each_group_leads_and_holds_the_one_before(kind: str, mode: Mode) -> None:
    runs = trials(_values(kind, 2_000))
    before: set[str] = set()
    for group in groups(Store(runs), mode):
        assert_lead(group, runs, mode)
        ranked = {run.run_id for run in group if rank_key(run, "reward", mode)}
        assert before <= ranked or len(ranked) <= len(before)
        before = ranked


def test_equals_are_the_first_to_start_also_where_the_store_does_not_sort() -> None:
    runs = trials([500.0] * 1_000)
    sorted_store = next(groups(Store(runs)))
    assert {run.start_time for run in sorted_store} == set(range(24))
    for group in groups(Store(runs, can_sort=False)):
        assert_lead(group, runs, "max")


def test_runs_that_are_no_trials_and_runs_without_the_metric_do_not_count() -> None:
    runs = trials([float(number) for number in range(500)])
    parents = [RunRecord(f"p{number}", "p", "FINISHED", 10_000 + number, None, {"reward": 1e9}) for number in range(50)]
    others = [
        RunRecord(f"o{number}", "o", "RUNNING", 20_000 + number, None, {}, {}, {"mlflow.parentRunId": "p"})
        for number in range(1_000)
    ]
    first = next(groups(Store(runs + parents + others)))
    assert_lead(first, runs, "max")


def test_a_metric_with_a_slash_is_escaped_and_extreme_values_are_written_out() -> None:
    runs = trials([10.0 ** random.Random(number).randint(-300, 300) for number in range(1_000)], "hp/lr")
    first = next(groups(Store(runs), "min", "metrics.hp/lr"))
    assert min(run.metrics["hp/lr"] for run in first) == min(run.metrics["hp/lr"] for run in runs)


def test_nothing_leads_where_there_are_no_values() -> None:
    assert list(groups(Store([]))) == []
    assert list(groups(Store(trials([math.nan] * 300)))) == []


def test_a_store_that_refuses_the_filter_is_asked_once() -> None:
    store = Store([], error=MlflowException("escaped metric names are not supported", error_code=1000))
    assert list(groups(store)) == []
    assert store.questions == 1


def test_a_store_that_is_away_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    store = Store([], error=ConnectionError("away"))
    monkeypatch.setattr(leading, "runs_page", _away)
    with pytest.raises(TrackingError):
        list(groups(store))


def _away(*_: Any, **__: Any) -> Any:
    raise TrackingError("away") from ConnectionError("away")
