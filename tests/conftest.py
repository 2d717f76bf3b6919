"""What holds for all tests."""

import os

# The processes that an MLflow server has for evaluation jobs take 20 s of CPU after it has begun to answer.
os.environ.setdefault("MLFLOW_SERVER_ENABLE_JOB_EXECUTION", "false")
