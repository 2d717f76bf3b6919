"""The ways in which `transfer.py` moves a checkpoint: ours, a copy with digests, and bare HTTP with digests."""

from __future__ import annotations

import http.client
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from servers import cpu_s

_CHUNK = 2**20


class Ours:
    """This project's way, through a tracking store."""

    def __init__(self, folder: Path, uri: str) -> None:
        from plato_core.tracking.client import make_client

        self.folder = folder / "ours"
        self.client = make_client(uri)
        where = None if uri.startswith("http") else str(folder / "file-artifacts")
        self.run_id = self.client.create_run(
            self.client.create_experiment("benchmark", artifact_location=where)
        ).info.run_id
        self.iterations: dict[str, int] = {}
        self.served_s = (lambda: cpu_s(uri)) if uri.startswith("http") else (lambda: 0.0)

    def up(self, source: Path, name: str) -> None:
        """Hashes and uploads."""
        from plato_core.tracking.transfer import upload_checkpoint

        iteration = self.iterations.setdefault(name, len(self.iterations))
        self.manifest = describe(source, iteration)
        upload_checkpoint(self.client, self.run_id, source, self.manifest)

    def down(self, source: Path, name: str) -> None:
        """Downloads and verifies."""
        from plato_core.tracking.transfer import download_checkpoint

        download_checkpoint(self.client, self.run_id, self.iterations[name], self.folder, self.manifest)

    def forget(self, name: str) -> None:
        """Removes what came back."""
        shutil.rmtree(self.folder)


class Copied:
    """`cp -r`, and the sha256 of each file."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "copied"
        self.folder.mkdir()

    def up(self, source: Path, name: str) -> None:
        """Copies to the store."""
        digests(source)
        subprocess.run(["cp", "-r", str(source), str(self.folder / name)], check=True)

    def down(self, source: Path, name: str) -> None:
        """Copies from it."""
        subprocess.run(["cp", "-r", str(self.folder / name), str(self.folder / "back")], check=True)
        digests(self.folder / "back")

    def forget(self, name: str) -> None:
        """Removes what came back."""
        shutil.rmtree(self.folder / "back")

    def served_s(self) -> float:
        """Has no server."""
        return 0.0


class Sent:
    """A minimal HTTP server, one connection, and the sha256 of each file."""

    def __init__(self, folder: Path, port: int) -> None:
        self.folder = folder / "sent"
        self.connection = http.client.HTTPConnection("127.0.0.1", port, blocksize=_CHUNK)

    def up(self, source: Path, name: str) -> None:
        """Sends each file."""
        digests(source)
        for path in files_in(source):
            with path.open("rb") as file:
                headers = {"Content-Length": str(path.stat().st_size)}
                self.connection.request("PUT", f"/{name}/{path.relative_to(source)}", file, headers)
                self.connection.getresponse().read()

    def down(self, source: Path, name: str) -> None:
        """Fetches each file."""
        for path in files_in(source):
            relative = path.relative_to(source)
            target = self.folder / relative
            target.parent.mkdir(parents=True, exist_ok=True)
            self.connection.request("GET", f"/{name}/{relative}")
            with target.open("wb") as file:
                shutil.copyfileobj(self.connection.getresponse(), file, _CHUNK)
        digests(self.folder)

    def forget(self, name: str) -> None:
        """Removes what came back."""
        shutil.rmtree(self.folder)

    def served_s(self) -> float:
        """Does not matter."""
        return 0.0


def describe(source: Path, iteration: int) -> Any:
    """Returns a checkpoint's manifest, written into it as a trial does."""
    from plato_core.manifest import write_manifest

    return write_manifest(
        source,
        sweep_id="benchmark",
        trial_id="t",
        trial_name="t",
        iteration=iteration,
        metric="episode_reward_mean",
        score=1.0,
        hyperparameters={"lr": 1e-4},
        versions={},
    )


def digests(folder: Path) -> list[str]:
    """Returns the sha256 of each file."""
    from plato_core.manifest import digest

    return [digest(path) for path in files_in(folder)]


def files_in(folder: Path) -> Iterator[Path]:
    """Yields the files below a folder; a manifest, which is ours alone, is none."""
    for parent, _, names in os.walk(folder):
        yield from (Path(parent, name) for name in names if name != "manifest.json")
