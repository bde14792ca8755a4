"""Case reading: every convention, and every way in which a case can be unusable."""

import gzip
import shutil
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from synthetic_cases import AFFINE, SHAPE, SUFFIXES, make_arrays, write_case, write_volume

from tfds_brats.cases import read_case, survey_case
from tfds_brats.conventions import CONVENTIONS, SEQUENCES, CaseError
from tfds_brats.search import find_cases, for_each_case, search_cases

HYPHEN = {"t1": "-t1n", "t1ce": "-t1c", "t2": "-t2w", "flair": "-t2f"}
UPENN = {"t1": "_T1", "t1ce": "_T1GD", "t2": "_T2", "flair": "_FLAIR"}
UCSF = UPENN | {"t1ce": "_T1c"}
CASE = "BraTS2021_00000"


@pytest.fixture
def case(tmp_path) -> Path:
    return write_case(tmp_path, CASE)


def read_only_case(folder: Path, convention: str = "brats2021", **arguments):
    (files,) = find_cases(folder, convention, **arguments)
    return read_case(files, **arguments)


@pytest.mark.parametrize(
    ("convention", "subject", "patient"),
    [
        ("brats2018", "Brats18_TCIA01_201_1", "Brats18_TCIA01_201"),
        ("brats2018", "Brats18_CBICA_AAB_1", "Brats18_CBICA_AAB"),
        ("brats2018", "Brats18_2013_2_1", "Brats18_2013_2"),
        ("brats2019", "BraTS19_TMC_06290_1", "BraTS19_TMC_06290"),
        ("brats2020", "BraTS20_Training_001", "BraTS20_Training_001"),
        ("brats2021", "BraTS2021_00000", "BraTS2021_00000"),
        ("phantom", "Phantom_0000", "Phantom_0000"),
    ],
)
@pytest.mark.parametrize("end", [".nii", ".nii.gz"])
def test_reads_the_conventions_until_2021(tmp_path, convention, subject, patient, end):
    write_case(tmp_path / "HGG" / "site", subject, seed=3, end=end)
    images, labels = make_arrays(seed=3)
    case = read_only_case(tmp_path, convention)
    assert (case.subject, case.patient) == (subject, patient)
    for sequence in SEQUENCES:
        np.testing.assert_array_equal(case.images[sequence], images[sequence])
        assert case.images[sequence].dtype == np.int16
    np.testing.assert_array_equal(case.labels, np.array([0, 1, 2, 0, 3], np.uint8)[labels])
    assert case.labels.dtype == np.uint8
    np.testing.assert_array_equal(case.affine, AFFINE)
    assert case.spacing == (1.0, 1.0, 1.0)


@pytest.mark.parametrize(
    ("convention", "on_disk", "canonical"),
    [
        # Necrotic core, edema, enhancement (and cavity) as each release numbers them.
        ("brats2023", [0, 1, 2, 3], [0, 1, 2, 3]),
        ("brats2024", [0, 1, 2, 3, 4], [0, 1, 2, 3, 4]),
    ],
)
def test_reads_the_conventions_since_2023(tmp_path, convention, on_disk, canonical):
    subject = "BraTS-GLI-00005-101"
    folder = write_case(tmp_path, subject, suffixes=HYPHEN, label_suffix="-seg")
    # The extra files of the inpainting challenge are none of the case's.
    shutil.copy(folder / f"{subject}-t1n.nii.gz", folder / f"{subject}-t1n-voided.nii.gz")
    labels = np.resize(np.array(on_disk, np.uint8), SHAPE)
    write_volume(folder / f"{subject}-seg.nii.gz", labels)
    case = read_only_case(tmp_path, convention)
    assert case.patient == "BraTS-GLI-00005"
    np.testing.assert_array_equal(case.labels, np.resize(canonical, SHAPE))
    np.testing.assert_array_equal(case.images["t1ce"], make_arrays(0)[0]["t1ce"])


def write_msd(folder: Path, name: str, images, labels=None) -> None:
    channels = [images[sequence] for sequence in ("flair", "t1", "t1ce", "t2")]
    where = "imagesTs" if labels is None else "imagesTr"
    write_volume(folder / where / f"{name}.nii.gz", np.stack(channels, axis=-1))
    if labels is not None:
        write_volume(folder / "labelsTr" / f"{name}.nii.gz", labels)


def test_reads_msd(tmp_path):
    images, _ = make_arrays(1)
    labels = np.resize(np.array([0, 1, 2, 3], np.uint8), SHAPE)
    write_msd(tmp_path / "Task01", "BRATS_001", images, labels)
    write_msd(tmp_path / "Task01", "BRATS_485", images)
    (tmp_path / "Task01" / "imagesTr" / "._BRATS_001.nii.gz").write_bytes(b"macOS")
    case = read_only_case(tmp_path, "msd")
    assert case.subject == case.patient == "BRATS_001"
    for sequence in SEQUENCES:
        np.testing.assert_array_equal(case.images[sequence], images[sequence])
    # MSD: 1 edema, 2 non-enhancing, 3 enhancing.
    np.testing.assert_array_equal(case.labels, np.resize([0, 2, 1, 3], SHAPE))
    unlabeled = find_cases(tmp_path, "msd", labels=False)
    assert [files.subject for files in unlabeled] == ["BRATS_001", "BRATS_485"]
    assert unlabeled[1].labels is None


def test_reads_the_stray_name_of_case_355(tmp_path):
    folder = write_case(tmp_path, "BraTS20_Training_355", end=".nii")
    expected = read_only_case(tmp_path, "brats2020").labels
    stray = folder / "W39_1998.09.19_Segm.nii"
    (folder / "BraTS20_Training_355_seg.nii").rename(stray)
    np.testing.assert_array_equal(read_only_case(tmp_path, "brats2020").labels, expected)
    shutil.copy(stray, folder / "BraTS20_Training_355_seg.nii")
    with pytest.raises(CaseError, match=r"355_seg\.nii and W39_1998\.09\.19_Segm\.nii"):
        find_cases(tmp_path, "brats2020")


def test_finds_cases_in_the_order_of_their_names_through_links(tmp_path):
    for number, place in [(2, "HGG"), (0, "LGG/deep/er"), (1, ".")]:
        write_case(tmp_path / "data" / place, f"BraTS2021_{number:05d}")
    (tmp_path / "source").mkdir()
    (tmp_path / "source" / "link").symlink_to(tmp_path / "data")
    (tmp_path / "data" / "loop").symlink_to(tmp_path / "data")
    cases = find_cases(tmp_path / "source", "brats2021")
    assert [files.subject for files in cases] == [f"BraTS2021_{i:05d}" for i in range(3)]


def test_reads_part_of_a_case(case):
    (case / f"{CASE}_seg.nii.gz").unlink()
    (case / f"{CASE}_t2.nii.gz").unlink()
    (files,) = find_cases(case, "brats2021", sequences=("t1",), labels=False)
    read = read_case(files, sequences=("t1",), labels=False)
    assert list(read.images) == ["t1"]
    assert read.labels is None
    np.testing.assert_array_equal(read.brain, make_arrays(0)[0]["t1"] != 0)
    with pytest.raises(CaseError, match=f"{CASE}.*segmentation {CASE}_seg.nii.gz"):
        read_case(files, sequences=("t1",))
    with pytest.raises(CaseError, match=f"{CASE}: has no t2 image"):
        read_case(files, labels=False)


def test_survey_is_the_mean_tumor_area(case):
    (files,) = find_cases(case, "brats2021")
    areas = (make_arrays(0)[1] > 0).sum((0, 1))
    assert survey_case(files) == areas.mean()


def test_a_cavity_is_no_tumor(tmp_path):
    subject = "BraTS-GLI-00005-101"
    folder = write_case(tmp_path, subject, suffixes=HYPHEN, label_suffix="-seg")
    labels = make_arrays(0)[1]
    write_volume(folder / f"{subject}-seg.nii.gz", labels)
    (files,) = find_cases(tmp_path, "brats2024")
    assert survey_case(files) == np.isin(labels, [1, 2, 3]).sum((0, 1)).mean()


def rewrite(change, name="t2"):
    """A change of one file of the case: array, affine -> array, affine."""

    def apply(folder: Path) -> None:
        path = folder / f"{CASE}_{name}.nii.gz"
        image = nib.load(path)
        write_volume(path, *change(np.asanyarray(image.dataobj), image.affine.copy()))

    return apply


def with_value(value, dtype=np.float32):
    def change(array, affine):
        array = array.astype(dtype)
        array[8, 8, 2] = value
        return array, affine

    return change


def moved(distance):
    def change(array, affine):
        affine[0, 3] += distance
        return array, affine

    return change


def turned(degrees):
    angle = np.deg2rad(degrees)
    turn = np.eye(4)
    turn[:2, :2] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
    return lambda array, affine: (array, turn @ affine)


def cut(folder: Path) -> None:
    path = folder / f"{CASE}_t2.nii.gz"
    path.write_bytes(path.read_bytes()[:-200])


def flip_bit(folder: Path) -> None:
    # Same length and valid deflate stream, so only the checksum can tell.
    path = folder / f"{CASE}_t2.nii.gz"
    content = bytearray(gzip.decompress(path.read_bytes()))
    packed = bytearray(gzip.compress(bytes(content), compresslevel=0))
    packed[len(packed) // 2] ^= 1
    path.write_bytes(bytes(packed))


def without_orientation(folder: Path) -> None:
    path = folder / f"{CASE}_t2.nii.gz"
    image = nib.load(path)
    image = nib.Nifti1Image(np.asanyarray(image.dataobj), None, image.header)
    image.set_sform(None, 0)
    image.set_qform(None, 0)
    nib.save(image, path)


def replaced(content: bytes):
    return lambda folder: (folder / f"{CASE}_t2.nii.gz").write_bytes(content)


UNUSABLE = {
    "shape": (rewrite(lambda array, affine: (array[:, 1:], affine)), r"t2.*has shape"),
    "label shape": (rewrite(lambda a, f: (a[:, 1:], f), "seg"), r"seg.*has shape"),
    "affine": (rewrite(moved(2e-3)), r"t2.*affine differs"),
    "label affine": (rewrite(moved(2e-3), "seg"), r"seg.*affine differs"),
    "unknown label": (rewrite(with_value(3, np.uint8), "seg"), r"seg.*labels \[3\].*brats2021"),
    "label 260": (rewrite(with_value(260, np.int16), "seg"), r"seg.*labels \[260\]"),
    "label -1": (rewrite(with_value(-1, np.int16), "seg"), r"seg.*labels \[-1\]"),
    "half a label": (rewrite(with_value(0.5), "seg"), r"seg.*not whole numbers"),
    "NaN": (rewrite(with_value(np.nan)), r"t2.*NaN or infinite"),
    "infinity": (rewrite(with_value(np.inf)), r"t2.*NaN or infinite"),
    "empty": (rewrite(lambda array, affine: (0 * array, affine)), r"t2.*empty or constant"),
    "4-D": (rewrite(lambda a, affine: (np.stack([a, a], -1), affine)), r"t2.*3 axes"),
    "4-D labels": (rewrite(lambda a, f: (np.stack([a, a], -1), f), "seg"), r"seg.*3 axes"),
    "complex": (rewrite(lambda a, f: (a.astype(np.complex64), f)), r"t2.*complex64"),
    "oblique": (rewrite(turned(45)), r"t2.*degrees off"),
    "no orientation": (without_orientation, r"t2.*no orientation"),
    "truncated": (cut, r"t2.*truncated, corrupt"),
    "corrupt": (flip_bit, r"t2.*truncated, corrupt"),
    "web page": (replaced(b"<html>404</html>"), r"t2.*not NIfTI"),
    "long web page": (replaced(b"<html>404</html>" * 100), r"t2.*not NIfTI"),
    "zeros": (replaced(bytes(5000)), r"t2.*not NIfTI"),
    "no bytes": (replaced(b""), r"t2.*not NIfTI"),
}


@pytest.mark.parametrize("name", UNUSABLE)
def test_unusable_cases_are_errors_that_name_the_file(case, name):
    spoil, message = UNUSABLE[name]
    spoil(case)
    (files,) = find_cases(case, "brats2021")
    with pytest.raises(CaseError, match=f"{CASE}_{message}"):
        read_case(files)


@pytest.mark.parametrize("name", ["shape", "label affine", "unknown label", "4-D", "oblique"])
def test_the_survey_finds_unusable_cases_early(case, name):
    spoil, _ = UNUSABLE[name]
    spoil(case)
    (files,) = find_cases(case, "brats2021")
    with pytest.raises(CaseError, match=f"{CASE}_(t1|t2|seg)"):
        survey_case(files)


def test_small_differences_are_accepted(case):
    rewrite(moved(5e-4))(case)
    rewrite(lambda array, affine: (array.astype(np.float64), affine), "seg")(case)
    read = read_only_case(case)
    np.testing.assert_array_equal(read.labels == 3, make_arrays(0)[1] == 4)


def test_a_constant_brain_is_an_error_that_names_the_file(case):
    rewrite(lambda array, affine: (np.where(array != 0, 7, 0).astype(np.int16), affine))(case)
    read = read_only_case(case)
    with pytest.raises(CaseError, match=f"{CASE}_t2.*constant"):
        read.scale("t2")


def test_an_image_without_background_is_an_error(case):
    rewrite(lambda array, affine: (array + 1, affine), "t1")(case)
    with pytest.raises(CaseError, match="skull-stripped"):
        _ = read_only_case(case).brain


@pytest.mark.parametrize(
    ("slope", "intercept"), [(0.01, 0.0), (2.5, 0.0), (0.1, -20.0), (0.37, -12345.0 * 0.37)]
)
def test_scaled_images_have_the_values_that_nibabel_gives(case, slope, intercept):
    stored = make_arrays(0)[0]["t2"]
    if intercept:
        stored = np.where(stored, stored, round(-intercept / slope)).astype(np.int16)
    path = case / f"{CASE}_t2.nii.gz"
    image = nib.Nifti1Image(stored, AFFINE)
    image.header.set_slope_inter(slope, intercept)
    nib.save(image, path)
    expected = nib.load(path).get_fdata()
    read = read_only_case(case)
    brain = make_arrays(0)[0]["t1"] != 0
    np.testing.assert_allclose(read.values("t2")[brain], expected[brain], atol=1e-6)
    np.testing.assert_array_equal(read.values("t2")[~brain], 0)
    np.testing.assert_array_equal(read.brain, brain)
    assert read.images["t2"].dtype == np.int16


def test_float_and_negative_images_keep_their_values(case):
    rng = np.random.default_rng(0)
    normal = (rng.normal(size=SHAPE) * (make_arrays(0)[0]["t2"] != 0)).astype(np.float32)
    rewrite(lambda _, affine: (normal, affine))(case)
    np.testing.assert_array_equal(read_only_case(case).values("t2"), normal)


@pytest.mark.parametrize("end", [".tar", ".tar.gz", ".zip"])
def test_an_archive_gets_a_sentence_how_to_unpack_it(tmp_path, end):
    archive = tmp_path / f"BraTS2021_Training_Data{end}"
    archive.write_bytes(b"")
    command = "unzip -q" if end == ".zip" else "tar -xf"
    for source in (archive, tmp_path):
        with pytest.raises(CaseError, match=f"{command} {archive}"):
            find_cases(source, "brats2021")


def test_missing_files_are_named(case):
    (case / f"{CASE}_t1ce.nii.gz").unlink()
    (case / f"{CASE}_seg.nii.gz").unlink()
    with pytest.raises(CaseError, match=f"{case}.*{CASE}_t1ce.nii.gz, {CASE}_seg.nii.gz"):
        find_cases(case, "brats2021")


def test_two_files_for_one_thing_are_an_error(case):
    (case / f"{CASE}_t1.nii").write_bytes(
        gzip.decompress((case / f"{CASE}_t1.nii.gz").read_bytes())
    )
    with pytest.raises(CaseError, match=f"{CASE}_t1.nii and {CASE}_t1.nii.gz"):
        find_cases(case, "brats2021")


def test_a_subject_that_is_there_twice_is_an_error(tmp_path):
    folders = [write_case(tmp_path / place, CASE) for place in ("a", "b")]
    with pytest.raises(CaseError, match=f"{CASE} exists twice, in {folders[0]} and {folders[1]}"):
        find_cases(tmp_path, "brats2021")


def test_no_case_is_an_error_that_says_what_is_there(case, tmp_path):
    with pytest.raises(CaseError, match=r"Brats18_TCIA01_201_1_t1.nii.gz.*named as in brats2021"):
        find_cases(case, "brats2018")
    with pytest.raises(CaseError, match="is not a folder"):
        find_cases(tmp_path / "absent", "brats2021")
    with pytest.raises(CaseError, match=f"unknown convention 'brats'.*{', '.join(CONVENTIONS)}"):
        find_cases(case, "brats")


def test_every_sequence_has_a_suffix_or_a_channel():
    for convention in CONVENTIONS.values():
        assert set(convention.channels or convention.suffixes) == set(SEQUENCES) == set(SUFFIXES)


def test_real_case_without_ground_truth(real_cases):
    """The BraTS 2023 case has algorithms' segmentations only: readable, but not buildable."""
    folders = sorted(real_cases.glob("BraTS-GLI-*"))
    if not folders:
        pytest.skip(f"no BraTS-GLI case in {real_cases}")
    for folder in folders:
        subject = folder.name
        if (folder / f"{subject}-seg.nii.gz").exists():
            continue
        with pytest.raises(CaseError, match=f"{subject} lacks {subject}-seg.nii.gz"):
            find_cases(folder, "brats2023")
        (files,) = find_cases(folder, "brats2023", labels=False)
        case = read_case(files, labels=False)
        for sequence, suffix in HYPHEN.items():
            expected = nib.load(folder / f"{subject}{suffix}.nii.gz").get_fdata()
            np.testing.assert_array_equal(case.values(sequence), expected)


@pytest.mark.parametrize(
    ("convention", "subject", "patient", "suffixes", "label_suffix"),
    [
        ("fets2022", "FeTS2022_00007", "FeTS2022_00007", None, "_seg"),
        ("brats2023", "BraTS-MET-00086-001", "BraTS-MET-00086", HYPHEN, "-seg"),
        ("brats2024_goat", "BraTS-GoAT-00003", "BraTS-GoAT-00003", HYPHEN, "-seg"),
        ("ucsf_pdgm", "UCSF-PDGM-0004_FU003d", "UCSF-PDGM-0004", UCSF, "_tumor_segmentation"),
        ("upenn_gbm", "UPENN-GBM-00024_21", "UPENN-GBM-00024", UPENN, "_segm"),
    ],
)
def test_reads_other_releases(tmp_path, convention, subject, patient, suffixes, label_suffix):
    options = {"suffixes": suffixes} if suffixes else {}
    write_case(tmp_path, subject, label_suffix=label_suffix, **options)
    enhancement = 4 if convention in ("fets2022", "ucsf_pdgm", "upenn_gbm") else 3
    labels = np.resize(np.array([0, 1, 2, enhancement], np.uint8), SHAPE)
    write_volume(tmp_path / subject / f"{subject}{label_suffix}.nii.gz", labels)
    case = read_only_case(tmp_path, convention)
    assert (case.subject, case.patient) == (subject, patient)
    np.testing.assert_array_equal(case.labels, np.resize([0, 1, 2, 3], SHAPE))
    np.testing.assert_array_equal(case.images["t1ce"], make_arrays(0)[0]["t1ce"])


def test_a_segmentation_may_lie_in_another_folder(tmp_path):
    subject = "UPENN-GBM-00001_11"
    write_case(tmp_path / "images", subject, suffixes=UPENN, label_suffix="_segm")
    (tmp_path / "segm").mkdir()
    name = f"{subject}_segm.nii.gz"
    (tmp_path / "images" / subject / name).rename(tmp_path / "segm" / name)
    assert read_only_case(tmp_path, "upenn_gbm").files.labels == tmp_path / "segm" / name
    shutil.copytree(tmp_path / "segm", tmp_path / "copy")
    with pytest.raises(CaseError, match=rf"{name} and .*{name} are duplicates"):
        find_cases(tmp_path, "upenn_gbm")


def test_endings_count_in_any_capitals_and_hidden_folders_do_not(tmp_path, case):
    path = case / f"{CASE}_t1.nii.gz"
    path.rename(case / f"{CASE}_t1.NII.GZ")
    shutil.copytree(case, tmp_path / ".partial.copy" / CASE)
    assert read_only_case(case.parent).files.images["t1"].name == f"{CASE}_t1.NII.GZ"


def test_a_segmentation_alone_is_no_case(case):
    for name in ("t1", "t1ce", "t2", "flair"):
        path = case / f"{CASE}_{name}.nii.gz"
        path.rename(case / f"{CASE}_{name.upper()}.nii.gz")
    for sequences in ((), ("t1",)):
        with pytest.raises(CaseError, match=f"no image named {CASE}_t1.nii.gz.*holds.*_T1CE"):
            find_cases(case, "brats2021", sequences=sequences)


@pytest.mark.parametrize("copy", [shutil.copy, lambda a, b: b.symlink_to(a)])
def test_one_image_cannot_be_two_sequences(case, copy):
    (case / f"{CASE}_t1ce.nii.gz").unlink()
    copy(case / f"{CASE}_t1.nii.gz", case / f"{CASE}_t1ce.nii.gz")
    with pytest.raises(CaseError, match=r"_t1\.nii\.gz: is the same image as .*_t1ce\.nii\.gz"):
        read_only_case(case)


def test_implausible_cases_are_reported(case):
    assert read_only_case(case).warnings == []
    images, labels = make_arrays(0)
    flair = images["flair"].copy()
    flair[:9] = 0
    write_volume(case / f"{CASE}_flair.nii.gz", flair)
    labels[0, 0, 2:5] = 2
    write_volume(case / f"{CASE}_seg.nii.gz", labels)
    brain = np.any([images[name] != 0 for name in ("t1", "t1ce", "t2")], axis=0)
    share = f"{1 - (flair != 0).sum() / brain.sum():.0%}"
    first, second = read_only_case(case).warnings
    assert first == f"flair is zero in {share} of the brain"
    assert second.startswith("3 voxels of tumor are on background")


def test_cases_that_cannot_be_used_do_not_stop_the_others(tmp_path):
    for number in range(3):
        write_case(tmp_path, f"BraTS2021_{number:05d}", number)
    (tmp_path / "BraTS2021_00000" / "BraTS2021_00000_t1.nii.gz").unlink()
    cases, problems = search_cases(tmp_path, "brats2021")
    done = []

    def do(files):
        if files.subject == "BraTS2021_00001":
            raise CaseError("second: no tumor")
        done.append(files.subject)

    with pytest.raises(CaseError) as error:
        for_each_case(cases, problems, do)
    assert done == ["BraTS2021_00002"]
    head, first, second = str(error.value).splitlines()
    assert head == "2 of 3 cases could not be done; the other 1 are done:"
    assert "lacks BraTS2021_00000_t1.nii.gz" in first and second == "second: no tumor"

    def full(files):
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space"):
        for_each_case(cases, [], full)


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("sub-01_T1w.nii.gz", "give `mbti inpaint` the files of a case"),
        ("sub-01_T1w.mgz", "mri_convert"),
        ("notes.txt", "nor any other NIfTI"),
    ],
)
def test_names_of_no_convention_lead_to_the_way_out(tmp_path, name, sentence):
    (tmp_path / name).write_bytes(b"x")
    with pytest.raises(CaseError, match=sentence):
        find_cases(tmp_path, "brats2021")
