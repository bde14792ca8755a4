"""The sums that the losses of a batch are made of, and the losses.

Sums add up over microbatches and devices, and are divided once.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Float, Integer

from mbti_jax.diffusion.arrays import AnyArray, Numbers
from mbti_jax.diffusion.condition import Condition
from mbti_jax.rois.kinds import COMPONENTS, NUM_LABELS
from mbti_jax.rois.regions import CLASS_BOX, requested_labels

# The loss is also reported for each quarter of the timesteps.
QUARTERS = 4
Quarters = Float[AnyArray, "4"]


class LabelTerms(NamedTuple):
    """Sums over ROI pixels from which the label head's figures are made.

    A resection cavity, which boxes may hold, is none of the head's labels and left out.

    Attributes:
        cross_entropy: by quarter of the timesteps, in nats, [4].
        pixels: their number, [4].
        confusion: pixels in the first quarter, where samplings end, by whether the request says what
            they are (0: no, 1: yes), true label and label of the largest logit, [2, 4, 4].
    """

    cross_entropy: Quarters
    pixels: Quarters
    confusion: Float[AnyArray, "2 4 4"]


class Terms(NamedTuple):
    """Sums from which the losses are made, by quarter of the timesteps.

    Attributes:
        sums: the squared error over ROI pixels and sequences, [4].
        counts: the number of pixels times sequences, [4].
        labels: of the label head; None without one.
    """

    sums: Quarters
    counts: Quarters
    labels: LabelTerms | None = None


def losses(terms: Terms) -> dict[str, Float[AnyArray, ""]]:
    """The mean losses; NaN where there was nothing to take a mean of.

    Args:
        terms: see `Pipeline.loss_terms`.

    Returns:
        `loss`, the mean squared error, and `loss_q1` ... `loss_q4`, the same by quarter of the
        timesteps. With a label head also `label_loss` and `label_loss_q1` ..., its cross-entropy; and
        of the first quarter `label_agreement`, the share of requested pixels whose label is the request,
        and `label_dice_<component>` in boxes and mixed tumors, where the model decides.
    """
    out = {"loss": terms.sums.sum() / terms.counts.sum()}
    out |= {f"loss_q{i}": loss for i, loss in enumerate(terms.sums / terms.counts, start=1)}
    if terms.labels is None:
        return out
    sums, pixels, (decided, requested) = terms.labels
    out["label_loss"] = sums.sum() / pixels.sum()
    out |= {f"label_loss_q{i}": loss for i, loss in enumerate(sums / pixels, start=1)}
    out["label_agreement"] = requested.trace() / requested.sum()
    for name, label in COMPONENTS.items():
        sizes = decided[label].sum() + decided[:, label].sum()
        out[f"label_dice_{name}"] = 2 * decided[label, label] / sizes
    return out


def label_terms(
    logits: Float[jax.Array, "B H W L"],
    labels: Integer[jax.Array, "B H W"],
    condition: Condition,
    weight: Numbers,
    quarter: Float[jax.Array, "B 4"],
) -> LabelTerms:
    """The label head's sums of a batch.

    Args:
        logits: of each pixel.
        labels: what lies there.
        condition: what was asked for.
        weight: how often each example counts.
        quarter: one-hot, which quarter of the timesteps each example's lies in.
    """
    counted = condition.roi[..., 0] & (labels < NUM_LABELS)
    counted = counted * weight[:, None, None]
    truth = jax.nn.one_hot(labels, NUM_LABELS)
    cross_entropy = -(truth * jax.nn.log_softmax(logits)).sum(-1)
    found = jax.nn.one_hot(jnp.argmax(logits, -1), NUM_LABELS)
    is_box = (condition.class_vector == CLASS_BOX)[:, None, None, :]
    _, known = requested_labels(condition.roi_masks > 0, is_box)
    groups = jnp.stack([~known, known], axis=-1) * (counted * quarter[:, :1, None])[..., None]
    return LabelTerms(
        (cross_entropy * counted).sum((1, 2)) @ quarter,
        counted.sum((1, 2)) @ quarter,
        jnp.einsum("bhwg,bhwi,bhwj->gij", groups, truth, found),
    )
