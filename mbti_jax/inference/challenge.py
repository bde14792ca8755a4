"""The layout "brats_inpainting": *-t1n-voided and *-mask in, *-t1n-inference.nii.gz out."""

import dataclasses
import logging
from pathlib import Path
from typing import Any

from mbti_jax.inference.files import paint_sample, size_of_images
from mbti_jax.inference.inpainter import Inpainter
from mbti_jax.inference.inputs import read_roi_volume, voided_cases
from mbti_jax.inference.load import other_model
from mbti_jax.inference.provenance import RECORD, preview_title
from mbti_jax.inference.requests import case_record, is_done, make_request
from mbti_jax.inference.results import draw_case, write_case
from mbti_jax.inference.sets import HERE, Job, Painter, Piece, make_set, painting
from mbti_jax.inference.settings import InpaintSettings
from mbti_jax.io.files import new_folder, write_json
from tfds_brats.cases import CaseFiles, read_case
from tfds_brats.space import check_space

_log = logging.getLogger(__name__)


def inpaint_challenge(
    inpainter: Inpainter, settings: InpaintSettings, folder: Path, job: Job = HERE
) -> None:
    """Inpaints the cases of BraTS's local-inpainting task: one sample or mean of each, as it asks for.

    Raises:
        ValueError, OSError: input that cannot be used, or a result that cannot be written.
    """
    # T1 is all that is asked for; a model of several sequences needs the others as context.
    settings = dataclasses.replace(settings, sequences=())
    cases, problems = settings.only_subjects(
        *voided_cases(settings.source, inpainter.num_channels > 1)
    )
    if inpainter.num_channels > 1:
        problems = [f"{problem}{other_model(inpainter.name)}" for problem in problems]
    check_space(folder, sum(map(size_of_images, cases)), "the results")
    # Samples are of no use beside the one that is asked for.
    pieces = [Piece(files, (0,)) for files in cases]
    make_set(inpainter, job, pieces, problems, (_paint, settings, folder))


def _paint(
    painter: Painter, piece: Piece, settings: InpaintSettings, folder: Path, only_look: bool
) -> bool:
    """A case."""
    inpainter, files = painter.inpainter, piece.files
    name = _name(files)
    inputs = [*files.images.values(), files.segmentation]
    request = make_request(inpainter, inputs, **settings.record(inpainter, "box", "slices"))
    record_folder = folder / "records" / files.subject

    def is_there() -> bool:
        return (folder / name).is_file() and is_done(record_folder / RECORD, request)

    if only_look and not is_there():
        return False
    with painting(folder, files.subject):
        if not is_there():
            _inpaint(inpainter, files, settings, folder, request)
    _log.info(f"{files.subject}: {folder / name}")
    return True


def _inpaint(
    inpainter: Inpainter,
    files: CaseFiles,
    settings: InpaintSettings,
    folder: Path,
    request: dict[str, Any],
) -> None:
    name, record_folder = _name(files), folder / "records" / files.subject
    case = read_case(files, tuple(files.images), labels=False)
    rois = read_roi_volume(files.segmentation, case, {1: "normal", 255: "normal"}, settings.box)
    result, continuity = paint_sample(inpainter, case, rois, settings, sample=0)
    std = result.std and {"t1": result.std["t1"]}
    t1 = {"t1": result.values["t1"]}
    # What was asked for is normal tissue: there is a label map only if the model says what it painted.
    labels = result.labels if inpainter.has_labels else None
    result = dataclasses.replace(result, values=t1, std=std, labels=labels)
    with new_folder(record_folder) as target:
        ((written, count),) = write_case(target, case, result).items()
        details = {"z_continuity": continuity, "clipped_to_dtype": {name: count}}
        title = preview_title(case.subject, inpainter.checkpoint)
        draw_case(target / "preview.png", case, result, title)
        record = case_record(inpainter, case, result, request, **details)
        write_json(target / RECORD, record)
        (target / written).replace(folder / name)


def _name(files: CaseFiles) -> str:
    """Of the result, as the challenge wants it."""
    return f"{files.subject}-t1n-inference.nii.gz"
