r"""Cuts tumour-shaped regions out of healthy tissue, as BraTS's local-inpainting challenge does.

    python run.py --config=configs/healthy_masks.py --config.source=DIR \
        --config.convention=brats2023 --workdir=voided

Writes a folder a case with `t1n`, `t1n-voided`, `mask`, `mask-healthy` and `mask-unhealthy` files, on
which any inpainting method can be tried; the truth is `t1n` inside `mask-healthy`. The project's own
paints them with `configs/inpaint.py --config.layout=brats_inpainting --config.source=voided`. Cases that
are there are not made again.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    config = ConfigDict()
    config.task = "healthy_masks"
    config.workdir = "healthy_masks"

    # Folder of cases with segmentations, at any depth, and their convention.
    config.source = ""
    config.convention = ""
    # Folder of other cases of that convention whose tumours give the shapes; empty: the cases' own.
    config.shapes_source = ""
    config.seed = 0
    return config
