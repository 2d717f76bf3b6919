"""The tracking server goes away while a sweep runs: training goes on, and what is missing can be sent later."""

from __future__ import annotations

import sys
from pathlib import Path

from product import DONE_S, ROOT, Product, free_port, mlflow_server
from store import Tracked, tracked
from thorough import soaked

ITERATIONS = 40
PLATO = Path(sys.executable).with_name("plato")


@soaked
def test_what_a_store_that_went_away_misses_is_sent_by_plato_flush(product: Product, tmp_path: Path) -> None:
    port = free_port()
    uri, home = f"http://127.0.0.1:{port}", tmp_path.parent / f"{tmp_path.name}-server"
    with mlflow_server(home, port, product.environment) as server:
        script = product.start(*product.short("--tracking-uri", uri, iterations=ITERATIONS))
        script.wait_for_training()
        server.kill()
        code = script.wait(DONE_S)
    assert script.left() == []
    assert code == 1, script.said
    assert script.stdout.count(f"finished at iteration {ITERATIONS}") == 2, script.said  # nobody waited for the store
    assert script.stderr.count("\n") == 1, script.said
    assert uri in script.stderr
    command = f"plato flush .plato/sweeps/{script.sweep_dir.name}"
    assert command in script.stderr

    flush = [PLATO, *command.split()[1:]]
    away = product.run(*flush[1:], program=PLATO)
    assert away.process.returncode == 1, away.said
    assert away.stderr.count("\n") == 1
    assert uri in away.stderr

    with mlflow_server(home, port, product.environment):
        sent = product.run(*flush[1:], program=PLATO)
        assert sent.process.returncode == 0, sent.said
        assert not (script.sweep_dir / "tracking").exists()
        assert_complete(runs := tracked(uri))
        fetched = product.run(
            "--experiment", "pbt_ppo", "--parent-run-id", runs.parent.info.run_id, "--tracking-uri", uri,
            program=ROOT / "flows" / "get_mlflow_artifacts.py",
        )  # fmt: skip
        assert fetched.process.returncode == 0, fetched.said
        assert Path(fetched.stdout.strip()).is_dir()


def assert_complete(runs: Tracked) -> None:
    assert runs.parent.info.status == "FAILED"
    assert "does not answer" in runs.parent.data.tags["plato.error"]
    assert runs.artifacts(runs.parent) == ["config.yaml", "lineage.jsonl"]
    assert len(runs.children) == 2
    for run in runs.children:
        assert run.info.status == "FINISHED"
        for name in ("training_iteration", "time_total_s", "hp/lr"):
            assert [step for step, _ in runs.history(run, name)] == list(range(1, ITERATIONS + 1))
        assert {"params.json", "progress.csv", "result.json", f"checkpoint_{ITERATIONS:06d}"} <= set(
            runs.artifacts(run)
        )
