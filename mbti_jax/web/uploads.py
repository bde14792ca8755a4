"""Files that users upload: their limits, and private copies of them."""

import dataclasses
import gzip
import io
import math
import shutil
import zlib
from collections.abc import Sequence
from pathlib import Path

import nibabel as nib
import numpy as np
from PIL import Image

from mbti_jax.fields import FieldError
from mbti_jax.rois.kinds import NUM_KINDS
from tfds_brats.volumes import NIFTI_ENDINGS, is_gzip, read_geometry, split_ending

SLICE_ENDINGS = (".png", ".npy")
_MB = 10**6
MAX_FILES = 8
_NIFTI2_BYTES = 540
# Of a number of an image: float32. Of a pixel with its ROIs: the brain, what is painted, the masks of
# all kinds, and the same with boxes filled. Of a PNG's number: at most 16 bits.
_IMAGE_BYTES, _MASK_BYTES, _PNG_BYTES = 4, 2 + 2 * NUM_KINDS, 2


@dataclasses.dataclass(frozen=True)
class Limits:
    """What the page accepts.

    Attributes:
        upload_mb: size of an uploaded file, in 10^6 bytes.
        volume_mb: size of a NIfTI file after decompression, in 10^6 bytes.
        pixels: pixels of a slice, in a picture or in a volume.
        images: images to sample in one run: slices x sequences x samples.
        memory_mb: what the images of one user become in memory.
        total_mb: the same of all users.
        run_mb: what the results of a run become in memory; one run is made at a time.
        uploads_mb: all uploads that lie on disk.
    """

    upload_mb: int
    volume_mb: int
    pixels: int
    images: int
    memory_mb: int = 1000
    total_mb: int = 4000
    run_mb: int = 2500
    uploads_mb: int = 2000

    def __post_init__(self):
        for field in dataclasses.fields(self):
            if getattr(self, field.name) < 1:
                raise FieldError(field.name, "must be at least 1")


def copy_in(paths: Sequence[str | Path], folder: Path, limits: Limits) -> list[Path]:
    """Copies uploaded files into `folder`, as they have to outlive the upload, and checks their size.

    Raises:
        ValueError: no file or too many, two of the same name, another kind of file, or a limit exceeded.
    """
    if not paths:
        raise ValueError("choose a file first")
    if len(paths) > MAX_FILES:
        raise ValueError(f"these are {len(paths)} files; at most {MAX_FILES} of one case are taken")
    copies = []
    for source in map(Path, paths):
        target = folder / source.name
        if target in copies:
            raise ValueError(f"{source.name}: two files have this name")
        if not source.is_file():
            raise ValueError(f"{source.name}: has been deleted since its upload; upload it again")
        size = source.stat().st_size
        if size > limits.upload_mb * _MB:
            raise ValueError(
                f"{source.name}: has {size / _MB:.0f} MB; at most {limits.upload_mb} MB are taken"
            )
        if is_nifti(source):
            _check_unpacked(source, limits)
        elif source.suffix.lower() == ".png":
            _check_picture(source, limits)
        elif source.suffix.lower() not in SLICE_ENDINGS:
            endings = ", ".join((*SLICE_ENDINGS, *NIFTI_ENDINGS))
            raise ValueError(f"{source.name}: is of a kind that is not read; these are: {endings}")
        folder.mkdir(exist_ok=True)
        copies.append(Path(shutil.copyfile(source, target)))
    return copies


def is_nifti(path: Path) -> bool:
    return split_ending(path)[1] in NIFTI_ENDINGS


def is_image(path: Path) -> bool:
    """Whether a file's name is that of an image, and not hidden."""
    is_known = is_nifti(path) or path.suffix.lower() in SLICE_ENDINGS
    return is_known and not path.name.startswith(".")


def check_slice(name: str, shape: Sequence[int], limits: Limits) -> None:
    """Raises ValueError if slices [H, W] are larger or longer than the page takes."""
    height, width = shape
    longest = 2 * math.isqrt(limits.pixels)
    if height * width > limits.pixels or max(height, width) > longest:
        raise ValueError(
            f"{name}: has slices of {width} x {height} pixels; at most {limits.pixels} are taken, and "
            f"{longest} on a side"
        )


def check_memory(name: str, what: str, size: int, limits: Limits) -> int:
    """`size` in bytes; raises ValueError if that is more than one user may have."""
    if size > limits.memory_mb * _MB:
        raise ValueError(
            f"{name}: {what} becomes {size / _MB:.0f} MB in memory; at most {limits.memory_mb} MB are "
            "taken"
        )
    return size


def memory_of_masks(pixels: int) -> int:
    """The bytes of the ROIs of so many pixels."""
    return _MASK_BYTES * pixels


def memory_needed(files: Sequence[Path], limits: Limits) -> int:
    """The bytes that images become, from the headers of their files: nothing is decoded.

    They are all images in float32, the masks of the ROIs, and the largest file while it is read.

    Raises:
        ValueError: that is more than one user may have, or a header says that its file cannot be read;
            the message names the file.
    """
    headers = {path: _header(path, limits) for path in files}
    largest = max(headers, key=lambda path: math.prod(headers[path][0]))
    shape, _ = headers[largest]
    pixels = math.prod(shape[:3] if is_nifti(largest) else shape[:2])
    size = (
        _IMAGE_BYTES * sum(math.prod(shape) for shape, _ in headers.values())
        + memory_of_masks(pixels)
        + 2 * max(math.prod(shape) * itemsize for shape, itemsize in headers.values())
    )
    of_all = f"with {len(files) - 1} more" if len(files) > 1 else "with its ROIs"
    return check_memory(largest.name, f"{' x '.join(map(str, shape))} {of_all}", size, limits)


def _header(path: Path, limits: Limits) -> tuple[tuple[int, ...], int]:
    """(shape, bytes of a stored number) of an image."""
    if is_nifti(path):
        shape, _ = read_geometry(path)
        itemsize = _voxel_bytes(path)
        if math.prod(shape) * itemsize > limits.volume_mb * _MB:
            raise ValueError(
                f"{path.name}: holds {math.prod(shape) * itemsize / _MB:.0f} MB of voxels; at most "
                f"{limits.volume_mb} MB are taken"
            )
        check_slice(path.name, shape[:2], limits)
        return shape, itemsize
    if path.suffix.lower() == ".npy":
        try:
            array = np.load(path, mmap_mode="r", allow_pickle=False)
        except Exception as error:  # Of a damaged header numpy raises what its parser happens to.
            raise ValueError(f"{path.name}: cannot be read: {error}") from error
        if array.ndim in (2, 3):  # Others are refused by what reads them.
            check_slice(path.name, array.shape[:2], limits)
        return array.shape, array.dtype.itemsize
    with Image.open(path, formats=["PNG"]) as picture:
        return (picture.height, picture.width, len(picture.getbands())), _PNG_BYTES


def _voxel_bytes(path: Path) -> int:
    with (gzip.open if is_gzip(path) else open)(path, "rb") as file:
        start = io.BytesIO(file.read(_NIFTI2_BYTES))
    is_nifti2 = _NIFTI2_BYTES in (int.from_bytes(start.read(4), o) for o in ("little", "big"))
    start.seek(0)
    kind = nib.Nifti2Header if is_nifti2 else nib.Nifti1Header
    # By itself: `from_fileobj` goes on to extensions, which end beyond what was read.
    header = kind(start.read(kind.template_dtype.itemsize), check=False)
    return header.get_data_dtype().itemsize


def _check_unpacked(path: Path, limits: Limits) -> None:
    """A few kilobytes can hold gigabytes of zeros, so the stream is measured before it is read."""
    if not is_gzip(path):
        return  # As large as the upload.
    with path.open("rb") as file:
        left = limits.volume_mb * _MB
        try:
            with gzip.GzipFile(fileobj=file) as stream:
                while block := stream.read(_MB):
                    left -= len(block)
                    if left < 0:
                        raise ValueError(
                            f"{path.name}: has more than {limits.volume_mb} MB after "
                            "decompression; that is not taken"
                        )
        except (OSError, EOFError, zlib.error) as error:
            raise ValueError(
                f"{path.name}: cannot be decompressed ({error}); it is truncated or damaged"
            ) from error


def _check_picture(path: Path, limits: Limits) -> None:
    try:
        with Image.open(path, formats=["PNG"]) as picture:
            width, height = picture.size
    except Exception as error:  # Of a damaged header Pillow raises what its parser happens to.
        raise ValueError(f"{path.name}: is no PNG picture, or damaged") from error
    check_slice(path.name, (height, width), limits)
