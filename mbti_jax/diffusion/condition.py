"""What an image is conditioned on, besides the image outside the ROI.

Network, guidance and sampler see one `Condition` and hand it on whole, so that a further condition is a
field here and changes no signature.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Neighbors:
    """The K slices below and the K above each example; or those of a single one (no leading axis).

    Attributes:
        images: float32 [B, 2 K, H, W, C], bottom to top (see `offsets`): x_t of the same time as the
            example's own. Inside their ROIs they are noised like it, outside they are what they are.
        roi_masks: [B, 2 K, H, W, R], 0 / 1, their own ROIs.
        present: float32 [B, 2 K], 1 or 0. Networks see nothing of a neighbor that is not there.
    """

    images: Any
    roi_masks: Any
    present: Any

    @property
    def roi(self) -> Any:
        """Their ROIs: bool [B, 2 K, H, W, 1]."""
        return (self.roi_masks > 0).any(axis=-1, keepdims=True)


def offsets(neighbors: int) -> tuple[int, ...]:
    """How many slices above an example its neighbors lie: -K, ..., -1, 1, ..., K."""
    return tuple(offset for offset in range(-neighbors, neighbors + 1) if offset)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Condition:
    """What to paint where, for a batch of examples or for a single one (no leading axis).

    Attributes:
        roi_masks: [B, H, W, K], 0 / 1, one channel per kind of ROI (`rois.kinds`).
        class_vector: float32 [B, K]: 1 empty channel, 2 free-form, 3 bounding box. All zeros is the null
            condition of guidance.
        neighbors: the slices around; None where there are none, which to a network that may see them is
            the same as neighbors of which none is present.
    """

    roi_masks: Any
    class_vector: Any
    neighbors: Neighbors | None = None

    def __len__(self) -> int:
        return len(self.class_vector)

    def __getitem__(self, rows: Any) -> "Condition":
        """The examples at `rows`: a number, numbers, a slice, or bool [B]."""
        return jax.tree.map(lambda leaf: leaf[rows], self)

    @property
    def roi(self) -> Any:
        """The ROI: bool [B, H, W, 1], true where any channel of `roi_masks` is set."""
        return (self.roi_masks > 0).any(axis=-1, keepdims=True)

    def null(self) -> "Condition":
        """The null condition: the same masks and neighbors, and zeros for the class vector."""
        return dataclasses.replace(self, class_vector=jnp.zeros_like(self.class_vector))

    @staticmethod
    def concatenate(parts: Sequence["Condition"]) -> "Condition":
        """The examples of the parts, one after the other, as numpy arrays."""
        return jax.tree.map(lambda *leaves: np.concatenate(leaves), *parts)

    @staticmethod
    def stack(examples: Sequence["Condition"]) -> "Condition":
        """A batch of single examples, as numpy arrays."""
        return jax.tree.map(lambda *leaves: np.stack(leaves), *examples)
