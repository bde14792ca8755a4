"""Whatever can be foreseen ends a command in a sentence with the way out."""

import errno
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import ROOT

from mbti_jax.commands import failures
from mbti_jax.commands.failures import explain
from mbti_jax.fields import FieldError
from mbti_jax.rois.given import WHICH_ROI

TRAIN = {"batch_size": 8, "accumulation": 1, "data": {"num_threads": 8}, "model": {}}
INPAINT = {"batch_size": 16}
DATA = {"num_workers": 0, "data_dir": "slices"}

# Runs `mbti data` with a main of one's own.
WITH_MAIN = """
import sys
from mbti_jax import cli
from mbti_jax.commands import data

def main(config, workdir):
    {body}

data.main = main
sys.argv[1:] = ["data"]
cli.main()
"""


def heed_interrupts() -> None:
    """In the child: a suite that was started in the background has SIGINT ignored, and hands that on."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def run_main(body: str, **environment: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-c", WITH_MAIN.format(body=body)],
        cwd=ROOT,
        env={**os.environ, **environment},
        preexec_fn=heed_interrupts,
        capture_output=True,
        text=True,
        timeout=120,
    )


def chained(error: BaseException, cause: BaseException) -> BaseException:
    error.__cause__ = cause
    return error


@pytest.mark.parametrize(
    ("error", "config", "parts"),
    [
        (FieldError("data.window", "must be"), TRAIN, ["FieldError: --config.data.window must be"]),
        (
            ValueError(f"a.nii: label 255; {WHICH_ROI}"),
            {"roi_labels": ""},
            ["say which ROI it is, --config.roi_labels=edema"],
        ),
        (MemoryError(), INPAINT, ["out of memory on this machine", "lower --config.batch_size"]),
        (MemoryError("Unable to allocate 488. GiB"), DATA, ["488. GiB", "lower --config.num_work"]),
        (
            RuntimeError(
                "RESOURCE_EXHAUSTED: Out of memory while trying to allocate 42 bytes.\n1\n2"
            ),
            TRAIN,
            ["the device", "42 bytes", "accumulation", "remat", "batch_size"],
        ),
        (
            chained(ValueError("a step failed"), RuntimeError("RESOURCE_EXHAUSTED: 9 bytes")),
            INPAINT,
            ["the device", "9 bytes", "batch_size"],
        ),
        (
            OSError(errno.ENOSPC, "No space", "/disk/a/b.nii"),
            INPAINT,
            ["no space", "/disk/a", "free"],
        ),
        (
            OSError(errno.ENOSPC, "No space left"),
            INPAINT,
            ["no space left", "/the/workdir", "--work"],
        ),
        (OSError(errno.EDQUOT, "Disk quota exceeded"), INPAINT, ["quota", "/the/workdir"]),
        (
            chained(
                RuntimeError("x" * 9999), ValueError("INTERNAL: write: No space left on device")
            ),
            TRAIN,
            ["no space left", "/the/workdir"],
        ),
        (
            OSError(errno.ENOSPC, "No space left", "/dev/shm/sem.x"),
            DATA,
            ["/dev/shm", "--shm-size"],
        ),
        (OSError(errno.EMFILE, "Too many open files"), DATA, ["ulimit -n", "--config.num_workers"]),
        (OSError(errno.EMFILE, "Too many open files"), TRAIN, ["ulimit -n", "data.num_threads"]),
        (PermissionError(errno.EACCES, "Permission denied", "/data/x"), TRAIN, ["/data/x: Perm"]),
        (OSError(errno.EROFS, "Read-only file system", "/cd/x"), TRAIN, ["/cd/x: Read-only"]),
        (FileExistsError(errno.EEXIST, "File exists", "/a/file"), TRAIN, ["/a/file is a file"]),
        (ValueError("say it"), TRAIN, ["ValueError: say it"]),
        (FileNotFoundError(errno.ENOENT, "No such file", "/a"), TRAIN, ["No such file", "'/a'"]),
        (
            FileNotFoundError(errno.ENOENT, "No such", "/the"),
            TRAIN,
            ["no folder can be made at /the"],
        ),
        (
            FileNotFoundError(errno.ENOENT, "No such file", "/the/workdir"),
            INPAINT,
            ["no folder can be made at /the/workdir"],
        ),
        # A file in it is read.
        (
            FileNotFoundError(errno.ENOENT, "No such file", "/the/workdir/a"),
            INPAINT,
            ["No such file"],
        ),
        # Relative to where the command runs, and so nothing that was to be made.
        (FileNotFoundError(errno.ENOENT, "No such file", "a"), INPAINT, ["No such file"]),
    ],
    ids=str,
)
def test_a_sentence_names_what_failed_and_the_way_out(error, config, parts):
    sentence = explain(error, config, "/the/workdir")
    for part in parts:
        assert part in sentence
    assert len(sentence) < 600
    assert "\n" not in sentence


def test_shared_memory_without_a_file_name_is_told_from_the_disk(monkeypatch):
    """Python's semaphores name no file."""
    error = OSError(errno.ENOSPC, "No space left on device")
    monkeypatch.setattr(failures, "_is_full", lambda folder: folder == "/dev/shm")
    assert "/dev/shm is full" in explain(error, DATA, "")
    monkeypatch.setattr(failures, "_is_full", lambda folder: False)
    assert f"the disk of {Path('slices').absolute()}" in explain(error, DATA, "")


def test_what_nobody_foresaw_keeps_its_traceback():
    assert explain(KeyError("x"), TRAIN, "") is None
    result = run_main("raise KeyError('unforeseen')")
    assert result.returncode == 1
    assert "Traceback" in result.stderr


def test_a_device_that_is_not_there():
    result = run_main("import jax; jax.devices()", JAX_PLATFORMS="cuda")
    assert result.returncode == 1
    assert "unset JAX_PLATFORMS (it is 'cuda')" in result.stderr
    assert "pip install -c constraints.txt -e '.[cuda13]'" in result.stderr
    assert "Traceback" not in result.stderr


def test_messages_of_the_console_command_say_its_own_options():
    result = run_main("raise MemoryError('of 5 GB')")
    assert "lower --num_workers" in result.stderr
    assert "--config." not in result.stderr
    result = run_main("raise MemoryError('of 5 GB')", MBTI_TRACEBACK="1")
    assert "Traceback" in result.stderr


def test_an_interrupted_command_ends_in_a_line():
    result = run_main("import os, signal; os.kill(os.getpid(), signal.SIGINT); sys.stdin.read()")
    assert result.returncode == 130
    (line,) = result.stderr.splitlines()
    assert line.startswith("interrupted; nothing is half-written")


def test_an_interrupt_during_imports_ends_in_a_line(tmp_path):
    """An import inside which the signal comes may turn it into any other exception."""
    (tmp_path / "config.py").write_text("""
import os, signal
try:
    os.kill(os.getpid(), signal.SIGINT)
    import jax
except BaseException as error:
    raise ImportError("hides the interrupt") from error
""")
    result = subprocess.run(
        [sys.executable, "run.py", f"--config={tmp_path}/config.py"],
        cwd=ROOT,
        preexec_fn=heed_interrupts,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert result.returncode == 128 + signal.SIGINT
    assert result.stderr == "interrupted\n"


@pytest.mark.parametrize("command", [["data", "--help"], ["--help"]], ids=str)
def test_help_into_a_pipe_that_nobody_reads(command):
    process = subprocess.Popen(
        [sys.executable, "-c", "from mbti_jax import cli; cli.main()", *command],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None and process.stderr is not None
    process.stdout.close()
    assert process.stderr.read() == ""
    assert process.wait(60) == 128 + signal.SIGPIPE


def test_an_interrupt_is_not_kept_waiting_by_a_library(tmp_path):
    """A call that no handler gets into, as the compilation of a network is one."""
    waiting = tmp_path / "waiting"
    body = (
        f"import hashlib, pathlib; pathlib.Path({str(waiting)!r}).touch();"
        " hashlib.pbkdf2_hmac('sha512', b'', b'', 10**9)"
    )
    process = start_main(body)
    error = interrupted_when(waiting, process)
    assert process.returncode == 128 + signal.SIGINT
    (line,) = error.split("\n", 1)[1].splitlines()
    assert line.startswith("interrupted; nothing is half-written")


def test_an_interrupt_that_a_library_swallows_or_turns_into_another_error(tmp_path):
    swallowed = run_main(
        "import os, signal, time, weakref\n"
        "    class A: pass\n"
        "    a = A(); r = weakref.ref(a, lambda _: os.kill(os.getpid(), signal.SIGINT))\n"
        "    del a\n"
        "    time.sleep(60)"
    )
    assert swallowed.returncode == 128 + signal.SIGINT
    assert "Traceback" not in swallowed.stderr
    turned = run_main(
        "import os, signal\n"
        "    try: os.kill(os.getpid(), signal.SIGINT)\n"
        "    except BaseException: raise RuntimeError('INTERNAL')"
    )
    assert turned.returncode == 128 + signal.SIGINT
    (line,) = turned.stderr.splitlines()
    assert line.startswith("interrupted; nothing is half-written")


def test_a_command_that_ends_by_itself_when_interrupted_is_left_to_do_so():
    """As training does, which saves first; a second interrupt ends it at once."""
    own = "import os, signal, time; signal.signal(signal.SIGINT, lambda *_: None);"
    kill = "os.kill(os.getpid(), signal.SIGINT)"
    once = run_main(f"{own} {kill}; time.sleep(0.5); print('saved')")
    assert (once.returncode, once.stdout) == (0, "saved\n")
    twice = run_main(f"{own} {kill}; time.sleep(0.5); {kill}; time.sleep(60)")
    assert twice.returncode == 128 + signal.SIGINT


def start_main(body: str) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-c", WITH_MAIN.format(body=body)],
        cwd=ROOT,
        preexec_fn=heed_interrupts,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def interrupted_when(path: Path, process: subprocess.Popen) -> str:
    """Interrupts a process, and all that it started, once a file is there; what it said of that."""
    while not path.exists() and process.poll() is None:
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGINT)
    return process.communicate(timeout=60)[1]
