"""A job's log, followed while it is written: lines that the flow run's log does not have already.

The run history tells the log's address, which carries a right to read that ends after hours; then the bytes after
those that were read are asked for, a bounded amount each time: a log may have gigabytes. (`jobs.stream` of the SDK
breaks with datastores that are read by identity.)

A job that was taken from its nodes begins its log anew, and it may be longer than what was read of the one before when
somebody looks. So the last bytes that were read are read once more: where they are others now, it is another log.

What the flow and its tasks log reaches the Prefect API by itself and stands on the job's output too; those lines are
left out. What remains is what nobody else would tell: the start of the image and of Ray, what Ray's processes print,
and what Python says when it dies.
"""

from __future__ import annotations

import re
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from plato_core.errors import AmlError, AmlUnavailable
from plato_core.report.text import plain

if TYPE_CHECKING:
    from plato_core.aml.client import JobClient

# The first node's output; what it is called depends on the distribution.
_FILES = ("user_logs/std_log.txt", "user_logs/std_log_process_0.txt", "user_logs/std_log_process_00.txt")
_CHUNK = 1 << 20
_A_CALL = 2  # chunks that are read at most in one call
_LAST_CALL = 64  # likewise when the job has ended, and no other call comes
_OVERLAP = 512  # bytes that are read twice
_ADDRESS_S = 300.0  # so long an address is used: short of its right's end, and of a log's being somewhere else
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
        behind: Whether there was more than the last call has read.
        raw: Whether every line is kept as it is.
    """

    client: JobClient
    name: str
    experiment: str
    offset: int = 0
    behind: bool = False
    raw: bool = False
    _last: bytes = b""  # what stands before the offset, if this process has read it
    _file: str | None = None
    _address: tuple[str, float] | None = None
    _filter: LineFilter = field(default_factory=lambda: LineFilter())

    def new_lines(self, to_the_end: bool = False, most: int | None = None) -> list[str]:
        """Return whole lines written since the last call that are fit for the flow run's log.

        What is too much for one call is left to the next, which `behind` says then.

        Args:
            to_the_end: The job has ended, so that its last line is whole without a line break.
            most: So many lines are of use; after them, no more is read.

        Raises:
            AmlError: Azure ML cannot be asked.
        """
        lines: list[str] = []
        for number in range(_LAST_CALL if to_the_end else _A_CALL):
            try:
                content = self._read()
            except AmlError:
                if number == 0:
                    raise
                break  # what was read is not to be lost; the rest is for the next call
            if content is None:
                self.behind = False
                break
            self.behind = len(content) == _CHUNK
            whole = content if to_the_end and not self.behind else content[: content.rfind(b"\n") + 1]
            if self.behind and not whole:
                whole = content  # one line as long as all this
            self.offset += len(whole)
            self._last = (self._last + whole)[-_OVERLAP:]
            found = whole.decode(errors="replace").splitlines()
            lines += found if self.raw else self._filter.kept(found)
            if not self.behind or (most is not None and len(lines) >= most):
                break
        return lines

    def _read(self) -> bytes | None:
        """Return what comes next; None where there is no log."""
        while True:
            known = self._address is not None and time.monotonic() - self._address[1] < _ADDRESS_S
            found = self._address[0] if known and self._address is not None else self._ask_address()
            if found is None:
                return None
            again = min(self.offset, _OVERLAP)
            try:
                content = self.client.read(found, self.offset - again, again + _CHUNK)
            except AmlUnavailable:
                raise
            except AmlError:
                if not known:
                    raise
                self._address = None  # its right to be read may have ended
                continue
            if content == b"" or (content is None and not again):  # nothing there yet
                return b""
            if content is not None and len(content) >= again and content[:again].endswith(self._last):
                return content[again:]
            self._begin_anew()

    def _begin_anew(self) -> None:
        self.offset, self._last, self._address, self._filter = 0, b"", None, LineFilter()

    def tail(self, lines: int) -> list[str]:
        """Return the last lines, as they are.

        Raises:
            AmlError: Azure ML cannot be asked.
        """
        found = self._ask_address()
        if found is None:
            return []
        # The true end: copying may have stopped long before it. (Blob storage knows no range that counts from there.)
        begin = max(0, self.client.size(found) - _TAIL)
        text = (self.client.read(found, begin, 2 * _TAIL) or b"").decode(errors="replace")
        return [line for line in (plain(line) for line in text.splitlines()) if line][-lines:]

    def _ask_address(self) -> str | None:
        for file in _FILES if self._file is None else (self._file,):
            path = f"/experiments/{self.experiment}/runs/{self.name}/artifacts/contentinfo"
            found = self.client.history(path, {"path": file})
            if found is not None and found.get("contentUri"):
                self._file, self._address = file, (found["contentUri"], time.monotonic())
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
