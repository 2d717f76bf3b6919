"""What is told of a tracking store that is away or throttles, and when: an outage is two lines, however it goes."""

from plato_core.report.text import duration, last_line
from plato_core.sweep.events import TrackingState

# A store that throttles takes some entries and refuses others, back and forth, for minutes.
SETTLED_S = 60.0


def kept_line(pending: int) -> str:
    """Return what is said of entries in a spool at which no command gets, since it is in the storage of a job."""
    entries = "1 entry" if pending == 1 else f"{pending} entries"
    return f"not in the tracking store yet: {entries}, kept with the sweep's files and sent when the sweep goes on"


class TrackingOutages:
    """Keeps whether the tracker was said to wait."""

    def __init__(self) -> None:
        self._waits = False
        self._works_since: float | None = None
        self._told_of_the_end = False
        self._told_of_refusals = False

    def take(self, event: TrackingState, now: float) -> str | None:
        """Take in how the tracker fares and return the line that it deserves, if any.

        Args:
            event: What it says.
            now: When, in seconds.
        """
        line = self._waiting(event) if event.last_error is not None else self._working(event, now)
        if line is None and event.rejected and not self._told_of_refusals:
            self._told_of_refusals = True
            return f"the tracker refused {event.rejected} entries for good"
        return line

    def _waiting(self, event: TrackingState) -> str | None:
        self._works_since, why = None, last_line(event.last_error or "")
        if event.gives_up_s is not None:
            if self._told_of_the_end:
                return None
            self._waits = self._told_of_the_end = True
            return f"all is trained, tracking waits, up to {duration(event.gives_up_s)}: {why}"
        if self._waits:
            return None
        self._waits = True
        return f"tracking waits, training goes on: {why}"

    def _working(self, event: TrackingState, now: float) -> str | None:
        if not self._waits:
            return None
        self._works_since = now if self._works_since is None else self._works_since
        if event.gives_up_s is None and now - self._works_since < SETTLED_S:
            return None
        self._waits, self._works_since = False, None
        return "tracking goes on"
