"""Runs one task: `python run.py --config=configs/TASK.py [--config.a.b=value ...] [--workdir=DIR]`.

The config file names the task. Every field of it can be overridden on the command line, and
`python run.py --config=FILE --help` lists them.
"""

import importlib
import logging
import os
import runpy
import sys

from absl import app, flags
from ml_collections import ConfigDict, config_flags

TASKS = (
    "data",
    "evaluate",
    "export",
    "figures",
    "healthy_masks",
    "import_torch",
    "inpaint",
    "quickstart",
    "serve",
    "train",
)

_CONFIG = config_flags.DEFINE_config_file(
    "config", None, "Config file of the task, for example configs/quickstart.py."
)
_WORKDIR = flags.DEFINE_string(
    "workdir", None, "Folder for what the run writes; the config's own `workdir` when absent."
)


def _parse_flags(argv: list[str]) -> list[str]:
    """Parses the command line; what is wrong with it ends the program in one line."""
    names = [argument.lstrip("-").partition("=")[0] for argument in argv[1:]]
    if "config" in names:
        # The file is loaded once without its overrides, to check and to list its fields: ConfigDict
        # itself answers a misspelt override with a traceback that names only the misspelling.
        position = 1 + names.index("config")
        _, equals, path = argv[position].partition("=")
        path = path if equals else " ".join(argv[position + 1 : position + 2])
        if not os.path.isfile(path):
            sys.exit(f"run.py: no config file {path!r}; try --config=configs/quickstart.py")
        config = runpy.run_path(path)["get_config"]()
        if {"help", "h", "helpshort"} & set(names):
            print(f"Fields of {path}, as --config.FIELD=VALUE:\n{config}")
            sys.exit(0)
        for name in names:
            if name.startswith("config."):
                _check_field(config, name)
    try:
        rest = flags.FLAGS(argv)
    except flags.Error as error:
        sys.exit(f"run.py: {error}")
    if _CONFIG.value is None:
        sys.exit("run.py: give a config file, for example --config=configs/quickstart.py")
    if len(rest) > 1:
        sys.exit(f"run.py: unexpected {' '.join(rest[1:])}; overrides are --config.field=value")
    return rest


def _check_field(config: ConfigDict, name: str) -> None:
    """Exits with the valid fields if `name` (config.a.b) is not one of `config`."""
    path = name.split(".")
    for depth, field in enumerate(path[1:], start=1):
        if not isinstance(config, ConfigDict) or field not in config:
            known = ", ".join(sorted(config)) if isinstance(config, ConfigDict) else "no fields"
            sys.exit(f"run.py: no field --{name}; {'.'.join(path[:depth])} has: {known}")
        config = config[field]


def main(_: list[str]) -> None:
    config = _CONFIG.value
    if config.task not in TASKS:
        sys.exit(f"run.py: unknown task {config.task!r}; valid tasks: {', '.join(sorted(TASKS))}")
    # Kept for every task, so that a second run does not compile what the first one did. The
    # variable has to be set before JAX is imported.
    cache = os.path.join(os.path.expanduser("~"), ".cache", "mbti_jax", "xla")
    os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", cache)
    logging.getLogger().setLevel(logging.WARNING)
    task = importlib.import_module(f"mbti_jax.commands.{config.task}")
    try:
        task.main(config, _WORKDIR.value or config.workdir)
    except (ValueError, OSError) as error:
        # Raised for the user to read: a sentence, with the traceback only on request.
        if os.environ.get("MBTI_TRACEBACK"):
            raise
        sys.exit(f"{type(error).__name__}: {error}\n(MBTI_TRACEBACK=1 shows where it came from)")
    except KeyboardInterrupt:
        sys.exit("interrupted; nothing is half-written: run the same command again")


if __name__ == "__main__":
    app.run(main, flags_parser=_parse_flags)
