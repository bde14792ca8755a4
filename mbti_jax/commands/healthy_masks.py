"""Command `healthy_masks`: tumor-shaped regions of healthy tissue, in the local-inpainting layout."""

import dataclasses
from pathlib import Path

import numpy as np
from ml_collections import ConfigDict

from mbti_jax.commands.settings import from_config
from mbti_jax.evaluation.healthy_masks import case_mask, read_shapes, write_layout
from mbti_jax.fields import FieldError, Name, check_fields
from mbti_jax.inference.provenance import RECORD, digest
from mbti_jax.inference.requests import is_done
from mbti_jax.io.files import file_digest, new_folder, write_json
from tfds_brats.cases import CaseFiles, read_case
from tfds_brats.locking import only_process_in
from tfds_brats.search import find_cases, for_each_case


@dataclasses.dataclass(frozen=True)
class Settings:
    """Settings of the command.

    Attributes:
        source, convention: the cases.
        shapes_source: folder of other cases whose tumors give the shapes; empty for the cases' own.
        seed: of shapes and places.

    Raises:
        FieldError: no source, or a negative seed.
    """

    source: Name
    convention: Name
    shapes_source: str
    seed: int

    def __post_init__(self):
        check_fields(self)


def main(config: ConfigDict, workdir: str) -> None:
    """Writes the local-inpainting layout of the cases of a folder; see `configs/healthy_masks.py`.

    A case without a place for a mask does not keep the others from theirs.

    Raises:
        ValueError, OSError: cases that cannot be read or have no place for a mask, or a result that
            belongs to another request.
    """
    settings = from_config(Settings, config)
    with only_process_in(workdir):
        _run(settings, Path(workdir))


def _run(settings: Settings, folder: Path) -> None:
    cases = find_cases(settings.source, settings.convention, sequences=("t1",))
    if cases[0].convention.channels:
        raise FieldError(
            "convention",
            "must not have all sequences in one file, which the local-inpainting layout does not know, "
            f"as {settings.convention} has",
        )
    donors = cases
    if settings.shapes_source:
        donors = find_cases(settings.shapes_source, settings.convention, sequences=("t1",))
    shapes = read_shapes(donors)
    pool = digest([[shape.share, np.packbits(shape.mask).tolist()] for shape in shapes])
    numbers = {files.subject: number for number, files in enumerate(cases)}

    def void(files: CaseFiles) -> None:
        paths = (*files.images.values(), files.segmentation)
        inputs = {path.name: file_digest(path) for path in paths}
        # A case's mask depends on its place in the folder, so that is part of the request.
        seed = [settings.seed, numbers[files.subject]]
        request = {"seed": seed, "shapes_sha256": pool, "inputs": inputs}
        target = folder / files.subject
        if not is_done(target / RECORD, request):
            case = read_case(files, tuple(files.images))
            mask = case_mask(case, shapes, seed)
            with new_folder(target) as partial:
                write_layout(partial, case, mask)
                masks = {"healthy": mask.healthy, "unhealthy": mask.unhealthy, "whole": mask.whole}
                sizes = {name: int(np.count_nonzero(voxels)) for name, voxels in masks.items()}
                sizes["healthy_on_background"] = mask.on_background(case.values("t1") != 0)
                write_json(partial / RECORD, {"request": request, "voxels": sizes})

    for_each_case(cases, (), void)
