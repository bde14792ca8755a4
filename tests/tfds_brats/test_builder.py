"""The built dataset against plain nibabel loops, and the build under interruption and repetition."""

import contextlib
import logging
import os
import pickle
import shutil
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import cv2
import nibabel as nib
import numpy as np
import psutil
import pytest
import tensorflow_datasets as tfds
from synthetic_cases import make_arrays, write_case, write_volume

from configs.data import get_config
from mbti_jax.commands import data as command
from tfds_brats import builder
from tfds_brats.cases import read_case
from tfds_brats.conventions import SEQUENCES, CaseError
from tfds_brats.locking import only_process_in
from tfds_brats.reading import SliceSource
from tfds_brats.records import encode_subject
from tfds_brats.search import find_cases
from tfds_brats.splits import SPLITS
from tfds_brats.table import count_split, format_table
from tfds_brats.workers import Workers

ROOT = Path(__file__).resolve().parent.parent.parent
DUMMY_DATA = ROOT / "tfds_brats" / "dummy_data"
ET_IS_4 = np.array([0, 1, 2, 255, 3], np.uint8)


@pytest.fixture(scope="module")
def dummy(tmp_path_factory) -> Path:
    return builder.build(DUMMY_DATA, "brats2021", tmp_path_factory.mktemp("dummy"), num_workers=1)


def brain_box_area(plane: np.ndarray) -> int:
    y, x = np.nonzero(plane)
    return (np.ptp(y) + 1) * (np.ptp(x) + 1) if y.size else 0


def check_against_nibabel(folder: Path, subject: str, suffixes, label_table, records) -> None:
    """Every record of a subject (slice -> record), voxel for voxel, and none too few."""

    def load(name):
        return np.asanyarray(nib.load(folder / f"{subject}{suffixes[name]}.nii.gz").dataobj)

    images = {sequence: load(sequence) for sequence in SEQUENCES}
    labels = load("labels")
    brain = np.any([image != 0 for image in images.values()], axis=0)
    kept = [k for k in range(brain.shape[2]) if brain_box_area(brain[:, :, k]) >= 100]
    assert sorted(records) == kept
    x, y = np.nonzero(brain.any(2))
    for k, record in records.items():
        codes = record["codes"].astype(np.float64)
        assert record["codes"].dtype == np.uint16
        values = np.where(codes > 0, record["code_slope"] * codes + record["code_offset"], 0)
        np.testing.assert_array_equal(codes > 0, np.stack([brain[:, :, k].T] * 4, axis=-1))
        for channel, sequence in enumerate(SEQUENCES):
            np.testing.assert_array_equal(values[..., channel], images[sequence][:, :, k].T)
        expected = label_table[labels[:, :, k].T.astype(int)]
        np.testing.assert_array_equal(record["labels"], expected)
        np.testing.assert_array_equal(
            record["brain_box"], [y.min(), x.min(), y.max() + 1, x.max() + 1]
        )


def records_of(dataset_dir: Path) -> dict[str, dict[int, dict]]:
    subjects: dict[str, dict[int, dict]] = {}
    for split in SPLITS:
        source = SliceSource(dataset_dir, split)
        for i in range(len(source)):
            record = source.read(i)
            subjects.setdefault(record["subject"], {})[record["slice_index"]] = record
    return subjects


UNTIL_2021 = {s: f"_{s}" for s in SEQUENCES} | {"labels": "_seg"}


def test_records_of_every_real_case_until_2021(real_cases, tmp_path):
    folders = sorted(real_cases.glob("Brats18_*"))
    if len(folders) < 3:
        pytest.skip(f"fewer than 3 Brats18 cases in {real_cases}")
    subjects = records_of(builder.build(real_cases, "brats2018", tmp_path))
    assert sorted(subjects) == [folder.name for folder in folders]
    for folder in folders:
        check_against_nibabel(folder, folder.name, UNTIL_2021, ET_IS_4, subjects[folder.name])


def test_records_of_the_real_case_of_2023(real_cases, tmp_path):
    """An algorithm's segmentation stands in for the ground truth that the case lacks."""
    folder = real_cases / "BraTS-GLI-00001-000"
    if not folder.is_dir():
        pytest.skip(f"no {folder.name} in {real_cases}")
    suffixes = {"t1": "-t1n", "t1ce": "-t1c", "t2": "-t2w", "flair": "-t2f", "labels": "-seg"}
    for path in folder.glob(f"{folder.name}-*"):
        (tmp_path / path.name).symlink_to(path)
    segmentation = tmp_path / f"{folder.name}-seg.nii.gz"
    segmentation.symlink_to(folder / "algo_seg-BraTS23_1.nii.gz")
    (files,) = find_cases(tmp_path, "brats2023")
    subject = encode_subject(files)
    records = {}
    for record in subject.records:
        decoded = {
            name: cv2.imdecode(np.frombuffer(record[name], np.uint8), cv2.IMREAD_UNCHANGED)
            for name in (*SEQUENCES, "labels")
        }
        codes = np.stack([decoded[sequence] for sequence in SEQUENCES], axis=-1)
        records[int(record["slice_index"])] = {**record, **decoded, "codes": codes}
    check_against_nibabel(tmp_path, folder.name, suffixes, np.arange(4, dtype=np.uint8), records)


def test_records_of_the_dummy_data(dummy):
    subjects = records_of(dummy)
    assert sorted(subjects) == [f"BraTS2021_{i:05d}" for i in range(5)]
    for subject, records in subjects.items():
        check_against_nibabel(DUMMY_DATA / subject, subject, UNTIL_2021, ET_IS_4, records)


def test_dummy_data_is_small():
    assert sum(path.stat().st_size for path in DUMMY_DATA.rglob("*.nii.gz")) < 100_000


def test_image_is_the_scale_applied_to_the_values(dummy):
    source = SliceSource(dummy, "train")
    for i in range(len(source)):
        record = source.read(i, ("t2", "t1"))
        (files,) = find_cases(DUMMY_DATA / record["subject"], "brats2021")
        case = read_case(files)
        image = np.where(
            record["codes"] == 0, -1, record["gain"] * record["codes"] + record["bias"]
        )
        for channel, sequence in enumerate(("t2", "t1")):
            values = case.values(sequence)[:, :, record["slice_index"]].T
            expected = case.scale(sequence).to_model(values)
            np.testing.assert_allclose(image[..., channel], expected, atol=1e-5)
        assert record["gain"].dtype == record["bias"].dtype == np.float32


def test_index_describes_the_records(dummy):
    for split in SPLITS:
        source = SliceSource(dummy, split)
        index = source.index
        assert all(len(column) == len(source) for column in index)
        for i in range(len(source)):
            record = source.read(i)
            assert index.subject[i] == index.patient[i] == record["subject"]
            assert index.slice_index[i] == record["slice_index"]
            assert index.brain_area[i] == (record["codes"] > 0).any(-1).sum()
            assert index.tumor_area[i] == (record["labels"] > 0).sum()
        assert sorted(index.subject) == list(index.subject)
        for subject in set(index.subject):
            slices = index.slice_index[index.subject == subject]
            np.testing.assert_array_equal(slices, np.sort(slices))


def test_only_the_asked_sequences_are_decoded(dummy, monkeypatch):
    source = SliceSource(dummy, "train")
    decoded = []
    decode = cv2.imdecode
    monkeypatch.setattr(cv2, "imdecode", lambda *args: decoded.append(1) or decode(*args))
    assert source.read(0, ("flair",))["codes"].shape[-1] == 1
    assert len(decoded) == 2  # The sequence and the labels.
    with pytest.raises(ValueError, match="choose from t1, t1ce, t2, flair"):
        source.read(0, ("t1c",))


def test_a_source_survives_pickling_and_threads(dummy):
    source = SliceSource(dummy, "train")
    expected = [source.read(i)["codes"] for i in range(len(source))]
    copy = pickle.loads(pickle.dumps(source))
    assert copy.fingerprint == source.fingerprint
    with ThreadPoolExecutor(8) as pool:
        order = list(range(len(source))) * 20
        for i, record in zip(order, pool.map(copy.read, order), strict=True):
            np.testing.assert_array_equal(record["codes"], expected[i])


@pytest.mark.parametrize("damage", ["bit", "end"])
def test_a_damaged_record_is_an_error_that_says_where(dummy, tmp_path, damage):
    copy = Path(shutil.copytree(dummy, tmp_path / "copy"))
    (file,) = copy.glob("*-train.array_record*")
    content = bytearray(file.read_bytes())
    if damage == "bit":
        content[len(content) // 2] ^= 1
    file.write_bytes(content if damage == "bit" else content[: len(content) // 2])
    source = SliceSource(copy, "train")
    with pytest.raises(ValueError, match=r"record \d+ of train in .*copy cannot be read"):
        for i in range(len(source)):
            source.read(i)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        *(("index-train.npz", content) for content in (b"", b"PK\x03\x04", {"subject": [1]})),
        *(("brats.json", content) for content in (b"{", b"[1]", b"{}", b'{"fingerprints": {}}')),
    ],
)
def test_what_another_version_says_of_its_records_is_named(dummy, tmp_path, name, content):
    path = Path(shutil.copytree(dummy, tmp_path / "copy")) / name
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        np.savez(path, **content)
    with pytest.raises(ValueError, match=rf"^{path} is damaged, or .* another data_dir$"):
        SliceSource(tmp_path / "copy", "train")
    if name == "brats.json":
        # Nor is it taken for the dataset of some source.
        with pytest.raises(ValueError, match=r"another data_dir"):
            builder.build(DUMMY_DATA, "brats2021", tmp_path / "copy", num_workers=1)


def test_tfds_reads_the_dataset_by_itself(dummy):
    """Without this package's reader, TFDS decodes every feature."""
    examples = tfds.builder_from_directory(dummy).as_data_source("train")
    source = SliceSource(dummy, "train")
    assert len(examples) == len(source)
    for i, example in enumerate(examples):
        record = source.read(i)
        for channel, sequence in enumerate(SEQUENCES):
            np.testing.assert_array_equal(example[sequence][..., 0], record["codes"][..., channel])
        np.testing.assert_array_equal(example["labels"][..., 0], record["labels"])
        np.testing.assert_array_equal(example["code_offset"], record["code_offset"])
        assert example["patient"].decode() == source.index.patient[i]
        assert example["tumor_area"] == source.index.tumor_area[i]


def test_timepoints_of_a_patient_share_a_split(tmp_path):
    hyphen = {"t1": "-t1n", "t1ce": "-t1c", "t2": "-t2w", "flair": "-t2f"}
    for patient in range(4):
        for timepoint in range(2):
            subject = f"BraTS-GLI-{patient:05d}-{timepoint:03d}"
            folder = write_case(tmp_path / "in", subject, patient, 3, hyphen, "-seg")
            labels = make_arrays(patient)[1]
            write_volume(folder / f"{subject}-seg.nii.gz", np.minimum(labels, 3))
    dataset_dir = builder.build(tmp_path / "in", "brats2023", tmp_path / "out", num_workers=1)
    patients = [set(SliceSource(dataset_dir, split).index.patient) for split in SPLITS]
    assert [len(names) for names in patients] == [2, 1, 1]
    assert len(set.union(*patients)) == 4


def test_fingerprint_changes_when_a_voxel_does(tmp_path, dummy):
    fingerprints = [SliceSource(dummy, split).fingerprint for split in SPLITS]
    shutil.copytree(DUMMY_DATA, tmp_path / "in")
    again = builder.build(tmp_path / "in", "brats2021", tmp_path / "a", num_workers=2)
    assert [SliceSource(again, split).fingerprint for split in SPLITS] == fingerprints
    subject = SliceSource(dummy, "test").index.subject[0]
    path = tmp_path / "in" / subject / f"{subject}_t2.nii.gz"
    stored = np.array(np.asanyarray(nib.load(path).dataobj))
    stored[10, 10, 2] += 1
    write_volume(path, stored)
    changed = builder.build(tmp_path / "in", "brats2021", tmp_path / "b", num_workers=1)
    new = [SliceSource(changed, split).fingerprint for split in SPLITS]
    assert [a == b for a, b in zip(fingerprints, new, strict=True)] == [True, True, False]


def snapshot(folder: Path) -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}


def test_the_same_source_again_changes_nothing(tmp_path, caplog):
    caplog.set_level(logging.INFO, "tfds_brats")
    shutil.copytree(DUMMY_DATA, tmp_path / "here")
    first = builder.build(tmp_path / "here", "brats2021", tmp_path / "out", num_workers=1)
    table = caplog.messages[-1]
    assert len(table.splitlines()) == 4
    before = snapshot(first)
    shutil.move(tmp_path / "here", tmp_path / "there")
    assert builder.build(tmp_path / "there", "brats2021", tmp_path / "out") == first
    assert snapshot(first) == before
    assert caplog.messages[-1] == table


def test_another_source_or_convention_is_an_error(tmp_path):
    for i in range(3):
        write_case(tmp_path / "a", f"BraTS2021_{i:05d}", seed=i, end=".nii")
    builder.build(tmp_path / "a", "brats2021", tmp_path / "out", num_workers=1)
    with pytest.raises(ValueError, match=r"3 subjects of convention brats2021.*has 5 of"):
        builder.build(DUMMY_DATA, "brats2021", tmp_path / "out")
    path = tmp_path / "a" / "BraTS2021_00001" / "BraTS2021_00001_t1.nii"
    content = bytearray(path.read_bytes())
    content[-1000] ^= 1
    path.write_bytes(content)
    with pytest.raises(ValueError, match="choose another data_dir"):
        builder.build(tmp_path / "a", "brats2021", tmp_path / "out")
    for i in range(3):
        write_case(tmp_path / "b", f"Phantom_{i:04d}", seed=i, end=".nii")
    with pytest.raises(ValueError, match=r"of convention brats2021.*of phantom"):
        builder.build(tmp_path / "b", "phantom", tmp_path / "out")


@pytest.mark.parametrize("num_workers", [1, 2])
def test_an_unusable_case_is_named_and_no_dataset_appears(tmp_path, num_workers):
    shutil.copytree(DUMMY_DATA, tmp_path / "in")
    path = tmp_path / "in" / "BraTS2021_00003" / "BraTS2021_00003_t2.nii.gz"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(CaseError, match=r"BraTS2021_00003_t2\.nii\.gz.*truncated"):
        builder.build(tmp_path / "in", "brats2021", tmp_path / "out", num_workers)
    with pytest.raises(ValueError, match="holds no dataset"):
        SliceSource(tmp_path / "out", "train")


def test_too_few_patients_and_too_little_space_are_errors(tmp_path, monkeypatch):
    with pytest.raises(CaseError, match="at least 3"):
        builder.build(DUMMY_DATA / "BraTS2021_00000", "brats2021", tmp_path, num_workers=1)
    usage = shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    with pytest.raises(OSError, match=r"0\.00 GB free"):
        builder.build(DUMMY_DATA, "brats2021", tmp_path, num_workers=1)


BUILD = """
import sys
from tfds_brats import builder
if __name__ == "__main__":
    builder.build(sys.argv[1], "brats2021", sys.argv[2], num_workers=int(sys.argv[3]))
    from tfds_brats.reading import SliceSource
    SliceSource(sys.argv[2], "train").read(0)
    heavy = {"jax", "torch", "flax"} & set(sys.modules)
    sys.exit(f"imported {heavy}" if heavy else 0)
"""


def start_build(script: Path, source: Path, data_dir: Path, num_workers: int) -> subprocess.Popen:
    script.write_text(BUILD)
    command = [sys.executable, str(script), str(source), str(data_dir), str(num_workers)]
    # Whoever imports TensorFlow in there fails, whether or not it is installed.
    fake = script.parent / "fake" / "tensorflow"
    fake.mkdir(parents=True)
    (fake / "__init__.py").write_text("raise ImportError('TensorFlow is not to be imported')")
    path = os.pathsep.join([str(fake.parent), str(ROOT)])
    return subprocess.Popen(
        command, env={**os.environ, "PYTHONPATH": path}, stderr=subprocess.PIPE, text=True
    )


def test_needs_neither_tensorflow_nor_jax(tmp_path, dummy):
    """And what it writes is the same to the byte in every process."""
    process = start_build(tmp_path / "build.py", DUMMY_DATA, tmp_path / "out", 2)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 0, errors
    there = tmp_path / "out" / "brats_slices" / "1.0.0"
    assert sorted(path.name for path in there.iterdir()) == sorted(p.name for p in dummy.iterdir())
    for path in dummy.iterdir():
        assert path.read_bytes() == (there / path.name).read_bytes(), path.name


def test_killed_in_the_middle_and_run_again(tmp_path, dummy):
    """More subjects than a moment can encode, so that the kill comes while shards are written.

    Those that are complete then are the dataset's, untouched.
    """
    for i in range(150):
        shutil.copytree(DUMMY_DATA / f"BraTS2021_{i % 5:05d}", tmp_path / "in" / f"{i}")
        for path in (tmp_path / "in" / f"{i}").iterdir():
            path.rename(path.with_name(f"BraTS2021_{i:05d}_{path.name.split('_')[-1]}"))
    out = tmp_path / "out"
    process = start_build(tmp_path / "build.py", tmp_path / "in", out, 2)
    deadline = time.monotonic() + 60
    unfinished = out / "brats_slices" / "incomplete.shards"
    while not list(unfinished.glob("parts/*.json")):
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.005)
    workers = psutil.Process(process.pid).children(recursive=True)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert len(workers) >= 2
    _, alive = psutil.wait_procs(workers, timeout=20)
    assert not alive
    with pytest.raises(ValueError, match="holds no dataset"):
        SliceSource(out, "train")
    # As earlier versions left it.
    (out / "brats_slices" / "incomplete.ABC_1.0.0").mkdir()
    complete = [unfinished / "dataset" / path.stem for path in unfinished.glob("parts/*.json")]
    before = {path.name: path.stat() for path in complete}
    assert len(before) < 10

    dataset_dir = builder.build(tmp_path / "in", "brats2021", out, num_workers=1)
    assert [path.name for path in (out / "brats_slices").iterdir()] == [dataset_dir.name]
    for name, stat in before.items():
        after = (dataset_dir / name).stat()
        assert (after.st_ino, after.st_mtime_ns) == (stat.st_ino, stat.st_mtime_ns)
    subjects = records_of(dataset_dir)
    assert len(subjects) == 150
    originals = records_of(dummy)
    for subject, records in subjects.items():
        original = originals[f"BraTS2021_{int(subject[-5:]) % 5:05d}"]
        for k, record in records.items():
            np.testing.assert_array_equal(record["codes"], original[k]["codes"])


def test_a_worker_that_dies_is_an_error_of_the_system():
    """An OSError, which `run.py` says in a sentence."""
    with contextlib.closing(Workers(2)) as workers, pytest.raises(OSError, match="fewer than 2"):
        list(workers.map(os._exit, [1, 1], "Dying"))


def _die_once(marker: Path) -> str:
    if not marker.exists():
        marker.touch()
        os._exit(1)
    return marker.name


def test_what_a_worker_did_when_it_died_is_done_again(tmp_path):
    markers = [tmp_path / name for name in "abc"]
    markers[0].touch()
    markers[2].touch()
    with contextlib.closing(Workers(2)) as workers:
        assert list(workers.map(_die_once, markers, "Dying once")) == ["a", "b", "c"]


def test_two_builds_at_once_are_an_error(tmp_path):
    with (
        only_process_in(tmp_path, "build"),
        pytest.raises(ValueError, match="another build is writing"),
    ):
        builder.build(DUMMY_DATA, "brats2021", tmp_path, num_workers=1)


def test_a_dataset_that_is_there_is_read_beside_others(dummy):
    data_dir = dummy.parent.parent
    with only_process_in(data_dir, "build"):
        assert builder.build(DUMMY_DATA, "brats2021", data_dir, num_workers=1) == dummy


def test_table_counts(dummy):
    indices = {split: SliceSource(dummy, split).index for split in SPLITS}
    # Of the six slices of a dummy subject four have enough brain, and three of these tumor.
    for split, subjects in [("train", 3), ("validation", 1), ("test", 1)]:
        counts = count_split(indices[split])
        assert (counts.patients, counts.subjects) == (subjects, subjects)
        assert (counts.slices, counts.tumor_slices) == (4 * subjects, 3 * subjects)
        assert (counts.images, counts.doubled_images) == (16 * subjects, 28 * subjects)
        assert counts.tumor_share == 0.75
    lines = format_table(indices).splitlines()
    assert lines[1].split() == ["train", "3", "3", "12", "48", "75.0%", "84"]


def test_unknown_split(dummy):
    with pytest.raises(ValueError, match="train, validation, test"):
        SliceSource(dummy, "val")


def test_config_and_task(tmp_path):
    config = get_config()
    with pytest.raises(ValueError, match=r"--config\.source"):
        command.main(config, config.workdir)
    config.source, config.convention = str(DUMMY_DATA), "brats2021"
    config.num_workers = 1
    command.main(config, str(tmp_path))
    assert len(SliceSource(tmp_path, "train")) == 12
    # As earlier versions called it.
    config.data_dir = str(tmp_path)
    command.main(config, config.workdir)
    command.main(config, str(tmp_path))
    with pytest.raises(ValueError, match="two folders"):
        command.main(config, str(tmp_path / "other"))


def test_all_cases_in_one_split(tmp_path):
    dataset = builder.build(DUMMY_DATA, "brats2021", tmp_path, 1, only="test")
    split = builder.build(DUMMY_DATA, "brats2021", tmp_path / "split", 1)
    whole = [SliceSource(split, name).index for name in SPLITS]
    index = SliceSource(dataset, "test").index
    assert sorted(set(index.subject)) == sorted({s for part in whole for s in part.subject})
    assert len(index.subject) == sum(len(part.subject) for part in whole)
    assert builder.build(DUMMY_DATA, "brats2021", tmp_path, 1, only="test") == dataset
    for other in ("", "train"):
        with pytest.raises(ValueError, match="choose another data_dir"):
            builder.build(DUMMY_DATA, "brats2021", tmp_path, 1, only=other)
    with pytest.raises(ValueError, match="choose another data_dir"):
        builder.build(DUMMY_DATA, "brats2021", tmp_path / "split", 1, only="test")
