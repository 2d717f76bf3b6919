"""Azure Machine Learning: sweeps as jobs of a workspace's clusters. Nothing here is imported where none is used."""

WORKER_TYPE = "azure-ml"  # of Prefect's worker and its pools
