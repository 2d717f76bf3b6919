"""The command line: help, and one line with exit code 2 for bad input, before anything heavy is imported."""

import json
import logging
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from cyclopts import App

from plato_core.cli import _run, main, sweep_main
from plato_core.cli.sweep import GROUPS
from plato_core.config import SweepConfig
from plato_core.errors import ConfigError, SelectionError, SweepStopped

HEAVY = ("ray", "mlflow", "prefect", "torch")


@pytest.fixture(autouse=True)
def clean(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    for name in list(os.environ):
        if name.startswith("PLATO_") or name in ("MLFLOW_TRACKING_URI", "RAY_ADDRESS"):
            monkeypatch.delenv(name)


def refused(argv: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    before = set(Path.cwd().rglob("*"))
    assert sweep_main(argv) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert set(Path.cwd().rglob("*")) == before, "a refused sweep left something behind"
    return err


@pytest.mark.parametrize("argv", [["--help"], ["--num-tune-samples", "0"], ["--env-name", "CartPol-v1"]])
def test_help_and_bad_input_import_nothing_heavy(argv: list[str]) -> None:
    code = (
        "import json, sys; from plato_core.cli import sweep_main; code = sweep_main(sys.argv[1:]);"
        f"print(json.dumps([code, [m for m in {HEAVY} if m in sys.modules]]))"
    )
    done = subprocess.run([sys.executable, "-c", code, *argv], capture_output=True, text=True, check=True)
    code, heavy = json.loads(done.stdout.splitlines()[-1])
    assert code == (0 if argv == ["--help"] else 2)
    assert heavy == []


def test_help_shows_every_flag_with_the_settings_own_words(capsys: pytest.CaptureFixture[str]) -> None:
    assert sweep_main(["--help"]) == 0
    text = capsys.readouterr().out
    for title, names in GROUPS.items():
        assert title in text
        for name in names:
            assert f"--{name.replace('_', '-')}" in text
            if name in SweepConfig.model_fields:
                description = SweepConfig.model_fields[name].description
                assert description is not None
                assert description in text
    assert "[default: 120, 5 with nightly, 5 with test-local]" in text
    assert "pbt|asha|median" in text


def test_every_flag_but_the_commands_own_is_a_setting() -> None:
    flags = {name for names in GROUPS.values() for name in names}
    assert flags - {"config", "json", "job_variable"} <= set(SweepConfig.model_fields)


def test_the_installed_command_has_the_sweep(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    out = capsys.readouterr().out
    assert "sweep" in out
    assert "flush" in out
    assert main(["sweep", "--help"]) == 0
    assert "--test-local" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["--num-tune-sample", "3"], ["--num-tune-sample", "Did you mean --num-tune-samples?"]),
        (["--num-tune-samples", "0"], ["--num-tune-samples: '0'", "at least 1"]),
        (["--num-tune-samples", "many"], ["'many'", "a whole number"]),
        (["--seed", "-1"], ["'-1'", "at least 0"]),
        (["--seed"], ["--seed requires an argument"]),
        (["stray"], ["'stray' belongs to no flag"]),
        (["--scheduler", "pbd"], ["pbt or asha or median", "did you mean pbt?"]),
        (["--algorithm", "dqn"], ["did you mean DQN?", "PPO"]),
        (["--rank-metric", "metrics.episode_rewards_mean"], ["did you mean episode_reward_mean?"]),
        (["--env-name", "CartPol-v1"], ["did you mean CartPole-v1?"]),
        (["--env-name", "Nonesuch"], ["there are Acrobot-v1", "Pendulum-v1"]),
        (["--env-name", "no_such_module:Env-v0"], ["the module 'no_such_module'", "install it"]),
        (["--env-name", "Pendulum-v1", "--algorithm", "DQN"], ["DQN cannot act", "needs Discrete", "SAC"]),
        (["--test-local", "--ray-address", "auto"], ["'auto'", "--test-local"]),
        (["--num-cpus", "100000"], ["100000 are more CPUs", "at most"]),
        (["--num-cpus", "1", "--num-env-runners", "1"], ["1 need 2 CPUs", "at most 0"]),
        (["--tracking-uri", "http://127.0.0.1:9"], ["http://127.0.0.1:9 cannot be reached"]),
        (["--tracking-uri", "postgresql://127.0.0.1:9/x"], ["postgresql://127.0.0.1:9/x cannot be reached"]),
        (["--tracking-uri", "./mlruns"], ["file store", "sqlite:///"]),
        (["--tracking-uri", "sqlitee:///x"], ["did you mean sqlite?"]),
        (["--tracking-uri", "sqlite://"], ["names no file"]),
        (["--tracking-uri", "sqlite:///none/mlflow.db"], ["does not exist"]),
        (["--config", "none.yaml"], ["no such file"]),
    ],
)
def test_bad_input_gets_one_line_and_leaves_nothing(
    argv: list[str], said: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    text = refused(argv, capsys)
    for part in said:
        assert part in text


def test_a_file_where_a_folder_should_be_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    Path("taken").write_text("")
    for flag in ("--local-path", "--storage-path"):
        assert "taken is a file" in refused([flag, "taken"], capsys)
        assert "taken is a file" in refused([flag, "taken/below"], capsys)


def test_a_store_that_is_no_database_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    Path("mlflow.db").write_text("something else altogether")
    assert "no SQLite database" in refused([], capsys)


def test_a_misspelled_key_of_the_file_is_told_with_its_line(capsys: pytest.CaptureFixture[str]) -> None:
    Path("sweep.yaml").write_text("mode: max\nnum_tune_sample: 3\n")
    text = refused(["--config", "sweep.yaml"], capsys)
    assert "sweep.yaml line 2" in text
    assert "did you mean num_tune_samples?" in text


def test_a_negative_return_to_stop_at_is_a_value(capsys: pytest.CaptureFixture[str]) -> None:
    text = refused(["--env-name", "Pendulum-v1", "--stop-reward", "-200", "--mode", "x"], capsys)
    assert "--mode: 'x'" in text


def test_flushing_a_folder_that_is_not_there_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["flush", "nowhere"]) == 2
    assert "no such folder" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("raised", "code", "said"),
    [
        (ConfigError("x: 1 is\n not possible"), 2, "error: x: 1 is not possible\n"),
        (SelectionError("no run qualifies"), 1, "error: no run qualifies\n"),
        (SweepStopped("told to stop", signal.SIGTERM), 143, "error: told to stop\n"),
        (KeyboardInterrupt(), 130, "error: stopped by Ctrl-C\n"),
    ],
)
def test_an_end_on_purpose_is_one_line_and_its_exit_code(
    raised: BaseException, code: int, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert _run(_raising(raised), []) == code
    assert capsys.readouterr().err == said


def test_a_bug_keeps_its_traceback() -> None:
    with pytest.raises(ZeroDivisionError):
        _run(_raising(ZeroDivisionError()), [])


def _raising(error: BaseException) -> App:
    app = App(suppress_keyboard_interrupt=False)

    @app.default
    def command() -> int:
        raise error

    return app


def test_an_unknown_command_is_refused_with_the_nearest(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["swep"]) == 2
    assert 'Did you mean "sweep"?' in capsys.readouterr().err


def test_a_retry_within_a_command_is_no_line_of_its_output(caplog: pytest.LogCaptureFixture) -> None:
    stamina = logging.getLogger("stamina")
    stamina.setLevel(logging.NOTSET)
    assert main(["--version"]) == 0
    stamina.warning("stamina.retry_scheduled")
    assert not caplog.records
