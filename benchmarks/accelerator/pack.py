"""The results in a few files that are easy to carry off."""

import zipfile
from pathlib import Path

from mbti_jax.io.files import replacing

# Of the results; the folder `work` is scratch.
_RESULTS = ("*.json", "report.md", "pictures/*", "evaluation/**/*.md", "evaluation/**/*.png")


def pack(folder: Path) -> list[Path]:
    """Writes results.zip, and model.zip where there is a model.

    Returns:
        report.md and the archives.
    """
    packed = [folder / "report.md"]
    model = [path for path in sorted((folder / "model").rglob("*")) if path.is_file()]
    results = sorted({path for pattern in _RESULTS for path in folder.glob(pattern)})
    for name, paths in (("results.zip", results), ("model.zip", model)):
        if not paths:
            continue
        with (
            replacing(folder / name) as beside,
            zipfile.ZipFile(beside, "w", zipfile.ZIP_DEFLATED) as archive,
        ):
            for path in paths:
                archive.write(path, path.relative_to(folder))
        packed.append(folder / name)
    return packed
