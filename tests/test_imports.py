"""Which way imports point, and what is kept out, read from the source."""

import ast
import graphlib
from pathlib import Path

import pytest
from conftest import ROOT

from mbti_jax.cli import COMMANDS

PACKAGES = ("mbti_jax", "tfds_brats")
FILES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
    for package in PACKAGES
    for path in sorted((ROOT / package).rglob("*.py"))
}


def imported(path: Path) -> set[str]:
    """Full names of everything that a file imports, wherever in it."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def dependencies(module: str) -> set[str]:
    """The project's own modules that a module imports."""
    names = imported(FILES[module])
    own = {name if name in FILES else name.rpartition(".")[0] for name in names}
    return (own & FILES.keys()) - {module}


# The package's own face imports lazily: what stands in it under TYPE_CHECKING never runs.
GRAPH = {module: dependencies(module) if "." in module else set() for module in FILES}


def reachable(module: str) -> set[str]:
    """What importing a module imports of the project, itself included."""
    seen, waiting = set(), [module]
    while waiting:
        seen.add(current := waiting.pop())
        waiting += GRAPH[current] - seen
    return seen


def packages(modules: set[str]) -> set[str]:
    """Top-level packages that the modules import."""
    return {name.partition(".")[0] for module in modules for name in imported(FILES[module])}


# From the top down: imports point downward in this list.
ORDER = (
    "cli",
    "commands",
    "web",
    "evaluation",
    "inference",
    "interop",
    "training",
    "io",
    "models",
    "data",
    "rois",
    "diffusion",
    "engine",
    "sharding",
    "fields",
)


def folder(module: str) -> str:
    """The folder of `mbti_jax` in which a module lies, or its own name at the top."""
    return module.removeprefix("mbti_jax").lstrip(".").partition(".")[0]


def test_every_module_lies_in_a_folder_of_the_order():
    found = {folder(module) for module in FILES if module.startswith("mbti_jax.")}
    assert found == set(ORDER)


def test_the_architecture_lists_the_folders_in_this_order():
    text = (ROOT / "ARCHITECTURE.md").read_text()
    places = [text.index(f"\n  {name}") for name in ORDER]
    assert places == sorted(places)


def test_the_graph_sees_imports():
    assert "mbti_jax.data.loader" in GRAPH["mbti_jax.training.loop"]
    assert "tfds_brats.reading" in GRAPH["mbti_jax.data.loader"]
    assert len(reachable("mbti_jax.training.loop")) > 10


def test_there_are_no_circles():
    graphlib.TopologicalSorter(GRAPH).prepare()


def test_imports_point_down_the_order_of_folders():
    for module, targets in GRAPH.items():
        for target in targets:
            if module.startswith("mbti_jax.") and target.startswith("mbti_jax."):
                above, below = ORDER.index(folder(module)), ORDER.index(folder(target))
                assert above <= below, f"{module} imports {target}, which is above it"


def test_nothing_imports_a_command():
    """The command line imports the one that is asked for, by its name."""
    commands = {f"mbti_jax.commands.{name}" for name in COMMANDS}
    assert commands <= FILES.keys()
    for module, targets in GRAPH.items():
        assert not targets & commands, module


def test_the_dataset_package_stands_alone():
    for module in FILES:
        if module.startswith("tfds_brats"):
            assert not packages({module}) & {"mbti_jax", "jax", "flax", "optax", "grain"}, module


@pytest.mark.parametrize(
    "name", [m for m in FILES if folder(m) in ("diffusion", "rois", "data") and m in GRAPH]
)
def test_functions_on_arrays_know_no_flax(name):
    modules = reachable(name)
    assert "flax" not in packages(modules)
    assert not any(module.startswith("mbti_jax.models") for module in modules)


def test_flax_modules_are_only_in_models():
    """The checkpoints' names in `interop` come from Flax's trees; nothing else touches it."""
    for module, path in FILES.items():
        names = {name for name in imported(path) if name.partition(".")[0] == "flax"}
        if module.startswith("mbti_jax.interop"):
            names = {name for name in names if not name.startswith("flax.traverse_util")}
        assert not names or module.startswith("mbti_jax.models"), module


@pytest.mark.parametrize("package", ["tensorflow", "torch", "clu", "torchvision", "keras"])
def test_what_the_packages_do_without(package):
    for module in FILES:
        assert package not in packages({module}), module


def test_configs_import_neither_package_nor_jax():
    for path in (ROOT / "configs").glob("*.py"):
        assert {n.partition(".")[0] for n in imported(path)} <= {"configs", "ml_collections"}, path
