"""Sampling what a user painted, and the results as files and pictures."""

import dataclasses
import math
import shutil
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mbti_jax.diffusion.samplers.driver import Cancel, Progress
from mbti_jax.diffusion.sampling import Sampling
from mbti_jax.fields import whole_number
from mbti_jax.inference.inpainted import InpaintedSlice, InpaintedVolume
from mbti_jax.inference.inpainter import Inpainter
from mbti_jax.inference.provenance import RECORD, preview_title, record
from mbti_jax.inference.requests import case_record
from mbti_jax.inference.results import (
    STD_OF_SLICE,
    draw_case,
    draw_slice,
    write_case,
    write_label_descriptions,
    write_std,
)
from mbti_jax.io.files import file_digest, new_folder, replacing, write_json
from mbti_jax.io.quantize import standard_deviation
from mbti_jax.io.slices import write_sequences, write_slice
from mbti_jax.rois.regions import Rois
from mbti_jax.web.session import Session
from mbti_jax.web.uploads import Limits
from tfds_brats.cases import Case
from tfds_brats.slices import from_slices

# Of a pixel that is made: twice in float64, once in float32 while it is sampled, once while it is kept.
_PIXEL_BYTES = 8 + 8 + 4 + 4
# Of a pixel of a repainted slice: the probabilities of four labels, twice in float32. `InpaintedVolume`
# has room for all slices, but memory that nobody wrote to is not taken.
_PROBABILITY_BYTES = 2 * 4 * 4


@dataclasses.dataclass(frozen=True)
class Result:
    """What a run made.

    Attributes:
        slices: the numbers of the repainted slices.
        titles: of the results: samples, or their mean.
        values: sequence -> float32 [results, len(slices), H, W] in the file's units, the image outside
            the ROI.
        std: of a mean, sequence -> float32 [len(slices), H, W], the standard deviation over the samples;
            None without any.
        rois: uint8 [len(slices), H, W], the ROIs in the numbers of `ROI_LABELS`, boxes filled.
        box: names of those that are boxes.
        labels: uint8 [results, len(slices), H, W], what a model with a label head says it painted;
            None for other models.
        files: for each result its files.
        archive: all of them in one file, and of several samples their standard deviation.
        warnings: for the user.
    """

    slices: list[int]
    titles: list[str]
    values: dict[str, np.ndarray]
    std: dict[str, np.ndarray] | None
    rois: np.ndarray
    box: tuple[str, ...]
    labels: np.ndarray | None
    files: list[list[Path]]
    archive: Path
    warnings: list[str]

    def spread(self) -> dict[str, np.ndarray] | None:
        """Sequence -> float32 [len(slices), H, W], the standard deviation over the samples, if known."""
        if self.std is not None or len(self.titles) < 2:
            return self.std
        return {name: standard_deviation(v, self.rois > 0) for name, v in self.values.items()}


def check_run(session: Session, limits: Limits, sequences: Sequence[str], num_samples: int) -> None:
    """Raises ValueError if a run would make more than the limits allow."""
    slices, size = len(session.painted), math.prod(session.shape[1:])
    count = slices * len(sequences) * num_samples
    way_out = "choose fewer samples or slices" if slices > 1 else "choose fewer samples"
    if count > limits.images:
        raise ValueError(
            f"{slices} slices x {len(sequences)} sequences x {num_samples} samples are {count} images; "
            f"at most {limits.images} are made in one run: {way_out}"
        )
    needed = count * _PIXEL_BYTES * size
    if session.inpainter.has_labels:
        # Beside the probabilities the labels themselves, of all slices.
        needed += num_samples * size * (slices * _PROBABILITY_BYTES + session.shape[0])
    if needed > limits.run_mb * 10**6:
        raise ValueError(
            f"{session.name}: what is made of {count} images becomes {needed / 1e6:.0f} MB in memory; "
            f"at most {limits.run_mb} MB are taken: {way_out}"
        )


def run(
    session: Session,
    limits: Limits,
    sampling: Sampling,
    *,
    sequences: Sequence[str] = (),
    num_samples: int = 1,
    cancel: Cancel | None = None,
    progress: Progress | None = None,
) -> Result:
    """Repaints what is painted, and writes the results into the session's folder.

    Args:
        session: images, ROIs, and the model.
        limits: what is accepted.
        sampling: how the samples are drawn.
        sequences: those to repaint; empty for all.
        num_samples: how many samples, or how many to take the mean of.
        cancel: asked between chunks of steps; true ends the run. Default: whether the session is
            cancelled.
        progress: called with (steps done, steps in all).

    Raises:
        ValueError: nothing is painted, ROIs that do not go together, a setting out of its range, or
            more images than the limit.
        SamplingCancelled: `cancel` returned true.
        OSError: the files cannot be written.
    """
    inpainter, rois = session.inpainter, session.rois()
    num_samples = whole_number("the number of samples", num_samples, least=1)
    sampling.check_num_samples(num_samples)
    sequences = tuple(sequences) or session.sequences
    check_run(session, limits, sequences, num_samples)
    options = {"progress": progress, "cancel": cancel or session.cancelled.is_set}
    folder = session.result_folder()
    shutil.rmtree(folder, ignore_errors=True)
    source, slices = session.source, np.flatnonzero(rois.union.any((1, 2))).tolist()
    with new_folder(folder) as target:
        folders = [target / f"sample_{number:03d}" for number in range(num_samples)]
        titles = [f"sample {number}" for number in range(num_samples)]
        if sampling.is_mean:
            folders, titles = [target / "mean"], [f"mean of {num_samples} samples"]
        if sampling.mean_passes:
            titles = ["mean in one pass"]
        for one in folders:
            one.mkdir()
        if isinstance(source, Case):
            if session.segmentation is not None:
                source = dataclasses.replace(source, labels=from_slices(session.segmentation))
            samples = inpainter.inpaint_volume(
                source, rois, sampling, samples=range(num_samples), sequences=sequences, **options
            )
            _write_volumes(inpainter, session, source, samples, folders)
            values, std = {}, samples[0].std
            std = std and {name: deviations[slices] for name, deviations in std.items()}
            for name in sequences:
                painted = np.stack([sample.values[name][slices] for sample in samples])
                kept = np.where(rois.union[slices], painted, session.volumes[name][slices])
                values[name] = kept.astype(np.float32)
            by_sample = [sample.labels for sample in samples if sample.labels is not None]
            labels = np.stack(by_sample)[:, slices] if by_sample else None
            warnings = samples[0].details["warnings"]
            if len(titles) > 1:
                _write_volume_std(inpainter, session, source, values, rois, target)
        else:
            if sequences != session.sequences:
                raise ValueError(
                    "the sequences of a single slice are repainted all together; choose all of them"
                )
            # A single slice has no neighbors to share its noise with.
            sampling = dataclasses.replace(sampling, z_sigma_mm=0.0)
            kept = None if session.segmentation is None else session.segmentation[0]
            inpainted = inpainter.inpaint(
                source, rois[0], sampling, num_samples=num_samples, labels=kept, **options
            )
            _write_slice(inpainter, session, source, inpainted, folders)
            by_channel = inpainted.images.reshape(-1, 1, *source.shape[:2], len(sequences))
            by_sequence = np.moveaxis(by_channel, -1, 0).astype(np.float32)
            values, std = dict(zip(sequences, by_sequence, strict=True)), None
            if inpainted.is_mean and inpainted.std is not None:
                deviations = np.moveaxis(inpainted.std.reshape(by_channel.shape[1:]), -1, 0)
                std = dict(zip(sequences, deviations, strict=True))
            labels = None if inpainted.labels is None else inpainted.labels[:, None]
            warnings = inpainted.provenance["warnings"]
            if len(titles) > 1 and inpainted.std is not None:
                one = _std_folder(target, num_samples)
                write_slice(one / STD_OF_SLICE, inpainted.std)
                write_json(one / RECORD, _std_record(inpainter, session, num_samples))
    files = [sorted((folder / one.name).iterdir()) for one in folders]
    archive, written = folder / f"{session.name}-inpainted.zip", sorted(folder.glob("*/*"))
    with replacing(archive) as partial, zipfile.ZipFile(partial, "w") as packed:
        for path in written:
            packed.write(path, path.relative_to(folder))
    # Without a label head it is the request, which the user painted.
    labels = labels if inpainter.has_labels else None
    return Result(
        slices,
        titles,
        values,
        std,
        rois.label_map()[slices],
        tuple(rois.box),
        labels,
        files,
        archive,
        warnings,
    )


def _write_volumes(
    inpainter: Inpainter,
    session: Session,
    case: Case,
    samples: Sequence[InpaintedVolume],
    folders: Sequence[Path],
) -> None:
    title, request = preview_title(session.name, inpainter.checkpoint), _request(session)
    for target, sample in zip(folders, samples, strict=True):
        clipped = write_case(target, case, sample)
        write_label_descriptions(target / "rois.label.txt")
        draw_case(target / "preview.png", case, sample, title)
        details = {"z_continuity": {}, "clipped_to_dtype": clipped}
        write_json(target / RECORD, case_record(inpainter, case, sample, request, **details))


def _write_volume_std(
    inpainter: Inpainter,
    session: Session,
    case: Case,
    values: dict[str, np.ndarray],
    rois: Rois,
    folder: Path,
) -> None:
    """What the command line writes beside several samples."""
    inside, count = rois.union, len(next(iter(values.values())))
    slices, std = inside.any((1, 2)), {}
    for name, painted in values.items():
        std[name] = np.zeros(inside.shape, np.float32)
        std[name][slices] = standard_deviation(painted, inside[slices])
    target = _std_folder(folder, count)
    write_std(target, case, std)
    write_json(target / RECORD, _std_record(inpainter, session, count))


def _std_folder(folder: Path, num_samples: int) -> Path:
    target = folder / f"std_of_{num_samples}"
    target.mkdir()
    return target


def _std_record(inpainter: Inpainter, session: Session, num_samples: int) -> dict[str, Any]:
    what = f"over {num_samples} samples, n - 1 in the denominator, in the input's units"
    return record(inpainter.checkpoint, subject=session.name, std=what, **_request(session))


def _write_slice(
    inpainter: Inpainter,
    session: Session,
    image: np.ndarray,
    inpainted: InpaintedSlice,
    folders: Sequence[Path],
) -> None:
    title, request = preview_title(session.name, inpainter.checkpoint), _request(session)
    for number, target in enumerate(folders):
        labels = None if inpainted.labels is None else inpainted.labels[[number]]
        one = dataclasses.replace(inpainted, images=inpainted.images[[number]], labels=labels)
        write_sequences(target, session.files, one.images[0])
        write_slice(target / "rois.png", inpainted.rois.label_map())
        if labels is not None:
            write_slice(target / "seg.png", labels[0])
        draw_slice(target / "preview.png", image, one, title)
        if inpainted.is_mean and inpainted.std is not None:
            write_slice(target / STD_OF_SLICE, inpainted.std)
        write_json(target / RECORD, {**inpainted.provenance, **request, "sample": number})


def _request(session: Session) -> dict[str, Any]:
    digests = {path.name: file_digest(path) for path in session.files}
    return {"inputs": digests, "made_with": "web page"}
