"""What the sweep's child process tells its parent: one JSON line an event, over a pipe.

The parent may be older or newer than the child: unknown kinds and fields are passed over, never an error.
Values are made plain when an event is built (NumPy scalars become numbers, NaN and infinity become None,
anything else its text), so building one from a Tune result is safe and every line is strict JSON.
"""

import math
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    FiniteFloat,
    JsonValue,
    TypeAdapter,
    ValidationError,
    model_validator,
)

from plato_core import errors
from plato_core.errors import PlatoError, SweepError, SweepStopped

Hyperparameters = dict[str, JsonValue]

_LONGEST_TEXT = 16_000  # of a traceback its ends say most; a line stays below the 64 KiB that asyncio's readers take


class _Event(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore")

    @model_validator(mode="before")
    @classmethod
    def _make_plain(cls, data: Any) -> Any:
        return _plain(data)


class Phase(_Event):
    """What the child is busy with, in a few words fit to be shown: ``Ray is ready``."""

    kind: Literal["phase"] = "phase"
    text: str


class Notice(_Event):
    """Something about no trial that is worth a line of its own, such as what became of the sweep's job."""

    kind: Literal["notice"] = "notice"
    text: str


class TrialStarted(_Event):
    """A trial runs, for the first time or again.

    Attributes:
        trial: Tune's id of the trial; every other event refers to it.
        index: Its place in the initial population, from 0: the number by which people know it.
        hyperparameters: Its current values, by canonical name.
    """

    kind: Literal["trial_started"] = "trial_started"
    trial: str
    index: int
    hyperparameters: Hyperparameters = {}


class Result(_Event):
    """One iteration of a trial.

    Attributes:
        iteration: The trial's own count, 1, 2, 3 ...
        episode_return: `episode_reward_mean`; None while unknown.
        metric_value: The sweep's metric, whatever it is; None while unknown.
        hyperparameters: The values that this iteration trained with.
        env_steps: Environment steps that the trial has sampled so far.
        time_total_s: Seconds that the trial has trained so far.
        done: Whether this is its last result.
    """

    kind: Literal["result"] = "result"
    trial: str
    iteration: int
    episode_return: float | None = None
    metric_value: float | None = None
    hyperparameters: Hyperparameters = {}
    env_steps: int = 0
    time_total_s: FiniteFloat = 0.0
    done: bool = False


class Exploited(_Event):
    """A trial took over a donor's checkpoint and perturbed its hyperparameters.

    Attributes:
        iteration: The trial's own count at that moment.
        donor: Tune's id of the trial it copied.
        donor_iteration: The donor's own count at the checkpoint.
        checkpoint: Where that checkpoint lies, if known.
        old: The trial's values before.
        new: Its values from now on.
        operations: How each value came about, in the scheduler's words (`resample`, `* 1.2` ...).
    """

    kind: Literal["exploited"] = "exploited"
    trial: str
    iteration: int
    donor: str
    donor_iteration: int | None = None
    checkpoint: str | None = None
    old: Hyperparameters = {}
    new: Hyperparameters = {}
    operations: dict[str, str] = {}


class Checkpointed(_Event):
    """A trial wrote a checkpoint at its own `iteration`; `score` is None while unknown."""

    kind: Literal["checkpointed"] = "checkpointed"
    trial: str
    iteration: int
    score: float | None = None


class TrialRestarted(_Event):
    """A trial failed, and starts again from its last checkpoint.

    Attributes:
        iteration: Its own count there.
        error: What it failed with, in one line.
        lost_node: Whether its node was lost, and this is no failure of its own.
    """

    kind: Literal["trial_restarted"] = "trial_restarted"
    trial: str
    iteration: int
    error: str
    lost_node: bool = False


class TrialWaits(_Event):
    """A trial waits until a node has room for it."""

    kind: Literal["trial_waits"] = "trial_waits"
    trial: str


class NodeChanged(_Event):
    """A Ray node was lost with so many `trials` on it, has joined, or has joined and is not used (`why`).

    From now on `nodes` train, of the `most` that there have been.
    """

    kind: Literal["node_changed"] = "node_changed"
    change: Literal["lost", "joined", "refused"]
    address: str
    nodes: int
    most: int
    trials: int = 0
    why: str | None = None


class TrialEnded(_Event):
    """A trial ended; `error` says in one line what it failed with, if it did."""

    kind: Literal["trial_ended"] = "trial_ended"
    trial: str
    status: Literal["FINISHED", "FAILED", "KILLED"]
    iteration: int = 0
    error: str | None = None


class Past(_Event):
    """What the attempts before this one told of the sweep, as far as it still holds, the oldest first; in parts."""

    kind: Literal["past"] = "past"
    events: list[Annotated[TrialStarted | Result | Exploited | TrialEnded, Field(discriminator="kind")]]
    last: bool


class Stopping(_Event):
    """The sweep is ending before its time, because of `reason`."""

    kind: Literal["stopping"] = "stopping"
    reason: str


class TrackingState(_Event):
    """How far the tracking writer is.

    Attributes:
        pending: Entries not sent yet, in memory and in the spool.
        sent: Entries that the tracker has taken.
        rejected: Entries that it refused for good.
        last_error: Why sending fails at present; None while it works.
        gives_up_s: Once all is trained: after so many seconds without progress the rest is left for later.
    """

    kind: Literal["tracking_state"] = "tracking_state"
    pending: int = 0
    sent: int = 0
    rejected: int = 0
    last_error: str | None = None
    gives_up_s: FiniteFloat | None = None


class SweepEnded(_Event):
    """The sweep is over.

    Attributes:
        fit_s: Seconds from the start of the fit to its end.
        training_slot_s: Sum over the trials of training seconds x CPUs allotted.
        slots: CPUs that the sweep had.
        trials: How many trials there were.
        message: What else there is to say, as why it failed.
        spool: The folder of what could not be sent to the tracker; None if everything was, and in a job of Azure ML.
    """

    kind: Literal["sweep_ended"] = "sweep_ended"
    outcome: Literal["finished", "stopped", "failed"]
    fit_s: FiniteFloat
    training_slot_s: FiniteFloat
    slots: int | FiniteFloat
    trials: int
    message: str | None = None
    spool: str | None = None


class Failed(_Event):
    """An error of the child that its parent raises again."""

    kind: Literal["failed"] = "failed"
    error_type: str
    message: str
    signal_number: int | None = None

    @classmethod
    def of(cls, error: PlatoError) -> "Failed":
        """Describe `error` for the parent."""
        return cls(
            error_type=type(error).__name__,
            message=str(error),
            signal_number=error.signal_number if isinstance(error, SweepStopped) else None,
        )

    def error(self) -> PlatoError:
        """Return the error to raise: of the same class if it is one of ours, else a `SweepError`."""
        if self.error_type == SweepStopped.__name__ and self.signal_number is not None:
            return SweepStopped(self.message, self.signal_number)
        kind = getattr(errors, self.error_type, None)
        if isinstance(kind, type) and issubclass(kind, PlatoError) and kind is not SweepStopped:
            return kind(self.message)
        return SweepError(self.message)


Event = (
    Phase
    | Notice
    | TrialStarted
    | Result
    | Exploited
    | Checkpointed
    | TrialRestarted
    | TrialWaits
    | NodeChanged
    | TrialEnded
    | Past
    | Stopping
    | TrackingState
    | SweepEnded
    | Failed
)

_EVENTS: TypeAdapter[Event] = TypeAdapter(Annotated[Event, Field(discriminator="kind")])


def encode(event: Event) -> bytes:
    """Return `event` as one line of strict JSON, newline included."""
    return event.model_dump_json().encode() + b"\n"


def parse(line: bytes | str) -> Event | None:
    """Return the event in `line`, or None if it is not one that this version knows."""
    try:
        return _EVENTS.validate_json(line)
    except ValidationError:
        return None


def _plain(value: Any) -> Any:
    """Return `value` in JSON's own types; what JSON cannot say becomes None (NaN, infinity) or its text."""
    if isinstance(value, str):
        if len(value) > _LONGEST_TEXT:
            half = _LONGEST_TEXT // 2
            value = f"{value[:half]}\n[...]\n{value[-half:]}"
        return value if value.isascii() else value.encode("utf-8", "replace").decode()
    if value is None or isinstance(value, bool | int):
        return value
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else None
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, _Event):
        return value
    # NumPy's and torch's scalars and arrays, without importing either.
    return _plain(value.tolist()) if hasattr(value, "tolist") else str(value)
