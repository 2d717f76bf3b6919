"""The Prefect flows, and the scripts that users start them with."""
