"""Runs `plato aml doctor` again and again in one process, whose imports take seconds: `python -m doctor_driver`.

Each line of standard input is a run, as JSON: `argv`, `cwd`, `env` (a variable that is null is taken away), `limits`
(how long Azure's SDKs wait, in seconds, in place of their own limits). Each of standard output is what came of one:
`code`, `out`, `err`.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import sys
from typing import Any

from plato_core.aml.credentials import TIMEOUTS
from plato_core.cli import main


def run(argv: list[str], cwd: str, env: dict[str, str | None], limits: dict[str, float]) -> dict[str, Any]:
    before, usual = dict(os.environ), dict(TIMEOUTS)
    TIMEOUTS.update(limits)
    os.environ.update({name: value for name, value in env.items() if value is not None})
    for name in [name for name, value in env.items() if value is None]:
        os.environ.pop(name, None)
    os.chdir(cwd)
    out, err = io.StringIO(), io.StringIO()
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            code = main(argv)
    finally:
        os.environ.clear()
        os.environ.update(before)
        TIMEOUTS.update(usual)
    return {"code": code, "out": out.getvalue(), "err": err.getvalue()}


if __name__ == "__main__":
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever a library prints on its own is no answer
    for line in sys.stdin:
        print(json.dumps(run(**json.loads(line))), file=answers, flush=True)
