"""Writing files, complete or not at all, and reading the texts that the package ships."""

import contextlib
import gzip
import hashlib
import io
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from importlib import resources
from pathlib import Path
from typing import Any

# Of 1 to 9. Higher levels take several times longer for a few per cent.
_COMPRESSION = 4


@contextlib.contextmanager
def replacing(path: str | os.PathLike) -> Iterator[Path]:
    """Yields a path beside `path` to write a file to; renamed on success, removed on failure.

    The name keeps its ending, from which some writers tell the format.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".partial.{path.name}")
    try:
        yield beside
        beside.replace(path)
    except BaseException:
        beside.unlink(missing_ok=True)
        raise


@contextlib.contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """Yields an empty folder to write to; it gets the name `path` when all is written.

    On failure it is removed; what a killed process left is removed by the next one.

    Raises:
        FileExistsError: something is there already, which is no empty folder; before anything is made.
    """
    if path.exists() and not (path.is_dir() and not any(path.iterdir())):
        raise FileExistsError(f"{path} is there already; choose another folder, or remove it")
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".partial.{path.name}")
    if beside.exists():
        shutil.rmtree(beside)
    beside.mkdir()
    try:
        yield beside
        beside.replace(path)
    except BaseException:
        shutil.rmtree(beside, ignore_errors=True)
        raise


def write_json(path: str | os.PathLike, content: Any) -> None:
    """Writes JSON, complete or not at all."""
    with replacing(path) as beside:
        beside.write_text(json.dumps(content, indent=1, allow_nan=False) + "\n")


def write_bytes(path: Path, content: bytes | bytearray) -> None:
    """Writes a file, complete or not at all, compressed if its name ends in .gz.

    The compressed file has no time stamp, so the same content gives the same bytes.
    """
    if path.suffix == ".gz":
        packed = io.BytesIO()
        with gzip.GzipFile("", "wb", _COMPRESSION, packed, mtime=0) as file:
            file.write(content)
        content = packed.getvalue()
    with replacing(path) as beside:
        beside.write_bytes(content)


def file_digest(path: Path) -> str:
    """SHA-256 of a file, hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def distinct_names(stems: Mapping[str, str]) -> dict[str, str]:
    """Names for results, {key: stem} of their inputs -> {key: name}.

    They are the stems, or the stems with the keys added where two inputs have the same in any capitals.
    """
    if len({stem.lower() for stem in stems.values()}) == len(stems):
        return dict(stems)
    return {key: f"{stem}-{key}" for key, stem in stems.items()}


def shipped_text(name: str, /, **values: Any) -> str:
    """A text of the package, such as "interop/model_card.md", without its last line break.

    `values` take the places of `{...}`, as in `str.format`.
    """
    text = (resources.files("mbti_jax") / name).read_text("utf-8")
    return text.removesuffix("\n").format(**values)
