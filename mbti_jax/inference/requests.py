"""Requests: what a result on disk was made from, so that a rerun makes only what is missing."""

import contextlib
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

from mbti_jax.diffusion.samplers.driver import Progress
from mbti_jax.inference import provenance
from mbti_jax.inference.inpainter import InpaintedVolume, Inpainter
from mbti_jax.io.files import file_digest
from tfds_brats.cases import Case

RECORD = "provenance.json"


def make_request(inpainter: Inpainter, inputs: Sequence[Path], **details: Any) -> dict[str, Any]:
    """Everything that a result depends on, in JSON values: model, input files, and further details.

    Raises:
        ValueError: an input is not a file.
    """
    for path in inputs:
        if not path.is_file():
            raise ValueError(f"{path}: is not a file")
    return {
        "checkpoint": inpainter.checkpoint,
        "inputs": {path.name: file_digest(path) for path in dict.fromkeys(inputs)},
        **json.loads(json.dumps(details)),
    }


def is_done(record: Path, request: dict[str, Any]) -> bool:
    """Whether the result with that provenance record exists.

    Raises:
        ValueError: the record belongs to another request.
    """
    if not record.is_file():
        return False
    try:
        recorded = json.loads(record.read_text())["request"]
        different = [name for name in request if recorded.get(name) != request[name]]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{record}: cannot be read ({error}); remove it") from error
    if different:
        raise ValueError(
            f"{record}: belongs to another request (other {', '.join(different)}); choose another "
            "--workdir or remove it"
        )
    return True


def case_record(
    inpainter: Inpainter,
    case: Case,
    result: InpaintedVolume,
    request: dict[str, Any],
    **details: Any,
) -> dict[str, Any]:
    """The provenance record of a sample of a case."""
    return provenance.record(
        inpainter.checkpoint,
        subject=case.subject,
        inputs=request["inputs"],
        **result.details,
        **details,
        request=request,
    )


def preview_title(name: str, inpainter: Inpainter) -> str:
    """What the preview of a result says above its pictures."""
    note = inpainter.checkpoint["note"]
    return f"{name}: synthetic inside the ROIs" + (f"\n{note}" if note else "")


@contextlib.contextmanager
def progress_bar(name: str, leave: bool = True) -> Iterator[Progress]:
    """A progress bar in percent, as the function that moves it."""
    layout = "{l_bar}{bar}| {elapsed}<{remaining}"
    with tqdm(total=100, desc=name, unit="%", bar_format=layout, leave=leave) as bar:

        def progress(done: int, total: int) -> None:
            bar.update(100 * done // total - bar.n)

        yield progress
