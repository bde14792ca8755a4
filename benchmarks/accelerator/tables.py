"""What each stage of the accelerator's report says: a line, and a table in Markdown."""

from collections.abc import Callable, Mapping
from typing import Any

Units = Mapping[str, Any]

_MEASURES = ("ssim", "mse", "mae", "psnr")
# Goals on one H200 or H100.
MIN_SHARE_OF_PEAK = 0.4
MIN_RATIO = 1.0


# Numbers


def _span(value: float, low_high: Any, scale: float = 1.0, form: str = ".3g") -> str:
    low, high = low_high
    return f"{value * scale:{form}} [{low * scale:{form}}, {high * scale:{form}}]"


def _clock(unit: Mapping[str, Any]) -> str:
    return unit.get("clock", "wall")


def _rate(row: Mapping[str, Any], clock: str) -> tuple[float, list[float]]:
    """Examples a second, and their range."""
    low, high = row[f"{clock}_range"]
    return 1 / row[f"{clock}_seconds"], [1 / high, 1 / low]


def _share(flops: float, rate: float, peak: float | None) -> str:
    return f"{flops * rate / peak:.1%}" if peak else "-"


def _gigabytes(count: float | None) -> str:
    return "-" if count is None else f"{count / 1e9:.1f}"


# What each stage says in a line


def _machine_line(units: Units, peak: float | None) -> str:
    machine, copy = units["machine"], units["copy"]
    best = {
        name: max(u["best"] for key, u in units.items() if key.startswith(name) and "best" in u)
        for name in ("bfloat16", "TF32", "float32")
    }
    rates = ", ".join(f"{name} {rate / 1e12:.3g} TFLOP/s" for name, rate in best.items())
    bandwidth = f"{copy['bytes_per_second'] / 1e12:.3g} TB/s"
    return f"{machine['card'] or machine['device']}, {rates}, copies {bandwidth}"


def _train_step_line(units: Units, peak: float | None) -> str:
    found, flops = units["in turn"], units["network"]["flops"]["train_step"]
    clock, rows = found["rows"]["JAX"]["clock"], found["rows"]
    parts = []
    for name, row in rows.items():
        rate, _ = _rate(row, clock)
        ratio = "" if name == "JAX" else f", {row[f'{clock}_ratio']:.2f} x JAX's time"
        parts.append(f"{name} {rate:.3g} images/s ({_share(flops, rate, peak)} of the peak{ratio})")
    return f"batch {found['batch']}: {'; '.join(parts)}"


def _implementations_line(units: Units, peak: float | None) -> str:
    faster = [
        f"{title} ({1 / row['ratio']:.2f} x as fast)"
        for title, row in _verdicts(units).items()
        if row["verdict"] == "faster"
    ]
    return f"faster than the defaults: {', '.join(faster) or 'nothing'}"


def _kernels_line(units: Units, peak: float | None) -> str:
    profile = units["profile"]
    shares = sorted(profile["categories"].items(), key=lambda item: -item[1])[:4]
    busy = profile["busy_seconds"]
    return ", ".join(f"{name} {seconds / busy:.0%}" for name, seconds in shares)


def _sampling_line(units: Units, peak: float | None) -> str:
    parts = []
    for name, unit in units.items():
        if "rows" in unit:
            rate, _ = _rate(unit["rows"]["JAX"], unit["clock"])
            parts.append(f"{name}: {rate:.3g} slices/s")
    return "; ".join(parts)


def _resume_line(units: Units, peak: float | None) -> str:
    same = units["deterministic"]["resumed_is_identical"]
    row = units["cost"]["rows"]["deterministic"]
    ratio = row[f"{units['cost']['clock']}_ratio"]
    said = "bit-identical" if same else "not bit-identical"
    return (
        f"resumed runs are {said} with deterministic operations, which take {ratio:.2f} x the time"
    )


def _loading_line(units: Units, peak: float | None) -> str:
    best = max(u["images_per_second"] for k, u in units.items() if k.startswith("loader"))
    rates = units["step"]["images_per_second"]
    return f"loader {best:.0f} images/s; step " + ", ".join(
        f"{k} {v:.0f}" for k, v in rates.items()
    )


def _model_line(units: Units, peak: float | None) -> str:
    training, export = units["training"], units["export"]
    return (
        f"{training['step']} steps, {training['examples']} slices, exported in "
        f"{export['bytes'] / 1e6:.1f} MB"
    )


# Tables


def _machine_table(units: Units, peak: float | None) -> list[str]:
    lines = ["| product of n x n matrices | n | JAX, TFLOP/s | PyTorch |", "|---|---|---|---|"]
    for key, unit in units.items():
        if "best" in unit:
            name, size = key.split()
            cells = [
                _span(unit[side], unit["ranges"][side], 1e-12) if side in unit else "-"
                for side in ("jax", "torch")
            ]
            lines.append(f"| {name} | {size} | {' | '.join(cells)} |")
    copy = units["copy"]
    rate = _span(copy["bytes_per_second"], copy["range"], 1e-12)
    return [*lines, "", f"Copy of {copy['megabytes']} MB, read and written: {rate} TB/s."]


def _train_step_table(units: Units, peak: float | None) -> list[str]:
    network = units["network"]
    flops = network["flops"]["train_step"]
    lines = [
        f"`configs/train.py`: {network['parameters'] / 1e6:.1f} million parameters, "
        f"{network['image_size']} x {network['image_size']}, {network['dtype']}, {flops / 1e9:.0f} "
        "GFLOP a training image. Noising, network, ROI loss, Adam and moving average.",
        "",
        "| | batch | images/s | of the peak | time over JAX's | memory GB | compile s |",
        "|---|---|---|---|---|---|---|",
    ]
    turn = units.get("in turn", {})
    for name, row in turn.get("rows", {}).items():
        ratio = _span(row[f"{row['clock']}_ratio"], row[f"{row['clock']}_ratio_range"])
        lines.append(_train_row(f"{name}, in turn", turn["batch"], row, flops, peak, ratio))
    for key, unit in units.items():
        name, _, rest = key.partition(" alone, batch ")
        if rest and "error" not in unit:
            lines.append(_train_row(f"{name}, alone", unit["batch"], unit, flops, peak, "-"))
        elif rest:
            lines.append(f"| {name}, alone | {rest} | {unit['error'][:60]} | | | | |")
    for name, failure in turn.get("failures", {}).items():
        lines += ["", f"{name} takes no part: {failure}"]
    if "PyTorch" in units:
        lines += ["", f"{units['PyTorch']['absent']}. Its rows are absent."]
    goals = _goals(turn, flops, peak)
    return [*lines, "", *goals] if goals else lines


def _train_row(
    name: str, batch: int, row: Mapping[str, Any], flops: float, peak: float | None, ratio: str
) -> str:
    rate, spread = _rate(row, row["clock"])
    memory = _gigabytes(row.get("peak_bytes_in_use") or row["peak_bytes"])
    return (
        f"| {name} | {batch} | {_span(rate, spread)} | {_share(flops, rate, peak)} | {ratio} | "
        f"{memory} | {row['compile_seconds']:.0f} |"
    )


def _goals(turn: Mapping[str, Any], flops: float, peak: float | None) -> list[str]:
    """The goals on an accelerator, where there is one."""
    rows = turn.get("rows", {})
    if "JAX" not in rows or _clock(rows["JAX"]) == "cpu" or not peak:
        return []
    share = flops * _rate(rows["JAX"], "wall")[0] / peak
    goals = [("share of the peak", share, MIN_SHARE_OF_PEAK)]
    if "torch.compile" in rows:
        ratio = rows["torch.compile"]["wall_ratio"]
        goals.append(("torch.compile's time over JAX's", ratio, MIN_RATIO))
    return [
        f"- Goal: {name} at least {least:g}: {value:.2f}, {'reached' if value >= least else 'missed'}."
        for name, value, least in goals
    ]


def _verdicts(units: Units) -> dict[str, dict[str, Any]]:
    """By title: time over the default's with its range, and what follows."""
    found = {}
    for title, unit in units.items():
        if "rows" in unit:
            row, clock = unit["rows"]["alternative"], unit["clock"]
            low, high = row[f"{clock}_ratio_range"]
            # Rounds have to agree; processes differ by some per cent more (benchmarks/README.md).
            verdict = "faster" if high < 1 else "slower" if low > 1 else "no difference"
            found[title] = {
                "ratio": row[f"{clock}_ratio"],
                "range": (low, high),
                "verdict": verdict,
            }
    return found


def _implementations_table(units: Units, peak: float | None) -> list[str]:
    defaults = {k: v for k, v in units["defaults"].items() if k != "seconds"}
    lines = [
        f"Against the defaults of this backend ({', '.join(f'{k}={v}' for k, v in defaults.items())}; "
        "`mbti_jax/models/choices.py`), the train step at one batch size.",
        "",
        "| alternative | time over the default's | | memory GB, default's | distance |",
        "|---|---|---|---|---|",
    ]
    verdicts = _verdicts(units)
    for title, unit in units.items():
        if "skipped" in unit:
            lines.append(f"| {title} | - | skipped: {unit['skipped']} | | |")
        elif title in verdicts:
            row = verdicts[title]
            memory = [_gigabytes(unit[f"{side}_peak_bytes"]) for side in ("alternative", "default")]
            lines.append(
                f"| {title} | {_span(row['ratio'], row['range'])} | {row['verdict']} | "
                f"{', '.join(memory)} | {unit['relative_l2']:.1e} |"
            )
    return lines


def _kernels_table(units: Units, peak: float | None) -> list[str]:
    profile = units["profile"]
    busy, wall = profile["busy_seconds"], profile["wall_seconds"]
    lines = [
        f"Whole step with preprocessing, batch {profile['batch']}: {1e3 * wall:.3g} ms without the "
        f"profiler; kernels take {1e3 * busy:.3g} ms with it. A fusion counts as its last operation.",
        "",
        "| | ms a step | share |",
        "|---|---|---|",
    ]
    for name, seconds in sorted(profile["categories"].items(), key=lambda item: -item[1]):
        lines.append(f"| {name} | {1e3 * seconds:.3g} | {seconds / busy:.1%} |")
    lines += ["", "| kernel | of | ms | calls | share |", "|---|---|---|---|---|"]
    for kernel in profile["kernels"]:
        lines.append(
            f"| `{kernel['name'][:48]}` | {kernel['category']}: `{kernel['path'][-60:]}` | "
            f"{1e3 * kernel['seconds']:.3g} | {kernel['calls']:.0f} | {kernel['seconds'] / busy:.1%} |"
        )
    return lines


def _sampling_table(units: Units, peak: float | None) -> list[str]:
    lines = [
        "Guided, two passes a step; a latency is that of the whole batch.",
        "",
        "| | | latency ms | slices/s | of the peak | time over JAX's |",
        "|---|---|---|---|---|---|",
    ]
    for title, unit in units.items():
        clock = _clock(unit)
        for name, row in unit.get("rows", {}).items():
            rate, spread = _rate(row, clock)
            low, high = row[f"{clock}_range"]
            batch = unit["batch"]
            latency = _span(row[f"{clock}_seconds"], (low, high), 1e3 * batch)
            ratio = _span(row[f"{clock}_ratio"], row[f"{clock}_ratio_range"])
            share = _share(unit["flops"], rate, peak)
            lines.append(
                f"| {title} | {name} | {latency} | {_span(rate, spread)} | {share} | {ratio} |"
            )
        for name, failure in unit.get("failures", {}).items():
            lines.append(f"| {title} | {name} | {failure[:60]} | | | |")
    return lines


def _resume_table(units: Units, peak: float | None) -> list[str]:
    lines = ["| operations | repeated run | resumed run |", "|---|---|---|"]
    words = {True: "bit-identical", False: "differs"}
    for name in ("deterministic", "default"):
        if "resumed_is_identical" in units.get(name, {}):
            unit = units[name]
            repeated, resumed = unit["repeated_is_identical"], unit["resumed_is_identical"]
            lines.append(f"| {name} | {words[repeated]} | {words[resumed]} |")
    if "rows" in units.get("cost", {}):
        cost = units["cost"]
        row, clock = cost["rows"]["deterministic"], cost["clock"]
        ratio = _span(row[f"{clock}_ratio"], row[f"{clock}_ratio_range"])
        lines += ["", f"Deterministic operations take {ratio} x the time."]
    if "gradient_relative_l2" in units.get("accumulation", {}):
        unit = units["accumulation"]
        lines.append(
            f"The gradient of two microbatches differs from that of the whole batch by "
            f"{unit['gradient_relative_l2']:.1e} (relative L2, {unit['dtype']})."
        )
    return lines


def _loading_table(units: Units, peak: float | None) -> list[str]:
    lines = ["| | images/s |", "|---|---|"]
    for name, unit in units.items():
        if name.startswith("loader") and "images_per_second" in unit:
            lines.append(f"| {name} of {unit['cores']} cores | {unit['images_per_second']:.0f} |")
    for name, rate in units.get("step", {}).get("images_per_second", {}).items():
        lines.append(f"| train step, {name} | {rate:.0f} |")
    return lines


def _model_table(units: Units, peak: float | None) -> list[str]:
    training, export = units["training"], units["export"]
    rate = training["images_per_second"]
    losses = ", ".join(f"{loss:.4f}" for loss in training["validation_losses"][-6:])
    lines = [
        f"`configs/accelerator_model.py`: {training['step']} steps, {training['examples']} slices of "
        f"four sequences{f', {rate:.0f} slices/s' if rate else ''}; validation loss "
        f"{losses or 'not measured'}. Exported to `model/` in {export['bytes'] / 1e6:.2f} MB (at most "
        f"{export['at_most'] / 1e6:.0f}).",
    ]
    if "volumes" in units.get("evaluation", {}):
        evaluation = units["evaluation"]
        settings = evaluation["settings"]
        measures = [
            name for name in next(iter(evaluation["volumes"].values())) if name in _MEASURES
        ]
        lines += [
            "",
            "Healthy tissue inside tumor outlines of unseen phantoms, T1, volumes, means over "
            f"{settings['num_cases']} case(s), {settings['num_steps']} steps a sample; more in "
            "`evaluation/report.md`:",
            "",
            f"| | {' | '.join(measures)} |",
            f"|---|{'---|' * len(measures)}",
        ]
        for method, values in evaluation["volumes"].items():
            lines.append(f"| {method} | {' | '.join(f'{values[m]:.4g}' for m in measures)} |")
    if "files" in units.get("figures", {}):
        lines += [
            "",
            f"Figures: {', '.join(f'`pictures/{f}`' for f in units['figures']['files'])}.",
        ]
    return lines


SUMMARIES: dict[str, Callable[[Units, float | None], str]] = {
    "machine": _machine_line,
    "train_step": _train_step_line,
    "implementations": _implementations_line,
    "kernels": _kernels_line,
    "sampling": _sampling_line,
    "resume": _resume_line,
    "loading": _loading_line,
    "model": _model_line,
}
TABLES: dict[str, Callable[[Units, float | None], list[str]]] = {
    "machine": _machine_table,
    "train_step": _train_step_table,
    "implementations": _implementations_table,
    "kernels": _kernels_table,
    "sampling": _sampling_table,
    "resume": _resume_table,
    "loading": _loading_table,
    "model": _model_table,
}
