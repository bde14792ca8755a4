"""The server's folder: gone with the server, whichever way it ends."""

import os
import signal
import subprocess
import sys
import time

import pytest
from conftest import ROOT

from mbti_jax.web.storage import bytes_in, delete_old_files, server_folder

# A server in all but the network: it says where its folder is, and waits.
SERVER = """
import sys
from mbti_jax.web.storage import ending_on_signals, server_folder

with ending_on_signals() as end, server_folder(sys.argv[1]) as folder:
    (folder / "sessions").mkdir()
    (folder / "sessions" / "upload.nii").write_bytes(bytes(1000))
    print(folder, flush=True)
    end.wait()
"""
# One that waits for something at its end.
SLOW = SERVER.replace(
    "    print(folder, flush=True)\n    end.wait()",
    """
    import time
    try:
        print(folder, flush=True)
        end.wait()
    finally:
        print("ending", flush=True)
        time.sleep(60)
""",
).replace(
    "\nwith", "\nfrom mbti_jax.commands import interrupts\ninterrupts.clean_up_on_interrupt()\nwith"
)


@pytest.fixture
def serve(tmp_path):
    processes = []

    def start(script=SERVER):
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        command = [sys.executable, "-c", script, str(tmp_path)]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)
        processes.append(process)
        folder = process.stdout.readline().strip()
        assert folder
        return process, tmp_path / folder

    yield start
    for process in processes:
        process.kill()
        process.wait()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_nothing_is_left_after_a_signal(serve, tmp_path, number):
    process, folder = serve()
    assert bytes_in(folder) >= 1000
    process.send_signal(number)
    assert process.wait(20) == 0
    assert not list(tmp_path.iterdir())


def test_no_thread_is_waited_for(serve, tmp_path):
    """Such as that of a run which compiles."""
    busy = "import threading, time\nthreading.Thread(target=time.sleep, args=(120,)).start()\n"
    process, _ = serve(busy + SERVER)
    process.send_signal(signal.SIGINT)
    assert process.wait(60) == 0
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("first", [signal.SIGINT, signal.SIGTERM])
def test_a_second_interrupt_ends_it_at_once(serve, tmp_path, first):
    """With its folder, whatever it waits for; others' signals are no reason not to clean up."""
    process, _ = serve(SLOW)
    process.send_signal(first)
    assert process.stdout.readline() == "ending\n"
    process.send_signal(signal.SIGTERM)
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(1)
    process.send_signal(signal.SIGINT)
    assert process.wait(10) == 128 + signal.SIGINT
    assert not list(tmp_path.iterdir())


def test_a_start_removes_what_a_killed_server_left(serve, tmp_path):
    killed, left = serve()
    alive, kept = serve()
    killed.kill()
    killed.wait()
    others = [tmp_path / "mbti_serve_notes", tmp_path / "mbti_serve_file"]
    others[0].mkdir()
    (others[0] / "mine.txt").touch()
    others[1].touch()
    (tmp_path / "mbti_serve_link").symlink_to(kept)
    with server_folder(tmp_path) as folder:
        assert not left.exists() and kept.exists() and folder.exists()
        assert (others[0] / "mine.txt").exists() and others[1].exists()
    assert not folder.exists() and alive.poll() is None


def test_old_files_are_deleted(tmp_path):
    for name in ("old/one.png", "old/two.png", "new/one.png", "mixed/one.png", "mixed/two.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"12345")
    then = time.time() - 100
    for name in ("old/one.png", "old/two.png", "mixed/one.png"):
        os.utime(tmp_path / name, (then, then))
    assert bytes_in(tmp_path) == 25
    delete_old_files(tmp_path, 50)
    kept = sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*"))
    assert kept == ["mixed", "mixed/two.png", "new", "new/one.png"]
    delete_old_files(tmp_path / "absent", 50)
