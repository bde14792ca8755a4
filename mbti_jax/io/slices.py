"""Single slices as files: PNG (8 or 16 bit, gray) and npy, and their ROIs."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

from mbti_jax.io.files import replacing

_MAX_PIXELS = 2**26
_GRAY_MODES = ("L", "I;16", "I;16B", "I", "F", "P", "1")


def read_slice(path: Path) -> np.ndarray:
    """The numbers of a slice: [H, W] from a gray PNG, [H, W] or [H, W, C] from npy.

    Raises:
        ValueError: unreadable, colored or too large; the message names the file.
    """
    array = _read(path)
    if path.suffix.lower() == ".npy" or array.ndim == 2:
        return array
    if array.shape[-1] == 3 and (array == array[..., :1]).all():
        return array[..., 0]
    raise ValueError(f"{path}: is not gray; a slice has one number per pixel")


def read_sequences(paths: Sequence[Path]) -> np.ndarray:
    """A slice with one file per sequence, or all of them in one file.

    Returns:
        [H, W] or [H, W, C] from one file, see `read_slice`; [H, W, C] from several, in their order.

    Raises:
        ValueError: as `read_slice`, or several files that do not fit each other.
    """
    first, *others = images = [read_slice(path) for path in paths]
    if not others:
        return first
    for path, image in zip(paths, images, strict=True):
        if image.ndim != 2:
            raise ValueError(f"{path}: has shape {image.shape}; one sequence, [H, W], is needed")
        if (image.shape, image.dtype) != (first.shape, first.dtype):
            raise ValueError(
                f"{path}: holds {image.shape} {image.dtype}, but {paths[0].name} {first.shape} "
                f"{first.dtype}"
            )
    return np.stack(images, axis=-1)


def write_sequences(
    folder: Path, sources: Sequence[Path], image: np.ndarray, ending: str = "inpainted"
) -> None:
    """Writes a slice to files named after those that `read_sequences` read it from.

    Args:
        ending: what is added to their names.
    """
    images = np.moveaxis(image, -1, 0) if len(sources) > 1 else [image]
    for source, one in zip(sources, images, strict=True):
        write_slice(folder / f"{source.stem}-{ending}{source.suffix.lower()}", one)


def read_roi(path: Path) -> np.ndarray:
    """An ROI as `rois.to_masks` takes it: a label map [H, W] or a picture uint8 [H, W, 3].

    Raises:
        ValueError: unreadable or too large; the message names the file.
    """
    array = _read(path)
    if array.dtype == bool:
        return array.astype(np.uint8)
    if array.ndim == 3 and array.shape[-1] == 3 and (array == array[..., :1]).all():
        return array[..., 0]
    return array


def write_slice(path: Path, image: np.ndarray) -> None:
    """Writes a slice as `path`'s ending says: PNG for uint8 and uint16 [H, W], or npy."""
    with replacing(path) as beside:
        if path.suffix.lower() == ".npy":
            np.save(beside, image)
        else:
            Image.fromarray(image).save(beside)


def _read(path: Path) -> np.ndarray:
    if not path.is_file():
        raise ValueError(f"{path}: is not a file")
    try:
        return _read_npy(path) if path.suffix.lower() == ".npy" else _read_png(path)
    except UnidentifiedImageError:
        raise ValueError(f"{path}: is neither PNG nor npy, or damaged") from None
    except Exception as error:  # Of a damaged npy header numpy raises what its parser happens to.
        raise ValueError(f"{path}: cannot be read: {error}") from error


def _read_npy(path: Path) -> np.ndarray:
    array = np.load(path, mmap_mode="r", allow_pickle=False)
    _check_size(array.size)
    return np.array(array)


def _read_png(path: Path) -> np.ndarray:
    with Image.open(path, formats=["PNG"]) as picture:
        _check_size(picture.width * picture.height)
        picture.load()
        if picture.mode not in _GRAY_MODES:
            if "A" in picture.getbands() and picture.getextrema()[-1] != (255, 255):
                raise ValueError("it is partly transparent; save it without an alpha channel")
            picture = picture.convert("RGB")
        return np.array(picture)


def _check_size(count: int) -> None:
    if not 0 < count <= _MAX_PIXELS:
        raise ValueError(f"it holds {count} numbers; a slice has 1 to {_MAX_PIXELS}")
