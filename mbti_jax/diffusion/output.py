"""What networks, guidances and samplers return: an image, and label logits if there is a label head."""

from typing import Any, NamedTuple


class Output(NamedTuple):
    """What a network returns.

    Attributes:
        image: float32 [B, H, W, C], the noise, or whatever the process trains it for.
        label_logits: float32 [B, H, W, L], for every pixel, of no tumor, necrotic core, edema and
            enhancement being what lies or will be painted there; None without a label head.
    """

    image: Any
    label_logits: Any = None


class Denoised(NamedTuple):
    """An estimate of the image, from a guidance or at the end of a sampling.

    Attributes:
        x_0: float32 [B, H, W, C].
        label_logits: see `Output`; None without a label head.
    """

    x_0: Any
    label_logits: Any = None
