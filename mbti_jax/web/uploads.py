"""Files that users upload: their limits, and private copies of them."""

import dataclasses
import gzip
import shutil
import zlib
from collections.abc import Sequence
from pathlib import Path

from PIL import Image

NIFTI_ENDINGS = (".nii", ".nii.gz")
SLICE_ENDINGS = (".png", ".npy")
_MB = 10**6
_MAX_FILES = 8


@dataclasses.dataclass(frozen=True)
class Limits:
    """What the page accepts.

    Attributes:
        upload_mb: size of an uploaded file, in 10^6 bytes.
        volume_mb: size of a NIfTI file after decompression, in 10^6 bytes.
        pixels: pixels of a slice, in a picture or in a volume.
        images: images to sample in one run: slices x sequences x samples.
    """

    upload_mb: int
    volume_mb: int
    pixels: int
    images: int

    def __post_init__(self):
        for field in dataclasses.fields(self):
            if getattr(self, field.name) < 1:
                raise ValueError(f"the limit {field.name} must be at least 1")


def copy_in(paths: Sequence[str | Path], folder: Path, limits: Limits) -> list[Path]:
    """Copies uploaded files into `folder`, as they have to outlive the upload, and checks their size.

    Raises:
        ValueError: no file or too many, two of the same name, another kind of file, or a limit exceeded.
    """
    if not paths:
        raise ValueError("choose a file first")
    if len(paths) > _MAX_FILES:
        raise ValueError(
            f"these are {len(paths)} files; at most {_MAX_FILES} of one case are taken"
        )
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
        folder.mkdir(parents=True, exist_ok=True)
        copies.append(Path(shutil.copyfile(source, target)))
    return copies


def is_nifti(path: Path) -> bool:
    return path.name.endswith(NIFTI_ENDINGS)


def check_slice(name: str, shape: Sequence[int], limits: Limits) -> None:
    """Raises ValueError if slices [H, W] are larger than the page takes."""
    height, width = shape
    if height * width > limits.pixels:
        raise ValueError(
            f"{name}: has slices of {width} x {height} pixels; at most {limits.pixels} are taken"
        )


def _check_unpacked(path: Path, limits: Limits) -> None:
    """A few kilobytes can hold gigabytes of zeros, so the stream is measured before it is read."""
    with path.open("rb") as file:
        if file.read(2) != b"\x1f\x8b":
            return  # Not compressed: as large as the upload.
        file.seek(0)
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
