"""The commands and options that the documentation names are there, and its address is the set one."""

import configparser
import functools
import re
import runpy
import shlex

import numpy as np
import pytest
from conftest import ROOT
from PIL import Image
from skimage.measure import label, regionprops

from mbti_jax import cli
from mbti_jax.commands import config_text, options
from mbti_jax.rois.kinds import COLORS

PAGES = sorted(
    [
        *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "tfds_brats/README.md")),
        *(ROOT / "configs").glob("*.py"),
        *(ROOT / "docs").rglob("*.md"),
    ]
)
# What `evaluate` wrote is a record of what was run then, and so are the notes.
PAGES = [page for page in PAGES if page.parent.name not in ("evaluation", "notes")]
NAMES = [str(page.relative_to(ROOT)) for page in PAGES]
# Drawn by the project; the page's is a screenshot.
FIGURES = sorted(set((ROOT / "docs").rglob("*.png")) - {ROOT / "docs" / "page.png"})
# Of when legends explained all kinds of ROI; it goes with a dated note.
OF_BEFORE = {ROOT / "docs" / "quickstart.png"}
ALL = set(COLORS.values())
# Options of other programs that the text names.
OTHERS = {"--gpus", "--user"}


@functools.cache
def config_of(command: str):
    return runpy.run_path(str(ROOT / "configs" / f"{command}.py"))["get_config"]()


def parsed(command: str, arguments: list[str]) -> None:
    options.parse(command, ROOT / "configs" / f"{command}.py", config_of(command), arguments)


def command_lines(text: str) -> list[list[str]]:
    """Command lines in blocks of code, and what is written as code between words, in words."""
    text = text.replace('"""', "\n").replace("\\\\\n", " ").replace("\\\n", " ")
    blocks = re.findall(r"^ {4,}(.*)$", text, re.MULTILINE)
    blocks += re.findall(r"^(?:mbti|python run\.py) .*$", text, re.MULTILINE)
    # A sentence may be broken within it.
    spans = [" ".join(span.split()) for span in re.findall(r"`([^`]+)`", text)]
    commands = []
    for line in blocks + spans:
        for part in line.split(" && "):
            if part.startswith(("mbti ", "python run.py ")):
                commands.append(shlex.split(part, comments=True))
    return commands


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_command_lines_are_understood(page):
    for program, *arguments in command_lines(page.read_text()):
        if program == "python":
            arguments = arguments[1:]
            name = next(a for a in arguments if a.startswith("--config="))
            command = name.removeprefix("--config=configs/").removesuffix(".py")
            rest = [a for a in arguments if a != name and "FIELD" not in a]
        else:
            command, *rest = arguments
        # What is general, and a usage with its choices.
        if command in ("COMMAND", "--help", "--version") or {"--help", "|"} & {*rest}:
            continue
        try:
            parsed(command, rest)
        except SystemExit as stopped:
            pytest.fail(f"{command} {shlex.join(rest)}: {stopped}")


@functools.cache
def all_options() -> set[str]:
    known = {*OTHERS, "--help", "--config", "--workdir"}
    for path in (ROOT / "configs").glob("*.py"):
        config = config_of(path.stem)
        kinds = {name: kind for name, _, kind in config_text.fields(config)}
        parser = options._parser(path.stem, path, config, kinds)
        known |= {name for action in parser._actions for name in action.option_strings}
    return known


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_options_between_words_are_some_commands(page):
    for span in re.findall(r"`(--[^`]+)`", page.read_text()):
        name = re.match(r"--[\w.]+", span.replace("--config.", "--", 1))
        assert name and (name[0] in all_options() or "FIELD" in span), span


def test_unknown_options_would_be_noticed():
    ((_, command, *rest),) = command_lines("\n    mbti train -o runs/x \\\n        --num_step 3\n")
    with pytest.raises(SystemExit, match="did you mean"):
        parsed(command, rest)


def test_every_command_is_described():
    described = (ROOT / "docs" / "commands.md").read_text()
    for path in (ROOT / "configs").glob("*.py"):
        assert f"`{path.stem}`" in described, path.stem
    assert {*cli.COMMANDS} <= {path.stem for path in (ROOT / "configs").glob("*.py")}


def test_the_readme_has_the_address_of_setup_cfg():
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    address, readme = setup["metadata"].get("url", ""), (ROOT / "README.md").read_text()
    (cloned,) = re.findall(r"git clone (\S+)", readme)
    assert cloned == (address or "ADDRESS")
    assert ("has no public address yet" in readme) != bool(address)


@pytest.mark.parametrize("name", ["README.md", "CONTRIBUTING.md", "RELEASING.md", "SECURITY.md"])
def test_links_lead_to_files(name):
    """Of pages that the site does not have; strict builds check the others."""
    for target in re.findall(r"\]\((?!https?:|mailto:|#)([^)#\s]+)", (ROOT / name).read_text()):
        assert (ROOT / target).exists(), target


def swatches(picture: np.ndarray) -> list[tuple[int, int, int]]:
    """Colors of the legend's swatches: filled rectangles of one strong color, wider than high."""
    return [
        tuple(map(int, picture[region.coords[0][0], region.coords[0][1]]))
        for region in _filled(picture)
    ]


def outlined(picture: np.ndarray) -> set[tuple[int, int, int]]:
    """Colors of kinds of ROI that the picture has outside of its legend."""
    rest = picture.copy()
    for region in _filled(picture):
        rest[tuple(region.coords.T)] = 0
    return {color for color in COLORS.values() if (rest == color).all(-1).any()}


def _filled(picture: np.ndarray) -> list:
    wide = picture.astype(int)
    code = (wide << np.array([16, 8, 0])).sum(-1) * (np.ptp(wide, axis=-1) > 60)
    found = []
    for region in regionprops(label(code, connectivity=1)):
        top, left, bottom, right = region.bbox
        height, width = bottom - top, right - left
        if region.area == height * width and height >= 6 and width >= max(12, 1.5 * height):
            found.append(region)
    return found


@pytest.mark.parametrize("path", FIGURES, ids=[str(p.relative_to(ROOT)) for p in FIGURES])
def test_a_legend_explains_the_colors_of_its_picture(path):
    """Each once: pictures saved with fewer colors gave two classes the same one. And no other."""
    picture = np.array(Image.open(path).convert("RGB"))
    colors = swatches(picture)
    assert len(set(colors)) == len(colors)
    # Curves and histograms have lines.
    if path.name not in ("curves.png", "histograms.png"):
        assert set(colors) == outlined(picture) or (path in OF_BEFORE and {*colors} == ALL)


def test_a_shared_color_would_be_noticed():
    picture = np.full((60, 200, 3), 255, np.uint8)
    for column, name in ((10, "edema"), (80, "normal")):
        picture[20:30, column : column + 30] = COLORS[name]
    assert swatches(picture) == [COLORS["edema"], COLORS["normal"]]
    assert outlined(picture) == set()
    picture[50, 100] = COLORS["tumor"]
    assert outlined(picture) == {COLORS["tumor"]}
    few = np.array(Image.fromarray(picture).quantize(2).convert("RGB"))
    assert len(set(swatches(few))) < 2


def test_the_cards_of_all_bundled_models_are_pages_of_the_site():
    hooks, navigation = (ROOT / name for name in ("mkdocs_hooks.py", "mkdocs.yml"))
    for card in (ROOT / "mbti_jax" / "pretrained").glob("*/README.md"):
        path = re.escape(card.relative_to(ROOT).as_posix())
        page = re.search(rf'"{path}": "(.*)"', hooks.read_text())
        assert page and f": {page[1]}\n" in navigation.read_text(), card
