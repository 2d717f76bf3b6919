"""The sweep of `--test-local` written with stock parts alone, as a competent user would paste it together.

Ray Tune's PBT, RLlib's "PPO", Ray's `MLflowLoggerCallback` and `mlflow.search_runs`. `log_params_on_trial_end=True`
is set because without it the stock callback aborts the sweep at the first perturbation. The last line of the output
is one JSON object of what a user pays.

::

    python benchmarks/stock_sweep.py WORKDIR [POPULATION] [all|first]     # first: ends at the first trial solved
"""

import json
import os
import sys
import time
from typing import Any

BEGAN = time.time()  # before the libraries are imported, which is a part of what a user waits for
SLOTS = 2
METRIC = "env_runners/episode_return_mean"
EXPERIMENT = "pbt_ppo"
TRACKING_URI = "sqlite:///mlflow.db"
SOLVED = 475
MOST_ITERATIONS = 40


def stock_scheduler() -> Any:
    """Returns Tune's own PBT, with the perturbations of `--test-local`."""
    from ray import tune
    from ray.tune.schedulers import PopulationBasedTraining

    return PopulationBasedTraining(
        time_attr="training_iteration",
        perturbation_interval=5,
        resample_probability=0.25,
        hyperparam_mutations={
            "lr": tune.loguniform(1e-4, 3e-3),
            "lambda": tune.uniform(0.8, 1.0),
            "clip_param": tune.uniform(0.1, 0.4),
        },
        custom_explore_fn=lambda config: {**config, "lambda": min(config["lambda"], 1.0)},
    )


def stock_algorithm() -> dict[str, Any]:
    """Returns RLlib's PPO for CartPole-v1 as Tune takes it."""
    from ray.rllib.algorithms.ppo import PPOConfig

    algorithm = (
        PPOConfig()
        .environment("CartPole-v1")
        .env_runners(num_env_runners=0, num_envs_per_env_runner=16)
        .training(
            lr=1e-3,
            train_batch_size_per_learner=2048,
            minibatch_size=256,
            num_epochs=8,
            gamma=0.98,
            lambda_=0.9,
            clip_param=0.2,
            vf_loss_coeff=0.5,
            grad_clip=0.5,
        )
    )
    return algorithm.to_dict()


def main(work: str, population: int = 4, stop_when: str = "all") -> dict[str, Any]:
    """Runs the sweep in the folder `work` and returns what it took and what it left."""
    work = os.path.abspath(work)
    os.makedirs(work, exist_ok=True)
    os.chdir(work)

    import mlflow
    import ray
    from mlflow.utils.mlflow_tags import MLFLOW_PARENT_RUN_ID
    from ray import tune
    from ray.air.integrations.mlflow import MLflowLoggerCallback

    ray.init(num_cpus=SLOTS, include_dashboard=False, log_to_driver=False)
    mlflow.set_tracking_uri(TRACKING_URI)
    mlflow.set_experiment(EXPERIMENT)
    run = mlflow.start_run()
    callback = MLflowLoggerCallback(
        tracking_uri=TRACKING_URI,
        experiment_name=EXPERIMENT,
        save_artifact=True,
        log_params_on_trial_end=True,
        tags={MLFLOW_PARENT_RUN_ID: run.info.run_id},
    )

    class First(tune.Stopper):
        solved = False

        def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
            self.solved = self.solved or result.get("env_runners", {}).get("episode_return_mean", 0.0) >= SOLVED
            return self.solved or result["training_iteration"] >= MOST_ITERATIONS

        def stop_all(self) -> bool:
            return self.solved

    fit_began = time.time()
    results = tune.Tuner(
        "PPO",
        param_space=stock_algorithm(),
        tune_config=tune.TuneConfig(metric=METRIC, mode="max", scheduler=stock_scheduler(), num_samples=population),
        run_config=tune.RunConfig(
            stop=First() if stop_when == "first" else {METRIC: SOLVED, "training_iteration": MOST_ITERATIONS},
            storage_path=f"{work}/ray",
            name="stock",
            verbose=0,
            checkpoint_config=tune.CheckpointConfig(checkpoint_frequency=5, checkpoint_at_end=True),
            callbacks=[callback],
        ),
    ).fit()
    fit_s = time.time() - fit_began

    last = [result.metrics for result in results if result.metrics]
    trained_s = sum(metrics["time_total_s"] for metrics in last if "time_total_s" in metrics)
    iterations = sum(metrics["training_iteration"] for metrics in last if "training_iteration" in metrics)
    best = max(metrics["env_runners"]["episode_return_mean"] for metrics in last if "env_runners" in metrics)
    runs: Any = mlflow.search_runs(experiment_names=[EXPERIMENT])
    top = runs.sort_values(by=f"metrics.{METRIC}", ascending=False)["run_id"].values[0]
    artifacts = [artifact.path for artifact in mlflow.MlflowClient().list_artifacts(top)]
    return {
        "wall_s": round(time.time() - BEGAN, 1),
        "fit_s": round(fit_s, 1),
        "trained_slot_s": round(trained_s, 1),
        "iterations": iterations,
        "efficiency": round(trained_s / (SLOTS * fit_s), 3),
        "best": best,
        "checkpoint_in_mlflow": any("checkpoint" in artifact for artifact in artifacts),
        "artifacts": artifacts,
    }


if __name__ == "__main__":
    if not 2 <= len(sys.argv) <= 4:
        raise SystemExit("usage: stock_sweep.py WORKDIR [POPULATION] [all|first]")
    arguments: list[Any] = [sys.argv[1], *map(int, sys.argv[2:3]), *sys.argv[3:4]]
    print(json.dumps(main(*arguments)))
