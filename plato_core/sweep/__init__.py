"""The sweep as a process of its own: building and running the Tuner, scheduling, stopping, lineage."""
