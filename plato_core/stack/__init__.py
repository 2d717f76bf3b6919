"""The local stack: a Prefect server, an MLflow server and a worker on 127.0.0.1, kept running by a supervisor.

`plato up` and `plato down` are its commands. Of Prefect and MLflow it knows their command lines and HTTP APIs alone.
"""
