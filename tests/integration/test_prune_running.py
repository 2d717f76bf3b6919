"""A sweep's own processes keep its folder from being pruned, each by itself."""

from __future__ import annotations

from pathlib import Path

from plato_core.config_sources import load_config
from plato_core.prune import prune
from plato_core.sweep.events import Phase
from plato_core.sweep.process import SweepProcess


def test_a_sweep_is_held_by_its_parent_and_by_its_own_process(tmp_path: Path) -> None:
    config = load_config({"test_local": True, "storage_path": str(tmp_path)}, None, {})

    def kept() -> list[str]:
        return [kept.why for kept in prune(tmp_path, older_than_days=0).kept]

    with SweepProcess(config) as process:
        assert kept() == ["running"]
        assert isinstance(next(event for event in process.events() if event is not None), Phase)
        process._running.release()  # as if the parent had been killed
        assert kept() == ["running"]
    assert kept() == []
