"""The task that serves the web page (`configs/serve.py`)."""

import os
import socket
import tempfile
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from mbti_jax.inference.inpainter import Inpainter
from mbti_jax.inference.load import load_model
from mbti_jax.web.examples import Examples
from mbti_jax.web.uploads import Limits

_MAX_PORT = 2**16 - 1


def main(config: ConfigDict, workdir: str) -> None:
    """Serves the page until it is interrupted; see `configs/serve.py`.

    Raises:
        ValueError: Gradio is missing, the port is in use, or a setting or the model cannot be used.
    """
    limits = Limits(**config.limits)
    check_address(config.host, config.port)
    import_gradio()
    # Each step is reported: on a CPU a step takes longer than reporting it.
    model = load_model(config.checkpoint)
    inpainter = Inpainter(*model, config.batch_size, config.checkpoint, report_every=1)
    with tempfile.TemporaryDirectory(prefix="mbti_serve_", dir=workdir or None) as root:
        examples = Examples(Path(root) / "phantom")
        _ = examples.case  # Made now, so that nobody waits for it.
        page = start(inpainter, limits, examples, config, Path(root))
        print(f"Open {page.local_url} (Ctrl-C ends it).")
        try:
            page.block_thread()
        finally:
            page.close()


def start(
    inpainter: Inpainter, limits: Limits, examples: Examples, config: ConfigDict, root: Path
) -> Any:
    """Starts the server in the background.

    Args:
        config: host, port and so on, as of `configs/serve.py`.
        root: folder for uploads and results; whoever made it deletes it.

    Returns:
        The running `gradio.Blocks`.
    """
    # Gradio reads these when the page is built.
    os.environ["GRADIO_TEMP_DIR"] = str(root / "cache")
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    from mbti_jax.web import page
    from mbti_jax.web.actions import Actions

    actions = Actions(inpainter, limits, examples, root / "sessions")
    blocks = page.build(actions, inpainter, config.num_steps)
    blocks.queue(max_size=config.max_waiting, default_concurrency_limit=4)
    blocks.launch(
        server_name=config.host,
        server_port=config.port,
        share=False,
        inbrowser=False,
        quiet=True,
        prevent_thread_lock=True,
        max_file_size=limits.upload_mb * 10**6,
        state_session_capacity=config.max_sessions,
        # Results are written here, and copied from here to what Gradio serves.
        allowed_paths=[str(root / "sessions")],
        footer_links=[],
        enable_monitoring=False,
        ssr_mode=False,
        pwa=False,
        mcp_server=False,
        **page.look(),
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
        raise ValueError(f"--config.port={port}: ports are 1 to {_MAX_PORT}")
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
