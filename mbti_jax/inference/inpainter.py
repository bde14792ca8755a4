"""The `Inpainter`: a trained model, ready to repaint regions of slices and volumes."""

import dataclasses
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from mbti_jax import sharding
from mbti_jax.diffusion.arrays import Images
from mbti_jax.diffusion.condition import Condition
from mbti_jax.diffusion.guidance import ClassifierFree, with_weight
from mbti_jax.diffusion.noise import start_noise
from mbti_jax.diffusion.output import Denoised
from mbti_jax.diffusion.samplers.driver import Batch, Cancel, Progress, Sampler, Surroundings
from mbti_jax.diffusion.sampling import Sampling, check_finite
from mbti_jax.fields import suggesting_names, whole_number
from mbti_jax.inference import checks, provenance
from mbti_jax.inference.blending import blend_normal_tissue
from mbti_jax.inference.inpainted import InpaintedSlice, InpaintedVolume, Samples
from mbti_jax.inference.inputs import case_of, rois_of
from mbti_jax.inference.labels import label_map
from mbti_jax.inference.load import load_model
from mbti_jax.inference.stacks import neighbor_rows, seen_slices
from mbti_jax.inference.window import Window
from mbti_jax.io.quantize import mean_and_deviation, paste, standard_deviation
from mbti_jax.models.pipeline import Pipeline
from mbti_jax.models.unet import Params
from mbti_jax.rois.kinds import NUM_LABELS
from mbti_jax.rois.regions import Rois
from tfds_brats.cases import Case
from tfds_brats.conventions import CaseError
from tfds_brats.scale import BACKGROUND, IntensityScale, fit_scale
from tfds_brats.slices import bounding_box, to_slices

# Ratio of two distances of slices up to which they count as the same.
_SAME_DISTANCE = 1.25
# Of volumes whose slices do not see each other.
_Z_SIGMA_MM = 2.0
_STD_RECORD = {"std": "over the samples, n - 1 in the denominator, in the units of the input"}


class _Painted(NamedTuple):
    """Results on the pixels of a volume's slices: samples, or their mean.

    Attributes:
        values: float64 [results, N, H, W, Q] in the volume's units, meaningful inside the ROI only.
        std: of a mean of several samples, float64 [N, H, W, Q], likewise.
        label_probabilities: float32 [results, N, H, W, 4], 0 outside the ROI; None without a label head.
    """

    values: np.ndarray
    std: np.ndarray | None
    label_probabilities: np.ndarray | None


class Inpainter:
    """A trained model and its sampler.

    Examples:
        An axial slice of T1, T1CE, T2 and FLAIR, here a plain disk; background is 0.

        >>> import numpy as np
        >>> from mbti_jax import Inpainter, Rois, Sampling
        >>> rows, columns = np.mgrid[:240, :240]
        >>> brain = np.hypot(rows - 120, columns - 120) < 70
        >>> image = np.repeat(500 * brain[..., None], 4, axis=-1).astype(np.uint16)
        >>> mask = np.zeros(brain.shape, bool)
        >>> mask[100:130, 90:120] = True
        >>> rois = Rois.of({"normal": mask}, mask.shape, box=("normal",))
        >>> inpainter = Inpainter.load("phantom")  # or the folder of a training run
        >>> sampling = Sampling(seed=1, num_steps=2)
        >>> result = inpainter.inpaint(
        ...     image, rois, sampling, num_samples=4, intensity_range=(0, 1000)
        ... )
        >>> result
        InpaintedSlice(4 samples, 240 x 240 x 4 uint16: normal box of 900 pixels)
        >>> bool((result.images[:, ~mask] == image[~mask]).all())
        True

    Attributes:
        pipeline: network, process and tasks.
        metadata: what the checkpoint recorded (see `training.checkpoint`).
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
        report_every: int = 1,
    ):
        """Wraps averaged parameters and metadata as `load_model` returns them.

        Args:
            batch_size: slices sampled at once over all local devices. Every call is padded to it, so
                that one compiled program serves all; default 4 on CPUs (padding takes time), else 32.
            path: where they come from, for the provenance record.
            report_every: steps between two calls of `progress` and `cancel`.
        """
        self.metadata = metadata
        self.pipeline = Pipeline.from_contract(metadata["contract"])
        self.image_size = self.pipeline.image_size
        self.num_channels = self.pipeline.model.out_channels
        self.sequences = tuple(metadata["contract"]["data"]["sequences"])
        self._path = str(path)
        self._mesh = sharding.make_mesh(jax.local_devices())
        batch_size = batch_size or (4 if jax.default_backend() == "cpu" else 32)
        self.batch_size = sharding.padded_batch_size(batch_size, self._mesh, 1)
        self._params = jax.device_put(params, sharding.replicated(self._mesh))
        self._sampler = Sampler(self.pipeline.apply, self.pipeline.process)
        self._report_every = report_every

    @classmethod
    def load(cls, path: str | os.PathLike, batch_size: int | None = None) -> "Inpainter":
        """Loads a training run's newest checkpoint, an exported model, or "phantom", the bundled one.

        Raises:
            ValueError: there is nothing readable; see `load_model`.
        """
        return cls(*load_model(path), batch_size, path)

    @cached_property
    def checkpoint(self) -> dict[str, Any]:
        """What identifies the model, in JSON values; see `provenance.checkpoint_record`."""
        return provenance.checkpoint_record(self._path, self._params, self.metadata)

    @property
    def has_labels(self) -> bool:
        """Whether the model says what it painted: whether it has a label head."""
        return self.pipeline.model.label_head

    @property
    def neighbors(self) -> int:
        """K, how many slices on either side the model may see when it paints a volume."""
        return self.pipeline.model.neighbors

    def neighbors_at(self, slice_distance: float) -> int:
        """How many slices on either side the model sees in a volume, by their distance in mm.

        All that it may see where the distance is that of its training data (1 mm, if that is not
        recorded) to within 25%; else none, for it would take slices for neighbors that are not.
        """
        trained = self._slice_distance
        ratio = max(trained, slice_distance) / min(trained, slice_distance)
        return self.neighbors if ratio <= _SAME_DISTANCE else 0

    @property
    def _slice_distance(self) -> float:
        return self.metadata["contract"]["data"].get("slice_distance_mm") or 1.0

    @property
    def default_guidance_weight(self) -> float:
        """The guidance weight that the checkpoint recommends."""
        return float(self.metadata["inference"]["guidance_weight"])

    def resolve(self, sampling: Sampling, slice_distance: float | None = None) -> Sampling:
        """`sampling` with what the checkpoint recommends, and weight 0 for `mean_passes`.

        Where `z_sigma_mm` is open, slices that see each other are painted from independent noise, as in
        training, and others from noise that they share along z.

        Args:
            sampling: how samples are drawn.
            slice_distance: of the volume in mm; None for one that is like the training data.
        """
        if sampling.z_sigma_mm is None:
            distance = self._slice_distance if slice_distance is None else slice_distance
            z_sigma_mm = 0.0 if self.neighbors_at(distance) else _Z_SIGMA_MM
            sampling = dataclasses.replace(sampling, z_sigma_mm=z_sigma_mm)
        weight = 0.0 if sampling.mean_passes else self.default_guidance_weight
        sampling = sampling.resolved(self.pipeline.process, self.metadata["inference"])
        return dataclasses.replace(sampling, guidance=with_weight(sampling.guidance, weight))

    def passes(self, sampling: Sampling) -> dict[str, int]:
        """What a sample of one image costs: `evaluations` and `network_passes`, see `Sampler.passes`."""
        return self._sampler.passes(self.resolve(sampling))

    @suggesting_names
    def inpaint(
        self,
        image: np.ndarray,
        rois: Rois | Mapping[str, np.ndarray] | np.ndarray,
        sampling: Sampling = Sampling(),  # noqa: B008 (frozen)
        *,
        num_samples: int = 1,
        intensity_range: Sequence[float] | Sequence[tuple[float, float]] | None = None,
        labels: np.ndarray | None = None,
        slice_index: int = 0,
        brain_box: Sequence[int] | None = None,
        pixel_size: float | tuple[float, float] = 1.0,
        progress: Progress | None = None,
        cancel: Cancel | None = None,
    ) -> InpaintedSlice:
        """Repaints the ROIs of one slice of any size, in any units.

        The window that the model sees is placed, and the result pasted back, by the rule that
        `window` states. A model of one sequence that is given several paints them one by one with
        the same masks and noise.

        The result is a function of the arguments alone, whatever else is in the batch, as every call is
        padded to the inpainter's batch size. Other batch sizes round differently: by 1e-7 of the
        intensity range in float32, by 1e-3 in bfloat16 (64 x 64, 25 steps, on CPU).

        Args:
            image: [H, W], or [H, W, C] with sequences in the order of `sequences`; integers or floats;
                0 is background. Row 0 is anterior and column 0 the patient's right, as in training.
            rois: `Rois`, or free-form ROIs in any form that `Rois.of` takes.
            sampling: how the samples are drawn.
            num_samples: how many different results to make, or to take the mean of.
            intensity_range: (low, high) in the image's units that become -1 and 1 for the model, one
                pair or one for each sequence. Give the volume's (`tfds_brats.scale.fit_scale`); default
                are the slice's own percentiles, which shift with what the slice shows.
            labels: [H, W], the slice's canonical label map (0, 1 necrotic core, 2 edema, 3 enhancement,
                4 resection cavity), which the result's has outside the ROI. The image does not depend on
                it.
            slice_index: number of the slice in its volume, >= 0.
            brain_box: (y0, x0, y1, x1), half-open, of the brain in the volume; default the slice's.
            pixel_size: millimeters, one number or (height, width).
            progress: called with (steps done, steps in all).
            cancel: asked between chunks of steps; true raises `SamplingCancelled`.

        Raises:
            ValueError: an argument is not as above, or an image that is not finite, constant, or of
                another number of sequences than the model's.
            SamplingCancelled: `cancel` returned true.
        """
        image = np.asarray(image)
        values = checks.image_values(image)
        rois = Rois.of(rois, values.shape[:2])
        brain = (values != 0).any(-1)
        num_sequences = values.shape[-1]
        self.check_sequences(num_sequences)
        warnings = rois.warnings + checks.rois_in_brain(rois, brain)
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
        window = self._place_window(
            rois.union.shape,
            bounding_box(brain) if brain_box is None else checks.box_inside(brain_box, brain.shape),
            bounding_box(rois.union),
            pixel_size,
        )
        sampling = self.resolve(sampling)
        num_samples = whole_number("num_samples", num_samples, least=1)
        sampling.check_num_samples(num_samples)
        slice_index = whole_number("slice_index", slice_index)
        kept = None if labels is None else checks.given_labels(labels, brain.shape)
        painted = self._through_window(
            values[None],
            brain[None],
            rois[None],
            scales,
            window,
            sampling,
            samples=range(num_samples),
            slice_indices=[slice_index],
            progress=progress,
            cancel=cancel,
        )
        probabilities = painted.label_probabilities
        if probabilities is not None:
            probabilities = probabilities[:, 0]
        label_maps, label_record = label_map(rois, kept, probabilities)
        if label_maps is not None:
            label_maps = np.broadcast_to(label_maps, (len(painted.values), *brain.shape)).copy()
        inside = rois.union
        if image.ndim == 3:
            inside = np.repeat(inside[..., None], num_sequences, axis=-1)
        images, clipped = paste(image, painted.values[:, 0].reshape(-1, *image.shape), inside)
        std = None
        if painted.std is not None:
            std = np.where(inside, painted.std.reshape(image.shape), 0).astype(np.float32)
        elif num_samples > 1:
            std = standard_deviation(images, inside)
        drawn = {
            **sampling.record(),
            **self._sampler.passes(sampling),
            "num_samples": num_samples,
            "slice_index": slice_index,
        }
        details = provenance.record(
            self.checkpoint,
            sampling=drawn,
            rois=rois.record(brain),
            geometry=window.record(),
            intensity=scaling,
            sequences="together" if self.num_channels > 1 else "one by one, same masks and noise",
            clipped_to_dtype=clipped,
            labels=label_record,
            warnings=warnings,
            **({} if painted.std is None else _STD_RECORD),
        )
        return InpaintedSlice(images, std, rois, label_maps, probabilities, details, image)

    @suggesting_names
    def inpaint_volume(
        self,
        case: Case | Mapping[str, Any],
        rois: Any,
        sampling: Sampling = Sampling(z_sigma_mm=None),  # noqa: B008 (frozen)
        *,
        samples: Sequence[int] = (0,),
        sequences: Sequence[str] = (),
        slices: Sequence[int] = (),
        progress: Progress | None = None,
        cancel: Cancel | None = None,
    ) -> list[InpaintedVolume]:
        """Repaints the ROIs in samples of a case, which share the inpainter's batches, or in their mean.

        A model that sees neighbors paints all slices together: step by step, each seeing those around it
        as far as they are, and slices that are not repainted as they are. Where slices lie farther apart
        or closer than in training (see `neighbors_at`), a warning says that it does not.

        Args:
            case: the images, and the segmentation if it was read, which the label maps then have outside
                the ROI; or {sequence: path or nibabel image} of the NIfTI volumes.
            rois: `Rois` [Z, H, W]; or in any form that `inputs.rois_of` takes: a map of ROIs or {name:
                mask}, each as array [Z, H, W], path or nibabel image. `images` of a result are nibabel
                images again.
            sampling: how the samples are drawn.
            samples: numbers of the samples.
            sequences: those to repaint; empty for all that the case and the model have.
            slices: numbers of the slices to repaint; empty for all that have an ROI.
            progress: called with (steps done, steps in all).
            cancel: asked between chunks of steps; true raises `SamplingCancelled`.

        Raises:
            ValueError: no ROI in the slices, a slice that is not there, an ROI wholly outside of the
                brain, or sequences that the model cannot paint.
            SamplingCancelled: `cancel` returned true.
        """
        case = case_of(case)
        rois = rois_of(rois, case)
        sequences = self.sequences_of(case, sequences)
        numbers = _slice_numbers(rois.union, slices, case.subject)
        brain = to_slices(case.brain)
        try:
            warnings = rois.warnings + checks.rois_in_brain(rois, brain)
        except ValueError as error:
            raise CaseError(f"{case.subject}: {error}") from error
        scales = [case.scale(name) for name in sequences]
        window = self._place_window(
            brain.shape[1:], bounding_box(brain), bounding_box(rois.union), case.spacing[1::-1]
        )
        # Of those that are not repainted, but seen, nothing is taken.
        neighbors = self.neighbors_at(case.spacing[2])
        chosen, seen = rois.only(numbers), seen_slices(brain, numbers, neighbors)
        if neighbors < self.neighbors:
            warnings.append(
                f"the slices lie {case.spacing[2]:.3g} mm apart and those that the model learned "
                f"from {self._slice_distance:.3g} mm: each was painted without seeing its neighbors; "
                "resample the volume for results that hold together along z"
            )
        values = np.stack([to_slices(case.values(name))[seen] for name in sequences], axis=-1)
        sampling = self.resolve(sampling, case.spacing[2])
        sampling.check_num_samples(len(samples))
        painted = self._through_window(
            values,
            brain[seen],
            chosen[seen],
            scales,
            window,
            sampling,
            samples=samples,
            slice_indices=seen,
            slice_distance=case.spacing[2],
            progress=progress,
            cancel=cancel,
        )
        together = self.num_channels > 1
        passes = self._sampler.passes(sampling)
        values = values[np.isin(seen, numbers)]
        details = {
            "slices": numbers.tolist(),
            "rois": chosen.record(brain),
            "geometry": window.record(),
            "intensity": {
                **provenance.scale_record(scales, "the volume"),
                "slice_scale_shift": _slice_scale_shift(values, brain[numbers], scales),
            },
            "sequences": {
                "names": list(sequences),
                "painted": "together" if together else "one by one, same mask and noise",
            },
            "warnings": warnings + case.warnings,
            **({"neighbors": neighbors} if self.neighbors else {}),
        }
        kept = None if case.labels is None else to_slices(case.labels)

        def by_sequence(values: np.ndarray, dtype: Any = np.float64) -> dict[str, np.ndarray]:
            out = {name: np.zeros(brain.shape, dtype) for name in sequences}
            for c, name in enumerate(sequences):
                out[name][numbers] = values[..., c]
            return out

        std = None
        if painted.std is not None:
            inside = chosen.union[numbers][..., None]
            std = by_sequence(np.where(inside, painted.std, 0), np.float32)
        is_mean = sampling.estimate == "mean"
        drawn = (
            [{"samples": [*map(int, samples)]}]
            if is_mean
            else [{"sample": int(n)} for n in samples]
        )
        results = []
        for row, numbered in enumerate(drawn):
            everywhere = None
            if painted.label_probabilities is not None:
                everywhere = np.zeros((*brain.shape, NUM_LABELS), np.float32)
                everywhere[numbers] = painted.label_probabilities[row]
            labels, label_record = label_map(
                chosen, kept, None if everywhere is None else everywhere[None]
            )
            labels = None if labels is None else labels[0]
            record = {
                "sampling": {**sampling.record(), **passes, **numbered},
                **details,
                "labels": label_record,
                **({} if std is None else _STD_RECORD),
            }
            values = by_sequence(painted.values[row])
            parts = (values, std, chosen, labels, everywhere, record)
            results.append(InpaintedVolume(*parts, case, self.checkpoint))
        return results

    def sample(
        self,
        images: np.ndarray,
        condition: Condition,
        sampling: Sampling = Sampling(),  # noqa: B008 (frozen)
        *,
        samples: Sequence[int] = (0,),
        slice_indices: Sequence[int] | np.ndarray | None = None,
        slice_distance: float | None = None,
        progress: Progress | None = None,
        cancel: Cancel | None = None,
    ) -> Samples:
        """Repaints slices that are already in the model's size and intensity units.

        A model of one sequence paints several one by one, with the same masks and noise. Of the estimate
        "mean" these are the samples that the mean is taken of.

        Args:
            images: float32 [N, S, S, Q] with S = `image_size`, background -1; Q = `num_channels`, or
                any number for a model of one sequence.
            condition: of N examples.
            sampling: how the samples are drawn.
            samples: numbers of the samples to make. The noise of an example is a function of (seed,
                sample, slice index, position).
            slice_indices: ints [N]; default 0.
            slice_distance: of neighboring slices in millimeters, if the examples are slices of one
                volume, each with a number of its own. A model that sees neighbors at that distance (see
                `neighbors_at`) paints them together then, and slices without ROI may be among them,
                which are seen and come back as they are. None for examples that are painted as if alone;
                with `sampling.z_sigma_mm` it is 1 mm.
            progress: called with (steps done, steps in all) over all batches.
            cancel: asked between chunks of steps; true raises `SamplingCancelled`.

        Raises:
            ValueError: shapes do not fit the model, an empty ROI, a sampling that the model does not
                know, or two slices of a volume with one number.
            SamplingCancelled: `cancel` returned true.
        """
        sampling = self.resolve(sampling)
        self._check_sampling(sampling, samples)
        num_examples, *_, num_sequences = images.shape
        expected = (num_examples, self.image_size, self.image_size, self.num_channels)
        given = images
        if self.num_channels == 1:
            # Sequences become examples: [N, S, S, Q] -> [N Q, S, S, 1].
            images = np.moveaxis(images, -1, 1).reshape(-1, *images.shape[1:3], 1)
        if images.shape[1:] != expected[1:]:
            raise ValueError(f"images have shape {images.shape}, the model wants {expected}")
        indices = (
            np.zeros(num_examples, int) if slice_indices is None else np.asarray(slice_indices)
        )
        has_roi = np.asarray(condition.roi.any(axis=(1, 2, 3)))
        seen = 0 if slice_distance is None else self.neighbors_at(slice_distance)
        if not (has_roi.any() if seen else has_roi.all()):
            raise ValueError("an example has an empty ROI: there is nothing to inpaint")
        per_example = len(images) // num_examples
        is_sampled = np.repeat(has_roi, per_example)
        # Row by row of what is sampled: sample, example, sequence.
        image_of = np.tile(np.flatnonzero(is_sampled), len(samples))
        example_of = image_of // per_example
        sample_of = np.repeat(np.asarray(samples), is_sampled.sum())
        # The padding repeats the first row of a batch; what becomes of it is thrown away.
        count = len(image_of)
        starts = np.arange(0, count, self.batch_size)[:, None]
        padded = starts + np.arange(self.batch_size)
        padded = np.where(padded < count, padded, starts)

        def batch(rows: np.ndarray) -> Batch:
            noise, keys = start_noise(
                sampling.seed,
                sample_of[rows],
                indices[example_of[rows]],
                expected[1:],
                (sampling.z_sigma_mm or 0.0) / (slice_distance or 1.0),
            )
            made = Batch(noise, images[image_of[rows]], condition[example_of[rows]], keys)
            return jax.device_put(made, sharding.batch_sharding(self._mesh))

        low, high = self.metadata["inference"]["x_0_bounds"]
        options: dict[str, Any] = {"clip": (low, high), "cancel": cancel}
        if seen:
            around = neighbor_rows(
                indices,
                has_roi,
                seen,
                per_slice=per_example,
                num_samples=len(samples),
                first_still=padded.size,
            )
            surroundings = Surroundings(around[padded.ravel()], images[~is_sampled])
            batches = [batch(rows) for rows in padded]
            made = iter(
                self._sampler.together(
                    self._params, batches, surroundings, sampling, progress=progress, **options
                )
            )
        else:
            made = self._one_by_one(map(batch, padded), len(padded), sampling, progress, options)
        out = np.empty((count, *expected[1:]), np.float32)
        labeled = self.has_labels
        probabilities = np.empty((count * labeled, *expected[1:3], NUM_LABELS), np.float32)
        for first, result in zip(starts[:, 0], made, strict=True):
            rows = slice(first, min(first + self.batch_size, count))
            out[rows] = jax.device_get(result.x_0)[: rows.stop - first]
            if labeled:
                shares = jax.nn.softmax(result.label_logits)
                probabilities[rows] = jax.device_get(shares)[: rows.stop - first]

        def whole(sampled: np.ndarray, others: Any) -> np.ndarray:
            """[samples, examples, sequences, ...] with what is sampled, and the others."""
            full = np.empty((len(samples), len(images), *sampled.shape[1:]), np.float32)
            full[:, is_sampled] = sampled.reshape(len(samples), -1, *sampled.shape[1:])
            full[:, ~is_sampled] = others
            return full.reshape(len(samples), num_examples, per_example, *sampled.shape[1:])

        # Either there is one sequence per example, or one channel per image.
        full = whole(check_finite(out, sampling), images[~is_sampled])
        painted = np.moveaxis(full, 2, -1).reshape(*full.shape[:2], *expected[1:3], num_sequences)
        if sampling.blend:
            size = self._window_mm / self.image_size
            for sample, n in np.ndindex(*painted.shape[:2]):
                masks = condition.roi_masks[n] > 0
                painted[sample, n] = blend_normal_tissue(
                    painted[sample, n], given[n], masks, (size, size)
                )
        if not labeled:
            return Samples(painted, None)
        return Samples(painted, whole(check_finite(probabilities, sampling), 0.0).mean(2))

    def _one_by_one(
        self,
        batches: Iterable[Batch],
        count: int,
        sampling: Sampling,
        progress: Progress | None,
        options: Mapping[str, Any],
    ) -> Iterator[Denoised]:
        """Samples `count` batches one after the other."""
        for number, batch in enumerate(batches):

            def report(done: int, total: int, number: int = number) -> None:
                if progress is not None:
                    progress(number * total + done, count * total)

            yield self._sampler(
                self._params,
                *batch,
                sampling,
                chunk=self._report_every,
                progress=report,
                **options,
            )

    def labels_of(self, images: np.ndarray, condition: Condition, sampling: Sampling) -> np.ndarray:
        """What the label head says of slices as they are, for measuring how well it is calibrated.

        It sees them as at a sampling's last evaluation: noised inside the ROI, to that step's level.

        Args:
            images, condition: as for `sample`.
            sampling: whose last step and seed count.

        Returns:
            float32 [N, S, S, 4], see `Samples.label_probabilities`.

        Raises:
            ValueError: the model has no label head, or the sampling is none that it knows.
        """
        if not self.has_labels:
            raise ValueError("the model has no label head")
        sampling = self.resolve(sampling)
        process, count, joint = self.pipeline.process, len(images), self.num_channels > 1
        time = np.int32(sampling.timesteps(process.num_timesteps)[-1])

        @jax.jit
        def one_batch(params: Params, image: Images, eps: Images, condition: Condition) -> Any:
            t = jnp.full(len(image), time)
            x_t = process.corrupt(image, eps, t, condition.roi)
            return jax.nn.softmax(self.pipeline.apply(params, x_t, t, condition).label_logits)

        numbers = np.arange(count)
        eps, _ = start_noise(sampling.seed, 0 * numbers, numbers, images.shape[1:], 0.0)
        channels = [slice(None)] if joint else [slice(q, q + 1) for q in range(images.shape[-1])]
        out = np.empty((count, *images.shape[1:3], NUM_LABELS), np.float32)
        for first in range(0, count, self.batch_size):
            # Padded to one shape, as samples are.
            rows = np.minimum(np.arange(first, first + self.batch_size), count - 1)
            shares = [
                one_batch(self._params, images[rows][..., c], eps[rows][..., c], condition[rows])
                for c in channels
            ]
            out[rows] = np.mean(jax.device_get(shares), axis=0)
        return out

    def sequences_of(self, case: Case, wanted: Sequence[str] = ()) -> tuple[str, ...]:
        """Which sequences of a case the model shall repaint.

        Args:
            wanted: their names; empty for all that both the case and the model have.

        Raises:
            ValueError: the case lacks one, or the model does not know it or paints another set.
        """
        known = self.sequences
        chosen = tuple(wanted) or tuple(name for name in known if name in case.images)
        if self.num_channels > 1 and not wanted:
            chosen = known
        for name in chosen:
            if name not in known:
                raise ValueError(f"the model was not trained on {name}, but on {', '.join(known)}")
            if name not in case.images:
                raise CaseError(f"{case.subject}: has no {name} image, which the model needs")
        if not chosen:
            raise CaseError(f"{case.subject}: has none of the model's sequences {', '.join(known)}")
        if self.num_channels > 1 and chosen != known:
            raise ValueError(
                f"this model paints {', '.join(known)} together and cannot leave one out; got "
                f"{', '.join(chosen)}"
            )
        return chosen

    def check_sequences(self, count: int) -> None:
        """Raises ValueError if the model cannot paint images of `count` sequences."""
        if self.num_channels not in (1, count):
            raise ValueError(
                f"the image has {count} sequence{'s' * (count > 1)}, but this model paints "
                f"{self.num_channels} together: {', '.join(self.sequences)}"
            )

    def _check_sampling(self, sampling: Sampling, samples: Sequence[int]) -> None:
        """Raises ValueError for a sampler that does not fit, and for a regressor's guidance."""
        self.pipeline.process.check_sampler(sampling.sampler)
        if not self.pipeline.process.is_stochastic and (
            any(samples) or sampling.guidance != ClassifierFree(0.0) or sampling.estimate == "mean"
        ):
            raise ValueError(
                "this model is a regressor, which has one result and no guidance: ask for one sample, "
                "not for a mean, and a guidance weight of 0"
            )

    @property
    def _window_mm(self) -> float:
        data = self.metadata["contract"]["data"]
        # In training it counts pixels; where their size is not recorded, it was 1 mm.
        return data["window"] * (data.get("pixel_size_mm") or 1)

    def _place_window(
        self,
        shape: tuple[int, int],
        brain_box: Sequence[int],
        roi_box: Sequence[int],
        pixel_size: float | Sequence[float],
    ) -> Window:
        return Window.place(
            shape,
            brain_box,
            roi_box,
            window=self._window_mm,
            image_size=self.image_size,
            pixel_size=checks.pixel_sizes(pixel_size),
        )

    def _through_window(
        self,
        values: np.ndarray,
        brain: np.ndarray,
        rois: Rois,
        scales: Sequence[IntensityScale],
        window: Window,
        sampling: Sampling,
        **options: Any,
    ) -> _Painted:
        """Repaints slices of one volume in its units.

        Args:
            values: [N, H, W, Q].
            brain: bool [N, H, W].
            rois: [N, H, W]. Of slices without any, nothing is returned.
            scales: one for each sequence.
            window: of all slices.
            sampling, **options: see `sample`.
        """
        images = np.stack(
            [window.to_model(v, b, scales) for v, b in zip(values, brain, strict=True)]
        )
        condition = Condition.stack([window.condition(rois[n]) for n in range(len(values))])
        # Blended at the slices' own resolution, below.
        drawn = dataclasses.replace(sampling, blend=False)
        painted, probabilities = self.sample(images, condition, drawn, **options)
        repainted = np.flatnonzero(rois.union.any((1, 2)))

        def to_slice(image: np.ndarray, n: int) -> np.ndarray:
            back = window.to_slice(image)
            if not sampling.blend:
                return back
            context = np.stack([s.to_model(values[n, ..., c]) for c, s in enumerate(scales)], -1)
            context = np.where(brain[n, ..., None], context, BACKGROUND)
            return blend_normal_tissue(back, context, rois.masks[n], window.pixel_size)

        def in_units() -> Iterator[np.ndarray]:
            for slices in painted:
                out = np.empty((len(repainted), *values.shape[1:]), np.float64)
                for place, n in enumerate(repainted):
                    back = to_slice(slices[n], int(n))
                    for c, scale in enumerate(scales):
                        out[place, ..., c] = scale.to_values(back[..., c])
                yield out

        shares = None
        if probabilities is not None:
            shape = (len(painted), len(repainted), *values.shape[1:-1], NUM_LABELS)
            shares = np.zeros(shape, np.float32)
            for sample, place in np.ndindex(*shape[:2]):
                n = repainted[place]
                roi = condition.roi[n, ..., 0]
                back = window.probabilities_to_slice(probabilities[sample, n], roi)
                shares[sample, place] = np.where(rois.union[n][..., None], back, 0)
        if sampling.estimate == "sample":
            out = np.empty((len(painted), len(repainted), *values.shape[1:]), np.float64)
            for sample, slices in enumerate(in_units()):
                out[sample] = slices
            return _Painted(out, None, shares)
        mean, std = mean_and_deviation(in_units())
        return _Painted(mean[None], std, None if shares is None else shares.mean(0, keepdims=True))


def _slice_numbers(roi: np.ndarray, slices: Sequence[int], subject: str) -> np.ndarray:
    with_roi = np.flatnonzero(roi.any(axis=(1, 2)))
    if not len(slices):
        if not len(with_roi):
            raise CaseError(f"{subject}: the ROI is empty: there is nothing to inpaint")
        return with_roi
    for number in slices:
        if not 0 <= number < len(roi):
            raise CaseError(f"{subject}: has no slice {number}; it has 0 to {len(roi) - 1}")
        if number not in with_roi:
            first, last = with_roi[[0, -1]] if len(with_roi) else (None, None)
            raise CaseError(
                f"{subject}: slice {number} has no ROI; ROIs are in slices {first} to {last}"
            )
    return np.unique(slices)


def _slice_scale_shift(
    values: np.ndarray, brain: np.ndarray, scales: Sequence[IntensityScale]
) -> list[float | None]:
    """By how much scales fitted to single slices would differ: median of high / high - 1, a sequence."""
    out = []
    for c, scale in enumerate(scales):
        shifts = []
        for image, inside in zip(values[..., c], brain, strict=True):
            try:
                shifts.append(fit_scale(image, inside).high / scale.high - 1)
            except ValueError:  # A slice without enough brain has no scale.
                continue
        out.append(float(np.median(shifts)) if shifts else None)
    return out
