"""The flow's steps, one Prefect task each, thin over `plato_core`."""
