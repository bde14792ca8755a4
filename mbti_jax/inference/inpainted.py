"""What an `Inpainter` returns: a repainted slice, a repainted volume, samples in the model's units."""

import abc
import base64
import dataclasses
import io
import sys
import tempfile
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from mbti_jax.inference import provenance, results
from mbti_jax.io.files import new_folder, write_bytes, write_json
from mbti_jax.io.slices import write_slice
from mbti_jax.rois.regions import Rois
from tfds_brats.cases import Case


class _Shown(abc.ABC):
    """What a notebook and a prompt show of a result."""

    @abc.abstractmethod
    def _draw(self, path: Path) -> None:
        """Writes the picture."""

    def picture(self) -> bytes:
        """The result beside what was there, as PNG."""
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "picture.png"
            self._draw(path)
            return path.read_bytes()

    def show(self) -> None:
        """Shows the picture: in a notebook below the cell, else in the system's viewer."""
        if "IPython" in sys.modules and (display := _display()):
            display(self)
        else:
            Image.open(io.BytesIO(self.picture())).show()

    def _repr_html_(self) -> str:
        picture = base64.b64encode(self.picture()).decode()
        text = f"{self!r}".replace("&", "&amp;").replace("<", "&lt;")
        return f'<div>{text}</div><img src="data:image/png;base64,{picture}">'


def _display() -> Any:
    """IPython's `display` where it is a notebook's; None at a prompt, which shows no pictures."""
    from IPython import display, get_ipython

    shell = get_ipython()
    is_notebook = shell is not None and hasattr(shell, "kernel")
    return display.display if is_notebook else None


def _described(rois: Rois, unit: str) -> str:
    """ROIs in words."""
    record = rois.record()
    return ", ".join(
        f"{name.replace('_', ' ')}{' box' * (entry['mode'] == 'box')} of {entry['pixels']} {unit}"
        for name, entry in record.items()
    )


@dataclasses.dataclass(frozen=True, repr=False)
class InpaintedSlice(_Shown):
    """What `Inpainter.inpaint` made of a slice.

    Attributes:
        images: [num_samples, H, W] or [num_samples, H, W, C], in the units and the data type of the
            input; outside the ROI equal to it bit for bit. Of the estimate "mean" one image, their mean.
        std: float32 [H, W] or [H, W, C], the standard deviation over the samples (n - 1 in the
            denominator) in the input's units, 0 outside the ROI; None for a single sample, and for the
            mean in one pass.
        rois: the ROIs, boxes filled.
        labels: uint8 [images, H, W], canonical: inside the ROI what the model painted, or without
            a label head what was requested; outside the labels that were given, else 0. None where
            nobody knows what was painted; `provenance["labels"]` says why, and where labels come from.
        label_probabilities: float32 [images, H, W, 4], of no tumor and canonical labels 1 to 3, 0
            outside the ROI; None without a label head.
        provenance: how it was made, in JSON values.
        image: the input.

    In a notebook it shows itself.
    """

    images: np.ndarray
    std: np.ndarray | None
    rois: Rois
    labels: np.ndarray | None
    label_probabilities: np.ndarray | None
    provenance: dict[str, Any]
    image: np.ndarray | None = None

    @property
    def is_mean(self) -> bool:
        """Whether `images` is one, the mean of the samples."""
        return self.provenance["sampling"].get("estimate") == "mean"

    def __repr__(self) -> str:
        count, *shape = self.images.shape
        what = "mean" if self.is_mean else f"{count} sample{'s' * (count > 1)}"
        size = " x ".join(map(str, shape))
        return (
            f"InpaintedSlice({what}, {size} {self.images.dtype}: {_described(self.rois, 'pixels')})"
        )

    def save(self, path: str | Path) -> Path:
        """Saves the result.

        Args:
            path: a file that ends in .npy, for `images`; or in .png, for the picture; or a new folder,
                for inpainted.npy, std.npy, labels.npy, the picture and the provenance record.

        Returns:
            The path.

        Raises:
            OSError: it cannot be written, or the folder exists.
        """
        path = Path(path)
        if path.suffix.lower() == ".npy":
            write_slice(path, self.images)
        elif path.suffix.lower() == ".png":
            write_bytes(path, self.picture())
        else:
            with new_folder(path) as folder:
                arrays = {"inpainted": self.images, "std": self.std, "labels": self.labels}
                for name, array in arrays.items():
                    if array is not None:
                        write_slice(folder / f"{name}.npy", array)
                write_bytes(folder / "preview.png", self.picture())
                write_json(folder / provenance.RECORD, self.provenance)
        return path

    def _draw(self, path: Path) -> None:
        image = self.images[0] if self.image is None else self.image
        title = provenance.preview_title("slice", self.provenance["checkpoint"])
        results.draw_slice(path, image, self, title)


@dataclasses.dataclass(frozen=True, repr=False)
class InpaintedVolume(_Shown):
    """One sample of a case, or the mean of its samples, made by `Inpainter.inpaint_volume`.

    Attributes:
        values: sequence -> float64 [Z, H, W] in the file's units, meaningful inside the ROI only.
        std: of a mean, sequence -> float32 [Z, H, W], the standard deviation over the samples as in
            `InpaintedSlice`; None for one sample, and for the mean in one pass.
        rois: the ROIs of the slices that were repainted, [Z, H, W].
        labels, label_probabilities: as in `InpaintedSlice`, [Z, H, W] and [Z, H, W, 4].
        details: for the provenance record, in JSON values.
        case: what was repainted.
        checkpoint: the model, see `Inpainter.checkpoint`.

    In a notebook it shows itself.
    """

    values: dict[str, np.ndarray]
    std: dict[str, np.ndarray] | None
    rois: Rois
    labels: np.ndarray | None
    label_probabilities: np.ndarray | None
    details: dict[str, Any]
    case: Case | None = None
    checkpoint: dict[str, Any] = dataclasses.field(default_factory=dict)

    def __repr__(self) -> str:
        subject = "" if self.case is None else f"{self.case.subject}, "
        count = len(self.details["slices"])
        return (
            f"InpaintedVolume({subject}{', '.join(self.values)}; {count} slice{'s' * (count > 1)}: "
            f"{_described(self.rois, 'voxels')})"
        )

    @cached_property
    def nifti(self) -> results.NiftiImages:
        """The images, ROIs and labels as nibabel images on the grid of the input.

        Raises:
            ValueError: it is not known what was repainted.
        """
        return results.as_nifti(self._known_case, self)

    @property
    def images(self) -> dict[str, Any]:
        """Sequence -> nibabel image: the input with its ROI repainted."""
        return self.nifti.images

    def save(self, path: str | Path) -> Path:
        """Saves the result.

        Args:
            path: a file that ends in .png, for the picture; or a new folder, for what `mbti inpaint`
                writes of a sample: volumes, ROIs and labels as NIfTI, a preview and the record.

        Returns:
            The path.

        Raises:
            ValueError: it is not known what was repainted.
            OSError: it cannot be written, or the folder exists.
        """
        path = Path(path)
        if path.suffix.lower() == ".png":
            write_bytes(path, self.picture())
            return path
        case = self._known_case
        with new_folder(path) as folder:
            clipped = results.write_case(folder, case, self)
            results.write_label_descriptions(folder / "rois.label.txt")
            self._draw(folder / "preview.png")
            details = {**self.details, "clipped_to_dtype": clipped}
            record = provenance.record(self.checkpoint, subject=case.subject, **details)
            write_json(folder / provenance.RECORD, record)
        return path

    def _draw(self, path: Path) -> None:
        case = self._known_case
        title = provenance.preview_title(case.subject, self.checkpoint)
        results.draw_case(path, case, self, title)

    @property
    def _known_case(self) -> Case:
        if self.case is None:
            raise ValueError("this result does not know the case that was repainted")
        return self.case


class InpaintedVolumes(list[InpaintedVolume]):
    """Samples of a case, or their mean, which show themselves in a notebook."""

    def __repr__(self) -> str:
        rest = f", ... {len(self)} in all" if len(self) > 1 else ""
        return f"[{', '.join(map(repr, self[:1]))}{rest}]"

    def _repr_html_(self) -> str:
        return "".join(volume._repr_html_() for volume in self)


class Samples(NamedTuple):
    """What `Inpainter.sample` returns.

    Attributes:
        images: float32 [samples, N, S, S, Q], equal to those given outside the ROI.
        label_probabilities: float32 [samples, N, S, S, 4], of no tumor and canonical labels 1 to 3,
            meaningful inside the ROI only; the mean over sequences that were painted one by one. From
            the last evaluation of the network. None without a label head.
    """

    images: np.ndarray
    label_probabilities: np.ndarray | None
