"""What every part of an evaluation works with: a model, slices by split, and a way to repaint them.

Training, validation and test are splits by patient. What is learned for an evaluation (segmenters) is
learned from the training split, what is scored comes from the test split: the generator's own folds.
"""

import dataclasses
import functools
from pathlib import Path
from typing import Any

import numpy as np

from mbti_jax.data.loader import evenly_spaced
from mbti_jax.diffusion.condition import Condition
from mbti_jax.diffusion.processes import Process
from mbti_jax.diffusion.sampling import Sampling
from mbti_jax.evaluation.cache import array_digest, cached
from mbti_jax.evaluation.slices import LabeledSlices, SliceReader, check_pixels
from mbti_jax.fields import FieldError, check_fields
from mbti_jax.inference.inpainted import Samples
from mbti_jax.inference.inpainter import Inpainter
from mbti_jax.io.progress import progress_bar
from mbti_jax.models.contract import same_data
from tfds_brats.builder import BuiltDataset
from tfds_brats.cases import CaseFiles
from tfds_brats.reading import SliceSource, read_summary
from tfds_brats.search import find_cases


@dataclasses.dataclass(frozen=True)
class PartSettings:
    """What the settings of all parts have in common: their fields are checked by their types.

    Raises:
        FieldError: a field is not of its type.
    """

    def __post_init__(self):
        check_fields(self)

    def check_model(self, process: Process) -> None:
        """Checks how samples are drawn against a model's process, before anything is sampled.

        Raises:
            FieldError: more steps than it has timesteps, or a sampler that does not fit.
        """
        num_timesteps = process.num_timesteps
        for name in ("num_steps", "evaluations", "reference"):
            most = np.max(getattr(self, name, 0))
            if most > num_timesteps:
                raise FieldError(name, f"must be at most {num_timesteps}, as the model, not {most}")


class Workbench:
    """A model, a dataset with its cases, and a folder for intermediate results.

    Attributes:
        inpainter: the model that is evaluated.
        sequences: names of the Q sequences, in the order of the images' channels.
        dataset: slices and cases.
        folder: for intermediate results, kept in case the run stops: samples, segmenters.
        seed: of everything that is drawn.
        held_out: whether the model was trained on this dataset's training split, so that the test split
            is known to be unseen; False where the checkpoint names other data, which says nothing about
            what the model has seen.
    """

    def __init__(self, inpainter: Inpainter, dataset: BuiltDataset, folder: Path, seed: int):
        self.inpainter, self.dataset, self.folder, self.seed = inpainter, dataset, folder, seed
        self.sequences = inpainter.sequences
        check_pixels(inpainter, self.source("test"))
        contract = inpainter.metadata["contract"]["data"]
        trained = self.source("train")
        ours = {"fingerprint": trained.fingerprint, "phantoms": trained.phantoms}
        self.held_out = same_data(contract, ours)
        self._reader = functools.cache(lambda split: SliceReader(inpainter, self.source(split)))

    def source(self, split: str) -> SliceSource:
        """The records of a split."""
        return SliceSource(self.dataset.path, split)

    @property
    def warnings(self) -> dict[str, list[str]]:
        """What is implausible about test subjects, as the dataset's build counted it."""
        subjects = set(self.source("test").index.subject.tolist())
        warnings = read_summary(self.dataset.path).get("warnings", {})
        return {name: what for name, what in warnings.items() if name in subjects}

    def patients(self, split: str) -> np.ndarray:
        """str: the patients of a split, each once."""
        return np.unique(self.source(split).index.patient)

    def cases(self, split: str) -> list[CaseFiles]:
        """The cases of a split, for what needs whole volumes."""
        subjects = set(self.source(split).index.subject.tolist())
        cases = find_cases(self.dataset.source, self.dataset.convention)
        return [files for files in cases if files.subject in subjects]

    def slices(
        self, split: str, count: int, *, with_tumor: bool, min_area: int = 100
    ) -> LabeledSlices:
        """Slices of a split, spread evenly over its subjects and over each subject's slices.

        Args:
            split: "train", "validation" or "test".
            count: how many at most.
            with_tumor: those with at least `min_area` pixels of tumor; False for those without any.
            min_area: in the dataset's pixels, of tumor (with) or of brain (without).

        Raises:
            ValueError: the split has no such slice.
        """
        reader = self._reader(split)
        index = reader.source.index
        suitable = index.tumor_area >= min_area
        if not with_tumor:
            suitable = (index.tumor_area == 0) & (index.brain_area >= min_area)
        records = np.flatnonzero(suitable)
        if not len(records):
            kind = "with" if with_tumor else "without"
            raise ValueError(f"the {split} split of {self.dataset.path} has no slice {kind} tumor")
        return reader.read(records[evenly_spaced(len(records), count)].tolist())

    def with_and_without_tumor(
        self, split: str, count: int, min_brain_area: int
    ) -> tuple[LabeledSlices, LabeledSlices]:
        """As many slices with tumor as without, see `slices`."""
        without = self.slices(split, count, with_tumor=False, min_area=min_brain_area)
        return self.slices(split, count, with_tumor=True), without

    def record(self, num_steps: int) -> dict[str, Any]:
        """How a part's samples are drawn, for its result."""
        weight = self.inpainter.default_guidance_weight
        return {"num_steps": num_steps, "guidance_weight": weight}

    def repaint(
        self,
        slices: LabeledSlices,
        condition: Condition,
        sampling: Sampling,
        *,
        name: str,
        num_samples: int = 1,
        noise_numbers: np.ndarray | None = None,
    ) -> np.ndarray:
        """Samples of slices; those sampled before are read from the folder.

        Args:
            slices: N.
            condition: of N examples.
            sampling: how the samples are drawn.
            name: of the progress bar.
            num_samples: samples per slice.
            noise_numbers: int [N]; slices of the same number get the same noise. Default 0 to N - 1.

        Returns:
            float32 [num_samples, N, S, S, Q], equal to the images outside the ROI.
        """
        options = {"name": name, "num_samples": num_samples, "noise_numbers": noise_numbers}
        return self.sampled(slices, condition, sampling, **options).images

    def sampled(
        self,
        slices: LabeledSlices,
        condition: Condition,
        sampling: Sampling,
        *,
        name: str,
        num_samples: int = 1,
        noise_numbers: np.ndarray | None = None,
    ) -> Samples:
        """As `repaint`, with the probabilities of labels from a model with a label head."""
        # By number, not by position in a volume: slices of two subjects do not share noise.
        numbers = np.arange(len(slices)) if noise_numbers is None else noise_numbers
        sampling = self.inpainter.resolve(sampling.of_single_slices)
        request = {
            "weights": self.inpainter.checkpoint["weights_sha256"],
            "sampling": sampling.record(),
            "num_samples": num_samples,
            "noise_numbers": numbers.tolist(),
            "images": array_digest(slices.images),
            "roi_masks": array_digest(condition.roi_masks),
            "class_vector": array_digest(condition.class_vector),
        }

        def sample() -> dict[str, np.ndarray]:
            with progress_bar(name, leave=False) as progress:
                samples = self.inpainter.sample(
                    slices.images,
                    condition,
                    sampling,
                    samples=range(num_samples),
                    slice_indices=numbers,
                    progress=progress,
                )
            found = {"samples": samples.images}
            if samples.label_probabilities is not None:
                found["label_probabilities"] = samples.label_probabilities
            return found

        found = cached(self.folder, "slices", request, sample)
        return Samples(found["samples"], found.get("label_probabilities"))
