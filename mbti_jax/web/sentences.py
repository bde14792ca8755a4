"""What the page says of what was loaded, and of errors."""

import functools
import html
import logging
from collections.abc import Callable
from pathlib import Path

import gradio as gr

from mbti_jax.web.session import Session
from mbti_jax.web.views import title
from tfds_brats.cases import Case

_log = logging.getLogger(__name__)


def in_sentences(function: Callable) -> Callable:
    """The handler, with errors reported to the user in a sentence."""

    @functools.wraps(function)
    def wrapped(*arguments):
        try:
            return function(*arguments)
        except Exception as error:
            raise gr.Error(sentence_of(error), duration=20, print_exception=False) from error

    return wrapped


def sentence_of(error: Exception) -> str:
    """What users read of an error; where the server's files lie is nobody's business."""
    if isinstance(error, OSError) and error.strerror:
        name = f"{Path(error.filename).name}: " if isinstance(error.filename, str) else ""
        return html.escape(f"{name}{error.strerror}")
    if isinstance(error, ValueError | OSError):
        return html.escape(_capitalized(str(error)))
    if isinstance(error, MemoryError):
        return "This is too large for the memory of the server."
    _log.warning("a request could not be answered", exc_info=error)
    return (
        "What was sent cannot be used: one of its values is of another kind than it has to be "
        f"({type(error).__name__})."
    )


def _capitalized(text: str) -> str:
    """A sentence with a capital, unless it begins with the name of a file or of a field."""
    first = text.split(maxsplit=1)[:1]
    return text[0].upper() + text[1:] if first and first[0].isalpha() else text


def loaded_sentence(session: Session, model: str = "") -> str:
    """What was loaded, which file was taken for which sequence, and what is odd about it.

    Args:
        session: what was loaded.
        model: name of the model that paints it, if that is another than the page's.
    """
    depth, height, width = session.shape
    slices = f"{depth} slices of " if depth > 1 else ""
    names = ", ".join(_file_of(session, name) for name in session.sequences)
    where = (
        "Radiological orientation: the patient's right is on the left, anterior on top."
        if isinstance(session.source, Case)
        else "The picture is taken as it is; the model expects anterior on top."
    )
    tumor = " Its own tumor can be used below." if session.segmentation is not None else ""
    by = f" It is painted by {model}, one sequence at a time." if model else ""
    loaded = f"{session.name}: {slices}{width} x {height} pixels, {names}. {where}{tumor}{by}"
    warnings = session.source.warnings if isinstance(session.source, Case) else []
    return loaded + "".join(f"\n\nNote: {warning}." for warning in warnings)


def _file_of(session: Session, name: str) -> str:
    """A sequence with the file that was taken for it."""
    images = session.source.files.images if isinstance(session.source, Case) else {}
    return f"{title(name)} ({images[name].name})" if name in images else title(name)


def ranges(numbers: list[int]) -> str:
    """[3, 4, 5, 9] -> "3 to 5, 9"."""
    parts: list[list[int]] = []
    for number in numbers:
        if parts and number == parts[-1][-1] + 1:
            parts[-1].append(number)
        else:
            parts.append([number])
    return ", ".join(f"{p[0]} to {p[-1]}" if len(p) > 1 else str(p[0]) for p in parts)
