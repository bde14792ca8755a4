"""Stage 4: where the time of a train step goes, by kernel, from a profile of the device."""

import re
import shutil
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
from jax.profiler import ProfileData, ProfileOptions

from benchmarks.accelerator.problems import settings, slices
from benchmarks.accelerator.record import Record
from benchmarks.accelerator.sizes import Sizes
from benchmarks.memory import train_step
from mbti_jax.models.parameters import init_params
from mbti_jax.training.settings import TrainSettings
from mbti_jax.training.state import create_state

NUM_KERNELS = 20
CATEGORIES = (
    "convolutions",
    "norms and activations",
    "attention",
    "copies and transposes",
    "optimizer",
    "preprocessing",
    "other parts of the network",
    "noise and loss",
    "unknown",
)
# Their time is that of what they contain.
_CONTAINERS = ("while", "call", "conditional", "async-start", "async-done")
# Names of sub-modules of the network, as components of an operation's path.
_CONVOLUTIONS = frozenset({"in_layers_2", "out_layers_3", "out_2", "conv", "op", "skip_connection"})
_NORMS = frozenset({"in_layers_0", "out_layers_0", "out_0"})
_ATTENTION = re.compile(r"middle_block_1|(in|out)put_blocks_\d+_1")
# For kernels of libraries whose operation is not recorded.
_KERNEL_NAMES = (
    ("attention", re.compile(r"flash|fmha|_mha|sdpa", re.I)),
    (
        "copies and transposes",
        re.compile(r"memcpy|memset|copy|transpose|nchwToNhwc|nhwcToNchw", re.I),
    ),
    ("convolutions", re.compile(r"conv|fprop|dgrad|wgrad|cudnn|winograd", re.I)),
)


class Operation(NamedTuple):
    """An instruction of the compiled program: its opcode and the path of what it was made from."""

    opcode: str
    path: str


class Event(NamedTuple):
    """A kernel that ran: its name, the instruction it belongs to ("" if not recorded), seconds."""

    name: str
    instruction: str
    seconds: float


def run(sizes: Sizes, record: Record) -> None:
    """Profiles some steps of the whole train step, preprocessing included."""
    of = settings(sizes)
    record.unit("profile", lambda: _profile(of, sizes.profiled_steps, record.work / "trace"))


def _profile(of: TrainSettings, num_steps: int, folder: Path) -> dict[str, Any]:
    state, batch, step = compiled_step(of)
    for _ in range(2):
        state, metrics = step(state, batch)
    jax.block_until_ready(metrics)
    start = time.perf_counter()
    for _ in range(num_steps):
        state, metrics = step(state, batch)
    jax.block_until_ready(metrics)
    wall = (time.perf_counter() - start) / num_steps
    shutil.rmtree(folder, ignore_errors=True)
    options = ProfileOptions()
    options.python_tracer_level = 0
    with jax.profiler.trace(str(folder), profiler_options=options):
        for _ in range(num_steps):
            state, metrics = step(state, batch)
        jax.block_until_ready(metrics)
    operations = read_program(step.as_text())
    (path,) = folder.glob("**/*.xplane.pb")
    events = list(read_trace(path))
    if not events:
        raise RuntimeError("the profiler recorded nothing that ran on the device")
    return {
        "batch": of.batch_size,
        "steps": num_steps,
        "wall_seconds": wall,
        **summarize(events, operations, num_steps),
    }


def compiled_step(of: TrainSettings, **options: Any) -> tuple[Any, Any, Any]:
    """(first state, batch, compiled train step) of the step that training runs."""
    step, _, _ = train_step(of, of.batch_size)
    optimizer = of.optimizer.make()
    model = of.pipeline().model
    state = jax.jit(lambda key: create_state(init_params(model, key), optimizer))(jax.random.key(0))
    batch = jax.device_put(slices(of))
    return state, batch, step.lower(state, batch).compile(options or None)


def read_program(text: str) -> dict[str, Operation]:
    """The instructions of a compiled program by name, out of its text."""
    operations = {}
    pattern = re.compile(r"\s*(?:ROOT )?%?([\w.\-]+) = (?:\(.*?\)|\S+) ([\w\-]+)\(")
    for line in text.splitlines():
        line = re.sub(r"/\*.*?\*/", "", line)
        if match := pattern.match(line):
            path = re.search(r'op_name="([^"]*)"', line)
            operations[match[1]] = Operation(match[2], path[1] if path else "")
    return operations


def read_trace(path: Path) -> Iterator[Event]:
    """What ran on the device, out of a profile: kernels of a GPU's streams, operations elsewhere."""
    planes = list(ProfileData.from_file(str(path)).planes)
    devices = [plane for plane in planes if plane.name.startswith("/device:")]
    devices = [plane for plane in devices if "CUSTOM" not in plane.name]
    for plane in devices or [plane for plane in planes if plane.name == "/host:CPU"]:
        lines = list(plane.lines)
        streams = [line for line in lines if line.name.startswith("Stream")]
        for line in streams or [line for line in lines if line.name == "XLA Ops"] or lines:
            for event in line.events:
                stats = dict(event.stats)
                instruction = str(stats.get("hlo_op", ""))
                # A host's lines hold much else.
                if (instruction or streams) and not event.name.startswith("end: "):
                    yield Event(event.name, instruction, event.duration_ns / 1e9)


def summarize(
    events: list[Event], operations: Mapping[str, Operation], num_steps: int
) -> dict[str, Any]:
    """Seconds of a step by category, and the costliest kernels.

    Returns:
        `busy_seconds` of a step (kernels that run at once count twice), `categories` (seconds of a
        step) and `kernels`: `name`, `path`, `category`, `seconds` and `calls` a step.
    """
    by_kernel_name = {_as_kernel(name): name for name in operations}
    seconds, calls, places = Counter(), Counter(), {}
    for event in events:
        instruction = event.instruction
        if instruction not in operations:
            instruction = by_kernel_name.get(_as_kernel(event.name), "")
        operation = operations.get(instruction, Operation("", ""))
        if operation.opcode in _CONTAINERS:
            continue
        key = (instruction or event.name, event.name)
        seconds[key] += event.seconds
        calls[key] += 1
        places[key] = operation
    categories = dict.fromkeys(CATEGORIES, 0.0)
    kernels = []
    for key, total in seconds.most_common():
        instruction, name = key
        kind = category(places[key], name)
        categories[kind] += total / num_steps
        if len(kernels) < NUM_KERNELS:
            kernels.append(
                {
                    "name": name[:80],
                    "instruction": instruction[:60],
                    "path": _shortened(places[key].path),
                    "category": kind,
                    "seconds": total / num_steps,
                    "calls": calls[key] / num_steps,
                }
            )
    return {
        "busy_seconds": sum(categories.values()),
        "categories": categories,
        "kernels": kernels,
    }


def category(operation: Operation, kernel: str) -> str:
    """Which of `CATEGORIES` an instruction belongs to, by its opcode and path, or the kernel's name.

    A fusion has the path of its last operation, so what is fused into a convolution counts as one.
    """
    opcode, path = operation
    parts = re.split(r"[/()]", path)
    if opcode.startswith(("copy", "transpose")) or (path and parts[-1] == "transpose"):
        return "copies and transposes"
    if "preprocessing" in parts:
        return "preprocessing"
    if "optimizer" in parts:
        return "optimizer"
    if "UNet" in parts:
        is_residual = any(part.startswith(("in_layers", "out_layers")) for part in parts)
        if any(map(_ATTENTION.fullmatch, parts)) and not is_residual and "conv" not in parts:
            return "attention"
        if _NORMS.intersection(parts):
            return "norms and activations"
        if _CONVOLUTIONS.intersection(parts) or "input_blocks_0_0" in parts:
            return "convolutions"
        return "other parts of the network"
    if path:
        return "noise and loss"
    for kind, pattern in _KERNEL_NAMES:
        if pattern.search(kernel):
            return kind
    return "unknown"


def _as_kernel(instruction: str) -> str:
    """The name that XLA gives to the kernel of an instruction."""
    return re.sub(r"[.\-]", "_", instruction)


def _shortened(path: str) -> str:
    path = re.sub(r"jit\((\w+)\)/", "", path)
    return path if len(path) <= 80 else f"...{path[-77:]}"
