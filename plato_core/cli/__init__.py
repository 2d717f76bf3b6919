"""The command `plato`. It imports nothing heavy: help, and what is wrong with the input, come at once."""

import importlib.metadata
import logging
import sys
from collections.abc import Sequence

from cyclopts import App, CycloptsError, UnusedCliTokensError

from plato_core.cli.aml import aml_app
from plato_core.cli.deploy import deploy
from plato_core.cli.doctor import doctor
from plato_core.cli.down import down
from plato_core.cli.flush import flush
from plato_core.cli.notify import notify
from plato_core.cli.prune import prune
from plato_core.cli.sweep import sweep_app
from plato_core.cli.up import up
from plato_core.errors import ConfigError, PlatoError, SweepStopped


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command `plato`.

    Args:
        argv: Its arguments; those of the process if None.

    Returns:
        The exit code: 0 done, 1 failed, 2 bad input, 130 Ctrl-C, 143 SIGTERM.
    """
    app = App(
        name="plato",
        help="Population Based Training sweeps of RLlib policies, tracked in MLflow.",
        version=lambda: importlib.metadata.version("plato-sweeps"),
        suppress_keyboard_interrupt=False,
        help_format="plaintext",
    )
    app.command(sweep_app("sweep"))
    app.command(flush)
    app.command(deploy)
    app.command(up)
    app.command(down)
    app.command(prune)
    app.command(doctor)
    app.command(notify)
    app.command(aml_app())
    return _run(app, argv)


def sweep_main(argv: Sequence[str] | None = None) -> int:
    """Run the command `plato sweep` as a script of its own, `sweep_and_fetch.py`; as `main` otherwise."""
    return _run(sweep_app("sweep_and_fetch.py"), argv)


def _run(app: App, argv: Sequence[str] | None) -> int:
    tokens = list(sys.argv[1:] if argv is None else argv)
    logging.getLogger("stamina").setLevel(logging.ERROR)  # it says of each retry that there is one, not of what
    try:
        result = app(tokens, exit_on_error=False, print_error=False, result_action="return_value")
    except UnusedCliTokensError as error:
        unused = " ".join(error.unused_tokens or ())
        return _fail(f"{unused!r} belongs to no flag; see --help", ConfigError.exit_code)
    except CycloptsError as error:
        error.verbose = False
        return _fail(f"{error} See --help.", ConfigError.exit_code)
    except SweepStopped as error:
        return _fail(str(error), 128 + error.signal_number)
    except PlatoError as error:
        return _fail(str(error), error.exit_code)
    except KeyboardInterrupt:
        return _fail("stopped by Ctrl-C", 130)
    return result if isinstance(result, int) else 0


def _fail(message: str, code: int) -> int:
    print(f"error: {' '.join(message.split())}", file=sys.stderr)
    return code
