"""`plato down`: end the local stack."""

from __future__ import annotations


def down() -> int:
    """End what `plato up` started. Its data stays."""
    from plato_core.cli.steps import say
    from plato_core.stack.ending import end
    from plato_core.stack.settings import load_settings

    settings = load_settings()
    if end(settings, say):
        say("down", f"the data stays in {settings.folder}")
    else:
        say("down", f"nothing of a stack in {settings.folder} was running")
    return 0
