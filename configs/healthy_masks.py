r"""Cuts tumor-shaped regions out of healthy tissue, as BraTS's local-inpainting challenge does.

    python run.py --config=configs/healthy_masks.py --config.source=DIR \
        --config.convention=brats2023 --workdir=voided

Writes a folder per case with `t1n`, `t1n-voided`, `mask`, `mask-healthy` and `mask-unhealthy` files, on
which any inpainting method can be tested; the truth is `t1n` inside `mask-healthy`. Other sequences of
the case are written voided, as `t1c`, `t2w` and `t2f`, since models of several need them as context. The
bundled model, or your own as `--config.checkpoint`, paints the T1 by

    python run.py --config=configs/inpaint.py --config.layout=brats_inpainting --config.source=voided

Existing cases are not made again.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    config = ConfigDict()
    config.task = "healthy_masks"
    # Folder for the results.
    config.workdir = "healthy_masks"

    # Folder of cases with segmentations, at any depth, and their convention.
    config.source = ""
    config.convention = ""
    # Folder of other cases of that convention whose tumors give the shapes; empty for the cases' own.
    config.shapes_source = ""
    # Of shapes and places.
    config.seed = 0
    return config
