"""Writes the project's address into the notebook: `url` of setup.cfg, which is the one place for it.

    python colab/address.py && jupytext --to ipynb --update colab/inpaint.py

Without an address the notebook says that there is none.
"""

import configparser
import re
from pathlib import Path

_ROOT = Path(__file__).parent.parent
_BADGE = "https://colab.research.google.com/assets/colab-badge.svg"
_NONE = """\
# The project has no public address yet, so there is no badge here: open this file in Colab with File >
# Upload notebook, and fill in REPOSITORY below.
"""


def address(setup: str) -> str:
    """The address in a setup.cfg; empty where there is none."""
    config = configparser.ConfigParser()
    config.read_string(setup)
    return config.get("metadata", "url", fallback="").strip().rstrip("/")


def with_address(notebook: str, url: str) -> str:
    """The source of the notebook with a badge and an installation from an address, or with neither.

    Raises:
        ValueError: Colab opens notebooks of GitHub alone.
    """
    badge, repository = _NONE, ""
    if url:
        name = re.fullmatch(r"https://github\.com/([^/]+/[^/]+?)(\.git)?", url)
        if not name:
            raise ValueError(f"setup.cfg: url is {url}; Colab opens https://github.com/OWNER/NAME")
        page = f"https://colab.research.google.com/github/{name[1]}/blob/main/colab/inpaint.ipynb"
        badge, repository = f"# [![Open in Colab]({_BADGE})]({page})\n", f"git+{url}"
    old = re.escape(_NONE) + r"|# \[!\[Open in Colab\]\(.*\)\n"
    notebook, count = re.subn(old, lambda _: badge, notebook)
    pattern = r'^REPOSITORY = "[^"]*"'
    notebook, others = re.subn(pattern, f'REPOSITORY = "{repository}"', notebook, flags=re.M)
    if (count, others) != (1, 1):
        raise ValueError("colab/inpaint.py: has no badge or no REPOSITORY")
    return notebook


if __name__ == "__main__":
    source = _ROOT / "colab" / "inpaint.py"
    text = with_address(source.read_text(), address((_ROOT / "setup.cfg").read_text()))
    source.write_text(text)
