"""Options of the console command: fields of a config under their own names, and short ones for some.

Nothing here loads JAX, so what is wrong with a command line or its paths is said at once.
"""

import argparse
import ast
import difflib
import os
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

from mbti_jax.commands.config_text import about, fields, kind_of, list_fields
from tfds_brats.spelling import nearest

_SEQUENCES = ("t1", "t1ce", "t2", "flair")
# What files given one by one can be.
_ROLES = (*_SEQUENCES, "seg")
_VOLUMES = (".nii", ".nii.gz")
# Field -> short names of its option.
_SHORT = {
    "workdir": ("-o", "--output"),
    "source": ("-i", "--input"),
    "convention": ("-c",),
    "checkpoint": ("--model",),
}
_INPAINT = {
    "workdir": ("-o", "--output"),
    "convention": ("-c",),
    "checkpoint": ("--model",),
    "roi": ("-m", "--mask"),
    "roi_labels": ("--tissue",),
    "num_samples": ("--samples",),
}
# Ways to make ROIs of a case's own tumor, and what they are in words.
_TUMOR = {
    "remove": "normal tissue in place of the case's own tumor",
    "move": "normal tissue in its place, and its components elsewhere",
    "replace": "another tumor of the same components",
    "random": "a tumor that the model composes, in its place",
}
_STEPS = {"grow": "grows", "shrink": "shrinks"}
# Fields of each command that name what has to be there.
_EXISTING = {
    "data": ("source",),
    "evaluate": ("checkpoint", "source", "healthy.regressor", "volumes.regressor"),
    "export": ("source",),
    "few_step": ("init_from", "dataset"),
    "figures": ("checkpoint", "data_dir"),
    "healthy_masks": ("source", "shapes_source"),
    "import_torch": ("source",),
    "inpaint": ("checkpoint", "source", "image", "roi", *(f"images.{r}" for r in _ROLES)),
    "quickstart": ("source",),
    "serve": ("checkpoint",),
    "train": ("data.dataset",),
}
_MODELS = ("checkpoint", "init_from")
_DATASETS = ("dataset", "data.dataset", "data_dir")
_BUNDLED = ("phantom", "phantom_single")


class Line(NamedTuple):
    """A command line.

    Attributes:
        workdir: the folder for results; None for the config's own.
        values: field -> its value as text.
        options: field -> its option as it was typed, or else its shortest.
    """

    workdir: str | None
    values: dict[str, str]
    options: dict[str, str]


def parse(command: str, path: Path, config: Any, arguments: Sequence[str]) -> Line:
    """The fields that a command line of the console command sets.

    Args:
        command: its name.
        path: of its config file.
        config: what that holds.
        arguments: what follows the command; an option of help ends the program with it.

    Raises:
        SystemExit: something is wrong with them; its code says what in a sentence.
    """
    kinds = {name: kind for name, _, kind in fields(config) if name != "task"}
    parser = _parser(command, path, config, kinds)
    arguments = [_own_name(argument) for argument in arguments]
    given, unknown = parser.parse_known_args(arguments)
    if unknown:
        _refuse(parser, unknown[0])
    values: dict[str, str] = vars(given)
    for name in _STEPS:
        if width := values.pop(f"{name}_mm", None):
            values |= {"tumor": name, "step_mm": width}
    inputs: Any = values.pop("inputs", None)
    values |= _input_fields(parser, inputs) if inputs else {}
    return Line(
        values.pop("workdir", None),
        {name: _as_tuple(value, kinds[name], config, name) for name, value in values.items()},
        _options(parser, command, arguments),
    )


def as_typed(text: str, options: Mapping[str, str]) -> str:
    """A message whose fields, --config.FIELD, are named by their options: `Line.options`."""

    def option(match: re.Match) -> str:
        name, equals = match.groups()
        known = options.get(name, f"--{name}")
        return f"{known} " if equals and len(known) == 2 else f"{known}{equals}"

    return re.sub(r"--config\.(\w+(?:\.\w+)*)(=?)", option, text)


def _options(
    parser: argparse.ArgumentParser, command: str, arguments: Sequence[str]
) -> dict[str, str]:
    """What `Line.options` are."""
    is_inpaint = command == "inpaint"
    out = {name: names[0] for name, names in (_INPAINT if is_inpaint else _SHORT).items()}
    if is_inpaint:
        out |= {"source": "-i", "image": "-i", "tumor": f"--{next(iter(_TUMOR))}"}
        out |= {f"images.{name}": f"-i {name}" for name in _ROLES}
    for argument in arguments:
        option = argument.partition("=")[0]
        if action := parser._option_string_actions.get(option):
            step = action.dest.removesuffix("_mm") in _STEPS
            names = ("tumor", "step_mm") if step else (action.dest,)
            out |= dict.fromkeys(names, option)
    return out


def check_existing(config: Any) -> None:
    """Ends the program in a sentence if a path of the config is not there.

    Whether it can be used is for the command to say.
    """
    for name in _EXISTING.get(config.task, ()):
        value = config
        for part in name.split("."):
            value = value[part]
        leaf = name if name in _DATASETS else name.rpartition(".")[2]
        # Parts in braces stand for names that the case or the sequence gives.
        if not value or "{" in value or (leaf in _MODELS and value in _BUNDLED):
            continue
        path = Path(value).expanduser()
        if path.exists():
            continue
        way = nearest(value, _BUNDLED) if leaf in _MODELS else ""
        way = way or _nearest_path(path)
        if leaf in _DATASETS and not way:
            way = "; `mbti data` makes a dataset"
        if leaf in _MODELS and not way:
            bundled = " or ".join(_BUNDLED)
            way = f"; give a training run's folder, an export, or {bundled}, the bundled models"
        sys.exit(f"--config.{name}: {value} is not there{way}")


class _Parser(argparse.ArgumentParser):
    """Says what is wrong in a line."""

    def error(self, message: str) -> NoReturn:
        sys.exit(f"{self.prog}: {message.removeprefix('argument ')}")

    def print_help(self, file: Any = None) -> None:
        """Not as argparse does, which does not notice a pipe that nobody reads."""
        print(self.format_help(), end="", flush=True)


def _parser(command: str, path: Path, config: Any, kinds: Mapping[str, type]) -> _Parser:
    is_inpaint = command == "inpaint"
    short = {k: v for k, v in (_INPAINT if is_inpaint else _SHORT).items() if k in kinds}
    aliases = {name: ", ".join(names) for name, names in short.items()}
    listed = list_fields(path, config, "--", aliases)
    text = about(path).replace(f"python run.py --config=configs/{command}.py", f"mbti {command}")
    parser = _Parser(
        prog=f"mbti {command}",
        usage=f"mbti {command} " + (_INPAINT_USAGE if is_inpaint else "[OPTIONS]"),
        description=text.replace("python run.py --config=configs/", "mbti ").replace(
            "--config.", "--"
        ),
        epilog=f"fields of the config, with their defaults:\n{listed}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        argument_default=argparse.SUPPRESS,
        allow_abbrev=False,
    )
    # A case is given in one way, and so is where to paint.
    case, where = parser.add_mutually_exclusive_group(), parser.add_mutually_exclusive_group()
    for name, kind in kinds.items():
        group: Any = parser
        if is_inpaint:
            group = {"source": case, "image": case, "roi": where, "tumor": where}.get(name, parser)
        # A flag by itself says yes.
        options: Any = {"nargs": "?", "const": "True"} if kind is bool else {}
        names = (*short.get(name, ()), f"--{name}")
        group.add_argument(
            *names, dest=name, metavar=kind_of(kind), help=argparse.SUPPRESS, **options
        )
    if is_inpaint:
        what = (
            "a folder of cases (with -c), SEQUENCE=FILE for each volume of a case and seg=FILE for its "
            "segmentation (with -c), or a slice"
        )
        case.add_argument("-i", "--input", dest="inputs", nargs="+", metavar="PATH", help=what)
        for name, meaning in _TUMOR.items():
            where.add_argument(
                f"--{name}", dest="tumor", action="store_const", const=name, help=meaning
            )
        for name, verb in _STEPS.items():
            meaning = f"a series in which the tumor {verb} by so much with each sample"
            where.add_argument(f"--{name}", dest=f"{name}_mm", metavar="MM", help=meaning)
        parser.add_argument(
            "--mean",
            dest="estimate",
            action="store_const",
            const="mean",
            help="the mean of the samples, with their standard deviation, and not each of them",
        )
    return parser


_INPAINT_USAGE = (
    "-i INPUT (-m MASK [--tissue NAME] | --remove | --move | --replace | --random |\n"
    "       --grow MM | --shrink MM) -o OUT [--samples N] [--seed N] [--model MODEL] [--FIELD VALUE ...]"
)


def _own_name(argument: str) -> str:
    """--config.a.b=value, as `run.py` takes it, by its name here."""
    return argument.replace("--config.", "--", 1) if argument.startswith("--config.") else argument


def _refuse(parser: _Parser, argument: str) -> NoReturn:
    if not argument.startswith("-"):
        parser.error(f"unexpected {argument!r}; a field is given as --FIELD VALUE")
    name = argument.partition("=")[0]
    known = [text for action in parser._actions for text in action.option_strings]
    parser.error(f"there is no option {name}{nearest(name, known)} (see {parser.prog} --help)")


def _input_fields(parser: _Parser, inputs: Sequence[str]) -> dict[str, str]:
    """What `inpaint` is given, as fields."""
    named = [given.partition("=") for given in inputs]
    if all(separator and name in _ROLES for name, separator, _ in named):
        twice = [name for name, *_ in named if sum(name == other for other, *_ in named) > 1]
        if twice:
            parser.error(f"-i: {twice[0]} is given twice")
        return {f"images.{name}": file for name, _, file in named}
    # A path may hold the sign, too.
    of_unknown = [
        bool(separator) and not (name in _ROLES or os.sep in name or os.path.exists(given))
        for given, (name, separator, _) in zip(inputs, named, strict=True)
    ]
    if len(inputs) == 1 and not inputs[0].lower().endswith(_VOLUMES) and not any(of_unknown):
        (path,) = inputs
        is_slice = path.lower().endswith((".png", ".npy")) and not os.path.isdir(path)
        return {"image" if is_slice else "source": path}
    guessed = []
    for path, (name, separator, file), is_unknown in zip(inputs, named, of_unknown, strict=True):
        if is_unknown:
            guessed.append(f"{_guess(name, _guess(file))}={file}")
        else:
            is_named = separator and name in _ROLES
            guessed.append(path if is_named else f"{_guess(path)}={path}")
    problem, end = "say which sequence each file is, such as", ""
    if any(of_unknown):
        name, end = named[of_unknown.index(True)][0], "?"
        problem = f"there is no sequence {name!r}, but {', '.join(_ROLES)}; did you mean"
    parser.error(f"-i: {problem} -i {' '.join(guessed)}{end}")


def _guess(path: str, otherwise: str = "SEQUENCE") -> str:
    """What sequence a file's name speaks of, for a person to confirm."""
    name = Path(path).name.lower().removesuffix(".gz").removesuffix(".nii")
    for sequence, words in (
        ("t1ce", ("t1ce", "t1c", "t1gd")),
        ("flair", ("flair", "t2f")),
        ("t2", ("t2", "t2w")),
        ("t1", ("t1", "t1n", "t1w")),
        ("seg", ("seg",)),
    ):
        if name.replace("-", "_").split("_")[-1] in words:
            return sequence
    return otherwise


def _as_tuple(text: str, kind: type, config: Any, name: str) -> str:
    """A list of words, "a,b", as the text of a tuple; other values as they are."""
    if kind is not tuple:
        return text
    for part in name.split("."):
        config = config[part]
    try:
        value = ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return str(tuple(text.split(",")))
    holds_words = bool(config) and all(isinstance(element, str) for element in config)
    if holds_words and not isinstance(value, str):
        elements = value if isinstance(value, tuple) else (value,)
        if not all(isinstance(element, str) for element in elements):
            return str(tuple(text.split(",")))
    return text


def _nearest_path(path: Path) -> str:
    """What of a path is there, and what it may have been."""
    folder = path.parent
    while not folder.is_dir() and folder != folder.parent:
        path, folder = folder, folder.parent
    try:
        found = difflib.get_close_matches(path.name, os.listdir(folder), n=1)
    except OSError:
        return ""
    return f"; did you mean {folder / found[0]}?" if found else ""
