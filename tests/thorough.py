"""Long tests of what others cover in part: run where `PLATO_THOROUGH=1`, as in CI, and left out else."""

import os

import pytest

thorough = pytest.mark.skipif(
    os.environ.get("PLATO_THOROUGH") != "1", reason="long; PLATO_THOROUGH=1 runs it, as .ci/run does"
)
