"""The command line: `mbti COMMAND` where the package is installed, `python run.py` in a checkout.

Both run the command that a config file names with the config's fields, each of which can be overridden.
Whatever ends a command that could be foreseen, ends it in a sentence: MBTI_TRACEBACK=1 shows more.
"""

import ast
import contextlib
import hashlib
import importlib
import logging
import os
import platform
import runpy
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn

COMMANDS = (
    "data",
    "evaluate",
    "export",
    "few_step",
    "figures",
    "healthy_masks",
    "import_torch",
    "inpaint",
    "quickstart",
    "serve",
    "train",
)
_HELP = ("help", "helpshort", "h", "helpfull")
# As shells report a program that a signal ended.
_INTERRUPTED, _NOBODY_READS = 128 + signal.SIGINT, 128 + signal.SIGPIPE


def main() -> None:
    """`mbti COMMAND [--FIELD=VALUE ...] [--workdir=DIR]`."""
    with _ending_in_a_line(short=True):
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
        _run(f"mbti {command}, as --FIELD=VALUE")


def run() -> None:
    """`--config=FILE [--config.a.b=value ...] [--workdir=DIR]`."""
    with _ending_in_a_line(short=False):
        _run("the config, as --config.FIELD=VALUE")


@contextlib.contextmanager
def _ending_in_a_line(*, short: bool) -> Iterator[None]:
    """Ctrl-C, a pipe that nobody reads, and mistakes end the program in at most one line.

    Args:
        short: fields are options by their names: messages say --FIELD for --config.FIELD.
    """
    try:
        # Imports may fail in any way when they are interrupted, and have nothing to clean up. Where
        # the signal is ignored, in jobs in the background, it stays so.
        if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
            signal.signal(signal.SIGINT, _exit_at_once)
        yield
        sys.stdout.flush()
    except SystemExit as ending:
        if short and isinstance(ending.code, str):
            ending.code = ending.code.replace("--config.", "--")
        raise
    except BrokenPipeError:
        # Python flushes once more at the end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(_NOBODY_READS)
    except KeyboardInterrupt:
        print("interrupted; nothing is half-written: run the same command again", file=sys.stderr)
        sys.exit(_INTERRUPTED)


def _exit_at_once(number: int, frame: Any) -> NoReturn:
    os.write(2, b"interrupted\n")
    os._exit(_INTERRUPTED)


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


def _run(options: str) -> None:
    """Runs the command that the command line names; `options` says how fields are given."""
    from absl import app, flags
    from ml_collections import config_flags

    config = config_flags.DEFINE_config_file(
        "config", None, "Config file of the command, for example configs/quickstart.py."
    )
    workdir = flags.DEFINE_string(
        "workdir", None, "Folder for what the run writes; the config's own `workdir` when absent."
    )

    def command(_: list[str]) -> None:
        # To pyright a flag's value is of any type that flags have.
        given: Any = config.value
        if given is None:
            _stop("give a config file, for example --config=configs/quickstart.py")
        _run_command(given, workdir.value or given.workdir)

    app.run(command, flags_parser=lambda argv: _parse_flags(argv, options))


def _parse_flags(argv: list[str], options: str) -> list[str]:
    """Parses the command line; what is wrong with it ends the program in one line."""
    from absl import flags

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
            print(f"Fields of {options}:\n{config}")
            sys.exit(0)
        for name in names:
            if name.startswith("config."):
                _check_field(config, name)
    try:
        rest = flags.FLAGS(argv)
    except flags.Error as error:
        _stop(str(error))
    if len(rest) > 1:
        _stop(f"unexpected {' '.join(rest[1:])}; overrides are --config.field=value")
    return rest


def _check_field(config: Any, name: str) -> None:
    """Stops with the valid fields if `name` (config.a.b) is not one of `config`."""
    path = name.split(".")
    for depth, field in enumerate(path[1:], start=1):
        is_group = hasattr(config, "to_dict")
        if not is_group or field not in config:
            known = ", ".join(sorted(config)) if is_group else "no fields"
            _stop(f"no field --{name}; {'.'.join(path[:depth])} has: {known}")
        config = config[field]


def _compilation_cache() -> Path:
    """A folder for compiled programs, of this kind of processor: others might not run them.

    A home folder may be shared by unlike machines, and JAX does not tell CPUs apart.
    """
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        processor = next(line for line in lines if line.startswith(("flags", "Features")))
    except (OSError, StopIteration):
        processor = platform.processor()
    kind = hashlib.sha256(f"{platform.machine()} {processor}".encode()).hexdigest()[:8]
    return Path.home() / ".cache" / "mbti_jax" / f"xla-{kind}"


def _run_command(config: Any, workdir: str) -> None:
    import absl.logging

    if config.task not in COMMANDS:
        _stop(f"unknown task {config.task!r}; valid tasks: {', '.join(COMMANDS)}")
    # Kept for every command, so that a second run does not compile what the first one did. The
    # variable has to be set before JAX is imported.
    os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(_compilation_cache()))
    logging.getLogger().setLevel(logging.WARNING)
    absl.logging.get_absl_handler().setLevel(logging.WARNING)
    command = importlib.import_module(f"mbti_jax.commands.{config.task}")
    failures = importlib.import_module("mbti_jax.commands.failures")
    # From here on there may be something to clean up.
    if signal.getsignal(signal.SIGINT) is _exit_at_once:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        command.main(config, workdir)
    except BrokenPipeError:
        raise
    except Exception as error:
        # Raised for the user to read: a sentence, with the traceback only on request.
        sentence = failures.explain(error, config, workdir)
        if sentence is None or os.environ.get("MBTI_TRACEBACK"):
            raise
        sys.exit(f"{sentence}\n(MBTI_TRACEBACK=1 shows where it came from)")
