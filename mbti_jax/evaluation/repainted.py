"""Samples of whole volumes, kept in the folder of an evaluation."""

import functools
from collections.abc import Iterator, Sequence

import numpy as np

from mbti_jax.diffusion.sampling import Sampling
from mbti_jax.evaluation.cache import array_digest, cached
from mbti_jax.evaluation.workbench import Workbench
from mbti_jax.inference.inpainter import Inpainter
from mbti_jax.io.progress import progress_bar
from mbti_jax.rois.regions import Rois
from tfds_brats.cases import Case


def repainted(
    workbench: Workbench,
    inpainter: Inpainter,
    case: Case,
    rois: Rois,
    sampling: Sampling,
    *,
    num_samples: int = 1,
    sequences: Sequence[str] = (),
) -> Iterator[dict[str, np.ndarray]]:
    """Samples of a case; those sampled before are read from the workbench's folder.

    Args:
        workbench: its folder is used.
        inpainter: of any model.
        case: whose images may differ from those of its files.
        rois: [Z, H, W].
        sampling: how the samples are drawn; a mean in one pass is a sample here.
        num_samples: how many.
        sequences: those to repaint; empty for all that the case and the model have.

    Yields:
        Sequence -> float64 [Z, H, W] in the file's units, 0 outside the ROI.
    """
    sequences = inpainter.sequences_of(case, sequences)
    sampling, roi = inpainter.resolve(sampling), rois.union
    request = {
        "weights": inpainter.checkpoint["weights_sha256"],
        "subject": case.subject,
        "inputs": {name: array_digest(case.values(name)) for name in case.images},
        "rois": [array_digest(rois.masks), *rois.box],
        "sequences": list(sequences),
        "sampling": sampling.record(),
        "neighbors": inpainter.neighbors_at(case.spacing[2], sampling),
    }
    paint = functools.partial(inpainter.inpaint_volume, case, rois, sampling, sequences=sequences)
    for sample in range(num_samples):

        def compute(sample: int = sample) -> dict[str, np.ndarray]:
            name = f"{case.subject}, sample {sample}"
            with progress_bar(name, leave=False) as progress:
                (volume,) = paint(samples=(sample,), progress=progress)
            return {name: v[roi].astype(np.float32) for name, v in volume.values.items()}

        found = cached(workbench.folder, "volume", {**request, "sample": sample}, compute)
        out = {name: np.zeros(roi.shape) for name in sequences}
        for name, values in out.items():
            values[roi] = found[name]
        yield out
