"""The web page: its layout, and which event calls which of `actions`.

Scripts use it through `gradio_client`; the endpoints are

- `/load(files, convention, sequences)`: NIfTI files of a case, or one PNG or npy; see
  `loading.load_files`. Returns a sentence.
- `/load_example(name)`: a key of `examples.EXAMPLES`. Returns a sentence.
- `/set_roi(file, labels, box, tumor, step_mm, dilate_mm, first, last, seed)`: the ROIs from a file, what
  its labels mean (see `rois.parse_labels`; "" for the usual numbers) and which tissues are boxes; or of
  the tumor in a
  segmentation, a key of `rois.tumors.MODES`, for grow and shrink the millimeters, and for remove and
  move how many millimeters of its rim are taken, too. Without a file the tumor is that of the case's own
  segmentation; the last three, which may be left out, limit it to a range of slices (-1 is the last
  one), and are the seed of the place to move it to. Returns a sentence.
- `/inpaint(sequences, seed, num_samples, num_steps, guidance_weight, estimate, sampler, guidance,
  lowest_noise, highest_noise, blend)`: repaints; the last six may be left out. A weight of None is what
  suits the result. `estimate` is one of `values.ESTIMATES`. Returns a sentence and the files: an archive
  of everything, then those of the first sample, or of the mean.
- `/cancel()`: stops the run of this client.

    from gradio_client import Client, handle_file

    client = Client("http://127.0.0.1:7860")
    client.predict([handle_file("BraTS2021_00000_t1.nii.gz")], "brats2021", [], api_name="/load")
    client.predict(handle_file("roi.nii.gz"), "1:normal", ["normal"], api_name="/set_roi")
    sentence, files = client.predict([], 0, 2, 25, 0.4, api_name="/inpaint")
"""

import copy
import html
import json
import logging
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import gradio as gr
from gradio import themes

from mbti_jax.diffusion.guidance import KINDS
from mbti_jax.diffusion.sampling import Sampling
from mbti_jax.inference.inpainter import Inpainter
from mbti_jax.io.files import shipped_text
from mbti_jax.rois.regions import REMOVAL_MARGIN_MM
from mbti_jax.rois.tumors import MODES
from mbti_jax.web import painter, storage
from mbti_jax.web.actions import Actions
from mbti_jax.web.examples import EXAMPLES
from mbti_jax.web.loading import LEFT_OUT
from mbti_jax.web.sentences import in_sentences
from mbti_jax.web.uploads import MAX_FILES, SLICE_ENDINGS
from mbti_jax.web.values import ESTIMATES
from mbti_jax.web.views import title
from tfds_brats.conventions import CONVENTIONS, SEQUENCES
from tfds_brats.volumes import NIFTI_ENDINGS

_TITLE = "Brain-tumor inpainting"
_DISCLAIMER = (
    "This is no medical device: what is painted here was never in a patient and must not be used for "
    "diagnosis."
)
_MAX_SAMPLES, _MAX_STEPS = 16, 1000

_log = logging.getLogger(__name__)


class _Page(gr.Blocks):
    """Gradio's page, with errors of requests in sentences where Gradio itself answers `null`."""

    async def process_api(self, *arguments: Any, **settings: Any) -> dict[str, Any]:
        try:
            return await super().process_api(*arguments, **settings)
        except gr.Error:
            raise
        except Exception as error:
            _log.warning("a request could not be answered", exc_info=True)
            text = f"What was sent cannot be used ({type(error).__name__})."
            raise gr.Error(text, print_exception=False) from error

    async def preprocess_data(self, block_fn: Any, inputs: list[Any], *rest: Any, **more: Any):
        try:
            return await super().preprocess_data(block_fn, inputs, *rest, **more)
        except Exception as error:
            text = f"The function takes {len(block_fn.inputs)} inputs, not {len(inputs)}."
            for block, value in zip(block_fn.inputs, inputs, strict=False):
                one = copy.copy(block_fn)
                one.inputs = [block]
                try:
                    await super().preprocess_data(one, [value], *rest, **more)
                except gr.Error as problem:
                    text = f"{block.label}: {problem.message}"
                    break
                except Exception:
                    text = f"{block.label}: cannot be {value!r:.60}."
                    break
            # Gradio's own do not say which field they are about, and would be printed with a traceback.
            raise gr.Error(html.escape(text), print_exception=False) from error


def build(actions: Actions, inpainter: Inpainter, num_steps: int | None) -> gr.Blocks:
    """The page.

    Args:
        actions: what happens on it.
        inpainter: the model, whose note is shown.
        num_steps: of the sampler, that it offers at first; None for what the model recommends.
    """
    parts = SimpleNamespace()
    with _Page(
        title=_TITLE, analytics_enabled=False, delete_cache=(60, storage.UPLOAD_SECONDS)
    ) as page:
        gr.HTML(_header(inpainter))
        _choose_section(parts)
        with gr.Column(visible=False) as parts.work:
            _paint_section(parts)
            _repaint_section(parts, inpainter, num_steps)
        with gr.Column(visible=False) as parts.results:
            _results_section(parts)
        _connect(actions, parts)
        # Read out by screen readers when they change; some are made only when they are shown first.
        page.load(None, None, None, js=painter.template("live.js"))
        page.load(None, None, None, js=_drops())
    return page


def appearance() -> dict[str, Any]:
    """Theme and style, as arguments of `launch`; fonts are the system's, so nothing is fetched."""
    theme = themes.Soft(
        primary_hue="teal",
        neutral_hue="slate",
        font=["system-ui", "sans-serif"],
        font_mono=["ui-monospace", "monospace"],
    ).set(
        # Text against what is behind it, at least 4.5 : 1.
        body_text_color_subdued="*neutral_600",
        body_text_color_subdued_dark="*neutral_300",
        block_label_text_color="*primary_800",
        block_label_text_color_dark="*primary_100",
        block_label_background_fill_dark="*primary_900",
        block_title_background_fill_dark="*primary_900",
        link_text_color_dark="*secondary_300",
        link_text_color_hover_dark="*secondary_200",
        link_text_color_active_dark="*secondary_200",
        link_text_color_visited_dark="*secondary_300",
        block_title_text_color="*primary_800",
        block_title_text_color_dark="*primary_100",
        block_info_text_color="*neutral_600",
        block_info_text_color_dark="*neutral_300",
        button_primary_background_fill="*primary_700",
        button_primary_background_fill_hover="*primary_800",
        button_primary_background_fill_dark="*primary_700",
        checkbox_label_background_fill_selected="*primary_700",
        checkbox_label_background_fill_selected_dark="*primary_700",
    )
    return {"theme": theme, "css_paths": Path(__file__).with_name("page.css")}


def _header(inpainter: Inpainter) -> str:
    checkpoint = {name: html.escape(str(value)) for name, value in inpainter.checkpoint.items()}
    note = f"<p><b>This model:</b> {checkpoint['note']}</p>" if checkpoint["note"] else ""
    values = {"title": _TITLE, "disclaimer": _DISCLAIMER, "note": note, "checkpoint": checkpoint}
    return shipped_text("web/header.html", **values)


def _drops() -> str:
    """The script that takes dropped folders."""
    endings = json.dumps([*SLICE_ENDINGS, *NIFTI_ENDINGS])
    script = painter.template("drops.js")
    return script.replace("__ENDINGS__", endings).replace("__MOST__", str(MAX_FILES))


def _choose_section(parts: SimpleNamespace) -> None:
    gr.Markdown("## 1 · Choose an image")
    with gr.Row():
        with gr.Column(min_width=260):
            gr.Markdown("An example, on a digital phantom:")
            parts.examples = {name: gr.Button(name.capitalize()) for name in EXAMPLES}
        with gr.Column(scale=2, min_width=300):
            parts.files = gr.File(
                label="Or your own PNG, npy or NIfTI files; drop them here, or their folder",
                file_count="multiple",
                file_types=[*SLICE_ENDINGS, *NIFTI_ENDINGS, ".gz"],
                height=170,
                elem_id="files",
            )
            parts.folder = gr.UploadButton(
                "Choose a folder", file_count="directory", elem_id="folder"
            )
            parts.convention = gr.Dropdown(
                [("(I say it file by file)", ""), *CONVENTIONS],
                value="",
                label="NIfTI files are named as in",
                min_width=240,
            )
            parts.check = gr.Markdown(
                "Which sequence is each file? Their names were read; check them.",
                visible=False,
                elem_id="check",
            )
            choices = [(title(name), name) for name in SEQUENCES]
            with gr.Row():
                parts.kinds = [
                    gr.Dropdown(
                        [*choices, ("(left out)", LEFT_OUT)],
                        value=None,
                        visible=False,
                        min_width=280,
                        elem_classes="kind",
                    )
                    for _ in range(MAX_FILES)
                ]
            parts.load = gr.Button("Load files", interactive=False)
    parts.status = gr.Markdown("Nothing is loaded yet.", elem_id="loaded", min_height=30)
    # For scripts, which give the example's name, and the sequences in the order of the files.
    parts.example, parts.script = gr.Textbox(visible=False), gr.Textbox(visible=False)
    parts.names = gr.Dropdown(
        choices, multiselect=True, value=[], visible=False, label="The files' sequences"
    )


def _paint_section(parts: SimpleNamespace) -> None:
    gr.Markdown("## 2 · Paint what shall be there")
    parts.board = gr.HTML(
        None,
        html_template=painter.template("painter.html"),
        css_template=painter.template("painter.css"),
        js_on_load=painter.script(),
        apply_default_css=False,
        elem_id="painter",
        tissues=painter.tissues(),
        result=None,
    )
    with gr.Accordion("Or take the ROIs from the case's own tumor, or from a file", open=False):
        with gr.Row():
            parts.tumor = gr.Dropdown(
                [
                    ("(the ROIs of the file as they are)", ""),
                    *[(f"{n}: {m.meaning}", n) for n, m in MODES.items()],
                ],
                value="",
                label="Of the tumor in the segmentation make",
                min_width=240,
            )
            parts.step = gr.Number(2.0, label="grow, shrink: mm", minimum=0, min_width=100)
            parts.dilate = gr.Number(
                REMOVAL_MARGIN_MM, label="remove, move: rim, mm", minimum=0, min_width=100
            )
        with gr.Row(visible=False) as parts.range:
            parts.first = gr.Number(
                0, label="From slice", precision=0, minimum=0, min_width=100, elem_id="first"
            )
            parts.last = gr.Number(
                -1, label="to slice", precision=0, minimum=-1, min_width=100, elem_id="last"
            )
            parts.place = gr.Number(
                0, label="move: seed of the place", precision=0, minimum=0, min_width=100
            )
        with gr.Row():
            parts.roi_file = gr.File(
                label="Label map (NIfTI, PNG or npy); empty: the case's own segmentation",
                height=170,
            )
            with gr.Column():
                parts.labels = gr.Textbox(
                    label="What its labels mean",
                    placeholder="1:edema, 2:normal; or a convention, such as brats2021",
                    info="Empty: 1 necrotic core, 2 edema, 3 enhancement, 5 normal, 6 tumor",
                )
                parts.boxes = gr.CheckboxGroup(
                    [(tissue["title"], tissue["name"]) for tissue in painter.tissues()],
                    label="Bounding boxes",
                    value=[],
                )
        parts.take = gr.Button("Use these ROIs", interactive=False)


def _repaint_section(parts: SimpleNamespace, inpainter: Inpainter, num_steps: int | None) -> None:
    offered = inpainter.resolve(Sampling())
    gr.Markdown("## 3 · Repaint")
    # Scripts may name any; on the page `open` leaves those that there are.
    parts.sequences = gr.CheckboxGroup(list(SEQUENCES), value=[], label="Sequences to repaint")
    with gr.Row():
        # Without a precision, by which Gradio would round what is no whole number.
        seed = gr.Number(0, label="Seed", step=1, minimum=0, min_width=140)
        samples = gr.Slider(1, _MAX_SAMPLES, value=2, step=1, label="Samples", min_width=220)
        # What the model is for goes before what the page offers.
        value = inpainter.metadata["inference"].get("num_steps", num_steps) or offered.num_steps
        steps = gr.Slider(1, _MAX_STEPS, value=value, step=1, label="Steps", min_width=220)
        recommended = inpainter.default_guidance_weight
        others = (
            "" if recommended == 0 else ", and 0 for samples near the mean and the mean in one pass"
        )
        weight = gr.Number(
            None,
            label="Guidance weight",
            placeholder="automatic",
            info=f"Left empty: {recommended:g}{others}.",
            step=0.1,
            min_width=140,
        )
    estimate = gr.Radio(
        [(name.capitalize(), name) for name in ESTIMATES],
        value=next(iter(ESTIMATES)),
        label="Result",
        info="A sample is one of the brains that could be there. The mean is nearest to the truth, and "
        "smoother than any brain; a single pass of the network estimates it without samples. Samples "
        "near the mean give it texture: the choice where a tumor is removed.",
    )
    blend = gr.Checkbox(True, label="Blend normal tissue into its surroundings")
    with gr.Accordion("Advanced", open=False), gr.Row():
        choices = list(inpainter.pipeline.process.samplers)
        sampler = gr.Dropdown(choices, value=offered.sampler, label="Sampler", min_width=140)
        guidance = gr.Dropdown(list(KINDS), value="plain", label="Guidance", min_width=140)
        lowest, highest = (
            gr.Slider(
                0, 1, value=value, step=0.01, label=f"Guided {side} noise share", min_width=180
            )
            for value, side in ((0.0, "from"), (1.0, "to"))
        )
    parts.settings = [seed, samples, steps, weight, estimate]
    parts.estimate = estimate
    parts.settings += [sampler, guidance, lowest, highest, blend]
    parts.saved = gr.UploadButton(
        "Load saved settings (JSON)", file_types=[".json"], size="sm", elem_id="saved"
    )
    parts.cost = gr.Markdown("", elem_id="cost", min_height=30)
    with gr.Row():
        parts.start = gr.Button("Repaint", variant="primary", elem_id="start", min_width=140)
        parts.cancel = gr.Button(
            "Cancel", variant="stop", elem_id="cancel", min_width=140, interactive=False
        )
    parts.outcome = gr.Markdown("", elem_id="outcome", min_height=70)


def _results_section(parts: SimpleNamespace) -> None:
    gr.Markdown("## 4 · Runs and files")
    parts.runs = gr.Radio(
        [],
        label="Runs of these images; the one chosen is shown above",
        elem_id="runs",
        info="The last five are kept, as long as these images are loaded.",
    )
    with gr.Row():
        parts.reuse = gr.Button("Use its settings", min_width=160)
        parts.save = gr.DownloadButton("Save its settings (JSON)", min_width=160)
    gr.Markdown(
        "The zip holds all samples, and of several their standard deviation; beside it are the files of "
        "the first."
    )
    parts.downloads = gr.File(
        label="Downloads", file_count="multiple", interactive=False, elem_id="downloads"
    )
    gr.Markdown(f"**Synthetic, research only.** {_DISCLAIMER}")


def _connect(actions: Actions, parts: SimpleNamespace) -> None:
    """Which event calls which action, on what, and where the answer goes."""
    private: dict[str, Any] = {"api_visibility": "private"}
    silent = {**private, "show_progress": "hidden"}

    def on(event, function, inputs, outputs, **settings):
        return event(in_sentences(function), inputs, outputs, **settings)

    history = [parts.results, parts.downloads, parts.runs, parts.save]
    offered = [parts.roi_file, parts.tumor]
    form = [parts.sequences, *parts.settings]

    def show_results(after, show):
        on(after.success, show, None, [parts.board, *history], **silent)

    def open_session(after):
        shown = [parts.board, parts.sequences, parts.work, parts.range]
        shown += [parts.first, parts.last, parts.start, parts.take, parts.estimate]
        opened = on(after.success, actions.open, offered, shown, **silent)
        on(opened.success, actions.files, None, history, **silent)
        on(opened.success, actions.say_cost, form, parts.cost, **silent)

    inputs = [parts.files, parts.convention]
    sorted_files = [parts.check, parts.load, *parts.kinds]
    for event in (parts.files.change, parts.convention.input):
        on(event, actions.sort_files, inputs, sorted_files, **silent)
    newest = {**silent, "trigger_mode": "always_last"}
    on(parts.folder.upload, actions.take_folder, parts.folder, parts.files, **newest)
    inputs = [parts.files, parts.convention, *parts.kinds]
    open_session(on(parts.load.click, actions.load_sorted, inputs, parts.status, **private))
    inputs = [parts.files, parts.convention, parts.names]
    on(parts.script.submit, actions.load, inputs, parts.status, api_name="load")
    for name, button in parts.examples.items():
        open_session(on(button.click, actions.loader(name), None, parts.status, **private))
    inputs = [parts.example]
    on(parts.example.submit, actions.load_example, inputs, parts.status, api_name="load_example")

    # Unqueued, so that no stroke waits behind a run; each message holds all edits, so the last counts.
    unqueued = {**silent, "queue": False}
    latest = {**unqueued, "trigger_mode": "always_last"}
    shown = [parts.start, parts.cost, parts.estimate]
    on(parts.board.input, actions.paint, [parts.board, *form], shown, **latest)
    on(parts.estimate.input, actions.choose_result, None, None, **unqueued)
    for part in form:
        on(part.change, actions.say_cost, form, parts.cost, **latest)
    for part in offered:
        on(part.change, actions.offer_roi, offered, parts.take, **newest)
    inputs = [parts.roi_file, parts.labels, parts.boxes, parts.tumor, parts.step, parts.dilate]
    inputs += [parts.first, parts.last, parts.place]
    open_session(on(parts.take.click, actions.set_roi, inputs, parts.status, api_name="set_roi"))

    buttons = [parts.start, parts.cancel]
    asked = on(parts.start.click, actions.ask, [parts.board], [parts.outcome, *buttons], **unqueued)
    ran = on(
        asked.success,
        actions.inpaint,
        form,
        [parts.outcome, parts.downloads],
        api_name="inpaint",
        # They wait in a line of their own for the device, which is the same for all.
        concurrency_limit=None,
        show_progress_on=parts.outcome,
    )
    on(ran.then, actions.rest, None, buttons, **unqueued)
    on(ran.then, actions.say_cost, form, parts.cost, **unqueued)
    # With the buttons: `then` does not follow a run of which a field cannot be.
    on(ran.failure, actions.fail, None, [parts.outcome, *buttons], **unqueued)
    show_results(ran, actions.show_new)
    on(parts.cancel.click, actions.cancel, None, None, queue=False, api_name="cancel")
    chosen = on(parts.runs.input, actions.choose_run, parts.runs, parts.outcome, **silent)
    show_results(chosen, actions.show)
    filled = [*form, parts.outcome]
    on(parts.reuse.click, actions.settings_of_run, None, filled, **silent)
    on(parts.saved.upload, actions.load_settings, parts.saved, filled, **silent)
