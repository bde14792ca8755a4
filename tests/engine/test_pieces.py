"""Pieces here and on a simulated cluster: the same results in the same order, whatever dies."""

import contextlib
import functools
import os
import signal
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest
import toy_pieces
from ray_cluster import NODE, PATHS, lose_node_of, wait_until

from mbti_jax.engine.pieces import holding, run_pieces
from mbti_jax.engine.settings import EngineSettings, RaySettings
from mbti_jax.engine.work import PieceError, Work
from mbti_jax.fields import FieldError
from tfds_brats.conventions import CaseError
from tfds_brats.locking import LockedError, only_process_in


def on(cluster, **options) -> EngineSettings:
    return EngineSettings("ray", RaySettings(cluster.address, **options))


def squares(folder: Path) -> Work:
    return Work(toy_pieces.square, functools.partial(toy_pieces.load, folder))


def test_pieces_here(tmp_path, caplog):
    caplog.set_level("INFO")
    pieces = [3, 13, 8, 1, 2]
    run = run_pieces(
        squares(tmp_path), pieces, EngineSettings(), label="toy", is_done=lambda n: n == 8
    )
    assert list(run) == [(3, 9), (13, PieceError("13.nii: is truncated")), (1, 1), (2, 4)]
    assert caplog.messages == ["piece 3", "not done: 13.nii: is truncated", "piece 1", "piece 2"]
    assert len([*tmp_path.glob("loaded.*")]) == 1
    # What fails alike is said once, and what comes alone is for the caller to say.
    for pieces, options, times in (
        ([13, 1, 13], {}, 1),
        ([13], {}, 0),
        ([13, 1], {"quiet": True}, 0),
    ):
        caplog.clear()
        list(run_pieces(squares(tmp_path), pieces, EngineSettings(), label="toy", **options))
        assert caplog.messages.count("not done: 13.nii: is truncated") == times
    with pytest.raises(OSError, match="No space left on device"):
        list(run_pieces(squares(tmp_path), [1, 14, 2], EngineSettings(), label="toy"))
    with pytest.raises(CaseError, match="holds no model"):
        work = Work(toy_pieces.square, toy_pieces.refuse)
        list(run_pieces(work, [1], EngineSettings(), label="toy"))


def test_on_a_cluster_the_same_whoever_dies(cluster, tmp_path, caplog):
    """A worker dies of piece 6 once, and of 66 whenever it meets it."""
    caplog.set_level("INFO")
    settings = on(cluster, retries=1)
    run = run_pieces(
        squares(tmp_path), [3, 13, 8, 6, 66, 2], settings, label="toy", is_done=lambda n: n == 8
    )
    lost = "66: its worker died 2 times, each time another one, perhaps for lack of memory"
    wrong = PieceError("13.nii: is truncated")
    assert list(run) == [(3, 9), (13, wrong), (6, 36), (66, PieceError(lost)), (2, 4)]
    assert {"piece 3", "piece 6", f"not done: {lost}"} <= {*caplog.messages}
    tries = [path.name.split(".")[1] for path in tmp_path.glob("tried.*")]
    assert sorted(tries) == ["2", "3", "6", "6", "66", "66"]
    # Each process once, and none of them is this one.
    processes = {path.suffix for path in tmp_path.glob("tried.*")}
    assert {path.suffix for path in tmp_path.glob("loaded.*")} >= processes
    assert f".{os.getpid()}" not in processes


def test_what_concerns_all_pieces_ends_a_job_on_a_cluster(cluster, tmp_path):
    settings = on(cluster, workers=1)
    with pytest.raises(OSError, match="No space left on device") as caught:
        list(run_pieces(squares(tmp_path), [1, 14, 2], settings, label="toy"))
    assert (caught.value.errno, caught.value.filename) == (28, "14")


def test_the_pieces_of_a_node_that_is_lost_are_done_by_others(cluster, tmp_path):
    cluster.add_node(**NODE)
    cluster.wait_for_nodes()
    work = Work(toy_pieces.wait, functools.partial(toy_pieces.load, tmp_path))

    def lose() -> None:
        try:
            wait_until(lambda: len([*tmp_path.glob("at.*")]) == 3)
            lose_node_of(cluster, next(tmp_path.glob("at.*")))
        finally:
            # Whatever went wrong, nothing waits for ever.
            (tmp_path / "go").touch()

    with ThreadPoolExecutor() as pool:
        done = pool.submit(lose)
        found = list(run_pieces(work, range(7), on(cluster), label="toy"))
        done.result()
    assert found == [(n, n) for n in range(7)]
    begun = [path.name.split(".")[1] for path in tmp_path.glob("at.*")]
    # Only what was begun on the node that was lost was begun once more.
    assert (len(set(begun)), len(begun)) == (7, 8)


def test_ctrl_c_stops_a_job_on_this_machine_within_seconds(tmp_path):
    """Also where the driver ends without cleaning up: nothing of the cluster stays."""
    script = (
        "import functools, pathlib, signal, sys, toy_pieces\n"
        # A shell lets what it starts in the background ignore the signal.
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "from mbti_jax.engine.pieces import run_pieces\n"
        "from mbti_jax.engine.work import Work\n"
        "from mbti_jax.engine.settings import EngineSettings, RaySettings\n"
        "work = Work(toy_pieces.wait, functools.partial(toy_pieces.load, pathlib.Path(sys.argv[1])))\n"
        "settings = EngineSettings('ray', RaySettings(workers=1))\n"
        "list(run_pieces(work, range(3), settings, label='toy'))\n"
    )
    with tempfile.TemporaryDirectory(prefix="ray", dir="/tmp") as folder:
        environment = {**os.environ, "PYTHONPATH": PATHS, "RAY_TMPDIR": folder}
        environment.pop("RAY_ADDRESS", None)
        driver = subprocess.Popen(
            [sys.executable, "-c", script, str(tmp_path)],
            env=environment,
            stderr=subprocess.DEVNULL,
        )
        children = []
        try:
            wait_until(lambda: [*tmp_path.glob("at.*")], driver)
            children = psutil.Process(driver.pid).children(recursive=True)
            assert children
            driver.send_signal(signal.SIGINT)
            driver.wait(timeout=60)
            _, alive = psutil.wait_procs(children, timeout=60)
            assert not alive
        finally:
            # Where it does not stop, nothing of it is left to the tests that follow.
            for process in [*children, *([] if driver.poll() is not None else [driver])]:
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.kill()
    assert len([*tmp_path.glob("at.*")]) == 1


def test_without_the_extra_a_sentence_says_so(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(
        FieldError, match=r"^engine is ray, which is not installed: pip install 'mbti"
    ):
        list(run_pieces(Work(abs), [1], EngineSettings("ray"), label="toy"))


def test_no_cluster_at_an_address(monkeypatch):
    monkeypatch.setattr("ray.init", refuse)
    settings = EngineSettings("ray", RaySettings("head:6379"))
    with pytest.raises(ConnectionError, match=r"no Ray cluster answers at head:6379 \(timed out\)"):
        list(run_pieces(Work(abs), [1], settings, label="toy"))


def refuse(*_, **__):
    raise ConnectionError("timed out\nand more")


def test_a_piece_waits_for_a_lock_that_is_given_up(tmp_path):
    with (
        only_process_in(tmp_path, "piece"),
        pytest.raises(LockedError, match="another piece is writing"),
        holding(tmp_path, "piece", 0.3),
    ):
        pass
    with holding(tmp_path, "piece", 0):
        pass
