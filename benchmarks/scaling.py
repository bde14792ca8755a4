"""What each job costs on how many devices, from measured pieces, and where it stops scaling.

    python -m benchmarks.scaling                                  # the tables, in seconds
    python -m benchmarks.scaling --measure --output=scaling.json  # and 1 and 2 processes here

A job's time is its start, which no device shortens, plus the largest of what its devices compute and
what they share can carry: the network between hosts, the file system. Every number has its origin
beside it (`Pieces`): measured here, counted, taken from a data sheet, or assumed.

`--measure` runs train steps of the quickstart's network as training does, jitted over the devices of one
process and of two (gloo), each on a core of its own with the whole batch or its half, and an all-reduce
of the gradients' size. The model's time of two processes is half of one's plus that all-reduce.
"""

import argparse
import dataclasses
import json
import math
import os
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

DEVICES = (1, 8, 64, 512)
SUBJECTS = (1_000, 10_000, 100_000)
SLICES = (1_000_000, 100_000_000)
_ROOT = Path(__file__).resolve().parent.parent


@dataclasses.dataclass(frozen=True)
class Pieces:
    """What the model is made of, in seconds, bytes and FLOPs.

    Attributes:
        build_core_seconds: of one core a subject; measured, benchmarks/README.md, 8 real cases.
        subject_bytes: of the records of a subject; measured.
        shard_subjects: in a file of the dataset, which one process writes; counted.
        source_bytes: of the compressed files of a subject; assumed to be as much.
        read_seconds: of one core for an image of 256 x 256 from records; measured, 990 a second.
        train_flops, forward_flops: a slice of `configs/train.py`; counted, `benchmarks.memory`.
        parameters: of that network; counted. Their gradients are all-reduced in float32.
        batch_size, num_steps: of `configs/train.py`.
        passes: of the network a sampled slice; 8 steps, with guidance two passes each.
        image_bytes: of a written slice; assumed to be a record's, 10 MB over 552 images a subject.
        start_seconds: until a process has imported all and loaded a compiled program; measured, a Xeon.
        device_flops: an H100's dense peak in bfloat16; NVIDIA's data sheet.
        utilization: share of the peak that is reached; assumed, unmeasured on any accelerator.
        host_devices: devices of a host.
        link_bytes: between the devices of a host, a second and direction; data sheet (NVLink).
        network_bytes: between hosts, a second and device; a 400 Gb/s adapter each, of which 80% are
            assumed.
        hop_seconds: latency of a step of an all-reduce; assumed.
        storage_bytes: that the shared file system carries a second, all clients together; assumed.
    """

    build_core_seconds: float = 0.81
    subject_bytes: float = 10e6
    shard_subjects: int = 16
    source_bytes: float = 10e6
    read_seconds: float = 1 / 990
    train_flops: float = 1658e9
    forward_flops: float = 551e9
    parameters: int = 150_473_217
    batch_size: int = 108
    num_steps: int = 370_000
    passes: int = 16
    image_bytes: float = 10e6 / 552
    start_seconds: float = 3.7
    device_flops: float = 989e12
    utilization: float = 0.4
    host_devices: int = 8
    link_bytes: float = 450e9
    network_bytes: float = 0.8 * 50e9
    hop_seconds: float = 10e-6
    storage_bytes: float = 10e9

    def image_seconds(self, flops: float) -> float:
        return flops / (self.utilization * self.device_flops)


@dataclasses.dataclass(frozen=True)
class Cost:
    """What a job takes.

    Attributes:
        seconds: elapsed time.
        efficiency: share of the devices' time that a single one would have needed.
        limit: what it waits for.
    """

    seconds: float
    efficiency: float
    limit: str


def all_reduce_seconds(size: float, devices: int, pieces: Pieces) -> float:
    """Of a ring: 2 (n - 1) / n of the bytes pass each device's link, plus a tree's 2 log2(n) hops."""
    if devices == 1:
        return 0.0
    link = pieces.link_bytes if devices <= pieces.host_devices else pieces.network_bytes
    hops = 2 * math.ceil(math.log2(devices))
    return 2 * (devices - 1) / devices * size / link + hops * pieces.hop_seconds


def train_step(devices: int, pieces: Pieces, batch_size: int | None = None) -> Cost:
    """One update. Nothing of the all-reduce is taken to be hidden behind computation: an upper bound."""
    batch_size = batch_size or pieces.batch_size
    one = pieces.image_seconds(pieces.train_flops)
    # Every device has the same number of images; those beyond the batch are padding.
    compute = math.ceil(batch_size / devices) * one
    reduce = all_reduce_seconds(4 * pieces.parameters, devices, pieces)
    seconds = compute + reduce
    padded = devices * math.ceil(batch_size / devices) / batch_size
    limit = "computing" if compute > reduce else "all-reduce"
    if padded > 1.5:
        limit = f"{devices - batch_size} of {devices} devices have no image"
    return Cost(seconds, batch_size * one / (devices * seconds), limit)


def build(subjects: int, cores: int, pieces: Pieces) -> Cost:
    """The dataset of so many subjects, without the reading of segmentations that comes before."""
    shards = math.ceil(subjects / pieces.shard_subjects)
    of_one = min(pieces.shard_subjects, subjects) * pieces.build_core_seconds
    compute = math.ceil(shards / cores) * of_one
    moved = subjects * (pieces.subject_bytes + pieces.source_bytes)
    cost = _shared(compute, moved, subjects * pieces.build_core_seconds, cores, pieces)
    if shards < cores:
        limit = f"{cores - shards} of {cores} cores have no shard"
        return dataclasses.replace(cost, limit=limit)
    return cost


def generate(slices: int, devices: int, pieces: Pieces) -> Cost:
    """So many inpainted slices, each written."""
    one = pieces.image_seconds(pieces.passes * pieces.forward_flops)
    compute = math.ceil(slices / devices) * one
    return _shared(compute, slices * 2 * pieces.image_bytes, slices * one, devices, pieces)


def _shared(compute: float, moved: float, alone: float, workers: int, pieces: Pieces) -> Cost:
    storage = moved / pieces.storage_bytes
    seconds = pieces.start_seconds + max(compute, storage)
    limits = {"computing": compute, "file system": storage, "start": pieces.start_seconds}
    return Cost(seconds, alone / (workers * seconds), max(limits, key=limits.__getitem__))


def train_start(subjects: int, pieces: Pieces) -> float:
    """Seconds in which every process reads one record of each training subject (8 of 10)."""
    return 0.8 * subjects * pieces.read_seconds


def tables(pieces: Pieces) -> str:
    """All jobs, in Markdown."""

    def row(name: str, costs: Sequence[Cost]) -> str:
        cells = [f"{duration(c.seconds)}, {c.efficiency:.0%}, {c.limit}" for c in costs]
        return f"| {' | '.join([name, *cells])} |"

    head = f"| | {' | '.join(map(str, DEVICES))} |\n|---{'|---' * len(DEVICES)}|"
    updates = [train_step(n, pieces) for n in DEVICES]
    whole = [dataclasses.replace(c, seconds=c.seconds * pieces.num_steps) for c in updates]
    weak = [train_step(n, pieces, 14 * n) for n in DEVICES]

    def rows(job: Callable[..., Cost], sizes: Sequence[int], name: str) -> list[str]:
        return [row(name.format(n), [job(n, d, pieces) for d in DEVICES]) for n in sizes]

    lines = [
        head,
        row("train, one update of 108", updates),
        row(f"train, {pieces.num_steps:,} of them", whole),
        row("one update of 14 a device", weak),
        *rows(build, SUBJECTS, "build {:,} subjects (cores)"),
        *rows(generate, SLICES, "generate {:,} slices"),
        "",
        *(
            f"start of training, {n:,} subjects: {duration(train_start(n, pieces))}"
            for n in SUBJECTS
        ),
    ]
    return "\n".join(lines)


def duration(seconds: float) -> str:
    """Two digits, in the unit that suits."""
    for unit, length in (("d", 86_400), ("h", 3_600), ("min", 60), ("s", 1)):
        if seconds >= 2 * length:
            number = seconds / length
            return f"{number:.0f} {unit}" if number >= 100 else f"{number:.2g} {unit}"
    return f"{1000 * seconds:.2g} ms" if seconds < 0.1 else f"{seconds:.2g} s"


def measure(rounds: int, config: str) -> dict[str, Any]:
    """Train steps in one process and in two, in turn.

    Returns:
        `one` and `two`: median seconds of a step; `all_reduce`: of the gradients in two processes;
        `speed_up` and `model_speed_up`; `cores` and `load`, of the machine.
    """
    found = {1: [], 2: []}
    for _ in range(rounds):
        for processes, taken in found.items():
            taken.append(_run(processes, config))
    one = statistics.median(each["step"] for each in found[1])
    two = statistics.median(each["step"] for each in found[2])
    reduce = statistics.median(each["all_reduce"] for each in found[2])
    return {
        "config": config,
        "one": one,
        "two": two,
        "all_reduce": reduce,
        "gradient_bytes": found[1][0]["gradient_bytes"],
        "speed_up": one / two,
        "model_speed_up": one / (one / 2 + reduce),
        "cores": os.cpu_count(),
        "load": os.getloadavg()[0],
    }


def _run(processes: int, config: str) -> dict[str, float]:
    """What process 0 of so many measured."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        address = f"localhost:{free.getsockname()[1]}"
    # One thread of XLA's each, on a core of its own.
    environment = os.environ | {
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": "--xla_cpu_multi_thread_eigen=false",
        "JAX_COORDINATOR_ADDRESS": address,
        "JAX_NUM_PROCESSES": str(processes),
    }
    command = [sys.executable, "-m", "benchmarks.scaling", "--process", f"--config={config}"]
    started = [
        subprocess.Popen(
            command,
            cwd=_ROOT,
            env=environment | {"JAX_PROCESS_ID": str(number)},
            stdout=subprocess.PIPE,
            text=True,
        )
        for number in range(processes)
    ]
    try:
        output = started[0].communicate(timeout=900)[0]
        for process in started:
            if process.wait(timeout=120):
                raise RuntimeError(f"a process ended with {process.returncode}")
    finally:
        for process in started:
            process.kill()
    return json.loads(output.splitlines()[-1])


def _process(config: str, steps: int = 10) -> None:
    """One of the measured processes; the first prints what it found."""
    number = int(os.environ["JAX_PROCESS_ID"])
    cores = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {cores[number % len(cores)]})

    import jax
    import jax.numpy as jnp
    import numpy as np

    from benchmarks import memory
    from benchmarks.settings import load_settings
    from mbti_jax import sharding
    from mbti_jax.models.parameters import init_params
    from mbti_jax.training.cluster import compiled_by_all, join_cluster
    from mbti_jax.training.state import create_state
    from mbti_jax.training.step import make_train_step

    join_cluster(True)
    settings = load_settings(config)
    mesh, pipeline = sharding.make_mesh(), settings.pipeline()
    whole = sharding.replicated(mesh)
    optimizer = settings.optimizer.make()

    def init(key):
        return create_state(init_params(pipeline.model, key), optimizer)

    state = compiled_by_all(jax.jit(init, out_shardings=whole))(jax.random.key(0))
    _, _, shapes = memory.train_step(settings, settings.batch_size // mesh.size)
    rng = np.random.default_rng(number)
    batch = {name: np.zeros(each.shape, each.dtype) for name, each in shapes.items()}
    batch["codes"] = rng.integers(1, 900, batch["codes"].shape).astype(np.uint16)
    batch |= {
        "weight": batch["weight"] + 1,
        "gain": batch["gain"] + 0.002,
        "bias": batch["bias"] - 1,
    }
    batch = sharding.put_batch(batch, mesh)
    # A process that waits for one that compiles ends after 30 s.
    step = jax.jit(
        make_train_step(pipeline, optimizer, jax.random.key(1), ema_decay=0.9),
        donate_argnums=0,
        out_shardings=(whole, whole),
    )
    step = compiled_by_all(step)
    size = sum(leaf.size for leaf in jax.tree.leaves(state.params))
    rows = sharding.put_batch(np.ones((1, size), np.float32), mesh)
    add = jax.jit(lambda rows: jnp.sum(rows, axis=0), out_shardings=whole)
    taken, reduced = [], []
    for _ in range(steps + 2):
        began = time.perf_counter()
        state, metrics = step(state, batch)
        jax.block_until_ready(metrics)
        between = time.perf_counter()
        jax.block_until_ready(add(rows))
        taken.append(between - began)
        reduced.append(time.perf_counter() - between)
    if number == 0:
        found = {"step": statistics.median(taken[2:]), "all_reduce": statistics.median(reduced[2:])}
        print(json.dumps(found | {"gradient_bytes": 4 * size}), flush=True)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.scaling", description=__doc__.split("\n\n")[0]
    )
    parser.add_argument("--measure", action="store_true", help="1 and 2 processes of this machine")
    parser.add_argument("--config", default="quickstart", help="network that is measured")
    parser.add_argument("--rounds", type=int, default=3, help="processes started for each number")
    parser.add_argument("--process", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--output", help="JSON file to write")
    options = parser.parse_args(arguments)
    if options.process:
        _process(options.config)
        return
    pieces = Pieces()
    print(tables(pieces))
    report: dict[str, Any] = {"pieces": dataclasses.asdict(pieces)}
    if options.measure:
        found = report["measured"] = measure(options.rounds, options.config)
        print(
            f"\n{found['cores']} cores, load {found['load']:.1f}: a step takes {found['one']:.3f} s in "
            f"one process and {found['two']:.3f} s in two, {found['speed_up']:.2f} times as fast; the "
            f"model says {found['model_speed_up']:.2f}, with {1000 * found['all_reduce']:.1f} ms for an "
            f"all-reduce of {found['gradient_bytes'] / 1e6:.1f} MB"
        )
    if options.output:
        Path(options.output).write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
