"""The `Inpainter`: a trained model, ready to repaint regions of slices."""

import dataclasses
import os
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import cached_property
from typing import Any

import jax
import numpy as np

from mbti_jax import sharding
from mbti_jax.diffusion.noise import start_noise
from mbti_jax.diffusion.sampler import Sampler
from mbti_jax.diffusion.schedule import sampling_timesteps
from mbti_jax.fields import finite_number, whole_number
from mbti_jax.inference import checks, provenance
from mbti_jax.inference.load import load_model
from mbti_jax.inference.window import Window
from mbti_jax.io.quantize import paste, standard_deviation
from mbti_jax.models.pipeline import Method
from mbti_jax.models.unet import Params
from mbti_jax.rois.regions import box_flags, check_overlap, fill_boxes, to_masks
from tfds_brats.scale import IntensityScale
from tfds_brats.slices import bounding_box

Progress = Callable[[int, int], None]
Cancel = Callable[[], bool]


@dataclasses.dataclass(frozen=True)
class Inpainted:
    """What `Inpainter` made of a slice.

    Attributes:
        images: [num_samples, H, W] or [num_samples, H, W, C], in the units and the data type of the
            input; outside the ROI equal to it bit for bit.
        std: float32 [H, W] or [H, W, C], the standard deviation over the samples (n - 1 in the
            denominator) in the input's units, 0 outside the ROI; None for a single sample.
        roi_masks: bool [H, W, 5], the ROIs in the order of `tasks.CHANNELS`, boxes filled.
        provenance: how it was made, in JSON values.
    """

    images: np.ndarray
    std: np.ndarray | None
    roi_masks: np.ndarray
    provenance: dict[str, Any]


class Inpainter:
    """A trained model and its sampler.

    Example:
        >>> inpainter = Inpainter.load("phantom")  # or the folder of a training run
        >>> mask = np.zeros(image.shape, bool)  # image: one axial slice, background 0
        >>> mask[100:130, 90:120] = True
        >>> result = inpainter(image, {"normal": mask}, box=("normal",), seed=1, num_samples=4)
        >>> result.images.shape, result.images.dtype == image.dtype
        ((4, 240, 240), True)

    Attributes:
        method: network, process and tasks.
        metadata: what the checkpoint recorded (see `checkpoint`).
        image_size: height and width of the slices that `sample` takes.
        num_channels: C, how many sequences the model paints together.
        batch_size: slices sampled at once over all local devices.
        sequences: those it was trained on; in channel order where it paints several together.
    """

    def __init__(
        self,
        params: Params,
        metadata: dict[str, Any],
        batch_size: int | None = None,
        path: str | os.PathLike = "",
        report_every: int = 10,
    ):
        """Wraps averaged parameters and metadata as `load_model` returns them.

        Args:
            batch_size: slices sampled at once over all local devices. Every call is padded to it, so
                that one compiled program serves all; default 4 on CPUs (padding takes time), else 32.
            path: where they come from, for the provenance record.
            report_every: steps between two calls of `progress` and `cancel`.
        """
        self.metadata = metadata
        self.method = Method.from_config(metadata["contract"])
        self.image_size = self.method.image_size
        self.num_channels = self.method.model.out_channels
        self.sequences = tuple(metadata["contract"]["data"]["sequences"])
        self._path = str(path)
        self._mesh = sharding.make_mesh(jax.local_devices())
        batch_size = batch_size or (4 if jax.default_backend() == "cpu" else 32)
        self.batch_size = sharding.padded_batch_size(batch_size, self._mesh, 1)
        self._params = jax.device_put(params, sharding.replicated(self._mesh))
        self._sampler = Sampler(self.method.denoise, self.method.process.schedule)
        self._report_every = report_every

    @classmethod
    def load(cls, path: str | os.PathLike, batch_size: int | None = None) -> "Inpainter":
        """Loads a training run's newest checkpoint, an exported model, or "phantom", which comes along.

        Raises:
            ValueError: there is nothing readable; see `load_model`.
        """
        return cls(*load_model(path), batch_size, path)

    @cached_property
    def checkpoint(self) -> dict[str, Any]:
        """What identifies the model, in JSON values; see `provenance.checkpoint_record`."""
        return provenance.checkpoint_record(self._path, self._params, self.metadata)

    @property
    def default_guidance_weight(self) -> float:
        """The guidance weight that the checkpoint recommends."""
        return float(self.metadata["inference"]["guidance_weight"])

    def __call__(
        self,
        image: np.ndarray,
        rois: Mapping[str, np.ndarray] | np.ndarray,
        *,
        box: Collection[str] = (),
        seed: int = 0,
        num_samples: int = 1,
        num_steps: int = 50,
        spacing: str = "trailing",
        guidance_weight: float | None = None,
        eta: float = 0.0,
        intensity_range: tuple[float, float] | Sequence[tuple[float, float]] | None = None,
        roi_labels: Mapping[int, str] | None = None,
        slice_index: int = 0,
        brain_box: Sequence[int] | None = None,
        pixel_size: float | tuple[float, float] = 1.0,
        progress: Progress | None = None,
        cancel: Cancel | None = None,
    ) -> Inpainted:
        """Repaints the ROIs of one slice of any size, in any units.

        The window that the model sees is placed, and the result pasted back, by the rule that
        `geometry` states. A model of one sequence that is given several paints them one by one with
        the same masks and noise.

        The result is a function of the arguments alone, whatever else is in the batch, as every call is
        padded to the inpainter's batch size. Other batch sizes round differently: by 1e-7 of the
        intensity range in float32, by 1e-3 in bfloat16 (64 x 64, 25 steps, on CPU).

        Args:
            image: [H, W], or [H, W, C] with sequences in the order of `sequences`; integers or floats;
                0 is background. Row 0 is anterior and column 0 the patient's right, as in training.
            rois: ROIs {name: mask [H, W]}, a label map [H, W] or a picture; see `rois.to_masks`.
            box: names of the ROIs to be treated as bounding boxes; the others are free-form.
            seed: whole number >= 0. The noise is a function of (seed, sample, slice_index, position).
            num_samples: how many different results to make.
            num_steps: DDIM steps.
            spacing: of the timesteps, "trailing" or "ddim"; see `schedule.sampling_timesteps`.
            guidance_weight: w; default the checkpoint's.
            eta: 0 (deterministic) to 1 (ancestral sampling).
            intensity_range: (low, high) in the image's units that become -1 and 1 for the model, one
                pair or one for each sequence. Give the volume's (`tfds_brats.scale.fit_scale`); default
                are the slice's own percentiles, which shift with what the slice shows.
            roi_labels: meaning of a label map's numbers.
            slice_index: number of the slice in its volume, >= 0.
            brain_box: (y0, x0, y1, x1), half-open, of the brain in the volume; default the slice's.
            pixel_size: millimetres, one number or (height, width).
            progress: called with (steps done, steps in all).
            cancel: asked between chunks of steps; true raises `SamplingCancelled`.

        Returns:
            `Inpainted`.

        Raises:
            ValueError: an argument is not as above, or an image that is not finite, constant, or of
                another number of sequences than the model's.
            SamplingCancelled: `cancel` returned true.
        """
        image = np.asarray(image)
        values = checks.image_values(image)
        masks = to_masks(rois, values.shape[:2], roi_labels)
        flags = box_flags(box)
        masks = fill_boxes(masks, flags)
        warnings = check_overlap(masks, flags)
        roi = masks.any(-1)
        brain = (values != 0).any(-1)
        num_sequences = values.shape[-1]
        self.check_sequences(num_sequences)
        if intensity_range is None:
            scales = [checks.slice_scale(values[..., c], brain) for c in range(num_sequences)]
            scaling = provenance.scale_record(scales, "the slice's own percentiles")
            warnings.append(
                "the intensity scale is that of the slice and not of its volume, which the model was "
                "trained with; give intensity_range"
            )
        else:
            scales = checks.given_scales(intensity_range, num_sequences)
            scaling = provenance.scale_record(scales, "intensity_range")
        window = self.place_window(
            roi.shape,
            bounding_box(brain) if brain_box is None else checks.box_inside(brain_box, roi.shape),
            bounding_box(roi),
            pixel_size,
        )
        weight = self.default_guidance_weight if guidance_weight is None else guidance_weight
        settings = {"seed": seed, "num_steps": num_steps, "spacing": spacing}
        settings |= {"guidance_weight": weight, "eta": eta}
        num_samples = whole_number("num_samples", num_samples, least=1)
        painted = self.repaint(
            values[None],
            brain[None],
            masks[None],
            flags,
            scales,
            window,
            slice_indices=[whole_number("slice_index", slice_index)],
            samples=range(num_samples),
            progress=progress,
            cancel=cancel,
            **settings,
        )[:, 0]
        inside = roi if image.ndim == 2 else np.repeat(roi[..., None], num_sequences, axis=-1)
        images, clipped = paste(image, painted.reshape(num_samples, *image.shape), inside)
        std = standard_deviation(images, inside) if num_samples > 1 else None
        details = provenance.record(
            self.checkpoint,
            sampling={**settings, "num_samples": num_samples, "slice_index": slice_index},
            rois=provenance.roi_record(masks, flags),
            geometry=window.record(),
            intensity=scaling,
            sequences="together" if self.num_channels > 1 else "one by one, same masks and noise",
            clipped_to_dtype=clipped,
            warnings=warnings,
        )
        return Inpainted(images, std, masks, details)

    def check_sequences(self, count: int) -> None:
        """Raises ValueError if the model cannot paint images of `count` sequences."""
        if self.num_channels not in (1, count):
            raise ValueError(
                f"the image has {count} sequence{'s' * (count > 1)}, but this model paints "
                f"{self.num_channels} together: {', '.join(self.sequences)}"
            )

    def place_window(
        self,
        shape: tuple[int, int],
        brain_box: Sequence[int],
        roi_box: Sequence[int],
        pixel_size: float | tuple[float, float],
    ) -> Window:
        """The window of a slice [H, W]; see `geometry`."""
        return Window.place(
            shape,
            brain_box,
            roi_box,
            window=self.metadata["contract"]["data"]["window"],
            image_size=self.image_size,
            pixel_size=checks.pixel_sizes(pixel_size),
        )

    def repaint(
        self,
        values: np.ndarray,
        brain: np.ndarray,
        masks: np.ndarray,
        box: np.ndarray,
        scales: Sequence[IntensityScale],
        window: Window,
        *,
        slice_indices: Sequence[int],
        samples: Sequence[int] = (0,),
        **sampling: Any,
    ) -> np.ndarray:
        """Repaints slices of one volume, in its units.

        Args:
            values: [N, H, W, C].
            brain: bool [N, H, W].
            masks: bool [N, H, W, 5], none of them empty, boxes filled.
            box: bool [5].
            scales: one for each sequence.
            window: the window of all slices.
            slice_indices: [N], their numbers in the volume.
            samples: numbers of the samples to make.
            **sampling: as of `sample`.

        Returns:
            float64 [len(samples), N, H, W, C], meaningful inside the ROI only.
        """
        images = np.stack(
            [window.to_model(v, b, scales) for v, b in zip(values, brain, strict=True)]
        )
        tasks = [window.task(m, box) for m in masks]
        roi_masks = np.stack([task.roi_masks for task in tasks])
        class_vectors = np.stack([task.class_vector for task in tasks])
        count, repeats = len(images), 1
        if self.num_channels == 1:
            # Sequences become examples: [N, S, S, C] -> [N C, S, S, 1].
            repeats = images.shape[-1]
            images = np.moveaxis(images, -1, 1).reshape(-1, *images.shape[1:3], 1)
        numbers = np.repeat(np.arange(count), repeats)
        order = np.tile(np.arange(len(images)), len(samples))
        painted = self.sample(
            images[order],
            roi_masks[numbers[order]],
            class_vectors[numbers[order]],
            samples=np.repeat(np.asarray(samples), len(images)),
            slice_indices=np.asarray(slice_indices)[numbers[order]],
            **sampling,
        )
        shape = (len(samples), count, repeats, *painted.shape[1:3], self.num_channels)
        # Either `repeats` or `num_channels` is 1.
        painted = np.moveaxis(painted.reshape(shape), 2, -1)
        painted = painted.reshape(*painted.shape[:4], -1)
        out = np.empty((len(samples), *values.shape), np.float64)
        for sample in range(len(samples)):
            for n in range(count):
                back = window.to_slice(painted[sample, n])
                for c, scale in enumerate(scales):
                    out[sample, n, ..., c] = scale.to_values(back[..., c])
        return out

    def sample(
        self,
        images: np.ndarray,
        roi_masks: np.ndarray,
        class_vectors: np.ndarray,
        *,
        seed: int = 0,
        samples: Sequence[int] | None = None,
        slice_indices: Sequence[int] | None = None,
        num_steps: int = 50,
        spacing: str = "trailing",
        guidance_weight: float = 0.4,
        eta: float = 0.0,
        z_sigma: float = 0.0,
        progress: Progress | None = None,
        cancel: Cancel | None = None,
    ) -> np.ndarray:
        """Repaints slices that are already in the model's size and intensity units.

        Args:
            images: float32 [N, S, S, C] with S = `image_size`, background -1.
            roi_masks: [N, S, S, 5], 0 / 1.
            class_vectors: float32 [N, 5].
            seed: an example's noise is a function of (seed, sample, slice index, position).
            samples: ints [N], which of several samples of its slice each example is; default 0.
            slice_indices: ints [N]; default 0.
            num_steps: DDIM steps, 1 to 1000.
            spacing: of the timesteps, "trailing" or "ddim"; see `schedule.sampling_timesteps`.
            guidance_weight: w.
            eta: 0 (deterministic) to 1 (ancestral sampling).
            z_sigma: correlates the start noise of neighbouring slices; see `noise`.
            progress: called with (steps done, steps in all) over all batches.
            cancel: asked between chunks of steps; true raises `SamplingCancelled`.

        Returns:
            float32 [N, S, S, C], equal to `images` outside the ROI.

        Raises:
            ValueError: shapes do not fit the model, an empty ROI, or a setting is not as above.
        """
        count = len(images)
        expected = (count, self.image_size, self.image_size, self.num_channels)
        if images.shape != expected:
            raise ValueError(f"images have shape {images.shape}, the model wants {expected}")
        if not roi_masks.any(axis=(1, 2, 3)).all():
            raise ValueError("an example has an empty ROI: there is nothing to inpaint")
        seed = whole_number("seed", seed)
        guidance_weight = finite_number("guidance_weight", guidance_weight)
        samples = np.zeros(count, int) if samples is None else np.asarray(samples)
        self.method.check_sampling(samples, guidance_weight)
        slice_indices = np.zeros(count, int) if slice_indices is None else np.asarray(slice_indices)
        num_timesteps = self.method.process.schedule.num_timesteps
        timesteps = sampling_timesteps(num_steps, num_timesteps, spacing)
        batches = -(-count // self.batch_size)
        out = np.empty(expected, np.float32)
        for number in range(batches):
            rows = np.arange(number * self.batch_size, min((number + 1) * self.batch_size, count))
            # The padding repeats the first row; what becomes of it is thrown away.
            padded = np.concatenate([rows, np.full(self.batch_size - len(rows), rows[0])])
            noise, keys = start_noise(
                seed, samples[padded], slice_indices[padded], expected[1:], z_sigma
            )
            batch = (noise, images[padded], roi_masks[padded], class_vectors[padded], keys)

            def report(done: int, total: int, number: int = number) -> None:
                if progress is not None:
                    progress(number * total + done, batches * total)

            result = self._sampler(
                self._params,
                *jax.device_put(batch, sharding.batch_sharding(self._mesh)),
                timesteps=timesteps,
                weight=guidance_weight,
                eta=eta,
                clip=tuple(self.metadata["inference"]["x_0_bounds"]),
                chunk=self._report_every,
                progress=report,
                cancel=cancel,
            )
            out[rows] = jax.device_get(result)[: len(rows)]
        return out
