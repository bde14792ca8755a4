"""The task that draws the paper's figures (`configs/figures.py`) on slices of the test split."""

import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from mbti_jax.evaluation import showcase
from mbti_jax.evaluation.showcase import ShownSlice
from mbti_jax.fields import finite_number, whole_number
from mbti_jax.inference import provenance
from mbti_jax.inference.inpainter import Inpainter
from mbti_jax.inference.runs import is_done, make_request, plain, progress_bar
from mbti_jax.io import pictures
from mbti_jax.io.files import write_json
from mbti_jax.rois.kinds import CHANNELS
from mbti_jax.rois.regions import box_flags, check_overlap, fill_boxes
from mbti_jax.rois.tasks import make_task
from mbti_jax.rois.tumors import own_tumor_masks
from tfds_brats import builder, phantom
from tfds_brats.reading import SliceSource
from tfds_brats.splits import SPLITS

_NORMAL, _TUMOR = CHANNELS.index("normal"), CHANNELS.index("tumor")
# Beside the modes of `tumors.MODES`: normal tissue where the tumour is, and a random one elsewhere.
_MOVE_RANDOM = "move random"
# How many places are tried for a tumour whose box must not touch what is removed.
_PLACES = 32


@dataclasses.dataclass(frozen=True)
class Prediction:
    """One column of a figure.

    Attributes:
        mode: what is painted where, a key of `tumors.MODES` or "move random".
        box: names of the ROIs that are bounding boxes.
        seed, guidance_weight: as of `Inpainter.sample`.
    """

    mode: str
    box: tuple[str, ...]
    seed: int
    guidance_weight: float

    @property
    def label(self) -> str:
        """The settings in words."""
        boxes = ", ".join(name.replace("_", " ") for name in self.box)
        rois = f"box: {boxes}" if boxes else "free-form"
        return f"{rois}\nw = {self.guidance_weight:g}, seed {self.seed}"


def main(config: ConfigDict, workdir: str) -> None:
    """Draws the figures that `config.figures` names; those of the same request are kept.

    Raises:
        ValueError, OSError: a setting or a dataset that cannot be used, or a figure that is there and is
            of another request.
    """
    figures = _figures(config)
    folder = Path(workdir)
    inpainter = Inpainter.load(config.checkpoint, config.batch_size)
    source = SliceSource(_dataset(config, folder), config.split)
    for name, (title, predictions) in figures.items():
        path, record = folder / f"figure_{name}.png", folder / f"figure_{name}.json"
        request = {
            **make_request(inpainter, config, (), "split", "min_component_area"),
            "dataset": source.fingerprint,
            "predictions": [_plain(prediction) for prediction in predictions],
        }
        del request["guidance_weight"]  # Each prediction has its own.
        there = is_done(record, request) and path.is_file()
        if not there:
            rows, masks = _choose(inpainter, source, predictions, config)
            painted = _paint(inpainter, rows, masks, predictions, config, f"figure {name}")
            heading = f"Figure {name.upper()}. {title}"
            _draw(path, inpainter, heading, rows, masks, predictions, painted, config)
            # Last, as it says that the figure is there.
            details = _record(inpainter, heading, rows, masks, predictions)
            write_json(record, {**details, "request": request})
        print(f"figure {name}{' is there' if there else ''}: {path}")


def _figures(config: ConfigDict) -> dict[str, tuple[str, list[Prediction]]]:
    """Title and predictions of the figures that the config asks for."""
    seed, weight = whole_number("seed", config.seed), config.guidance_weight
    for value in (weight, *config.weights):
        finite_number("guidance_weight and weights", value)
    if config.split not in SPLITS:
        raise ValueError(f"unknown split {config.split!r}; choose one of {', '.join(SPLITS)}")

    def free_form_and_box(mode: str, box: str) -> list[Prediction]:
        return [Prediction(mode, boxes, seed, weight) for boxes in ((), (box,))]

    known = {
        "3": ("Components in given ROIs", free_form_and_box("replace", "edema")),
        "4": ("Tumour with components of the model's choice", free_form_and_box("random", "tumor")),
        "5": ("Tumour-less tissue instead of the tumour", free_form_and_box("remove", "normal")),
        "6": (
            "One seed, rising guidance weight",
            [Prediction("random", ("tumor",), seed, float(value)) for value in config.weights],
        ),
        "7": (
            "Different seeds",
            [
                Prediction("random", ("tumor",), seed + number, weight)
                for number in range(config.num_seeds)
            ],
        ),
        "1b": (
            "Removal and insertion in the same pass",
            [
                Prediction("move", (), seed, weight),
                Prediction("move", ("normal", "edema"), seed, weight),
                Prediction(_MOVE_RANDOM, ("tumor",), seed, weight),
            ],
        ),
    }
    unknown = [name for name in config.figures if name not in known]
    if unknown or not config.figures:
        raise ValueError(f"figures {list(config.figures)}: choose from {', '.join(known)}")
    chosen = {name: known[name] for name in config.figures}
    for name, (_, predictions) in chosen.items():
        if not predictions:
            raise ValueError(f"figure {name} would be empty: set weights and num_seeds")
    return chosen


def _dataset(config: ConfigDict, folder: Path) -> str | Path:
    """Where the slices are: in the given dataset, or in one of phantoms made for the figures."""
    if config.data_dir:
        return config.data_dir
    cases = folder / "phantom"
    phantom.write_phantoms(cases, config.phantom.num_subjects, config.phantom.seed)
    return builder.build(cases, "phantom", folder / "slices")


def _choose(
    inpainter: Inpainter, source: SliceSource, predictions: Sequence[Prediction], config: ConfigDict
) -> tuple[list[ShownSlice], list[list[np.ndarray]]]:
    """A random slice for each sequence that shows all components, and its ROIs.

    Returns:
        slices, one a row; for each prediction and row bool [S, S, 5], boxes filled.

    Raises:
        ValueError: the split has too few slices that will do.
    """
    read = showcase.SliceReader(inpainter, source)
    rows, masks = [], []
    for record in _in_random_order(source, config.seed):
        if min(showcase.component_areas(source, record)) < config.min_component_area:
            continue
        shown = read(record)
        try:
            masks.append(_roi_masks(shown, predictions, config.seed))
        except (
            ValueError
        ):  # A component is lost in the model's size, or there is no room to move to.
            continue
        rows.append(shown)
        if len(rows) == len(inpainter.sequences):
            return rows, [list(of_rows) for of_rows in zip(*masks, strict=True)]
    raise ValueError(
        f"only {len(rows)} of the {len(inpainter.sequences)} slices needed were found: the split "
        f"{config.split} holds too few that show every component with {config.min_component_area} "
        "pixels and have room for what is painted; use more subjects or a smaller "
        "--config.min_component_area"
    )


def _in_random_order(source: SliceSource, seed: int) -> Iterator[int]:
    """Records with tumour: first one of each patient, then a second one of each, and so on."""
    index = source.index
    records = np.random.default_rng(seed).permutation(np.flatnonzero(index.tumor_area > 0))
    turn, seen = np.zeros(len(records), int), {}
    for position, patient in enumerate(index.patient[records]):
        turn[position] = seen[patient] = seen.get(patient, -1) + 1
    return map(int, records[np.argsort(turn, kind="stable")])


def _roi_masks(shown: ShownSlice, predictions: Sequence[Prediction], seed: int) -> list[np.ndarray]:
    """The ROIs of a slice for each prediction, bool [S, S, 5], boxes filled.

    A tumour that moves has the same place in all of them.

    Raises:
        ValueError: the slice does not show all components, or has no place to move its tumour to.
    """
    if not all((shown.labels == label).any() for label in (1, 2, 3)):
        raise ValueError("a component is missing")
    moves = any(prediction.mode in ("move", _MOVE_RANDOM) for prediction in predictions)
    for place in range(_PLACES if moves else 1):
        masks = [_free_form(shown, prediction.mode, (seed, place)) for prediction in predictions]
        flags = [box_flags(prediction.box) for prediction in predictions]
        masks = [fill_boxes(m, f) for m, f in zip(masks, flags, strict=True)]
        try:
            for m, f in zip(masks, flags, strict=True):
                check_overlap(m, f)
        except ValueError:
            continue
        return masks
    raise ValueError("no place was found whose box is free of what is removed")


def _free_form(shown: ShownSlice, mode: str, seed: tuple[int, ...]) -> np.ndarray:
    """ROIs of a slice's own tumour, bool [S, S, 5], boxes not filled."""
    labels, brain = shown.labels[None], shown.brain[None]
    if mode not in ("move", _MOVE_RANDOM):
        return own_tumor_masks(labels, brain, mode, box_flags(()))[0]
    # Outside the box of the removed tumour, be that an ROI or not, so that all predictions share it.
    masks = own_tumor_masks(labels, brain, "move", box_flags(("normal",)), seed)[0]
    masks[..., _NORMAL] = own_tumor_masks(labels, brain, "remove", box_flags(()))[0, ..., _NORMAL]
    if mode == _MOVE_RANDOM:
        inserted = masks[..., _NORMAL + 1 : _TUMOR]
        masks[..., _TUMOR] = inserted.any(-1)
        inserted[:] = False
    return masks


def _paint(
    inpainter: Inpainter,
    rows: Sequence[ShownSlice],
    masks: Sequence[Sequence[np.ndarray]],
    predictions: Sequence[Prediction],
    config: ConfigDict,
    name: str,
) -> list[np.ndarray]:
    """For each prediction its samples, float32 [rows, S, S, C], with a progress bar over all."""
    images = _images(inpainter, rows)
    out = []
    with progress_bar(name) as progress:
        for number, (of_rows, prediction) in enumerate(zip(masks, predictions, strict=True)):
            flags = box_flags(prediction.box)
            tasks = [jax.device_get(make_task(m, flags)) for m in of_rows]

            def report(done: int, total: int, number: int = number) -> None:
                progress(number * total + done, len(predictions) * total)

            out.append(
                inpainter.sample(
                    images,
                    np.stack([task.roi_masks for task in tasks]),
                    np.stack([task.class_vector for task in tasks]),
                    slice_indices=[shown.slice_index for shown in rows],
                    seed=prediction.seed,
                    guidance_weight=prediction.guidance_weight,
                    progress=report,
                    **plain(config, "num_steps", "spacing", "eta"),
                )
            )
    return out


def _images(inpainter: Inpainter, rows: Sequence[ShownSlice]) -> np.ndarray:
    """The model's input of each row, [rows, S, S, C]: the row's sequence, or all of them."""
    alone = inpainter.num_channels == 1
    return np.stack([shown.images[row if alone else 0] for row, shown in enumerate(rows)])


def _draw(
    path: Path,
    inpainter: Inpainter,
    heading: str,
    rows: Sequence[ShownSlice],
    masks: Sequence[Sequence[np.ndarray]],
    predictions: Sequence[Prediction],
    painted: Sequence[np.ndarray],
    config: ConfigDict,
) -> None:
    def shown(images: np.ndarray) -> list[np.ndarray]:
        """Pictures of the rows' sequences in [rows, S, S, C]."""
        last = images.shape[-1] - 1
        return [
            pictures.enlarge(pictures.gray(image[..., min(row, last)]))
            for row, image in enumerate(images)
        ]

    before = shown(_images(inpainter, rows))
    columns, labels = [before], ["input"]
    for number, prediction in enumerate(predictions):
        if number == 0 or not np.array_equal(masks[number], masks[number - 1]):
            enlarged = map(pictures.enlarge, masks[number])
            marked = zip(before, enlarged, strict=True)
            columns.append([pictures.with_rois(picture, roi, fill=0.2) for picture, roi in marked])
            labels.append("ROIs")
        columns.append(shown(painted[number]))
        labels.append(f"prediction {number + 1}, {prediction.label}")
    note = inpainter.checkpoint["note"]
    pictures.figure(
        path,
        list(zip(*columns, strict=True)),
        rows=[name.upper() for name in inpainter.sequences],
        columns=labels,
        title=heading + (f"\n{note}" if note else ""),
        footnote=f"synthetic inside the ROIs, not for diagnosis; {config.num_steps} steps",
    )


def _record(
    inpainter: Inpainter,
    heading: str,
    rows: Sequence[ShownSlice],
    masks: Sequence[Sequence[np.ndarray]],
    predictions: Sequence[Prediction],
) -> dict[str, Any]:
    """The provenance record of a figure."""
    return provenance.record(
        inpainter.checkpoint,
        figure=heading,
        rows=[
            {
                "sequence": name,
                "subject": shown.subject,
                "slice_index": shown.slice_index,
                "record": shown.record,
            }
            for name, shown in zip(inpainter.sequences, rows, strict=True)
        ],
        predictions=[
            {
                **_plain(prediction),
                "rois": [provenance.roi_record(m, box_flags(prediction.box)) for m in of_rows],
            }
            for prediction, of_rows in zip(predictions, masks, strict=True)
        ],
        image_size=inpainter.image_size,
        window_mm=inpainter.metadata["contract"]["data"]["window"],
        sequences="one by one" if inpainter.num_channels == 1 else "together",
    )


def _plain(prediction: Prediction) -> dict[str, Any]:
    """In JSON values."""
    return {**dataclasses.asdict(prediction), "box": list(prediction.box)}
