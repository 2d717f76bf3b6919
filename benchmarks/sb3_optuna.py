"""The main job as a user of Stable-Baselines3 and Optuna would write it, with rl_zoo3's tuned settings of CartPole-v1.

4 trials over 2 processes, each stopped at a mean return of 475 or 80 k steps; every trial's model is saved. It needs
`stable-baselines3` and `optuna`, which `make bench` installs into a virtual environment of their own. The last line of
the output is one JSON object.

::

    python benchmarks/sb3_optuna.py WORKDIR [first]       # first: the study stops at the first trial that reaches 475
"""

# pyright: reportMissingImports=false

import json
import multiprocessing
import os
import sys
import time
from pathlib import Path
from typing import Any

BEGAN = time.time()  # before the libraries are imported, which is a part of what a user waits for
DATABASE = "sqlite:///optuna.db"
SOLVED_FILE = Path("solved")
SOLVED = 475.0
SLICE = 8192
BUDGET = 81920


def work(trials: int, first: bool) -> None:
    """Runs trials of the study, one after the other; for a process of its own."""
    import numpy as np
    import optuna
    import torch
    from stable_baselines3 import PPO
    from stable_baselines3.common.env_util import make_vec_env

    torch.set_num_threads(1)

    def objective(trial: Any) -> float:
        began = time.time()
        model = PPO(
            "MlpPolicy",
            make_vec_env("CartPole-v1", n_envs=8),
            n_steps=32,
            batch_size=256,
            gae_lambda=trial.suggest_float("gae_lambda", 0.8, 0.95),
            gamma=0.98,
            n_epochs=20,
            learning_rate=trial.suggest_float("lr", 3e-4, 3e-3, log=True),
            clip_range=trial.suggest_float("clip", 0.1, 0.3),
            device="cpu",
        )
        steps, mean = 0, 0.0
        while steps < BUDGET and mean < SOLVED and not (first and SOLVED_FILE.exists()):
            model.learn(SLICE, reset_num_timesteps=False)
            steps += SLICE
            mean = float(np.mean([episode["r"] for episode in model.ep_info_buffer]))
        model.save(f"model_{trial.number}")
        trial.set_user_attr("trained_s", time.time() - began)
        trial.set_user_attr("steps", steps)
        if first and mean >= SOLVED:
            SOLVED_FILE.touch()
            trial.study.stop()
        return mean

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    optuna.load_study(study_name="study", storage=DATABASE).optimize(objective, n_trials=trials)


def main(folder: str, first: bool) -> dict[str, Any]:
    """Runs the study in a folder and returns what it took and what it came to."""
    os.makedirs(folder, exist_ok=True)
    os.chdir(folder)
    import optuna

    optuna.create_study(study_name="study", storage=DATABASE, direction="maximize")
    context = multiprocessing.get_context("spawn")
    fit_began = time.time()
    processes = [context.Process(target=work, args=(2, first)) for _ in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    trials = optuna.load_study(study_name="study", storage=DATABASE).trials
    done = [trial for trial in trials if trial.value is not None]
    return {
        "wall_s": round(time.time() - BEGAN, 1),
        "fit_s": round(time.time() - fit_began, 1),
        "trained_slot_s": round(sum(trial.user_attrs["trained_s"] for trial in done), 1),
        "steps": sum(trial.user_attrs["steps"] for trial in done),
        "trials": len(done),
        "best": max(trial.value for trial in done),
        "values": [trial.value for trial in done],
    }


if __name__ == "__main__":
    if not 2 <= len(sys.argv) <= 3 or sys.argv[2:] not in ([], ["first"]):
        raise SystemExit("usage: sb3_optuna.py WORKDIR [first]")
    print(json.dumps(main(os.path.abspath(sys.argv[1]), sys.argv[2:] == ["first"])))
