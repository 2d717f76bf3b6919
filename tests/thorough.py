"""Long tests of what others cover in part: left out of `make test` on a desk, run where `PLATO_THOROUGH=1`, as CI does."""

import os

import pytest

thorough = pytest.mark.skipif(
    os.environ.get("PLATO_THOROUGH") != "1", reason="long; PLATO_THOROUGH=1 runs it, as .ci/run does"
)
