import io
import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from plato_core.report.curves import MOST_POINTS, Thinned
from plato_core.report.picture import COLOURS, learning_curves
from plato_core.report.progress import SweepFacts, SweepProgress
from plato_core.sweep.events import Exploited, Result


def swept(trials: int, iterations: int, interval: int = 10) -> SweepProgress:
    """A population whose last quarter exploits trial 0 every so often."""
    progress = SweepProgress(SweepFacts(population=trials, stop_reward=475.0, tuned=("lr",)))
    for iteration in range(1, iterations + 1):
        for index in range(trials):
            value = 500.0 * iteration / iterations - index
            progress.apply(
                Result(trial=f"t{index}", iteration=iteration, episode_return=value, metric_value=value), iteration
            )
        if iteration % interval == 0:
            for index in range(trials - trials // 4, trials):
                progress.apply(Exploited(trial=f"t{index}", donor="t0", iteration=iteration), iteration)
    return progress


@given(st.integers(1, 5000), st.integers(1, 60))
def test_a_long_series_is_thinned_out_evenly_and_keeps_its_ends(seen: int, most: int) -> None:
    series: Thinned[int] = Thinned(most)
    for item in range(seen):
        series.add(item)
    items = series.items()
    assert (items[0], items[-1]) == (0, seen - 1)
    assert len(items) <= most + 1
    assert len(items) >= min(seen, most // 2)
    steps = [after - before for before, after in itertools.pairwise(items)]
    assert len(set(steps[:-1])) <= 1  # all alike but the last
    assert not steps or 0 < steps[-1] <= steps[0]


def test_a_curve_has_the_known_returns_and_the_exploits_at_the_trials_own_iterations() -> None:
    progress = SweepProgress(SweepFacts(population=2))
    for index, iteration, value in [(1, 1, 5.0), (0, 1, 1.0), (0, 2, None), (0, 3, 3.0), (0, 3, 9.0), (0, 2, 9.0)]:
        progress.apply(Result(trial=f"t{index}", iteration=iteration, episode_return=value), 0.0)
    progress.apply(Exploited(trial="t0", donor="t1", iteration=3), 0.0)
    by_index = {curve.index: curve for curve in progress.curves()}
    trial_of_t0, trial_of_t1 = 1, 0  # numbered as they appeared
    assert by_index[trial_of_t0].points == ((1, 1.0), (3, 3.0))
    assert by_index[trial_of_t0].exploits == ((3, 9.0, trial_of_t1),)
    assert by_index[trial_of_t1].points == ((1, 5.0),)


def test_a_snapshot_keeps_its_curves_while_the_sweep_goes_on() -> None:
    progress = swept(2, 3)
    before = progress.snapshot()
    progress.apply(Result(trial="t0", iteration=4, episode_return=1.0), 4.0)
    assert [len(curve.points) for curve in before.curves] == [3, 3]
    assert len(progress.snapshot().curves[0].points) == 4


def test_a_sweep_of_days_keeps_as_many_points_as_one_of_hours() -> None:
    (curve,) = swept(1, 20 * MOST_POINTS).curves()
    assert MOST_POINTS / 2 <= len(curve.points) <= MOST_POINTS + 1
    assert curve.points[-1].iteration == 20 * MOST_POINTS


@pytest.mark.parametrize(("trials", "iterations"), [(1, 1), (4, 21), (64, 60)])
def test_the_picture_is_a_png_of_some_tens_of_kilobytes(trials: int, iterations: int) -> None:
    png = learning_curves(swept(trials, iterations).snapshot())
    assert png is not None
    assert len(png) < 60_000
    with Image.open(io.BytesIO(png)) as picture:
        assert picture.format == "PNG"
        assert picture.size[0] > picture.size[1] > 400
        assert picture.convert("RGB").getpixel((2, 2)) == (255, 255, 255)


def colours(progress: SweepProgress) -> list[str]:
    """Returns which of the first six colours for trials the picture has."""
    png = learning_curves(progress.snapshot())
    assert png is not None
    with Image.open(io.BytesIO(png)) as picture:
        counted = picture.convert("RGB").getcolors(1 << 20)
    assert counted is not None
    drawn = [colour for count, colour in counted if count > 20 and isinstance(colour, tuple)]

    def near(colour: str) -> bool:
        return any(
            sum(abs(channel - wanted) for channel, wanted in zip(some, bytes.fromhex(colour[1:]), strict=True)) < 40
            for some in drawn
        )

    return [colour for colour in COLOURS[:6] if near(colour)]


def test_few_trials_have_a_colour_each_and_of_many_the_best_five() -> None:
    assert colours(swept(2, 20)) == list(COLOURS[:2])
    assert colours(swept(40, 20)) == list(COLOURS[:5])


def test_without_a_known_return_there_is_no_picture() -> None:
    progress = SweepProgress(SweepFacts(population=2))
    progress.apply(Result(trial="t0", iteration=1), 0.0)
    assert learning_curves(progress.snapshot()) is None
