"""What the architecture promises and a reader can rely on, read from the source."""

import ast

import pytest
from conftest import ROOT

FILES = sorted((ROOT / "mbti_jax").rglob("*.py"))
BELOW = [path for path in FILES if path.parent.name != "commands" and path.name != "cli.py"]
MOST_PARAMETERS = 8
# The public verbs of the Inpainter, whose keywords are for users. The page's handlers take what its
# inputs are.
ENTRY_POINTS = {"Inpainter.inpaint", "Inpainter.inpaint_volume", "Sampler.__call__"}
HANDLERS = "mbti_jax/web/actions.py"


def functions(tree: ast.Module):
    """(qualified name, node) of every function."""

    def walk(node, prefix):
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
                name = f"{prefix}{child.name}"
                if not isinstance(child, ast.ClassDef):
                    yield name, child
                yield from walk(child, f"{name}.")
            else:
                yield from walk(child, prefix)

    return walk(tree, "")


def name_of(path) -> str:
    return str(path.relative_to(ROOT))


@pytest.mark.parametrize("path", BELOW, ids=name_of)
def test_only_commands_see_configs_print_and_speak_of_flags(path):
    tree = ast.parse(path.read_text())
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            assert node.func.id != "print", f"{path}:{node.lineno} prints"
        if isinstance(node, ast.Name | ast.alias):
            name = node.id if isinstance(node, ast.Name) else node.name
            assert name != "ConfigDict", f"{path} knows ConfigDict"
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            assert "--config." not in node.value, f"{path}:{node.lineno} speaks of flags"


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_no_function_has_many_parameters(path):
    if name_of(path) == HANDLERS:
        pytest.skip("Gradio hands over every input of the page")
    for name, node in functions(ast.parse(path.read_text())):
        arguments = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
        count = sum(argument.arg not in ("self", "cls") for argument in arguments)
        assert count <= MOST_PARAMETERS or name in ENTRY_POINTS, f"{name} has {count} parameters"
