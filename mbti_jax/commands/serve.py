"""The task that serves the web page (`configs/serve.py`)."""

import dataclasses
import os
import socket
import tempfile
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from mbti_jax.commands.settings import from_config
from mbti_jax.fields import FieldError
from mbti_jax.inference.inpainter import Inpainter
from mbti_jax.inference.load import load_model
from mbti_jax.web.examples import make_phantom
from mbti_jax.web.uploads import Limits
from tfds_brats.cases import Case

_MAX_PORT = 2**16 - 1


@dataclasses.dataclass(frozen=True, kw_only=True)
class ServeSettings:
    """What the page is served with; see `configs/serve.py`."""

    checkpoint: str
    batch_size: int
    host: str
    port: int
    max_waiting: int
    max_sessions: int
    num_steps: int
    limits: Limits


def main(config: ConfigDict, workdir: str) -> None:
    """Serves the page until it is interrupted; see `configs/serve.py`.

    Raises:
        ValueError: Gradio is missing, the port is in use, or a setting or the model cannot be used.
    """
    settings = from_config(ServeSettings, config)
    check_address(settings.host, settings.port)
    import_gradio()
    # Each step is reported: on a CPU a step takes longer than reporting it.
    model = load_model(settings.checkpoint)
    inpainter = Inpainter(*model, settings.batch_size, settings.checkpoint, report_every=1)
    with tempfile.TemporaryDirectory(prefix="mbti_serve_", dir=workdir or None) as root:
        page = start(inpainter, make_phantom(Path(root) / "phantom"), settings, Path(root))
        print(f"Open {page.local_url} (Ctrl-C ends it).")
        try:
            page.block_thread()
        finally:
            page.close()


def start(inpainter: Inpainter, example: Case, settings: ServeSettings, root: Path) -> Any:
    """Starts the server in the background.

    Args:
        inpainter: the model.
        example: see `examples.load_example`.
        settings: see `configs/serve.py`.
        root: folder for uploads and results; the caller deletes it.

    Returns:
        The running `gradio.Blocks`.
    """
    # Gradio reads these when the page is built.
    os.environ["GRADIO_TEMP_DIR"] = str(root / "cache")
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    from mbti_jax.web import page
    from mbti_jax.web.actions import Actions

    actions = Actions(inpainter, settings.limits, example, root / "sessions")
    blocks = page.build(actions, inpainter, settings.num_steps)
    blocks.queue(max_size=settings.max_waiting, default_concurrency_limit=4)
    blocks.launch(
        server_name=settings.host,
        server_port=settings.port,
        share=False,
        inbrowser=False,
        quiet=True,
        prevent_thread_lock=True,
        max_file_size=settings.limits.upload_mb * 10**6,
        state_session_capacity=settings.max_sessions,
        # Results are written here, and copied from here to what Gradio serves.
        allowed_paths=[str(root / "sessions")],
        footer_links=[],
        enable_monitoring=False,
        ssr_mode=False,
        pwa=False,
        mcp_server=False,
        **page.appearance(),
    )
    return blocks


def import_gradio() -> None:
    """Raises ValueError if Gradio is not installed."""
    try:
        import gradio  # noqa: F401
    except ModuleNotFoundError as error:
        raise ValueError(
            'the web page needs Gradio, which is not installed: pip install ".[web]"'
        ) from error


def check_address(host: str, port: int) -> None:
    """Raises ValueError if nothing can listen there, before the model is loaded."""
    if not 0 < port <= _MAX_PORT:
        raise FieldError("port", f"is {port}; ports are 1 to {_MAX_PORT}")
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        with socket.socket(family, kind, protocol) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
    except OSError as error:
        raise ValueError(
            f"cannot listen on {host}, port {port} ({error.strerror or error}); another program may "
            f"use it: choose another with --config.port={min(port + 1, _MAX_PORT)}"
        ) from error
