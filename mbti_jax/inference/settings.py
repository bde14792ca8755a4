"""Settings of the command that inpaints files."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mbti_jax.diffusion.sampling import Sampling
from mbti_jax.fields import (
    FieldError,
    NotNegative,
    Positive,
    check_field,
    one_of,
    whole_number,
)
from mbti_jax.inference.inpainter import Inpainter
from mbti_jax.inference.inputs import SEGMENTATION, held_by_voided_cases, read_roi_volume
from mbti_jax.io.slices import read_sequences
from mbti_jax.rois.given import check_names, parse_labels
from mbti_jax.rois.regions import REMOVAL_MARGIN_MM, Rois
from mbti_jax.rois.tumors import MODES, Share, own_tumor, parse_shares
from tfds_brats.cases import Case, CaseFiles
from tfds_brats.conventions import CONVENTIONS, SEQUENCES, CaseError
from tfds_brats.search import search_cases
from tfds_brats.slices import to_slices
from tfds_brats.spelling import nearest

LAYOUTS = ("files", "brats_inpainting", "nnunet")
# In the path of a ROI map it stands for the case, in that of a slice for the names of the sequences.
SUBJECT, SEQUENCE = "{subject}", "{sequence}"
# Fields of which one says what to inpaint, and what they hold.
_INPUTS = {"source": "a folder", "images": "volumes", "image": "a slice"}


@dataclasses.dataclass(frozen=True, kw_only=True)
class InpaintSettings:
    """What to inpaint, where, and how; see `configs/inpaint.py`.

    Attributes:
        layout: of `LAYOUTS`.
        source, convention, subjects: a folder of cases of a convention, and which of them; or
        images: the volumes of one case, {sequence: path}, and with `tumor` its segmentation, numbered as
            `convention` says; or
        image: one slice.
        roi, roi_labels: file with the ROIs, and the meaning of its numbers; or
        tumor: ROIs made of the case's own tumor, a key of `rois.tumors.MODES`, or several with their
            shares, see `rois.tumors.parse_shares`.
        step_mm: with tumor "grow" or "shrink", by how much each sample changes the one before.
        dilate_mm: how far ROIs of normal tissue reach beyond what is given; None for
            `REMOVAL_MARGIN_MM` around the case's own tumor, and 0 around ROIs of a file.
        blend: whether normal tissue is blended into its surroundings (see `Sampling`); None for yes
            where the case's own tumor is removed or moved, and else no.
        box: names of the ROIs that are bounding boxes.
        slices, sequences: which of them; empty for all.
        sampling: how samples are drawn.
        num_samples: how many for each case or slice, or to take the mean of.
        compare_noise: sample every volume again with independent noise.
        intensity_range: of a single slice; empty for its own percentiles.

    Raises:
        FieldError: a field is not as above, or not exactly one input or kind of ROI is given.
    """

    layout: str
    source: str
    convention: str
    subjects: tuple[str, ...]
    images: Mapping[str, str]
    image: str
    roi: str
    roi_labels: str
    tumor: str
    step_mm: Positive
    dilate_mm: NotNegative | None
    blend: bool | None
    box: tuple[str, ...]
    slices: tuple[int, ...]
    sequences: tuple[str, ...]
    sampling: Sampling
    num_samples: int
    compare_noise: bool
    intensity_range: tuple[float, ...]

    def __post_init__(self):
        one_of("layout", self.layout, LAYOUTS)
        whole_number("num_samples", self.num_samples, least=1)
        self.sampling.check_num_samples(self.num_samples)
        if self.layout == "nnunet" and self.is_mean:
            problem = "is not for the layout nnunet, since a mean has not the texture of an image"
            raise FieldError("estimate", problem)
        check_field("step_mm", self.step_mm, Positive)
        check_field("dilate_mm", self.dilate_mm, NotNegative | None)
        if self.dilate_mm and self.layout == "brats_inpainting":
            raise FieldError("dilate_mm", "must be 0 for brats_inpainting, whose masks are given")
        for number in self.slices:
            whole_number("slices", number)
        for name in self.sequences:
            one_of("sequences", name, SEQUENCES)
        if len(set(self.sequences)) < len(self.sequences):
            raise FieldError("sequences", "names one twice")
        given = [name for name in _INPUTS if self._is_given(name)]
        if len(given) != 1:
            raise FieldError(
                "source",
                "has to be a folder of cases, or in its place the volumes of one or a slice are given: "
                f"one of the three, not {' and '.join(_INPUTS[name] for name in given) or 'none'}",
            )
        if self.layout != "files" and not self.source:
            raise FieldError("source", f"has to be given for the layout {self.layout}")
        if self.layout != "brats_inpainting":
            if bool(self.roi) == bool(self.tumor):
                raise FieldError(
                    "roi",
                    "has to be a file that says where to paint, or in its place it is given what "
                    f"becomes of the case's own tumor ({', '.join(MODES)}); not both",
                )
            segmentation = self.images.get(SEGMENTATION)
            if self.tumor and not (self.source or segmentation):
                problem = (
                    "needs a segmentation: give a folder of cases that have one, or with the volumes "
                    f"of a case {SEGMENTATION}=FILE and the convention of its labels"
                )
                raise FieldError("tumor", problem)
            if segmentation and not self.tumor:
                problem = (
                    "is a case's own segmentation, of which ROIs are made if it is said what becomes of "
                    f"the tumor ({', '.join(MODES)}); a file of ROIs is given as roi"
                )
                raise FieldError(f"images.{SEGMENTATION}", problem)
            if segmentation and not self.convention:
                problem = (
                    f"has to say whose numbers {segmentation} holds, since the same ones mean different "
                    f"things: {', '.join(CONVENTIONS)}"
                )
                raise FieldError("convention", problem)
            if self.convention and not (self.source or segmentation):
                problem = (
                    "is that of a folder of cases, or of the segmentation of volumes that are given one "
                    "by one; what the numbers of a map of ROIs mean is given as roi_labels"
                )
                raise FieldError("convention", problem)
        if self.sequences and self.image and SEQUENCE not in self.image:
            raise FieldError(
                "sequences",
                f"names the files of a slice: write {SEQUENCE} in the name of the image",
            )
        try:
            check_names(self.box)
        except ValueError as error:
            raise FieldError("box", f"has an {error}") from error
        if self.tumor:
            try:
                shares = self.shares
            except ValueError as error:
                raise FieldError("tumor", f"cannot be used: {error}") from error
            kinds = {} if self.is_series else {k: 0 for s in shares for k in MODES[s.mode].kinds}
            impossible = set(self.box) - set(kinds)
            if impossible:
                makes = f"{', '.join(kinds)} only" if kinds else "free-form ROIs only"
                raise FieldError(
                    "box",
                    f"names {', '.join(sorted(impossible))}, but {self.tumor} makes {makes}",
                )
            if self.dilate_mm and not self.removes:
                modes = " or ".join(name for name, mode in MODES.items() if mode.removes)
                problem = f"is for {modes}, which put normal tissue in the tumor's place"
                raise FieldError("dilate_mm", problem)
        if self.intensity_range and not self.image:
            raise FieldError(
                "intensity_range", "is for a single slice; volumes have their own scale"
            )
        check_field("blend", self.blend, bool | None)
        blend = self.removes if self.blend is None else self.blend
        object.__setattr__(self, "sampling", dataclasses.replace(self.sampling, blend=blend))
        try:
            parse_labels(self.roi_labels)
        except ValueError as error:
            raise FieldError("roi_labels", f"cannot be used: {error}") from error

    @property
    def removes(self) -> bool:
        """Whether normal tissue takes the place of the case's own tumor."""
        return bool(self.tumor) and any(MODES[share.mode].removes for share in self.shares)

    @property
    def fills(self) -> bool:
        """Whether all that is painted is normal tissue, whatever the files hold."""
        if self.tumor:
            return all(MODES[share.mode].fills for share in self.shares)
        if self.layout == "brats_inpainting":
            return True
        labels = parse_labels(self.roi_labels)
        names = {labels} if isinstance(labels, str) else {*labels.values()} - {""}
        return names == {"normal"}

    @property
    def is_mean(self) -> bool:
        """Whether the result is the mean of the samples."""
        return self.sampling.is_mean

    def _is_given(self, name: str) -> bool:
        value = getattr(self, name)
        return any(value.values()) if name == "images" else bool(value)

    def cases(self, labels: bool) -> tuple[list[CaseFiles], list[str]]:
        """The cases of `source`, or those of them that `subjects` names, and what is wrong with others.

        Args:
            labels: whether they must have a segmentation.

        Raises:
            ValueError: see `search_cases`, or an unknown subject.
        """
        # Not every sequence has to exist: which ones the model needs is checked case by case.
        return self.only_subjects(*search_cases(self.source, self.convention, (), labels))

    def held_sequences(self) -> tuple[str, ...]:
        """The sequences that can be repainted, as file names say; of cases those of the best one.

        All cases of a labeled set have the same. A slice without names of sequences has all four, if it
        has as many channels, else none of which the name is known.

        Raises:
            ValueError: see `cases`, a slice that cannot be read, or none at all.
        """
        if self.sequences:
            return self.sequences
        if self.image and SEQUENCE in self.image:
            there = tuple(n for n in SEQUENCES if Path(self.image.replace(SEQUENCE, n)).is_file())
            if not there:
                raise ValueError(f"{self.image}: is there for none of {', '.join(SEQUENCES)}")
            return there
        if self.image:
            image = read_sequences([Path(self.image)])
            return SEQUENCES if image.shape[2:] == (len(SEQUENCES),) else ()
        if not self.source:
            return tuple(name for name in SEQUENCES if self.images.get(name))
        if self.layout == "brats_inpainting":
            return held_by_voided_cases(self.source, self.subjects)
        cases, _ = self.cases(labels=False)
        held = [files.images for files in cases]
        if self.layout == "nnunet":
            return tuple(n for n in SEQUENCES if all(n in images for images in held))
        return tuple(max(held, key=len, default=()))

    def images_at_once(self, num_channels: int) -> int | None:
        """How many images a model is given at a time, as far as that is known without reading cases.

        Args:
            num_channels: how many sequences it paints together.
        """
        if not (self.image or self.slices):
            return None
        per_slice = len(self.held_sequences()) if num_channels == 1 else 1
        together = self.num_samples if self.image or self.is_mean else 1
        return max(len(self.slices), 1) * max(per_slice, 1) * together

    def only_subjects(
        self, cases: list[CaseFiles], problems: list[str]
    ) -> tuple[list[CaseFiles], list[str]]:
        """The cases that `subjects` names; all of them if it is empty.

        Raises:
            FieldError: a subject is not among them.
        """
        if not self.subjects:
            return cases, problems
        unknown = set(self.subjects) - {files.subject for files in cases}
        if unknown:
            about = f" ({'; '.join(problems[:3])})" if problems else ""
            way = nearest(min(unknown), [files.subject for files in cases])
            problem = f"{self.source} has no case {', '.join(sorted(unknown))}{about}{way}"
            raise FieldError("subjects", f"names others than there are: {problem}")
        return [files for files in cases if files.subject in self.subjects], []

    @property
    def shares(self) -> tuple[Share, ...]:
        """The modes that `tumor` names."""
        return parse_shares(self.tumor)

    @property
    def is_series(self) -> bool:
        """Whether samples are steps of a series, each of which starts from the one before."""
        return bool(self.tumor) and MODES[self.shares[0].mode].is_step

    @property
    def has_one_roi(self) -> bool:
        """Whether each sample is another answer to the same request: no mean, series, or mixture."""
        same = not self.tumor or (len(self.shares) == 1 and self.shares[0].mode != "move")
        return same and not self.is_series and not self.is_mean

    def share_of(self, subject: str, sample: int) -> Share:
        """The mode of a sample of a case, drawn by the shares; a function of seed, case and sample."""
        shares = self.shares
        key = (self.sampling.seed, sample, *subject.encode())
        drawn = np.random.default_rng(key).random() if len(shares) > 1 else 0.0
        ends = np.cumsum([share.share for share in shares])
        return shares[min(int(np.searchsorted(ends, drawn, side="right")), len(shares) - 1)]

    def box_of(self, share: Share) -> tuple[str, ...]:
        """The ROIs of a mode that are bounding boxes."""
        kinds = MODES[share.mode].kinds
        return kinds if share.box else tuple(name for name in self.box if name in kinds)

    def roi_path(self, files: CaseFiles) -> Path:
        """The file that the ROIs of a case come from: its ROI map, or its segmentation."""
        return Path(self.roi.replace(SUBJECT, files.subject)) if self.roi else files.segmentation

    @property
    def dilation_mm(self) -> float:
        """How far ROIs of normal tissue reach beyond what is given."""
        if self.dilate_mm is None:
            return REMOVAL_MARGIN_MM if self.removes else 0.0
        return self.dilate_mm

    def rois(self, case: Case, sample: int) -> Rois:
        """The ROIs of a sample of a case.

        Raises:
            ValueError: the file or the tumor cannot be used.
        """
        brain, spacing, wider = to_slices(case.brain), case.spacing[::-1], self.dilation_mm
        if not self.tumor:
            path, labels = self.roi_path(case.files), parse_labels(self.roi_labels)
            rois = read_roi_volume(path, case, labels, self.box)
            return self.dilated(rois, brain, spacing, path)
        seed = (self.sampling.seed, sample)
        share = self.share_of(case.subject, sample)
        try:
            box, labels = self.box_of(share), to_slices(case.segmentation)
            return own_tumor(labels, brain, share.mode, box, seed, dilate_mm=wider, spacing=spacing)
        except ValueError as error:
            raise CaseError(f"{case.subject}: {error}") from error

    def dilated(self, rois: Rois, brain: np.ndarray, spacing: Sequence[float], path: Path) -> Rois:
        """The ROIs of a file, dilated if that is asked for.

        Raises:
            CaseError: they cannot be, with the name of the file.
        """
        if not self.dilation_mm:
            return rois
        try:
            return rois.dilated(self.dilation_mm, brain, spacing)
        except ValueError as error:
            raise CaseError(f"{path}: {error}; set dilate_mm to 0") from error

    def record(self, inpainter: Inpainter, *names: str) -> dict[str, Any]:
        """The fields that a result depends on, for its request: sampling, and those of `names`."""
        if self.is_mean:
            # One result, which depends on it.
            names = (*names, "num_samples")
        fields = {name: getattr(self, name) for name in names}
        if self.is_series:
            fields["step_mm"] = self.step_mm
        if self.dilation_mm:
            fields["dilate_mm"] = self.dilation_mm
        return {**inpainter.resolve(self.sampling).record(), **fields}
