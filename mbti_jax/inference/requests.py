"""Requests: what a result on disk was made from, so that a rerun makes only what is missing."""

import json
import os
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

from mbti_jax.inference import provenance
from mbti_jax.inference.inpainted import InpaintedVolume
from mbti_jax.inference.inpainter import Inpainter
from mbti_jax.io.files import file_digest
from tfds_brats.cases import Case
from tfds_brats.conventions import CaseError


def make_request(inpainter: Inpainter, inputs: Sequence[Path], **details: Any) -> dict[str, Any]:
    """Everything that a result depends on, in JSON values: model, input files, and further details.

    The digests of the inputs stand under the names of the files; files that share a name are told apart
    by as many of their folders as that takes.

    Raises:
        CaseError: an input is not a file.
    """
    digests: dict[str, str] = {}
    paths = {Path(os.path.abspath(path)): path for path in inputs}
    for path, given in paths.items():
        if not path.is_file():
            raise CaseError(f"{given}: is not a file")
        digests[_distinct_name(path, paths)] = file_digest(path)
    return {
        "checkpoint": inpainter.checkpoint,
        "inputs": digests,
        **json.loads(json.dumps(details)),
    }


def _distinct_name(path: Path, paths: Collection[Path]) -> str:
    """The last parts of a path, as many as tell it from the others."""
    depth = 1
    while sum(other.parts[-depth:] == path.parts[-depth:] for other in paths) > 1:
        depth += 1
    return "/".join(path.parts[-depth:])


def is_done(record: Path, request: dict[str, Any]) -> bool:
    """Whether the result with that provenance record exists.

    Raises:
        CaseError: the record belongs to another request, or cannot be read.
    """
    if not record.is_file():
        return False
    try:
        recorded = json.loads(record.read_text())["request"]
        different = [name for name in request if recorded.get(name) != request[name]]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise CaseError(f"{record}: cannot be read ({error}); remove it") from error
    if different:
        raise CaseError(
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
