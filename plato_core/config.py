"""`SweepConfig`, the one description of a sweep: command line, file, Prefect parameters, child process."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    JsonValue,
    ValidationError,
    field_validator,
    model_validator,
)

from plato_core import config_rules, config_yaml, presets
from plato_core.config_errors import config_error
from plato_core.search_space import Distribution
from plato_core.training import schema

METRIC_PREFIX = "metrics."
LOCAL_STORE = "sqlite:///mlflow.db"
# Ray's own word for a Ray of this machine: what the environment says where a sweep that goes on had a cluster before.
LOCAL_RAY = "local"


class SweepConfig(BaseModel):
    """Everything that describes a sweep; flat, so that it is a form, a file and a command line alike."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, title="Sweep")

    preset: str | None = Field(
        None, title="Preset", description="Shipped defaults to start from: plato, test-local, nightly, or none."
    )
    env_name: str = Field(
        "CartPole-v1",
        title="Environment",
        description="Gymnasium environment to train in.",
        min_length=1,
    )
    env_config: dict[str, JsonValue] = Field(
        default_factory=dict,
        title="Environment settings",
        description="Keyword arguments of the environment.",
    )
    algorithm: str = Field(
        "PPO",
        title="Algorithm",
        description="RLlib algorithm: PPO, APPO, IMPALA, DQN or SAC.",
        json_schema_extra={"enum": [*schema.algorithms()]},
    )
    num_tune_samples: int = Field(4, title="Population", description="Number of trials in the population.", ge=1)
    scheduler: Literal["pbt", "asha", "median"] = Field(
        "pbt",
        title="Scheduler",
        description="Population Based Training, or early stopping by ASHA or the median rule.",
    )
    perturbation_interval: float = Field(
        5,
        title="Perturbation interval",
        description="Training between two exploit decisions, in the perturbation unit.",
        gt=0,
    )
    perturbation_unit: Literal["iterations", "seconds"] = Field(
        "iterations",
        title="Perturbation unit",
        description="What the perturbation and checkpoint intervals are counted in.",
    )
    quantile_fraction: float = Field(
        0.25,
        title="Quantile fraction",
        description="Share of the population that is replaced, and that is copied from.",
        gt=0,
        le=0.5,
    )
    resample_probability: float = Field(
        0.25,
        title="Resample probability",
        description="Chance of a fresh draw instead of a perturbation, for each value.",
        ge=0,
        le=1,
    )
    seed: int | None = Field(
        None,
        title="Seed",
        description="Seeds environments, networks and scheduler; drawn and recorded if unset.",
        ge=0,
        lt=2**31,
    )
    stop_reward: float | None = Field(
        None, title="Stop at return", description="Stop when episode_reward_mean reaches this."
    )
    stop_when: Literal["first", "all"] = Field(
        "first",
        title="Stop when",
        description="End the whole sweep at the first trial that reaches it, or each trial by itself.",
    )
    max_iterations: int | None = Field(
        None,
        title="Maximum iterations",
        description="Stop a trial after this many iterations of its own.",
        ge=1,
    )
    time_budget_s: float | None = Field(
        None, title="Time budget (s)", description="Stop the sweep after this many seconds.", gt=0
    )
    max_failures: int = Field(
        2,
        title="Failures allowed",
        description="Restart a trial that fails from its last checkpoint, so many times; then it fails alone.",
        ge=0,
    )
    experiment_name: str = Field(
        "pbt_ppo",
        title="Experiment",
        description="MLflow experiment of the runs; in an Azure ML job, that of the job.",
        min_length=1,
    )
    tracking_uri: str | None = Field(
        None,
        title="Tracking URI",
        description="MLflow tracking store, without a password, or the config.json of an Azure ML workspace; "
        "unset means mlflow.db in the working folder.",
    )
    resume: str | None = Field(
        None,
        title="Resume",
        description="Go on with this sweep: its id, its parent run's id, or last, the newest unfinished one.",
        min_length=1,
    )
    storage_path: str = Field(
        ".plato/sweeps",
        title="Storage",
        description="Folder that a sweep keeps its own files in.",
        min_length=1,
    )
    prune_after_days: float | None = Field(
        None,
        title="Prune after (days)",
        description="Before the sweep, remove the files of sweeps that ended so many days ago.",
        gt=0,
    )
    prune_keep: int | None = Field(
        None,
        title="Prune to",
        description="Before the sweep, remove the files of all but so many of the newest finished sweeps.",
        ge=0,
    )
    local_path: str = Field(
        "model_checkpoints",
        title="Results folder",
        description="Folder that the best checkpoint is downloaded to.",
        min_length=1,
    )
    compute: Literal["local", "aml"] = Field(
        "local",
        title="Compute",
        description="Where to train: on this machine or the Ray cluster named here, or as a job of Azure ML.",
    )
    job_variables: dict[str, JsonValue] = Field(
        default_factory=dict,
        title="Job variables",
        description="Of a job of Azure ML: workspace, compute, instance_count and more, as in a work pool.",
    )
    ray_address: str | None = Field(
        None, title="Ray address", description="Ray cluster to run on; unset means a Ray of this machine."
    )
    ray_nodes: int | None = Field(
        None, title="Ray nodes", description="Wait until the Ray cluster has so many nodes; unset means one.", ge=1
    )
    ray_wait_s: float = Field(
        900.0,
        title="Wait for nodes (s)",
        description="Give the nodes of the Ray cluster so many seconds to come, then fail.",
        ge=0,
    )
    num_cpus: int | None = Field(
        None, title="CPUs", description="CPU slots of the whole sweep; unset means all there are.", ge=1
    )
    num_gpus: float | None = Field(
        None, title="GPUs", description="GPUs of the whole sweep; unset means all there are.", ge=0
    )
    num_env_runners: int = Field(
        0,
        title="Env runners",
        description="Remote env-runner processes of a trial, beside its own.",
        ge=0,
    )
    checkpoint_interval: float | None = Field(
        None,
        title="Checkpoint interval",
        description="Training between two checkpoints; unset means the perturbation interval.",
        gt=0,
    )
    keep_checkpoints: int = Field(
        3,
        title="Checkpoints kept",
        description="Keep the best so many checkpoints of each trial, and its last.",
        ge=1,
    )
    rank_metric: str = Field(
        "metrics.episode_reward_mean",
        title="Rank metric",
        description="Metric that the winner is chosen by, with or without `metrics.`.",
        min_length=1,
    )
    mode: Literal["max", "min"] = Field(
        "max", title="Mode", description="Whether the highest or the lowest rank metric wins."
    )
    metric: str | None = Field(
        None,
        title="Scheduler's metric",
        description="Metric that the scheduler compares trials by; unset means the rank metric.",
        min_length=1,
    )
    test_local: bool = Field(
        False, title="Local test", description="Small run on this machine, with the local MLflow store."
    )
    hyperparameters: dict[str, Distribution | JsonValue] = Field(
        default_factory=dict,
        title="Hyperparameters",
        description="Starting points: fixed values, or distributions that each trial draws its own from.",
    )
    mutations: dict[str, Distribution] = Field(
        default_factory=dict,
        title="Mutations",
        description="What PBT may change, and within what: name to distribution.",
    )

    @field_validator("hyperparameters", mode="before")
    @classmethod
    def _read_hyperparameters(cls, value: Any) -> Any:
        return config_rules.read_hyperparameters(value)

    @field_validator("mutations", mode="before")
    @classmethod
    def _read_mutations(cls, value: Any) -> Any:
        return config_rules.read_mutations(value)

    @field_validator("ray_address")
    @classmethod
    def _local_ray(cls, value: str | None) -> str | None:
        return None if value == LOCAL_RAY else value

    @field_validator("tracking_uri")
    @classmethod
    def _no_secret(cls, value: str | None) -> str | None:
        return config_rules.refuse_password(value)

    @model_validator(mode="before")
    @classmethod
    def _complete(cls, data: Any) -> Any:
        return config_rules.complete(data) if isinstance(data, Mapping) else data

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        config_rules.check(self)
        return self

    @property
    def rank_metric_name(self) -> str:
        """The rank metric without the prefix `metrics.`."""
        return self.rank_metric.removeprefix(METRIC_PREFIX)

    @property
    def scheduler_metric_name(self) -> str:
        """The metric that the scheduler compares trials by, without the prefix `metrics.`."""
        return (self.metric or self.rank_metric).removeprefix(METRIC_PREFIX)

    @property
    def checkpoint_every(self) -> float:
        """Training between two checkpoints, in `perturbation_unit`."""
        return self.checkpoint_interval or self.perturbation_interval

    @property
    def store_uri(self) -> str:
        """The tracking URI that is meant: the local store if none is given, SQLite files by absolute path.

        A relative path counts from the working directory.
        """
        uri = self.tracking_uri or LOCAL_STORE
        scheme, found, path = uri.partition(":///")
        if not found or scheme.split("+")[0] != "sqlite" or not path:
            return uri
        path, question, query = path.partition("?")
        return f"{scheme}:///{Path(path).absolute()}{question}{query}"

    @property
    def artifact_root(self) -> Path | None:
        """Folder of the artifacts: `mlruns` beside a store that is a SQLite file, None for any other."""
        scheme, found, path = self.store_uri.partition(":///")
        if not found or scheme.split("+")[0] != "sqlite" or not path:
            return None
        return Path(path.partition("?")[0]).parent / "mlruns"

    @property
    def storage_folder(self) -> Path:
        """`storage_path` as an absolute path."""
        return Path(self.storage_path).expanduser().absolute()

    @property
    def local_folder(self) -> Path:
        """`local_path` as an absolute path."""
        return Path(self.local_path).expanduser().absolute()

    def flow_parameters(self) -> dict[str, Any]:
        """Return the config as flat JSON values, the parameters of the Prefect flow."""
        return self.model_dump(mode="json")

    @classmethod
    def from_flow_parameters(cls, parameters: Mapping[str, Any]) -> Self:
        """Return the config that `flow_parameters` wrote.

        Settings that are left out take the model's defaults; no preset, file or environment is read (that is
        `plato_core.config_sources.load_config`).

        Raises:
            ConfigError: If a value is not possible; one line.
        """
        try:
            return cls.model_validate(dict(parameters))
        except ValidationError as error:
            raise config_error(error, cls) from None

    def to_yaml(self) -> str:
        """Return the config as a file that gives the same sweep again with `--config`.

        What the preset has and this sweep has not is written as `null`, which takes it away again.
        """
        content = self.flow_parameters()
        shipped = presets.partial(self.preset, self.algorithm, self.env_name)
        for name in ("hyperparameters", "mutations"):
            content[name] |= {key: None for key in shipped.get(name, {}) if key not in content[name]}
        return config_yaml.dump(content)

    @classmethod
    def from_yaml(cls, path: Path) -> Self:
        """Return the config that `to_yaml` wrote into the file `path`.

        Raises:
            ConfigError: If the file or a value in it is not readable; one line.
        """
        return cls.from_flow_parameters(config_yaml.read_mapping(path)[0])
