"""`plato flush`: send what a sweep could not send while its tracking store was away."""

import sys
from pathlib import Path


def flush(spool: Path, /) -> int:
    """Send the metrics and files that a sweep had to keep because its MLflow store was away.

    Parameters
    ----------
    spool
        Folder that the sweep's last message named.
    """
    from plato_core.errors import ConfigError
    from plato_core.processes import leave
    from plato_core.tracking.spool import flush_command

    if not spool.is_dir():
        raise ConfigError(f"{spool}: there is no such folder; give the one that the sweep named at its end")
    try:
        return flush_command(spool)
    except KeyboardInterrupt:
        print(f"error: stopped by Ctrl-C; what is left stays in {spool}", file=sys.stderr)
        leave(130)  # an upload that hangs is not waited for
