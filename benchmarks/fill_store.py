"""An MLflow store of SQLite with many runs, as many sweeps leave them.

MLflow makes the store, and SQL fills its tables: 100 000 runs through its API would take hours. The history of each
metric is left out, since no search reads it; a run's latest values, params and tags are there, as a sweep logs them.
"""

from __future__ import annotations

import random
import sqlite3
from dataclasses import dataclass
from pathlib import Path

from plato_core.manifest import write_manifest
from plato_core.tracking.client import make_client
from plato_core.tracking.transfer import upload_checkpoint
from plato_core.training.metrics import CONTRACT_METRICS, LEARNER_METRICS

METRIC = "episode_reward_mean"
EXPERIMENT = "many"
CHILDREN = 16
TUNED = ("hp/lr", "hp/lambda", "hp/clip_param", "hp/entropy_coeff")
PARAMS = (
    "clip_param", "env", "kl_coeff", "lambda", "lr", "num_cpus", "num_gpus", "num_sgd_iter", "num_workers",
    "sgd_minibatch_size", "train_batch_size",
)  # fmt: skip
TAGS = (
    "mlflow.runName", "mlflow.user", "mlflow.source.name", "mlflow.source.type", "trial_name", "plato.sweep_id",
    "plato.trial_id",
)  # fmt: skip
_BEGAN_MS = 1_700_000_000_000


@dataclass(frozen=True)
class Filled:
    """A filled store.

    Attributes:
        database: Its file.
        artifacts: Where its artifacts are.
        runs: How many it has, parents and all.
        parent_run_id: A sweep of it, in the middle.
        top_of_sweep: That sweep's best finished run.
        top_of_all: The best finished run of the experiment.
    """

    database: Path
    artifacts: Path
    runs: int
    parent_run_id: str
    top_of_sweep: str
    top_of_all: str

    @property
    def uri(self) -> str:
        """Its tracking URI."""
        return f"sqlite:///{self.database}"

    def serve(self, through_server: bool) -> None:
        """Has the runs with a checkpoint give their place as a server's clients need it, or as those of the file."""
        root = "mlflow-artifacts:" if through_server else str(self.artifacts)
        with sqlite3.connect(self.database) as connection:
            for run_id in (self.top_of_sweep, self.top_of_all):
                uri = f"{root}/{run_id}/artifacts"
                connection.execute("UPDATE runs SET artifact_uri = ? WHERE run_uuid = ?", (uri, run_id))
        connection.close()


def fill(folder: Path, count: int, *, saturated: bool, seed: int = 1) -> Filled:
    """Makes a store with about `count` runs: sweeps of 16 children and their parent, 3 % of them FAILED.

    Args:
        folder: Where to make it.
        count: Of runs.
        saturated: Whether the best value is that of every tenth run, as where an environment has a highest return.
        seed: Draws ids and values.
    """
    database, artifacts = folder / "mlflow.db", folder / "artifacts"
    client = make_client(f"sqlite:///{database}")
    experiment_id = int(client.create_experiment(EXPERIMENT, artifact_location=str(artifacts)))
    rows = _runs(count, saturated, seed)
    connection = sqlite3.connect(database)
    for pragma in ("journal_mode = OFF", "synchronous = OFF", "cache_size = -1000000", "temp_store = MEMORY"):
        connection.execute(f"PRAGMA {pragma}")
    connection.execute("CREATE TEMP TABLE made (run_id, name, sweep, parent, status, start, value)")
    connection.executemany("INSERT INTO made VALUES (?, ?, ?, ?, ?, ?, ?)", rows)
    connection.execute(
        "INSERT INTO runs (run_uuid, name, source_type, source_name, entry_point_name, user_id, status, start_time,"
        " end_time, source_version, lifecycle_stage, artifact_uri, experiment_id)"
        " SELECT run_id, name, 'LOCAL', '', '', 'unknown', status, start, start + 600000, '', 'active',"
        " ? || '/' || run_id || '/artifacts', ? FROM made",
        (str(artifacts), experiment_id),
    )
    _insert(connection, "latest_metrics", (*CONTRACT_METRICS, *LEARNER_METRICS, *TUNED))
    _insert(connection, "params", PARAMS)
    _insert(connection, "tags", TAGS)
    connection.execute(
        "INSERT INTO tags (key, value, run_uuid)"
        " SELECT 'mlflow.parentRunId', parent, run_id FROM made WHERE parent IS NOT NULL"
    )
    connection.commit()
    connection.execute("DROP TABLE made")
    connection.close()
    children = [row for row in rows if row[3] is not None]
    parent = children[len(children) // 2][3]
    assert parent is not None
    top_of_sweep = _best([row for row in children if row[3] == parent])
    filled = Filled(database, artifacts, len(rows), parent, top_of_sweep, _best(children))
    filled.serve(through_server=False)
    for run_id in {filled.top_of_sweep, filled.top_of_all}:
        checkpoint = folder / "checkpoints" / run_id
        checkpoint.mkdir(parents=True)
        (checkpoint / "algorithm_state.pkl").write_bytes(bytes(1000))
        manifest = write_manifest(
            checkpoint,
            sweep_id="s",
            trial_id="t",
            trial_name="t",
            iteration=12,
            metric=METRIC,
            score=1.0,
            hyperparameters={},
            versions={},
        )
        upload_checkpoint(client, run_id, checkpoint, manifest)
    return filled


_Row = tuple[str, str, str, str | None, str, int, float | None]


def _runs(count: int, saturated: bool, seed: int) -> list[_Row]:
    draw = random.Random(seed)
    rows: list[_Row] = []
    for sweep in range(max(1, round(count / (CHILDREN + 1)))):
        began = _BEGAN_MS + sweep * 900_000
        parent = f"{draw.getrandbits(128):032x}"
        rows.append((parent, f"sweep {sweep}", f"s{sweep}", None, "FINISHED", began, None))
        for child in range(CHILDREN):
            value = draw.gauss(350.0, 120.0)
            rows.append(
                (
                    f"{draw.getrandbits(128):032x}",
                    f"PPO_CartPole-v1_{sweep}_{child:05}",
                    f"s{sweep}",
                    parent,
                    "FAILED" if draw.random() < 0.03 else "FINISHED",
                    began + 1000 + child,
                    min(500.0, value) if saturated else value,
                )
            )
    return rows


def _best(rows: list[_Row]) -> str:
    finished = [row for row in rows if row[4] == "FINISHED"]
    return min(finished, key=lambda row: (-(row[6] or 0.0), row[5], row[0]))[0]


def _insert(connection: sqlite3.Connection, table: str, keys: tuple[str, ...]) -> None:
    """Gives each child a row for each key, in the order in which a store gets them: run by run."""
    connection.execute("CREATE TEMP TABLE names (key)")
    connection.executemany("INSERT INTO names VALUES (?)", [(key,) for key in dict.fromkeys(keys)])
    found = connection.execute(
        "SELECT name, sql FROM sqlite_master WHERE type = 'index' AND tbl_name = ? AND sql IS NOT NULL", (table,)
    ).fetchall()
    for name, _ in found:  # built at once afterwards, which is several times faster
        connection.execute(f"DROP INDEX {name}")
    if table == "latest_metrics":
        connection.execute(
            "INSERT INTO latest_metrics (key, value, timestamp, step, is_nan, run_uuid)"
            " SELECT key, CASE key WHEN ? THEN value ELSE made.rowid * 0.001 END, start + 600000, 100, 0, run_id"
            " FROM made CROSS JOIN names WHERE parent IS NOT NULL",
            (METRIC,),
        )
    else:
        connection.execute(
            f"INSERT INTO {table} (key, value, run_uuid)"
            " SELECT key, CASE key WHEN 'plato.sweep_id' THEN sweep ELSE name END, run_id"
            " FROM made CROSS JOIN names WHERE parent IS NOT NULL"
        )
    for _, sql in found:
        connection.execute(sql)
    connection.execute("DROP TABLE names")
