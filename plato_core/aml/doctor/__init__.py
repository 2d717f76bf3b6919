"""Looks at a setup before a job costs anything: nothing is submitted, no compute is started, nothing stays behind."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from plato_core.aml.doctor import cluster, environment, rights, route, signin, tracking, upload
from plato_core.aml.doctor.case import Case
from plato_core.aml.doctor.finding import Finding, Line, broken, fine, of_error, skipped, warned
from plato_core.aml.pool import AzureMLJobConfiguration
from plato_core.aml.refusal import translated
from plato_core.aml.sweepsettings import SweepJobFields, foreseen
from plato_core.errors import PlatoError
from plato_core.report.text import cut, plain

__all__ = ["Line", "examine"]
_LONGEST = 300
_DEPLOYED = "name the server by PREFECT_API_URL, and deploy to it: prefect --no-prompt deploy --name aml"


@dataclass(frozen=True)
class _Check:
    """One thing to look at.

    Attributes:
        name: As it is shown.
        look: What looks.
        needs: The checks without which it cannot be looked at.
        prefect: Whether it is about the Prefect API, which not every job talks to.
    """

    name: str
    look: Callable[[Case], Finding]
    needs: tuple[str, ...] = ()
    prefect: bool = False


def _settings(case: Case) -> Finding:
    """See whether a worker, or a flow that stays at home, would make a job of them at all."""
    if case.sweep is not None:
        foreseen(case.sweep, "")
        return fine(case.source)
    from uuid import UUID

    from prefect.client.schemas.objects import FlowRun

    run = FlowRun(id=UUID(int=0), flow_id=UUID(int=0), name="plato-aml-doctor", parameters={})
    case.settings.prepare_for_flow_run(run)
    case.settings.job_spec(run)
    if case.note:
        return warned(f"{case.source}: {case.note}", _DEPLOYED)
    return fine(case.source)


_CHECKS = (
    _Check("settings", _settings),
    _Check("login", signin.login),
    _Check("workspace", signin.workspace, ("login",)),
    _Check("compute", cluster.compute, ("workspace",)),
    _Check("cost", cluster.cost, ("compute",)),
    _Check("environment", environment.environment),
    _Check("code", upload.code),
    _Check("private files", upload.private, ("code",)),
    _Check("quota", cluster.quota, ("compute",)),
    _Check("identity", rights.identity, ("compute",)),
    _Check("key vault", rights.key_vault, ("login",), prefect=True),
    _Check("storage", rights.storage, ("workspace",)),
    _Check("Prefect API", route.prefect_api, ("settings",), prefect=True),
    _Check("MLflow", tracking.mlflow, ("workspace",)),
)


def examine(
    settings: AzureMLJobConfiguration | SweepJobFields, *, source: str = "", note: str = "", write: bool = True
) -> Iterator[Line]:
    """Look at a setup, one check after another.

    Args:
        settings: Of its jobs; those of a sweep whose flow stays at home have nothing to do with Prefect, and nothing of
            its API or of its secrets is looked at.
        source: Where they come from, in words.
        note: Why they do not come from a Prefect server, which is a warning; empty if they do.
        write: Whether a run may be written to MLflow, which is deleted again.

    Yields:
        What each check found, as soon as it did.
    """
    sweep = settings if isinstance(settings, SweepJobFields) else None
    filled = AzureMLJobConfiguration(**settings.model_dump()) if isinstance(settings, SweepJobFields) else settings
    case = Case(filled, source, note, sweep, write)
    in_the_way: dict[str, str] = {}  # by the name of a check that could not be done, the one at the root of it
    for check in _CHECKS:
        if check.prefect and not case.prefect:
            continue
        missing = next((in_the_way[name] for name in check.needs if name in in_the_way), None)
        found = skipped(f"needs {missing}") if missing else _found(check, case)
        if found.level in ("failed", "skipped") or _without_cluster(check, case):
            in_the_way[check.name] = missing or check.name
        yield Line(check=check.name, level=found.level, found=found.found, remedy=found.remedy)


def _without_cluster(check: _Check, case: Case) -> bool:
    """Whether a compute could not be looked at, though that keeps no job from running."""
    return check.name == "compute" and case.cluster is None


def _found(check: _Check, case: Case) -> Finding:
    try:
        return check.look(case)
    except PlatoError as error:
        return of_error(error)
    except Exception as error:
        return _unexpected(error)


def _unexpected(error: Exception) -> Finding:
    """What the SDKs raise: many kinds, few of them Azure's own refusals; a traceback would help nobody here."""
    from azure.ai.ml.exceptions import MlException
    from azure.core.exceptions import AzureError

    if isinstance(error, AzureError | MlException | OSError):
        return of_error(translated(error))
    said = f"{type(error).__name__}: {cut(plain(str(error)), _LONGEST)}"
    return broken(f"could not be looked at ({said})", "mend what other lines name, then try again")
