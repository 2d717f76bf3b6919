"""The errors that this project raises on purpose, in one tree.

::

    PlatoError                what went wrong, in one message a person can act on      exit code 1
    ├── ConfigError           the user's input: value, what is allowed, the way out    exit code 2
    ├── TrackingError         the MLflow store: unreachable, refused, or inconsistent
    │   └── StoreAway         it was waited for, and did not come back
    ├── SelectionError        no run of the sweep qualifies as its winner
    ├── CheckpointError       a checkpoint is missing, incomplete or damaged
    ├── TrialError            a trial cannot train on; it starts again or fails, the sweep goes on
    ├── StackError            a part of the local stack does not start, or the deployments cannot be applied
    ├── AmlError              Azure ML: no sign-in, refused, unreachable, or a job that cannot be what it should
    │   └── AmlUnavailable    it does not answer, or asks to come back later
    └── SweepError            the sweep itself failed
        └── SweepStopped      it was told to stop (Ctrl-C, SIGTERM, cancel)            exit code 130/143

Anything else that reaches the top is a bug, and keeps its traceback.
"""

from typing import ClassVar


class PlatoError(Exception):
    """Base of every error raised on purpose. Its text is one message, fit to be shown as it is."""

    exit_code: ClassVar[int] = 1


class ConfigError(PlatoError):
    """What the user asked for cannot be done. Names the value, what is allowed and the way out."""

    exit_code: ClassVar[int] = 2


class TrackingError(PlatoError):
    """The MLflow tracking store cannot be reached, refuses the request, or holds something unexpected."""


class StoreAway(TrackingError):
    """The tracking store was waited for and did not come back; asking again at once is of no use."""


class SelectionError(PlatoError):
    """No run of the sweep qualifies as its winner."""


class CheckpointError(PlatoError):
    """A checkpoint is missing, incomplete or does not match its manifest."""


class TrialError(PlatoError):
    """A trial cannot train on. Raised in its process; the sweep goes on without it, or from its last checkpoint."""


class StackError(PlatoError):
    """A part of the local stack does not start or end, or the project cannot be deployed to it."""


class AmlError(PlatoError):
    """Azure ML refuses, cannot be reached or signed in to, or a job is not as it should be."""


class AmlUnavailable(AmlError):
    """Azure does not answer, or asks to come back later; the same request may succeed in a while."""


class SweepError(PlatoError):
    """The sweep failed; the message carries the first trial's own error where there is one."""


class SweepStopped(SweepError):
    """The sweep was told to stop before its end.

    Args:
        message: What was stopped and how.
        signal_number: The signal that asked for it; the exit code is 128 plus this, as shells have it.
    """

    def __init__(self, message: str, signal_number: int) -> None:
        super().__init__(message)
        self.signal_number = signal_number


class Terminated(KeyboardInterrupt):
    """SIGTERM came. Like Ctrl-C no `Exception`, which libraries catch, log and retry."""
