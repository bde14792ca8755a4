"""Parameters, FLOPs and peak memory of a config's train step, from XLA's analysis; nothing runs.

    python -m benchmarks.memory --batches 1 2 4 --output=memory.json

The step is the one that training runs (preprocessing, network, optimizer and moving average), with
and without rematerialization. It is compiled for the device that JAX finds; the numbers of one
kind of device are not those of another.
"""

import argparse
import dataclasses
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.settings import load_settings
from benchmarks.timing import describe_machine
from mbti_jax.diffusion.condition import Condition
from mbti_jax.models import choices
from mbti_jax.models.parameters import param_shapes
from mbti_jax.models.pipeline import Pipeline
from mbti_jax.training.settings import TrainSettings
from mbti_jax.training.state import create_state
from mbti_jax.training.step import make_train_step

GIB = 2**30
# XLA's CPU compiler drops the barriers of rematerialization before it orders the operations, and so
# recomputes early and saves nothing. Accelerators keep the barriers; without this pass, so does the CPU.
_CPU_COMPILER_OPTIONS = {"xla_disable_hlo_passes": "cse_barrier_expander"}
_PACKAGES = ("jax", "flax", "optax")


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.memory", description=__doc__.split("\n\n")[0]
    )
    parser.add_argument("--config", default="train", help="quickstart or train")
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 2], help="batch sizes")
    parser.add_argument("--output", help="JSON file to write")
    options = parser.parse_args(arguments)
    if min(options.batches) < 1:
        parser.error("batch sizes must be at least 1")
    settings = load_settings(options.config)
    report = {"config": options.config, **measure(settings, options.batches)}
    print(format_report(report))
    if options.output:
        Path(options.output).write_text(json.dumps(report, indent=2) + "\n")


def measure(settings: TrainSettings, batches: Sequence[int]) -> dict[str, Any]:
    """Lowers and compiles the step for every batch size.

    Args:
        settings: of the training run; both with and without rematerialization.
        batches: batch sizes.

    Returns:
        Plain JSON values: `machine`, `image_size`, `dtype`, `parameters`, `forward_flops` and
        `train_flops` per slice, and `rows`, a list with `batch_size`, `remat`, `peak_bytes`,
        `temp_bytes` and `compile_seconds`.
    """
    variants = {
        remat: dataclasses.replace(settings, model={**settings.model, "remat": remat})
        for remat in (False, True)
    }
    pipeline = variants[False].pipeline()
    params = param_shapes(pipeline.model)
    compiler_options = _CPU_COMPILER_OPTIONS if jax.default_backend() == "cpu" else {}
    rows = []
    for remat, variant in variants.items():
        for batch_size in batches:
            start = time.perf_counter()
            step, *arguments = train_step(variant, batch_size)
            compiled = step.lower(*arguments).compile(compiler_options)
            rows.append(
                {
                    "batch_size": batch_size,
                    "remat": remat,
                    "peak_bytes": peak_bytes(compiled),
                    "temp_bytes": compiled.memory_analysis().temp_size_in_bytes,
                    "compile_seconds": time.perf_counter() - start,
                }
            )
    forward = jax.jit(pipeline.apply)
    return {
        "machine": describe_machine(_PACKAGES),
        "image_size": pipeline.image_size,
        "dtype": pipeline.model.dtype,
        "parameters": sum(leaf.size for leaf in jax.tree.leaves(params)),
        "forward_flops": count_flops(forward, params, *network_inputs(pipeline, 1)),
        "train_flops": count_flops(*train_step(variants[False], 1)),
        "rows": rows,
    }


def train_step(settings: TrainSettings, batch_size: int) -> tuple[Any, Any, dict[str, Any]]:
    """(jitted step, shapes of the state, which is donated, shapes of the batch)."""
    pipeline, window = settings.pipeline(), settings.data.window
    optimizer = settings.optimizer.make()
    step = make_train_step(pipeline, optimizer, jax.random.key(0), ema_decay=settings.ema_decay)
    state = jax.eval_shape(
        lambda params: create_state(params, optimizer), param_shapes(pipeline.model)
    )
    slices, channels = (batch_size, window, window), pipeline.model.out_channels
    shapes = {
        "codes": ((*slices, channels), jnp.uint16),
        "gain": ((batch_size, channels), jnp.float32),
        "bias": ((batch_size, channels), jnp.float32),
        "labels": (slices, jnp.uint8),
        "weight": ((batch_size,), jnp.float32),
    }
    batch = {name: jax.ShapeDtypeStruct(*shape) for name, shape in shapes.items()}
    return jax.jit(step, donate_argnums=0), state, batch


def network_inputs(pipeline: Pipeline, batch_size: int) -> tuple[Any, Any, Condition]:
    """Shapes of the network's (x_t, t, condition)."""
    model = pipeline.model
    image = (batch_size, pipeline.image_size, pipeline.image_size)
    x_t, t, roi_masks, class_vector = (
        jax.ShapeDtypeStruct(shape, jnp.float32)
        for shape in (
            (*image, model.out_channels),
            (batch_size,),
            (*image, model.num_classes),
            (batch_size, model.num_classes),
        )
    )
    return x_t, t, Condition(roi_masks, class_vector)


def count_flops(function: Any, *arguments: Any) -> float:
    """FLOPs of a jitted function, two per multiply-add, before XLA optimizes anything.

    Always counted for the CPU: an accelerator's plugin does not report them before compilation, and
    afterwards leaves out those inside its libraries' kernels. Under the plainest `choices`, so that the
    count does not depend on them.
    """
    plain = dataclasses.asdict(choices.Choices())
    with jax.default_device(jax.devices("cpu")[0]), choices.override(**plain):
        lowered = function.lower(*arguments)
        analysis = lowered.cost_analysis() or lowered.compile().cost_analysis()
    return analysis["flops"]


def peak_bytes(compiled: jax.stages.Compiled) -> int:
    """Arguments, outputs and temporaries together; donated buffers are counted once."""
    sizes = compiled.memory_analysis()
    return (
        sizes.argument_size_in_bytes
        + sizes.output_size_in_bytes
        - sizes.alias_size_in_bytes
        + sizes.temp_size_in_bytes
    )


def format_report(report: dict[str, Any]) -> str:
    """The report as a table, with a straight line through the batch sizes where there are several."""
    machine, size = report["machine"], report["image_size"]
    lines = [
        f"configs/{report['config']}.py, {size} x {size}, {report['dtype']}; XLA's analysis for "
        f"{machine['jax_device']}, jax {machine['versions']['jax']}",
        f"{report['parameters'] / 1e6:.1f} million parameters; {report['forward_flops'] / 1e9:.1f} "
        f"GFLOP per slice forward, {report['train_flops'] / 1e9:.1f} in a train step",
        f"{'batch':>5}{'remat':>7}{'peak GiB':>10}{'temp GiB':>10}{'compile s':>11}",
    ]
    for row in report["rows"]:
        lines.append(
            f"{row['batch_size']:5}{'yes' if row['remat'] else 'no':>7}"
            f"{row['peak_bytes'] / GIB:10.2f}{row['temp_bytes'] / GIB:10.2f}"
            f"{row['compile_seconds']:11.0f}"
        )
    for remat in (False, True):
        rows = [row for row in report["rows"] if row["remat"] == remat]
        if len({row["batch_size"] for row in rows}) > 1:
            slope, intercept = np.polyfit(
                [row["batch_size"] for row in rows], [row["peak_bytes"] / GIB for row in rows], 1
            )
            lines.append(
                f"{'with' if remat else 'without'} rematerialization: "
                f"about {intercept:.2f} GiB + {slope:.2f} GiB per slice"
            )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
