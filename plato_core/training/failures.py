"""What a trial failed with, in one line: its environment's own error, and not what Ray makes of it."""

from __future__ import annotations

import re

from plato_core.errors import TrialError

MAX_LENGTH = 500
LOST_NODE = "its machine is gone, or does not answer"

_ESCAPES = re.compile(r"\x1b\[[0-9;]*m")
_DURING = "During handling of the above exception, another exception occurred:"
_CAUSE = "The above exception was the direct cause of the following exception:"
# Ray 2.60's words for a process that is gone (src/ray/core_worker, raylet's memory monitor), and plain ones.
_DEATHS: tuple[tuple[re.Pattern[str], str], ...] = (
    (
        re.compile(r"killed due to the node running low on memory.*? was (\S+) used / (\S+) limit", re.DOTALL),
        "out of memory: Ray ended its process at {0} of {1} in use; run fewer trials at once, or smaller ones",
    ),
    (re.compile(r"Worker exits with an exit code (\d+)"), "its process ended itself with exit code {0}"),
    (
        re.compile(r"Worker exit type: SYSTEM_ERROR"),
        "its process died: killed (out of memory, perhaps), crashed, or ended by its environment",
    ),
    (re.compile(r"its node has died|Worker exit type: NODE_DIED|The actor is temporarily unavailable"), LOST_NODE),
)


def failure_line(text: str) -> str:
    """Returns the line that says what went wrong.

    Of errors that were raised from one another that is the first, as RLlib raises one without a message from an
    environment's own.

    Args:
        text: What Tune keeps of a failure: a traceback, or Ray's account of a process that died.
    """
    text = _ESCAPES.sub("", text).rpartition(_DURING)[2].partition(_CAUSE)[0]
    for words, plain in _DEATHS:
        if found := words.search(text):
            return plain.format(*found.groups())
    lines = [line.rstrip() for line in text.splitlines() if line.strip()]
    frames = [number for number, line in enumerate(lines) if line.lstrip().startswith('File "')]
    # After the last frame's code comes the error, and a message of several lines has the first of them there.
    after = lines[frames[-1] + 1 :] if frames else lines[-1:]
    said = next((line for line in after if not line.startswith(" ")), lines[-1] if lines else "no message")
    return said.strip().removeprefix(f"{TrialError.__module__}.{TrialError.__name__}: ")[:MAX_LENGTH]
