"""`plato notify`: mistakes are told before anybody gives away a secret."""

from pathlib import Path

import pytest
from prefect.settings import PREFECT_API_URL, PREFECT_CLIENT_MAX_RETRIES, temporary_settings

from plato_core.cli import main

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    ("on", "said"),
    [
        ("faild", "--on: 'faild' is none of failed, completed (did you mean failed?)"),
        (" ,", "--on: names no end of a sweep; give some of failed, completed, or --off"),
        ("failed", "PREFECT_API_URL: no Prefect server answers at http://127.0.0.1:9/api"),
    ],
)
def test_the_address_is_asked_for_when_all_else_is_right(
    on: str, said: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def asked(prompt: str) -> str:
        raise AssertionError("asked for the address")

    monkeypatch.chdir(ROOT)
    monkeypatch.setattr("sys.stdin.isatty", lambda: True, raising=False)
    monkeypatch.setattr("getpass.getpass", asked)
    with temporary_settings({PREFECT_API_URL: "http://127.0.0.1:9/api", PREFECT_CLIENT_MAX_RETRIES: 0}):
        assert main(["notify", "--on", on]) == 2
    assert said in capsys.readouterr().err
