"""Programs of Debian packages that some tests need: skipped without them, unless the machine promises to have them."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

# Set where the packages are installed, so that a test that could not run is no green one.
REQUIRED = "PLATO_REQUIRE_DEBIAN"


def require(package: str) -> Path:
    """Returns a program of a package: `chromium`, or of `postgresql` the newest version's `initdb`.

    Skips the test if the package is missing, or fails it where `PLATO_REQUIRE_DEBIAN=1`.
    """
    if package == "postgresql":
        versions = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda path: int(path.parts[-3]))
        found = versions[-1] if versions else None
    else:
        on_path = shutil.which(package)
        found = Path(on_path) if on_path else None
    if found is not None:
        return found
    message = f"the Debian package {package} is missing; install it with: apt-get install {package}"
    if os.environ.get(REQUIRED) == "1":
        pytest.fail(message)
    pytest.skip(message)
