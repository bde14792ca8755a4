"""One process per folder, with a lock that the operating system frees."""

import errno
import fcntl
import os
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from conftest import ROOT

from tfds_brats.locking import LockedError, beside_others_in, in_turn, lock_file, only_process_in

# Takes the lock, says so, and keeps it until its standard input ends.
HOLDER = """
import sys
from tfds_brats.locking import only_process_in
with only_process_in(sys.argv[1], "run"):
    print("holds", flush=True)
    sys.stdin.read()
"""


def start_holder(folder: Path) -> subprocess.Popen:
    command = [sys.executable, "-c", HOLDER, str(folder)]
    holder = subprocess.Popen(
        command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert holder.stdout is not None
    assert holder.stdout.readline() == "holds\n"
    return holder


def test_a_second_process_is_refused_and_told_who_holds_the_folder(tmp_path):
    folder = tmp_path / "not" / "yet"
    holder = start_holder(folder)
    for _ in range(2):  # Being refused leaves the holder's record as it is.
        with pytest.raises(LockedError) as error, only_process_in(folder):
            pass
        (line,) = str(error.value).splitlines()
        assert str(folder) in line
        assert f"process {holder.pid} on {socket.gethostname()} since 20" in line
    holder.communicate("")
    with only_process_in(folder):
        assert f"process {os.getpid()}" in (folder / lock_file("run")).read_text()


def test_what_a_killed_process_left_locks_nothing(tmp_path):
    holder = start_holder(tmp_path)
    holder.send_signal(signal.SIGKILL)
    holder.communicate()
    assert f"process {holder.pid}" in (tmp_path / lock_file("run")).read_text()
    with only_process_in(tmp_path):
        pass


def test_nothing_is_left_of_a_lock(tmp_path):
    with only_process_in(tmp_path / "new" / "folder"):
        pass
    assert not list(tmp_path.iterdir())
    with only_process_in(tmp_path / "new" / "folder"):
        (tmp_path / "new" / "folder" / "result").touch()
    assert [path.name for path in (tmp_path / "new" / "folder").iterdir()] == ["result"]


def test_the_lock_goes_with_an_error(tmp_path):
    with pytest.raises(RuntimeError, match="oops"), only_process_in(tmp_path):
        raise RuntimeError("oops")
    with only_process_in(tmp_path):
        pass


def test_one_process_cannot_take_it_twice_and_other_folders_are_free(tmp_path):
    with (
        only_process_in(tmp_path / "a"),
        only_process_in(tmp_path / "b"),
        pytest.raises(LockedError),
        only_process_in(tmp_path / "a"),
    ):
        pass


def test_a_run_may_build_in_its_own_folder(tmp_path):
    with only_process_in(tmp_path, "run"), only_process_in(tmp_path, "build"):
        pass


def test_a_file_system_without_locks_is_a_warning(tmp_path, monkeypatch, caplog):
    def no_locks(file, operation):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", no_locks)
    with only_process_in(tmp_path):
        pass
    assert f"{tmp_path} lies on a file system without locks" in caplog.text


def test_a_file_in_the_place_of_the_folder_is_an_error_that_names_it(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="file"), only_process_in(tmp_path / "file"):
        pass


def test_several_share_a_folder_and_keep_a_single_one_out(tmp_path):
    holder = start_holder(tmp_path)
    with (
        pytest.raises(LockedError, match=f"process {holder.pid}"),
        beside_others_in(tmp_path, "run"),
    ):
        pass
    holder.communicate("")
    with beside_others_in(tmp_path, "run") as first:
        with beside_others_in(tmp_path, "run") as second:
            assert (first, second) == (True, False)
        with pytest.raises(LockedError, match=f"process {os.getpid()}"), only_process_in(tmp_path):
            pass
    with only_process_in(tmp_path), beside_others_in(tmp_path, "other work") as alone:
        assert alone
    assert not list(tmp_path.iterdir())


def test_turns_are_taken_one_after_the_other(tmp_path):
    begun, done = threading.Event(), []

    def second() -> None:
        begun.set()
        with in_turn(tmp_path / "not" / "yet", "run"):
            done.append("second")

    thread = threading.Thread(target=second)
    with in_turn(tmp_path / "not" / "yet", "run"):
        thread.start()
        begun.wait()
        thread.join(timeout=0.3)
        done.append("first")
    thread.join(timeout=20)
    assert done == ["first", "second"]
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]
