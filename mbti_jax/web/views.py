"""What the painter shows: images and results as files that the browser reads once.

A volume is written as uint16 codes, `value = low + step * code`: integers of a range below 65536 arrive
exactly, others to 1/65535 of their range. Everything after that - turning slices, the window, planes,
comparing - asks the server for nothing.
"""

from pathlib import Path
from typing import Any

import numpy as np

from mbti_jax.web import painter
from mbti_jax.web.results import Result
from mbti_jax.web.session import Session
from tfds_brats.cases import Case
from tfds_brats.conventions import SEQUENCES

_LARGEST_CODE = 2**16 - 1


def encode(values: np.ndarray) -> tuple[np.ndarray, float, float]:
    """Finite numbers as (uint16 codes, low, step)."""
    low, high = float(values.min()), float(values.max())
    step = 1.0
    if not np.issubdtype(values.dtype, np.integer) or high - low > _LARGEST_CODE:
        step = (high - low) / _LARGEST_CODE or 1.0
    codes = np.empty(values.shape, np.uint16)
    # Slice by slice, as float64 of a whole volume takes four times its memory.
    for target, source in zip(codes, values, strict=True):
        target[:] = np.rint((source.astype(np.float64) - low) / step)
    return codes, low, step


def title(sequence: str) -> str:
    return sequence.upper() if sequence in SEQUENCES else sequence


def case_view(session: Session) -> dict[str, Any]:
    """The images and what is painted on them, as `drawing.js` reads it."""
    if session.shown is None:
        # A picture says neither which side is which nor how large its pixels are.
        case = session.source if isinstance(session.source, Case) else None
        session.shown = {
            "key": session.key,
            "shape": list(session.shape),
            "spacing": list(case.spacing[::-1]) if case else [1.0, 1.0, 1.0],
            "sides": case is not None,
            "affine": case.affine[:3].tolist() if case else None,
            "brain": _url(session.write_array(session.brain.astype(np.uint8))),
            "sequences": [
                {
                    "name": name,
                    "title": title(name),
                    "window": [session.scales[name].low, session.scales[name].high],
                    **_array(session, volume),
                }
                for name, volume in session.volumes.items()
            ],
        }
    painted = {str(z): painter.to_runs(labels) for z, labels in session.painted.items()}
    now = {"first": session.first_slice, "box": list(session.box), "serial": session.serial}
    return {**session.shown, "painted": painted, **now}


def result_view(session: Session, result: Result) -> dict[str, Any]:
    """The result of a run, as `drawing.js` reads it.

    Its arrays are written beside the run's own files, with which they are deleted.
    """
    spread, folder = result.spread(), result.archive.parent.name
    return {
        "key": session.key,
        "slices": result.slices,
        "first": result.slices[int((result.rois > 0).sum((1, 2)).argmax())],
        "titles": result.titles,
        "sample": 0,
        "roi": [painter.to_runs(labels) for labels in result.rois],
        "box": list(result.box),
        "values": {
            name: [_array(session, sample, folder) for sample in samples]
            for name, samples in result.values.items()
        },
        "labels": result.labels is not None
        and [[painter.to_runs(labels) for labels in sample] for sample in result.labels],
        "std": spread and {n: _array(session, values, folder) for n, values in spread.items()},
    }


def _array(session: Session, values: np.ndarray, folder: str = "shown") -> dict[str, Any]:
    codes, low, step = encode(values)
    return {"url": _url(session.write_array(codes, folder)), "low": low, "step": step}


def _url(path: Path) -> str:
    """Where the browser finds a file, from the page's own address."""
    return f"gradio_api/file={path}"
