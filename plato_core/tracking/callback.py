"""The Tune callback: each trial becomes a run of its own under the sweep's run.

Ray's ``MLflowLoggerCallback`` talks to the store from inside Tune's loop and, under Population Based
Training, aborts the sweep at the first exploit, since it logs a trial's params again. This one only
appends to the spool's journal (tens of microseconds) and leaves the store to
:class:`~plato_core.tracking.writer.Writer`.
"""

import getpass
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, SupportsFloat, cast

from ray.air.integrations.mlflow import MLflowLoggerCallback
from ray.tune import Callback

from plato_core.errors import SweepError
from plato_core.manifest import checkpoint_name, read_manifest
from plato_core.tracking.hold import hold_file, hold_tree
from plato_core.tracking.parent import forget_left_end
from plato_core.tracking.runs import RunRecord
from plato_core.tracking.sender import MAX_PARAMS_A_BATCH
from plato_core.tracking.spool import Spool, Target
from plato_core.tracking.summary import DrainSummary
from plato_core.tracking.trial_files import error_line, files_in, trial_files
from plato_core.tracking.writer import Writer
from plato_core.training.metrics import CONTRACT_METRICS, HP_PREFIX, LEARNER_METRICS, MAX_METRIC_NAMES

if TYPE_CHECKING:
    from ray.tune import Checkpoint
    from ray.tune.experiment import Trial

MAX_PARAMS = 200  # Azure ML refuses more
MAX_PARAM_LENGTH = 500
REPORT_S = 5.0


@dataclass(frozen=True)
class EndedBefore:
    """A trial that an earlier process has trained to its end.

    Attributes:
        status: How it ended.
        when: The moment, in seconds since the epoch.
        folder: With its files.
        checkpoint: Its last one, if it has any of its own.
    """

    status: Literal["FINISHED", "FAILED"]
    when: float
    folder: Path
    checkpoint: Path | None


Scalar = str | int | float | bool | None


def _never() -> bool:  # not a lambda, since the callback is pickled
    return False


def _none(config: dict[str, Any]) -> None:
    return None


class SweepTrackingCallback(MLflowLoggerCallback):
    """Tracks the trials of a sweep in MLflow, as the MLflow contract of the project has it.

    Args:
        target: Where it all goes; or a function that says so once the first trial starts, for a sweep whose
            trials are being built while its parent run is still being opened.
        spool_dir: Folder of the journal and of held uploads; removed when all of it is in the store.
        tuned: Names of the tuned hyperparameters; each has a series ``hp/<name>``.
        params: What of a trial's ``config`` is logged as params, once; a function of a module, as Tune
            pickles it.
        restored: The checkpoint of its own, if any, that a trial with this ``config`` goes on from after the sweep was
            killed; a function of a module too. It is uploaded if the kill came before that was journaled.
        cancelled: Whether the sweep was told to stop; trials that end then are KILLED and not FINISHED.
        report: Told every few seconds what was sent so far; its ``last_error`` is None while the store answers.
    """

    def __init__(
        self,
        *,
        target: Target | Callable[[], Target],
        spool_dir: Path,
        tuned: Sequence[str],
        params: Callable[[dict[str, Any]], Mapping[str, Scalar]],
        restored: Callable[[dict[str, Any]], Path | None] = _none,
        cancelled: Callable[[], bool] = _never,
        report: Callable[[DrainSummary], None] | None = None,
    ) -> None:
        # Not MLflowLoggerCallback.__init__: it holds the module mlflow, which no pickle can.
        Callback.__init__(self)
        self.spool_dir = Path(spool_dir).absolute()
        self._find_target = target
        self._params = params
        self._restored = restored
        self._cancelled = cancelled
        self._report = report
        self._reported = 0.0
        names = [*CONTRACT_METRICS, *LEARNER_METRICS, *(HP_PREFIX + name for name in tuned)]
        self._names = tuple(names[:MAX_METRIC_NAMES])
        self._trials: dict[str, RunRecord] = {}
        self._writer: Writer | None = None

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_writer": None}

    @property
    def writer(self) -> Writer:
        """The writer, from the first trial's start until ``drain``."""
        if self._writer is None:
            raise SweepError("no trial has started yet, or the tracking is drained already")
        return self._writer

    # ---- called by Tune, in its loop

    def setup(self, *args: Any, **info: Any) -> None:
        """Nothing yet: the first trial's start opens the spool."""

    def open(self) -> None:
        """Open the spool and start the writer. Makes no request; what an earlier process left is sent too."""
        target = self._find_target
        self._target = target if isinstance(target, Target) else target()
        spool = Spool.create(self.spool_dir, self._target)
        forget_left_end(spool)
        for _, op in spool.journal.unfinished():
            if "key" in op:
                spool.runs.record(op["key"]).note(op)
        self._trials = {key: RunRecord.from_json(record.to_json()) for key, record in spool.runs.items()}
        self._writer = Writer(spool)
        self._writer.start()

    def log_trial_start(self, trial: "Trial") -> None:
        """Create the trial's run, once; a trial that goes on after its end takes its run up again."""
        if self._writer is None:
            self.open()
        record = self._trials.get(trial.trial_id)
        if record is None:
            self._trials[trial.trial_id] = RunRecord()
            self._create(trial)
        elif record.ended:
            self._status(trial.trial_id, "RUNNING")
            # Emptied rather than deleted: it may have failed, and may fail again before any of this is sent.
            self.writer.append({"op": "tags", "key": trial.trial_id, "values": {"plato.error": ""}})
        if (checkpoint := self._restored(trial.config)) is not None:
            self._upload(trial.trial_id, checkpoint)

    def log_trial_result(self, iteration: int, trial: "Trial", result: dict[str, Any]) -> None:
        """Journal the result's metrics at the trial's own step; one that was journaled before is skipped."""
        record = self._trials[trial.trial_id]
        step = int(result["training_iteration"])
        if step <= record.step:
            return
        values = {name: value for name in self._names if (value := _finite(result.get(name))) is not None}
        record.step = step
        self.writer.append({"op": "metrics", "key": trial.trial_id, "step": step, "time": _now_ms(), "values": values})

    def on_checkpoint(
        self, iteration: int, trials: "list[Trial]", trial: "Trial", checkpoint: "Checkpoint", **info: Any
    ) -> None:
        """Hold the checkpoint, which Tune may delete at any time, and journal its upload."""
        self._upload(trial.trial_id, Path(checkpoint.path))

    def log_trial_end(self, trial: "Trial", failed: bool = False) -> None:
        """Journal the trial's files and its status, which is set once its uploads are up."""
        self._end(trial, "FAILED" if failed else "KILLED" if self._cancelled() else "FINISHED")

    def on_step_end(self, iteration: int, trials: "list[Trial]", **info: Any) -> None:
        """Report, now and then."""
        now = time.monotonic()
        if self._report is None or self._writer is None or now - self._reported < REPORT_S:
            return
        self._reported = now
        self._report(self._writer.summary())

    def on_experiment_end(self, trials: "list[Trial]", **info: Any) -> None:
        """End the runs of trials that Tune ended without a word, as it does when the whole sweep stops."""
        for trial in trials:
            self.log_trial_end(trial, failed=trial.status == "ERROR")

    # ---- called by the sweep

    def drain(
        self,
        timeout_s: float = 60.0,
        on_progress: Callable[[DrainSummary], None] | None = None,
        limit_s: Callable[[], float] = lambda: math.inf,
        patient: bool = False,
    ) -> DrainSummary:
        """Send all that is left; see :meth:`Writer.drain`. Where no trial has started there is nothing."""
        if self._writer is None:
            return DrainSummary()
        writer, self._writer = self.writer, None
        return writer.drain(timeout_s, on_progress, limit_s, patient)

    def end_before(self, trials: Mapping[str, EndedBefore]) -> None:
        """Journal the end of trials that earlier processes have trained to it: a kill may have come before that was.

        Args:
            trials: By their ids. Those without a run are passed over.
        """
        for key, ended in trials.items():
            record = self._trials.get(key)
            if record is None or self._writer is None:
                continue
            if ended.checkpoint is not None:
                self._upload(key, ended.checkpoint)
            if not record.ended:
                self._upload_files(key, files_in([ended.folder]))
            self._status(key, ended.status, round(ended.when * 1000))

    # ---- inside

    def _create(self, trial: "Trial") -> None:
        name, target = str(trial), self._target
        self.writer.append(
            {
                "op": "create",
                "key": trial.trial_id,
                "name": name,
                "time": _now_ms(),
                "tags": {
                    "mlflow.parentRunId": target.parent_run_id,
                    "mlflow.runName": name,
                    "mlflow.user": _user(),
                    "mlflow.source.name": "plato sweep",
                    "mlflow.source.type": "LOCAL",
                    "trial_name": name,
                    "plato.sweep_id": target.sweep_id,
                    "plato.trial_id": trial.trial_id,
                },
            }
        )
        params = {k: str(v)[:MAX_PARAM_LENGTH] for k, v in self._params(trial.config).items()}
        items = list(params.items())[:MAX_PARAMS]
        for start in range(0, len(items), MAX_PARAMS_A_BATCH):
            values = dict(items[start : start + MAX_PARAMS_A_BATCH])
            self.writer.append({"op": "params", "key": trial.trial_id, "values": values})

    def _upload(self, key: str, path: Path) -> None:
        manifest = read_manifest(path)
        record = self._trials[key]
        if manifest.iteration <= record.checkpoint:
            return
        spool = self.writer.spool
        held = spool.held(key, checkpoint_name(manifest.iteration))
        hold_tree(path, held)
        record.checkpoint = manifest.iteration
        self.writer.append(
            {
                "op": "checkpoint",
                "key": key,
                "path": spool.relative(held),
                "iteration": manifest.iteration,
                "score": manifest.score,
            }
        )

    def _status(
        self, key: str, status: Literal["RUNNING", "FINISHED", "FAILED", "KILLED"], when_ms: int | None = None
    ) -> None:
        self._trials[key].ended = status != "RUNNING"
        self.writer.append({"op": "status", "key": key, "status": status, "time": when_ms or _now_ms()})

    def _upload_files(self, key: str, files: Mapping[str, Path]) -> None:
        spool = self.writer.spool
        for name, source in files.items():
            held = spool.held(key, name)
            held.unlink(missing_ok=True)
            hold_file(source, held)
            self.writer.append({"op": "file", "key": key, "path": spool.relative(held)})

    def _end(self, trial: "Trial", status: Literal["FINISHED", "FAILED", "KILLED"]) -> None:
        if trial.trial_id not in self._trials:
            if status != "FAILED":
                return  # it was stopped while it waited for its turn
            self.log_trial_start(trial)  # it failed before it had started
        if self._trials[trial.trial_id].ended:
            return
        self._upload_files(trial.trial_id, trial_files(trial))
        if status == "FAILED" and (error := error_line(trial)):
            self.writer.append({"op": "tags", "key": trial.trial_id, "values": {"plato.error": error}})
        self._status(trial.trial_id, status)


def _finite(value: Any) -> float | None:
    """The value as a number, None where it is none, or NaN, or infinite."""
    if type(value) is float:  # nearly always, and at each result 40 times
        return value if math.isfinite(value) else None
    if value is None or isinstance(value, str) or not hasattr(value, "__float__"):
        return None
    number = float(cast(SupportsFloat, value))
    return number if math.isfinite(number) else None


def _now_ms() -> int:
    return time.time_ns() // 1_000_000


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container's user need not have a name
        return "unknown"
