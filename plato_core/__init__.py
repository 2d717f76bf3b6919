"""Population Based Training sweeps of RLlib policies, orchestrated by Prefect and tracked in MLflow."""
