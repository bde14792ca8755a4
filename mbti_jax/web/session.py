"""What the page holds for one user: images, painted ROIs, results."""

import contextlib
import dataclasses
import gzip
import secrets
import shutil
import threading
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from mbti_jax.inference.inpainter import Inpainter
from mbti_jax.rois.given import check_names
from mbti_jax.rois.regions import Rois
from mbti_jax.web import painter
from tfds_brats.cases import Case
from tfds_brats.scale import IntensityScale


class SessionClosed(ValueError):
    """The images of a session went while something was made of them."""


@dataclasses.dataclass
class Session:
    """One user's images and ROIs.

    Attributes:
        name: of the case or slice.
        folder: the user's own files; deleted by `close`.
        source: the case, or [H, W] or [H, W, C], the single slice.
        inpainter: the model that repaints them.
        volumes: sequence -> [Z, H, W] in the file's units, row 0 anterior, column 0 the patient's right.
        scales: sequence -> the scale by which it is shown, and repainted.
        brain: bool [Z, H, W].
        files: the user's images.
        uploads: the files that these, and ROIs, are copies of.
        painted: slice number -> uint8 [H, W] with the numbers of `ROI_LABELS`, 0 where nothing is.
        box: names of the tissues to be treated as bounding boxes.
        segmentation: uint8 [Z, H, W], canonical, which label maps keep outside the ROIs; None if it is
            not known.
        runs: the last of its runs, each a `history.Run`, the newest at the end.
        chosen: of these, the one whose result is shown.
        num_runs: how many there were.
        key: names these images to the browser.
        serial: of the last that the painter sent.
        shown: what the browser is told of the images; None before it asks.
        busy: whether a run is asked for, waiting or under way.
        running: whether it is waiting or under way.
        is_new: whether the last run left a result, which a cancelled one does not.
        cancelled: set to stop it.
    """

    name: str
    folder: Path
    source: Case | np.ndarray
    inpainter: Inpainter
    volumes: dict[str, np.ndarray]
    scales: dict[str, IntensityScale]
    brain: np.ndarray
    files: list[Path]
    uploads: tuple[Path, ...] = ()
    painted: dict[int, np.ndarray] = dataclasses.field(default_factory=dict)
    box: tuple[str, ...] = ()
    segmentation: np.ndarray | None = None
    runs: list[Any] = dataclasses.field(default_factory=list)
    chosen: Any = None
    num_runs: int = 0
    key: str = dataclasses.field(default_factory=lambda: secrets.token_hex(8))
    serial: int = 0
    shown: dict[str, Any] | None = None
    busy: bool = False
    running: bool = False
    is_new: bool = False
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
        return Rois.with_boxes(Rois.of(labels, self.shape).masks, self.box)

    def take_over(self, value: Any) -> None:
        """What the painter sends, see `drawing.js`: all that was painted since it was opened.

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

    def result_folder(self) -> Path:
        """Where the next run writes."""
        return self.folder / f"result_{self.num_runs + 1}"

    def keep_run(self, run: Any, most: int) -> None:
        """Takes a run into the history, and deletes what goes beyond the last `most`."""
        self.num_runs, self.chosen = run.number, run
        self.runs.append(run)
        while len(self.runs) > most:
            shutil.rmtree(self.runs.pop(0).files[0].parent, ignore_errors=True)

    def write_array(self, array: np.ndarray, folder: str = "shown") -> Path:
        """Writes what the browser reads, gzipped numbers in C order, into a folder of the session.

        Raises:
            SessionClosed: it was closed.
        """
        with self._lock:
            if self._closed:
                raise SessionClosed("these images are not kept any more; load them again")
            target = self.folder / folder
            target.mkdir(exist_ok=True, parents=True)
            path = target / f"{secrets.token_hex(8)}.bin"
            path.write_bytes(gzip.compress(np.ascontiguousarray(array).tobytes(), 1))
            return path

    def begin(self) -> None:
        """A run is asked for: it may be cancelled from now on."""
        if not self.running:
            self.busy = True
            self.cancelled.clear()

    def end(self) -> None:
        """The run is over, or could not begin."""
        self.busy = self.running

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
