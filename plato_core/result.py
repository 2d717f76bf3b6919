"""What a sweep gives back, to the flow's caller and as `--json`'s one object."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field


class SweepResult(BaseModel):
    """The winner of a sweep, where its checkpoint lies, and what the sweep took.

    Attributes:
        sweep_id: The sweep's name, in tags and on disk.
        parent_run_id: MLflow run of the sweep.
        experiment_name: Its MLflow experiment.
        top_run_id: MLflow run of the winning trial.
        rank_metric: The metric that selected it.
        rank_value: Its latest value in that run.
        checkpoint_path: Folder of the verified checkpoint on this machine.
        checkpoint_iteration: The trial's own iteration at that checkpoint.
        tracking_uri: The MLflow store.
        trials: Number of trials.
        wall_s: Seconds from the command, or the flow run's start, to this result.
        fit_s: Seconds from the parent run's opening, from which on trials may train, to the end of the last trial.
        training_slot_s: Sum over trials of training seconds x CPUs allotted.
        slots: CPUs that the sweep could use.
        sweep_efficiency: `training_slot_s` over `slots` x `fit_s`.
        experiment_id: MLflow's id of the experiment; for the run's address, not part of the JSON.
        winner: What people call the winning trial; not part of the JSON either.
        warnings: What a person should know besides, such as better-ranked runs that do not qualify; likewise.
    """

    model_config = ConfigDict(frozen=True)

    sweep_id: str
    parent_run_id: str
    experiment_name: str
    top_run_id: str
    rank_metric: str
    rank_value: float
    checkpoint_path: str
    checkpoint_iteration: int
    tracking_uri: str
    trials: int
    wall_s: float
    fit_s: float
    training_slot_s: float
    slots: int
    sweep_efficiency: float
    experiment_id: str = Field(exclude=True)
    winner: str = Field(exclude=True)
    warnings: tuple[str, ...] = Field(default=(), exclude=True)
