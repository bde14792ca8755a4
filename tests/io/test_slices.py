"""Slices as files: every mode of PNG exactly or refused, names, endings."""

import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mbti_jax.io.slices import read_roi, read_sequences, read_slice, write_sequences
from mbti_jax.rois.given import to_masks
from mbti_jax.rois.kinds import COLORS

CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}
# All that PNG allows (its specification, table 11.1): color type -> bits.
COMBINATIONS = [
    *((0, bits) for bits in (1, 2, 4, 8, 16)),
    *((3, bits) for bits in (1, 2, 4, 8)),
    *((kind, bits) for kind in (2, 4, 6) for bits in (8, 16)),
]


def write_png(path: Path, values: np.ndarray, kind: int, bits: int, palette=b"", extra=()) -> Path:
    """Unfiltered PNG of whole numbers [H, W, channels]."""

    def chunk(name: bytes, content: bytes) -> bytes:
        crc = zlib.crc32(name + content)
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", crc)

    height, width, _ = values.shape
    rows = values.reshape(height, -1).astype(">u2")
    as_bits = np.unpackbits(rows.view(np.uint8).reshape(height, -1, 2), axis=-1)[..., -bits:]
    lines = np.packbits(as_bits.reshape(height, -1), axis=-1)
    content = b"".join(b"\0" + line.tobytes() for line in lines)
    chunks = [chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, bits, kind, 0, 0, 0))]
    chunks += [chunk(b"PLTE", palette)] * bool(palette) + [chunk(*one) for one in extra]
    chunks += [chunk(b"IDAT", zlib.compress(content)), chunk(b"IEND", b"")]
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(chunks))
    return path


def gray_values(bits: int) -> np.ndarray:
    rng = np.random.default_rng(bits)
    values = rng.integers(0, 2**bits, (9, 13))
    values.flat[:2] = 0, 2**bits - 1
    return values


@pytest.mark.parametrize(("kind", "bits"), COMBINATIONS)
def test_every_mode_is_read_exactly(tmp_path, kind, bits):
    values = gray_values(bits)
    stored, palette = np.repeat(values[..., None], CHANNELS[kind], axis=-1), b""
    if kind in (4, 6):
        stored[..., -1] = 2**bits - 1
    if kind == 3:  # Indices run against the gray values that they stand for.
        shades = (255 - 255 * np.arange(2**bits) // (2**bits - 1)).astype(np.uint8)
        palette, values = shades.repeat(3).tobytes(), shades[values]
    path = write_png(tmp_path / "a.png", stored, kind, bits, palette)
    for read in (read_slice, read_roi):
        array = read(path)
        assert array.shape == values.shape
        np.testing.assert_array_equal(array.astype(int), values)
    assert read_slice(path).dtype == (
        np.uint16 if bits == 16 else bool if bits == 1 and not kind else np.uint8
    )


@pytest.mark.parametrize(("kind", "bits"), [(4, 8), (4, 16), (6, 8), (6, 16)])
def test_transparency_is_refused(tmp_path, kind, bits):
    stored = np.repeat(gray_values(bits)[..., None], CHANNELS[kind], axis=-1)
    with pytest.raises(ValueError, match=rf"a\.png: .*alpha of {bits} bits.*transparent"):
        read_slice(write_png(tmp_path / "a.png", stored, kind, bits))


@pytest.mark.parametrize("bits", [8, 16])
def test_a_transparent_gray_is_refused(tmp_path, bits):
    values = gray_values(bits)[..., None]
    key = struct.pack(">H", int(values[3, 3, 0]))
    path = write_png(tmp_path / "a.png", values, 0, bits, extra=[(b"tRNS", key)])
    with pytest.raises(ValueError, match=r"a\.png: "):
        read_slice(path)


@pytest.mark.parametrize("bits", [8, 16])
def test_colors_are_no_slice(tmp_path, bits):
    stored = np.stack([gray_values(bits)] * 3, axis=-1)
    stored[4, 4, 1] ^= 1
    with pytest.raises(ValueError, match=r"a\.png: is not gray"):
        read_slice(write_png(tmp_path / "a.png", stored, 2, bits))


def test_of_a_palette_the_colors_are_the_rois(tmp_path):
    indices = np.zeros((6, 7, 1), int)
    indices[1:3, 1:3], indices[4, 4] = 1, 2
    palette = bytes([0, 0, 0, *COLORS["edema"], *COLORS["normal"]])
    roi = read_roi(write_png(tmp_path / "a.png", indices, 3, 8, palette))
    masks = to_masks(roi, (6, 7))
    np.testing.assert_array_equal(masks[..., 2], indices[..., 0] == 1)
    np.testing.assert_array_equal(masks[..., 0], indices[..., 0] == 2)


def test_a_name_that_the_content_contradicts_is_refused(tmp_path):
    image = np.arange(12, dtype=np.uint8).reshape(3, 4)
    with (tmp_path / "a.png").open("wb") as file:
        np.save(file, image)
    Image.fromarray(image).save(tmp_path / "b.npy", format="PNG")
    Image.fromarray(image).save(tmp_path / "c.tif", format="PNG")
    for name, kind in (("a.png", "npy"), ("b.npy", "png"), ("c.tif", "png")):
        with pytest.raises(ValueError, match=rf"{name}: is a \.{kind} file by its content; rename"):
            read_slice(tmp_path / name)


def test_a_large_picture_is_named_as_such(tmp_path):
    path = write_png(tmp_path / "a.png", np.zeros((1, 1, 1), int), 0, 8)
    content = bytearray(path.read_bytes())
    content[16:24] = struct.pack(">II", 60000, 60000)
    content[29:33] = struct.pack(">I", zlib.crc32(bytes(content[12:29])))
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"a\.png: .*holds 3600000000 numbers; a slice has 1 to"):
        read_slice(path)


def test_files_of_one_name_get_results_of_their_own(tmp_path):
    image = np.arange(24, dtype=np.uint8).reshape(3, 4, 2)
    sources = []
    for c, name in enumerate(("t1", "t2")):
        (tmp_path / name).mkdir()
        sources.append(tmp_path / name / ("image.png" if c else "Image.PNG"))
        Image.fromarray(image[..., c]).save(sources[-1])
    np.testing.assert_array_equal(read_sequences(sources), image)
    write_sequences(tmp_path / "out", sources, image, sequences=("t1", "t2"))
    names = {"Image-t1-inpainted.png": 0, "image-t2-inpainted.png": 1}
    assert {path.name for path in (tmp_path / "out").iterdir()} == set(names)
    for name, c in names.items():
        np.testing.assert_array_equal(read_slice(tmp_path / "out" / name), image[..., c])
