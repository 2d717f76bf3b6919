"""`python -m plato_core.cli` is `plato`."""

from plato_core.cli import main

if __name__ == "__main__":
    raise SystemExit(main())
