"""The process of one stage; started by `processes`, not by hand."""

import importlib
import os
import signal
import sys
import threading
import time
import traceback
from pathlib import Path

from benchmarks.accelerator.record import OutOfTime, Record
from benchmarks.accelerator.sizes import SIZES


def run(name: str, folder: str, config: str, seconds: str, share: str) -> None:
    """Runs a stage: its name, the folder, the sizes, its seconds, and its share of all calls."""
    _end_with_parent()
    signal.signal(signal.SIGTERM, _raise_out_of_time)
    record = Record(Path(folder), name, float(seconds), float(share))
    module = importlib.import_module(f"benchmarks.accelerator.{name}")
    try:
        module.run(SIZES[config], record)
    except OutOfTime:
        record.end("cut off")
    except Exception as error:
        traceback.print_exc()
        record.end("failed", f"{type(error).__name__}: {error}"[:300])
        sys.exit(1)
    else:
        record.end("finished")


def _raise_out_of_time(number, frame):
    raise OutOfTime


def _end_with_parent() -> None:
    """Ends this process and those it started when the command is killed: the device must be free."""
    parent = os.getppid()

    def watch():
        while os.getppid() == parent:
            time.sleep(0.5)
        os.killpg(0, signal.SIGKILL)

    threading.Thread(target=watch, daemon=True).start()


if __name__ == "__main__":
    run(*sys.argv[1:])
