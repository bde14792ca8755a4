"""How fast the data goes: dataset build, loader, and what the device does before the network.

    python -m benchmarks.data --output=data.json
    python -m benchmarks.data --source=DIR --convention=brats2021

Without a source it makes digital phantoms. Everything runs in this one process, rivals in turn; see
benchmarks/README.md for what is compared with what.
"""

import argparse
import dataclasses
import json
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax

from benchmarks.data_rivals import (
    BATCH_SIZE,
    LoaderRivals,
    all_files,
    build_rivals,
    device_rivals,
    link_cases,
    quiet_build,
)
from benchmarks.settings import load_settings
from benchmarks.timing import Timing, describe_machine, interleaved
from mbti_jax.training.settings import TrainSettings
from tfds_brats.cases import CaseFiles
from tfds_brats.phantom import write_phantoms
from tfds_brats.search import find_cases

MAX_BUILD_RATIO = 2.0
MIN_LOADER_RATE = 600.0
_PACKAGES = ("jax", "numpy", "opencv-python-headless", "grain", "array_record", "nibabel")


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.data", description=__doc__.split("\n\n")[0]
    )
    parser.add_argument("--source", help="folder with cases; phantoms are made where it is absent")
    parser.add_argument("--convention", help="the cases' convention, such as brats2021")
    parser.add_argument("--subjects", type=int, default=4, help="how many (at least 3)")
    parser.add_argument("--rounds", type=int, default=3, help="times that each rival is timed")
    parser.add_argument("--batches", type=int, default=64, help="batches the loader reads a round")
    parser.add_argument(
        "--config", default="quickstart", help="whose train step: quickstart or train"
    )
    parser.add_argument("--output", help="JSON file to write")
    options = parser.parse_args(arguments)
    if bool(options.source) != bool(options.convention):
        parser.error("give both --source and --convention, or neither")
    if options.subjects < 3 or options.rounds < 1 or options.batches < 1:
        parser.error("at least 3 subjects, 1 round and 1 batch are needed")
    with tempfile.TemporaryDirectory() as folder:
        source, convention = options.source, options.convention
        if source is None:
            source, convention = Path(folder, "phantoms"), "phantom"
            write_phantoms(source, options.subjects, seed=0)
        report = measure(
            find_cases(source, convention)[: options.subjects],
            load_settings(options.config),
            Path(folder),
            rounds=options.rounds,
            batches=options.batches,
        )
    report["config"] = options.config
    print(format_report(report))
    if options.output:
        Path(options.output).write_text(json.dumps(report, indent=2) + "\n")


def measure(
    cases: Sequence[CaseFiles], settings: TrainSettings, folder: Path, *, rounds: int, batches: int
) -> dict[str, Any]:
    """Takes all measurements.

    Args:
        cases: what to build the dataset of, at least 3 patients.
        settings: of the train step that the preprocessing is compared with.
        folder: scratch space.
        rounds: how often each rival is timed.
        batches: of 16 images, which the loader reads in a round.

    Returns:
        Plain JSON values: `machine`, `rounds`, `sizes`, `goals`, `share_of_train_step` (of the
        preprocessing and of augmentation alone; CPU time on a CPU, elapsed time on an accelerator),
        and `sections`, each with `title`, `unit` and `rows` (name -> `Timing.to_json()`), the first
        row being what the others are compared with.
    """
    machine = describe_machine(_PACKAGES)
    # An accelerator's work takes no CPU time.
    on_cpu = jax.default_backend() == "cpu"
    source = link_cases(cases, folder / "cases")
    dataset_dir = quiet_build(source, cases, folder / "dataset")
    paper = dataclasses.replace(load_settings("train"), batch_size=BATCH_SIZE)
    bench = LoaderRivals(paper, dataset_dir, batches)
    building = interleaved(build_rivals(source, cases), rounds)
    loading = interleaved(bench.rivals(), rounds)
    paper_rivals, _ = device_rivals(paper, dataset_dir)
    preparing = interleaved({"floor": bench.floor, **paper_rivals}, rounds)
    step_rivals, compile_seconds = device_rivals(settings, dataset_dir, with_step=True)
    stepping = interleaved(step_rivals, rounds)
    window, size = settings.data.window, settings.data.image_size
    return {
        "machine": machine,
        "rounds": rounds,
        "sizes": {
            "convention": cases[0].convention.name,
            "subjects": len(cases),
            **bench.sizes,
            "bytes_of_source_files": sum(path.stat().st_size for path in all_files(cases)),
            "images_a_loader_round": batches * BATCH_SIZE,
            "compile_seconds": compile_seconds,
        },
        "goals": {
            "build_over_floor": {
                "measured": building["whole build"].cpu_ratio,
                "at_most": MAX_BUILD_RATIO,
            },
            "loader_images_per_core_second": {
                "measured": 1 / loading["training_batches, 0 threads"].cpu_seconds,
                "at_least": MIN_LOADER_RATE,
            },
        },
        "share_of_train_step": {
            name: timing.cpu_ratio if on_cpu else timing.wall_ratio
            for name, timing in stepping.items()
            if name in ("prepare", "augment")
        },
        "sections": {
            "build": _section("dataset build, 1 worker", "subject", building),
            "loader": _section(
                f"loader at {paper.data.window} x {paper.data.window}, single sequences",
                "image",
                loading,
            ),
            "preprocessing": _section(
                f"preprocessing at {paper.data.window} x {paper.data.window}, batches of {BATCH_SIZE}",
                "image",
                preparing,
            ),
            "train_step": _section(
                f"preprocessing {window} -> {size} and the train step, batches of "
                f"{settings.batch_size}",
                "image",
                stepping,
            ),
        },
    }


def _section(title: str, unit: str, timings: dict[str, Timing]) -> dict[str, Any]:
    rows = {name: timing.to_json() for name, timing in timings.items()}
    return {"title": title, "unit": unit, "rows": rows}


def format_report(report: dict[str, Any]) -> str:
    """The report as tables; times in milliseconds of this process's CPU time and of elapsed time."""
    machine, sizes = report["machine"], report["sizes"]
    versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items())
    lines = [
        f"{machine['cpu']}, {machine['cores']} cores (load {machine['load_average']:.1f}); "
        f"JAX on {machine['jax_device']}",
        f"{machine['system']}, Python {machine['python']}, {versions}",
        f"{sizes['subjects']} subjects ({sizes['convention']}), "
        f"{sizes['bytes_of_source_files'] / sizes['subjects'] / 1e6:.1f} MB of files each; "
        f"records of {sizes['mean_record_bytes'] / 1e3:.0f} kB, of which an image "
        f"{sizes['mean_png_bytes'] / 1e3:.0f} kB and labels "
        f"{sizes['mean_labels_png_bytes'] / 1e3:.1f} kB; medians of {report['rounds']} rounds",
    ]
    for section in report["sections"].values():
        first = next(iter(section["rows"]))
        unit = section["unit"]
        lines += [
            "",
            f"{section['title']} (x: ratio to {first})",
            f"{'':32}{'CPU ms':>10}{'x':>9}{f'{unit}s/s/core':>16}"
            f"{'wall ms':>11}{'x':>9}{f'{unit}s/s':>12}",
        ]
        for name, row in section["rows"].items():
            lines.append(
                f"{name:32}{1e3 * row['cpu_seconds']:10.3f}{row['cpu_ratio']:9.3g}"
                f"{row['per_cpu_second']:16.5g}{1e3 * row['wall_seconds']:11.3f}"
                f"{row['wall_ratio']:9.3g}{row['per_second']:12.5g}"
            )
    compiling = ", ".join(f"{name} {s:.1f} s" for name, s in sizes["compile_seconds"].items())
    shares = report["share_of_train_step"]
    build_goal = report["goals"]["build_over_floor"]
    loader_goal = report["goals"]["loader_images_per_core_second"]
    lines += [
        f"compiling, not counted above: {compiling}",
        "",
        f"share of the train step: preprocessing {shares['prepare']:.2%}, "
        f"of which augmentation {shares['augment']:.2%}",
        f"goal: build at most {build_goal['at_most']:g} x its floor; "
        f"measured {build_goal['measured']:.2f}",
        f"goal: loader at least {loader_goal['at_least']:g} images/s per core; "
        f"measured {loader_goal['measured']:.0f}",
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
