"""Long tests of what others cover in part.

`PLATO_THOROUGH=1` runs those marked `thorough`, as CI does; `PLATO_SOAK=1` those marked `soaked`, as `make soak` does.
"""

import os
from collections.abc import Callable
from typing import Any

import pytest

thorough = pytest.mark.skipif(
    os.environ.get("PLATO_THOROUGH") != "1", reason="long; PLATO_THOROUGH=1 runs it, as .ci/run does"
)
SOAKED = (
    pytest.mark.soak,
    pytest.mark.skipif(os.environ.get("PLATO_SOAK") != "1", reason="very long; make soak runs it, by PLATO_SOAK=1"),
)


def soaked(test: Callable[..., Any]) -> Any:
    """Marks a test for `make soak` alone; as marks of a parameter take `SOAKED`."""
    for mark in SOAKED:
        test = mark(test)
    return test
