"""Labeled sets of repainted cases for training a segmentation, in nnU-Net's raw layout.

    imagesTr/<case>_000<channel>.nii.gz    channels in the order t1, t1ce, t2, flair
    labelsTr/<case>.nii.gz                 0, 1 necrotic core, 2 edema, 3 enhancement (4 cavity)
    dataset.json
    provenance/<case>.json                 a record for each case
    manifest.json                          what all cases have in common, where labels come from

with cases named <subject>_synthetic<sample>. A model with a label head says what it painted; of others
only free-form components and normal tissue have a label map, and only they are used. The workdir should
be named as nnU-Net wants it, Dataset<number>_<name>.
"""

import dataclasses
import functools
import json
import logging
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np

from mbti_jax.inference.files import paint_samples, size_of_images
from mbti_jax.inference.inpainted import InpaintedVolume
from mbti_jax.inference.inpainter import Inpainter
from mbti_jax.inference.requests import case_record, is_done, make_request
from mbti_jax.inference.results import write_case
from mbti_jax.inference.sets import HERE, Job, Painter, Piece, cut, make_set, painting
from mbti_jax.inference.settings import InpaintSettings
from mbti_jax.io.files import write_json
from mbti_jax.io.nifti import write_label_map
from mbti_jax.rois.kinds import COMPONENTS
from mbti_jax.rois.tumors import painted_labels
from tfds_brats.cases import Case, CaseFiles
from tfds_brats.conventions import CAVITY, SEQUENCES, CaseError
from tfds_brats.slices import from_slices, to_slices
from tfds_brats.space import check_space
from tfds_brats.volumes import AFFINE_TOLERANCE, read_geometry

_log = logging.getLogger(__name__)
_ENDING = ".nii.gz"


def make_labeled_set(
    inpainter: Inpainter, settings: InpaintSettings, folder: Path, job: Job = HERE
) -> None:
    """Makes `num_samples` labeled cases of each case; existing ones are left as they are.

    They have all sequences; by a model of one at a time those that all cases have.

    The files that describe the set are written once all of it is made, and by no share of it.

    Raises:
        ValueError: a request whose result has no label map, or that does not repaint all sequences, or
            cases that cannot be used.
    """
    what = None if inpainter.has_labels else _without_labels(settings)
    if what:
        raise ValueError(
            f"{what} has no label map, for this model decides what is where in it and has no label head "
            "to say so: use one trained with label_weight above 0, or free-form components and normal "
            "tissue"
        )
    if settings.sequences or settings.slices:
        raise ValueError("a labeled set takes all sequences and slices; leave both fields empty")
    cases, problems = settings.cases(labels=True)
    if cases and cases[0].convention.channels:
        raise CaseError(
            f"{cases[0].subject}: has its sequences in one file; nnU-Net wants a file for each"
        )
    if inpainter.num_channels == 1:
        common = tuple(n for n in SEQUENCES if all(n in files.images for files in cases))
        if not common:
            raise CaseError(f"{settings.source}: there is no sequence that all cases have")
        if common != SEQUENCES:
            settings = dataclasses.replace(settings, sequences=common)
    check_space(folder, settings.num_samples * sum(map(size_of_images, cases)), "the results")
    try:
        make_set(inpainter, job, cut(cases, settings), problems, (_paint, settings, folder))
    finally:
        # Of a set that is incomplete it describes what is there.
        names = []
        if job.engine.share() is None:
            names = sorted(path.stem for path in (folder / "provenance").glob("[!.]*.json"))
        if names:
            _write_dataset(inpainter, folder, cases, names, settings.sequences or SEQUENCES)


def _without_labels(settings: InpaintSettings) -> str | None:
    """What of a request has no label map without a label head."""
    shares = settings.shares if settings.tumor else ()
    if any(share.mode == "random" for share in shares):
        return "a random tumor"
    boxes = {*settings.box}.union(*(settings.box_of(share) for share in shares)) - {"normal"}
    return f"a box of {', '.join(sorted(boxes))}" if boxes else None


def _paint(
    painter: Painter, piece: Piece, settings: InpaintSettings, folder: Path, only_look: bool
) -> bool:
    """Those samples of a case that do not exist."""
    inpainter, files = painter.inpainter, piece.files
    inputs = [*files.images.values(), files.segmentation, settings.roi_path(files)]
    fields = settings.record(inpainter, "roi_labels", "tumor", "box")
    sequences = settings.sequences or SEQUENCES
    if settings.sequences:
        # Samples of one set have the same channels.
        fields["sequences"] = list(sequences)
    request = make_request(inpainter, inputs, **fields)
    names = {n: f"{files.subject}_synthetic{n:03d}" for n in piece.samples}
    records = {n: folder / "provenance" / f"{name}.json" for n, name in names.items()}
    if only_look:
        return all(is_done(path, request) for path in records.values())
    with painting(folder, names[piece.samples[0]]):
        missing = []
        for sample, path in records.items():
            if is_done(path, request):
                _log.info(f"{names[sample]} is there")
            else:
                missing.append(sample)
        if not missing:
            return True
        case = painter.read(files, request, sequences, True)
        painted = inpainter.sequences_of(case)
        if painted != sequences:
            raise ValueError(
                f"the model paints {', '.join(painted)}; a labeled set needs {', '.join(sequences)}"
            )
        if not (inpainter.has_labels or settings.tumor):
            # Before hours of sampling, since it refuses what has no label map.
            painted_labels(to_slices(case.segmentation), settings.rois(case, missing[0]))
        for sample, result, details in paint_samples(inpainter, case, settings, missing):
            record = functools.partial(case_record, inpainter, case, result, request)
            _write(folder, names[sample], case, result, record, details)
            _log.info(f"{names[sample]}: made")
    return True


def _write(
    folder: Path,
    name: str,
    case: Case,
    result: InpaintedVolume,
    record: Callable[..., dict[str, Any]],
    details: dict[str, Any],
) -> None:
    """The files of a sample; the record, which says that it is there, comes last.

    What a killed process left of them is removed by the next one.
    """
    target = folder / f".partial.{name}"
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir(parents=True)
    try:
        clipped = write_case(target, case, result, _ENDING)
        moves = {
            target / written: folder / "imagesTr" / f"{name}_{channel:04d}{_ENDING}"
            for channel, written in enumerate(clipped)
        }
        label_path = target / f"labels{_ENDING}"
        image = next(iter(case.files.images.values()))
        if result.labels is None:
            raise CaseError(f"{name}: {result.details['labels']['reason']}")
        write_label_map(label_path, from_slices(result.labels), image)
        moves[label_path] = folder / "labelsTr" / f"{name}{_ENDING}"
        _check_grid(moves)
        for written, final in moves.items():
            final.parent.mkdir(parents=True, exist_ok=True)
            written.replace(final)
        path = folder / "provenance" / f"{name}.json"
        write_json(path, record(**details, clipped_to_dtype=clipped))
    finally:
        shutil.rmtree(target, ignore_errors=True)


def _check_grid(paths: Iterable[Path]) -> None:
    """Raises CaseError unless all files have one shape, spacing and affine."""
    geometries = {path: read_geometry(path) for path in paths}
    (first, (shape, affine)), *others = geometries.items()
    for path, (other_shape, other_affine) in others:
        if other_shape != shape or np.abs(other_affine - affine).max() > AFFINE_TOLERANCE:
            raise CaseError(f"{path.name}: shape or affine differs from that of {first.name}")


def _write_dataset(
    inpainter: Inpainter,
    folder: Path,
    cases: list[CaseFiles],
    names: list[str],
    sequences: tuple[str, ...],
) -> None:
    labels = {"background": 0, **COMPONENTS}
    if any(CAVITY in files.convention.labels.values() for files in cases):
        labels["resection_cavity"] = CAVITY
    dataset = {
        "channel_names": {str(c): name for c, name in enumerate(sequences)},
        "labels": labels,
        "numTraining": len(names),
        "file_ending": _ENDING,
        "description": "Synthetic inside the inpainted regions; see manifest.json.",
    }
    write_json(folder / "dataset.json", dataset)
    single = inpainter.num_channels == 1
    paths = {name: f"provenance/{name}.json" for name in names}
    records = {name: json.loads((folder / path).read_text()) for name, path in paths.items()}
    manifest = {
        "synthetic": True,
        "checkpoint": inpainter.checkpoint,
        "sequences": "sampled one by one with the same mask and noise" if single else "together",
        "cases": paths,
        # Where labels come from: inside the ROIs and outside, and for each label how many pixels were
        # requested, painted (says the model) or kept from the input.
        "labels": {
            name: {where: record["labels"][where] for where in ("inside", "outside", "pixels")}
            for name, record in records.items()
            if "labels" in record
        },
    }
    write_json(folder / "manifest.json", manifest)
