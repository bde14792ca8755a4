"""What happens on the page: the handlers of its events."""

import contextlib
import html
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import gradio as gr

from mbti_jax.diffusion.guidance import KINDS
from mbti_jax.diffusion.samplers.driver import SamplingCancelled
from mbti_jax.inference.inpainter import Inpainter
from mbti_jax.rois.given import check_names
from mbti_jax.web import form, results, updates, uploads
from mbti_jax.web.addresses import client_of
from mbti_jax.web.cost import Pace, cost_ahead, cost_of, passes_of
from mbti_jax.web.examples import load_example
from mbti_jax.web.history import FIELDS, KEPT_RUNS, Run, RunSettings, read_settings, to_json
from mbti_jax.web.line import Line
from mbti_jax.web.loading import LEFT_OUT, guess_sequence, load_files
from mbti_jax.web.results import Result
from mbti_jax.web.sentences import loaded_sentence, ranges, sentence_of
from mbti_jax.web.session import Session, SessionClosed
from mbti_jax.web.session_rois import TumorRois, paint_tumor, take_roi
from mbti_jax.web.values import ESTIMATES, number, whole
from mbti_jax.web.views import case_view, result_view, title
from mbti_jax.web.visitors import Visitor, Visitors
from tfds_brats.cases import Case

_FOR_NORMAL = "samples near the mean"
_SAID_FOR_NORMAL = (
    " Only normal tissue is painted, so the result is set to samples near the mean; choose "
    "another above if you like."
)


class Actions:
    """What happens on the page; every method is a handler of one of its events.

    Args:
        inpainters: the models; for each image the first is taken that can paint it.
        visitors: who is on the page; what they load is kept there and not by Gradio, which deletes it
            without a word once it keeps state of too many.
        line: who may use the model.
        example: the case of the examples.
        root: folder in which sessions make their own.
    """

    def __init__(
        self,
        inpainters: Sequence[Inpainter],
        visitors: Visitors,
        line: Line,
        example: Case,
        root: Path,
    ):
        self._inpainters = inpainters
        self._visitors = visitors
        self._line = line
        self._example = example
        self._root = root
        self._has_compiled = False
        # Name of a model -> what a pass of a batch took in its last run.
        self._seconds: dict[str, float] = {}

    def load(self, files, convention, sequences, request: gr.Request):
        given = files or [], convention or "", sequences or []
        visitor = self._visitor(request)
        with self._visitors.loading(visitor) as admit:
            session = load_files(*given, self._inpainters, self._root, self._visitors.limits, admit)
            session.uploads = tuple(map(Path, given[0]))
            self._visitors.keep(visitor, session)
        is_other = session.inpainter is not self._inpainters[0]
        return loaded_sentence(session, session.inpainter.name if is_other else "")

    def sort_files(self, files, convention):
        """A choice for each file: which sequence it is, as its name says, to be confirmed."""
        paths = list(map(Path, files or []))
        kinds = [guess_sequence(path, convention or "") for path in paths]
        shown = [
            gr.Dropdown(label=path.name, value=kind, visible=True, interactive=not convention)
            for path, kind in zip(paths, kinds, strict=True)
        ][: uploads.MAX_FILES]
        hidden = [gr.Dropdown(value=None, visible=False)] * (uploads.MAX_FILES - len(shown))
        many = len(paths) > 1 or any(map(uploads.is_nifti, paths))
        return gr.Markdown(visible=many), gr.Button(interactive=bool(paths)), *shown, *hidden

    def take_folder(self, files):
        """The files of a folder that can be used; systems put others beside them."""
        kept = [file for file in files or [] if uploads.is_image(Path(file))]
        if not kept:
            raise ValueError("this folder has no PNG, npy or NIfTI files; choose that of a case")
        if len(kept) > uploads.MAX_FILES:
            raise ValueError(
                f"this folder has more than {uploads.MAX_FILES} images, which is more than a case has; "
                "choose the folder of one case, or its files"
            )
        return kept

    def load_sorted(self, request: gr.Request, files, convention, *kinds):
        """`load` of files of which it was said which sequence each of them is."""
        if convention or not files:
            return self.load(files, convention, [], request)
        chosen = dict(zip(files, kinds, strict=False))
        if len(files) == 1 and not uploads.is_nifti(Path(files[0])):
            return self.load(files, "", [kind for kind in chosen.values() if kind], request)
        for path, kind in chosen.items():
            if kind is None:
                raise ValueError(f"{Path(path).name}: choose which sequence it is, or leave it out")
        kept = {path: kind for path, kind in chosen.items() if kind != LEFT_OUT}
        return self.load(list(kept), "", list(kept.values()), request)

    def load_example(self, name, request: gr.Request):
        visitor = self._visitor(request)
        with self._visitors.loading(visitor) as admit:
            # The images are the same for all.
            admit(uploads.memory_of_masks(self._example.brain.size))
            session = load_example(name, self._example, self._inpainters, self._root)
            self._visitors.keep(visitor, session)
        return loaded_sentence(session)

    def loader(self, name: str) -> Callable:
        """`load_example` of one name; Gradio finds no request in a `functools.partial`."""

        def load(request: gr.Request):
            return self.load_example(name, request)

        return load

    def open(self, file, tumor, request: gr.Request):
        """Shows what was loaded: the painter, and what is asked of a case alone."""
        session = self._session(request)
        # Whoever took ROIs in a range of slices may want others in the same range.
        keeps_range = session.shown is not None
        try:
            view = case_view(session)
        except SessionClosed:
            if self._visitor(request).session in (session, None):
                raise
            return self.open(file, tumor, request)  # Newer images were loaded meanwhile.
        choices = [(title(name), name) for name in session.sequences]
        separate = len(choices) > 1 and session.inpainter.num_channels == 1
        depth = session.shape[0]
        result = session.chosen and session.chosen.view
        return (
            updates.painter_with(value=view, result=result),
            gr.CheckboxGroup(choices, value=list(session.sequences), visible=separate),
            gr.Column(visible=True),
            gr.Row(visible=depth > 1),
            gr.skip() if keeps_range else gr.Number(value=0, maximum=depth - 1),
            gr.skip() if keeps_range else gr.Number(value=depth - 1, maximum=depth - 1),
            updates.start(session),
            updates.take(session, file, tumor),
            gr.skip() if self._visitor(request).has_chosen else form.preset(session),
        )

    def paint(self, request: gr.Request, value, *inputs):
        visitor = self._visitor(request)
        if (session := visitor.session) is None:
            return gr.skip(), gr.skip(), gr.skip()
        session.take_over(value)
        preset = form.preset(session)
        keeps = visitor.has_chosen or preset == inputs[FIELDS.index("estimate")]
        return (
            updates.start(session),
            self.say_cost(request, *inputs),
            gr.skip() if keeps else preset,
        )

    def choose_result(self, request: gr.Request):
        """The user chose the kind of result: from now on what is painted does not set it."""
        self._visitor(request).has_chosen = True

    def say_cost(self, request: gr.Request, *inputs):
        """What a run with this form would take, or why it cannot be; nothing is computed for it."""
        visitor = self._visitor(request)
        if (session := visitor.session) is None or not session.painted:
            return ""
        try:
            asked, settings = form.read(session, *inputs)
            results.check_run(session, self._visitors.limits, **form.sizes(session, settings))
            cost = cost_ahead(session, self._seconds.get(session.inpainter.name), **settings)
            is_set = (
                not visitor.has_chosen and asked.estimate == form.preset(session) == _FOR_NORMAL
            )
            return f"{cost}{_SAID_FOR_NORMAL * is_set}"
        except ValueError as error:
            return sentence_of(error)

    def set_roi(
        self, file, labels, box, tumor, step_mm, dilate_mm, first, last, seed, request: gr.Request
    ):
        session = self._session(request)
        check_names(box)
        step, dilation = number("the step", step_mm), number("the rim", dilate_mm)
        if dilation < 0:
            raise ValueError(f"the rim must be at least 0 mm, not {dilation:g}")
        limits = self._visitors.limits
        end = whole("the last slice", last)
        made = TumorRois(
            tumor or "",
            step,
            dilation,
            first=whole("the first slice", first),
            # As the page has it before anything is loaded, and scripts that leave it out.
            last=None if end == -1 else end,
            seed=whole("the seed", seed),
        )
        if file:
            take_roi(session, file, labels or "", limits, made)
            session.uploads = (*session.uploads, Path(file))
        elif session.segmentation is None:
            raise ValueError(
                "this case has no segmentation of its own: choose the file of the ROIs"
            )
        elif not tumor:
            raise ValueError("choose what is made of the case's own tumor, or the file of the ROIs")
        else:
            paint_tumor(session, session.segmentation, made)
        session.box = tuple(box)
        slices = sorted(session.painted)
        return f"ROIs in {len(slices)} slice{'s' * (len(slices) > 1)}: {ranges(slices)}."

    def offer_roi(self, file, tumor, request: gr.Request):
        """The button that takes ROIs: not while there is nothing to take them from."""
        return updates.take(self._visitor(request).session, file, tumor)

    def ask(self, value, request: gr.Request):
        """A run is asked for, with what is painted right now."""
        session = self._session(request)
        session.take_over(value)
        session.begin()
        return "Waiting for the model ...", *updates.run_buttons(True)

    def inpaint(
        self,
        sequences,
        seed,
        num_samples,
        num_steps,
        guidance_weight,
        estimate,
        sampler,
        guidance,
        lowest_noise,
        highest_noise,
        blend,
        request: gr.Request,
        progress=gr.Progress(),  # noqa: B008 (Gradio recognizes it by its default)
    ):
        visitor, session = self._visitor(request), self._session(request)
        asked, settings = form.read(
            session,
            sequences,
            seed,
            num_samples,
            num_steps,
            guidance_weight,
            estimate,
            sampler,
            guidance,
            lowest_noise,
            highest_noise,
            blend,
        )
        start, cost, run, pace = self._visitors.now(), "", None, Pace()

        def is_cancelled() -> bool:
            return session.cancelled.is_set() or not self._visitors.is_heard(visitor, start)

        def wait(before: int) -> None:
            progress(0, desc=f"Waiting for the model; {before} before you")

        def report(done: int, total: int) -> None:
            self._has_compiled = True
            pace.add(done, total)
            progress((done, total), desc=f"Sampling{cost}", unit="steps")

        with (
            # Newer images end the run of those before.
            contextlib.suppress(SamplingCancelled, SessionClosed),
            session.run(),
            self._line.turn(visitor.client, wait, is_cancelled) as stand_back,
        ):
            first = "" if self._has_compiled else " (the first run compiles: up to a minute more)"
            progress(0, desc=f"Preparing{first}")

            def cancel() -> bool:
                stand_back()
                return is_cancelled()

            cost = cost_of(session, **settings)
            limits = self._visitors.limits
            result = results.run(session, limits, **settings, cancel=cancel, progress=report)
            run = _kept(session, result, asked)
            if (seconds := pace.of_run()) is not None:
                passes = passes_of(session, **settings)
                self._seconds[session.inpainter.name] = seconds / passes
        visitor.used = self._visitors.now()
        session.is_new = run is not None
        if run is None:
            return f"Cancelled; nothing was kept.{_of_before(visitor.session)}", None
        return run.sentence, list(map(str, run.files))

    def cancel(self, request: gr.Request):
        if (session := self._visitor(request).session) is not None:
            session.cancel()

    def show(self, request: gr.Request):
        """The chosen run's result, where it was painted, its files, and the history."""
        session = self._visitor(request).session
        if session is None or session.chosen is None:
            return gr.skip(), *updates.history(None)
        return updates.painter_with(result=session.chosen.view), *updates.history(session)

    def show_new(self, request: gr.Request):
        """`show` after a run; what is there already after one that was cancelled."""
        session = self._visitor(request).session
        if session is None or session.is_new:
            return self.show(request)
        return gr.skip(), *updates.history(session)

    def files(self, request: gr.Request):
        """The history of these images, if they had a run."""
        return updates.history(self._visitor(request).session)

    def choose_run(self, number, request: gr.Request):
        """An earlier run of this session."""
        session = self._session(request)
        session.chosen = _run_of(session, number)
        return session.chosen.sentence

    def settings_of_run(self, request: gr.Request):
        """Puts the chosen run's settings into the form."""
        session = self._session(request)
        if session.chosen is None:
            raise ValueError("there is no run yet whose settings could be used")
        self.choose_result(request)
        inputs = form.of_settings(session, session.chosen.settings)
        return *inputs, "The settings of this run are in the form."

    def load_settings(self, file, request: gr.Request):
        """Puts saved settings into the form."""
        session = self._session(request)
        path = Path(file)
        samplers = tuple(session.inpainter.pipeline.process.samplers)
        choices = {"estimate": tuple(ESTIMATES), "sampler": samplers, "guidance": tuple(KINDS)}
        try:
            settings = read_settings(path, {**choices, "sequences": session.sequences})
        finally:
            path.unlink(missing_ok=True)
        self.choose_result(request)
        inputs = form.of_settings(session, settings)
        return *inputs, f"The settings of {html.escape(path.name)} are in the form."

    def fail(self, request: gr.Request):
        """After a run that could not be; why is said in a message."""
        session = self._visitor(request).session
        return f"Nothing was repainted.{_of_before(session)}", *self.rest(request)

    def rest(self, request: gr.Request):
        """The buttons after a run, however it ended."""
        session = self._visitor(request).session
        start, cancel = updates.run_buttons(False)
        if session is None:
            return start, cancel
        session.end()
        return updates.start(session), cancel

    def _visitor(self, request: gr.Request) -> Visitor:
        if not request.session_hash:
            raise ValueError("the request needs a `session_hash`, the same for all of a session")
        host = request.client.host if request.client else ""
        return self._visitors.asked_by(request.session_hash, client_of(host))

    def _session(self, request: gr.Request) -> Session:
        session = self._visitor(request).session
        if session is None:
            raise ValueError("load an image or an example first")
        return session


def _kept(session: Session, result: Result, settings: RunSettings) -> Run:
    """A run for the history: what the browser reads lies on disk, and the arrays go."""
    sentence = f"Repainted slice{'s' * (len(result.slices) > 1)} {ranges(result.slices)}."
    warnings = "".join(f"\n\nNote: {warning}." for warning in result.warnings)
    path = result.archive.with_name(f"{session.name}-settings.json")
    path.write_text(to_json(settings), "utf-8")
    files = [result.archive, *result.files[0]]
    number = session.num_runs + 1
    view = {**result_view(session, result), "run": number}
    run = Run(number, settings, sentence + warnings, view, files, path)
    session.keep_run(run, KEPT_RUNS)
    return run


def _of_before(session: Session | None) -> str:
    """What is said of a result that stays on the page after a run that left none."""
    if session is None or session.chosen is None:
        return ""
    return f" What is shown, and the files below, are still those of run {session.chosen.number}."


def _run_of(session: Session, number: Any) -> Run:
    for run in session.runs:
        if run.number == number:
            return run
    raise ValueError(f"run {number!r:.20} is not kept any more; the last {KEPT_RUNS} are")
