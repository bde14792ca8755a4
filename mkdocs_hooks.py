"""What `mkdocs build` does beyond mkdocs.yml: pages kept elsewhere, links to files, formulas.

Pages are written so that they read well on the repository's own site, too: links are paths in the
repository, formulas are between dollars.
"""

import configparser
import html
import posixpath
import re
from pathlib import Path

from latex2mathml.converter import convert
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File

ROOT = Path(__file__).parent
# Pages whose source lies beside what it is about, and their names on the site.
ELSEWHERE = {
    "ARCHITECTURE.md": "architecture.md",
    "CHANGELOG.md": "changelog.md",
    "CONTRIBUTING.md": "contributing.md",
    "SECURITY.md": "security.md",
    "benchmarks/README.md": "benchmarks.md",
    "mbti_jax/pretrained/phantom/README.md": "bundled_model.md",
    "mbti_jax/pretrained/phantom_single/README.md": "bundled_single_model.md",
    "tfds_brats/README.md": "datasets.md",
}
_LINK = re.compile(
    r"(?P<text>!?\[[^\]]*\])\((?!https?:|mailto:|#)(?P<path>[^)#\s]+)(?P<anchor>#[^)\s]*)?\)"
)
_FORMULA = re.compile(r'<(span|div) class="arithmatex">\\[(\[](.*?)\\[)\]]</\1>', re.DOTALL)


def address() -> str:
    """Where the repository is, as setup.cfg says; empty while it does not."""
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    return setup["metadata"].get("url", "").strip().rstrip("/")


def on_config(config):
    if address():
        config.repo_url = address()
    return config


def on_files(files, config):
    for source, uri in ELSEWHERE.items():
        files.append(File.generated(config, uri, abs_src_path=str(ROOT / source)))
    return files


def on_page_markdown(markdown, page, config, files):
    """Links lead to pages of the site, others to the repository, once it has an address."""
    sources = {uri: source for source, uri in ELSEWHERE.items()}
    here = page.file.src_uri
    source = sources.get(here, f"docs/{here}")

    def replaced(link: re.Match) -> str:
        text, anchor = link["text"], link["anchor"] or ""
        path = posixpath.normpath(posixpath.join(posixpath.dirname(source), link["path"]))
        if not (ROOT / path).exists():
            raise PluginError(f"{source} links to {path}, which is not there")
        if path in ELSEWHERE or path.startswith("docs/"):
            uri = ELSEWHERE.get(path, path.removeprefix("docs/"))
            return f"{text}({posixpath.relpath(uri, posixpath.dirname(here))}{anchor})"
        if not address():
            return f"{text[1:-1]} (`{path}`)"
        kind = "tree" if (ROOT / path).is_dir() else "blob"
        return f"{text}({address()}/{kind}/main/{path}{anchor})"

    return _LINK.sub(replaced, markdown)


def on_page_content(content, page, config, files):
    """Formulas become MathML, which browsers show by themselves."""

    def replaced(formula: re.Match) -> str:
        display = "block" if formula[1] == "div" else "inline"
        return convert(html.unescape(formula[2]), display=display)

    return _FORMULA.sub(replaced, content)
