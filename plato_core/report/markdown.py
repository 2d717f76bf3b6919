"""A sweep's leaderboard and summary as Markdown, which Prefect's and MLflow's pages show alike."""

import base64
from collections.abc import Mapping, Sequence
from pathlib import Path

from plato_core.aml.jobrun import JobRun
from plato_core.report.facts import RETURN_METRIC, Snapshot, SweepFacts, TrialRow
from plato_core.report.links import RunPage, below, run_page
from plato_core.report.summary import failure_words, tracking_words
from plato_core.report.text import counted, duration, measure, number, plain
from plato_core.result import SweepResult

PICTURE_NAME = "learning_curves.png"


def leaderboard_records(rows: Sequence[TrialRow], facts: SweepFacts) -> list[dict[str, str]]:
    """Return a record for each trial, in the order of `rows`: what it is called to what it is, fit to be shown."""
    records = []
    for row in rows:
        record = {
            "trial": str(row.index),
            "return": measure(row.episode_return),
            "best return": measure(row.best_return),
        }
        if facts.metric != RETURN_METRIC:
            record[facts.metric] = measure(row.metric_value)
        record["iteration"] = str(row.iteration)
        record |= {name: number(row.tuned.get(name)) for name in facts.tuned}
        records.append(record | {"state": row.state, "generation": str(row.generation)})
    return records


def leaderboard(rows: Sequence[TrialRow], facts: SweepFacts) -> str:
    """Return the leaderboard as a table."""
    records = leaderboard_records(rows, facts)
    return _table(list(records[0]), [list(record.values()) for record in records]) if records else ""


def note(snapshot: Snapshot, longest: int) -> str:
    """Return the headline and as many rows of the leaderboard as fit.

    Args:
        snapshot: The sweep at some moment.
        longest: Characters.
    """
    headline = f"**{_cell(snapshot.headline)}**"
    rows = [row for row in snapshot.rows if row.trial is not None]
    for shown in range(len(rows), 0, -1):
        more = f"\n\n... and {counted(len(rows) - shown, 'more trial')}" if shown < len(rows) else ""
        text = f"{headline}\n\n{leaderboard(rows[:shown], snapshot.facts)}{more}"
        if len(text) <= longest:
            return text
    return headline[:longest]


def summary(title: str, snapshot: Snapshot, result: SweepResult | None, error: str | None, picture: str | None) -> str:
    """Return what is to be known of a sweep that has ended.

    Args:
        title: What the sweep is called.
        snapshot: The sweep at its end.
        result: Its result; None if it has none.
        error: Why it has none.
        picture: Address of the picture of its learning curves, if there is one.
    """
    parts = [f"# {_cell(title)}", f"**{_cell(snapshot.headline)}**"]
    if result is None:
        parts.append(f"No checkpoint was fetched: {_cell(plain(error or 'the sweep was stopped'))}")
    first, *others = _figures(snapshot, result).items()
    parts.append(_table(first, others))
    if result is not None:  # Prefect's UI cuts off what is long in a table
        parts.append(f"Its checkpoint:\n\n```\n{shown_checkpoint(result)}\n```")
    parts += ["## Leaderboard", leaderboard(snapshot.rows, snapshot.facts)]
    if picture is not None:
        parts += ["## Learning curves", f"![learning curves]({picture})"]
    if result is not None:
        parts += ["## Load it", _how_to_load(result, snapshot.facts)]
        page = run_page(result.tracking_uri, result.experiment_id, result.top_run_id)
        parts += ["## See it", way_to_see(page, "the winner's run", result.experiment_name)]
    return "\n\n".join(part for part in parts if part) + "\n"


def way_to_see(page: RunPage, what: str, experiment_name: str) -> str:
    """Return how to open a run's page: a link, and the command that must run first if the store is no server."""
    if page.address is None:
        return f"{what.capitalize()} is in Azure ML Studio, under the experiment {_cell(experiment_name)}."
    link = f"[{page.address}]({page.address})"
    if page.command is None:
        return f"[{what} in {page.place}]({page.address})"
    secret = " with the store's password in the place of `***`" if page.needs_password else ""
    return f"On the machine of the sweep, start{secret}\n\n```\n{page.command}\n```\n\nthen {what} is at {link}."


def shown_checkpoint(result: SweepResult) -> str:
    """Return where a sweep's checkpoint is; of a job of Azure ML, whose disk ends with it, by what keeps it."""
    if (job := JobRun.current()) is None:
        return result.checkpoint_path
    return f"{below(Path(result.checkpoint_path), Path.cwd())} of job {job.run_id}"


def data_uri(png: bytes) -> str:
    """Return a picture as an address that holds it."""
    return f"data:image/png;base64,{base64.b64encode(png).decode()}"


def _figures(snapshot: Snapshot, result: SweepResult | None) -> Mapping[str, str]:
    figures: dict[str, str] = {}
    if result is not None:
        figures["winner"] = f"{result.winner}, run `{result.top_run_id}`"
        figures[result.rank_metric] = measure(result.rank_value)
        figures["checkpoint"] = f"iteration {result.checkpoint_iteration}, verified"
        trials = counted(result.trials, "trial")
        figures["time"] = f"{trials} in {duration(result.wall_s)}, of which {duration(result.fit_s)} to train"
        if result.fit_s:
            slots = counted(result.slots, "CPU")
            figures["sweep efficiency"] = f"{result.sweep_efficiency:.2f} on {slots}"
    else:
        if (best := snapshot.best) is not None:
            figures[f"best {snapshot.facts.metric}"] = (
                f"{measure(best.value)} (trial {best.index}, iteration {best.iteration})"
            )
        figures["time"] = f"{counted(len(snapshot.rows), 'trial')} in {duration(snapshot.elapsed_s)}"
    figures["exploits"] = str(snapshot.exploits)
    if again := [row for row in sorted(snapshot.rows, key=lambda row: row.index) if row.restarts]:
        figures["restarts"] = ", ".join(f"{row.restarts} of trial {row.index}" for row in again)
    if failed := failure_words(snapshot.rows):
        figures["failed"] = "; ".join(failed)
    if (ended := snapshot.ended) is not None:
        figures["tracking"] = "; ".join(tracking_words(snapshot.tracking, ended.spool))
    return figures


def _how_to_load(result: SweepResult, facts: SweepFacts) -> str:
    code = [
        "from ray.rllib.algorithms.algorithm import Algorithm",
        "",
        f"algorithm = Algorithm.from_checkpoint({str(Path(result.checkpoint_path).absolute())!r})",
    ]
    if (job := JobRun.current()) is not None:
        experiment = job.experiment_name or result.experiment_name
        which = f"{experiment!r}, rank_metric={result.rank_metric!r}, mode={facts.mode!r}"
        code = [
            "from plato_core.fetch import get_top_run",
            code[0],
            "",
            f"top = get_top_run({which}, parent_run_id={result.parent_run_id!r})",
            "algorithm = Algorithm.from_checkpoint(top.checkpoint_path.absolute())",
        ]
    return "\n".join(["```python", *code, "```"])


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(_cell(value) for value in line)} |" for line in lines)


def _cell(text: str) -> str:
    """Return text as one cell of a table, or one line: neither its bars nor its line ends may break it."""
    return " ".join(text.split()).replace("|", "\\|")
