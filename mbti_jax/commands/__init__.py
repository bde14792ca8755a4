"""One module per command: its `main(config, workdir)` makes the settings and calls the library.

The library reports through `logging`; here its messages become plain lines on standard output.
"""

import logging

from tqdm import tqdm


class _Lines(logging.Handler):
    """Prints what is not a warning; warnings go where Python sends them."""

    def emit(self, record: logging.LogRecord) -> None:
        if record.levelno < logging.WARNING:
            # Like print, but a progress bar steps aside for the line.
            tqdm.write(self.format(record))


for _name in ("mbti_jax", "tfds_brats"):
    _logger = logging.getLogger(_name)
    _logger.setLevel(logging.INFO)
    if not any(isinstance(handler, _Lines) for handler in _logger.handlers):
        _logger.addHandler(_Lines())
