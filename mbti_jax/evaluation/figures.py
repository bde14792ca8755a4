"""The paper's figures on slices of a test split: what is painted where, the slices, the pictures."""

import collections
import dataclasses
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np

from mbti_jax.diffusion.condition import Condition
from mbti_jax.diffusion.sampling import Sampling
from mbti_jax.evaluation.slices import LabeledSlices, SliceReader, component_areas
from mbti_jax.fields import Count, FieldError, Interval, Share, check_fields, one_of
from mbti_jax.inference import provenance
from mbti_jax.inference.inpainter import Inpainter
from mbti_jax.inference.requests import is_done
from mbti_jax.io import files, pictures
from mbti_jax.io.progress import progress_bar
from mbti_jax.rois.kinds import COMPONENT_CHANNELS, COMPONENTS, KINDS, NORMAL, TUMOR
from mbti_jax.rois.regions import Rois
from mbti_jax.rois.tumors import own_tumor
from tfds_brats.reading import SliceSource
from tfds_brats.splits import SPLITS

# In addition to `tumors.MODES`: normal tissue where the tumor is, and a random one elsewhere.
_MOVE_RANDOM = "move random"
# How many places are tried for a tumor whose box must not touch what is removed.
_MAX_PLACES = 32

# A picture is no wider.
_MAX_PREDICTIONS = 100

# Settings that all figures depend on.
_REQUESTED = ("split", "min_component_area", "seed")
_DRAWN = ("num_steps", "sampler", "spacing", "eta")


@dataclasses.dataclass(frozen=True)
class Prediction:
    """One column of a figure.

    Attributes:
        mode: what is painted where, a key of `tumors.MODES` or "move random".
        box: names of the ROIs that are bounding boxes.
        seed, guidance_weight: of the sampler.
    """

    mode: str
    box: tuple[str, ...]
    seed: int
    guidance_weight: float

    @property
    def label(self) -> str:
        """The settings in words."""
        boxes = ", ".join(kind.title for kind in KINDS if kind.name in self.box)
        rois = f"box: {boxes}" if boxes else "free-form"
        return f"{rois}\nw = {self.guidance_weight:g}, seed {self.seed}"

    def record(self) -> dict[str, Any]:
        """In JSON values."""
        return {**dataclasses.asdict(self), "box": list(self.box)}


@dataclasses.dataclass(frozen=True)
class Figure:
    """What a figure shows.

    Attributes:
        name: as in the paper.
        title: in words.
        predictions: its columns.
    """

    name: str
    title: str
    predictions: tuple[Prediction, ...]

    @property
    def heading(self) -> str:
        """Name and title."""
        return f"Figure {self.name.upper()}. {self.title}"


@dataclasses.dataclass(frozen=True)
class FigureSettings:
    """Settings of all figures.

    Attributes:
        figures: names of those to draw.
        split: of the dataset.
        min_component_area: pixels that each component must have in a slice.
        seed: of the sampler, of the choice of slices and of the places where figure 1b inserts a tumor.
        num_steps, sampler, spacing, eta, guidance_weight: see `Sampling`.
        weights: guidance weights of figure 6.
        num_seeds: of figure 7.

    Raises:
        FieldError: a field is not as above.
    """

    figures: tuple[str, ...]
    split: str
    min_component_area: int
    seed: int
    num_steps: Count | None
    sampler: str | None
    spacing: str | None
    guidance_weight: float
    eta: Share
    weights: Annotated[tuple[float, ...], Interval(0, _MAX_PREDICTIONS)]
    num_seeds: Annotated[int, Interval(0, _MAX_PREDICTIONS)]

    def __post_init__(self):
        check_fields(self)
        one_of("split", self.split, SPLITS)
        known = self._known()
        if not self.figures or not {*self.figures} <= known.keys():
            names = ", ".join(known)
            raise FieldError("figures", f"must be chosen from {names}, not {list(self.figures)}")
        for figure in self.chosen():
            if not figure.predictions:
                raise ValueError(f"figure {figure.name} would be empty: set weights and num_seeds")
            for prediction in figure.predictions:
                self.sampling(prediction)

    def chosen(self) -> list[Figure]:
        """The figures to draw."""
        known = self._known()
        return [known[name] for name in self.figures]

    def sampling(self, prediction: Prediction) -> Sampling:
        """How a prediction is sampled."""
        return Sampling(
            self.num_steps,
            self.sampler,
            self.spacing,
            eta=self.eta,
            guidance=prediction.guidance_weight,
            seed=prediction.seed,
        )

    def _known(self) -> dict[str, Figure]:
        def shown(mode: str, *box: str) -> Prediction:
            return Prediction(mode, box, self.seed, self.guidance_weight)

        def free_form_and_box(mode: str, box: str) -> tuple[Prediction, ...]:
            return shown(mode), shown(mode, box)

        box, changed = shown("random", "tumor"), dataclasses.replace
        rising = tuple(changed(box, guidance_weight=float(weight)) for weight in self.weights)
        others = tuple(changed(box, seed=self.seed + n) for n in range(self.num_seeds))
        both = shown("move"), shown("move", "normal", "edema"), shown(_MOVE_RANDOM, "tumor")
        choice = "Tumor with components of the model's choice"
        instead = "Normal tissue instead of the tumor"
        figures = (
            Figure("3", "Components in given ROIs", free_form_and_box("replace", "edema")),
            Figure("4", choice, free_form_and_box("random", "tumor")),
            Figure("5", instead, free_form_and_box("remove", "normal")),
            Figure("6", "One seed, rising guidance weight", rising),
            Figure("7", "Different seeds", others),
            Figure("1b", "Removal and insertion in the same pass", both),
        )
        return {figure.name: figure for figure in figures}


@dataclasses.dataclass(frozen=True)
class Content:
    """The slices of a figure, a row for each sequence of the model, and their ROIs.

    Attributes:
        records: numbers of the slices in their split.
        slices: one per row.
        rois: for each prediction those of every row, [S, S].
    """

    records: list[int]
    slices: LabeledSlices
    rois: list[list[Rois]]

    def images(self, inpainter: Inpainter) -> np.ndarray:
        """The model's input of each row, [rows, S, S, C]: the row's sequence, or all of them."""
        if inpainter.num_channels > 1:
            return self.slices.images
        rows = np.arange(len(self.records))
        return self.slices.images[rows, ..., rows][..., None]


def draw_figures(
    inpainter: Inpainter, source: SliceSource, settings: FigureSettings, folder: Path
) -> None:
    """Draws the figures of the settings; those of the same request are kept.

    Raises:
        FieldError: more steps than the model has timesteps.
        ValueError: a figure that exists belongs to another request, or the split has too few slices.
    """
    process = inpainter.pipeline.process
    drawn = inpainter.resolve(Sampling(*(getattr(settings, name) for name in _DRAWN)))
    process.check_sampler(drawn.sampler)
    drawn.timesteps(process.num_timesteps)
    for figure in settings.chosen():
        path, record = (folder / f"figure_{figure.name}.{kind}" for kind in ("png", "json"))
        request = {
            "checkpoint": inpainter.checkpoint,
            "dataset": source.fingerprint,
            **{name: getattr(settings, name) for name in _REQUESTED},
            **{name: getattr(drawn, name) for name in _DRAWN},
            "predictions": [prediction.record() for prediction in figure.predictions],
        }
        done = " exists"
        if not (is_done(record, request) and path.is_file()):
            content, done = choose(inpainter, source, figure.predictions, settings), ""
            painted = _paint(inpainter, figure, content, settings)
            _draw(path, inpainter, figure, content, painted, drawn.num_steps)
            # Last, since it says that the figure is complete.
            files.write_json(record, {**_record(inpainter, figure, content), "request": request})
        logging.getLogger(__name__).info("figure %s%s: %s", figure.name, done, path)


def choose(
    inpainter: Inpainter,
    source: SliceSource,
    predictions: Sequence[Prediction],
    settings: FigureSettings,
) -> Content:
    """A random slice for each sequence that shows all components, and its ROIs.

    Raises:
        ValueError: the split has too few suitable slices.
    """
    reader = SliceReader(inpainter, source)
    records, slices, rois = [], [], []
    for record in in_random_order(source, settings.seed):
        if min(component_areas(source, record)) < settings.min_component_area:
            continue
        candidate = reader.read([record])
        try:
            rois.append(rois_of(candidate, predictions, settings.seed))
        except ValueError:
            # A component is lost in the model's size, or there is no room to move to.
            continue
        records.append(record)
        slices.append(candidate)
        if len(records) == len(inpainter.sequences):
            by_prediction = list(map(list, zip(*rois, strict=True)))
            return Content(records, LabeledSlices.concatenate(slices), by_prediction)
    raise ValueError(
        f"only {len(records)} of the {len(inpainter.sequences)} slices needed were found: the split "
        f"{settings.split} holds too few that show every component with "
        f"{settings.min_component_area} pixels and have room for what is painted; use more subjects "
        "or a smaller min_component_area"
    )


def in_random_order(source: SliceSource, seed: int) -> list[int]:
    """Records with tumor: first one of each patient, then a second one of each, and so on."""
    index, seen = source.index, collections.Counter()
    records = np.random.default_rng(seed).permutation(np.flatnonzero(index.tumor_area > 0)).tolist()

    def turn(record: int) -> int:
        seen[index.patient[record]] += 1
        return seen[index.patient[record]]

    # `sorted` asks for each record's turn once, in their order.
    return sorted(records, key=turn)


def rois_of(slices: LabeledSlices, predictions: Sequence[Prediction], seed: int) -> list[Rois]:
    """The ROIs of a slice for each prediction, [S, S].

    A tumor that moves has the same place in all of them.

    Args:
        slices: a single one.
        predictions: what to paint.
        seed: of the place.

    Raises:
        ValueError: the slice does not show all components, or has no place to move its tumor to.
    """
    if not all((slices.labels == label).any() for label in COMPONENTS.values()):
        raise ValueError("a component is missing")
    moves = any(prediction.mode in ("move", _MOVE_RANDOM) for prediction in predictions)
    for place in range(_MAX_PLACES if moves else 1):
        masks = [_free_form(slices, prediction.mode, (seed, place)) for prediction in predictions]
        try:
            return [Rois.with_boxes(m, p.box) for m, p in zip(masks, predictions, strict=True)]
        except ValueError:  # They overlap.
            continue
    raise ValueError("no place was found whose box is free of what is removed")


def _free_form(slices: LabeledSlices, mode: str, seed: tuple[int, ...]) -> np.ndarray:
    """ROIs of a slice's own tumor, bool [S, S, K], boxes not filled."""
    labels, brain = slices.labels, slices.brain
    if mode not in ("move", _MOVE_RANDOM):
        return own_tumor(labels, brain, mode).masks[0]
    # Outside the box of the removed tumor, be that an ROI or not, so that all predictions share it.
    masks = own_tumor(labels, brain, "move", ("normal",), seed).masks[0]
    masks[..., NORMAL] = own_tumor(labels, brain, "remove").masks[0, ..., NORMAL]
    if mode == _MOVE_RANDOM:
        masks[..., TUMOR] = masks[..., COMPONENT_CHANNELS].any(-1)
        masks[..., COMPONENT_CHANNELS] = False
    return masks


def _paint(
    inpainter: Inpainter, figure: Figure, content: Content, settings: FigureSettings
) -> list[np.ndarray]:
    """For each prediction its samples, float32 [rows, S, S, C], with a progress bar over all."""
    images = content.images(inpainter)
    indices, count, out = content.slices.slice_indices, len(figure.predictions), []
    with progress_bar(f"figure {figure.name}") as progress:
        for prediction, rois in zip(figure.predictions, content.rois, strict=True):

            def report(done: int, total: int, number: int = len(out)) -> None:
                progress(number * total + done, count * total)

            condition = Condition.stack([row.condition() for row in rois])
            request = (images, condition, settings.sampling(prediction))
            painted = inpainter.sample(*request, slice_indices=indices, progress=report)
            out.extend(painted.images)
    return out


def _draw(
    path: Path,
    inpainter: Inpainter,
    figure: Figure,
    content: Content,
    painted: list,
    num_steps: int,
) -> None:
    # Each row shows the brain of its slice.
    windows = [pictures.around(brain, margin=2) for brain in content.slices.brain]

    def shown(images: np.ndarray) -> list[np.ndarray]:
        """Pictures of the rows' sequences in [rows, S, S, C]."""
        rows = [image[..., min(n, image.shape[-1] - 1)] for n, image in enumerate(images)]
        cut = [row[window] for row, window in zip(rows, windows, strict=True)]
        return [pictures.enlarge(pictures.gray(row)) for row in cut]

    before, masks = shown(content.images(inpainter)), None
    columns, labels = [before], ["input"]
    for number, prediction in enumerate(figure.predictions):
        previous, masks = masks, [rois.masks for rois in content.rois[number]]
        if previous is None or not np.array_equal(masks, previous):
            cut = [mask[window] for mask, window in zip(masks, windows, strict=True)]
            marked = zip(before, map(pictures.enlarge, cut), strict=True)
            columns.append([pictures.with_rois(picture, roi, fill=0.2) for picture, roi in marked])
            labels.append("ROIs")
        columns.append(shown(painted[number]))
        labels.append(f"prediction {number + 1}, {prediction.label}")
    note = inpainter.checkpoint["note"]
    numbers = content.slices.slice_indices.tolist()
    used = pictures.kinds_in(*(rois.masks for row in content.rois for rois in row))
    pictures.figure(
        path,
        list(zip(*columns, strict=True)),
        rows=[
            f"{name.upper()}, slice {z}"
            for name, z in zip(inpainter.sequences, numbers, strict=True)
        ],
        columns=labels,
        title=figure.heading + (f"\n{note}" if note else ""),
        footnote=f"synthetic inside the ROIs, not for diagnosis; {num_steps} steps",
        marks=pictures.Marks(used, ["RL"] * len(columns), letters=True),
        pdf=True,
    )


def _record(inpainter: Inpainter, figure: Figure, content: Content) -> dict[str, Any]:
    """The provenance record of a figure."""
    rows, slices = ("sequence", "subject", "slice_index", "record"), content.slices
    where = (slices.subjects.tolist(), slices.slice_indices.tolist(), content.records)
    data = inpainter.metadata["contract"]["data"]
    return provenance.record(
        inpainter.checkpoint,
        figure=figure.heading,
        rows=[
            dict(zip(rows, r, strict=True)) for r in zip(inpainter.sequences, *where, strict=True)
        ],
        predictions=[
            {**prediction.record(), "rois": [row.record() for row in rois]}
            for prediction, rois in zip(figure.predictions, content.rois, strict=True)
        ],
        image_size=inpainter.image_size,
        window_mm=data["window"] * (data.get("pixel_size_mm") or 1),
        sequences="one by one" if inpainter.num_channels == 1 else "together",
    )
