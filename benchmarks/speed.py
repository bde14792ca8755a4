"""How fast the network is compared with PyTorch: forward, train step and guided sampler.

    python -m benchmarks.speed --output=speed.json
    python -m benchmarks.speed --config=train --batch=32 --rounds=20 --output=h200.json

Both frameworks run in this one process, in turn, on the same device, with the same weights, batch
and compute dtype. Needs the extra `bench`. See benchmarks/README.md for what is compared with what.
"""

import argparse
import dataclasses
import importlib
import json
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from benchmarks.peaks import measure_peak, one_line, torch_device
from benchmarks.settings import load_settings
from benchmarks.timing import Timing, describe_machine, interleaved
from mbti_jax.training.settings import TrainSettings

MIN_CPU_RATIO = 1.0
MIN_ACCELERATOR_RATIO = 1.0
MIN_ACCELERATOR_SHARE = 0.4
_PACKAGES = ("jax", "jaxlib", "flax", "optax", "torch", "numpy")

# name -> (compiled, channels_last)
TORCH_RIVALS = {
    "torch-eager": (False, True),
    "torch-eager-nchw": (False, False),
    "torch-compile": (True, True),
    "torch-compile-nchw": (True, False),
}
SECTIONS = {"forward": "forward", "train_step": "train step", "sampler": "sampler"}
# Calls a round; one of the sampler is already many passes through the network.
_CALLS = {"forward": 5, "train_step": 5, "sampler": 1}
# Largest relative L2 distance of PyTorch's outputs (images, or losses of two steps) from JAX's. In
# float32 an accelerator multiplies in TF32, in both frameworks.
TOLERANCES = {
    "exact": {"forward": 1e-4, "train_step": 1e-3, "sampler": 1e-3},
    "reduced": {"forward": 5e-2, "train_step": 5e-2, "sampler": 2e-1},
}


class DisagreementError(ValueError):
    """The two frameworks do not compute the same, so that timing them would compare nothing."""


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.speed", description=__doc__.split("\n\n")[0]
    )
    parser.add_argument("--config", default="quickstart", help="whose network: quickstart or train")
    parser.add_argument("--batch", type=int, help="examples a batch; the config's where absent")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), help="default: see README.md")
    parser.add_argument("--rounds", type=int, default=5, help="times that each rival is timed")
    parser.add_argument("--steps", type=int, default=25, help="steps of the sampler")
    parser.add_argument(
        "--rivals",
        nargs="+",
        choices=TORCH_RIVALS,
        default=list(TORCH_RIVALS),
        help="compared with JAX",
    )
    parser.add_argument("--output", help="JSON file to write")
    options = parser.parse_args(arguments)
    counts = (options.rounds, options.steps, options.batch)
    if min(count for count in counts if count is not None) < 1:
        parser.error("at least 1 round, 1 step and 1 example are needed")
    # JAX would otherwise take most of the accelerator's memory for itself when it starts.
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    try:
        importlib.import_module("torch")
    except ImportError as error:
        sys.exit(f"PyTorch is missing ({error}): install the extra `bench`")

    settings = load_settings(options.config)
    settings = dataclasses.replace(
        settings,
        batch_size=options.batch or settings.batch_size,
        model={**settings.model, "remat": False, "dtype": options.dtype or default_dtype()},
    )
    report = measure(settings, options.rivals, rounds=options.rounds, num_steps=options.steps)
    report = {"config": options.config, **report}
    print(format_report(report))
    if options.output:
        Path(options.output).write_text(json.dumps(report, indent=2) + "\n")


def default_dtype() -> str:
    """float32 on a CPU, bfloat16 on an accelerator."""
    return "float32" if jax.default_backend() == "cpu" else "bfloat16"


def measure(
    settings: TrainSettings,
    rivals: Sequence[str],
    *,
    rounds: int,
    num_steps: int,
    matmul_size: int | None = None,
) -> dict[str, Any]:
    """Takes all measurements.

    Args:
        settings: of a training run.
        rivals: names out of `TORCH_RIVALS`; JAX takes part in any case.
        rounds: how often each rival is timed.
        num_steps: steps of the sampler.
        matmul_size: rows of the matrices whose product is taken for the peak; None for 2048 on a
            CPU and 8192 on an accelerator.

    Returns:
        Plain JSON values: `machine`, `torch`, `image_size`, `batch_size`, `dtype`, `parameters`,
        `rounds`, `num_steps`, `clock` ("cpu" or "wall", whose times rates and goals are made of),
        `peak` (FLOP/s of each framework's matrix product and the `best`), `goals`, and `sections`,
        each with `title`, `flops` and `floor_seconds` an image and `rows` by rival, the first being
        JAX: `Timing.to_json()`, `flop_per_second`, `share_of_peak`, `relative_l2`,
        `compile_seconds` and `peak_bytes` (None where nobody counts them).

    Raises:
        DisagreementError: a rival's outputs are not those of JAX.
        ValueError: PyTorch cannot use the device that JAX uses.
    """
    # The extra `bench` is needed from here on.
    import torch

    from benchmarks.speed_jax import JaxSide, Problem
    from benchmarks.speed_torch import TorchSide

    device = torch_device(torch)
    on_cpu = device == "cpu"
    clock = "cpu" if on_cpu else "wall"
    torch.backends.cudnn.benchmark = True
    torch.set_float32_matmul_precision("highest" if on_cpu else "high")
    problem = Problem.from_settings(settings, num_steps)
    dtype = problem.pipeline.model.dtype
    size = matmul_size or (2048 if on_cpu else 8192)
    peak = measure_peak(torch, device, dtype, size, rounds, clock)
    sides = {"jax": JaxSide(problem)}
    for name in rivals:
        compiled, channels_last = TORCH_RIVALS[name]
        sides[name] = TorchSide(problem, device, compiled, channels_last)
    exact = on_cpu and dtype == "float32"
    tolerances = TOLERANCES["exact" if exact else "reduced"]
    flops = problem.flops()
    sections = {}
    for section, title in SECTIONS.items():
        timings, programs, distances = compare(
            problem, sides, section, tolerances[section], rounds=rounds
        )
        per_image = flops[section] / problem.batch_size
        rows = {}
        for name, timing in timings.items():
            rate = per_image / getattr(timing, f"{clock}_seconds")
            rows[name] = {
                **timing.to_json(),
                "flop_per_second": rate,
                "share_of_peak": rate / peak["best"],
                "relative_l2": distances[name],
                "compile_seconds": programs[name].compile_seconds,
                "peak_bytes": programs[name].peak_bytes,
            }
        sections[section] = {
            "title": f"{title} of {num_steps} steps" if section == "sampler" else title,
            "flops": per_image,
            "floor_seconds": per_image / peak["best"],
            "rows": rows,
        }
    return {
        "machine": describe_machine(_PACKAGES),
        "torch": {
            "device": device if on_cpu else torch.cuda.get_device_name(),
            "threads": torch.get_num_threads(),
            "cuda": torch.version.cuda,
            "cudnn": torch.backends.cudnn.version(),
        },
        "image_size": problem.pipeline.image_size,
        "batch_size": problem.batch_size,
        "dtype": dtype,
        "parameters": sum(leaf.size for leaf in jax.tree.leaves(problem.params)),
        "rounds": rounds,
        "num_steps": num_steps,
        "clock": clock,
        "peak": peak,
        "goals": _goals(sections, clock),
        "sections": sections,
    }


def compare(
    problem: Any,
    sides: Mapping[str, Any],
    section: str,
    tolerance: float,
    *,
    rounds: int,
    calls: int | None = None,
    failures: dict[str, str] | None = None,
) -> tuple[dict[str, Timing], dict[str, Any], dict[str, float]]:
    """Prepares one piece of work of all sides, compares what they compute, and times them in turn.

    Args:
        problem: a `speed_jax.Problem`.
        sides: `JaxSide`s and `TorchSide`s by name; the others are compared with the first.
        section: a key of `SECTIONS`.
        tolerance: largest relative L2 distance from the first one's outputs.
        rounds: how often each is timed.
        calls: in a round; by default a few.
        failures: takes what is wrong with sides that cannot take part, or whose outputs differ; by
            default that is raised.

    Returns:
        By name of those that took part: timing of an example, program, relative L2 distance.

    Raises:
        DisagreementError: a rival's outputs are not those of the first side.
    """
    programs = {}
    for name, side in sides.items():
        try:
            programs[name] = side.prepare(section)
        except Exception as error:
            # A compiler or an allocator may fail in any way. Without the first there is no comparison.
            if failures is None or not programs:
                raise
            failures[name] = one_line(error)
    first, *others = programs
    reference = {first: programs[first].first_outputs}
    distances = check_agreement(SECTIONS[section], reference, tolerance)
    for name in others:
        both = {**reference, name: programs[name].first_outputs}
        try:
            distances |= check_agreement(SECTIONS[section], both, tolerance)
        except DisagreementError as error:
            if failures is None:
                raise
            failures[name] = str(error)
            del programs[name]
    calls = calls or _CALLS[section]
    running = {name: timed(p, calls, problem.batch_size) for name, p in programs.items()}
    return interleaved(running, rounds), programs, distances


def check_agreement(
    title: str, outputs: Mapping[str, np.ndarray], tolerance: float
) -> dict[str, float]:
    """Relative L2 distance of each rival's outputs from those of the first.

    Raises:
        DisagreementError: one is above `tolerance`, or not a number.
    """
    reference = next(iter(outputs.values()))
    distances = {
        name: float(np.linalg.norm(output - reference) / np.linalg.norm(reference))
        for name, output in outputs.items()
    }
    for name, distance in distances.items():
        if not distance <= tolerance:
            raise DisagreementError(
                f"{title}: {name} differs from JAX by {distance:.2g} in relative L2, more than "
                f"{tolerance:g}"
            )
    return distances


def timed(program: Any, calls: int, batch_size: int) -> Callable[[], int]:
    """A function that does a program's work `calls` times and returns the number of examples."""

    def run() -> int:
        for _ in range(calls):
            output = program.run()
        program.wait(output)
        return calls * batch_size

    return run


def _goals(sections: Mapping[str, Any], clock: str) -> list[dict[str, Any]]:
    """What issue and README aim at, as far as the rivals that took part allow to tell."""

    def slowest_lead(section: str, kind: str) -> float | None:
        ratios = [
            row[f"{clock}_ratio"]
            for name, row in sections[section]["rows"].items()
            if name.startswith(kind)
        ]
        return min(ratios, default=None)

    if clock == "cpu":
        measured = {
            "train step: time of the faster PyTorch eager over that of JAX": (
                slowest_lead("train_step", "torch-eager"),
                MIN_CPU_RATIO,
            )
        }
    else:
        measured = {
            f"{title}: time of the faster torch.compile over that of JAX": (
                slowest_lead(section, "torch-compile"),
                MIN_ACCELERATOR_RATIO,
            )
            for section, title in SECTIONS.items()
            if section != "forward"
        }
        share = sections["train_step"]["rows"]["jax"]["share_of_peak"]
        measured["train step: JAX's share of the measured peak"] = share, MIN_ACCELERATOR_SHARE
    return [
        {"goal": goal, "measured": value, "at_least": least}
        for goal, (value, least) in measured.items()
        if value is not None
    ]


def format_report(report: dict[str, Any]) -> str:
    """The report as tables; times in milliseconds an image."""
    machine, torch, peak = report["machine"], report["torch"], report["peak"]
    versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items())
    rate = "GFLOP/s/core" if report["clock"] == "cpu" else "GFLOP/s"
    lines = [
        f"{machine['cpu']}, {machine['cores']} cores (load {machine['load_average']:.1f}); "
        f"JAX on {machine['jax_device']}, PyTorch on {torch['device']} with {torch['threads']} "
        f"threads (CUDA {torch['cuda']}, cuDNN {torch['cudnn']})",
        f"{machine['system']}, Python {machine['python']}, {versions}",
        f"configs/{report['config']}.py: {report['parameters'] / 1e6:.2f} million parameters, "
        f"{report['image_size']} x {report['image_size']}, batch {report['batch_size']}, "
        f"{report['dtype']}; medians of {report['rounds']} rounds",
        f"matrix product of {peak['matmul_size']}: JAX {peak['jax'] / 1e9:.1f}, PyTorch "
        f"{peak['torch'] / 1e9:.1f} {rate}; the larger is the peak",
    ]
    for section in report["sections"].values():
        lines += [
            "",
            f"{section['title']}: {section['flops'] / 1e9:.2f} GFLOP an image, floor "
            f"{1e3 * section['floor_seconds']:.3f} {report['clock']} ms (x: ratio to JAX)",
            f"{'':20}{'CPU ms':>10}{'x':>7}{'wall ms':>10}{'x':>7}{'images/s':>10}{rate:>13}"
            f"{'of peak':>9}{'rel. L2':>9}{'compile s':>11}{'peak MiB':>10}",
        ]
        for name, row in section["rows"].items():
            memory = "-" if row["peak_bytes"] is None else f"{row['peak_bytes'] / 2**20:.0f}"
            lines.append(
                f"{name:20}{1e3 * row['cpu_seconds']:10.3f}{row['cpu_ratio']:7.2f}"
                f"{1e3 * row['wall_seconds']:10.3f}{row['wall_ratio']:7.2f}"
                f"{row['per_second']:10.4g}{row['flop_per_second'] / 1e9:13.4g}"
                f"{row['share_of_peak']:9.1%}{row['relative_l2']:9.1e}"
                f"{row['compile_seconds']:11.1f}{memory:>10}"
            )
    lines.append("")
    for goal in report["goals"]:
        verdict = "reached" if goal["measured"] >= goal["at_least"] else "missed"
        lines.append(
            f"goal: {goal['goal']} at least {goal['at_least']:g}; "
            f"measured {goal['measured']:.2f}, {verdict}"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
