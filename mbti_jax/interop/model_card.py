"""The model card of an inference checkpoint."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from mbti_jax.io.files import shipped_text

UNKNOWN_DATA = "Not stated when this model was exported."
UNKNOWN_LICENSE = (
    "Not stated. The license of the training data may bind the weights; ask who exported them."
)


@dataclasses.dataclass(frozen=True)
class CardSettings:
    """What people say of a model.

    Attributes:
        title: heading of the card.
        data: what the model was trained on.
        license: of the weights.
    """

    title: str
    data: str
    license: str


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
    trained, step = config["contract"]["data"], config.get("step")
    continued = (
        " of a run that continued another one" if "started_from" in config["contract"] else ""
    )
    card = shipped_text(
        "interop/model_card.md",
        config=config,
        title=title,
        data=data or UNKNOWN_DATA,
        license=license or UNKNOWN_LICENSE,
        sequences=", ".join(trained["sequences"]),
        together="painted together" if trained["joint"] else "painted one by one",
        step="" if step is None else f", after {step:,} updates{continued}",
    )
    return f"{card}\n"
