"""ROIs of a session taken from a file, or made of a tumor."""

import dataclasses
import tempfile
from pathlib import Path

import numpy as np

from mbti_jax.inference import inputs
from mbti_jax.io import slices
from mbti_jax.rois.given import parse_labels
from mbti_jax.rois.kinds import COMPONENTS
from mbti_jax.rois.regions import Rois
from mbti_jax.rois.tumors import own_tumor
from mbti_jax.web import uploads
from mbti_jax.web.loading import named_as_uploaded
from mbti_jax.web.session import Session
from mbti_jax.web.uploads import Limits
from tfds_brats.cases import Case, read_label_volume
from tfds_brats.conventions import CAVITY, CONVENTIONS, CaseError
from tfds_brats.slices import to_slices


@dataclasses.dataclass(frozen=True)
class TumorRois:
    """Which ROIs are made of a file or a tumor.

    Attributes:
        mode: a key of `rois.tumors.MODES`; "" if a file holds the ROIs themselves.
        step_mm: for modes "grow" and "shrink"; pixels of a single slice count as 1 mm.
        dilate_mm: for modes "remove" and "move", likewise.
        first, last: the slices to which they are limited, both included; `last` None for all.
        seed: of the place in mode "move".
    """

    mode: str = ""
    step_mm: float = 0.0
    dilate_mm: float = 0.0
    first: int = 0
    last: int | None = None
    seed: int = 0


def take_roi(
    session: Session, path: str | Path, meaning: str, limits: Limits, made: TumorRois
) -> None:
    """Replaces what is painted by the ROIs of a file: NIfTI on the case's grid, or PNG or npy.

    Args:
        meaning: of the labels, see `rois.given.parse_labels`.
        made: what of it is used; with a mode the file is a segmentation.

    Raises:
        ValueError: it cannot be used; the message names the file.
    """
    labels = parse_labels(meaning)
    source = session.source
    with (
        tempfile.TemporaryDirectory(dir=session.folder) as folder,
        named_as_uploaded(Path(folder)),
    ):
        (file,) = uploads.copy_in([path], Path(folder), limits)
        uploads.memory_needed([file], limits)
        if isinstance(source, Case) != uploads.is_nifti(file):
            kinds = "volume is a NIfTI", "single slice is a PNG or npy"
            raise ValueError(f"{file.name}: the ROI of a {kinds[uploads.is_nifti(file)]} file")
        if isinstance(source, Case):
            maps = inputs.read_roi_volume(file, source, labels).label_map()
        else:
            roi = Rois.of(slices.read_roi(file), session.shape[1:], labels=labels)
            maps = roi.label_map()[None]
        cavity = _cavity(file, meaning, maps.shape)
    if made.mode:
        if not set(np.unique(maps).tolist()) <= {0, *COMPONENTS.values()}:
            raise ValueError(
                f"{Path(path).name}: holds ROIs that are no components of a tumor; a segmentation is "
                "needed"
            )
        # No ROI, but a label that a segmentation keeps, and into which no tumor grows.
        maps[cavity] = CAVITY
        if isinstance(source, Case):
            try:
                source.files.convention.on_disk(maps)
            except CaseError as error:
                raise ValueError(
                    f"{Path(path).name}: {error}; the images were loaded by it"
                ) from error
        paint_tumor(session, maps, made)
        session.segmentation = maps
    else:
        _paint_volume(session, maps, made)


def _cavity(path: Path, meaning: str, shape: tuple[int, ...]) -> np.ndarray:
    """Where a label map has the numbers of resection cavities of a convention: bool [Z, H, W]."""
    known = CONVENTIONS[meaning].labels if meaning in CONVENTIONS else {}
    numbers = [number for number, canonical in known.items() if canonical == CAVITY]
    if not numbers:
        return np.zeros(shape, bool)
    is_volume = uploads.is_nifti(path)
    found = to_slices(read_label_volume(path)[0]) if is_volume else slices.read_roi(path)[None]
    # Pictures in the colors of ROIs have none for cavities.
    return np.isin(found, numbers) if found.shape == shape else np.zeros(shape, bool)


def paint_tumor(session: Session, segmentation: np.ndarray, made: TumorRois) -> None:
    """Replaces what is painted by ROIs of the tumor in uint8 [Z, H, W], canonical.

    Raises:
        ValueError: see `rois.tumors.own_tumor`; or there is none of it in the range of slices.
    """
    source = session.source
    spacing = source.spacing[::-1] if isinstance(source, Case) else (1.0, 1.0, 1.0)
    rois = own_tumor(
        segmentation,
        session.brain,
        made.mode,
        seed=made.seed,
        step_mm=made.step_mm,
        dilate_mm=made.dilate_mm,
        spacing=spacing,
    )
    _paint_volume(session, rois.label_map(), made)


def _paint_volume(session: Session, maps: np.ndarray, made: TumorRois) -> None:
    last = len(maps) - 1 if made.last is None else made.last
    if not 0 <= made.first <= last < len(maps):
        raise ValueError(
            f"slices {made.first} to {last} are no range of {session.name}, which has 0 to "
            f"{len(maps) - 1}"
        )
    found = np.flatnonzero(maps.any((1, 2))).tolist()
    painted = {z: maps[z] for z in found if made.first <= z <= last}
    if found and not painted:
        raise ValueError(
            f"slices {made.first} to {last} hold none of these ROIs; slices {found[0]} to {found[-1]} "
            "do"
        )
    if painted and not any((painted[z][session.brain[z]] > 0).any() for z in painted):
        raise ValueError(
            "these ROIs lie wholly in air: are they of these images, and on the same grid?"
        )
    session.painted = painted
