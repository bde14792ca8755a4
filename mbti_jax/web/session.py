"""What the page holds for one user: images, painted ROIs, results."""

import contextlib
import dataclasses
import gzip
import re
import secrets
import shutil
import tempfile
import threading
from collections.abc import Callable, Collection, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mbti_jax.inference import checks, inputs
from mbti_jax.inference.inpainter import Inpainter
from mbti_jax.io import slices
from mbti_jax.rois.kinds import COMPONENTS
from mbti_jax.rois.regions import Rois, check_names, parse_labels
from mbti_jax.rois.tumors import own_tumor
from mbti_jax.web import painter, uploads
from mbti_jax.web.uploads import Limits
from tfds_brats.cases import Case, CaseFiles, read_case
from tfds_brats.conventions import SEQUENCES
from tfds_brats.scale import IntensityScale
from tfds_brats.search import find_cases
from tfds_brats.slices import to_slices


@dataclasses.dataclass
class Session:
    """One user's images and ROIs.

    Attributes:
        name: of the case or slice.
        folder: the user's own files; deleted by `close`.
        source: the case, or [H, W] or [H, W, C], the single slice.
        volumes: sequence -> [Z, H, W] in the file's units, row 0 anterior, column 0 the patient's right.
        scales: sequence -> the scale by which it is shown, and repainted.
        brain: bool [Z, H, W].
        files: the user's images.
        uploads: the files that these, and ROIs, are copies of.
        painted: slice number -> uint8 [H, W] with the numbers of `ROI_LABELS`, 0 where nothing is.
        box: names of the tissues to be treated as bounding boxes.
        segmentation: uint8 [Z, H, W], canonical, which label maps keep outside the ROIs; None if it is
            not known.
        result: what the last run made, a `results.Result`.
        key: names these images to the browser.
        serial: of the last that the painter sent.
        shown: what the browser is told of the images; None before it asks.
        result_shown: a result, and what the browser is told of it; None before it asks.
        busy: whether a run is asked for, waiting or under way.
        running: whether it is waiting or under way.
        cancelled: set to stop it.
    """

    name: str
    folder: Path
    source: Case | np.ndarray
    volumes: dict[str, np.ndarray]
    scales: dict[str, IntensityScale]
    brain: np.ndarray
    files: list[Path]
    uploads: tuple[Path, ...] = ()
    painted: dict[int, np.ndarray] = dataclasses.field(default_factory=dict)
    box: tuple[str, ...] = ()
    segmentation: np.ndarray | None = None
    result: Any = None
    key: str = dataclasses.field(default_factory=lambda: secrets.token_hex(8))
    serial: int = 0
    shown: dict[str, Any] | None = None
    result_shown: tuple[Any, dict[str, Any]] | None = None
    busy: bool = False
    running: bool = False
    cancelled: threading.Event = dataclasses.field(default_factory=threading.Event)
    _closed: bool = False
    _lock: threading.Lock = dataclasses.field(default_factory=threading.Lock)

    @property
    def sequences(self) -> tuple[str, ...]:
        """What can be shown and repainted."""
        return tuple(self.volumes)

    @property
    def shape(self) -> tuple[int, int, int]:
        """(Z, H, W)."""
        return self.brain.shape

    @property
    def aspect(self) -> float:
        """Height of a pixel over its width."""
        if not isinstance(self.source, Case):
            return 1.0
        return self.source.spacing[1] / self.source.spacing[0]

    @property
    def first_slice(self) -> int:
        """The slice to open with: that with the largest ROI, or else with the most brain."""
        if self.painted:
            return max(self.painted, key=lambda number: np.count_nonzero(self.painted[number]))
        return int(self.brain.sum((1, 2)).argmax())

    def labels(self, number: int) -> np.ndarray:
        """uint8 [H, W], what is painted in a slice."""
        return self.painted.get(number, np.zeros(self.shape[1:], np.uint8))

    def paint(self, number: Any, labels: np.ndarray, box: Collection[str]) -> None:
        """Takes over what is painted in a slice, and which tissues are boxes (in all slices).

        Raises:
            ValueError: a slice that is not there, labels of another shape, an unknown tissue.
        """
        check_names(box)
        if type(number) is not int or not 0 <= number < self.shape[0]:
            raise ValueError(f"{self.name} has no slice {number}; it has 0 to {self.shape[0] - 1}")
        if labels.shape != self.shape[1:]:
            raise ValueError(f"the mask has shape {labels.shape}, the slice {self.shape[1:]}")
        self.box = tuple(box)
        if labels.any():
            self.painted[number] = labels
        else:
            self.painted.pop(number, None)

    def rois(self) -> Rois:
        """What is painted, [Z, H, W].

        Raises:
            ValueError: nothing is painted, or the ROIs overlap.
        """
        if not self.painted:
            raise ValueError("nothing is painted yet: choose a tissue and paint where it shall be")
        labels = np.zeros(self.shape, np.uint8)
        for number, painted in self.painted.items():
            labels[number] = painted
        # Tissues may be boxes before anything is painted of them.
        return Rois(Rois.of(labels, self.shape).masks, self.box)

    def take_over(self, value: Any) -> None:
        """What the painter sends, see `painter.js`: all that was painted since it was opened.

        What it sent before, or of images that are not loaded any more, changes nothing; nor does what
        it was given to show, which is its value until something is painted.

        Raises:
            ValueError: it is not what a painter sends.
        """
        if value is None or (isinstance(value, dict) and "painted" in value):
            return
        if not isinstance(value, dict):
            raise ValueError("the painter's value must be a group of fields")
        box, edits = (value.get(name) for name in ("box", "edits"))
        if not isinstance(box, list) or not all(isinstance(name, str) for name in box):
            raise ValueError("the painter's value must have edits, and a list of boxes")
        if not isinstance(edits, dict) or type(value.get("serial")) is not int:
            raise ValueError("the painter's value must have a serial number, and edits of slices")
        with self._lock:
            if value.get("key") != self.key or value["serial"] <= self.serial:
                return
            maps = {}
            for number, runs in edits.items():
                if not number.isdecimal() or int(number) >= self.shape[0]:
                    raise ValueError(f"{self.name} has no slice {number!r:.20}")
                maps[int(number)] = painter.from_runs(runs, self.shape[1:])
            check_names(box)
            for number, labels in maps.items():
                self.paint(number, labels, box)
            self.box, self.serial = tuple(box), value["serial"]

    def write_array(self, array: np.ndarray, folder: str = "shown") -> Path:
        """Writes what the browser reads, gzipped numbers in C order, into a folder of the session.

        Raises:
            ValueError: the session was closed.
        """
        with self._lock:
            if self._closed:
                raise ValueError("these images are not kept any more; load them again")
            target = self.folder / folder
            target.mkdir(exist_ok=True)
            path = target / f"{secrets.token_hex(8)}.bin"
            path.write_bytes(gzip.compress(np.ascontiguousarray(array).tobytes(), 1))
            return path

    def begin(self) -> None:
        """A run is asked for: it may be cancelled from now on."""
        if not self.running:
            self.busy = True
            self.cancelled.clear()

    def end(self) -> None:
        """The run is over."""
        self.busy = False

    def cancel(self) -> None:
        """Stops the run, if there is one."""
        if self.busy:
            self.cancelled.set()

    @contextlib.contextmanager
    def run(self) -> Iterator[None]:
        """While a run of this session waits or is under way.

        Raises:
            ValueError: there is one already.
        """
        with self._lock:
            if self.running:
                raise ValueError("your last run is still under way; wait for it or cancel it")
            if not self.busy:
                self.begin()
            self.running = True
            if self._closed:
                self.cancelled.set()
        try:
            yield
        finally:
            with self._lock:
                self.running = False
            self.end()
            if self._closed:
                self.close()

    def close(self) -> None:
        """Stops the sampling and deletes the files; those of a run when it has stopped."""
        with self._lock:
            self._closed = True
            self.cancelled.set()
            if not self.running:
                shutil.rmtree(self.folder, ignore_errors=True)


def load_files(
    paths: Sequence[str | Path],
    convention: str,
    sequences: Sequence[str],
    inpainter: Inpainter,
    root: Path,
    limits: Limits,
    admit: Callable[[int], None] = lambda size: None,
) -> Session:
    """A session of uploaded files: one slice (PNG or npy), or the volumes of one case (NIfTI).

    A slice is one file, or one file for each sequence.

    Args:
        paths: the files.
        convention: whose file names say which sequence each NIfTI file is; or "".
        sequences: names of the files' sequences in their order, where there is no convention.
        root: folder in which the session makes its own.
        limits: what is accepted.
        admit: called with the bytes that the images will take, before any is decoded; raises ValueError
            where there is no room for them.

    Raises:
        ValueError: files that cannot be used; the message names the file.
    """
    folder = new_session_folder(root)
    with contextlib.ExitStack() as on_failure, _named_as_uploaded(folder):
        on_failure.callback(shutil.rmtree, folder, ignore_errors=True)
        # Where the convention of MSD looks for images.
        files = uploads.copy_in(paths, folder / "imagesTr", limits)
        admit(uploads.memory_needed(files, limits))
        if not any(map(uploads.is_nifti, files)):
            session = _slice_session(files, convention, sequences, inpainter, folder, limits)
        elif not all(map(uploads.is_nifti, files)):
            raise ValueError("a picture and a NIfTI file do not make one case; choose either")
        else:
            found = _case_files(files, convention, sequences, folder)
            has_tumor = found.labels is not None
            case = read_case(found, [s for s in SEQUENCES if s in found.images], labels=has_tumor)
            uploads.check_slice(case.subject, case.brain.shape[:2], limits)
            session = volume_session(case, inpainter, folder)
        on_failure.pop_all()
    return session


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
        meaning: of the labels, see `rois.regions.parse_labels`.
        made: what of it is used; with a mode the file is a segmentation.

    Raises:
        ValueError: it cannot be used; the message names the file.
    """
    labels = parse_labels(meaning)
    source = session.source
    with (
        tempfile.TemporaryDirectory(dir=session.folder) as folder,
        _named_as_uploaded(Path(folder)),
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
    if made.mode:
        if not set(np.unique(maps).tolist()) <= {0, *COMPONENTS.values()}:
            raise ValueError(
                f"{Path(path).name}: holds ROIs that are no components of a tumor; a segmentation is "
                "needed"
            )
        paint_tumor(session, maps, made)
        session.segmentation = maps
    else:
        _paint_volume(session, maps, made)


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
    session.painted = painted


def new_session_folder(root: Path) -> Path:
    """A new folder below `root` for the files of one session.

    Who knows its name can have what is in it, so nobody can guess it.
    """
    folder = root / secrets.token_hex(16)
    folder.mkdir(mode=0o700, parents=True)
    return folder


@contextlib.contextmanager
def _named_as_uploaded(folder: Path) -> Iterator[None]:
    """Errors without the folder that the files were copied to, which means nothing to the user."""
    try:
        yield
    except ValueError as error:
        text = re.sub(f"{re.escape(str(folder))}(/imagesTr)?/", "", str(error))
        raise ValueError(text.replace(str(folder), "the upload")) from error


def _case_files(
    files: Sequence[Path], convention: str, sequences: Sequence[str], folder: Path
) -> CaseFiles:
    if not convention:
        return inputs.named_files(_named(files, sequences))
    if sequences:
        raise ValueError("name the files' sequences or choose a convention, not both")
    found = find_cases(folder, convention, sequences=(), labels=False)
    if len(found) > 1:
        names = ", ".join(case.subject for case in found)
        raise ValueError(f"these are files of several cases ({names}); choose one")
    return found[0]


def _named(files: Sequence[Path], sequences: Sequence[str]) -> dict[str, str]:
    """{sequence: path}, checked."""
    if len(sequences) != len(files):
        names = ", ".join(path.name for path in files)
        raise ValueError(
            f"say which sequence each file is, in the order of the files ({names}), or choose the "
            "convention by which they are named"
        )
    if len(set(sequences)) < len(sequences):
        raise ValueError("a sequence is named twice")
    return {name: str(path) for name, path in zip(sequences, files, strict=True)}


def _slice_session(
    files: Sequence[Path],
    convention: str,
    sequences: Sequence[str],
    inpainter: Inpainter,
    folder: Path,
    limits: Limits,
) -> Session:
    if convention:
        raise ValueError("a convention names the files of a case; a single slice has none")
    if len(files) > 1:
        # In the order in which a model paints them together.
        by_name = _named(files, sequences)
        unknown = [name for name in by_name if name not in inpainter.sequences]
        if unknown:
            known = ", ".join(inpainter.sequences)
            raise ValueError(f"the model was not trained on {unknown[0]}, but on {known}")
        sequences = tuple(name for name in inpainter.sequences if name in by_name)
        files = [Path(by_name[name]) for name in sequences]
    image = slices.read_sequences(files)
    values = checks.image_values(image)
    uploads.check_slice(files[0].name, values.shape[:2], limits)
    count = values.shape[-1]
    if inpainter.num_channels not in (1, count):
        raise ValueError(
            f"this model paints {', '.join(inpainter.sequences)} of a slice jointly: choose a picture "
            "of each, of one size, and name their sequences in the order of the files"
        )
    if sequences and len(sequences) != count:
        raise ValueError(f"{len(sequences)} sequences are named, the slice has {count}")
    names = tuple(sequences) or tuple(f"sequence {c}" for c in range(count))
    if count == 1 and not sequences:
        names = ("slice",)
    channels, brain = np.moveaxis(values, -1, 0), np.any(values != 0, axis=-1)
    return Session(
        files[0].stem,
        folder,
        image,
        volumes={name: channel[None] for name, channel in zip(names, channels, strict=True)},
        scales={n: checks.slice_scale(c, brain) for n, c in zip(names, channels, strict=True)},
        brain=brain[None],
        files=list(files),
    )


def volume_session(case: Case, inpainter: Inpainter, folder: Path) -> Session:
    """A session of a case that has been read; raises ValueError if the model cannot paint it."""
    sequences = inpainter.sequences_of(case)
    case = _in_float32(case)
    return Session(
        case.subject,
        folder,
        case,
        volumes={name: to_slices(case.values(name)) for name in sequences},
        scales={name: case.scale(name) for name in sequences},
        brain=to_slices(case.brain),
        files=list(dict.fromkeys(case.files.images.values())),
        segmentation=None if case.labels is None else to_slices(case.labels),
    )


def _in_float32(case: Case) -> Case:
    """The case with what is scaled, or stored in more than 32 bits, in float32.

    `Case.values` works in float64, which takes eight times the memory of scaled bytes.
    """
    images = {}
    for name, stored in case.images.items():
        is_scaled = (case.slope[name], case.intercept[name]) != (1, 0)
        if is_scaled or stored.dtype.itemsize > 4:
            images[name] = np.empty_like(stored, np.float32)
            for z in range(stored.shape[2]):
                part = dataclasses.replace(case, images={name: stored[..., z]})
                images[name][..., z] = part.values(name)
    if not images:
        return case
    return dataclasses.replace(
        case,
        images={**case.images, **images},
        slope={**case.slope, **{name: 1.0 for name in images}},
        intercept={**case.intercept, **{name: 0.0 for name in images}},
    )
