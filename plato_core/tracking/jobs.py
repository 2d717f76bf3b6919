"""The jobs of Azure ML that work on a sweep, one after the other: each has a run of its own, the sweep has one parent.

The first job's own run is the parent. A job that goes on with the sweep has a run too, which only points to the parent.
On the parent the tag `plato.job` names the job that works on the sweep, so that no other takes it up meanwhile: a job's
own run tells whether the job lives, as Azure ML ends it with the job.
"""

import math
import time
from collections.abc import Callable

from plato_core.aml.jobrun import JobRun
from plato_core.errors import ConfigError
from plato_core.tracking.azure import studio_page
from plato_core.tracking.client import make_client, tracking_errors
from plato_core.tracking.parent import ParentRun

JOB_TAG = "plato.job"
RESUMES_TAG = "plato.resumes"
NOTE_TAG = "mlflow.note.content"
# A job whose program has ended is kept by Azure ML for some minutes more, while it stores the job's files.
PATIENCE_S = 600.0
_LIVING = ("RUNNING", "SCHEDULED")
_POLL_S, _SAY_S = 5.0, 60.0


def take_over(
    tracking_uri: str, parent: ParentRun, job: JobRun, say: Callable[[str], None], patience_s: float = PATIENCE_S
) -> None:
    """Have a job go on with a sweep: waits for the end of the job before, and points from its run to the parent.

    Args:
        tracking_uri: The store.
        parent: The sweep's run.
        job: The job that goes on.
        say: Takes a line now and then while it waits.
        patience_s: How long the job before may take to end, in seconds.

    Raises:
        ConfigError: Another job still works on the sweep.
        TrackingError: The store does not answer, or does not know the run.
    """
    client = make_client(tracking_uri)
    with tracking_errors(tracking_uri):
        found = client.get_run(parent.run_id)
        before = found.data.tags.get(JOB_TAG)
        said_at, deadline = -math.inf, time.monotonic() + patience_s
        while before not in (None, "", job.run_id) and client.get_run(before).info.status in _LIVING:
            if (now := time.monotonic()) >= deadline:
                raise ConfigError(
                    f"resume: job {before} still works on this sweep; wait for its end, or cancel it, then try again"
                )
            if now - said_at >= _SAY_S:
                said_at = now
                left = math.ceil((deadline - now) / 60.0)
                say(f"job {before} has not ended yet; waiting for that, for {left} min at most")
            time.sleep(min(_POLL_S, patience_s))
        client.set_tag(parent.run_id, JOB_TAG, job.run_id)
        if job.run_id != parent.run_id:
            page = studio_page(tracking_uri, parent.run_id)
            link = f"[{found.info.run_name}]({page})" if page else str(found.info.run_name)
            client.set_tag(job.run_id, RESUMES_TAG, parent.run_id)
            client.set_tag(job.run_id, NOTE_TAG, f"Goes on with the sweep of {link}, which has its trials.")
