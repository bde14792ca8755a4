"""The task that inpaints files (`configs/inpaint.py`): cases, volumes, slices, BraTS's own layout."""

from pathlib import Path

from ml_collections import ConfigDict

from mbti_jax.fields import whole_number
from mbti_jax.inference import cases, nnunet, slices
from mbti_jax.inference.continuity import InpaintedVolume, sequences_to_paint
from mbti_jax.inference.inpainter import Inpainter
from mbti_jax.inference.runs import (
    RECORD,
    chosen_cases,
    is_done,
    make_record,
    make_request,
    preview_title,
    progress_bar,
    roi_masks,
    roi_path,
    sampled,
    sampling_settings,
)
from mbti_jax.io.files import new_folder, write_json
from mbti_jax.rois.regions import box_flags, fill_boxes, parse_labels
from tfds_brats.cases import CaseFiles, read_case
from tfds_brats.conventions import SEQUENCES

# In the path of a slice it stands for the names of the sequences.
_SEQUENCE = "{sequence}"
_LAYOUTS = ("files", "brats_inpainting", "nnunet")


def main(config: ConfigDict, workdir: str) -> None:
    """Inpaints what the config names; see `configs/inpaint.py`.

    Raises:
        ValueError, OSError: input that cannot be used, or a result that cannot be written.
    """
    _check_choice(config)
    box_flags(config.box)
    parse_labels(config.roi_labels)
    inpainter = Inpainter.load(config.checkpoint, config.batch_size)
    folder = Path(workdir)
    if config.layout == "brats_inpainting":
        together = inpainter.num_channels > 1
        for files, mask in cases.voided_cases(config.source, together):
            _inpaint_voided(inpainter, files, mask, config, folder)
    elif config.layout == "nnunet":
        nnunet.make_labelled_set(inpainter, config, folder)
    elif config.image:
        _inpaint_slice(inpainter, config, folder)
    elif config.source:
        for files in chosen_cases(config, labels=bool(config.tumor)):
            _inpaint_case(inpainter, files, config, folder)
    else:
        _inpaint_case(inpainter, cases.named_files(config.images), config, folder)


def _check_choice(config: ConfigDict) -> None:
    """Raises ValueError unless the config names one input and, where needed, one kind of ROI."""
    if config.layout not in _LAYOUTS:
        raise ValueError(f"unknown layout {config.layout!r}; choose one of {', '.join(_LAYOUTS)}")
    whole_number("seed", config.seed)
    whole_number("num_samples", config.num_samples, least=1)
    inputs = {
        "source": bool(config.source),
        "images": any(config.images.values()),
        "image": bool(config.image),
    }
    given = [name for name, is_given in inputs.items() if is_given]
    if len(given) != 1:
        raise ValueError(
            "give one of --config.source, --config.images.* and --config.image, not "
            f"{' and '.join(given) or 'none'}"
        )
    if config.layout != "files" and not config.source:
        raise ValueError(f"the layout {config.layout} needs a folder, --config.source")
    if config.layout == "brats_inpainting":
        return
    if bool(config.roi) == bool(config.tumor):
        raise ValueError(
            "give one of --config.roi (a file) and --config.tumor (the case's own tumour)"
        )
    if config.tumor and not config.source:
        raise ValueError("--config.tumor needs a segmentation: give --config.source")


def _inpaint_case(inpainter: Inpainter, files: CaseFiles, config: ConfigDict, folder: Path) -> None:
    """All samples of one case."""
    fields = ("roi_labels", "tumor", "box", "slices", "sequences", "z_sigma_mm")
    inputs = [*files.images.values(), roi_path(files, config)]
    request = make_request(inpainter, config, inputs, *fields)
    folders = {n: folder / files.subject / f"sample_{n:03d}" for n in range(config.num_samples)}
    missing = [n for n, target in folders.items() if not is_done(target / RECORD, request)]
    if missing:
        available = [name for name in SEQUENCES if name in files.images]
        case = read_case(files, available, labels=bool(config.tumor))
        sequences = sequences_to_paint(inpainter, case, config.sequences)
    for sample in missing:
        masks = roi_masks(case, config, sample)
        result, continuity = sampled(inpainter, case, masks, sequences, config, sample)
        with new_folder(folders[sample]) as target:
            clipped = cases.write_case(target, case, result)
            record = make_record(inpainter, case, result, continuity, request, clipped)
            cases.draw_preview(
                target / "preview.png", case, result, preview_title(case.subject, inpainter)
            )
            write_json(target / RECORD, record)
    print(f"{files.subject}: {'' if missing else 'is there, '}{folder / files.subject}")


def _inpaint_voided(
    inpainter: Inpainter, files: CaseFiles, mask: Path, config: ConfigDict, folder: Path
) -> None:
    """One case of the local-inpainting task; one sample, as the task asks for."""
    name = f"{files.subject}-t1n-inference.nii.gz"
    inputs = [*files.images.values(), mask]
    request = make_request(inpainter, config, inputs, "box", "slices", "z_sigma_mm")
    record_folder = folder / "records" / files.subject
    if not ((folder / name).is_file() and is_done(record_folder / RECORD, request)):
        case = read_case(files, tuple(files.images), labels=False)
        labels = {number: "normal" for number in (1, 255)}
        masks = cases.read_roi_volume(mask, case, labels)
        masks = fill_boxes(masks, box_flags(config.box))
        sequences = sequences_to_paint(inpainter, case, ())
        result, continuity = sampled(inpainter, case, masks, sequences, config, sample=0)
        # Only T1 is asked for.
        result = InpaintedVolume({"t1": result.values["t1"]}, result.masks, result.details)
        with new_folder(record_folder) as target:
            ((written, count),) = cases.write_case(target, case, result).items()
            record = make_record(inpainter, case, result, continuity, request, {name: count})
            cases.draw_preview(
                target / "preview.png", case, result, preview_title(case.subject, inpainter)
            )
            write_json(target / RECORD, record)
            (target / written).replace(folder / name)
    print(f"{files.subject}: {folder / name}")


def _inpaint_slice(inpainter: Inpainter, config: ConfigDict, folder: Path) -> None:
    """One slice: a PNG or npy, or one for each sequence."""
    sources, roi = [Path(config.image)], Path(config.roi)
    if _SEQUENCE in config.image:
        names = config.sequences or inpainter.sequences
        sources = [Path(config.image.replace(_SEQUENCE, name)) for name in names]
    elif config.sequences:
        raise ValueError(
            f"--config.sequences names the files of a slice: write {_SEQUENCE} in --config.image"
        )
    name = Path(config.image.replace(_SEQUENCE, "")).stem.strip("_-. ") or "slice"
    target = folder / name
    fields = ("roi_labels", "box", "intensity_range", "num_samples")
    request = make_request(inpainter, config, [*sources, roi], *fields)
    if not is_done(target / RECORD, request):
        image = slices.read_sequences(sources)
        with progress_bar(name) as progress:
            result = inpainter(
                image,
                slices.read_roi(roi),
                box=config.box,
                roi_labels=parse_labels(config.roi_labels),
                num_samples=config.num_samples,
                intensity_range=tuple(config.intensity_range) or None,
                progress=progress,
                **sampling_settings(inpainter, config),
            )
        for warning in result.provenance["warnings"]:
            print(f"{name}: {warning}")
        with new_folder(target) as beside:
            for number, sample in enumerate(result.images):
                slices.write_sequences(beside, sources, sample, f"inpainted-{number:03d}")
            title = preview_title(name, inpainter)
            slices.draw_preview(beside / "preview.png", image, result, title)
            write_json(
                beside / RECORD,
                {**result.provenance, "inputs": request["inputs"], "request": request},
            )
    print(f"{name}: {target}")
