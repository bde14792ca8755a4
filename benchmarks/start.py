"""What the start of a process costs: imports, the model, the first slice.

    python -m benchmarks.start

Each figure is of a process of its own that repaints one slice with the bundled model. The first finds an
empty compilation cache, the others what it left there; that they found it is checked.
"""

import argparse
import collections
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

_HITS = "/jax/compilation_cache/cache_hits"
_MISSES = "/jax/compilation_cache/cache_misses"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--processes", type=int, default=3, help="with a filled cache")
    parser.add_argument("--steps", type=int, default=10, help="of the sampler")
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--output", help="JSON file to write")
    options = parser.parse_args()
    if min(options.processes, options.steps) < 1:
        parser.error("at least 1 process and 1 step are needed")
    if options.child:
        print(json.dumps(one_process(options.steps)))
        return
    report = measure(options.processes, options.steps)
    print(format_report(report))
    if options.output:
        Path(options.output).write_text(json.dumps(report, indent=2) + "\n")


def measure(processes: int, num_steps: int) -> dict[str, Any]:
    """Runs the processes.

    Returns:
        `num_steps`, `empty` (of `one_process`) and `filled` (a list of those), in JSON values.

    Raises:
        RuntimeError: a process did not find what the first one compiled.
    """
    with tempfile.TemporaryDirectory() as cache:
        environment = {**os.environ, "JAX_COMPILATION_CACHE_DIR": cache}
        command = [sys.executable, "-m", "benchmarks.start", "--child", f"--steps={num_steps}"]
        found = []
        for _ in range(1 + processes):
            done = subprocess.run(command, env=environment, check=True, stdout=subprocess.PIPE)
            found.append(json.loads(done.stdout.splitlines()[-1]))
    empty, *filled = found
    check_hits(empty, filled)
    return {"num_steps": num_steps, "empty": empty, "filled": filled}


def check_hits(empty: dict[str, Any], filled: Sequence[dict[str, Any]]) -> None:
    """Raises RuntimeError if the `filled` processes did not find all that the first one kept."""
    for process in filled:
        if process["misses"] or process["hits"] != empty["misses"]:
            raise RuntimeError(
                f"of {empty['misses']} programs that were kept, {process['hits']} were found and "
                f"{process['misses']} compiled again"
            )


def one_process(num_steps: int) -> dict[str, Any]:
    """Imports, loads and paints in this process.

    Returns:
        `cpu_seconds` and `wall_seconds` of the stages import, load, first slice and second slice, and
        `hits` and `misses` of the compilation cache, in which JAX keeps what took a second to compile.
    """
    stages: dict[str, tuple[float, float]] = {}

    @contextmanager
    def stage(name: str) -> Iterator[None]:
        wall, cpu = time.perf_counter(), _cpu_seconds()
        yield
        stages[name] = time.perf_counter() - wall, _cpu_seconds() - cpu

    with stage("import"):
        import jax
        import numpy as np

        from mbti_jax import Inpainter, Rois, Sampling
    events = collections.Counter()
    jax.monitoring.register_event_listener(lambda event, **_: events.update([event]))
    rows, columns = np.ogrid[:240, :240]
    brain = np.hypot(rows - 120, columns - 120) < 80
    noise = np.random.default_rng(0).uniform(100, 200, (240, 240, 4))
    image = np.where(brain[..., None], noise, 0)
    mask = np.zeros((240, 240), bool)
    mask[100:130, 90:120] = True
    with stage("load"):
        inpainter = Inpainter.load("phantom")
    rois = Rois.of({"normal": mask}, mask.shape)
    for seed, name in enumerate(("first slice", "second slice")):
        with stage(name):
            inpainter.inpaint(image, rois, Sampling(num_steps, seed=seed))
    return {
        "wall_seconds": {name: wall for name, (wall, _) in stages.items()},
        "cpu_seconds": {name: cpu for name, (_, cpu) in stages.items()},
        "hits": events[_HITS],
        "misses": events[_MISSES],
    }


def format_report(report: dict[str, Any]) -> str:
    """A table of CPU seconds and, in brackets, elapsed seconds."""

    def cell(processes: Sequence[dict[str, Any]], stage: str) -> str:
        clocks = (
            statistics.median(p[clock][stage] for p in processes)
            for clock in ("cpu_seconds", "wall_seconds")
        )
        return "{:.1f} ({:.1f})".format(*clocks)

    empty, filled = report["empty"], report["filled"]
    lines = [
        f"CPU seconds (elapsed); a slice of {report['num_steps']} steps",
        "| stage | empty cache | filled cache |",
        "|---|---|---|",
    ]
    for stage in empty["cpu_seconds"]:
        lines.append(f"| {stage} | {cell([empty], stage)} | {cell(filled, stage)} |")
    lines.append(f"Programs kept: {empty['misses']}, all found again by {len(filled)} processes.")
    return "\n".join(lines)


def _cpu_seconds() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


if __name__ == "__main__":
    main()
