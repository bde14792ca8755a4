"""The command line: `mbti COMMAND` where the package is installed, `python run.py` in a checkout.

Both run the command that a config file names with the config's fields, each of which can be overridden.
Whatever ends a command that could be foreseen, ends it in a sentence: MBTI_TRACEBACK=1 shows more.
"""

import contextlib
import os
import signal
import sys
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, NoReturn

# More is imported once an interrupt is handled.
if TYPE_CHECKING:
    from pathlib import Path

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
# Kinds of fields whose values are text at first, and what they must be.
_NUMBERS = {int: "a whole number", float: "a number"}
# As absl takes them.
_TRUTHS = ("true", "t", "1", "false", "f", "0")
# Configs that make what comes with the package.
_MAINTAINERS = (
    "phantom_model",
    "export_phantom_model",
    "phantom_single",
    "export_phantom_single",
    "accelerator_model",
)
_HELP = ("help", "helpshort", "h", "helpfull")
# As shells report a program that a signal ended.
_INTERRUPTED, _NOBODY_READS = 128 + signal.SIGINT, 128 + signal.SIGPIPE


def main() -> None:
    """`mbti COMMAND [OPTIONS]`."""
    options: dict[str, str] = {}
    with _ending_in_a_line(options):
        _main(sys.argv[1:], options)


def _main(arguments: Sequence[str], typed: dict[str, str]) -> None:
    """Runs a command, and adds to `typed` what its fields are called on the command line."""
    from mbti_jax.commands import options
    from tfds_brats.spelling import nearest

    command, *rest = arguments or ["--help"]
    folder = _config_folder()
    configs = {path.stem: path for path in sorted(folder.glob("[!_]*.py"))}
    if command.lstrip("-") in _HELP:
        print(_overview(configs))
    elif command == "--version":
        import mbti_jax

        print(f"mbti {mbti_jax.__version__}")
    elif command not in configs:
        commands = ", ".join(configs)
        near = nearest(command, configs)
        _stop(f"there is no command {command!r}{near or f'; commands are {commands}'}")
    else:
        # Configs import each other as `configs.NAME`.
        sys.path.insert(0, str(folder.parent))
        path = configs[command]
        line = options.parse(command, path, _load(path), rest)
        typed |= line.options
        # The flag of a config finds its fields in `sys.argv`, whatever absl is given.
        workdir = [] if line.workdir is None else [f"--workdir={line.workdir}"]
        values = [f"--config.{name}={value}" for name, value in line.values.items()]
        sys.argv[1:] = [f"--config={path}", *values, *workdir]
        _run()


def run() -> None:
    """`--config=FILE [--config.a.b=value ...] [--workdir=DIR]`."""
    with _ending_in_a_line(None):
        _run()


@contextlib.contextmanager
def _ending_in_a_line(typed: dict[str, str] | None) -> Iterator[None]:
    """Ctrl-C, a pipe that nobody reads, and mistakes end the program in at most one line.

    Args:
        typed: what fields are called on the command line, see `options.as_typed`; None for
            --config.FIELD.
    """
    # Imports may fail in any way when they are interrupted, and have nothing to clean up. Where the
    # signal is ignored, in jobs in the background, it stays so.
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _end_at_once)
    from mbti_jax.commands import interrupts, options

    try:
        yield
        sys.stdout.flush()
    except SystemExit as ending:
        if typed is not None and isinstance(ending.code, str):
            ending.code = options.as_typed(ending.code, typed)
        raise
    except BrokenPipeError:
        # Python flushes once more at the end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(_NOBODY_READS)
    except BaseException as error:
        # Libraries make other exceptions of an interrupt.
        if isinstance(error, KeyboardInterrupt) or interrupts.was_interrupted():
            interrupts.end_in_a_line()
        raise


def _end_at_once(number: int, frame: Any) -> NoReturn:
    os.write(2, b"interrupted\n")
    os._exit(_INTERRUPTED)


def _config_folder() -> "Path":
    """The configs inside the installed package, or those of the checkout that the package is in."""
    from pathlib import Path

    package = Path(__file__).parent
    installed = package / "shipped" / "configs"
    return installed if installed.is_dir() else package.parent / "configs"


def _load(path: "str | Path") -> Any:
    """What a config file holds before anything is overridden."""
    import runpy

    return runpy.run_path(str(path))["get_config"]()


def _overview(configs: "dict[str, Path]") -> str:
    from mbti_jax.commands.config_text import about

    lines = ["usage: mbti COMMAND [OPTIONS]"]
    groups = {"commands:": [name for name in configs if name not in _MAINTAINERS]}
    groups["for maintainers, who make the bundled models:"] = list(_MAINTAINERS)
    for title, names in groups.items():
        lines += ["", title]
        lines += [
            f"  {name:24s} {about(configs[name]).splitlines()[0].rstrip(':')}" for name in names
        ]
    return "\n".join([*lines, "", *_OVERVIEW])


_OVERVIEW = (
    "A case, a mask, the result:",
    "  mbti inpaint -i t1=t1.nii.gz t1ce=t1ce.nii.gz t2=t2.nii.gz flair=flair.nii.gz \\",
    "      -m mask.nii.gz --tissue edema -o out",
    "",
    "`mbti COMMAND --help` says what a command does, and what each of its options and fields means.",
)


def _stop(problem: str) -> NoReturn:
    from pathlib import Path

    sys.exit(f"{Path(sys.argv[0]).name}: {problem}")


def _run() -> None:
    """Runs the command that the command line names."""
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

    app.run(command, flags_parser=_parse_flags)


def _parse_flags(argv: list[str]) -> list[str]:
    """Parses the command line; what is wrong with it ends the program in one line."""
    from pathlib import Path

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
        config = _load(path)
        if {*_HELP} & {*names}:
            from mbti_jax.commands.config_text import about, list_fields

            listed = list_fields(Path(path), config, "--config.", {})
            print(f"{about(Path(path))}\n\nfields, with their defaults:\n{listed}")
            sys.exit(0)
        for position, name in enumerate(names, start=1):
            if name.startswith("config."):
                following = argv[position + 1] if position + 1 < len(argv) else ""
                _, equals, value = argv[position].partition("=")
                # A flag of truth by itself says yes.
                _check_field(config, name, value if equals else following, bool(equals))
    try:
        rest = flags.FLAGS(argv)
    except flags.Error as error:
        _stop(str(error).replace("\n", " "))
    if len(rest) > 1:
        _stop(f"unexpected {' '.join(rest[1:])}; overrides are --config.field=value")
    return rest


def _check_field(config: Any, name: str, value: str, is_given: bool) -> None:
    """Stops if `name` (config.a.b) is no field of `config`, or `value` no value of one."""
    from mbti_jax.commands import config_text
    from tfds_brats.spelling import nearest

    known = [f"--config.{field}" for field, *_ in config_text.fields(config)]
    path = name.split(".")
    for depth, field in enumerate(path[1:], start=1):
        is_group = hasattr(config, "to_dict")
        if not is_group or field not in config:
            there = ", ".join(sorted(config)) if is_group else "no fields"
            near = nearest(f"--{name}", known)
            _stop(f"no field --{name}{near or ';'} {'.'.join(path[:depth])} has: {there}")
        group, config = config, config.get(field)
    kind = group.get_type(path[-1])
    if kind is bool and is_given and value.lower() not in _TRUTHS:
        _stop(f"--{name} must be True or False, not {value!r}")
    if kind in _NUMBERS:
        try:
            kind(value)
        except ValueError:
            _stop(f"--{name} must be {_NUMBERS[kind]}, not {value!r}")


def _compilation_cache() -> "Path":
    """A folder for compiled programs, of this kind of processor: others might not run them.

    A home folder may be shared by unlike machines, and JAX does not tell CPUs apart.
    """
    import hashlib
    import platform
    from pathlib import Path

    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        processor = next(line for line in lines if line.startswith(("flags", "Features")))
    except (OSError, StopIteration):
        processor = platform.processor()
    kind = hashlib.sha256(f"{platform.machine()} {processor}".encode()).hexdigest()[:8]
    return Path.home() / ".cache" / "mbti_jax" / f"xla-{kind}"


def _run_command(config: Any, workdir: str) -> None:
    import importlib
    import logging

    import absl.logging

    from mbti_jax.commands import interrupts, options
    from tfds_brats.spelling import nearest

    if config.task not in COMMANDS:
        near = nearest(config.task, COMMANDS) or ";"
        _stop(f"unknown task {config.task!r}{near} valid tasks: {', '.join(COMMANDS)}")
    options.check_existing(config)
    # Kept for every command, so that a second run does not compile what the first one did. The
    # variable has to be set before JAX is imported.
    os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(_compilation_cache()))
    logging.getLogger().setLevel(logging.WARNING)
    absl.logging.get_absl_handler().setLevel(logging.WARNING)
    command = importlib.import_module(f"mbti_jax.commands.{config.task}")
    failures = importlib.import_module("mbti_jax.commands.failures")
    # From here on there may be something to clean up.
    if signal.getsignal(signal.SIGINT) is _end_at_once:
        interrupts.clean_up_on_interrupt()
    try:
        command.main(config, workdir)
    except BrokenPipeError:
        raise
    except Exception as error:
        if interrupts.was_interrupted():
            raise
        # Raised for the user to read: a sentence, with the traceback only on request.
        sentence = failures.explain(error, config, workdir)
        if sentence is None or os.environ.get("MBTI_TRACEBACK"):
            raise
        sys.exit(f"{sentence}\n(MBTI_TRACEBACK=1 shows where it came from)")
