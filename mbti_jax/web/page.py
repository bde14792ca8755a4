"""The web page: its layout, and which event calls which of `actions`.

Scripts use it through `gradio_client`; the endpoints are

- `/load(files, convention, sequences)`: NIfTI files of a case, or one PNG or npy; as of
  `session.load_files`. Returns a sentence.
- `/load_example(name)`: a key of `examples.EXAMPLES`. Returns a sentence.
- `/set_roi(file, labels, box)`: the ROIs from a file, what its labels mean (as of
  `rois.parse_labels`, "" for the usual numbers) and which tissues are boxes. Returns a sentence.
- `/inpaint(sequences, seed, num_samples, num_steps, guidance_weight)`: repaints. Returns a sentence
  and the files: an archive of everything, then those of the first sample.
- `/cancel()`: stops the run of this client.

    from gradio_client import Client, handle_file

    client = Client("http://127.0.0.1:7860")
    client.predict([handle_file("BraTS2021_00000_t1.nii.gz")], "brats2021", [], api_name="/load")
    client.predict(handle_file("roi.nii.gz"), "1:normal", ["normal"], api_name="/set_roi")
    sentence, files = client.predict([], 0, 2, 25, 0.4, api_name="/inpaint")
"""

import functools
import html
from importlib import resources
from types import SimpleNamespace
from typing import Any

import gradio as gr
from gradio import themes

from mbti_jax.inference.inpainter import Inpainter
from mbti_jax.io.files import shipped_text
from mbti_jax.web import painter
from mbti_jax.web.actions import Actions, in_sentences, title
from mbti_jax.web.examples import EXAMPLES
from mbti_jax.web.session import Session
from mbti_jax.web.uploads import NIFTI_ENDINGS, SLICE_ENDINGS
from tfds_brats.conventions import CONVENTIONS, SEQUENCES

_TITLE = "Brain-tumor inpainting"
_DISCLAIMER = (
    "This is no medical device: what is painted here was never in a patient and must not be used for "
    "diagnosis."
)
# Uploads and downloads are deleted: looked for every, when older than; seconds.
_DELETE = (300, 3600)
_MAX_SAMPLES, _MAX_STEPS = 16, 1000


def build(actions: Actions, inpainter: Inpainter, num_steps: int) -> gr.Blocks:
    """The page.

    Args:
        actions: what happens on it.
        inpainter: the model, whose note is shown.
        num_steps: DDIM steps that it offers at first.
    """
    with gr.Blocks(title=_TITLE, analytics_enabled=False, delete_cache=_DELETE) as page:
        held = SimpleNamespace(
            session=gr.State(None, delete_callback=_close),
            result=gr.State(None),
            sample=gr.State(0),
        )
        gr.HTML(_header(inpainter))
        choose = _choose_section()
        with gr.Column(visible=False) as work:
            paint = _paint_section()
            repaint = _repaint_section(inpainter, num_steps)
        results = _results_section()
        _connect(actions, held, choose, work, paint, repaint, results)
        page.unload(actions.leave)
    return page


def appearance() -> dict[str, Any]:
    """Theme and style, as arguments of `launch`; fonts are the system's, so nothing is fetched."""
    style = (resources.files("mbti_jax.web") / "page.css").read_text("utf-8")
    theme = themes.Soft(
        primary_hue="teal",
        neutral_hue="slate",
        font=["system-ui", "sans-serif"],
        font_mono=["ui-monospace", "monospace"],
    )
    return {"theme": theme, "css": style}


def _header(inpainter: Inpainter) -> str:
    checkpoint = {name: html.escape(str(value)) for name, value in inpainter.checkpoint.items()}
    note = f"<p><b>This model:</b> {checkpoint['note']}</p>" if checkpoint["note"] else ""
    values = {"title": _TITLE, "disclaimer": _DISCLAIMER, "note": note, "checkpoint": checkpoint}
    return shipped_text("web/header.html", **values)


def _choose_section() -> SimpleNamespace:
    gr.Markdown("## 1 · Choose an image")
    with gr.Row():
        with gr.Column(min_width=260):
            gr.Markdown("An example, on a digital phantom:")
            examples = {name: gr.Button(name.capitalize()) for name in EXAMPLES}
        with gr.Column(scale=2, min_width=300):
            files = gr.File(
                label="Or your own PNG, npy or NIfTI files",
                file_count="multiple",
                file_types=[*SLICE_ENDINGS, *NIFTI_ENDINGS, ".gz"],
                height=170,
            )
            with gr.Row():
                convention = gr.Dropdown(
                    [("(I name the sequences)", ""), *CONVENTIONS],
                    value="",
                    label="NIfTI files are named as in",
                    min_width=240,
                )
                names = gr.Dropdown(
                    [(title(name), name) for name in SEQUENCES],
                    multiselect=True,
                    value=[],
                    label="or: sequences in the order of the files",
                    min_width=240,
                )
            load = gr.Button("Load files")
    status = gr.Markdown("Nothing is loaded yet.", elem_id="loaded", min_height=30)
    # For scripts, which give the example's name.
    example = gr.Textbox(visible=False)
    return SimpleNamespace(
        examples=examples,
        files=files,
        convention=convention,
        names=names,
        load=load,
        status=status,
        example=example,
    )


def _paint_section() -> SimpleNamespace:
    gr.Markdown("## 2 · Paint what shall be there")
    with gr.Row():
        sequence = gr.Radio([], label="Sequence", min_width=240)
        number = gr.Slider(0, 1, step=1, value=0, label="Slice", min_width=240)
    board = gr.HTML(
        None,
        html_template=painter.source("html"),
        css_template=painter.source("css"),
        js_on_load=painter.source("js"),
        apply_default_css=False,
        elem_id="painter",
        picture=None,
        tissues=painter.tissues(),
    )
    with gr.Accordion("Or take the ROIs from a file", open=False), gr.Row():
        file = gr.File(label="Label map (NIfTI, PNG or npy)", height=170)
        with gr.Column():
            labels = gr.Textbox(
                label="What its labels mean",
                placeholder="1:edema, 2:normal; or a convention, such as brats2021",
                info="Empty: 1 necrotic core, 2 edema, 3 enhancement, 5 normal, 6 tumor",
            )
            boxes = gr.CheckboxGroup(
                [(tissue["title"], tissue["name"]) for tissue in painter.tissues()],
                label="Bounding boxes",
                value=[],
            )
            take = gr.Button("Use this file")
    return SimpleNamespace(
        sequence=sequence,
        number=number,
        board=board,
        file=file,
        labels=labels,
        boxes=boxes,
        take=take,
    )


def _repaint_section(inpainter: Inpainter, num_steps: int) -> SimpleNamespace:
    gr.Markdown("## 3 · Repaint")
    # Scripts may name any; on the page `open` leaves those that there are.
    sequences = gr.CheckboxGroup(list(SEQUENCES), value=[], label="Sequences to repaint")
    with gr.Row():
        seed = gr.Number(0, label="Seed", precision=0, minimum=0, min_width=140)
        samples = gr.Slider(1, _MAX_SAMPLES, value=2, step=1, label="Samples", min_width=220)
        steps = gr.Slider(1, _MAX_STEPS, value=num_steps, step=1, label="Steps", min_width=220)
        weight = gr.Number(
            inpainter.default_guidance_weight, label="Guidance weight", step=0.1, min_width=140
        )
    with gr.Row():
        start = gr.Button("Repaint", variant="primary", elem_id="start", min_width=140)
        cancel = gr.Button("Cancel", variant="stop", elem_id="cancel", min_width=140)
    outcome = gr.Markdown("", elem_id="outcome", min_height=70)
    return SimpleNamespace(
        sequences=sequences,
        settings=[seed, samples, steps, weight],
        start=start,
        cancel=cancel,
        outcome=outcome,
    )


def _results_section() -> SimpleNamespace:
    with gr.Column(visible=False) as section:
        gr.Markdown(
            "## 4 · Results\nChoose a sample to compare it and to get its files; the zip holds all."
        )
        caption = gr.Markdown("", elem_id="caption")
        with gr.Row():
            compare = gr.ImageSlider(
                label="Before | after",
                format="png",
                elem_id="compare",
                interactive=False,
                buttons=["fullscreen"],
                min_width=300,
                max_height=620,
            )
            with gr.Column(min_width=300):
                gallery = gr.Gallery(
                    label="Samples",
                    columns=2,
                    format="png",
                    elem_id="samples",
                    allow_preview=False,
                    interactive=False,
                    object_fit="contain",
                    buttons=[],
                )
                spread = gr.Image(
                    format="png",
                    elem_id="uncertainty",
                    interactive=False,
                    buttons=["fullscreen"],
                )
        files = gr.File(
            label="Downloads",
            file_count="multiple",
            interactive=False,
            elem_id="downloads",
        )
        gr.Markdown(f"**Synthetic, research only.** {_DISCLAIMER}")
    return SimpleNamespace(
        section=section,
        compare=compare,
        gallery=gallery,
        spread=spread,
        caption=caption,
        files=files,
    )


def _connect(actions: Actions, held, choose, work, paint, repaint, results) -> None:
    """Which event calls which action, on what, and where the answer goes."""
    private = {"api_visibility": "private"}
    silent = {**private, "show_progress": "hidden"}

    def on(event, function, inputs, outputs, **settings):
        return event(in_sentences(function), inputs, outputs, **settings)

    view = [held.session, paint.number, paint.sequence]

    def show_results(after):
        inputs = [held.session, held.result, paint.number, paint.sequence, held.sample]
        shown = [results.section, results.compare, results.gallery, results.spread]
        shown += [results.caption, results.files]
        on(after.success, actions.show, inputs, shown, **silent)

    def open_session(after):
        shown = [paint.board, paint.number, paint.sequence, repaint.sequences, work]
        show_results(on(after.success, actions.open, [held.session], shown, **silent))

    loaded = [held.session, held.result, choose.status]
    inputs = [held.session, choose.files, choose.convention, choose.names]
    open_session(on(choose.load.click, actions.load, inputs, loaded, api_name="load"))
    for name, button in choose.examples.items():
        load = functools.partial(actions.load_example, name=name)
        open_session(on(button.click, load, [held.session], loaded, **private))
    on(
        choose.example.submit,
        actions.load_example,
        [held.session, choose.example],
        loaded,
        api_name="load_example",
    )

    # Unqueued, so that no stroke waits behind a run.
    on(paint.board.input, actions.paint, [held.session, paint.board], None, queue=False, **silent)
    # Of the positions that the slider passes only the last one counts.
    latest = {**silent, "trigger_mode": "always_last"}
    show_results(on(paint.number.input, actions.turn_to, view, paint.board, **latest))
    show_results(on(paint.sequence.input, actions.show_sequence, view, paint.board, **latest))
    inputs = [held.session, paint.file, paint.labels, paint.boxes]
    open_session(on(paint.take.click, actions.set_roi, inputs, choose.status, api_name="set_roi"))

    asked = on(
        repaint.start.click,
        actions.ask,
        [held.session, paint.board],
        repaint.outcome,
        queue=False,
        **silent,
    )
    ran = on(
        asked.success,
        actions.inpaint,
        [held.session, repaint.sequences, *repaint.settings],
        [held.result, repaint.outcome, results.files],
        api_name="inpaint",
        # One at a time: the device is the same for all.
        concurrency_limit=1,
        show_progress_on=repaint.outcome,
    )
    show_results(on(ran.success, lambda: 0, None, held.sample, **silent))
    on(repaint.cancel.click, actions.cancel, [held.session], None, queue=False, api_name="cancel")
    show_results(on(results.gallery.select, _chosen, None, held.sample, **silent))


def _chosen(event: gr.SelectData) -> int:
    return event.index


def _close(session: Session | None) -> None:
    if session is not None:
        session.close()
