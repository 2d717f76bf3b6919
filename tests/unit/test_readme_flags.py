"""README's table of flags and the command's own help say the same; no document names a flag that does not exist."""

import inspect
import re
from pathlib import Path

import pytest

from flows.get_mlflow_artifacts import fetch
from plato_core.cli import deploy, doctor, down, flush, notify, prune, sweep_main, up
from plato_core.cli.aml import doctor as aml_doctor
from plato_core.cli.sweep import GROUPS

ROOT = Path(__file__).parents[2]
DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
FLAG = re.compile(r"(?<![\w-])--[a-z][a-z-]*")
# Of other people's commands, and of every command.
FOREIGN = {
    "--help", "--version", "--backend-store-uri", "--artifacts-destination", "--host", "--port", "--workers", "--pool",
    "--type", "--watch", "--now", "--from-file", "--no-prompt", "--older-than",
    "--all", "--user", "--name", "--file", "--job-variable", "--base-job-template",
    # Of Azure's command line.
    "--defaults", "--size", "--min-instances", "--max-instances", "--idle-time-before-scale-down", "--identity-type",
    "--tier", "--output", "--query", "--enable-rbac-authorization", "--vault-name", "--role", "--scope",
    "--assignee-principal-type", "--assignee-object-id",
}  # fmt: skip


def flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"


SWEEP_FLAGS = {flag(name) for names in GROUPS.values() for name in names}


def table() -> list[tuple[str, str, str]]:
    """The rows of README's table of flags: group, flag, default."""
    section = (ROOT / "README.md").read_text().partition("\n## Flags\n")[2].partition("\n## ")[0]
    rows, group = [], ""
    for line in section.splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if len(cells) != 3:
            continue
        if title := re.fullmatch(r"\*\*(.+)\*\*", cells[0]):
            group = title[1]
        elif name := re.fullmatch(r"`(--[a-z-]+)`", cells[0]):
            rows.append((group, name[1], cells[2]))
    return rows


def test_the_table_has_every_flag_in_the_groups_and_order_of_the_help() -> None:
    expected = [(group, flag(name)) for group, names in GROUPS.items() for name in names]
    assert [(group, name) for group, name, _ in table()] == expected


def test_the_table_has_the_defaults_that_the_help_shows(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "400")
    assert sweep_main(["--help"]) == 0
    shown = {}
    for line in capsys.readouterr().out.splitlines():
        if name := re.match(r"\W*(--[a-z-]+)", line):
            default = re.search(r"\[default: (.*?)\]", line)
            shown[name[1]] = default[1] if default else ""
    assert {name: default for _, name, default in table()} == {name: shown[name] for name in SWEEP_FLAGS}


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_every_flag_that_a_document_names_exists(document: Path) -> None:
    commands = (fetch, flush, prune, doctor, aml_doctor, notify, deploy, up, down)
    own = {flag(name) for command in commands for name in inspect.signature(command).parameters}
    benchmarks = "".join(path.read_text() for path in (ROOT / "benchmarks").glob("*.py"))
    benchmark_flags = set(re.findall(r'"(--[a-z-]+)"', benchmarks))
    named = set(FLAG.findall(document.read_text()))
    assert named - SWEEP_FLAGS - own - benchmark_flags - FOREIGN == set()


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_every_file_that_a_document_links_to_exists(document: Path) -> None:
    links = re.findall(r"\[[^\]]+\]\(([^)#\s]+)", document.read_text())
    local = [link for link in links if "://" not in link]
    assert [link for link in local if not (document.parent / link).exists()] == []
