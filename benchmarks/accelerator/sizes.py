"""How large everything is: at full size for an accelerator, tiny for trying the command on a CPU."""

import dataclasses
from collections.abc import Mapping
from importlib import metadata
from typing import Any


@dataclasses.dataclass(frozen=True)
class Sizes:
    """Sizes of all stages.

    Attributes:
        needs_accelerator: refuse to run on a CPU.
        fork: stages are copies of the command's process instead of new ones, which saves imports and
            takes the environment as it was when the first one started.
        environment: of the stages' processes, where the variables are not set.
        reserve_seconds: of the time given, for ending the last stage and writing the report.
        patience: by which the stages' shares of the time are multiplied.
        network: fields of `configs/train.py` that differ, by their names with dots.
        batch: examples of a step in all comparisons.
        max_batch: where the doubling of batches ends at the latest.
        rounds: how often each rival is timed.
        matmul_sizes: rows of the matrices of the peaks.
        copy_megabytes: array that is copied.
        sampler_steps: the usual number and the few-step setting.
        sampler_batches: one slice, and a full batch.
        alternatives: how many of the implementations, in order of worth.
        profiled_steps: steps inside the profile.
        resume_steps: steps before and after the interruption.
        resume_all: interrupt runs without deterministic operations, too, and compare microbatches.
        loader_seconds: how long the loader alone, and loader and step together, are timed.
        loader_threads: that read ahead, to choose from; the first feed the step.
        phantoms: subjects made; 0 takes the few tiny cases that the package ships.
        training: fields of `configs/accelerator_model.py` that differ.
        training_end_seconds: what is kept for export, figures and evaluation.
        figures: fields of `configs/figures.py` that differ.
        evaluation: fields of `configs/evaluate.py`'s part "healthy" that differ.
    """

    needs_accelerator: bool
    fork: bool
    environment: Mapping[str, str]
    reserve_seconds: float
    patience: float
    network: Mapping[str, Any]
    batch: int
    max_batch: int
    rounds: int
    matmul_sizes: tuple[int, ...]
    copy_megabytes: int
    sampler_steps: tuple[int, int]
    sampler_batches: tuple[int, int]
    alternatives: int
    profiled_steps: int
    resume_steps: int
    resume_all: bool
    loader_seconds: float
    loader_threads: tuple[int, ...]
    phantoms: int
    training: Mapping[str, Any]
    training_end_seconds: float
    figures: Mapping[str, Any]
    evaluation: Mapping[str, Any]


SIZES = {
    "full": Sizes(
        needs_accelerator=True,
        fork=False,
        # A program out of the cache would have the operations' paths of the revision that compiled it.
        environment={
            "JAX_COMPILATION_CACHE_INCLUDE_METADATA_IN_KEY": "true",
            # Callers of a program are no part of it: stages find what others have compiled.
            "JAX_TRACEBACK_IN_LOCATIONS_LIMIT": "1",
        },
        reserve_seconds=25,
        patience=1,
        network={},
        batch=16,
        max_batch=512,
        rounds=5,
        matmul_sizes=(4096, 8192),
        copy_megabytes=2048,
        sampler_steps=(25, 5),
        sampler_batches=(1, 16),
        alternatives=100,
        profiled_steps=5,
        resume_steps=3,
        resume_all=True,
        loader_seconds=5,
        loader_threads=(16, 8, 4),
        phantoms=64,
        training={},
        training_end_seconds=110,
        figures={"num_steps": 25, "batch_size": 16, "num_seeds": 4, "weights": (1.0, 5.0, 20.0)},
        evaluation={"num_cases": 3, "num_samples": 4, "num_steps": 10, "num_shape_cases": 16},
    ),
    "tiny": Sizes(
        needs_accelerator=False,
        fork=True,
        # Compiling is nearly all of the work: quickly, and once what stages have in common. A new OUTPUT
        # holds no programs of other revisions.
        environment={
            "JAX_DISABLE_MOST_OPTIMIZATIONS": "true",
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
            "JAX_COMPILATION_CACHE_INCLUDE_METADATA_IN_KEY": "false",
            # Of jaxlib 0.10. Later ones do not have it, and end at a flag that they do not know.
            "XLA_FLAGS": "--xla_cpu_use_fusion_emitters=false"
            if metadata.version("jaxlib").startswith("0.10.")
            else "",
        },
        reserve_seconds=2,
        patience=5,
        network={
            "data.window": 64,
            "data.image_size": 16,
            "model.model_channels": 8,
            "model.channel_mult": (1,),
            "model.num_res_blocks": 0,
            "tasks.num_candidates": 4,
            "model.num_groups": 4,
            "model.attention_resolutions": (),
            "model.num_head_channels": 8,
            "model.dtype": "float32",
        },
        batch=1,
        max_batch=1,
        rounds=1,
        matmul_sizes=(64,),
        copy_megabytes=1,
        sampler_steps=(2, 2),
        sampler_batches=(1, 1),
        alternatives=1,
        profiled_steps=2,
        resume_steps=1,
        resume_all=False,
        loader_seconds=0.2,
        loader_threads=(1,),
        phantoms=0,
        training={
            "data.window": 64,
            "data.image_size": 16,
            "model.model_channels": 8,
            "model.channel_mult": (1,),
            "model.num_res_blocks": 0,
            "model.num_groups": 4,
            "model.attention_resolutions": (),
            "model.num_head_channels": 8,
            "model.patch_size": 2,
            "model.dtype": "float32",
            "batch_size": 4,
            "num_steps": 3,
            "validation_batches": 1,
            "num_pictures": 1,
            "picture_steps": 2,
        },
        training_end_seconds=10,
        figures={
            "num_steps": 2,
            # The batch of training's pictures and the evaluation's sampler: fewer programs to compile.
            "batch_size": 1,
            "sampler": "unipc",
            "num_seeds": 1,
            "figures": ("3",),
            "min_component_area": 1,
        },
        evaluation={"num_cases": 1, "num_samples": 1, "num_steps": 2, "num_shape_cases": 1},
    ),
}
