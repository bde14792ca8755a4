"""Which way imports point, and what is kept out, read from the source."""

import ast
import graphlib
import re
from pathlib import Path

import pytest
from conftest import ROOT

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


GRAPH = {module: dependencies(module) for module in FILES}


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


def documented_order() -> list[str]:
    """mbti_jax's modules in the order in which ARCHITECTURE.md lists them; `interop` is a folder."""
    text = (ROOT / "ARCHITECTURE.md").read_text()
    block = text.split("## Files, and which way imports point")[1].split("```")[1]
    listing = block.split("mbti_jax/\n")[1].split("\ntfds_brats/")[0]
    order = []
    for line in listing.splitlines():
        names = line.split("   ")[0].split("->")
        for name in (name.split()[0] for name in names if name.strip()):
            order.append("mbti_jax." + re.sub(r"\.py$|/$", "", name).replace("/", "."))
    return order


def position(module: str, order: list[str]) -> int | None:
    for name in (module, module.rpartition(".")[0]):
        if name in order:
            return order.index(name)
    return None


def test_architecture_lists_every_module():
    order = documented_order()
    modules = [name for name in FILES if name.startswith("mbti_jax.") and name != "mbti_jax.models"]
    missing = [name for name in modules if position(name, order) is None]
    assert not missing


def test_the_graph_sees_imports():
    assert "mbti_jax.data" in GRAPH["mbti_jax.train"]
    assert "tfds_brats.reading" in GRAPH["mbti_jax.data"]
    assert len(reachable("mbti_jax.train")) > 10


def test_there_are_no_circles():
    graphlib.TopologicalSorter(GRAPH).prepare()


def test_imports_point_down_the_list_in_the_architecture():
    order = documented_order()
    assert len(order) > 15
    unknown = [name for name in order if name not in FILES]
    assert not unknown, "ARCHITECTURE.md lists files that do not exist"
    for module, targets in GRAPH.items():
        here = position(module, order)
        for target in targets:
            there = position(target, order)
            if here is not None and there is not None and order[here] != order[there]:
                assert here < there, f"{module} imports {target}, which is above it"


def test_the_dataset_package_stands_alone():
    for module in FILES:
        if module.startswith("tfds_brats"):
            assert not packages({module}) & {"mbti_jax", "jax", "flax", "optax", "grain"}, module


@pytest.mark.parametrize(
    "name", ["sampler", "diffusion", "schedule", "guidance", "tasks", "augment", "preprocess"]
)
def test_functions_on_arrays_know_no_flax(name):
    modules = reachable(f"mbti_jax.{name}")
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


def test_no_file_is_longer_than_400_lines():
    folders = (*PACKAGES, "configs")
    paths = [path for folder in folders for path in (ROOT / folder).rglob("*.py")]
    long = {
        str(p.relative_to(ROOT)): n for p in paths if (n := len(p.read_text().splitlines())) > 400
    }
    assert not long
