"""What every part of an evaluation works with: slices by split, and a way to repaint them.

Training, validation and test are splits by patient. What is learnt for an evaluation (segmenters) is
learnt from the training split, what is scored comes from the test split: the generator's own folds.
"""

import dataclasses
import hashlib
import os
from collections.abc import Sequence
from pathlib import Path

import jax
import numpy as np
from tqdm import tqdm

from mbti_jax.data import loader
from mbti_jax.inference.inpainter import Inpainter
from mbti_jax.inference.provenance import digest
from mbti_jax.io.files import replacing
from mbti_jax.rois.kinds import CHANNELS
from mbti_jax.rois.regions import box_flags, fill_boxes
from mbti_jax.rois.tasks import CLASS_BOX, CLASS_EMPTY, CLASS_FREE_FORM
from tfds_brats.cases import CaseFiles, find_cases
from tfds_brats.reading import SliceSource

# Records decoded and resized together.
_READ_AT_ONCE = 32


@dataclasses.dataclass(frozen=True)
class LabelledSlices:
    """Slices in the model's size and units.

    Attributes:
        images: float32 [N, S, S, Q], one channel a sequence, background -1.
        labels: uint8 [N, S, S], the canonical label map.
        subjects: str [N].
        slice_indices: int [N], positions along z in the volumes.
    """

    images: np.ndarray
    labels: np.ndarray
    subjects: np.ndarray
    slice_indices: np.ndarray

    def __len__(self) -> int:
        return len(self.images)

    def take(self, rows: np.ndarray | slice) -> "LabelledSlices":
        """The slices at `rows`: numbers, or bool [N]."""
        return LabelledSlices(
            *(getattr(self, field.name)[rows] for field in dataclasses.fields(self))
        )

    @classmethod
    def joined(cls, *parts: "LabelledSlices") -> "LabelledSlices":
        """The slices of the parts, one after the other."""
        return cls(
            *(
                np.concatenate([getattr(part, field.name) for part in parts])
                for field in dataclasses.fields(cls)
            )
        )

    @property
    def brain(self) -> np.ndarray:
        """bool [N, S, S]."""
        return (self.images != -1).any(-1)


@dataclasses.dataclass(frozen=True)
class Tasks:
    """What to repaint where.

    Attributes:
        roi_masks: bool [N, S, S, 5], boxes filled.
        class_vectors: float32 [N, 5], see `tasks`.
    """

    roi_masks: np.ndarray
    class_vectors: np.ndarray

    @property
    def roi(self) -> np.ndarray:
        """bool [N, S, S]."""
        return self.roi_masks.any(-1)

    @classmethod
    def of(cls, masks: np.ndarray, box: Sequence[str] = ()) -> "Tasks":
        """Tasks of bool masks [N, S, S, 5]; the channels named in `box` become bounding boxes."""
        flags = box_flags(box)
        filled = fill_boxes(masks, flags)
        mode = np.where(flags, CLASS_BOX, CLASS_FREE_FORM)
        return cls(filled, np.where(masks.any((1, 2)), mode, CLASS_EMPTY).astype(np.float32))

    @classmethod
    def joined(cls, *parts: "Tasks") -> "Tasks":
        """The tasks of the parts, one after the other."""
        return cls(
            np.concatenate([part.roi_masks for part in parts]),
            np.concatenate([part.class_vectors for part in parts]),
        )

    @classmethod
    def components(cls, labels: np.ndarray, box: Sequence[str] = ()) -> "Tasks":
        """The components of label maps uint8 [N, S, S] where they are; paper, scenario 1."""
        masks = np.zeros((*labels.shape, len(CHANNELS)), bool)
        for channel in (1, 2, 3):
            masks[..., channel] = labels == channel
        return cls.of(masks, box)

    @classmethod
    def whole(cls, regions: np.ndarray, name: str, box: bool) -> "Tasks":
        """One ROI `name` ("normal" or "tumor") on bool regions [N, S, S]; scenarios 2 and 3."""
        masks = np.zeros((*regions.shape, len(CHANNELS)), bool)
        masks[..., CHANNELS.index(name)] = regions
        return cls.of(masks, (name,) if box else ())


class Setting:
    """A model, a dataset with its cases, and a folder for what is sampled on the way.

    Attributes:
        inpainter: the model that is evaluated.
        sequences: names of the Q sequences, in the order of the images' channels.
        seed: of everything that is drawn.
        folder: for what is made on the way and kept in case the run stops: samples, segmenters.
        held_out: whether the model was trained on this dataset's training split, so that the test split
            is known to be unseen; False where the model comes from other data.
    """

    def __init__(
        self,
        inpainter: Inpainter,
        dataset: str | os.PathLike,
        source: str | os.PathLike,
        convention: str,
        folder: Path,
        seed: int,
    ):
        """Opens what `builder.build(source, convention, dataset)` made.

        Args:
            folder: as of the attribute.
        """
        self.inpainter, self.folder, self.seed = inpainter, folder, seed
        self.sequences = inpainter.sequences
        self._dataset, self._source, self._convention = dataset, source, convention
        contract = inpainter.metadata["contract"]["data"]
        self.held_out = contract["fingerprint"] == self.fingerprint("train")
        self._window = contract["window"]

    def fingerprint(self, split: str) -> str:
        """Changes when the records of the split do."""
        return SliceSource(self._dataset, split).fingerprint

    def patients(self, split: str) -> np.ndarray:
        """str: the patients of a split, each once."""
        return np.unique(SliceSource(self._dataset, split).index.patient)

    def cases(self, split: str) -> list[CaseFiles]:
        """The cases of a split, for what needs whole volumes."""
        subjects = set(SliceSource(self._dataset, split).index.subject.tolist())
        return [f for f in find_cases(self._source, self._convention) if f.subject in subjects]

    def slices(
        self, split: str, count: int, *, with_tumor: bool, least_area: int = 100
    ) -> LabelledSlices:
        """Slices of a split, spread evenly over its subjects and over each subject's slices.

        Args:
            split: "train", "validation" or "test".
            count: how many at most.
            with_tumor: those with at least `least_area` pixels of tumour; False for those without any.
            least_area: in the dataset's pixels, of tumour (with) or of brain (without).

        Raises:
            ValueError: the split has no such slice.
        """
        source = SliceSource(self._dataset, split)
        areas = source.index.tumor_area
        fits = areas >= least_area
        if not with_tumor:
            fits = (areas == 0) & (source.index.brain_area >= least_area)
        found = np.flatnonzero(fits)
        if not len(found):
            kind = "with" if with_tumor else "without"
            raise ValueError(f"the {split} split of {self._dataset} has no slice {kind} tumour")
        # The middle of each of `count` equal stretches: not the first and last slices of the split.
        stretches = min(count, len(found))
        records = found[((np.arange(stretches) + 0.5) * len(found) / stretches).astype(int)]
        examples = loader.Examples(source, self.sequences, together=True, window=self._window)
        resized = jax.jit(self.inpainter.method.resized)
        images, labels = [], []
        for start in range(0, len(records), _READ_AT_ONCE):
            rows = records[start : start + _READ_AT_ONCE]
            # The last batch is filled up, so that one compiled program serves all.
            padded = np.resize(rows, _READ_AT_ONCE)
            batch = loader.stack([examples[examples.of_record(int(i))[0]] for i in padded])
            part = jax.device_get(resized(batch))
            images.append(part[0][: len(rows)])
            labels.append(part[1][: len(rows)])
        return LabelledSlices(
            np.concatenate(images),
            np.concatenate(labels),
            source.index.subject[records],
            source.index.slice_index[records],
        )

    def repaint(
        self,
        slices: LabelledSlices,
        tasks: Tasks,
        *,
        name: str,
        num_samples: int = 1,
        num_steps: int = 50,
        guidance_weight: float | None = None,
        noise_numbers: np.ndarray | None = None,
        inpainter: Inpainter | None = None,
    ) -> np.ndarray:
        """Samples of slices; what was sampled before is read from the folder.

        A model of one sequence paints the sequences one by one, with the same masks and noise.

        Args:
            name: what the progress bar says.
            guidance_weight: w; default the checkpoint's.
            noise_numbers: int [N]; slices of the same number get the same noise. Default 0 to N - 1.
            inpainter: another model than the setting's.

        Returns:
            float32 [num_samples, N, S, S, Q], equal to the images outside the ROI.
        """
        inpainter = inpainter or self.inpainter
        weight = inpainter.default_guidance_weight if guidance_weight is None else guidance_weight
        if noise_numbers is None:
            noise_numbers = np.arange(len(slices))
        sampling = {"seed": self.seed, "num_steps": num_steps, "guidance_weight": weight}
        arrays = (slices.images, tasks.roi_masks, tasks.class_vectors)
        key = digest(
            {
                **{"weights": inpainter.checkpoint["weights_sha256"], **sampling},
                "num_samples": num_samples,
                "subjects": slices.subjects.tolist(),
                "slices": slices.slice_indices.tolist(),
                "noise_numbers": noise_numbers.tolist(),
                "arrays": [array_digest(array) for array in arrays],
            }
        )
        path = self.folder / f"{key[:32]}.npy"
        if path.is_file():
            return np.load(path)
        repeats = 1 if inpainter.num_channels > 1 else slices.images.shape[-1]
        images = slices.images
        if inpainter.num_channels == 1:
            # Sequences become examples: [N, S, S, Q] -> [N Q, S, S, 1].
            images = np.moveaxis(images, -1, 1).reshape(-1, *images.shape[1:3], 1)
        numbers = np.repeat(np.arange(len(slices)), repeats)
        order = np.tile(np.arange(len(images)), num_samples)
        with tqdm(total=100, desc=name, unit="%", leave=False) as bar:
            painted = inpainter.sample(
                images[order],
                tasks.roi_masks[numbers[order]].astype(np.float32),
                tasks.class_vectors[numbers[order]],
                samples=np.repeat(np.arange(num_samples), len(images)),
                # By number, not by position in a volume: slices of two subjects do not share noise.
                slice_indices=noise_numbers[numbers[order]],
                progress=lambda done, total: bar.update(100 * done // total - bar.n),
                **sampling,
            )
        painted = painted.reshape(num_samples, len(slices), repeats, *painted.shape[1:])
        painted = np.moveaxis(painted, 2, -1).reshape(num_samples, *slices.images.shape)
        with replacing(path) as beside:
            np.save(beside, painted)
        return painted


def array_digest(array: np.ndarray) -> str:
    """Data type, shape and SHA-256 of the numbers."""
    content = hashlib.sha256(np.ascontiguousarray(array).tobytes()).hexdigest()
    return f"{array.dtype} {array.shape} {content}"
