"""What the ways to inpaint files share: requests, their ROIs, sampling with a progress bar, records."""

import contextlib
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from ml_collections import ConfigDict
from tqdm import tqdm

from mbti_jax.inference import provenance
from mbti_jax.inference.cases import read_roi_volume
from mbti_jax.inference.continuity import InpaintedVolume, inpaint_case, z_continuity
from mbti_jax.inference.inpainter import Inpainter
from mbti_jax.io.files import file_digest
from mbti_jax.rois.regions import box_flags, fill_boxes, parse_labels
from mbti_jax.rois.tumors import own_tumor_masks
from tfds_brats.cases import Case, CaseFiles, find_cases
from tfds_brats.conventions import CaseError
from tfds_brats.slices import to_slices

RECORD = "provenance.json"


def plain(config: ConfigDict, *names: str) -> dict[str, Any]:
    """Fields of a config in JSON values."""
    values = {name: config[name] for name in names}
    return {k: list(v) if isinstance(v, tuple) else v for k, v in values.items()}


def sampling_settings(inpainter: Inpainter, config: ConfigDict) -> dict[str, Any]:
    """`seed`, `num_steps`, `spacing`, `eta` and `guidance_weight` of a config, in JSON values."""
    weight = config.guidance_weight
    return {
        **plain(config, "seed", "num_steps", "spacing", "eta"),
        "guidance_weight": inpainter.default_guidance_weight if weight < 0 else weight,
    }


def make_request(
    inpainter: Inpainter, config: ConfigDict, inputs: Sequence[Path], *fields: str
) -> dict[str, Any]:
    """All that a result depends on, in JSON values: model, settings, input files, fields of the config.

    Raises:
        ValueError: an input is not a file.
    """
    for path in inputs:
        if not path.is_file():
            raise ValueError(f"{path}: is not a file")
    return {
        "checkpoint": inpainter.checkpoint,
        "inputs": {path.name: file_digest(path) for path in dict.fromkeys(inputs)},
        **sampling_settings(inpainter, config),
        **plain(config, *fields),
    }


def is_done(record: Path, request: dict[str, Any]) -> bool:
    """Whether the result with that provenance record is there.

    Raises:
        ValueError: there is the result of another request.
    """
    if not record.is_file():
        return False
    try:
        there = json.loads(record.read_text())["request"]
        different = [name for name in request if there.get(name) != request[name]]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{record}: cannot be read ({error}); remove it") from error
    if different:
        raise ValueError(
            f"{record}: is of another request (other {', '.join(different)}); choose another "
            "--workdir or remove what is there"
        )
    return True


def chosen_cases(config: ConfigDict, labels: bool) -> list[CaseFiles]:
    """The cases of `config.source`, or those of them that `config.subjects` names.

    Args:
        labels: whether they must have a segmentation.

    Raises:
        ValueError: as `find_cases` does, or a subject that is not there.
    """
    # Not every sequence has to be there: which ones the model needs is seen case by case.
    cases = find_cases(config.source, config.convention, sequences=(), labels=labels)
    unknown = set(config.subjects) - {files.subject for files in cases}
    if unknown:
        raise ValueError(f"{config.source}: has no case {', '.join(sorted(unknown))}")
    return [f for f in cases if not config.subjects or f.subject in config.subjects]


def roi_path(files: CaseFiles, config: ConfigDict) -> Path:
    """The file that the ROIs of a case come from: its ROI map, or its segmentation."""
    return Path(config.roi.format(subject=files.subject)) if config.roi else files.labels


def roi_masks(case: Case, config: ConfigDict, sample: int) -> np.ndarray:
    """The ROIs of a sample of a case, bool [Z, H, W, 5], boxes filled.

    Raises:
        ValueError: the file or the tumour cannot be used.
    """
    flags = box_flags(config.box)
    if config.tumor:
        labels, brain = to_slices(case.labels), to_slices(case.brain)
        try:
            return own_tumor_masks(labels, brain, config.tumor, flags, (config.seed, sample))
        except ValueError as error:
            raise CaseError(f"{case.subject}: {error}") from error
    labels = parse_labels(config.roi_labels)
    return fill_boxes(read_roi_volume(roi_path(case.files, config), case, labels), flags)


def sampled(
    inpainter: Inpainter,
    case: Case,
    masks: np.ndarray,
    sequences: Sequence[str],
    config: ConfigDict,
    sample: int,
) -> tuple[InpaintedVolume, dict[str, Any]]:
    """One sample of a case, with progress bar, and how continuous it is along z."""

    def run(z_sigma_mm: float, name: str) -> InpaintedVolume:
        with progress_bar(f"{case.subject}, {name}") as progress:
            return inpaint_case(
                inpainter,
                case,
                masks,
                box_flags(config.box),
                sequences,
                slices=config.slices,
                sample=sample,
                z_sigma_mm=z_sigma_mm,
                progress=progress,
                **sampling_settings(inpainter, config),
            )

    result = run(config.z_sigma_mm, f"sample {sample}")
    other = run(0.0, "independent noise") if config.compare_noise else None
    around = to_slices(case.brain) & ~result.masks.any(-1)
    continuity = {}
    for name in sequences:
        scale, before = case.scale(name), to_slices(case.values(name))
        figures = {
            "inpainted": z_continuity(result.values[name], result.masks, scale),
            "input_inside_roi": z_continuity(before, result.masks, scale),
            "input_around_roi": z_continuity(before, around, scale),
        }
        if other is not None:
            figures["independent_noise"] = z_continuity(other.values[name], other.masks, scale)
        continuity[name] = figures
        if figures["inpainted"] is not None:
            text = ", ".join(
                f"{k.replace('_', ' ')} {v:.4f}" for k, v in figures.items() if v is not None
            )
            print(f"{case.subject} {name}: step between slices, share of the range: {text}")
    return result, continuity


def make_record(
    inpainter: Inpainter,
    case: Case,
    result: InpaintedVolume,
    continuity: dict[str, Any],
    request: dict[str, Any],
    clipped: dict[str, int],
) -> dict[str, Any]:
    """The provenance record of a sample of a case."""
    return provenance.record(
        inpainter.checkpoint,
        subject=case.subject,
        inputs=request["inputs"],
        **result.details,
        z_continuity=continuity,
        clipped_to_dtype=clipped,
        request=request,
    )


def preview_title(name: str, inpainter: Inpainter) -> str:
    """What the preview of a result says above its pictures."""
    note = inpainter.checkpoint["note"]
    return f"{name}: synthetic inside the ROIs" + (f"\n{note}" if note else "")


@contextlib.contextmanager
def progress_bar(name: str) -> Iterator[Callable[[int, int], None]]:
    """A progress bar, as the function that moves it."""
    layout = "{l_bar}{bar}| {elapsed}<{remaining}"
    with tqdm(total=100, desc=name, unit="%", bar_format=layout) as bar:

        def progress(done: int, total: int) -> None:
            bar.update(100 * done // total - bar.n)

        yield progress
