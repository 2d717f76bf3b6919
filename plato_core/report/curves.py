"""Each trial's learning curve, thinned out so that a sweep of days stays as small as one of minutes."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Generic, NamedTuple, TypeVar

MOST_POINTS = 500
Item = TypeVar("Item")


class Point(NamedTuple):
    """A return, and the trial's own iteration that had it."""

    iteration: int
    value: float


class ExploitMark(NamedTuple):
    """Where a trial took over the policy of another: its own iteration and latest return, and that one's number."""

    iteration: int
    value: float | None
    donor: int


@dataclass(frozen=True)
class Curve:
    """One trial's returns and exploits, in the order of its own iterations.

    Attributes:
        index: The number by which people know the trial.
        points: Its known returns: all of them, or evenly spaced ones and the last.
        exploits: Its exploits, likewise.
    """

    index: int
    points: tuple[Point, ...] = ()
    exploits: tuple[ExploitMark, ...] = ()


class Thinned(Generic[Item]):
    """A growing series of which the first, evenly spaced ones and the last are kept.

    Args:
        most: How many are kept at most, besides the last. Past it every second one goes.
    """

    def __init__(self, most: int = MOST_POINTS) -> None:
        self._most = most
        self._kept: list[Item] = []
        self._stride = 1
        self._seen = 0
        self._last: Item | None = None  # where it is not among the kept ones

    def add(self, item: Item) -> None:
        """Take in the next one."""
        if self._seen % self._stride:
            self._last = item
        else:
            self._kept.append(item)
            self._last = None
            if len(self._kept) > self._most:
                if len(self._kept) % 2 == 0:
                    self._last = self._kept[-1]
                self._kept = self._kept[::2]
                self._stride *= 2
        self._seen += 1

    def items(self) -> tuple[Item, ...]:
        """Return what is kept, in order."""
        return (*self._kept, *(() if self._last is None else (self._last,)))


class CurveRecorder:
    """Keeps one trial's curve while it grows."""

    def __init__(self) -> None:
        self._points: Thinned[Point] = Thinned()
        self._exploits: Thinned[ExploitMark] = Thinned()
        self._furthest = 0
        self._latest: float | None = None

    def result(self, iteration: int, value: float | None) -> None:
        """Take in an iteration's return; one that is unknown, or that repeats an iteration, leaves no point."""
        if value is None:
            return
        self._latest = value
        if iteration > self._furthest:
            self._furthest = iteration
            self._points.add(Point(iteration, value))

    def exploit(self, iteration: int, donor: int) -> None:
        """Mark an exploit, at the return that the trial gave up."""
        self._exploits.add(ExploitMark(iteration, self._latest, donor))

    def curve(self, index: int) -> Curve:
        """Return what is known so far."""
        return Curve(index, self._points.items(), self._exploits.items())


def in_order(curves: Iterable[Curve]) -> tuple[Curve, ...]:
    """Return the curves by the trials' numbers."""
    return tuple(sorted(curves, key=lambda curve: curve.index))
