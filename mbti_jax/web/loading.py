"""Sessions made of uploaded files, or of a case that was read."""

import contextlib
import dataclasses
import re
import secrets
import shutil
from collections.abc import Callable, Collection, Iterator, Sequence
from pathlib import Path

import numpy as np

from mbti_jax.inference import checks, inputs
from mbti_jax.inference.inpainter import Inpainter
from mbti_jax.io import slices
from mbti_jax.web import uploads
from mbti_jax.web.session import Session
from mbti_jax.web.uploads import Limits
from tfds_brats.cases import Case, CaseFiles, read_case
from tfds_brats.conventions import CONVENTIONS, SEQUENCES
from tfds_brats.search import find_cases
from tfds_brats.slices import to_slices
from tfds_brats.volumes import split_ending

# Said of a file that is none of the case's sequences.
LEFT_OUT = "left out"


def guess_sequence(path: Path, convention: str = "") -> str | None:
    """Which sequence a file is by the end of its name; `LEFT_OUT` for a segmentation, None if unknown.

    Args:
        path: the file.
        convention: whose names count; "" for those of all.
    """
    stem = split_ending(path)[0].lower()
    rules = [CONVENTIONS[convention]] if convention in CONVENTIONS else list(CONVENTIONS.values())
    ends = {rule.label_suffix.lower(): LEFT_OUT for rule in rules if rule.label_suffix}
    for rule in rules:
        ends |= {suffix.lower(): name for name, suffix in rule.suffixes.items()}
    return next((name for suffix, name in ends.items() if stem.endswith(suffix)), None)


def load_files(
    paths: Sequence[str | Path],
    convention: str,
    sequences: Sequence[str],
    inpainters: Sequence[Inpainter],
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
        inpainters: the models, of which the first is taken that can paint these sequences.
        root: folder in which the session makes its own.
        limits: what is accepted.
        admit: called with the bytes that the images will take, before any is decoded; raises ValueError
            where there is no room for them.

    Raises:
        ValueError: files that cannot be used; the message names the file.
    """
    folder = new_session_folder(root)
    with contextlib.ExitStack() as on_failure, named_as_uploaded(folder):
        on_failure.callback(shutil.rmtree, folder, ignore_errors=True)
        # Where the convention of MSD looks for images.
        files = uploads.copy_in(paths, folder / "imagesTr", limits)
        admit(uploads.memory_needed(files, limits))
        if not any(map(uploads.is_nifti, files)):
            session = _slice_session(files, convention, sequences, inpainters, folder, limits)
        elif not all(map(uploads.is_nifti, files)):
            raise ValueError("a picture and a NIfTI file do not make one case; choose either")
        else:
            found = _case_files(files, convention, sequences, folder)
            has_tumor = found.labels is not None
            case = read_case(found, [s for s in SEQUENCES if s in found.images], labels=has_tumor)
            uploads.check_slice(case.subject, case.brain.shape[:2], limits)
            session = volume_session(case, inpainters, folder)
        on_failure.pop_all()
    return session


def new_session_folder(root: Path) -> Path:
    """A new folder below `root` for the files of one session.

    Who knows its name can have what is in it, so nobody can guess it.
    """
    folder = root / secrets.token_hex(16)
    folder.mkdir(mode=0o700, parents=True)
    return folder


@contextlib.contextmanager
def named_as_uploaded(folder: Path) -> Iterator[None]:
    """Errors without the folder that the files were copied to, which means nothing to the user."""
    try:
        yield
    except ValueError as error:
        text = re.sub(f"{re.escape(str(folder))}(/imagesTr)?/(?!imagesTr\\b)", "", str(error))
        text = text.replace(str(folder / "imagesTr"), "the upload")
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
        what = (
            "say which sequence the file is"
            if len(files) == 1
            else "say which sequence each file is"
        )
        order = "" if len(files) == 1 else ", in the order of the files"
        # Conventions are those of cases.
        way = ", or choose the convention by which they are named"
        way = way if any(map(uploads.is_nifti, files)) else ""
        raise ValueError(f"{what}{order} ({names}){way}")
    if len(set(sequences)) < len(sequences):
        raise ValueError("a sequence is named twice")
    return {name: str(path) for name, path in zip(sequences, files, strict=True)}


def _slice_session(
    files: Sequence[Path],
    convention: str,
    sequences: Sequence[str],
    inpainters: Sequence[Inpainter],
    folder: Path,
    limits: Limits,
) -> Session:
    if convention:
        raise ValueError("a convention names the files of a case; a single slice has none")
    if len(files) > 1:
        # In the order in which a model paints them together.
        by_name = _named(files, sequences)
        inpainter = _fitting(inpainters, by_name)
        unknown = [name for name in by_name if name not in inpainter.sequences]
        if unknown:
            known = ", ".join(inpainter.sequences)
            raise ValueError(f"the model was not trained on {unknown[0]}, but on {known}")
        sequences = tuple(name for name in inpainter.sequences if name in by_name)
        files = [Path(by_name[name]) for name in sequences]
    image = slices.read_sequences(files)
    try:
        values = checks.image_values(image)
    except ValueError as error:
        raise ValueError(f"{files[0].name}: {error}") from error
    uploads.check_slice(files[0].name, values.shape[:2], limits)
    count = values.shape[-1]
    inpainter = _fitting(inpainters, count)
    if not inpainter.paints(count):
        raise ValueError(
            f"this model paints {', '.join(inpainter.sequences)} of a slice jointly: choose a picture "
            "of each, of one size, and name their sequences in the order of the files"
        )
    if sequences and len(sequences) != count:
        raise ValueError(f"{len(sequences)} sequences are named, the slice has {count}")
    if sequences and inpainter.num_channels > 1 and tuple(sequences) != inpainter.sequences:
        raise ValueError(
            f"this model paints {', '.join(inpainter.sequences)} jointly, in this order; the channels "
            f"of {files[0].name} are said to be {', '.join(sequences)}"
        )
    names = tuple(sequences) or tuple(f"sequence {c}" for c in range(count))
    if count == 1 and not sequences:
        names = ("slice",)
    channels, brain = np.moveaxis(values, -1, 0), np.any(values != 0, axis=-1)
    return Session(
        files[0].stem,
        folder,
        image,
        inpainter,
        volumes={name: channel[None] for name, channel in zip(names, channels, strict=True)},
        scales={n: checks.slice_scale(c, brain) for n, c in zip(names, channels, strict=True)},
        brain=brain[None],
        files=list(files),
    )


def volume_session(case: Case, inpainters: Sequence[Inpainter], folder: Path) -> Session:
    """A session of a case that has been read; raises ValueError if no model can paint it."""
    inpainter = _fitting(inpainters, case.images)
    sequences = inpainter.sequences_of(case)
    case = _in_float32(case)
    return Session(
        case.subject,
        folder,
        case,
        inpainter,
        volumes={name: to_slices(case.values(name)) for name in sequences},
        scales={name: case.scale(name) for name in sequences},
        brain=to_slices(case.brain),
        files=list(dict.fromkeys(case.files.images.values())),
        segmentation=None if case.labels is None else to_slices(case.labels),
    )


def _fitting(inpainters: Sequence[Inpainter], sequences: Collection[str] | int) -> Inpainter:
    """The first that can paint these sequences; if none can, the first, which says what it lacks."""
    fitting = (inpainter for inpainter in inpainters if inpainter.paints(sequences))
    return next(fitting, inpainters[0])


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
