"""Command `healthy_masks`: tumour-shaped regions of healthy tissue, in the local-inpainting layout."""

from pathlib import Path

import numpy as np
from ml_collections import ConfigDict
from tqdm import tqdm

from mbti_jax.evaluation.healthy_masks import healthy_mask, read_shapes, write_layout
from mbti_jax.fields import whole_number
from mbti_jax.inference.provenance import digest
from mbti_jax.inference.runs import RECORD, is_done
from mbti_jax.io.files import file_digest, new_folder, write_json
from tfds_brats.cases import find_cases, read_case


def main(config: ConfigDict, workdir: str) -> None:
    """Writes the local-inpainting layout of the cases of a folder; see `configs/healthy_masks.py`.

    Raises:
        ValueError, OSError: cases that cannot be read, no place for a mask, a result of another request.
    """
    whole_number("seed", config.seed)
    cases = find_cases(config.source, config.convention, sequences=("t1",))
    if cases[0].convention.channels:
        raise ValueError(
            f"{config.convention} has all sequences in one file, which the local-inpainting layout "
            "does not know"
        )
    givers = cases
    if config.shapes_source:
        givers = find_cases(config.shapes_source, config.convention, sequences=("t1",))
    shapes = read_shapes(givers)
    pool = digest([[shape.share, np.packbits(shape.mask).tolist()] for shape in shapes])
    for number, files in enumerate(tqdm(cases, desc="healthy masks", unit="case")):
        inputs = {path.name: file_digest(path) for path in (files.images["t1"], files.labels)}
        # A case's mask depends on its place in the folder, so that is part of the request.
        request = {"seed": [config.seed, number], "shapes_sha256": pool, "inputs": inputs}
        target = Path(workdir) / files.subject
        if not is_done(target / RECORD, request):
            case = read_case(files, ("t1",))
            try:
                mask = healthy_mask(case.labels, case.brain, shapes, request["seed"])
            except ValueError as error:
                raise ValueError(f"{files.subject}: {error}") from error
            with new_folder(target) as beside:
                write_layout(beside, case, mask)
                sizes = {
                    name: int(np.count_nonzero(getattr(mask, name)))
                    for name in ("healthy", "unhealthy", "whole")
                }
                write_json(beside / RECORD, {"request": request, "voxels": sizes})
