"""The leaderboard as a rich table that fits the terminal it is shown in."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from rich import box
from rich.table import Table
from rich.text import Text

from plato_core.report.facts import RETURN_METRIC, SweepFacts, TrialRow
from plato_core.report.text import count, counted, measure, number

MAX_ROWS = 20
_HEADER_WIDTH = 8
_GAP = 2
_STATE_STYLES = {
    "failed": "red",
    "finished": "green",
    "pending": "dim",
    "stopped": "dim",
    "waiting": "yellow",
}


@dataclass(frozen=True)
class _Column:
    header: str
    cell: Callable[[TrialRow], str]
    keep: int  # the lowest goes first where the terminal is narrow; 0 always stays
    name: str = ""  # of the tuned value
    right: bool = True


def leaderboard_table(
    rows: Sequence[TrialRow], facts: SweepFacts, width: int, max_rows: int = MAX_ROWS
) -> tuple[Table, list[str]]:
    """Return the table, at most `width` columns wide, and notes on what it leaves out.

    Args:
        rows: The leaderboard, best first.
        facts: Says which hyperparameters are tuned and what the metric is.
        width: Columns of the terminal.
        max_rows: Trials to show; the others are counted in a note.
    """
    shown, folded = rows[:max_rows], len(rows) - max_rows
    columns, dropped = _fitting(_columns(facts), shown, width)
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False, show_edge=False, header_style="bold")
    for column in columns:
        table.add_column(column.header, justify="right" if column.right else "left", no_wrap=True)
    for row in shown:
        cells: list[str | Text] = [column.cell(row) for column in columns]
        if columns[-1].header == "state":
            cells[-1] = Text(row.state, style=_STATE_STYLES.get(row.state, ""))
        table.add_row(*cells, style="dim" if row.state == "pending" else None)
    notes = [f"... and {counted(folded, 'more trial')}"] if folded > 0 else []
    if dropped:
        notes.append(f"not shown here: {', '.join(dropped)}")
    return table, notes


def _columns(facts: SweepFacts) -> list[_Column]:
    columns = [
        _Column("trial", lambda row: str(row.index), 0),
        _Column("iter", lambda row: str(row.iteration) if row.iteration else "-", 0),
        _Column("return", lambda row: measure(row.episode_return), 0),
    ]
    if facts.metric != RETURN_METRIC:
        columns.append(_Column(_folded(facts.metric), lambda row: measure(row.metric_value), 90))
    for place, name in enumerate(facts.tuned):
        cell = _tuned_cell(name)
        columns.append(_Column(_folded(name), cell, max(2, 50 - place), name))
    columns.append(_Column("steps", lambda row: count(row.env_steps) if row.env_steps else "-", 1))
    columns.append(_Column("state", lambda row: row.state, 80, right=False))
    return columns


def _tuned_cell(name: str) -> Callable[[TrialRow], str]:
    return lambda row: number(row.tuned.get(name))


def _folded(name: str) -> str:
    """Break a long name after its underscores: `sgd_minibatch_size` must not make a column 18 wide."""
    lines = [""]
    for part in name.replace("_", "_\0").split("\0"):
        if lines[-1] and len(lines[-1]) + len(part) > _HEADER_WIDTH:
            lines.append("")
        lines[-1] += part
    return "\n".join(lines)


def _fitting(columns: list[_Column], rows: Sequence[TrialRow], width: int) -> tuple[list[_Column], list[str]]:
    """Leave out columns until the rest fits, and name the tuned values among those left out."""

    def needed(column: _Column) -> int:
        cells = [*column.header.split("\n"), *(column.cell(row) for row in rows)]
        # The widest state comes and goes; a table that changes its columns with it would not be calm.
        return max(len("finished") if column.header == "state" else 0, *(len(cell) for cell in cells))

    kept = list(columns)
    while sum(needed(column) + _GAP for column in kept) - _GAP > width and any(column.keep for column in kept):
        kept.remove(min((column for column in kept if column.keep), key=lambda column: column.keep))
    return kept, [column.name for column in columns if column.name and column not in kept]
