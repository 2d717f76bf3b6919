import base64
import functools
import math
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from mlflow.tracking import MlflowClient
from trial_runs import (
    Fault,
    Sweep,
    faulty_proxy,
    make_checkpoint,
    mlflow_server,
    new_sweep,
)
from waiting import wait_until

from plato_core.errors import CheckpointError, ConfigError, SelectionError, TrackingError
from plato_core.manifest import checkpoint_name, read_manifest, verify
from plato_core.selection import Selection, choose
from plato_core.tracking.client import make_client
from plato_core.tracking.queries import children_of, complete_checkpoints
from plato_core.tracking.staging import PREFIX
from plato_core.tracking.transfer import download_checkpoint, upload_checkpoint


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("store")


@pytest.fixture(scope="module")
def client(store: Path) -> Iterator[MlflowClient]:
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(store)  # the store makes its folder of artifacts in the working directory
        yield make_client("sqlite:///mlflow.db")


@pytest.fixture
def sweep(client: MlflowClient, tmp_path: Path, request: pytest.FixtureRequest) -> Sweep:
    return new_sweep(client, tmp_path / "scratch", request.node.name)


def select(sweep: Sweep, rank_metric: str = "metrics.episode_reward_mean") -> Selection:
    children = children_of(sweep.client, [sweep.experiment_id], sweep.parent_run_id)
    return choose(children, rank_metric, "max", functools.partial(complete_checkpoints, sweep.client))


def stored(sweep: Sweep, run_id: str, path: str) -> Path:
    uri = sweep.client.get_run(run_id).info.artifact_uri
    assert uri is not None
    return Path(uri.removeprefix("file://")) / path


def test_the_best_checkpoint_of_the_best_run_is_downloaded_and_verified(sweep: Sweep, tmp_path: Path) -> None:
    sweep.trial("low", 100.0)
    top = sweep.trial("high", 475.0, checkpoints={2: 300.0, 4: 480.0, 6: 480.0, 8: None})
    selection = select(sweep)
    assert (selection.run.run_id, selection.run.name, selection.rank_value) == (top, "high", 475.0)
    assert selection.checkpoint.iteration == 6
    assert selection.warnings == []

    results = tmp_path / "model_checkpoints"
    results.mkdir()
    (results / "notes.txt").write_text("mine")
    chosen = selection.checkpoint
    downloaded = download_checkpoint(sweep.client, top, chosen.iteration, results, chosen.manifest)
    assert downloaded.path == results / top / "checkpoint_000006"
    assert (downloaded.reused, downloaded.replaced) == (False, None)
    assert read_manifest(downloaded.path) == chosen.manifest
    assert verify(downloaded.path, chosen.manifest) == []
    assert (downloaded.path / "algorithm_state.pkl").read_bytes() == b"state 6"
    assert sorted(path.name for path in results.iterdir()) == sorted(["notes.txt", top])
    assert [path.name for path in (results / top).iterdir()] == ["checkpoint_000006"]


def test_children_of_other_sweeps_do_not_count(sweep: Sweep) -> None:
    mine = sweep.trial("mine", 1.0)
    other = sweep.client.create_run(sweep.experiment_id).info.run_id
    Sweep(sweep.client, sweep.experiment_id, other, sweep.scratch).trial("theirs", 500.0)
    assert select(sweep).run.run_id == mine


def test_runs_beyond_the_first_page_are_found(sweep: Sweep, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("plato_core.tracking.queries._PAGE", 2)
    ids = {sweep.trial(f"t{number}", 1.0, checkpoints={}) for number in range(5)}
    assert {run.run_id for run in children_of(sweep.client, [sweep.experiment_id], sweep.parent_run_id)} == ids


def test_a_failed_run_that_ranks_better_is_passed_over_with_a_warning(sweep: Sweep) -> None:
    sweep.trial("crashed", 499.0, "FAILED")
    sweep.trial("killed", 498.0, "KILLED")
    sweep.trial("worse", 1.0, "FAILED")
    good = sweep.trial("good", 400.0)
    selection = select(sweep)
    assert selection.run.run_id == good
    assert ["crashed" in selection.warnings[0], "killed" in selection.warnings[1]] == [True, True]
    assert len(selection.warnings) == 2


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_the_store_s_nan_and_infinity_never_win(sweep: Sweep, value: float) -> None:
    sweep.trial("odd", value)
    good = sweep.trial("good", -3.0)
    assert select(sweep).run.run_id == good


def test_a_tie_goes_to_the_run_that_started_earlier(sweep: Sweep) -> None:
    sweep.trial("later", 10.0, start_time=2_000)
    earlier = sweep.trial("earlier", 10.0, start_time=1_000)
    sweep.trial("latest", 10.0, start_time=3_000)
    assert select(sweep).run.run_id == earlier


def test_a_checkpoint_without_its_manifest_is_not_complete(sweep: Sweep) -> None:
    half = sweep.trial("half", 450.0, checkpoints={2: 10.0, 4: 99.0})
    (stored(sweep, half, "checkpoint_000004") / "manifest.json").unlink()
    assert [record.iteration for record in complete_checkpoints(sweep.client, half)] == [2]
    assert select(sweep).checkpoint.iteration == 2

    (stored(sweep, half, "checkpoint_000002") / "manifest.json").write_text("{ cut o")
    full = sweep.trial("full", 5.0)
    selection = select(sweep)
    assert selection.run.run_id == full
    assert "no complete checkpoint" in selection.warnings[0]


def test_a_manifest_under_another_iteration_s_name_is_not_trusted(sweep: Sweep) -> None:
    run_id = sweep.trial("moved", 1.0, checkpoints={2: 1.0})
    stored(sweep, run_id, "checkpoint_000002").rename(stored(sweep, run_id, "checkpoint_000003"))
    assert complete_checkpoints(sweep.client, run_id) == []


def test_if_none_qualifies_the_error_names_the_sweep_and_its_runs(sweep: Sweep) -> None:
    sweep.trial("crashed", 499.0, "FAILED")
    sweep.trial("unknown", None, checkpoints={})
    with pytest.raises(SelectionError) as caught:
        select(sweep)
    assert f"the children of run {sweep.parent_run_id}" in str(caught.value)
    assert "FAILED, episode_reward_mean 499, 1 complete checkpoint" in str(caught.value)
    assert "FINISHED, no episode_reward_mean, 0 complete checkpoints" in str(caught.value)


def test_only_the_manifest_s_files_are_uploaded(sweep: Sweep, tmp_path: Path) -> None:
    run_id = sweep.trial("t", 1.0, checkpoints={})
    folder = tmp_path / "checkpoint_000001"
    manifest = make_checkpoint(folder, 7)
    (folder / ".metadata").write_text("Tune's own")
    sent = upload_checkpoint(sweep.client, run_id, folder, manifest)
    there = stored(sweep, run_id, "checkpoint_000007")
    names = sorted(path.relative_to(there).as_posix() for path in there.rglob("*") if path.is_file())
    assert names == ["algorithm_state.pkl", "learner/module.pkl", "manifest.json"]
    assert sent == sum((there / name).stat().st_size for name in names)


def test_an_upload_without_all_its_files_leaves_no_manifest(sweep: Sweep, tmp_path: Path) -> None:
    run_id = sweep.trial("t", 1.0, checkpoints={})
    manifest = make_checkpoint(tmp_path / "c", 7)
    (tmp_path / "c" / "learner" / "module.pkl").unlink()
    with pytest.raises(CheckpointError, match=r"lacks learner/module\.pkl"):
        upload_checkpoint(sweep.client, run_id, tmp_path / "c", manifest)
    assert complete_checkpoints(sweep.client, run_id) == []
    assert not (stored(sweep, run_id, "checkpoint_000007") / "manifest.json").exists()


def test_a_damaged_file_in_the_store_is_named_and_nothing_is_left(sweep: Sweep, tmp_path: Path) -> None:
    run_id = sweep.trial("t", 1.0, checkpoints={})
    manifest = sweep.checkpoint(run_id, 3, 1.0)
    file = stored(sweep, run_id, "checkpoint_000003") / "algorithm_state.pkl"
    file.write_bytes(b"STATE 3")
    with pytest.raises(CheckpointError) as caught:
        download_checkpoint(sweep.client, run_id, 3, tmp_path / "results", manifest)
    message = str(caught.value)
    assert run_id in message
    assert f"algorithm_state.pkl: expected sha256 {manifest.files['algorithm_state.pkl'].sha256}" in message
    assert not (tmp_path / "results").exists()


def test_a_damaged_checkpoint_does_not_touch_the_copy_that_is_there(sweep: Sweep, tmp_path: Path) -> None:
    run_id = sweep.trial("t", 1.0, checkpoints={})
    manifest = sweep.checkpoint(run_id, 3, 1.0)
    here = tmp_path / run_id / "checkpoint_000003"
    here.mkdir(parents=True)
    (here / "algorithm_state.pkl").write_bytes(b"an older one")
    shutil.rmtree(stored(sweep, run_id, "checkpoint_000003") / "learner")
    with pytest.raises(CheckpointError, match=r"learner/module\.pkl: missing"):
        download_checkpoint(sweep.client, run_id, 3, tmp_path, manifest)
    assert (here / "algorithm_state.pkl").read_bytes() == b"an older one"
    assert [path.name for path in (tmp_path / run_id).iterdir()] == ["checkpoint_000003"]


def test_a_checkpoint_that_is_gone_from_the_store_is_named(sweep: Sweep, tmp_path: Path) -> None:
    run_id = sweep.trial("t", 1.0, checkpoints={})
    manifest = sweep.checkpoint(run_id, 3, 1.0)
    shutil.rmtree(stored(sweep, run_id, "checkpoint_000003"))
    with pytest.raises(CheckpointError, match=r"checkpoint_000003 of run .* missing"):
        download_checkpoint(sweep.client, run_id, 3, tmp_path / "results", manifest)


def test_a_copy_that_verifies_is_used_again(sweep: Sweep, tmp_path: Path) -> None:
    run_id = sweep.trial("t", 1.0, checkpoints={})
    manifest = sweep.checkpoint(run_id, 3, 1.0)
    first = download_checkpoint(sweep.client, run_id, 3, tmp_path, manifest)
    shutil.rmtree(stored(sweep, run_id, "checkpoint_000003"))  # a second download would fail
    again = download_checkpoint(sweep.client, run_id, 3, tmp_path, manifest)
    assert (again.path, again.reused, again.replaced) == (first.path, True, None)


@pytest.mark.parametrize("damage", ["changed", "missing", "no manifest", "a file"])
def test_a_copy_that_does_not_verify_is_moved_aside_and_replaced(sweep: Sweep, tmp_path: Path, damage: str) -> None:
    run_id = sweep.trial("t", 1.0, checkpoints={})
    manifest = sweep.checkpoint(run_id, 3, 1.0)
    here = download_checkpoint(sweep.client, run_id, 3, tmp_path, manifest).path
    match damage:
        case "changed":
            (here / "algorithm_state.pkl").write_bytes(b"STATE 3")
        case "missing":
            (here / "algorithm_state.pkl").unlink()
        case "no manifest":
            (here / "manifest.json").unlink()
        case _:
            shutil.rmtree(here)
            here.write_text("not a folder")
    again = download_checkpoint(sweep.client, run_id, "checkpoint_000003", tmp_path, manifest)
    assert (again.path, again.reused) == (here, False)
    assert verify(here, manifest) == []
    assert again.replaced is not None
    assert again.replaced.name.startswith("checkpoint_000003.replaced-")
    if damage == "changed":
        assert (again.replaced / "algorithm_state.pkl").read_bytes() == b"STATE 3"
    kept = {path.name for path in (tmp_path / run_id).iterdir()}
    assert kept == {"checkpoint_000003", again.replaced.name}


def test_files_that_the_manifest_does_not_name_are_not_kept(sweep: Sweep, tmp_path: Path) -> None:
    run_id = sweep.trial("t", 1.0, checkpoints={})
    manifest = sweep.checkpoint(run_id, 3, 1.0)
    extra = stored(sweep, run_id, "checkpoint_000003") / "extra" / "stranger.pkl"
    extra.parent.mkdir()
    extra.write_bytes(b"x")
    here = download_checkpoint(sweep.client, run_id, 3, tmp_path, manifest).path
    assert sorted(path.name for path in here.iterdir()) == ["algorithm_state.pkl", "learner", "manifest.json"]


@pytest.mark.parametrize("place", ["results", "results/deeper"])
def test_a_file_where_the_local_path_should_be_is_refused(sweep: Sweep, tmp_path: Path, place: str) -> None:
    run_id = sweep.trial("t", 1.0, checkpoints={})
    manifest = sweep.checkpoint(run_id, 3, 1.0)
    (tmp_path / "results").write_text("a file")
    with pytest.raises(ConfigError, match=r"results is a file"):
        download_checkpoint(sweep.client, run_id, 3, tmp_path / place, manifest)
    assert (tmp_path / "results").read_text() == "a file"


def test_what_killed_downloads_left_is_removed_and_live_ones_are_not(sweep: Sweep, tmp_path: Path) -> None:
    run_id = sweep.trial("t", 1.0, checkpoints={})
    manifest = sweep.checkpoint(run_id, 3, 1.0)
    folder = tmp_path / run_id
    folder.mkdir()
    hold = (
        "import sys, time, pathlib; from plato_core.tracking.staging import staging_folder\n"
        "with staging_folder(pathlib.Path(sys.argv[1])) as folder:\n"
        "    (folder / 'half').write_text('half a file'); time.sleep(60)"
    )

    def staged() -> int:
        return len(list(folder.glob(f"{PREFIX}*/half")))

    holders = []
    try:
        for number in (1, 2):
            holders.append(subprocess.Popen([sys.executable, "-c", hold, str(folder)]))
            wait_until(lambda number=number: staged() == number)
        (folder / f"{PREFIX}not-a-folder-of-ours").write_text("a user's file")
        os.kill(holders[0].pid, signal.SIGKILL)
        holders[0].wait()
        download_checkpoint(sweep.client, run_id, 3, tmp_path, manifest)
        assert staged() == 1
        assert (folder / f"{PREFIX}not-a-folder-of-ours").exists()
        os.kill(holders[1].pid, signal.SIGINT)
        holders[1].wait()
        assert staged() == 0
    finally:
        for holder in holders:
            holder.kill()
            holder.wait()


def test_downloads_of_the_same_checkpoint_at_one_time_end_with_one_copy(sweep: Sweep, tmp_path: Path) -> None:
    run_id = sweep.trial("t", 1.0, checkpoints={})
    manifest = sweep.checkpoint(run_id, 3, 1.0, {f"{number}.bin": bytes(100) for number in range(50)})
    with ThreadPoolExecutor(8) as pool:
        futures = [
            pool.submit(download_checkpoint, sweep.client, run_id, 3, tmp_path / "r", manifest) for _ in range(16)
        ]
        downloads = [future.result() for future in futures]
    assert {download.path for download in downloads} == {tmp_path / "r" / run_id / "checkpoint_000003"}
    assert all(download.replaced is None for download in downloads)
    assert [download.reused for download in downloads].count(False) == 1
    assert verify(downloads[0].path, manifest) == []
    assert [path.name for path in (tmp_path / "r" / run_id).iterdir()] == ["checkpoint_000003"]


def test_a_run_that_the_store_does_not_know_is_a_tracking_error(sweep: Sweep) -> None:
    with pytest.raises(TrackingError, match="0123456789abcdef"):
        complete_checkpoints(sweep.client, "0123456789abcdef0123456789abcdef")


def test_the_same_through_a_server_that_keeps_the_artifacts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with mlflow_server(tmp_path) as uri:
        client = make_client(uri)
        sweep = new_sweep(client, tmp_path / "scratch", "served")
        files = {f"many/{number:03}.bin": os.urandom(200) for number in range(150)}
        files |= {"empty": b"", "big.bin": os.urandom(3_000_000), "a b/ü & 1+1=2.bin": b"odd"}
        sweep.trial("crashed", 499.0, "FAILED", checkpoints={})
        sweep.trial("nan", math.nan)
        top = sweep.trial("top", 475.0, checkpoints={1: 2.0})
        manifest = sweep.checkpoint(top, 5, 475.0, files)

        selection = select(sweep)
        assert (selection.run.run_id, selection.checkpoint.iteration) == (top, 5)
        assert selection.checkpoint.manifest == manifest
        assert len(selection.warnings) == 1
        downloaded = download_checkpoint(client, top, 5, tmp_path / "results", manifest)
        assert verify(downloaded.path, manifest) == []
        assert (downloaded.path / "many" / "149.bin").read_bytes() == files["many/149.bin"]

        faults = {
            "many/007.bin": [Fault.BUSY, Fault.BUSY],
            "big.bin": [Fault.CUT],
            "checkpoint_000001/manifest.json": [Fault.BUSY, Fault.BUSY],
        }
        with faulty_proxy(uri, faults) as proxy:
            through = make_client(proxy)
            assert [record.iteration for record in complete_checkpoints(through, top)] == [1, 5]
            again = download_checkpoint(through, top, 5, tmp_path / "over_a_bad_line", manifest)
            assert verify(again.path, manifest) == []
            assert not any(faults.values()), "every fault was met"
            faults["many/008.bin"] = [Fault.BUSY, Fault.CUT]
            upload_checkpoint(through, sweep.trial("late", 1.0, checkpoints={}), again.path, manifest)
            assert not any(faults.values()), "every fault was met"

        monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "lab")
        monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "secret")
        login = f"Basic {base64.b64encode(b'lab:secret').decode()}"
        with faulty_proxy(uri, {}, login) as guarded:
            through = make_client(guarded)
            other = sweep.trial("guarded", 2.0, checkpoints={})
            upload_checkpoint(through, other, again.path, manifest)
            assert verify(download_checkpoint(through, other, 5, tmp_path / "guarded", manifest).path, manifest) == []

        [big] = (tmp_path / "served").rglob(f"{top}/**/big.bin")  # other runs have one too
        big.write_bytes(bytes(3_000_000))
        with pytest.raises(CheckpointError, match=r"big\.bin: expected sha256"):
            download_checkpoint(client, top, 5, tmp_path / "damaged", manifest)
        shutil.rmtree(big.parent)
        with pytest.raises(CheckpointError, match=f"{checkpoint_name(5)} of run {top}"):
            download_checkpoint(client, top, 5, tmp_path / "damaged", manifest)
        assert not (tmp_path / "damaged").exists()
        assert [record.iteration for record in complete_checkpoints(client, top)] == [1]
