"""What Ray reads from the environment; apart from the rest because it must be set before Ray is imported."""

from __future__ import annotations

import os

# Read by Ray when it is imported or started, so set before either.
ENVIRONMENT = {
    "RAY_USAGE_STATS_ENABLED": "0",
    # A head that `ray start` started would report that nothing is reported; to no address it cannot.
    "RAY_USAGE_STATS_REPORT_URL": "none",
    "RAY_TQDM_PATCH_PRINT": "0",  # Ray would replace builtins.print
    "RAY_AIR_NEW_OUTPUT": "0",
    "RAY_CHDIR_TO_TRIAL_DIR": "0",  # an environment may read files relative to where the sweep was started
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",  # ours are named one by one; TensorBoard's costs time at each result
    "TUNE_DISABLE_SIGINT_HANDLER": "1",  # the parent process decides what Ctrl-C means
    "OMP_NUM_THREADS": "1",
}

# For a Ray of this machine only: its servers listen on 127.0.0.1 and nowhere else. (Ray's own switch for systems
# whose firewall asks about every port; `_node_ip_address="127.0.0.1"` is turned into the machine's address.)
LOCAL_ENVIRONMENT = {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}


def prepare_environment(*, local: bool) -> None:
    """Sets what Ray reads at import and start; of `ENVIRONMENT` what the user has set stays.

    Call it before anything imports Ray.

    Args:
        local: Whether the sweep runs on a Ray of this machine.
    """
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    if local:
        os.environ.update(LOCAL_ENVIRONMENT)
