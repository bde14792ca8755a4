"""Finding the cases of a source folder, and doing something with each of them."""

import logging
import os
import re
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from tfds_brats.cases import CaseFiles
from tfds_brats.conventions import (
    CONVENTIONS,
    LABELS,
    SEQUENCES,
    CaseError,
    Convention,
    get_convention,
)
from tfds_brats.volumes import NIFTI_ENDINGS, other_format, split_ending

_log = logging.getLogger(__name__)
_ARCHIVES = (".tar", ".tar.gz", ".tgz", ".zip", ".7z")
# How many problems a message lists.
_LISTED = 5


def find_cases(
    source: str | os.PathLike,
    convention: str | Convention,
    sequences: Sequence[str] = SEQUENCES,
    labels: bool = True,
) -> list[CaseFiles]:
    """Finds the cases of a convention below a folder, at any depth.

    Hidden files and folders are passed over. A segmentation may lie in another folder than the images.

    Args:
        source: folder that holds case folders, or one case folder.
        convention: its name, a key of `CONVENTIONS`, or the convention itself.
        sequences: sequences that every case must have.
        labels: whether every case must have a segmentation.

    Returns:
        The cases in the order of their names.

    Raises:
        CaseError: an archive instead of a folder, no case found, a case that lacks a file or has
            one twice, or two cases of the same name. The message names the case and the files.
    """
    cases, problems = search_cases(source, convention, sequences, labels)
    if problems:
        raise CaseError(list_problems(problems))
    return cases


def search_cases(
    source: str | os.PathLike,
    convention: str | Convention,
    sequences: Sequence[str] = SEQUENCES,
    labels: bool = True,
) -> tuple[list[CaseFiles], list[str]]:
    """The cases below a folder that can be used, and what is wrong with the others.

    Args, Raises: see `find_cases`, but a case that cannot be used is not an error.
    """
    root = Path(source)
    if not convention and root.is_dir():
        raise CaseError(_name_the_convention(root))
    rule = get_convention(convention) if isinstance(convention, str) else convention
    if root.is_file() and root.name.lower().endswith(_ARCHIVES):
        raise CaseError(f"{root} is an archive; {_how_to_unpack(root)}")
    if not root.is_dir():
        raise CaseError(f"{root} is not a folder")
    files = list(_walk(root))
    found = _group(files, rule, with_unlabeled=not labels)
    if not found:
        raise CaseError(_nothing_found(root, rule, files))

    problems, cases = [], {}
    wanted = [*sequences, LABELS] if labels else list(sequences)
    for (folder, subject), roles in sorted(found.items()):
        twice = [paths for paths in roles.values() if len(paths) > 1]
        missing = [rule.file_name(subject, role) for role in wanted if role not in roles]
        images = {name: roles[name][0] for name in SEQUENCES if name in roles}
        if twice:
            names = " and ".join(
                path.name if path.parent == folder else str(path) for path in twice[0]
            )
            problems.append(f"{folder}: {names} are duplicates; keep one")
        elif not images:
            problems.append(_without_images(folder, subject, rule, files))
        elif missing:
            problems.append(f"{folder}: {subject} lacks {', '.join(missing)}")
        elif subject in cases:
            other = next(iter(cases[subject].images.values())).parent
            problems.append(f"{subject} exists twice, in {other} and {folder}; keep one")
        else:
            patient = re.sub(rule.case_pattern, r"\g<patient>", subject)
            segmentation = roles[LABELS][0] if LABELS in roles else None
            cases[subject] = CaseFiles(subject, patient, rule, images, segmentation)
    return [cases[subject] for subject in sorted(cases)], problems


def list_problems(problems: Sequence[str]) -> str:
    """Problems of several cases, a line each; of many the first ones."""
    more = f"\n... and {len(problems) - _LISTED} more" if len(problems) > _LISTED else ""
    return "\n".join(problems[:_LISTED]) + more


def for_each_case(
    cases: Sequence[CaseFiles], problems: Sequence[str], do: Callable[[CaseFiles], None]
) -> None:
    """Does something with every case; those that cannot be used do not keep the others from it.

    Args:
        cases: the cases.
        problems: of further cases, as `search_cases` reports them.
        do: raises `CaseError` for a case that cannot be used.

    Raises:
        CaseError: when all others are done, for the cases that could not be used; lists why.
    """
    failed = list(problems)
    for number, files in enumerate(cases, 1):
        if len(cases) > 1:
            _log.info(f"{files.subject} ({number} of {len(cases)})")
        try:
            do(files)
        except CaseError as error:
            # That of a single case is said in the end.
            if len(cases) > 1:
                _log.info(f"{files.subject}: not done: {error}")
            failed.append(str(error))
    raise_problems(failed, len(cases) + len(problems))


def raise_problems(failed: Sequence[str], total: int) -> None:
    """Raises a CaseError that lists why some of the `total` cases could not be done, if any."""
    if failed and total == 1:
        raise CaseError(failed[0])
    if failed:
        rest = f"; the other {total - len(failed)} are done" if len(failed) < total else ""
        raise CaseError(
            f"{len(failed)} of {total} cases could not be done{rest}:\n{list_problems(failed)}"
        )


def _walk(root: Path) -> Iterator[Path]:
    """Files below a folder in a fixed order; follows links, but visits each real folder once."""

    def refuse(error: OSError) -> None:
        raise CaseError(f"{error.filename}: cannot be read ({error.strerror})") from error

    seen = set()
    for folder, subfolders, names in os.walk(root, followlinks=True, onerror=refuse):
        real = os.path.realpath(folder)
        if real in seen:
            subfolders.clear()
            continue
        seen.add(real)
        # Names with a leading dot are leftovers of macOS (the MSD archive has them) and of killed runs.
        subfolders[:] = sorted(name for name in subfolders if not name.startswith("."))
        yield from (Path(folder, name) for name in sorted(names) if not name.startswith("."))


def _group(
    files: list[Path], rule: Convention, with_unlabeled: bool
) -> dict[tuple[Path, str], dict[str, list[Path]]]:
    """(folder, case) -> role -> files; a role is a sequence or "labels"."""
    found: dict[tuple[Path, str], dict[str, list[Path]]] = defaultdict(lambda: defaultdict(list))
    named = [(path, *split_ending(path)) for path in files]
    volumes = [(path, stem) for path, stem, ending in named if ending in NIFTI_ENDINGS]
    if rule.channels:
        folders = ("imagesTr", "imagesTs") if with_unlabeled else ("imagesTr",)
        for path, case in volumes:
            folder = path.parent.resolve()
            if not re.fullmatch(rule.case_pattern, case) or folder.name not in folders:
                continue
            roles = found[path.parent, case]
            for sequence in rule.channels:
                roles[sequence].append(path)
            labels = [folder.parent / "labelsTr" / f"{case}{end}" for end in NIFTI_ENDINGS]
            if present := [labels_path for labels_path in labels if labels_path.is_file()]:
                roles[LABELS] = present
        return found
    roles_by_suffix = {suffix: role for role, suffix in rule.suffixes.items()}
    roles_by_suffix[rule.label_suffix] = LABELS
    suffixes = "|".join(re.escape(suffix) for suffix in roles_by_suffix)
    pattern = re.compile(f"(?P<case>{rule.case_pattern})(?P<suffix>{suffixes})")
    for path, stem in volumes:
        match = pattern.fullmatch(stem)
        if match:
            found[path.parent, match["case"]][roles_by_suffix[match["suffix"]]].append(path)
        elif stem in rule.stray_labels:
            case = path.parent.resolve().name
            if re.fullmatch(rule.case_pattern, case):
                found[path.parent, case][LABELS].append(path)
    return _with_labels_from_elsewhere(found)


def _with_labels_from_elsewhere(
    found: dict[tuple[Path, str], dict[str, list[Path]]],
) -> dict[tuple[Path, str], dict[str, list[Path]]]:
    """Moves segmentations that lie without images in a folder to the only images of their case."""
    homes, alone = defaultdict(list), []
    for key, roles in found.items():
        if set(roles) == {LABELS}:
            alone.append(key)
        else:
            homes[key[1]].append(key)
    for key in alone:
        if len(homes[key[1]]) == 1:
            found[homes[key[1]][0]][LABELS] += found.pop(key)[LABELS]
    return found


def _how_to_unpack(archive: Path) -> str:
    folder = archive.parent / archive.name.split(".")[0]
    tool = f"tar -xf {archive} -C {folder}"
    if archive.suffix.lower() == ".zip":
        tool = f"unzip -q {archive} -d {folder}"
    elif archive.suffix.lower() == ".7z":
        tool = f"7z x {archive} -o{folder}"
    return f"unpack it first, `mkdir -p {folder} && {tool}`, and pass {folder}"


def _fitting(files: list[Path]) -> list[str]:
    """Conventions by which some files are named; several may name them alike and label differently."""
    return [c.name for c in CONVENTIONS.values() if _group(files, c, with_unlabeled=True)]


def _name_the_convention(root: Path) -> str:
    fitting = _fitting(list(_walk(root)))
    if not fitting:
        return (
            f"say which convention the cases in {root} follow: {', '.join(CONVENTIONS)}; for names of "
            "none give `mbti inpaint` the files of a case one by one, by their sequences"
        )
    return (
        f"say which convention the cases in {root} follow; their files are named as in "
        f"{' or '.join(fitting)}"
    )


def _without_images(folder: Path, subject: str, rule: Convention, files: list[Path]) -> str:
    expected = [rule.file_name(subject, role) for role in SEQUENCES]
    others = [
        path.name
        for path in files
        if path.parent == folder and path.name.lower().startswith(subject.lower())
    ]
    return (
        f"{folder}: {subject} has a segmentation, but no image named {', '.join(expected)} (capitals "
        f"count); the folder holds {', '.join(others[:6])}{', ...' * (len(others) > 6)}"
    )


def _nothing_found(root: Path, rule: Convention, files: list[Path]) -> str:
    first = rule.file_name(rule.case_example.split("/")[-1], SEQUENCES[0])
    message = f"{root}: no case of convention {rule.name}, whose files are named like {first}"
    for path in files:
        if path.name.lower().endswith(_ARCHIVES):
            return f"{message}; found the archive {path.name}: {_how_to_unpack(path)}"
    if others := [name for name in _fitting(files) if name != rule.name]:
        return f"{message}; the files are named as in {' or '.join(others)}"
    volumes = [path for path in files if split_ending(path)[1] in NIFTI_ENDINGS]
    if volumes:
        return (
            f"{message}, but files like {volumes[0].relative_to(root)}; for names of no convention give "
            "`mbti inpaint` the files of a case one by one, by their sequences"
        )
    for path in files:
        if what := other_format(path):
            return f"{message}, but {path.relative_to(root)}, which is {what}"
    return f"{message}, nor any other NIfTI file"
