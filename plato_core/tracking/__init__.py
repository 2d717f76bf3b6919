"""Tracking in MLflow: the trials' callback, its writer and spool; the parent run; queries; artifacts.

Importing any part of it first sets what MLflow reads from the environment, so that MLflow itself, whoever
imports it afterwards, sends no telemetry and prints no progress bars. A variable that is set already is
left as it is.
"""

from plato_core.tracking.client import prepare_environment

prepare_environment()
