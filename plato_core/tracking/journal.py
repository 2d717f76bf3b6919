"""A write-ahead journal on the local disk: the queue between Tune's loop and the tracking store.

Appending is one ``write`` to a file: training never waits for the store, memory stays bounded however long
the store is away, and a process that is killed loses nothing that it had appended. There is no ``fsync``:
what is appended survives the end of the process, not the loss of power.

On disk, in the journal's directory::

    journal-000000000001.jsonl    one operation a line; the number in the name is that of its first line
    journal-000000004711.jsonl    the next segment, begun when the one before had grown large enough
    cursor.json                   which operations are done

A segment is deleted once all in it is done. Operations may be done out of order: a big upload does not
hold back what comes after it.
"""

import contextlib
import json
import os
import threading
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

import orjson

SEGMENT_BYTES = 8 * 2**20
_PATTERN = "journal-*.jsonl"


class Journal:
    """An append-only queue of JSON objects that survives the process.

    ``append`` may be called from any thread; ``read``, ``done`` and ``commit`` belong to one reader.

    Attributes:
        cursor_lost: Whether what was done is not known, as a loss of power has damaged ``cursor.json``. All that is
            still there counts as not done then.

    Args:
        directory: Where its files are; made if missing. A journal that is there already is continued: a
            last line that was cut off by a kill is dropped, and reading begins with the first operation
            that is not done.
        segment_bytes: Size from which on the next segment is begun.
    """

    def __init__(self, directory: Path, segment_bytes: int = SEGMENT_BYTES) -> None:
        self.directory = directory
        self._segment_bytes = segment_bytes
        self._lock = threading.Lock()
        self._reader: BinaryIO | None = None
        directory.mkdir(parents=True, exist_ok=True)
        self.cursor_lost = False
        try:
            self._low, self._done = _read_cursor(directory / "cursor.json")  # all below _low is done
        except (ValueError, KeyError, TypeError):
            self._low, self._done, self.cursor_lost = 1, set(), True
        self._committed = (self._low, len(self._done))
        segments = segments_in(directory)
        self._segments = [_first_number(path) for path in segments]
        if segments:
            self._low = max(self._low, self._segments[0])
            lines, size = _cut_torn_line(segments[-1])
            self._next = self._segments[-1] + lines
            self._size = size
        if not segments or self._next < self._low:  # nothing is there, or less than was done: begin a segment
            self._next, self._size = self._low, 0
            self._segments.append(self._next)
        self._fd = self._open_segment(self._segments[-1])
        self._read_segment = 0
        self._read_number = self._segments[0]

    def append(self, op: dict[str, Any]) -> int:
        """Add an operation and return its number.

        Raises:
            OSError: The disk is full or unwritable. The journal is then as it was before.
            ValueError: The operation holds NaN or infinity, which JSON has not.
        """
        line = _line(op)
        with self._lock:
            if self._size and self._size + len(line) > self._segment_bytes:
                os.close(self._fd)
                self._segments.append(self._next)
                self._size = 0
                self._fd = self._open_segment(self._next)
            written = os.write(self._fd, line)
            if written != len(line):  # the disk filled up in the middle of the line
                os.ftruncate(self._fd, self._size)
                raise OSError(f"no room for the tracking journal in {self.directory}")
            self._size += written
            self._next += 1
            return self._next - 1

    def read(self, limit: int) -> list[tuple[int, dict[str, Any]]]:
        """The next operations that are not done, at most ``limit``, with their numbers.

        Each is returned once. A line that is no JSON object (a damaged disk) comes as
        ``{"op": "damaged", "line": ...}``.
        """
        found: list[tuple[int, dict[str, Any]]] = []
        while len(found) < limit:
            with self._lock:
                end, segments = self._next, list(self._segments)
            if self._read_number >= end:
                break
            if self._read_segment + 1 < len(segments) and self._read_number >= segments[self._read_segment + 1]:
                self._close_reader()
                self._read_segment += 1
                continue
            if self._reader is None:
                self._reader = self._path(segments[self._read_segment]).open("rb")
            line = self._reader.readline()
            number, self._read_number = self._read_number, self._read_number + 1
            if number >= self._low and number not in self._done:
                found.append((number, _parse(line)))
        return found

    def unfinished(self) -> Iterator[tuple[int, dict[str, Any]]]:
        """All operations that are not done with their numbers, oldest first, without taking them from ``read``."""
        with self._lock:
            low, done, segments = self._low, set(self._done), list(self._segments)
        for first in segments:
            with self._path(first).open("rb") as file:
                for number, line in enumerate(file, first):
                    if number >= low and number not in done:
                        yield number, _parse(line)

    def done(self, numbers: Iterable[int]) -> None:
        """Note that these operations are done; ``commit`` makes it last."""
        with self._lock:
            self._done.update(number for number in numbers if number >= self._low)
            while self._low in self._done:
                self._done.remove(self._low)
                self._low += 1

    def commit(self) -> None:
        """Write down what is done, and delete the segments that are done with."""
        state = (self._low, len(self._done))
        if state == self._committed:
            return
        write_json(self.directory / "cursor.json", {"low": self._low, "done": _to_ranges(self._done)})
        self._committed = state
        with self._lock:
            while len(self._segments) > 1 and self._segments[1] <= self._low and self._read_segment > 0:
                self._path(self._segments.pop(0)).unlink(missing_ok=True)
                self._read_segment -= 1

    @property
    def pending(self) -> int:
        """How many operations are not done."""
        with self._lock:
            return self._next - self._low - len(self._done)

    @property
    def finished(self) -> int:
        """How many operations are done, counted from the journal's beginning."""
        with self._lock:
            return self._low - 1 + len(self._done)

    def close(self) -> None:
        """Close the files; the journal stays on disk."""
        self.commit()
        self._close_reader()
        os.close(self._fd)

    def _path(self, number: int) -> Path:
        return self.directory / f"journal-{number:012d}.jsonl"

    def _open_segment(self, number: int) -> int:
        return os.open(self._path(number), os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o644)

    def _close_reader(self) -> None:
        if self._reader is not None:
            self._reader.close()
            self._reader = None


def pending(directory: Path) -> int:
    """How many operations of the journal in a folder are not done. Changes nothing there, unlike `Journal`.

    Raises:
        OSError: It cannot be read.
        ValueError: What it holds is damaged.
    """
    low, done = _read_cursor(directory / "cursor.json")
    segments = segments_in(directory)
    if not segments:
        return 0
    last = segments[-1]
    end = _first_number(last) + last.read_bytes().count(b"\n")
    return max(0, end - max(low, _first_number(segments[0])) - len(done))


def segments_in(directory: Path) -> list[Path]:
    """The journal's files with operations in a folder, oldest first."""
    return sorted(directory.glob(_PATTERN))


def write_json(path: Path, value: Any) -> None:
    """Write a JSON file so that after a kill, at any time, the old or the new one is there whole."""
    partial = path.with_name(f".{path.name}.partial")
    partial.write_text(json.dumps(value, separators=(",", ":")))
    os.replace(partial, path)


def _line(op: dict[str, Any]) -> bytes:
    try:
        line = orjson.dumps(op)  # a twentieth of the time that json takes, in Tune's loop
    except TypeError:  # a string that is no UTF-8, an integer of more than 64 bits
        line = b"null"
    if b"null" in line:  # which it makes of NaN too
        line = json.dumps(op, separators=(",", ":"), allow_nan=False).encode()
    return line + b"\n"


def _parse(line: bytes) -> dict[str, Any]:
    for loads in (orjson.loads, json.loads):  # the second takes what `_line` gives to json
        with contextlib.suppress(ValueError):
            op = loads(line)
            return op if isinstance(op, dict) else _damaged(line)
    return _damaged(line)


def _damaged(line: bytes) -> dict[str, Any]:
    return {"op": "damaged", "line": line.decode(errors="replace")}


def _first_number(path: Path) -> int:
    return int(path.stem.removeprefix("journal-"))


def _cut_torn_line(path: Path) -> tuple[int, int]:
    """Drop what follows the last line end; return the number of lines and the size in bytes."""
    data = path.read_bytes()
    size = data.rfind(b"\n") + 1
    if size != len(data):
        os.truncate(path, size)
    return data.count(b"\n"), size


def _read_cursor(path: Path) -> tuple[int, set[int]]:
    if not path.exists():
        return 1, set()
    cursor = json.loads(path.read_text())
    return cursor["low"], {number for first, last in cursor["done"] for number in range(first, last + 1)}


def _to_ranges(numbers: set[int]) -> list[list[int]]:
    ranges: list[list[int]] = []
    for number in sorted(numbers):
        if ranges and ranges[-1][1] == number - 1:
            ranges[-1][1] = number
        else:
            ranges.append([number, number])
    return ranges
