"""What the files of cases hold, as digests, so that changed files are noticed wherever they lie."""

import hashlib
import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tfds_brats.cases import CaseFiles
from tfds_brats.volumes import is_gzip


def files_of(files: CaseFiles) -> dict[str, Path]:
    """Role -> file; a role is a sequence or "labels"."""
    labels = {} if files.labels is None else {"labels": files.labels}
    return {**files.images, **labels}


def case_lines(cases: Sequence[CaseFiles], whole: bool = True) -> dict[str, list[str]]:
    """Subject -> what each of its files holds, a line each.

    Args:
        cases: the cases.
        whole: read whole files where that is needed to know; otherwise only their size is looked at
            there.
    """
    entries = [(files.subject, *entry) for files in cases for entry in files_of(files).items()]
    lines: dict[str, list[str]] = {files.subject: [] for files in cases}
    with ThreadPoolExecutor(8) as pool:
        contents = pool.map(lambda entry: _content(entry[2], whole), entries)
        for (subject, role, _), content in zip(entries, contents, strict=True):
            lines[subject].append(f"{subject} {role} {content}")
    return lines


def digest_of_all(lines: Mapping[str, Sequence[str]]) -> str:
    """Hex digest of the subjects' names and the contents of their files."""
    return _digest([line for of_case in lines.values() for line in of_case])


def case_digest(files: CaseFiles, lines: Sequence[str]) -> str:
    """Hex digest of all that a case's records are a function of."""
    return _digest([files.convention.name, files.patient, *lines])


def _digest(lines: Sequence[str]) -> str:
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def _content(path: Path, whole: bool) -> str:
    with path.open("rb") as file:
        size = file.seek(0, os.SEEK_END)
        if is_gzip(path):
            # A gzip file ends with the CRC-32 and the length of its content.
            file.seek(max(0, size - 8))
            return f"{size} {file.read().hex()}"
        if not whole:
            return f"{size}"
        file.seek(0)
        return f"{size} {hashlib.file_digest(file, 'sha256').hexdigest()}"
