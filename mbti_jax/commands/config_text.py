"""What a config file says of itself: its commands, its fields, and the comments beside them."""

import ast
import shutil
import textwrap
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

_KINDS = {bool: "True|False", int: "N", float: "X", str: "TEXT", tuple: "A,B,..."}


def about(path: Path) -> str:
    """The docstring of a config file."""
    return ast.get_docstring(ast.parse(path.read_text())) or ""


def meanings(path: Path) -> dict[str, str]:
    """Field -> the comment that stands above it, in the order of the file.

    A comment holds for the assignments that follow it without an empty line or another comment between
    them. Fields of a config that this one starts from come first, and keep their comments unless this
    one has others right above them.
    """
    source = path.read_text()
    tree, lines = ast.parse(source), source.splitlines()
    out: dict[str, str] = {}
    bodies = [node.body for node in tree.body if isinstance(node, ast.FunctionDef)]
    groups: dict[str, ast.Dict] = {}
    for statement in (statement for body in bodies for statement in body):
        if not isinstance(statement, ast.Assign):
            continue
        target, value = statement.targets[0], statement.value
        if isinstance(target, ast.Name) and isinstance(value, ast.Dict):
            groups[target.id] = value
        elif isinstance(target, ast.Name) and ast.unparse(value).endswith(".get_config()"):
            out = meanings(path.with_name(f"{ast.unparse(value).split('.')[0]}.py"))
        elif isinstance(target, ast.Attribute):
            name = ast.unparse(target).partition(".")[2]
            _note(out, name, lines, statement.lineno)
            for key, line in _keys(value, groups):
                _note(out, f"{name}.{key}", lines, line)
    return out


def fields(config: Any, prefix: str = "") -> Iterator[tuple[str, Any, type]]:
    """(name, default, type) of every field of a `ConfigDict`, those of its groups by a.b."""
    for name in config:
        # Not by item: that of a field without a value cannot be read.
        value = config.get(name)
        if hasattr(value, "to_dict"):
            yield from fields(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value, config.get_type(name)


def kind_of(field_type: type) -> str:
    """What stands for a value of a field in help."""
    return _KINDS.get(field_type, "VALUE")


def list_fields(path: Path, config: Any, dashes: str, aliases: Mapping[str, str]) -> str:
    """Help on the fields of a config: options with their defaults, and below them what they mean.

    Args:
        path: the config file.
        config: what it holds.
        dashes: what an option begins with.
        aliases: field -> other names of its option.
    """
    known = {name: (value, kind) for name, value, kind in fields(config) if name != "task"}
    said = meanings(path)
    order = [name for name in said if name in known]
    order += [name for name in known if name not in said]
    width = min(100, shutil.get_terminal_size((100, 24)).columns)
    out: list[str] = []
    for number, name in enumerate(order):
        value, kind = known[name]
        option = "--workdir DIR" if name == "workdir" else f"{dashes}{name} {kind_of(kind)}"
        others = f"{aliases[name]}, " if name in aliases else ""
        default = "" if value in (None, "", ()) else f"   [{_as_written(value)}]"
        out.append(f"  {others}{option}{default}")
        meaning = said.get(name, "")
        following = order[number + 1] if number + 1 < len(order) else ""
        if meaning and said.get(following) != meaning:
            out += textwrap.wrap(meaning, width, initial_indent=" " * 8, subsequent_indent=" " * 8)
    return "\n".join(out)


def _as_written(value: Any) -> str:
    if isinstance(value, tuple) and all(isinstance(part, int | float | str) for part in value):
        return ",".join(map(str, value))
    return str(value)


def _keys(value: ast.expr, groups: Mapping[str, ast.Dict]) -> Iterator[tuple[str, int]]:
    """Keys of ConfigDict({...}) with the lines that they are on."""
    if not (isinstance(value, ast.Call) and value.args):
        return
    argument = value.args[0]
    if isinstance(argument, ast.Name):
        argument = groups.get(argument.id)
    if isinstance(argument, ast.Dict):
        for key in argument.keys:
            if isinstance(key, ast.Constant):
                yield str(key.value), key.lineno


def _note(out: dict[str, str], name: str, lines: list[str], number: int) -> None:
    is_right_above = lines[number - 2].lstrip().startswith("#")
    if is_right_above or not out.get(name):
        out[name] = _comment_above(lines, number)


def _comment_above(lines: list[str], number: int) -> str:
    """The comment that holds for a line, counted from 1."""
    row = number - 2
    while row >= 0 and lines[row].strip() and not lines[row].lstrip().startswith("#"):
        row -= 1
    comment: list[str] = []
    while row >= 0 and lines[row].lstrip().startswith("#"):
        comment.insert(0, lines[row].strip().removeprefix("#").strip())
        row -= 1
    return " ".join(comment)
