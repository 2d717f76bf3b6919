"""What is examined, and what its checks learn about it for those that follow."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING

from plato_core.aml.codefolder import CodeFolder
from plato_core.aml.pool import AzureMLJobConfiguration
from plato_core.aml.sweepsettings import SweepJobFields
from plato_core.aml.workspace import Workspace

if TYPE_CHECKING:
    from azure.ai.ml import MLClient
    from azure.ai.ml.entities import AmlCompute
    from azure.core.credentials import TokenCredential


@dataclass
class Case:
    """A setup, and what is known about it.

    Args:
        settings: Of the jobs.
        source: Where they come from, in words.
        note: Why they do not come from a Prefect server; empty if they do.
        sweep: The same as a sweep takes them whose flow stays at home; None where a job executes the flow itself.
        write: Whether something may be written to MLflow, and removed again.

    Attributes:
        credential: Of whoever is signed in here.
        workspace: Which is meant.
        region: Where it is.
        tracking_uri: Of its MLflow.
        cluster: Its compute that the jobs run on.
        upload: What of the code folder goes up.
        secrets: What was read from the key vault, by the names of Prefect's settings. Never shown.
    """

    settings: AzureMLJobConfiguration
    source: str = ""
    note: str = ""
    sweep: SweepJobFields | None = None
    write: bool = True
    credential: TokenCredential | None = None
    workspace: Workspace | None = None
    region: str = ""
    tracking_uri: str = ""
    cluster: AmlCompute | None = None
    upload: CodeFolder | None = None
    secrets: dict[str, str] = field(default_factory=dict, repr=False)

    @property
    def prefect(self) -> bool:
        """Whether a job talks to the Prefect API."""
        return self.sweep is None

    @cached_property
    def ml(self) -> MLClient:
        """A client of the workspace that gives up soon: somebody waits for the answer."""
        from plato_core.aml.transport import make_ml_client

        assert self.workspace is not None
        assert self.credential is not None
        return make_ml_client(self.credential, self.workspace, show_progress=False, retry_total=2)
