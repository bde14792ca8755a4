"""The task that inpaints files (`configs/inpaint.py`): cases, volumes, slices, BraTS's own layout."""

import contextlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from ml_collections import ConfigDict
from tqdm import tqdm

from mbti_jax import case_files, pictures, provenance, slice_files
from mbti_jax.case_files import file_digest
from mbti_jax.inpaint import Inpainted, Inpainter
from mbti_jax.outputs import new_folder, write_json
from mbti_jax.rois import box_flags, fill_boxes, parse_labels
from mbti_jax.tumors import own_tumor_masks
from mbti_jax.volumes import (
    InpaintedVolume,
    inpaint_case,
    sequences_to_paint,
    to_slices,
    z_continuity,
)
from tfds_brats.cases import Case, CaseFiles, find_cases, read_case
from tfds_brats.conventions import SEQUENCES

_LAYOUTS = ("files", "brats_inpainting")
_RECORD = "provenance.json"


def main(config: ConfigDict, workdir: str) -> None:
    """Inpaints what the config names; see `configs/inpaint.py`.

    Raises:
        ValueError, OSError: input that cannot be used, or a result that cannot be written.
    """
    if config.layout not in _LAYOUTS:
        raise ValueError(f"unknown layout {config.layout!r}; choose one of {', '.join(_LAYOUTS)}")
    _check_choice(config)
    box_flags(config.box)
    parse_labels(config.roi_labels)
    inpainter = Inpainter.load(config.checkpoint, config.batch_size)
    folder = Path(workdir)
    if config.layout == "brats_inpainting":
        together = inpainter.num_channels > 1
        for files, mask in case_files.voided_cases(config.source, together):
            _inpaint_voided(inpainter, files, mask, config, folder)
    elif config.image:
        _inpaint_slice(inpainter, config, folder)
    else:
        for files in _cases(config):
            _inpaint_files(inpainter, files, config, folder)


def _check_choice(config: ConfigDict) -> None:
    """Raises ValueError unless the config names one input and, where needed, one kind of ROI."""
    inputs = {
        "source": bool(config.source),
        "images": any(config.images.values()),
        "image": bool(config.image),
    }
    given = [name for name, is_given in inputs.items() if is_given]
    if len(given) != 1:
        raise ValueError(
            f"give one of --config.source, --config.images.* and --config.image, not "
            f"{' and '.join(given) or 'none'}"
        )
    if config.layout == "brats_inpainting":
        if not config.source:
            raise ValueError("the layout brats_inpainting needs a folder, --config.source")
        return
    if bool(config.roi) == bool(config.tumor):
        raise ValueError(
            "give one of --config.roi (a file) and --config.tumor (the case's own tumour)"
        )
    if config.tumor and not config.source:
        raise ValueError("--config.tumor needs a segmentation: give --config.source")


def _cases(config: ConfigDict) -> list[CaseFiles]:
    if not config.source:
        return [case_files.named_files(config.images)]
    # Not every sequence has to be there: which ones the model needs is seen case by case.
    cases = find_cases(config.source, config.convention, sequences=(), labels=bool(config.tumor))
    unknown = set(config.subjects) - {files.subject for files in cases}
    if unknown:
        raise ValueError(f"{config.source}: has no case {', '.join(sorted(unknown))}")
    return [f for f in cases if not config.subjects or f.subject in config.subjects]


def _inpaint_files(
    inpainter: Inpainter, files: CaseFiles, config: ConfigDict, folder: Path
) -> None:
    """All samples of one case."""
    roi = Path(config.roi.format(subject=files.subject)) if config.roi else files.labels
    request = {
        **_request(inpainter, config),
        "inputs": _digests([*files.images.values(), roi]),
        "roi": _plain(config, "roi_labels", "tumor", "box", "slices", "sequences"),
    }
    missing = [
        number
        for number in range(config.num_samples)
        if not _is_done(folder / files.subject / f"sample_{number:03d}" / _RECORD, request)
    ]
    if not missing:
        print(f"{files.subject}: is there")
        return
    case = read_case(files, [s for s in SEQUENCES if s in files.images], labels=bool(config.tumor))
    sequences = sequences_to_paint(inpainter, case, config.sequences)
    flags = box_flags(config.box)
    if config.tumor:
        masks = own_tumor_masks(
            to_slices(case.labels), to_slices(case.brain), config.tumor, flags, config.seed
        )
    else:
        masks = case_files.read_roi_volume(roi, case, parse_labels(config.roi_labels))
        masks = fill_boxes(masks, flags)
    for sample in missing:
        result, continuity = _sampled(
            inpainter, case, masks, flags, sequences, config, sample, slices=config.slices
        )
        with new_folder(folder / files.subject / f"sample_{sample:03d}") as target:
            clipped = case_files.write_case(target, case, result)
            _finish(inpainter, case, result, continuity, request, clipped, target)
    print(f"{files.subject}: {folder / files.subject}")


def _inpaint_voided(
    inpainter: Inpainter, files: CaseFiles, mask: Path, config: ConfigDict, folder: Path
) -> None:
    """One case of the local-inpainting task; one sample, as the task asks for."""
    name = f"{files.subject}-t1n-inference.nii.gz"
    request = {
        **_request(inpainter, config),
        "inputs": _digests([*files.images.values(), mask]),
        "box": list(config.box),
    }
    record = folder / "records" / files.subject / _RECORD
    if (folder / name).is_file() and _is_done(record, request):
        print(f"{files.subject}: is there")
        return
    case = read_case(files, tuple(files.images), labels=False)
    flags = box_flags(config.box)
    labels = {number: "normal" for number in (1, 255)}
    masks = fill_boxes(case_files.read_roi_volume(mask, case, labels), flags)
    sequences = sequences_to_paint(inpainter, case, ())
    result, continuity = _sampled(
        inpainter, case, masks, flags, sequences, config, sample=0, slices=()
    )
    only_t1 = InpaintedVolume({"t1": result.values["t1"]}, result.masks, result.details)
    with new_folder(folder / "records" / files.subject) as target:
        clipped = case_files.write_case(target, case, only_t1)
        (written,) = clipped
        (target / written).replace(folder / name)
        _finish(inpainter, case, result, continuity, request, {name: clipped[written]}, target)
    print(f"{files.subject}: {folder / name}")


def _sampled(
    inpainter: Inpainter,
    case: Case,
    masks: np.ndarray,
    flags: np.ndarray,
    sequences: tuple[str, ...],
    config: ConfigDict,
    sample: int,
    slices: tuple[int, ...],
) -> tuple[InpaintedVolume, dict[str, Any]]:
    """One sample of a case, and how continuous it is along z."""

    def run(z_sigma_mm: float, name: str) -> InpaintedVolume:
        with _bar(f"{case.subject}, {name}") as progress:
            return inpaint_case(
                inpainter,
                case,
                masks,
                flags,
                sequences,
                slices=slices,
                sample=sample,
                z_sigma_mm=z_sigma_mm,
                progress=progress,
                **_sampling(inpainter, config),
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
            text = ", ".join(f"{k.replace('_', ' ')} {v:.4f}" for k, v in figures.items() if v)
            print(f"{case.subject} {name}: step between slices, share of the range: {text}")
    return result, continuity


def _finish(
    inpainter: Inpainter,
    case: Case,
    result: InpaintedVolume,
    continuity: dict[str, Any],
    request: dict[str, Any],
    clipped: dict[str, int],
    target: Path,
) -> None:
    """Writes preview and provenance."""
    scales = [case.scale(name) for name in result.values]
    title = _title(case.subject, inpainter)
    case_files.draw_preview(target / "preview.png", case, result, scales, title)
    record = provenance.record(
        inpainter.checkpoint,
        subject=case.subject,
        inputs=request["inputs"],
        **result.details,
        z_continuity=continuity,
        clipped_to_dtype=clipped,
        request=request,
    )
    write_json(target / _RECORD, record)


def _inpaint_slice(inpainter: Inpainter, config: ConfigDict, folder: Path) -> None:
    """One PNG or npy."""
    source, roi = Path(config.image), Path(config.roi)
    request = {
        **_request(inpainter, config),
        "inputs": _digests([source, roi]),
        "roi": _plain(config, "roi_labels", "box", "intensity_range", "num_samples"),
    }
    target = folder / source.stem
    if _is_done(target / _RECORD, request):
        print(f"{source.stem}: is there")
        return
    image = slice_files.read_slice(source)
    with _bar(source.stem) as progress:
        result = inpainter(
            image,
            slice_files.read_roi(roi),
            box=config.box,
            roi_labels=parse_labels(config.roi_labels),
            num_samples=config.num_samples,
            intensity_range=tuple(config.intensity_range) or None,
            progress=progress,
            **_sampling(inpainter, config),
        )
    for warning in result.provenance["warnings"]:
        print(f"{source.stem}: {warning}")
    with new_folder(target) as beside:
        for number, sample in enumerate(result.images):
            name = f"{source.stem}-inpainted-{number:03d}{source.suffix}"
            slice_files.write_slice(beside / name, sample)
        _draw_slices(beside / "preview.png", image, result, _title(source.stem, inpainter))
        write_json(
            beside / _RECORD,
            {**result.provenance, "inputs": request["inputs"], "request": request},
        )
    print(f"{source.stem}: {target}")


def _draw_slices(path: Path, image: np.ndarray, result: Inpainted, title: str) -> None:
    cells = []
    before, after = np.atleast_3d(image), np.atleast_3d(result.images[0])
    for c, (low, high) in enumerate(result.provenance["intensity"]["low_high"]):
        picture = pictures.gray(before[..., c], low, high)
        marked = pictures.with_rois(picture, result.roi_masks)
        cells.append([picture, marked, pictures.gray(after[..., c], low, high)])
    pictures.figure(
        path,
        cells,
        rows=[f"sequence {c}" for c in range(len(cells))] if len(cells) > 1 else [""],
        columns=["input", "ROIs", "inpainted"],
        title=title,
    )


def _title(name: str, inpainter: Inpainter) -> str:
    note = inpainter.checkpoint["note"]
    return f"{name}: synthetic inside the ROIs" + (f"\n{note}" if note else "")


def _sampling(inpainter: Inpainter, config: ConfigDict) -> dict[str, Any]:
    weight = config.guidance_weight
    return {
        **_plain(config, "seed", "num_steps", "eta"),
        "guidance_weight": inpainter.default_guidance_weight if weight < 0 else weight,
    }


def _request(inpainter: Inpainter, config: ConfigDict) -> dict[str, Any]:
    """What a result depends on, but for the input."""
    return {
        "checkpoint": inpainter.checkpoint,
        **_sampling(inpainter, config),
        "z_sigma_mm": config.z_sigma_mm,
    }


def _plain(config: ConfigDict, *names: str) -> dict[str, Any]:
    values = {name: config[name] for name in names}
    return {k: list(v) if isinstance(v, tuple) else v for k, v in values.items()}


def _digests(paths: list[Path]) -> dict[str, str]:
    for path in paths:
        if not path.is_file():
            raise ValueError(f"{path}: is not a file")
    return {path.name: file_digest(path) for path in dict.fromkeys(paths)}


def _is_done(record: Path, request: dict[str, Any]) -> bool:
    """Whether the result is there.

    Raises:
        ValueError: there is the result of another request.
    """
    if not record.is_file():
        return False
    try:
        there = json.loads(record.read_text())["request"]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{record}: cannot be read ({error}); remove its folder") from error
    different = [name for name in request if there.get(name) != request[name]]
    if different:
        raise ValueError(
            f"{record.parent}: holds the result of another request (other {', '.join(different)}); "
            "choose another --workdir or remove it"
        )
    return True


@contextlib.contextmanager
def _bar(name: str) -> Iterator[Callable[[int, int], None]]:
    """A progress bar, as the function that moves it."""
    layout = "{l_bar}{bar}| {elapsed}<{remaining}"
    with tqdm(total=100, desc=name, unit="%", bar_format=layout) as bar:

        def progress(done: int, total: int) -> None:
            bar.update(100 * done // total - bar.n)

        yield progress
