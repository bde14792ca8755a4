"""`WindowSampler`: a trained model and its sampler, on windows of the model's own size."""

import dataclasses
import os
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any, Self

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
from mbti_jax.fields import suggesting_names
from mbti_jax.inference import checks, provenance
from mbti_jax.inference.blending import blend_normal_tissue
from mbti_jax.inference.inpainted import Samples
from mbti_jax.inference.load import load_model, other_model
from mbti_jax.inference.stacks import neighbor_rows
from mbti_jax.models.parameters import Params
from mbti_jax.models.pipeline import Pipeline
from mbti_jax.rois.kinds import NUM_LABELS
from tfds_brats.cases import Case
from tfds_brats.conventions import CaseError

# Of the noise of volumes whose slices are painted without seeing each other.
_Z_SIGMA_MM = 2.0


class WindowSampler:
    """A trained model and its sampler.

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

    def __repr__(self) -> str:
        paints = "together" if self.num_channels > 1 else "one at a time"
        return f"{type(self).__name__}({self._path!r}: {', '.join(self.sequences)}, {paints})"

    @classmethod
    @suggesting_names
    def load(cls, path: str | os.PathLike, batch_size: int | None = None) -> Self:
        """Loads a training run's newest checkpoint, an exported model, or one of `PRETRAINED`.

        Of those "phantom" paints t1, t1ce, t2 and flair together, "phantom_single" any of them alone.

        Raises:
            ValueError: there is nothing readable; see `load_model`.
        """
        return cls(*load_model(path), batch_size, path)

    def shrink_batch(self, num_images: int) -> None:
        """Makes batches no larger than for so many images; to be called before any is sampled."""
        enough = sharding.padded_batch_size(num_images, self._mesh, 1)
        self.batch_size = min(self.batch_size, enough)

    @property
    def name(self) -> str:
        """What the model was loaded by: a path, or the name of one that comes with the package."""
        return self._path

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

    def neighbors_at(self, slice_distance: float, sampling: Sampling) -> int:
        """How many slices on either side the model sees in a volume.

        All that it may see where it is as in training; else none, for it would take slices for neighbors
        that are not, or for signal what the noise of neighbors has in common.

        Args:
            slice_distance: in millimeters; that of the training data (1 mm, if that is not recorded) to
                within 25%.
            sampling: resolved; slices share their noise as far as in training, to within 25%.
        """
        trained, wanted = self.pipeline.z_sigma * self._slice_distance, sampling.z_sigma_mm or 0.0
        as_trained = checks.is_near(wanted, trained) if wanted and trained else wanted == trained
        near = checks.is_near(slice_distance, self._slice_distance)
        return self.neighbors if near and as_trained else 0

    @property
    def z_sigma_mm(self) -> float:
        """How far along z slices of a volume share their noise, where `Sampling` leaves it open.

        As in the training of a model that sees neighbors, if slices shared any there. A model that was
        trained with independent noise then sees none: what it paints when it does (0) is nearer to the
        truth, but flickers (docs/evaluation.md).
        """
        return self.pipeline.z_sigma * self._slice_distance or _Z_SIGMA_MM

    @property
    def _slice_distance(self) -> float:
        return self.metadata["contract"]["data"].get("slice_distance_mm") or 1.0

    @property
    def default_guidance_weight(self) -> float:
        """The guidance weight that the checkpoint recommends."""
        return float(self.metadata["inference"]["guidance_weight"])

    def resolve(self, sampling: Sampling) -> Sampling:
        """`sampling` with what the checkpoint recommends.

        A weight that is open is 0 for `mean_passes` and near the mean: guidance makes requested tumors
        clearer, and leaves normal tissue, which those are for, as it is, at twice the price
        (docs/evaluation.md).
        """
        if sampling.z_sigma_mm is None:
            sampling = dataclasses.replace(sampling, z_sigma_mm=self.z_sigma_mm)
        unguided = sampling.mean_passes or sampling.estimate == "near_mean"
        weight = 0.0 if unguided else self.default_guidance_weight
        sampling = sampling.resolved(self.pipeline.process, self.metadata["inference"])
        return dataclasses.replace(sampling, guidance=with_weight(sampling.guidance, weight))

    def passes(self, sampling: Sampling) -> dict[str, int]:
        """What a sample of one image costs: `evaluations` and `network_passes`, see `Sampler.passes`."""
        return self._sampler.passes(self.resolve(sampling))

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
        sampling = self.resolve(sampling if slice_distance else sampling.of_single_slices)
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
        seen = 0 if slice_distance is None else self.neighbors_at(slice_distance, sampling)
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
            size = self.window_mm / self.image_size
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
                problem = f"has no {name} image, but {', '.join(case.images)}"
                if self.num_channels > 1:
                    problem = f"has no {name} image, which the model needs{other_model(self.name)}"
                raise CaseError(f"{case.subject}: {problem}")
        if not chosen:
            raise CaseError(f"{case.subject}: has none of the model's sequences {', '.join(known)}")
        if self.num_channels > 1 and {*chosen} == {*known}:
            # In the order in which the model has learned them.
            chosen = known
        if self.num_channels > 1 and chosen != known:
            raise ValueError(
                f"this model paints {', '.join(known)} together and cannot leave one out; got "
                f"{', '.join(chosen)}{other_model(self.name)}"
            )
        return chosen

    def paints(self, sequences: Collection[str] | int) -> bool:
        """Whether the model can paint images that have these sequences, or so many without names."""
        if isinstance(sequences, int):
            return self.num_channels in (1, sequences)
        known = set(self.sequences) & set(sequences)
        return bool(known) if self.num_channels == 1 else len(known) == self.num_channels

    def check_sequences(self, count: int) -> None:
        """Raises ValueError if the model cannot paint images of `count` sequences."""
        if self.num_channels not in (1, count):
            raise ValueError(
                f"the image has {count} sequence{'s' * (count > 1)}, but this model paints "
                f"{self.num_channels} together: {', '.join(self.sequences)}{other_model(self.name)}"
            )

    def _check_sampling(self, sampling: Sampling, samples: Sequence[int]) -> None:
        """Raises ValueError for a sampler that does not fit, and for a regressor's guidance."""
        self.pipeline.process.check_sampler(sampling.sampler)
        if not self.pipeline.process.is_stochastic and (
            any(samples) or sampling.guidance != ClassifierFree(0.0) or sampling.is_mean
        ):
            raise ValueError(
                "this model is a regressor, which has one result and no guidance: ask for one sample, "
                "not for a mean, and a guidance weight of 0"
            )

    @property
    def window_mm(self) -> float:
        """Side of the square that the model sees, in mm."""
        data = self.metadata["contract"]["data"]
        # In training it counts pixels; where their size is not recorded, it was 1 mm.
        return data["window"] * (data.get("pixel_size_mm") or 1)
