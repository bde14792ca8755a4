"""Test slices with their own anatomy synthesized again, so that the real slice is one possible answer.

Tumor is repainted where the slice has it, normal tissue in slices without tumor, in regions drawn as
for training. The same sizes give the same slices and samples to every part that asks for them.
"""

import dataclasses
import functools

import jax
import numpy as np

from mbti_jax.diffusion.condition import Condition
from mbti_jax.diffusion.sampling import Sampling
from mbti_jax.evaluation.slices import LabeledSlices
from mbti_jax.evaluation.workbench import PartSettings, Workbench
from mbti_jax.fields import Count
from mbti_jax.rois.kinds import COMPONENTS
from mbti_jax.rois.tasks import TaskSettings, sample_task
from mbti_jax.rois.tumors import own_tumor

KINDS = {"normal": "normal tissue", "components": "tumor components", "tumor": "mixed tumor"}


@dataclasses.dataclass(frozen=True)
class ResynthesisSettings(PartSettings):
    """Free-form components and normal tissue; parts with the same settings share the samples.

    Attributes:
        num_slices: with tumor, whose components are repainted.
        num_normal_slices: without tumor, in which normal tissue is.
        min_brain_area: of a slice without tumor, in the dataset's pixels.
        num_steps: of the sampler.
    """

    num_slices: Count
    num_normal_slices: Count
    min_brain_area: Count
    num_steps: Count


@dataclasses.dataclass(frozen=True)
class Resynthesis:
    """Slices, what was repainted where, and the samples.

    Attributes:
        slices: N of the test split.
        condition: of the slices; no ROI is empty.
        samples: float32 [num_samples, N, S, S, Q], equal to the images outside the ROI.
    """

    slices: LabeledSlices
    condition: Condition
    samples: np.ndarray

    def __getitem__(self, rows: np.ndarray) -> "Resynthesis":
        """The slices at `rows`, numbers or bool [N], with their samples."""
        return Resynthesis(self.slices[rows], self.condition[rows], self.samples[:, rows])

    @property
    def roi(self) -> np.ndarray:
        """bool [N, S, S]."""
        return self.condition.roi[..., 0]

    @property
    def sizes(self) -> dict[str, int]:
        """How many slices, subjects and samples per slice, for reports."""
        return {
            "num_slices": len(self.slices),
            "num_subjects": len(np.unique(self.slices.subjects)),
            "num_samples": len(self.samples),
        }


def title(kind: str, box: bool = False) -> str:
    """The kind of task in words."""
    return f"{KINDS[kind]}, {'box' if box else 'free-form'}"


def resynthesize(
    workbench: Workbench,
    kind: str,
    box: bool = False,
    *,
    num_slices: int,
    min_brain_area: int,
    num_steps: int,
    num_samples: int = 1,
) -> Resynthesis:
    """Repaints the anatomy of slices of the test split.

    Args:
        kind: a key of `KINDS`.
        box: bounding boxes instead of free-form ROIs.
        num_slices: how many at most, spread evenly over subjects.
        min_brain_area: of slices without tumor, in the dataset's pixels.
        num_steps: of the sampler.
        num_samples: samples per slice.

    Raises:
        ValueError: the test split has no such slices, or an unknown kind.
    """
    if kind == "normal":
        slices = workbench.slices("test", num_slices, with_tumor=False, min_area=min_brain_area)
    else:
        slices = workbench.slices("test", num_slices, with_tumor=True)
    tasks = workbench.inpainter.pipeline.tasks
    condition = own_condition(slices, kind, box, tasks, workbench.seed)
    # In a small image the nearest pixels may miss a small tumor.
    has_roi = condition.roi.any((1, 2, 3))
    slices, condition = slices[has_roi], condition[has_roi]
    sampling, name = Sampling(num_steps=num_steps, seed=workbench.seed), title(kind, box)
    samples = workbench.repaint(slices, condition, sampling, name=name, num_samples=num_samples)
    return Resynthesis(slices, condition, samples)


def components_and_normal(
    workbench: Workbench, settings: ResynthesisSettings
) -> dict[str, Resynthesis]:
    """One sample of each slice, by kind."""
    counts = {"components": settings.num_slices, "normal": settings.num_normal_slices}
    return {
        kind: resynthesize(
            workbench,
            kind,
            num_slices=count,
            min_brain_area=settings.min_brain_area,
            num_steps=settings.num_steps,
        )
        for kind, count in counts.items()
    }


def own_condition(
    slices: LabeledSlices, kind: str, box: bool, tasks: TaskSettings, seed: int
) -> Condition:
    """Asks for what the slices hold.

    Args:
        slices: N.
        kind: "components" (all that a slice has, each an ROI), "tumor" (its whole tumor as one ROI of
            mixed tumor) or "normal" (circles, or a rectangle, of tissue that is not tumor).
        box: bounding boxes instead of free-form ROIs.
        tasks: sizes of the ROIs of normal tissue.
        seed: of their places.

    Raises:
        ValueError: an unknown kind, or no slice holds tumor.
    """
    tumor_modes = {"components": ("replace", COMPONENTS), "tumor": ("random", ("tumor",))}
    if kind in tumor_modes:
        mode, names = tumor_modes[kind]
        return own_tumor(slices.labels, slices.brain, mode, names if box else ()).condition()
    if kind != "normal":
        raise ValueError(f"unknown kind of task {kind!r}; choose from {', '.join(KINDS)}")
    only_normal = dataclasses.replace(
        tasks, prob_tumor=0.0, prob_normal=1.0, prob_normal_box=float(box)
    )
    fold_in = functools.partial(jax.random.fold_in, jax.random.key(seed))
    keys = jax.vmap(fold_in)(np.arange(len(slices)))
    draw = jax.jit(jax.vmap(functools.partial(sample_task, config=only_normal)))
    return jax.device_get(draw(keys, slices.images, slices.labels))
