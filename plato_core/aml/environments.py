"""Environments that are registered with a workspace: how a setting names one, and whether it is there."""

from __future__ import annotations

import re
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from azure.ai.ml import MLClient
    from azure.ai.ml.entities import Environment

MAKE = (
    "`az ml environment create --file deployments/aml/environment.yaml` makes one, "
    "or set environment to deployments/aml"
)
_NAMED = re.compile(r"(?:azureml:)?(?P<name>[\w.-]+)(?P<kind>[:@])(?P<which>[\w.-]+)")
_MOST = 10  # so many versions are told of


@dataclass(frozen=True)
class Registered:
    """A name of an environment, `name:version` or `name@label`.

    Attributes:
        name: Without version and label.
        kind: `:` or `@`.
        which: The version or the label.
    """

    name: str
    kind: str
    which: str

    @classmethod
    def of(cls, setting: str) -> Registered | None:
        """Return what a setting names; None if it is something else, as a folder or an address in full."""
        found = _NAMED.fullmatch(setting)
        return cls(**found.groupdict()) if found else None

    def __str__(self) -> str:
        return f"{self.name}{self.kind}{self.which}"

    def find(self, ml: MLClient) -> Environment | None:
        """Return it as the workspace has it; None if it is not there."""
        from azure.ai.ml.exceptions import ValidationException
        from azure.core.exceptions import ResourceNotFoundError

        try:
            if self.kind == "@":
                return ml.environments.get(self.name, label=self.which)
            return ml.environments.get(self.name, version=self.which)
        except (ResourceNotFoundError, ValidationException):  # the latter where a label leads to nothing
            return None

    def others(self, ml: MLClient) -> str:
        """Return, in words, what the workspace has of that name."""
        from azure.core.exceptions import ResourceNotFoundError

        try:
            found = [f"{self.name}:{one.version}" for one in islice(ml.environments.list(self.name), _MOST)]
        except ResourceNotFoundError:
            found = []
        return ", ".join(found) or "none of that name, and `az ml environment list` shows the others"
