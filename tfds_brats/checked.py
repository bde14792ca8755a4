"""What worker processes do with a case. One that cannot be used is a sentence and no exception.

So it does not keep the others from being done. Runs in the worker processes, so it imports no TFDS.
"""

import dataclasses

from tfds_brats.cases import CaseFiles, survey_case
from tfds_brats.conventions import CaseError
from tfds_brats.records import SubjectRecords, encode_subject
from tfds_brats.sources import case_digest, case_lines


@dataclasses.dataclass(frozen=True)
class CheckedCase:
    """A case, and what its files held when the build was planned.

    Attributes:
        files: where they are.
        digest: see `sources.case_digest`.
    """

    files: CaseFiles
    digest: str

    def __str__(self) -> str:
        return self.files.subject


def encode_checked(case: CheckedCase) -> SubjectRecords | str:
    """The records of a case, or what is wrong with it."""
    files = case.files
    try:
        (lines,) = case_lines([files]).values()
        if case_digest(files, lines) != case.digest:
            return (
                f"{files.subject}: its files in {files.segmentation.parent} are not those that the "
                "build was planned with; see to it that nothing changes them, and that all machines "
                "read the same, and run it again"
            )
        return encode_subject(files)
    except (CaseError, FileNotFoundError, PermissionError) as error:
        return _named(files, error)


def survey_checked(case: CheckedCase) -> tuple[str, float | str]:
    """The digest of a case, with its mean tumor area or with what is wrong with it."""
    try:
        return case.digest, survey_case(case.files)
    except (CaseError, FileNotFoundError, PermissionError) as error:
        return case.digest, _named(case.files, error)


def _named(files: CaseFiles, error: Exception) -> str:
    return str(error) if files.subject in str(error) else f"{files.subject}: {error}"
