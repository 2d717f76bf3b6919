"""A job's log, followed while it is written: lines that the flow run's log does not have already.

Each read asks the run history for the log's address, which carries a right to read that ends after hours, and then for
the bytes after those that were read. (`jobs.stream` of the SDK breaks with datastores that are read by identity.)

What the flow and its tasks log reaches the Prefect API by itself and stands on the job's output too; those lines are
left out. What remains is what nobody else would tell: the start of the image and of Ray, what Ray's processes print,
and what Python says when it dies.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from plato_core.report.text import plain

if TYPE_CHECKING:
    from plato_core.aml.client import JobClient

# The first node's output; what it is called depends on the distribution.
_FILES = ("user_logs/std_log.txt", "user_logs/std_log_process_0.txt", "user_logs/std_log_process_00.txt")
_CHUNK = 1 << 20
_TAIL = 1 << 16
_LINE = 5000  # characters of a line that are kept
_RECORD = re.compile(r"^\d\d:\d\d:\d\d\.\d{3} \| [A-Z]+ +\| (?P<logger>.*?) - ")
_OWN = re.compile(r"(Flow|Task) run '")
# What the run's own state says, and what `ray start` says of its own start and end.
_KNOWN = re.compile(
    r"plato: flow run \S+ is |[\d-]+ [\d:,]+\s+(INFO|SUCC) (scripts|cli_output_helpers|usage_lib|node)\.py:\d+ -- "
)
# Before an event of a sweep that runs in a job for a flow elsewhere.
EVENT = "plato event: "
_TRACEBACK = "Traceback (most recent call last)"


@dataclass
class JobLog:
    """The output of a job's first node.

    Args:
        client: Of the workspace.
        name: Of the job.
        experiment: That the job belongs to.
        offset: Bytes that were read before, as by an earlier process.
    """

    client: JobClient
    name: str
    experiment: str
    offset: int = 0
    _file: str | None = None
    _filter: LineFilter = field(default_factory=lambda: LineFilter())

    def new_lines(self, to_the_end: bool = False) -> list[str]:
        """Return the whole lines written since the last call that are fit for the flow run's log.

        Args:
            to_the_end: The job has ended, so that its last line is whole without a line break.

        Raises:
            AmlError: Azure ML cannot be asked.
        """
        lines: list[str] = []
        while True:
            found = self._address()
            if found is None:
                return lines
            content = self.client.read(found, self.offset, _CHUNK)
            if content is None:  # of a job that started again on other nodes
                self.offset = 0
                continue
            more = len(content) == _CHUNK
            whole = content if to_the_end and not more else content[: content.rfind(b"\n") + 1]
            if more and not whole:
                whole = content  # one line as long as all this
            self.offset += len(whole)
            lines += self._filter.kept(whole.decode(errors="replace").splitlines())
            if not more:
                return lines

    def tail(self, lines: int) -> list[str]:
        """Return the last lines, as they are.

        Raises:
            AmlError: Azure ML cannot be asked.
        """
        found = self._address()
        if found is None:
            return []
        # The true end: copying may have stopped long before it. (Blob storage knows no range that counts from there.)
        begin = max(0, self.client.size(found) - _TAIL)
        text = (self.client.read(found, begin, 2 * _TAIL) or b"").decode(errors="replace")
        return [line for line in (plain(line) for line in text.splitlines()) if line][-lines:]

    def _address(self) -> str | None:
        for file in _FILES if self._file is None else (self._file,):
            path = f"/experiments/{self.experiment}/runs/{self.name}/artifacts/contentinfo"
            found = self.client.history(path, {"path": file})
            if found is not None and found.get("contentUri"):
                self._file = file
                return found["contentUri"]
        return None


@dataclass
class LineFilter:
    """Leaves out the records that the flow and its tasks logged, with the lines that belong to them."""

    _skipping: bool = False
    _trace: bool = False

    def kept(self, lines: list[str]) -> list[str]:
        """Return the lines to keep, plain and without blank ones."""
        return [line for line in (self._kept(line) for line in lines) if line]

    def _kept(self, raw: str) -> str:
        line = plain(raw)
        record = _RECORD.match(line)
        if record is not None:
            self._skipping = _OWN.match(record["logger"]) is not None
            self._trace = False
            return "" if self._skipping else line[:_LINE]
        if self._skipping and not self._belongs(raw, line):
            self._skipping = False
        if _KNOWN.match(line):
            return ""
        return "" if self._skipping else line[:_LINE]

    def _belongs(self, raw: str, line: str) -> bool:
        """Whether a line goes on with the record before it: indented, or a traceback and the error that ends it."""
        if line.startswith(_TRACEBACK):
            self._trace = True
            return True
        if not line or raw[:1] in (" ", "\t"):
            return True
        if self._trace:  # the error's own line
            self._trace = False
            return True
        return False
