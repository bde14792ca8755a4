"""Labelled sets of repainted cases for training a segmentation, in nnU-Net's raw layout.

    imagesTr/<case>_000<channel>.nii.gz    channels in the order t1, t1ce, t2, flair
    labelsTr/<case>.nii.gz                 0, 1 necrotic core, 2 edema, 3 enhancement (4 cavity)
    dataset.json
    provenance/<case>.json                 a record for each case
    manifest.json                          what all cases have in common, and their number

with cases named <subject>_synthetic<sample>. Only free-form components and normal tissue have a label
map, so only they are used. The workdir should be named as nnU-Net wants it, Dataset<number>_<name>.
"""

import tempfile
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from ml_collections import ConfigDict

from mbti_jax.inference.cases import write_case
from mbti_jax.inference.continuity import sequences_to_paint
from mbti_jax.inference.inpainter import Inpainter
from mbti_jax.inference.runs import (
    chosen_cases,
    is_done,
    make_record,
    make_request,
    roi_masks,
    roi_path,
    sampled,
)
from mbti_jax.io.files import write_json
from mbti_jax.io.nifti import write_label_map
from mbti_jax.rois.regions import box_flags
from mbti_jax.rois.tumors import painted_labels
from tfds_brats.cases import CaseFiles, read_case
from tfds_brats.conventions import (
    CAVITY,
    EDEMA,
    ENHANCEMENT,
    NECROTIC_CORE,
    SEQUENCES,
    CaseError,
)
from tfds_brats.slices import from_slices, to_slices
from tfds_brats.volumes import AFFINE_TOLERANCE

_LABELS = {
    "background": 0,
    "necrotic_core": NECROTIC_CORE,
    "edema": EDEMA,
    "enhancement": ENHANCEMENT,
}
_ENDING = ".nii.gz"


def make_labelled_set(inpainter: Inpainter, config: ConfigDict, folder: Path) -> None:
    """Makes `num_samples` labelled cases of each case; those that are there are left as they are.

    Raises:
        ValueError: a request whose result has no label map, or that does not repaint all sequences, or
            cases that cannot be used.
    """
    boxes = set(config.box) - {"normal"}
    if config.tumor == "random" or boxes:
        what = "a random tumour" if config.tumor == "random" else f"a box of {', '.join(boxes)}"
        raise ValueError(
            f"{what} has no label map, for the model decides what is where in it; a labelled set "
            "takes free-form components and normal tissue only"
        )
    if config.sequences or config.slices:
        raise ValueError("a labelled set takes all sequences and slices; leave both fields empty")
    cases = chosen_cases(config, labels=True)
    for files in cases:
        if files.convention.channels:
            raise CaseError(
                f"{files.subject}: has its sequences in one file; nnU-Net wants a file for each"
            )
    jobs = [(files, sample) for files in cases for sample in range(config.num_samples)]
    for number, (files, sample) in enumerate(jobs, start=1):
        name = f"{files.subject}_synthetic{sample:03d}"
        is_new = _make_case(inpainter, files, config, sample, name, folder)
        print(f"{number} of {len(jobs)}: {name}{'' if is_new else ' is there'}")
    _write_dataset(inpainter, config, folder, cases)


def _make_case(
    inpainter: Inpainter,
    files: CaseFiles,
    config: ConfigDict,
    sample: int,
    name: str,
    folder: Path,
) -> bool:
    """Makes one case unless it is there; whether it was made."""
    fields = ("roi_labels", "tumor", "box", "z_sigma_mm")
    inputs = [*files.images.values(), files.labels, roi_path(files, config)]
    request = make_request(inpainter, config, inputs, *fields)
    record_path = folder / "provenance" / f"{name}.json"
    if is_done(record_path, request):
        return False
    case = read_case(files)
    sequences = sequences_to_paint(inpainter, case, ())
    if sequences != SEQUENCES:
        raise ValueError(
            f"the model paints {', '.join(sequences)}; a labelled set needs {', '.join(SEQUENCES)}"
        )
    masks = roi_masks(case, config, sample)
    # Before hours of sampling, since it refuses what has no label map.
    labels = painted_labels(to_slices(case.labels), masks, box_flags(config.box))
    result, continuity = sampled(inpainter, case, masks, sequences, config, sample)
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder, prefix=".partial.") as beside:
        target = Path(beside)
        clipped = write_case(target, case, result, _ENDING)
        moves = {
            target / written: folder / "imagesTr" / f"{name}_{channel:04d}{_ENDING}"
            for channel, written in enumerate(clipped)
        }
        label_path = target / f"labels{_ENDING}"
        first = files.images[SEQUENCES[0]]
        write_label_map(label_path, from_slices(labels), first, case.to_disk)
        moves[label_path] = folder / "labelsTr" / f"{name}{_ENDING}"
        _check_grid(moves)
        record = make_record(inpainter, case, result, continuity, request, clipped)
        for written, final in moves.items():
            final.parent.mkdir(parents=True, exist_ok=True)
            written.replace(final)
        write_json(record_path, record)
    return True


def _check_grid(paths: Any) -> None:
    """Raises CaseError unless all files have one shape, spacing and affine."""
    images = {path: nib.load(path) for path in paths}
    first, *others = images
    for path in others:
        same_shape = images[path].shape == images[first].shape
        if not same_shape or not np.allclose(
            images[path].affine, images[first].affine, atol=AFFINE_TOLERANCE
        ):
            raise CaseError(f"{path.name}: shape or affine differs from that of {first.name}")


def _write_dataset(
    inpainter: Inpainter, config: ConfigDict, folder: Path, cases: list[CaseFiles]
) -> None:
    labels = dict(_LABELS)
    if any(CAVITY in files.convention.labels.values() for files in cases):
        labels["resection_cavity"] = CAVITY
    names = sorted(path.stem for path in (folder / "provenance").glob("[!.]*.json"))
    dataset = {
        "channel_names": {str(c): name for c, name in enumerate(SEQUENCES)},
        "labels": labels,
        "numTraining": len(names),
        "file_ending": _ENDING,
        "description": "Synthetic inside the inpainted regions; see manifest.json.",
    }
    write_json(folder / "dataset.json", dataset)
    single = inpainter.num_channels == 1
    manifest = {
        "synthetic": True,
        "checkpoint": inpainter.checkpoint,
        "sequences": "sampled one by one with the same mask and noise" if single else "together",
        "cases": {name: f"provenance/{name}.json" for name in names},
    }
    write_json(folder / "manifest.json", manifest)
