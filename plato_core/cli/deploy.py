"""`plato deploy`: make a Prefect server know the sweeps of this project."""

from pathlib import Path


def deploy() -> int:
    """Apply the deployments of prefect.yaml in this folder to the Prefect server at PREFECT_API_URL."""
    from plato_core import deploying

    folder = Path.cwd()
    deployed = deploying.deploy(folder)
    for deployment in deploying.deployments(folder):
        name, pool = deployment["name"], deployment["work_pool"]["name"]
        schedules = "".join(
            f", at {s['cron']} {s['timezone']}{' (stays paused)' if (name, s.get('slug')) in deployed.paused else ''}"
            for s in deployment.get("schedules", ())
            if s["active"]
        )
        print(f"sweep/{name}: work pool {pool}{schedules}")
    for name, enabled in deployed.automations:
        print(f"automation {name}{'' if enabled else ' (stays switched off)'}")
    return 0
