"""What a sweep needs before it trains, done bare, one after the other; a line on standard error after each.

`benchmarks/start_up.py` runs it and adds the times.
"""

from __future__ import annotations

import os
import sys
from typing import Any

from first_step import ENV_NAME


def main() -> None:
    """Starts Ray, MLflow and Prefect, imports RLlib, builds an algorithm and trains an iteration, in this order."""
    os.environ.update({"OMP_NUM_THREADS": "1", "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": "60"})
    os.environ.update({"PREFECT_SERVER_ANALYTICS_ENABLED": "false", "PREFECT_LOGGING_LEVEL": "ERROR"})
    _mark("Python started")
    import ray

    ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False)
    _mark("Ray imported and started")

    from mlflow.tracking import MlflowClient

    client = MlflowClient("sqlite:///mlflow.db")
    client.create_run(client.create_experiment("bare"))
    _mark("MLflow imported, its store made, a run opened")

    from prefect import flow

    # With the server up and a run begun: what a flow does comes after this.
    @flow
    def nothing() -> None:
        _mark("Prefect imported, its server started, a flow run begun")

    nothing()

    from ray.rllib.algorithms.ppo import PPOConfig

    _mark("RLlib imported")
    network: Any = {"fcnet_hiddens": [64, 64], "fcnet_activation": "tanh", "vf_share_layers": False}
    config = PPOConfig().environment(ENV_NAME).env_runners(num_env_runners=0, num_envs_per_env_runner=32)
    config.training(
        lr=6e-3,
        train_batch_size_per_learner=2048,
        minibatch_size=512,
        num_epochs=6,
        gamma=0.98,
        lambda_=0.95,
        clip_param=0.2,
        vf_clip_param=1e4,
        kl_coeff=0.0,
        vf_loss_coeff=0.5,
        grad_clip=0.5,
    )
    config.rl_module(model_config=network).debugging(seed=1, log_level="ERROR")
    algorithm = config.build_algo()
    _mark("algorithm built")
    algorithm.train()
    algorithm.stop()
    ray.shutdown()


def _mark(what: str) -> None:
    print(f"mark {what}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
