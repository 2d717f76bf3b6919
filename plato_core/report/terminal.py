"""A sweep's progress for the person at the terminal: one calm live table, or plain lines in a file."""

import sys
import time
from collections.abc import Callable
from types import TracebackType
from typing import Self, TextIO

from rich.console import Console, Group
from rich.live import Live
from rich.text import Text

from plato_core.report.progress import SweepProgress
from plato_core.report.table import MAX_ROWS, leaderboard_table
from plato_core.sweep.events import Event, Failed, Phase, SweepEnded

_REFRESHES_PER_S = 2
_LINES_AROUND_TABLE = 8  # headline, header, its rule, notes, and the prompt that comes after
_LEAST_S_BETWEEN_LINES = 5.0
_LINES_PER_SWEEP = 50  # a sweep of hours says how it is doing less often, so that its log stays readable


class TerminalReporter:
    """Shows a sweep's progress while its context is open, and gives the terminal back whatever happens.

    It reads `progress` and moves nothing there but the clock: apply each event there first, then `update`
    this. Output that fails (a closed pipe, a terminal that went away) ends the reporting, never the sweep.

    Args:
        progress: The state to show.
        stream: Where to write. A live table if it is a terminal, else plain lines without any control codes.
        console: The rich console to draw on, instead of one made for `stream`.
        clock: The clock whose readings `progress.apply` gets.
    """

    def __init__(
        self,
        progress: SweepProgress,
        stream: TextIO,
        *,
        console: Console | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._progress = progress
        self._stream = stream
        self._clock = clock
        # Not left to rich: FORCE_COLOR would have it write control codes into files.
        self._console = console or Console(file=stream, force_terminal=stream.isatty())
        self._live: Live | None = None
        self._gone = False
        self._last_line_at: float | None = None
        self._last_headline = ""

    def __enter__(self) -> Self:
        self._progress.tick(self._clock())
        if self._console.is_terminal and not self._console.is_dumb_terminal:
            self._live = live = Live(
                console=self._console,
                get_renderable=self._render,
                refresh_per_second=_REFRESHES_PER_S,
                # What else prints to this terminal goes above the table; what prints to a file stays there.
                redirect_stdout=sys.stdout.isatty(),
                redirect_stderr=sys.stderr.isatty(),
            )
            try:
                live.start()
            except BaseException:
                live.stop()
                raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live is not None:
            live, self._live = self._live, None
            try:
                live.stop()
            except (OSError, ValueError):
                self._gone = True

    def update(self, event: Event) -> None:
        """Show what `event`, which `progress` has just taken in, changed."""
        line = self._progress.notable(event)
        if self._live is not None:
            if line is not None:
                self._say(line)
            return
        if isinstance(event, Phase):
            self._say(event.text)
        elif line is not None:
            self._say(line)
        self._say_headline(at_once=isinstance(event, SweepEnded | Failed))

    def _render(self) -> Group:
        self._progress.tick(self._clock())
        width, height = self._console.size
        rows = self._progress.leaderboard()
        headline = Text(self._progress.headline(), style="bold", overflow="ellipsis", no_wrap=True)
        if not any(row.trial for row in rows):
            return Group(headline)
        shown = max(3, min(MAX_ROWS, height - _LINES_AROUND_TABLE))
        table, notes = leaderboard_table(rows, self._progress.facts, width, shown)
        return Group(headline, table, *(Text(note, style="dim") for note in notes))

    def _say_headline(self, at_once: bool) -> None:
        """Write the headline if it is time for it: every few seconds at most, in a long sweep less often."""
        now, elapsed = self._clock(), self._progress.elapsed_s()
        if self._last_line_at is None:
            self._last_line_at = now
        pause = max(_LEAST_S_BETWEEN_LINES, elapsed / _LINES_PER_SWEEP)
        headline = self._progress.headline()
        if headline != self._last_headline and (at_once or now - self._last_line_at >= pause):
            self._last_line_at, self._last_headline = now, headline
            self._say(headline)

    def _say(self, line: str) -> None:
        if self._gone:
            return
        encoding = getattr(self._stream, "encoding", None) or "utf-8"
        line = line.encode(encoding, "backslashreplace").decode(encoding)
        try:
            if self._live is not None:
                self._console.print(Text(line))
            else:
                print(line, file=self._stream, flush=True)
        except (OSError, ValueError):
            self._gone = True
