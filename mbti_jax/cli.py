"""The command line: `mbti COMMAND` where the package is installed, `python run.py` in a checkout.

Both run the command that a config file names with the config's fields, each of which can be overridden.
"""

import ast
import importlib
import logging
import os
import runpy
import sys
from pathlib import Path
from typing import Any, NoReturn

import absl.logging
from absl import app, flags
from ml_collections import ConfigDict, config_flags

from mbti_jax.fields import FieldError

COMMANDS = (
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
_HELP = ("help", "helpshort", "h", "helpfull")

_CONFIG = config_flags.DEFINE_config_file(
    "config", None, "Config file of the command, for example configs/quickstart.py."
)
_WORKDIR = flags.DEFINE_string(
    "workdir", None, "Folder for what the run writes; the config's own `workdir` when absent."
)


def main() -> None:
    """`mbti COMMAND [--FIELD=VALUE ...] [--workdir=DIR]`."""
    command, *rest = sys.argv[1:] or ["--help"]
    folder = _config_folder()
    configs = {path.stem: path for path in sorted(folder.glob("[!_]*.py"))}
    if command.lstrip("-") in ("help", "h"):
        print(_overview(configs))
        return
    if command not in configs:
        _stop(f"unknown command {command!r}; commands are {', '.join(configs)}")
    # Configs import each other as `configs.NAME`.
    sys.path.insert(0, str(folder.parent))
    # The flag of a config finds its fields in `sys.argv`, whatever absl is given.
    sys.argv[1:] = [f"--config={configs[command]}", *map(_as_field, rest)]
    run()


def run() -> None:
    """`--config=FILE [--config.a.b=value ...] [--workdir=DIR]`."""
    app.run(_main, flags_parser=_parse_flags)


def _config_folder() -> Path:
    """The configs inside the installed package, or those of the checkout that the package is in."""
    package = Path(__file__).parent
    installed = package / "shipped" / "configs"
    return installed if installed.is_dir() else package.parent / "configs"


def _overview(configs: dict[str, Path]) -> str:
    lines = ["usage: mbti COMMAND [--FIELD=VALUE ...] [--workdir=DIR]", "", "commands:"]
    for name, path in configs.items():
        about = ast.get_docstring(ast.parse(path.read_text())) or ""
        lines.append(f"  {name:21s} {about.splitlines()[0]}")
    return "\n".join([*lines, "", "`mbti COMMAND --help` lists the fields of a command."])


def _as_field(argument: str) -> str:
    """--a.b=value -> --config.a.b=value."""
    name = argument.lstrip("-").partition("=")[0]
    is_field = argument.startswith("-") and name not in ("workdir", *_HELP)
    return f"--config.{argument.lstrip('-').removeprefix('config.')}" if is_field else argument


def _stop(problem: str) -> NoReturn:
    sys.exit(f"{Path(sys.argv[0]).name}: {problem}")


def _parse_flags(argv: list[str]) -> list[str]:
    """Parses the command line; what is wrong with it ends the program in one line."""
    names = [argument.lstrip("-").partition("=")[0] for argument in argv[1:]]
    if "config" in names:
        # The file is loaded once without its overrides, to check and to list its fields: ConfigDict
        # itself answers a misspelled override with a traceback that names only the misspelling.
        position = 1 + names.index("config")
        _, equals, path = argv[position].partition("=")
        path = path if equals else " ".join(argv[position + 1 : position + 2])
        if not os.path.isfile(path):
            _stop(f"no config file {path!r}; try --config=configs/quickstart.py")
        config = runpy.run_path(path)["get_config"]()
        if {*_HELP} & {*names}:
            print(f"Fields of {path}, as --config.FIELD=VALUE:\n{config}")
            sys.exit(0)
        for name in names:
            if name.startswith("config."):
                _check_field(config, name)
    try:
        rest = flags.FLAGS(argv)
    except flags.Error as error:
        _stop(str(error))
    if _CONFIG.value is None:
        _stop("give a config file, for example --config=configs/quickstart.py")
    if len(rest) > 1:
        _stop(f"unexpected {' '.join(rest[1:])}; overrides are --config.field=value")
    return rest


def _check_field(config: Any, name: str) -> None:
    """Stops with the valid fields if `name` (config.a.b) is not one of `config`."""
    path = name.split(".")
    for depth, field in enumerate(path[1:], start=1):
        if not isinstance(config, ConfigDict) or field not in config:
            known = ", ".join(sorted(config)) if isinstance(config, ConfigDict) else "no fields"
            _stop(f"no field --{name}; {'.'.join(path[:depth])} has: {known}")
        config = config[field]


def _main(_: list[str]) -> None:
    config = _CONFIG.value
    if config.task not in COMMANDS:
        _stop(f"unknown task {config.task!r}; valid tasks: {', '.join(COMMANDS)}")
    # Kept for every command, so that a second run does not compile what the first one did. The
    # variable has to be set before JAX is imported.
    cache = os.path.join(os.path.expanduser("~"), ".cache", "mbti_jax", "xla")
    os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", cache)
    logging.getLogger().setLevel(logging.WARNING)
    absl.logging.get_absl_handler().setLevel(logging.WARNING)
    command = importlib.import_module(f"mbti_jax.commands.{config.task}")
    try:
        command.main(config, _WORKDIR.value or config.workdir)
    except (ValueError, OSError) as error:
        # Raised for the user to read: a sentence, with the traceback only on request.
        if os.environ.get("MBTI_TRACEBACK"):
            raise
        flag = f" (--config.{error.field}=...)" if isinstance(error, FieldError) else ""
        sys.exit(
            f"{type(error).__name__}: {error}{flag}\n(MBTI_TRACEBACK=1 shows where it came from)"
        )
    except KeyboardInterrupt:
        sys.exit("interrupted; nothing is half-written: run the same command again")
