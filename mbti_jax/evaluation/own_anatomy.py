"""Test slices repainted where their own anatomy is, so that what was there is one answer of many.

Tumour is repainted where the slice has it, normal tissue in slices without tumour, in regions drawn as
for training. The same sizes give the same slices and samples to every part that asks.
"""

import dataclasses
import functools

import jax
import numpy as np

from mbti_jax.evaluation.setting import LabelledSlices, Setting, Tasks
from mbti_jax.rois.kinds import CHANNELS
from mbti_jax.rois.tasks import TaskConfig, sample_task
from tfds_brats.cases import is_tumor

KINDS = ("normal", "components", "tumor")
_TITLES = {"normal": "normal tissue", "components": "tumour components", "tumor": "mixed tumour"}
_COMPONENTS = CHANNELS[1:4]


@dataclasses.dataclass(frozen=True)
class Repainted:
    """Slices, what was repainted where, and the samples.

    Attributes:
        slices: N of the test split.
        tasks: of the slices, none empty.
        samples: float32 [num_samples, N, S, S, Q], equal to the images outside the ROI.
    """

    slices: LabelledSlices
    tasks: Tasks
    samples: np.ndarray

    def take(self, rows: np.ndarray) -> "Repainted":
        """The slices at `rows`, numbers or bool [N], with their samples."""
        tasks = Tasks(self.tasks.roi_masks[rows], self.tasks.class_vectors[rows])
        return Repainted(self.slices.take(rows), tasks, self.samples[:, rows])

    @property
    def sizes(self) -> dict[str, int]:
        """How many slices, subjects and samples of each slice, for reports."""
        return {
            "num_slices": len(self.slices),
            "num_subjects": len(np.unique(self.slices.subjects)),
            "num_samples": len(self.samples),
        }


def title(kind: str, box: bool = False) -> str:
    """The kind of task in words."""
    return f"{_TITLES[kind]}, {'box' if box else 'free-form'}"


def repaint(
    setting: Setting,
    kind: str,
    box: bool,
    *,
    num_slices: int,
    least_brain: int,
    num_steps: int,
    num_samples: int = 1,
) -> Repainted:
    """Repaints slices of the test split where their own anatomy is.

    Args:
        kind: of `KINDS`.
        box: bounding boxes instead of free-form ROIs.
        num_slices: how many at most, spread evenly over subjects.
        least_brain: pixels of brain, in the dataset's size, that slices without tumour must have.
        num_steps, num_samples: as of `Setting.repaint`.

    Raises:
        ValueError: the test split has no such slices, or an unknown kind.
    """
    if kind == "normal":
        slices = setting.slices("test", num_slices, with_tumor=False, least_area=least_brain)
    else:
        slices = setting.slices("test", num_slices, with_tumor=True)
    tasks = own_tasks(slices, kind, box, setting.inpainter.method.tasks, setting.seed)
    # In a small image the nearest pixels may miss a small tumour.
    there = tasks.roi.any((1, 2))
    if not there.any():
        raise ValueError(f"no slice of the test split has {title(kind, box)} to repaint")
    slices = slices.take(there)
    tasks = Tasks(tasks.roi_masks[there], tasks.class_vectors[there])
    samples = setting.repaint(
        slices,
        tasks,
        name=title(kind, box),
        num_samples=num_samples,
        num_steps=num_steps,
    )
    return Repainted(slices, tasks, samples)


def own_tasks(slices: LabelledSlices, kind: str, box: bool, config: TaskConfig, seed: int) -> Tasks:
    """Tasks that ask for what the slices hold.

    Args:
        kind: "components" (all that a slice has, each an ROI), "tumor" (its whole tumour as one ROI of
            mixed tumour) or "normal" (circles, or a rectangle, of tissue that is not tumour).
        box: bounding boxes instead of free-form ROIs.
        config: sizes of the ROIs of normal tissue.
        seed: of their places.

    Raises:
        ValueError: an unknown kind.
    """
    if kind == "components":
        return Tasks.components(slices.labels, _COMPONENTS if box else ())
    if kind == "tumor":
        return Tasks.whole(is_tumor(slices.labels), "tumor", box)
    if kind != "normal":
        raise ValueError(f"unknown kind of task {kind!r}; choose from {', '.join(KINDS)}")
    only_normal = dataclasses.replace(
        config, prob_tumor=0.0, prob_normal=1.0, prob_normal_box=float(box)
    )
    keys = jax.vmap(functools.partial(jax.random.fold_in, jax.random.key(seed)))(
        np.arange(len(slices))
    )
    draw = jax.jit(jax.vmap(functools.partial(sample_task, config=only_normal)))
    roi_masks, class_vectors = jax.device_get(draw(keys, slices.images, slices.labels))
    return Tasks(roi_masks > 0, class_vectors)
