"""The model card of an inference checkpoint."""

from collections.abc import Mapping
from typing import Any

_TEMPLATE = """\
# {title}

**For research use only. Not a medical device; not for diagnosis, treatment or any clinical decision.**

## Intended use

A denoising diffusion model that repaints regions of axial MR slices of the brain: with normal tissue,
or with the components of a glioma (necrotic core, edema, enhancement, or all of them mixed), each
inside a free-form region or a bounding box (Rouzrokh et al. 2022, arXiv 2210.12113). It is meant for
research on data augmentation, on robustness, and on algorithms that need a brain without its tumor.

Not intended: adding or removing disease in images that someone may take for a patient's. What it
paints is made up; it is no evidence of what was, or will be, in a patient. Outputs should stay marked
as synthetic. Other anatomy, acquisitions, ages or diseases than those of the training data are
untested.

## Training data

{data}

Sequences: {sequences}, {together}.

## Preprocessing

- Axial slices in radiological display, 1 mm voxels, skull-stripped, background 0.
- Intensities: {intensity_scale}.
- A window of {window} x {window} voxels becomes {image_size} x {image_size} pixels (area averages).
- While sampling, x_0 is clipped to [{low:.4g}, {high:.4g}].

## Model

ADM UNet, {prediction}-prediction, {schedule} schedule of {num_timesteps} steps{step}.
Recommended guidance weight {guidance_weight}. All fields are in config.json.

## Files

`model.safetensors` (float32, tensors named as in {names}), `config.json`. In Python:

    from mbti_jax import Inpainter
    inpainter = Inpainter.load("this folder")

## License

{license}
"""

UNKNOWN_DATA = "Not stated when this model was exported."
UNKNOWN_LICENSE = (
    "Not stated. The license of the training data may bind the weights; ask who exported them."
)


def model_card(
    config: Mapping[str, Any],
    *,
    title: str = "Multitask brain-tumor inpainting",
    data: str = "",
    license: str = "",
) -> str:
    """The card in Markdown.

    Args:
        config: what config.json holds.
        title: heading.
        data: what the model was trained on.
        license: of the weights.
    """
    contract, inference = config["contract"], config["inference"]
    low, high = inference["x_0_bounds"]
    step = config.get("step")
    return _TEMPLATE.format(
        title=title,
        data=data or UNKNOWN_DATA,
        license=license or UNKNOWN_LICENSE,
        sequences=", ".join(contract["data"]["sequences"]),
        together="painted together" if contract["data"]["joint"] else "painted one by one",
        intensity_scale=config["intensity_scale"],
        window=contract["data"]["window"],
        image_size=contract["data"]["image_size"],
        low=low,
        high=high,
        prediction=contract["diffusion"]["prediction"],
        schedule=contract["diffusion"]["schedule"],
        num_timesteps=contract["diffusion"]["num_timesteps"],
        step="" if step is None else f", after {step:,} updates",
        guidance_weight=inference["guidance_weight"],
        names=config["names"],
    )
