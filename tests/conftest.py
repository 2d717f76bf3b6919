"""What holds for all tests."""

import os
import signal

# The processes that an MLflow server has for evaluation jobs take 20 s of CPU after it has begun to answer.
os.environ.setdefault("MLFLOW_SERVER_ENABLE_JOB_EXECUTION", "false")

# A script's shell has what it starts in the background ignore Ctrl-C, and so would all that the tests start.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
