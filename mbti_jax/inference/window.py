"""How a slice of any size becomes the network's image, and how the result gets back into it.

The rule, the same as in training. The network sees a window of the slice: `window` mm high and wide
(training slices have 1 mm pixels), so `window / pixel_size` pixels.

1. Where the slice is smaller than the window it is padded with background, center on center.
2. Where it is larger, the window is centered on the brain (of the whole volume, where that is known),
   as far as the slice allows; on brain and ROI together if the ROI would reach out of it.
3. If these do not fit either, the window grows until they do, keeping its proportions.
4. The window is area-averaged to the network's size S x S.
5. A network pixel belongs to the ROI if any part of it does, so nothing of what is to be replaced is
   left in the context. Of free-form ROIs that share a pixel the one with the largest part takes it.
6. On the way back the sample is interpolated bilinearly to the window's pixels (area-averaged where
   the slice is coarser than the network's image), and only pixels of the ROI are taken from it.
   Probabilities of labels are interpolated among the network's ROI pixels alone.

With a window of S pixels steps 4 to 6 change nothing.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, partial

import jax
import numpy as np

from mbti_jax.data.crop import cut_window, window_slices
from mbti_jax.data.preprocess import area_resize
from mbti_jax.diffusion.condition import Condition
from mbti_jax.rois.kinds import NORMAL, NUM_KINDS
from mbti_jax.rois.regions import Rois, make_condition
from tfds_brats.scale import BACKGROUND, IntensityScale


@dataclass(frozen=True)
class Window:
    """The part of a slice that the network sees.

    Attributes:
        shape: (H, W) of the slice.
        rows, columns: the window in the slice's pixel numbers; those outside the slice are padding.
        image_size: S.
        pixel_size: height and width of a pixel of the slice in mm.
    """

    shape: tuple[int, int]
    rows: range
    columns: range
    image_size: int
    pixel_size: tuple[float, float] = (1.0, 1.0)

    @classmethod
    def place(
        cls,
        shape: tuple[int, int],
        brain_box: Sequence[int],
        roi_box: Sequence[int],
        *,
        window: float,
        image_size: int,
        pixel_size: tuple[float, float] = (1.0, 1.0),
    ) -> "Window":
        """Places the window by the rule above.

        Args:
            shape: (H, W) of the slice.
            brain_box: (y0, x0, y1, x1), half-open, of the brain in the volume or slice.
            roi_box: the same of the ROI.
            window: side of the window in training, in mm.
            image_size: S.
            pixel_size: height and width of a pixel in mm.
        """
        sides = [max(1, round(window / size)) for size in pixel_size]
        both = [*np.minimum(brain_box, roi_box)[:2], *np.maximum(brain_box, roi_box)[2:]]
        placed = cls(shape, *_spans(shape, brain_box, sides), image_size, pixel_size)
        if not placed._holds(roi_box):
            placed = cls(shape, *_spans(shape, both, sides), image_size, pixel_size)
        return placed

    def _holds(self, box: Sequence[int]) -> bool:
        y0, x0, y1, x1 = box
        return (
            self.rows.start <= y0
            and y1 <= self.rows.stop
            and self.columns.start <= x0
            and x1 <= self.columns.stop
        )

    def to_model(
        self, values: np.ndarray, brain: np.ndarray, scales: Sequence[IntensityScale]
    ) -> np.ndarray:
        """The network's image of a slice.

        Args:
            values: [H, W, C] in the slice's units.
            brain: bool [H, W].
            scales: one for each of the C sequences.

        Returns:
            float32 [S, S, C] in model units; pixels without any brain are exactly -1.

        Raises:
            ValueError: an intensity is too large for float32 on that scale.
        """
        cut = cut_window(values, self.rows, self.columns)
        inside = cut_window(brain, self.rows, self.columns)
        image = np.stack([s.to_model(cut[..., c]) for c, s in enumerate(scales)], axis=-1)
        with np.errstate(over="ignore"):
            image = np.where(inside[..., None], image, BACKGROUND).astype(np.float32)
        if not np.isfinite(image).all():
            raise ValueError(
                "the intensity range does not fit the image: its values become infinite"
            )
        return np.asarray(_resize(image, size=self.image_size))

    def condition(self, rois: Rois) -> Condition:
        """What the network is asked for, on its own grid.

        Args:
            rois: of the slice, inside the window.

        Returns:
            `Condition` of one example, numpy arrays.
        """
        cut = cut_window(rois.masks, self.rows, self.columns).astype(np.float32)
        # As an image whose background is exactly -1, so that an untouched pixel comes out at 0.
        share = np.asarray(_resize(cut - 1, size=self.image_size)) + 1
        touched = share > 0
        free_share = np.where(rois.is_box, 0, share)
        winner = free_share.argmax(axis=-1)[..., None] == np.arange(NUM_KINDS)
        chosen = np.where(rois.is_box, touched, winner & touched)
        # Training draws normal tissue outside everything else.
        others = np.delete(chosen, NORMAL, axis=-1).any(axis=-1)
        if not rois.is_box[NORMAL]:
            chosen[..., NORMAL] &= ~others
        for channel in np.flatnonzero(touched.any((0, 1)) & ~chosen.any((0, 1))):
            # Too small to win anywhere: it keeps the pixel of which it has the largest part.
            most = np.unravel_index(share[..., channel].argmax(), share.shape[:2])
            chosen[most] = np.arange(NUM_KINDS) == channel
        return make_condition(chosen, rois.is_box)

    def to_slice(self, sample: np.ndarray) -> np.ndarray:
        """Brings a sample back to the pixels of the slice.

        Args:
            sample: float32 [S, S, C].

        Returns:
            float32 [H, W, C]; background outside the window.
        """
        back, inside = self._interpolated(sample)
        return np.where(inside[..., None], back, BACKGROUND).astype(np.float32)

    def probabilities_to_slice(self, probabilities: np.ndarray, roi: np.ndarray) -> np.ndarray:
        """Brings probabilities of labels back to the pixels of the slice.

        Args:
            probabilities: float32 [S, S, L].
            roi: bool [S, S], where they mean anything.

        Returns:
            float32 [H, W, L]; they add up to 1 in every pixel of the ROI, and to 0 far from it.
        """
        weighted = np.concatenate([probabilities, np.ones((*roi.shape, 1))], axis=-1)
        back, _ = self._interpolated(np.where(roi[..., None], weighted, 0))
        sums, total = back[..., :-1], back[..., -1:]
        return (sums / np.where(total > 0, total, 1)).astype(np.float32)

    def _interpolated(self, sample: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """[H, W, C] of [S, S, C], 0 outside the window; and bool [H, W], inside."""
        if self._is_identity:
            enlarged = sample
        else:
            enlarged = np.einsum("ya,xb,abc->yxc", *self._weights, sample, optimize=True)
        back_rows = range(-self.rows.start, self.shape[0] - self.rows.start)
        back_columns = range(-self.columns.start, self.shape[1] - self.columns.start)
        inside = cut_window(np.ones(enlarged.shape[:2], bool), back_rows, back_columns)
        return cut_window(enlarged, back_rows, back_columns), inside

    @property
    def _is_identity(self) -> bool:
        return len(self.rows) == len(self.columns) == self.image_size

    @cached_property
    def _weights(self) -> tuple[np.ndarray, np.ndarray]:
        rows, columns = (_weights_back(self.image_size, len(s)) for s in (self.rows, self.columns))
        return rows, columns

    def record(self) -> dict:
        """The window in JSON values, for the provenance record."""
        return {
            "slice_shape": list(self.shape),
            "rows": [self.rows.start, self.rows.stop],
            "columns": [self.columns.start, self.columns.stop],
            "image_size": self.image_size,
        }


def _spans(shape: Sequence[int], box: Sequence[int], sides: Sequence[int]) -> tuple[range, range]:
    """Rows and columns of a window with `sides`, enlarged until `box` fits."""
    lengths = [box[2] - box[0], box[3] - box[1]]
    # A slice that fits into the window is padded, whatever it holds.
    excess = [
        length / side if size > side else 1
        for size, length, side in zip(shape, lengths, sides, strict=True)
    ]
    growth = max(1.0, *excess)
    rows, columns = (
        # Both axes by the rule for one, as window and brain are square there.
        window_slices((size, size), np.array([low, low, high, high]), int(np.ceil(side * growth)))[
            0
        ]
        for size, low, high, side in zip(shape, box[:2], box[2:], sides, strict=True)
    )
    return rows, columns


@partial(jax.jit, static_argnames="size")
def _resize(image, size):
    return area_resize(image, (size, size))


def _weights_back(length: int, new_length: int) -> np.ndarray:
    """float32 [new_length, length]; rows sum to one. Bilinear up, area averaging down."""
    if new_length < length:
        # Each column of the identity is an image of one column.
        identity = np.eye(length, dtype=np.float32)[..., None] - 1
        return np.asarray(area_resize(identity, (new_length, length)))[..., 0] + 1
    centers = np.clip((np.arange(new_length) + 0.5) * length / new_length - 0.5, 0, length - 1)
    return np.maximum(1 - np.abs(centers[:, None] - np.arange(length)), 0).astype(np.float32)
