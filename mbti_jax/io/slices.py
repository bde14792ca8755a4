"""Single slices as files: PNG and npy, and their ROIs.

PNG is read exactly in all its modes, or refused: gray of 1 to 16 bits; colors, also of a palette, if
they are gray (or an ROI's); an alpha channel if it is opaque throughout.
"""

import struct
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
from PIL import Image

from mbti_jax.io.files import distinct_names, replacing

_MAX_PIXELS = 2**26
_SIGNATURES = {".png": b"\x89PNG\r\n\x1a\n", ".npy": b"\x93NUMPY"}
# Color types of PNG.
_GRAY, _RGB, _PALETTE, _GRAY_ALPHA, _RGB_ALPHA = 0, 2, 3, 4, 6
_MODES = {
    _GRAY: "gray",
    _RGB: "colors",
    _PALETTE: "a palette",
    _GRAY_ALPHA: "gray with alpha",
    _RGB_ALPHA: "colors with alpha",
}


def read_slice(path: Path) -> np.ndarray:
    """The numbers of a slice: [H, W] from a gray PNG, [H, W] or [H, W, C] from npy.

    Raises:
        ValueError: unreadable, colored or too large; the message names the file.
    """
    array = _gray_if_equal(_read(path))
    if path.suffix.lower() == ".npy" or array.ndim == 2:
        return array
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
    folder: Path,
    sources: Sequence[Path],
    image: np.ndarray,
    ending: str = "inpainted",
    sequences: Sequence[str] = (),
) -> None:
    """Writes a slice to files named after those that `read_sequences` read it from.

    Args:
        ending: what is added to their names.
        sequences: names of the sources, added where two files have the same name; default their numbers.
    """
    keys = sequences or [str(number) for number in range(len(sources))]
    names = distinct_names({key: source.stem for key, source in zip(keys, sources, strict=True)})
    images = np.moveaxis(image, -1, 0) if len(sources) > 1 else [image]
    for key, source, one in zip(keys, sources, images, strict=True):
        write_slice(folder / f"{names[key]}-{ending}{source.suffix.lower()}", one)


def read_roi(path: Path) -> np.ndarray:
    """An ROI as `rois.to_masks` takes it: a label map [H, W] or a picture uint8 [H, W, 3].

    Of a palette its colors count, not its indices, since they are what a viewer shows.

    Raises:
        ValueError: unreadable or too large; the message names the file.
    """
    array = _read(path)
    return array.astype(np.uint8) if array.dtype == bool else _gray_if_equal(array)


def write_slice(path: Path, image: np.ndarray) -> None:
    """Writes a slice as `path`'s ending says: PNG for uint8 and uint16 [H, W], or npy."""
    with replacing(path) as beside:
        if path.suffix.lower() == ".npy":
            np.save(beside, image)
        else:
            Image.fromarray(image).save(beside)


def _gray_if_equal(array: np.ndarray) -> np.ndarray:
    """[H, W] of a picture uint8 or uint16 [H, W, 3] whose colors are all gray; any other as it is."""
    is_picture = array.ndim == 3 and array.shape[-1] == 3 and array.dtype in (np.uint8, np.uint16)
    return array[..., 0] if is_picture and (array == array[..., :1]).all() else array


def _read(path: Path) -> np.ndarray:
    if not path.is_file():
        raise ValueError(f"{path}: is not a file")
    with path.open("rb") as file:
        start = file.read(8)
    ending = path.suffix.lower()
    is_really = [name for name, signature in _SIGNATURES.items() if start.startswith(signature)]
    if not is_really:
        raise ValueError(f"{path}: is neither PNG nor npy, or damaged")
    if ending not in is_really:
        # Results are written in the format that the name says.
        raise ValueError(f"{path}: is a {is_really[0]} file by its content; rename it")
    try:
        return _read_npy(path) if ending == ".npy" else _read_png(path)
    except Exception as error:  # Of a damaged npy header numpy raises what its parser happens to.
        raise ValueError(f"{path}: cannot be read: {error}") from error


def _read_npy(path: Path) -> np.ndarray:
    array = np.load(path, mmap_mode="r", allow_pickle=False)
    _check_size(array.size)
    return np.array(array)


class _PngHeader(NamedTuple):
    width: int
    height: int
    bits: int
    color_type: int

    @classmethod
    def of(cls, path: Path) -> "_PngHeader":
        with path.open("rb") as file:
            start = file.read(26)
        if start[12:16] != b"IHDR":
            raise ValueError("its header is damaged")
        return cls(*struct.unpack(">IIBB", start[16:26]))


def _read_png(path: Path) -> np.ndarray:
    """[H, W], or [H, W, 3] in colors."""
    header = _PngHeader.of(path)
    _check_size(header.width * header.height)
    if header.bits == 16 and header.color_type != _GRAY:
        # Pillow keeps 8 of the 16 bits.
        array = cv2.imdecode(np.fromfile(path, np.uint8), cv2.IMREAD_UNCHANGED)
        if array is None or array.dtype != np.uint16 or array.ndim != 3:
            raise ValueError(f"it holds {_MODES[header.color_type]} of 16 bits, which is not read")
        return _without_alpha(array[..., [2, 1, 0, 3][: array.shape[-1]]], header)
    with Image.open(path, formats=["PNG"]) as picture:
        if getattr(picture, "n_frames", 1) > 1:
            raise ValueError("it is animated; a slice is one picture")
        picture.load()
        transparent = "transparency" in picture.info
        if header.color_type == _GRAY:
            if transparent:
                raise ValueError(
                    "one of its gray values is transparent; save it without transparency"
                )
            array = np.array(picture)
            # Pillow stretches 2 and 4 bits to 0..255.
            return array // (255 // (2**header.bits - 1)) if header.bits in (2, 4) else array
        has_alpha = transparent or header.color_type in (_GRAY_ALPHA, _RGB_ALPHA)
        return _without_alpha(np.array(picture.convert("RGBA" if has_alpha else "RGB")), header)


def _without_alpha(array: np.ndarray, header: _PngHeader) -> np.ndarray:
    """[H, W, 3] of [H, W, 3 or 4], whose alpha has to be opaque."""
    if array.shape[-1] == 4 and (array[..., 3] != np.iinfo(array.dtype).max).any():
        raise ValueError(
            f"it holds {_MODES[header.color_type]} of {header.bits} bits and is partly transparent; "
            "save it without transparency"
        )
    return array[..., :3]


def _check_size(count: int) -> None:
    if not 0 < count <= _MAX_PIXELS:
        raise ValueError(f"it holds {count} numbers; a slice has 1 to {_MAX_PIXELS}")
