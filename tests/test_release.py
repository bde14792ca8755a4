"""One source of the version, and everything that repeats it."""

import configparser
import re

from conftest import ROOT


def version() -> str:
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg")
    return config["metadata"]["version"]


def read(name: str) -> str:
    return (ROOT / name).read_text()


def test_the_version_is_a_release_number():
    assert re.fullmatch(r"\d+\.\d+\.\d+", version())


def test_pyproject_leaves_the_version_to_setup_cfg():
    text = read("pyproject.toml")
    assert re.search(r'^dynamic = \[\s*"version"', text, re.MULTILINE)
    assert not re.search(r"^version\s*=", text, re.MULTILINE)


def test_the_citation_and_the_changelog_have_the_version_of_setup_cfg():
    (cited,) = re.findall(r"^version: (.+)$", read("CITATION.cff"), re.MULTILINE)
    newest, date = re.search(r"^## (\S+) - (\S+)$", read("CHANGELOG.md"), re.MULTILINE).groups()
    assert cited == newest == version()
    released = re.findall(r"^date-released: (.+)$", read("CITATION.cff"), re.MULTILINE)
    assert released == ([] if date == "unreleased" else [date])


def test_hooks_run_the_pinned_tools():
    constraints, hooks = read("constraints.txt"), read(".pre-commit-config.yaml")
    for tool, repository in (("ruff", "ruff-pre-commit"), ("pyright", "pyright-python")):
        (rev,) = re.findall(rf"/{repository}\n\s+rev: v(\S+)", hooks)
        pinned = re.findall(rf"^{tool}==(\S+)$", constraints, re.MULTILINE)
        assert pinned in ([], [rev]), f"{tool}: constraints.txt has {pinned}, the hook v{rev}"
