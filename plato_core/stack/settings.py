"""What can be set about the local stack: variables `PLATO_STACK_*`."""

from __future__ import annotations

import re
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Self

from pydantic import AfterValidator, Field, SecretStr, ValidationError, field_validator, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from plato_core.errors import ConfigError
from plato_core.tracking.database import SQLITE

PREFIX = "PLATO_STACK_"
WORK_POOL = "local"
PREFECT, MLFLOW, WORKER = "prefect", "mlflow", "worker"

Port = Annotated[int, Field(ge=1, le=65535)]


class StackSettings(BaseSettings):
    """Settings of the local stack, each read from the variable `PLATO_STACK_<NAME>`."""

    model_config = SettingsConfigDict(env_prefix=PREFIX, env_ignore_empty=True, hide_input_in_errors=True)

    folder: Annotated[Path, AfterValidator(lambda folder: folder.expanduser().resolve())] = Field(
        default=Path(".plato/stack"),
        validate_default=True,
        description="Where all of its data lives: databases, artifacts, logs",
    )
    prefect_port: Port = Field(default=4200, description="Port of Prefect's API and UI")
    mlflow_port: Port = Field(default=5000, description="Port of MLflow's API and UI")
    prefect_database_url: SecretStr | None = Field(
        default=None, description="Prefect's database, `postgresql://...`; unset means SQLite in the folder"
    )
    mlflow_store_uri: SecretStr | None = Field(
        default=None, description="MLflow's database, `postgresql://...`; unset means SQLite in the folder"
    )
    concurrency_limit: Annotated[int, Field(ge=1)] | None = Field(
        default=None, description="Flow runs that the work pool lets run at once; unset leaves its limit as it is"
    )

    @field_validator("prefect_database_url", "mlflow_store_uri")
    @classmethod
    def _known_database(cls, url: SecretStr | None) -> SecretStr | None:
        # The servers would say so too, but with the whole URL in their logs.
        if url is not None and not re.match(r"(postgres(ql)?|sqlite)(\+\w+)?://", url.get_secret_value()):
            raise ValueError("the URL of a database begins with postgresql:// or sqlite://")
        return url

    @field_validator("prefect_database_url")
    @classmethod
    def _async_driver(cls, url: SecretStr | None) -> SecretStr | None:
        """Prefect takes async drivers only; a plain URL means the same database."""
        if url is None:
            return None
        postgresql = re.sub(r"^postgres(ql)?://", "postgresql+asyncpg://", url.get_secret_value())
        return SecretStr(re.sub(r"^sqlite://", "sqlite+aiosqlite://", postgresql))

    @field_validator("mlflow_store_uri")
    @classmethod
    def _has_driver(cls, uri: SecretStr | None) -> SecretStr | None:
        if uri is not None and uri.get_secret_value().startswith("postgres") and not find_spec("psycopg2"):
            raise ValueError("PostgreSQL needs a driver; install it with: pip install 'plato-sweeps[postgres]'")
        return uri

    @model_validator(mode="after")
    def _ports_differ(self) -> Self:
        if self.prefect_port == self.mlflow_port:
            raise ValueError(f"{PREFIX}PREFECT_PORT and {PREFIX}MLFLOW_PORT are both {self.mlflow_port}")
        return self

    @property
    def prefect_url(self) -> str:
        """Address of Prefect's UI."""
        return f"http://127.0.0.1:{self.prefect_port}"

    @property
    def api_url(self) -> str:
        """Address of Prefect's API, for `PREFECT_API_URL`."""
        return f"{self.prefect_url}/api"

    @property
    def mlflow_url(self) -> str:
        """Address of MLflow, for `MLFLOW_TRACKING_URI` and the browser."""
        return f"http://127.0.0.1:{self.mlflow_port}"

    @property
    def mlflow_database(self) -> str:
        """URI of MLflow's database where `mlflow_store_uri` names no other."""
        return f"{SQLITE}{self.folder / 'mlflow.db'}"

    @property
    def ports(self) -> dict[str, int]:
        """The servers' ports, by part."""
        return {PREFECT: self.prefect_port, MLFLOW: self.mlflow_port}

    @property
    def logs(self) -> Path:
        """Folder of the parts' logs."""
        return self.folder / "logs"


def load_settings() -> StackSettings:
    """Reads the settings from the environment.

    Raises:
        ConfigError: One of them cannot be; names the variable, and never a value that may hold a password.
    """
    try:
        return StackSettings()
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        message = first["msg"].removeprefix("Value error, ")
        name = "".join(f"{PREFIX}{str(part).upper()}: " for part in first["loc"][:1])
        raise ConfigError(f"{name}{message}") from None
