"""The `Inpainter`: a trained model, ready to repaint regions of slices and volumes."""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from mbti_jax.diffusion.condition import Condition
from mbti_jax.diffusion.samplers.driver import Cancel, Progress
from mbti_jax.diffusion.sampling import Sampling
from mbti_jax.fields import suggesting_names, whole_number
from mbti_jax.inference import checks, provenance
from mbti_jax.inference.blending import blend_normal_tissue
from mbti_jax.inference.inpainted import InpaintedSlice, InpaintedVolume, InpaintedVolumes
from mbti_jax.inference.inputs import case_of, rois_of
from mbti_jax.inference.labels import label_map
from mbti_jax.inference.stacks import seen_slices
from mbti_jax.inference.window import Window
from mbti_jax.inference.window_sampler import WindowSampler
from mbti_jax.io.quantize import mean_and_deviation, paste, standard_deviation
from mbti_jax.rois.kinds import NORMAL, NUM_LABELS
from mbti_jax.rois.regions import Rois
from tfds_brats.cases import Case, is_tumor
from tfds_brats.conventions import CaseError
from tfds_brats.scale import BACKGROUND, IntensityScale
from tfds_brats.slices import bounding_box, to_slices

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


class Inpainter(WindowSampler):
    """A trained model that repaints regions of slices of any size and of volumes, in any units.

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
        >>> inpainter = Inpainter.load("phantom")  # "phantom_single" for fewer; or a run's folder
        >>> sampling = Sampling(seed=1, num_steps=2)
        >>> result = inpainter.inpaint(
        ...     image, rois, sampling, num_samples=4, intensity_range=(0, 1000)
        ... )
        >>> result
        InpaintedSlice(4 samples, 240 x 240 x 4 uint16: normal box of 900 pixels)
        >>> bool((result.images[:, ~mask] == image[~mask]).all())
        True
    """

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
            TypeError: `sampling` is no `Sampling`.
            ValueError: an argument is not as above, or an image that is not finite, constant, or of
                another number of sequences than the model's.
            SamplingCancelled: `cancel` returned true.
        """
        checks.is_sampling(sampling)
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
        sampling = self.resolve(sampling.of_single_slices)
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
        sampling: Sampling = Sampling(),  # noqa: B008 (frozen)
        *,
        samples: Sequence[int] = (0,),
        sequences: Sequence[str] = (),
        slices: Sequence[int] = (),
        progress: Progress | None = None,
        cancel: Cancel | None = None,
    ) -> InpaintedVolumes:
        """Repaints the ROIs in samples of a case, which share the inpainter's batches, or in their mean.

        A model that sees neighbors paints all slices together: step by step, each seeing those around it
        as far as they are, and slices that are not repainted as they are. It does not see those that
        would bring back what is to go (see `stacks.seen_slices`), nor any where slices lie farther apart
        or closer than in training (see `neighbors_at`), of which a warning tells.

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
            TypeError: `sampling` is no `Sampling`.
            ValueError: no ROI in the slices, a slice that is not there, an ROI wholly outside of the
                brain, or sequences that the model cannot paint.
            SamplingCancelled: `cancel` returned true.
        """
        checks.is_sampling(sampling)
        case = case_of(case)
        rois = rois_of(rois, case)
        sequences, numbers, warnings = self.repaintable(case, rois, sequences, slices)
        brain = to_slices(case.brain)
        scales = [case.scale(name) for name in sequences]
        window = self._place_window(
            brain.shape[1:], bounding_box(brain), bounding_box(rois.union), case.spacing[1::-1]
        )
        # Of those that are not repainted, but seen, nothing is taken.
        sampling = self.resolve(sampling)
        neighbors = self.neighbors_at(case.spacing[2], sampling)
        chosen = rois.only(numbers)
        kept = None if case.labels is None else to_slices(case.labels)
        normal = rois.masks[..., NORMAL]
        replaced = normal if kept is None else normal | is_tumor(kept)
        seen = seen_slices(brain, numbers, neighbors, normal, replaced)
        # Of slices painted alone none is kept.
        sees_any = bool((np.diff(seen) <= neighbors).any())
        pixel = self.metadata["contract"]["data"].get("pixel_size_mm")
        warnings += checks.voxel_sizes(
            case.spacing, pixel, self._slice_distance, self.neighbors > 0
        )
        values = np.stack([to_slices(case.values(name))[seen] for name in sequences], axis=-1)
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
            "geometry": {**window.record(), "spacing_mm": list(case.spacing)},
            "intensity": {
                **provenance.scale_record(scales, "the volume"),
                "slice_scale_shift": provenance.slice_scale_shift(values, brain[numbers], scales),
            },
            "sequences": {
                "names": list(sequences),
                "painted": "together" if together else "one by one, same mask and noise",
            },
            "warnings": warnings + case.warnings,
            **({"neighbors": neighbors * sees_any} if self.neighbors else {}),
        }

        def by_sequence(values: np.ndarray, dtype: Any = np.float64) -> dict[str, np.ndarray]:
            out = {name: np.zeros(brain.shape, dtype) for name in sequences}
            for c, name in enumerate(sequences):
                out[name][numbers] = values[..., c]
            return out

        std = None
        if painted.std is not None:
            inside = chosen.union[numbers][..., None]
            std = by_sequence(np.where(inside, painted.std, 0), np.float32)
        drawn = (
            [{"samples": [*map(int, samples)]}]
            if sampling.is_mean
            else [{"sample": int(n)} for n in samples]
        )
        results = InpaintedVolumes()
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

    def repaintable(
        self, case: Case, rois: Rois, sequences: Sequence[str] = (), slices: Sequence[int] = ()
    ) -> tuple[tuple[str, ...], np.ndarray, list[str]]:
        """What of a case is repainted, checked before anything is compiled.

        Args:
            case, rois, sequences, slices: see `inpaint_volume`.

        Returns:
            (sequences, numbers of slices, warnings about the ROIs).

        Raises:
            ValueError: as `inpaint_volume` does.
        """
        sequences = self.sequences_of(case, sequences)
        numbers = checks.slice_numbers(rois.union, slices, case.subject)
        try:
            warnings = rois.warnings + checks.rois_in_brain(rois, to_slices(case.brain))
        except ValueError as error:
            raise CaseError(f"{case.subject}: {error}") from error
        return sequences, numbers, warnings

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
            window=self.window_mm,
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
        if not sampling.is_mean:
            out = np.empty((len(painted), len(repainted), *values.shape[1:]), np.float64)
            for sample, slices in enumerate(in_units()):
                out[sample] = slices
            return _Painted(out, None, shares)
        mean, std = mean_and_deviation(in_units())
        return _Painted(mean[None], std, None if shares is None else shares.mean(0, keepdims=True))
