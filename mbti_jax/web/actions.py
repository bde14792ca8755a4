"""What happens on the page: the handlers of its events, and how errors are reported."""

import functools
import html
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gradio as gr

from mbti_jax.diffusion.samplers.driver import SamplingCancelled
from mbti_jax.diffusion.sampling import Sampling
from mbti_jax.inference.inpainter import Inpainter
from mbti_jax.rois.regions import check_names
from mbti_jax.web import painter, results
from mbti_jax.web.examples import load_example
from mbti_jax.web.results import Result
from mbti_jax.web.session import Session, load_files, take_roi
from mbti_jax.web.uploads import Limits
from tfds_brats.cases import Case
from tfds_brats.conventions import SEQUENCES


class Actions:
    """What happens on the page; every method is a handler of one of its events."""

    def __init__(self, inpainter: Inpainter, limits: Limits, example: Case, root: Path):
        self._inpainter = inpainter
        self._limits = limits
        self._example = example
        self._root = root
        self._running: dict[str, Session] = {}
        self._has_compiled = False

    def load(self, old, files, convention, sequences):
        given = files or [], convention or "", sequences or []
        return _replace(old, load_files(*given, self._inpainter, self._root, self._limits))

    def load_example(self, old, name):
        return _replace(old, load_example(name, self._example, self._inpainter, self._root))

    def open(self, session):
        """Shows what was loaded: painter, slice slider, sequences."""
        number, sequence = session.first_slice, session.sequences[0]
        depth, several = session.shape[0], len(session.sequences) > 1
        choices = [(title(name), name) for name in session.sequences]
        separate = several and self._inpainter.num_channels == 1
        return (
            _painter(session, number, sequence),
            gr.Slider(value=number, maximum=max(depth - 1, 1), visible=depth > 1),
            gr.Radio(choices, value=sequence, visible=several),
            gr.CheckboxGroup(choices, value=list(session.sequences), visible=separate),
            gr.Column(visible=True),
        )

    def turn_to(self, session, number, sequence):
        """Another slice."""
        if session is None:
            return gr.skip()
        return _painter(session, int(number), sequence)

    def show_sequence(self, session, number, sequence):
        """Another sequence; the painter keeps what it has, and its history."""
        if session is None:
            return gr.skip()
        return _picture(session, int(number), sequence)

    def paint(self, session, value):
        if session is not None and value is not None:
            labels = painter.from_runs(value.get("runs"), session.shape[1:])
            session.paint(value.get("slice"), labels, value.get("box"))

    def set_roi(self, session, file, labels, box):
        _loaded(session)
        check_names(box)
        take_roi(session, file, labels or "", self._limits)
        session.box = tuple(box)
        slices = sorted(session.painted)
        return f"ROIs in {len(slices)} slice{'s' * (len(slices) > 1)}: {_ranges(slices)}."

    def ask(self, session, value):
        """A run is asked for, with what is painted right now."""
        _loaded(session)
        self.paint(session, value)
        session.begin()
        return "Waiting for the model ..."

    def inpaint(
        self,
        session,
        sequences,
        seed,
        num_samples,
        num_steps,
        guidance_weight,
        request: gr.Request,
        progress=gr.Progress(),  # noqa: B008 (Gradio recognizes it by its default)
    ):
        _loaded(session)
        session.begin()
        self._running[str(request.session_hash)] = session
        first = "" if self._has_compiled else " (the first run compiles: up to a minute more)"

        def report(done: int, total: int) -> None:
            self._has_compiled = True
            progress((done, total), desc="Sampling", unit="steps")

        progress(0, desc=f"Preparing{first}")
        try:
            result = results.run(
                self._inpainter,
                session,
                self._limits,
                sequences=[name for name in session.sequences if name in (sequences or ())],
                sampling=Sampling(
                    num_steps=_whole("the number of steps", num_steps),
                    guidance=_number("the guidance weight", guidance_weight),
                    seed=_whole("the seed", seed),
                    z_sigma_mm=results.Z_SIGMA_MM,
                ),
                num_samples=_whole("the number of samples", num_samples),
                progress=report,
            )
        finally:
            session.end()
            self._running.pop(str(request.session_hash), None)
        sentence = f"Repainted slice{'s' * (len(result.slices) > 1)} {_ranges(result.slices)}."
        warnings = "".join(f"\n\nNote: {warning}." for warning in result.warnings)
        return result, sentence + warnings, _paths(result, 0)

    def cancel(self, session):
        if session is not None:
            session.cancel()

    def leave(self, request: gr.Request):
        """The tab was closed: nobody waits for the run."""
        if session := self._running.get(str(request.session_hash)):
            session.cancel()

    def show(self, session, result, number, sequence, sample):
        """The results in the slice and sequence that are looked at."""
        spread = gr.Image(visible=False)
        if session is None or result is None:
            return gr.Column(visible=False), None, None, spread, "", gr.skip()
        number, sample = int(number), int(sample)
        samples, compared = results.samples_of(session, result, number, sequence), None
        if samples:
            compared = results.before(session, result, number, sequence), samples[sample]
            text = (
                f"{title(sequence)}, slice {number}, sample {sample}: before left of the line, after "
                "right."
            )
        elif sequence in result.values:
            text = f"Slice {number} was not repainted; see slice {_ranges(result.slices)}."
        else:
            text = f"{title(sequence)} was not repainted."
        if uncertain := results.uncertainty(session, result, number, sequence):
            label = f"Standard deviation, 0 to {uncertain[1]:.3g}"
            spread = gr.Image(value=uncertain[0], label=label, visible=True)
        gallery = [(picture, f"sample {n}") for n, picture in enumerate(samples)]
        return gr.Column(visible=True), compared, gallery, spread, text, _paths(result, sample)


def in_sentences(function: Callable) -> Callable:
    """The handler, with errors reported to the user in a sentence."""

    @functools.wraps(function)
    def wrapped(*arguments):
        try:
            return function(*arguments)
        except SamplingCancelled:
            raise gr.Error(
                "Cancelled; nothing was kept.", title="", print_exception=False
            ) from None
        except (ValueError, OSError) as error:
            text = html.escape(str(error))
            raise gr.Error(text, duration=20, print_exception=False) from error
        except MemoryError as error:
            text = "This is too large for the memory of the server."
            raise gr.Error(text, print_exception=False) from error

    return wrapped


def title(sequence: str) -> str:
    return sequence.upper() if sequence in SEQUENCES else sequence


def _loaded(session: Session | None) -> None:
    if session is None:
        raise ValueError("load an image or an example first")


def _paths(result: Result, sample: int) -> list[str]:
    return [str(path) for path in (result.archive, *result.files[sample])]


def _picture(session: Session, number: int, sequence: str, **painted: Any) -> gr.HTML:
    """The painter with another picture, and what else it is given."""
    picture = painter.png_url(session.picture(number, sequence))
    # An update replaces all that the painter's script knows, so the tissues are sent again.
    return gr.HTML(picture=picture, tissues=painter.tissues(), **painted)


def _painter(session: Session, number: int, sequence: str) -> gr.HTML:
    value = {
        "slice": number,
        "shape": list(session.shape[1:]),
        "aspect": session.aspect,
        "runs": painter.to_runs(session.labels(number)),
        "box": list(session.box),
        # A picture does not say which side is which.
        "sides": isinstance(session.source, Case),
    }
    return _picture(session, number, sequence, value=value)


def _replace(old: Session | None, session: Session):
    """(session, no result, a sentence about what was loaded)"""
    if old is not None:
        old.close()
    depth, height, width = session.shape
    slices = f"{depth} slices of " if depth > 1 else ""
    names = ", ".join(map(title, session.sequences))
    where = (
        "Radiological orientation: the patient's right is on the left, anterior on top."
        if isinstance(session.source, Case)
        else "The picture is taken as it is; the model expects anterior on top."
    )
    return session, None, f"{session.name}: {slices}{width} x {height} pixels, {names}. {where}"


def _ranges(numbers: list[int]) -> str:
    """[3, 4, 5, 9] -> "3 to 5, 9"."""
    parts: list[list[int]] = []
    for number in numbers:
        if parts and number == parts[-1][-1] + 1:
            parts[-1].append(number)
        else:
            parts.append([number])
    return ", ".join(f"{p[0]} to {p[-1]}" if len(p) > 1 else str(p[0]) for p in parts)


def _whole(name: str, value: Any) -> int:
    """A number of the page as an integer; the browser sends 25 as 25.0."""
    if isinstance(value, bool) or not isinstance(value, int | float) or value != int(value):
        raise ValueError(f"{name} must be a whole number, not {value!r}")
    return int(value)


def _number(name: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError(f"{name} must be a number, not {value!r}")
    return float(value)
