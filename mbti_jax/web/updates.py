"""What the page's components become: the states in which the handlers leave them."""

from typing import Any

import gradio as gr

from mbti_jax.web import painter
from mbti_jax.web.session import Session


def history(session: Session | None) -> tuple[Any, ...]:
    """The results' section: whether it is there, files, runs to choose from, settings to save."""
    if session is None or session.chosen is None:
        return gr.Column(visible=False), None, gr.skip(), gr.skip()
    run = session.chosen
    return (
        gr.Column(visible=True),
        list(map(str, run.files)),
        gr.Radio([(one.title, one.number) for one in session.runs[::-1]], value=run.number),
        gr.DownloadButton(value=str(run.settings_file)),
    )


def painter_with(**given: Any) -> gr.HTML:
    """The painter with what it is given."""
    # An update replaces all that the painter's script knows, so the tissues are sent again.
    return gr.HTML(tissues=painter.tissues(), **given)


def run_buttons(is_busy: bool) -> tuple[gr.Button, gr.Button]:
    """Start and cancel: either can be pressed only while it does something."""
    return gr.Button(interactive=not is_busy), gr.Button(interactive=is_busy)


def start(session: Session) -> gr.Button:
    """The button that starts a run: not while there is nothing to repaint, or a run is under way."""
    return gr.Button(interactive=bool(session.painted) and not session.busy)


def take(session: Session | None, file: Any, tumor: Any) -> gr.Button:
    """The button that takes ROIs: from a file, or of the case's own tumor."""
    has_tumor = session is not None and session.segmentation is not None
    return gr.Button(interactive=session is not None and bool(file or (tumor and has_tumor)))
