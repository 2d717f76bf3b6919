"""Jobs as the resource manager takes, shows and cancels them."""

from __future__ import annotations

import re
import uuid
from typing import Any, Protocol

from aml_emulator.cloud import ARM, PROVIDER, TRACKING, WORKSPACE_ID, artifact_prefix
from aml_emulator.messages import Answer, Request, ServiceError, as_json, no_route, not_found
from aml_emulator.state import TERMINAL, Job, State

_NAME = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9_-]{0,254}")
_CHANGEABLE = {"description", "tags", "displayName", "properties", "isArchived"}
TAGS, TAG_KEY, TAG_VALUE, DISPLAY_NAME = 50, 100, 1000, 256  # documented limits


class Submits(Protocol):
    """What runs jobs."""

    def submit(self, name: str, properties: dict[str, Any]) -> Job: ...


class Jobs:
    """`jobs[/{name}[/cancel]]`.

    Args:
        state: The workspace's.
        runner: Runs them.
        reject_ray_on: An api-version that refuses Ray's distribution; "*" is any, "" none.
    """

    def __init__(self, state: State, runner: Submits, reject_ray_on: str) -> None:
        self._state, self._runner, self._reject_ray_on = state, runner, reject_ray_on

    def answer(self, request: Request, path: list[str]) -> Answer:
        match request.method, path:
            case "GET", []:
                return as_json({"value": [_shown(job) for job in reversed(list(self._state.jobs.values()))]})
            case "PUT", [name]:
                return self._put(name, request)
            case "GET", [name]:
                return as_json(_shown(self._known(name)))
            case "POST", [name, "cancel"]:
                return self._cancel(self._known(name))
        raise no_route(request)

    def operation(self, operation: str) -> Answer:
        """How a cancellation stands."""
        job = self._state.jobs[self._state.operations[operation]]
        return Answer(200) if job.status in TERMINAL else _going_on(operation)

    def _known(self, name: str) -> Job:
        if name not in self._state.jobs:
            raise not_found(f"Run {name} was not found")
        return self._state.jobs[name]

    def _put(self, name: str, request: Request) -> Answer:
        wanted = request.json["properties"]
        with self._state.changed:  # two submits at once under one name are one job
            if job := self._state.jobs.get(name):
                return self._put_again(job, wanted)
            self._check(name, wanted, request.query.get("api-version", ""))
            return as_json(_shown(self._runner.submit(name, wanted)), 201)

    def _put_again(self, job: Job, wanted: dict[str, Any]) -> Answer:
        def settled(properties: dict[str, Any]) -> dict[str, Any]:
            return {key: value for key, value in properties.items() if key not in _CHANGEABLE and value is not None}

        mine, theirs = settled(job.properties), settled(wanted)
        if changed := sorted(key for key in mine.keys() | theirs.keys() if mine.get(key) != theirs.get(key)):
            fields = ",  ".join(field[0].upper() + field[1:] for field in changed)
            raise _refused(
                "A job with this name already exists. If you are trying to create a new job, use a different name. "
                f"If you are trying to update an existing job, the existing job's {fields} cannot be changed. "
                "Only description, tags, displayName, properties, and isArchived can be updated."
            )
        job.properties |= {key: value for key, value in wanted.items() if key in _CHANGEABLE}
        return as_json(_shown(job))

    def _check(self, name: str, wanted: dict[str, Any], version: str) -> None:
        if not _NAME.fullmatch(name):
            raise _refused(f"Invalid job name {name}: letters, digits, '-' and '_', 1 to 255 characters.")
        if wanted.get("jobType") != "Command":
            raise _refused(f"The emulator runs jobs of type Command, not {wanted.get('jobType')}.")
        experiment = wanted.get("experimentName")
        if experiment and not _NAME.fullmatch(experiment):
            raise _refused(f"Invalid experiment name {experiment}: letters, digits, '-' and '_', 1 to 255 characters.")
        if len(wanted.get("displayName") or "") > DISPLAY_NAME:
            raise _over("DisplayName", DISPLAY_NAME, len(wanted["displayName"]))
        check_tags(wanted.get("tags") or {})
        distribution = (wanted.get("distribution") or {}).get("distributionType")
        if distribution not in (None, "Ray", "Mpi"):
            raise _refused(f"The emulator knows the distributions Ray and Mpi, not {distribution}.")
        if distribution == "Ray" and self._reject_ray_on in ("*", version):
            message = f"The request is invalid: distributionType 'Ray' is not supported by api-version {version}."
            raise ServiceError(400, "ValidationError", message)
        self._check_compute(wanted)
        self._check_assets(wanted)

    def _check_compute(self, wanted: dict[str, Any]) -> None:
        name = (wanted.get("computeId") or "").split("/")[-1]
        compute = self._state.computes.get(name)
        if compute is None:
            raise not_found(f"The specified compute target {name} was not found.")
        nodes = int((wanted.get("resources") or {}).get("instanceCount") or 1)
        if nodes > compute.max_nodes:
            raise _refused(
                f"Requested {nodes} nodes but AmlCompute cluster only has {compute.max_nodes} maximum nodes."
            )

    def _check_assets(self, wanted: dict[str, Any]) -> None:
        environment = wanted.get("environmentId") or ""
        if found := re.search(r"^/subscriptions/.*/environments/([^/]+)/versions/([^/]+)$", environment):
            if found.groups() not in self._state.environments:
                raise _refused(f"Could not find Environment Name: {found[1]} and Version: {found[2]} in the workspace.")
        elif not environment.startswith("azureml://registries/"):
            raise _refused(f"The job's environment is not a known asset: {environment!r}.")
        if code := wanted.get("codeId"):
            found = re.search(r"/codes/([^/]+)/versions/([^/]+)$", code)
            if not found or found.groups() not in self._state.codes:
                raise _refused(f"Code asset {code} was not found.")

    def _cancel(self, job: Job) -> Answer:
        if job.status in TERMINAL:
            raise _refused(f"Run {job.name} is in a terminal state and cannot be canceled")
        self._state.ask_to_stop(job, "cancel")
        operation = str(uuid.uuid4())
        self._state.operations[operation] = job.name
        return _going_on(operation)


def _going_on(operation: str) -> Answer:
    location = f"{ARM}{WORKSPACE_ID}/mfeOperationResults/{operation}?api-version=2023-04-01-preview"
    return Answer(202, headers={"Location": location, "Retry-After": "1"})


def _refused(message: str) -> ServiceError:
    return ServiceError(400, "UserError", message)


def _over(name: str, limit: int, size: int) -> ServiceError:
    return _refused(
        f"A field of the entity is over the size limit. FieldName={name}, Limit={limit}, Size={size}. "
        "See https://aka.ms/azure-machine-learning-limits for details."
    )


def check_tags(tags: dict[str, str]) -> None:
    """Refuses tags over the documented limits.

    Raises:
        ServiceError: 400.
    """
    if len(tags) > TAGS:
        raise _over("Tags", TAGS, len(tags))
    for key, value in tags.items():
        if len(key) > TAG_KEY:
            raise _over("TagKey", TAG_KEY, len(key))
        if len(str(value)) > TAG_VALUE:
            raise _over("TagValue", TAG_VALUE, len(str(value)))


def _shown(job: Job) -> dict[str, Any]:
    wanted = job.properties
    outputs = {
        name: {
            **output,
            "uri": output.get("uri") or f"azureml://datastores/workspaceblobstore/paths/azureml/{job.name}/{name}/",
        }
        for name, output in (wanted.get("outputs") or {}).items()
    }
    files = f"azureml://datastores/workspaceartifactstore/{artifact_prefix(job.name)}"
    outputs["default"] = {"jobOutputType": "uri_folder", "mode": "ReadWriteMount", "uri": files, "description": None}
    studio = f"https://ml.azure.com/runs/{job.name}?wsid={WORKSPACE_ID}"
    return {
        "id": f"{WORKSPACE_ID}/jobs/{job.name}",
        "name": job.name,
        "type": f"{PROVIDER}/workspaces/jobs",
        "systemData": {"createdAt": job.created, "createdBy": "emu", "createdByType": "User"},
        "properties": {
            **wanted,
            "jobType": "Command",
            "status": job.status,
            "displayName": wanted.get("displayName") or job.name,
            "experimentName": job.experiment,
            "isArchived": False,
            "parameters": {},
            "outputs": outputs,
            "tags": wanted.get("tags") or {},
            "properties": wanted.get("properties") or {},
            "services": {
                "Tracking": {"jobServiceType": "Tracking", "endpoint": f"{TRACKING}?"},
                "Studio": {"jobServiceType": "Studio", "endpoint": studio},
            },
        },
    }
