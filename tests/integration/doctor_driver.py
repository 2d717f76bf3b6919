"""Runs `plato aml doctor` again and again in one process, whose imports take seconds: `python -m doctor_driver`.

Each line of standard input is a run, as JSON: `argv`, `cwd`, `env` (a variable that is null is taken away). Each of
standard output is what came of one: `code`, `out`, `err`.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import sys
from typing import Any

from plato_core.cli import main


def run(argv: list[str], cwd: str, env: dict[str, str | None]) -> dict[str, Any]:
    before = dict(os.environ)
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
    return {"code": code, "out": out.getvalue(), "err": err.getvalue()}


if __name__ == "__main__":
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever a library prints on its own is no answer
    for line in sys.stdin:
        print(json.dumps(run(**json.loads(line))), file=answers, flush=True)
