"""`python -m plato_core.stack`: the supervisor's process."""

from plato_core.stack.supervisor import main

if __name__ == "__main__":
    raise SystemExit(main())
