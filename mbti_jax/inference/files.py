"""The layout "files": every case and sample a folder, with the input's files repainted."""

import dataclasses
import logging
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from mbti_jax.fields import FieldError
from mbti_jax.inference import provenance
from mbti_jax.inference.continuity import describe, measure
from mbti_jax.inference.forecast import forecast
from mbti_jax.inference.inpainted import InpaintedVolume
from mbti_jax.inference.inpainter import Inpainter
from mbti_jax.inference.inputs import named_files
from mbti_jax.inference.provenance import RECORD, preview_title
from mbti_jax.inference.requests import case_record, is_done, make_request
from mbti_jax.inference.results import (
    ROIS_OF_SLICE,
    STD_OF_SLICE,
    draw_case,
    draw_slice,
    std_of_samples,
    write_case,
    write_label_descriptions,
    write_std,
)
from mbti_jax.inference.series import steps
from mbti_jax.inference.sets import HERE, Job, Painter, Piece, cut, make_set, painting
from mbti_jax.inference.settings import SEQUENCE, InpaintSettings
from mbti_jax.io.files import new_folder, write_json
from mbti_jax.io.progress import progress_bar, waiting
from mbti_jax.io.slices import read_roi, read_sequences, write_sequences, write_slice
from mbti_jax.rois.given import parse_labels
from mbti_jax.rois.regions import Rois
from tfds_brats.cases import Case, CaseFiles, read_case
from tfds_brats.conventions import SEQUENCES
from tfds_brats.space import check_space

_log = logging.getLogger(__name__)


def inpaint_files(
    inpainter: Inpainter, settings: InpaintSettings, folder: Path, job: Job = HERE
) -> None:
    """Inpaints the slice or the cases that the settings name, into `folder`.

    Raises:
        ValueError, OSError: input that cannot be used, or a result that cannot be written.
    """
    if settings.image:
        if job.engine.piece:
            raise FieldError("piece", "is for cases; a slice is one piece")
        _inpaint_slice(inpainter, settings, folder)
        return
    if settings.source:
        cases, problems = settings.cases(labels=bool(settings.tumor))
    else:
        cases, problems = [named_files(settings.images, settings.convention)], []
    # A mean has a standard deviation in float32 beside it.
    number = 3 if settings.is_mean else settings.num_samples
    check_space(folder, number * sum(map(size_of_images, cases)), "the results")
    make_set(inpainter, job, cut(cases, settings), problems, (_paint, settings, folder))


def size_of_images(files: CaseFiles) -> int:
    """About how many bytes the results of a case take: as many as its images."""
    return sum(path.stat().st_size for path in {*files.images.values()})


def paint_sample(
    inpainter: Inpainter, case: Case, rois: Rois, settings: InpaintSettings, sample: int
) -> tuple[InpaintedVolume, dict[str, Any]]:
    """A sample of a case, or the mean of all, with a progress bar, and how continuous it is along z."""
    samples = range(settings.num_samples) if settings.is_mean else [sample]
    kind = f"mean of {len(samples)}" if settings.is_mean else f"sample {sample}"
    # Before the network is compiled.
    chosen, numbers, _ = inpainter.repaintable(case, rois, settings.sequences, settings.slices)
    per_slice = 1 if inpainter.num_channels > 1 else len(chosen)
    number = len(numbers) * len(samples) * per_slice
    with waiting("compiling the network, which takes up to a minute, and timing it"):
        cost = forecast(inpainter, settings.sampling, number, case.spacing[2])
    slices = f"{len(numbers)} slice{'s' * (len(numbers) > 1)}"
    _log.info(f"{case.subject}: {slices}, {kind}: {cost}")
    # Before hours of work that they may make vain.
    _warn(case, case.warnings)

    def paint(z_sigma_mm: float | None, name: str) -> InpaintedVolume:
        with progress_bar(f"{case.subject}, {name}") as progress:
            (result,) = inpainter.inpaint_volume(
                case,
                rois,
                dataclasses.replace(settings.sampling, z_sigma_mm=z_sigma_mm),
                samples=samples,
                sequences=settings.sequences,
                slices=settings.slices,
                progress=progress,
            )
        return result

    result = paint(settings.sampling.z_sigma_mm, kind)
    independent = paint(0.0, "independent noise") if settings.compare_noise else None
    continuity = measure(case, result, independent)
    for line in describe(case.subject, continuity):
        _log.info(line)
    _warn(case, [text for text in result.details["warnings"] if text not in case.warnings])
    return result, continuity


def paint_samples(
    inpainter: Inpainter, case: Case, settings: InpaintSettings, missing: Sequence[int]
) -> Iterator[tuple[int, InpaintedVolume, dict[str, Any]]]:
    """Those samples of a case that are missing: (number, result, details for its record).

    Of a series all steps are painted, since each is the next one's context.
    """
    if not settings.is_series:
        for sample in missing:
            rois = settings.rois(case, sample)
            result, continuity = paint_sample(inpainter, case, rois, settings, sample)
            details: dict[str, Any] = {"z_continuity": continuity}
            if settings.tumor:
                details["tumor_mode"] = settings.share_of(case.subject, sample).name
            yield sample, result, details
    elif missing:

        def paint(now: Case, rois: Rois, number: int) -> InpaintedVolume:
            return paint_sample(inpainter, now, rois, settings, number)[0]

        mode, count = settings.shares[0].mode, settings.num_samples
        for number, result in enumerate(steps(case, mode, settings.step_mm, count, paint)):
            if number in missing:
                yield number, result, {"z_continuity": measure(case, result), "tumor_mode": mode}


def _warn(case: Case, warnings: Sequence[str]) -> None:
    for warning in warnings:
        _log.info(f"{case.subject}: warning: {warning}")


def _paint(
    painter: Painter, piece: Piece, settings: InpaintSettings, folder: Path, only_look: bool
) -> bool:
    """Samples of a case, or their mean; with the last of them their standard deviation."""
    inpainter, files = painter.inpainter, piece.files
    fields = ("roi_labels", "tumor", "box", "slices", "sequences")
    inputs = [*files.images.values(), settings.roi_path(files)]
    if files.labels is not None:
        # Label maps keep it outside the ROI.
        inputs.append(files.labels)
    request = make_request(inpainter, inputs, **settings.record(inpainter, *fields))
    names = [f"sample_{n:03d}" for n in range(settings.num_samples)]
    names = ["mean"] if settings.is_mean else names
    folders = {n: folder / files.subject / name for n, name in enumerate(names)}

    def missing(numbers: Iterable[int]) -> list[int]:
        return [n for n in numbers if n in folders and not is_done(folders[n] / RECORD, request)]

    place = folder / files.subject
    was_there = not missing(piece.samples)
    if only_look and not was_there:
        return False
    with painting(place, folders[piece.samples[0]].name):
        if numbers := missing(piece.samples):
            available = [name for name in SEQUENCES if name in files.images]
            case = painter.read(files, request, available, files.labels is not None)
            for sample, result, details in paint_samples(inpainter, case, settings, numbers):
                with new_folder(folders[sample]) as target:
                    clipped = write_case(target, case, result)
                    write_label_descriptions(target / "rois.label.txt")
                    title = preview_title(case.subject, inpainter.checkpoint)
                    draw_case(target / "preview.png", case, result, title)
                    details["clipped_to_dtype"] = clipped
                    record = case_record(inpainter, case, result, request, **details)
                    write_json(target / RECORD, record)
    if settings.num_samples > 1 and settings.has_one_roi and not missing(folders):
        with painting(place, "std"):
            _write_std(inpainter, files, settings, request, list(folders.values()))
    if piece.samples[-1] == settings.num_samples - 1:
        _log.info(f"{files.subject}: {'is there,' if was_there else 'written to'} {place}")
    return True


def _write_std(
    inpainter: Inpainter,
    files: CaseFiles,
    settings: InpaintSettings,
    request: dict[str, Any],
    samples: Sequence[Path],
) -> None:
    """The standard deviation over the samples of a case, in a folder beside theirs."""
    target = samples[0].parent / f"std_of_{len(samples)}"
    request = {**request, "num_samples": len(samples)}
    if is_done(target / RECORD, request):
        return
    case = read_case(files, [name for name in SEQUENCES if name in files.images], labels=False)
    chosen = inpainter.sequences_of(case, settings.sequences)
    with new_folder(target) as partial:
        write_std(partial, case, std_of_samples(case, samples, chosen))
        details = {"subject": case.subject, "inputs": request["inputs"], "request": request}
        details["std"] = (
            f"over {len(samples)} samples, n - 1 in the denominator, in the input's units"
        )
        write_json(partial / RECORD, provenance.record(inpainter.checkpoint, **details))


def _inpaint_slice(inpainter: Inpainter, settings: InpaintSettings, folder: Path) -> None:
    """One slice: a PNG or npy, or one for each sequence."""
    sources, roi, names = [Path(settings.image)], Path(settings.roi), [""]
    if SEQUENCE in settings.image:
        # A model of one sequence at a time paints those that are there.
        there = settings.held_sequences() if inpainter.num_channels == 1 else ()
        names = settings.sequences or there or inpainter.sequences
        if inpainter.num_channels > 1 and {*names} == {*inpainter.sequences}:
            # In the order in which the model has learned them.
            names = inpainter.sequences
        sources = [Path(settings.image.replace(SEQUENCE, name)) for name in names]
    name = Path(settings.image.replace(SEQUENCE, "")).stem.strip("_-. ") or "slice"
    target = folder / name
    # A single slice has no neighbors to share its noise with.
    sampling = dataclasses.replace(settings.sampling, z_sigma_mm=0.0)
    settings = dataclasses.replace(settings, sampling=sampling)
    fields = ("roi_labels", "box", "intensity_range", "num_samples")
    request = make_request(inpainter, [*sources, roi], **settings.record(inpainter, *fields))
    if not is_done(target / RECORD, request):
        image = read_sequences(sources)
        check_space(folder, settings.num_samples * image.nbytes, "the results")
        labels = parse_labels(settings.roi_labels)
        rois = Rois.of(read_roi(roi), image.shape[:2], settings.box, labels)
        # The pixels of a slice count as 1 mm.
        brain = (image != 0).reshape(*rois.union.shape, -1).any(-1)
        rois = settings.dilated(rois, brain, (1.0, 1.0), roi)
        with progress_bar(name) as progress:
            result = inpainter.inpaint(
                image,
                rois,
                sampling,
                num_samples=settings.num_samples,
                intensity_range=settings.intensity_range or None,
                progress=progress,
            )
        for warning in result.provenance["warnings"]:
            _log.info(f"{name}: warning: {warning}")
        with new_folder(target) as partial:
            for number, sample in enumerate(result.images):
                which = "mean" if settings.is_mean else f"{number:03d}"
                write_sequences(partial, sources, sample, f"inpainted-{which}", names)
                if result.labels is not None:
                    write_slice(partial / f"{name}-seg-{which}.png", result.labels[number])
            if result.std is not None:
                write_slice(partial / STD_OF_SLICE, result.std)
            write_slice(partial / ROIS_OF_SLICE, result.rois.label_map())
            draw_slice(
                partial / "preview.png", image, result, preview_title(name, inpainter.checkpoint)
            )
            details = {"inputs": request["inputs"], "request": request}
            write_json(partial / RECORD, {**result.provenance, **details})
    _log.info(f"{name}: written to {target}")
