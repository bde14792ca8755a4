"""Measures the package on an accelerator, stage by stage, and trains a model in the time that is left.

    python -m benchmarks.accelerator --minutes=25 --output=runs/accelerator

Each stage runs in a process of its own and writes OUTPUT/STAGE.json as it goes; what is there is not
done again, so the same command goes on where it was stopped. OUTPUT/report.md holds all tables.
benchmarks/README.md says how to read them.
"""

import argparse
import signal
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from benchmarks.accelerator.pack import pack
from benchmarks.accelerator.processes import fork, spawn
from benchmarks.accelerator.report import write_report
from benchmarks.accelerator.sizes import SIZES
from benchmarks.accelerator.stages import STAGES, UnusableError, run_stages
from tfds_brats.locking import LockedError, only_process_in

_MAX_MINUTES = 7 * 24 * 60
_INTERRUPTED = 130


def main(arguments: Sequence[str] | None = None) -> None:
    began = time.monotonic()
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.accelerator", description=__doc__.split("\n\n")[0]
    )
    parser.add_argument("--minutes", type=float, required=True, help="after which it ends")
    parser.add_argument("--output", type=Path, required=True, help="folder to write to")
    parser.add_argument(
        "--config", choices=SIZES, default="full", help="sizes: tiny is for trying it on a CPU"
    )
    options = parser.parse_args(arguments)
    if not 0 < options.minutes <= _MAX_MINUTES:
        parser.error(f"--minutes must be above 0 and at most {_MAX_MINUTES}, not {options.minutes}")
    # As Ctrl-C: the stage that runs is ended first.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    folder, sizes = options.output, SIZES[options.config]
    try:
        with only_process_in(folder, "benchmark"):
            deadline = began + 60 * options.minutes - sizes.reserve_seconds
            shares = [replace(one, minutes=sizes.patience * one.minutes) for one in STAGES]
            start = fork if sizes.fork else spawn
            for stage in run_stages(shares, folder, options.config, deadline, start):
                print(f"{stage.line}\n", flush=True)
                write_report(folder)
            packed = pack(folder)
    except (LockedError, UnusableError) as error:
        sys.exit(str(error))
    except OSError as error:
        sys.exit(f"cannot write to {folder}: {error.strerror or error} (--output={folder})")
    except KeyboardInterrupt:
        print("stopped; the same command goes on from there", file=sys.stderr)
        sys.exit(_INTERRUPTED)
    print("\n".join(map(str, packed)))


if __name__ == "__main__":
    main()
