"""Azure's resource manager: the workspace, its computes and datastores; code, environments and jobs lie beside it."""

from __future__ import annotations

from aml_emulator.assets import Codes, Environments
from aml_emulator.cloud import (
    ACCOUNT,
    API,
    DATASTORES,
    LOCATION,
    PROVIDER,
    RESOURCE_GROUP,
    SUBSCRIPTION,
    SUFFIX,
    TENANT,
    TRACKING,
    VAULT,
    WORKSPACE,
    WORKSPACE_GUID,
    WORKSPACE_ID,
)
from aml_emulator.jobs_api import Jobs
from aml_emulator.messages import Answer, Request, ServiceError, as_json, no_route, not_found
from aml_emulator.state import Compute, State
from aml_emulator.tokens import Tokens


class Arm:
    """Answers for `{workspace}/...`.

    Args:
        state: The workspace's.
        tokens: For signatures.
        jobs: The job operations.
        datastore_auth: What `listSecrets` hands out: `key`, `sas` or `identity` (nothing).
    """

    def __init__(self, state: State, tokens: Tokens, jobs: Jobs, datastore_auth: str) -> None:
        self._state, self._tokens, self._datastore_auth = state, tokens, datastore_auth
        self._jobs, self._codes = jobs, Codes(state, tokens)
        self._environments = Environments(state)

    def answer(self, request: Request, workspace: str, rest: str) -> Answer:
        if workspace != WORKSPACE:
            kind = f"{PROVIDER}/workspaces/{workspace}"
            message = f"The Resource '{kind}' under resource group '{RESOURCE_GROUP}' was not found."
            raise ServiceError(404, "ResourceNotFound", message)
        kind, *path = [part for part in rest.split("/") if part] or [""]
        match kind:
            case "":
                return as_json(_workspace())
            case "computes" if len(path) <= 1:
                return self._compute(path)
            case "codes":
                return self._codes.answer(request, path)
            case "environments":
                return self._environments.answer(request, path)
            case "datastores":
                return self._datastore(path)
            case "jobs":
                return self._jobs.answer(request, path)
            case "mfeOperationResults":
                return self._jobs.operation(path[0])
        raise no_route(request)

    def _compute(self, path: list[str]) -> Answer:
        if not path:
            return as_json({"value": [_compute(name, compute) for name, compute in self._state.computes.items()]})
        compute = self._state.computes.get(path[0])
        if compute is None:
            raise ServiceError(404, "UserError", f"Compute target {path[0]} not found.")
        return as_json(_compute(path[0], compute))

    def _datastore(self, path: list[str]) -> Answer:
        if not path:
            return as_json({"value": [self._datastore_json("workspaceblobstore")]})
        if path[0] not in DATASTORES:
            raise not_found(f"Could not find datastore {path[0]}.")
        if len(path) == 2 and path[1].lower() == "listsecrets":
            match self._datastore_auth:
                case "sas":
                    return as_json({"secretsType": "Sas", "sasToken": self._tokens.sas("racwl")})
                case "key":
                    return as_json({"secretsType": "AccountKey", "key": self._tokens.account_key})
            raise ServiceError(400, "UserError", "The datastore has no credentials: it is identity-based.")
        return as_json(self._datastore_json(path[0]))

    def _datastore_json(self, name: str) -> dict[str, object]:
        return {
            "id": f"{WORKSPACE_ID}/datastores/{name}",
            "name": name,
            "type": f"{PROVIDER}/workspaces/datastores",
            "properties": {
                "datastoreType": "AzureBlob",
                "accountName": ACCOUNT,
                "containerName": DATASTORES[name],
                "endpoint": SUFFIX,
                "protocol": "https",
                "isDefault": name == "workspaceblobstore",
                "credentials": {"credentialsType": "None" if self._datastore_auth == "identity" else "AccountKey"},
                "properties": {},
                "tags": {},
                "serviceDataAccessAuthIdentity": "None",
            },
        }


def _workspace() -> dict[str, object]:
    group = f"/subscriptions/{SUBSCRIPTION}/resourceGroups/{RESOURCE_GROUP}/providers"
    return {
        "id": WORKSPACE_ID,
        "name": WORKSPACE,
        "type": f"{PROVIDER}/workspaces",
        "location": LOCATION,
        "kind": "Default",
        "tags": {},
        "identity": {"type": "SystemAssigned", "principalId": "emu-principal", "tenantId": TENANT},
        "sku": {"name": "Basic", "tier": "Basic"},
        "properties": {
            "workspaceId": WORKSPACE_GUID,
            "friendlyName": WORKSPACE,
            "description": "",
            "discoveryUrl": f"{API}/discovery",
            "mlFlowTrackingUri": TRACKING,
            "storageAccount": f"{group}/Microsoft.Storage/storageAccounts/{ACCOUNT}",
            "keyVault": f"{group}/Microsoft.Keyvault/vaults/{VAULT}",
            "provisioningState": "Succeeded",
            "publicNetworkAccess": "Enabled",
            "hbiWorkspace": False,
        },
    }


def _compute(name: str, compute: Compute) -> dict[str, object]:
    properties: dict[str, object] = {"vmSize": compute.vm_size}
    if compute.kind == "AmlCompute":
        limits = {
            "minNodeCount": compute.min_nodes,
            "maxNodeCount": compute.max_nodes,
            "nodeIdleTimeBeforeScaleDown": "PT2M",
        }
        properties |= {
            "vmPriority": compute.priority,
            "scaleSettings": limits,
            "allocationState": "Steady",
            "currentNodeCount": compute.busy,
            "targetNodeCount": compute.busy,
            "osType": "Linux",
            "remoteLoginPortPublicAccess": "NotSpecified",
        }
    else:
        properties |= {"state": "Running", "applicationSharingPolicy": "Personal", "sshSettings": {}}
    identity = {"identity": {"type": "SystemAssigned", "principalId": f"emu-{name}", "tenantId": TENANT}}
    return {
        "id": f"{WORKSPACE_ID}/computes/{name}",
        "name": name,
        "type": f"{PROVIDER}/workspaces/computes",
        "location": LOCATION,
        **(identity if compute.identity else {}),
        "properties": {
            "computeType": compute.kind,
            "provisioningState": "Succeeded",
            "computeLocation": LOCATION,
            "isAttachedCompute": False,
            "disableLocalAuth": False,
            "properties": properties,
        },
    }
