"""A dataset that several processes build shard by shard is that of one process, to the byte."""

import contextlib
import json
import logging
import resource
import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from small_shards import DUMMY_DATA, NUM_SHARDS, digests
from synthetic_cases import write_case

from tfds_brats import builder, dataset, shards
from tfds_brats.conventions import CaseError
from tfds_brats.locking import LockedError, only_process_in

pytestmark = pytest.mark.usefixtures("one_subject_in_a_shard")


def piece(source: Path, out: Path, number: int, count: int) -> Path | None:
    return builder.build_piece(source, "brats2021", out, (number, count), num_workers=1)


def copied(folder: Path) -> Path:
    """The dummy cases, to be changed."""
    return Path(shutil.copytree(DUMMY_DATA, folder))


def break_case(source: Path, number: int) -> Callable[[], object]:
    """Cuts off the end of an image; returns what mends it."""
    path = source / f"BraTS2021_{number:05d}" / f"BraTS2021_{number:05d}_t2.nii.gz"
    content = path.read_bytes()
    path.write_bytes(content[:-100])
    return lambda: path.write_bytes(content)


def unfinished(out: Path) -> Path:
    return out / "brats_slices" / "incomplete.shards"


def complete(out: Path) -> dict[str, int]:
    """Complete shards and when they were written."""
    there = [unfinished(out) / "dataset" / p.stem for p in unfinished(out).glob("parts/*.json")]
    return {path.name: path.stat().st_mtime_ns for path in there}


@pytest.mark.parametrize("order", [[0], [1, 0], [3, 6, 0, 5, 2, 4, 1]])
def test_any_number_of_pieces_in_any_order(tmp_path, whole, order):
    """Of seven pieces two have nothing to do; whichever makes the last shard makes the dataset."""
    out = tmp_path / "out"
    results = [piece(DUMMY_DATA, out, number, len(order)) for number in order]
    made = [result for result in results if result is not None]
    assert made and results[0] is (made[0] if len(order) == 1 else None)
    assert digests(made[-1]) == whole
    assert [path.name for path in out.rglob("*") if path.is_dir()] == ["brats_slices", "1.0.0"]
    assert not list(out.glob(".*"))


def test_pieces_side_by_side(tmp_path, whole):
    with ThreadPoolExecutor(3) as pool:
        results = list(pool.map(lambda k: piece(DUMMY_DATA, tmp_path / "out", k, 3), range(3)))
    made = [result for result in results if result is not None]
    assert digests(made[0]) == whole


def test_a_mapping_of_the_callers_own(tmp_path, whole):
    """In any order, and one piece twice, as engines do when a worker is lost."""
    labels = []

    def run(function, items, label):
        labels.append(label)
        yield from [function(item) for item in reversed(items)]
        function(items[0])

    made = builder.build(DUMMY_DATA, "brats2021", tmp_path / "out", run=run)
    assert digests(made) == whole
    assert labels == ["Reading segmentations", "Writing shards"]


def test_complete_shards_are_kept_whatever_the_number_of_pieces(tmp_path, whole):
    out = tmp_path / "out"
    assert piece(DUMMY_DATA, out, 0, 2) is None
    first = complete(out)
    assert len(first) == 3
    # What a killed process leaves.
    (unfinished(out) / "partial" / "half").write_bytes(b"half")
    assert piece(DUMMY_DATA, out, 0, 2) is None
    assert complete(out) == first
    assert piece(DUMMY_DATA, out, 1, 3) is None
    assert first.items() < complete(out).items()
    made = builder.build(DUMMY_DATA, "brats2021", out, num_workers=1)
    assert digests(made) == whole
    assert {name: (made / name).stat().st_mtime_ns for name in first} == first
    # Afterwards every piece finds it there.
    assert piece(DUMMY_DATA, out, 1, 2) == made


def test_a_merge_writes_no_shard(tmp_path, whole):
    out = tmp_path / "out"
    with pytest.raises(ValueError, match="no piece has written anything"):
        builder.merge_pieces(DUMMY_DATA, "brats2021", out)
    piece(DUMMY_DATA, out, 0, 2)
    with pytest.raises(ValueError, match=r"2 of 5 shards are missing in .*, brats_slices-train"):
        builder.merge_pieces(DUMMY_DATA, "brats2021", out)
    with pytest.MonkeyPatch.context() as patch:
        # The last piece was killed before it made the dataset.
        patch.setattr(dataset.Build, "merge", lambda *_: None)
        piece(DUMMY_DATA, out, 1, 2)
    assert digests(builder.merge_pieces(DUMMY_DATA, "brats2021", out)) == whole
    assert digests(builder.merge_pieces(DUMMY_DATA, "brats2021", out)) == whole


@pytest.mark.parametrize("damage", ["short", "gone", "unsaid", "nonsense", "other"])
def test_a_shard_that_is_not_whole_is_written_again(tmp_path, whole, damage):
    out = tmp_path / "out"
    piece(DUMMY_DATA, out, 0, 2)
    name = next(iter(complete(out)))
    path, part = unfinished(out) / "dataset" / name, unfinished(out) / "parts" / f"{name}.json"
    if damage == "short":
        path.write_bytes(path.read_bytes()[:1000])
    elif damage == "gone":
        path.unlink()
    elif damage == "unsaid":
        part.unlink()
    elif damage == "other":
        part.write_text("[1]")
        (unfinished(out) / "areas.json").write_text("[1]")
        (unfinished(out) / "plan.json").unlink()
    else:
        part.write_text(part.read_text()[:100])
    assert digests(builder.build(DUMMY_DATA, "brats2021", out, num_workers=1)) == whole


@pytest.mark.parametrize(
    "change", [{"shuffle": 1}, {"look": None}, {"splits": [1]}, {"digests": "gone"}, [1]], ids=str
)
def test_an_unfinished_build_of_another_version_is_named(tmp_path, change):
    """With a field more, one less, or another kind of one."""
    piece(DUMMY_DATA, tmp_path, 0, 2)
    path = unfinished(tmp_path) / "plan.json"
    plan = json.loads(path.read_text())
    if change == {"look": None}:
        del plan["look"]
    path.write_text(json.dumps({**plan, **change} if isinstance(change, dict) else change))
    way_out = rf"^{path} .* another version.* or delete {path.parent} to begin anew$"
    for call in (
        lambda: piece(DUMMY_DATA, tmp_path, 1, 2),
        lambda: builder.build(DUMMY_DATA, "brats2021", tmp_path, num_workers=1),
        lambda: builder.merge_pieces(DUMMY_DATA, "brats2021", tmp_path),
    ):
        with pytest.raises(ValueError, match=way_out):
            call()


def test_bad_cases_are_named_and_the_rest_is_kept(tmp_path, whole):
    source, out = copied(tmp_path / "in"), tmp_path / "out"
    mend = [break_case(source, number) for number in (1, 3)]
    with pytest.raises(CaseError) as error:
        builder.build(source, "brats2021", out, num_workers=1)
    assert "2 of 5 cases cannot be used" in str(error.value)
    assert "BraTS2021_00001_t2" in str(error.value) and "BraTS2021_00003_t2" in str(error.value)
    kept = complete(out)
    assert len(kept) == NUM_SHARDS - 2
    mend[0]()
    with pytest.raises(CaseError, match="1 of 5 cases cannot be used"):
        piece(source, out, 0, 1)
    assert kept.items() < complete(out).items() and len(complete(out)) == NUM_SHARDS - 1
    mend[1]()
    made = piece(source, out, 0, 1)
    assert made is not None and digests(made) == whole
    assert {name: (made / name).stat().st_mtime_ns for name in kept} == kept


def test_bad_segmentations_are_named_and_the_others_read_once(tmp_path, monkeypatch):
    source, out = copied(tmp_path / "in"), tmp_path / "out"
    paths = [source / f"BraTS2021_0000{k}" / f"BraTS2021_0000{k}_seg.nii.gz" for k in (0, 4)]
    contents = [path.read_bytes() for path in paths]
    for path in paths:
        path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(CaseError, match="2 of 5 cases") as error:
        builder.build(source, "brats2021", out, num_workers=1)
    assert all(path.name in str(error.value) for path in paths)
    for path, content in zip(paths, contents, strict=True):
        path.write_bytes(content)
    read, survey = [], dataset.survey_checked
    monkeypatch.setattr(dataset, "survey_checked", lambda case: read.append(case) or survey(case))
    builder.build(source, "brats2021", out, num_workers=1)
    assert sorted(case.files.subject for case in read) == ["BraTS2021_00000", "BraTS2021_00004"]


def test_another_build_is_refused_while_pieces_are_at_work(tmp_path, monkeypatch):
    for k in range(3):
        write_case(tmp_path / "other", f"BraTS2021_{k:05d}", seed=k)
    out, tried = tmp_path / "out", []

    def write_shard(*args):
        if not tried:
            tried.append(True)
            with pytest.raises(LockedError, match=r"other processes.*5 subjects of brats2021"):
                piece(tmp_path / "other", out, 0, 2)
            with pytest.raises(LockedError, match="other processes"):
                builder.build_piece(DUMMY_DATA, "brats2021", out, (1, 2), 1, only="test")
            with pytest.raises(LockedError, match="another build is writing"):
                builder.build(DUMMY_DATA, "brats2021", out, num_workers=1)
            # A piece of the same build is let in.
            assert piece(DUMMY_DATA, out, 1, 2) is None
        return shards.write_shard(*args)

    monkeypatch.setattr(dataset, "write_shard", write_shard)
    assert piece(DUMMY_DATA, out, 0, 2) is not None and tried
    with only_process_in(out, "build"), pytest.raises(LockedError, match="another build"):
        piece(DUMMY_DATA, out, 0, 2)


def test_a_source_that_changes_meanwhile_is_noticed(tmp_path, monkeypatch):
    """A file that is not compressed may change without its size or its end."""
    for k in range(3):
        write_case(tmp_path / "in", f"BraTS2021_{k:05d}", seed=k, end=".nii")
    path = tmp_path / "in" / "BraTS2021_00001" / "BraTS2021_00001_t1.nii"
    out, before = tmp_path / "out", path.read_bytes()

    def changing(*args):
        content = bytearray(before)
        content[-1000] ^= 1
        path.write_bytes(content)
        return shards.write_shard(*args)

    monkeypatch.setattr(dataset, "write_shard", changing)
    with pytest.raises(CaseError, match=r"BraTS2021_00001: its files in .* are not those"):
        piece(tmp_path / "in", out, 0, 1)
    assert len(complete(out)) == 2
    # Of the changed source two shards are the same.
    monkeypatch.undo()
    monkeypatch.setattr(shards, "_SUBJECTS_PER_SHARD", 1)
    kept = complete(out)
    made = builder.build(tmp_path / "in", "brats2021", out, num_workers=1)
    assert {name: (made / name).stat().st_mtime_ns for name in kept} == kept
    with pytest.raises(ValueError, match="choose another data_dir"):
        path.write_bytes(before)
        piece(tmp_path / "in", out, 0, 1)


@contextlib.contextmanager
def files_of_at_most(num_bytes: int):
    """As a full disk does, the system refuses to write more."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_disk_that_takes_no_more(tmp_path, whole):
    out = tmp_path / "out"
    piece(DUMMY_DATA, out, 0, 2)
    kept = complete(out)
    with files_of_at_most(30_000), pytest.raises(OSError, match=r"array_record.*File too large"):
        piece(DUMMY_DATA, out, 1, 2)
    assert complete(out) == kept and not list((unfinished(out) / "partial").iterdir())
    made = piece(DUMMY_DATA, out, 1, 2)
    assert made is not None and digests(made) == whole


def test_a_worker_that_sees_another_disk(tmp_path):
    """What it wrote is not where the others look for it."""

    def run(function, items, label):
        results = [function(item) for item in items]
        if label == "Writing shards":
            items[0].path.unlink()
        return results

    with pytest.raises(OSError, match="file system that all machines share"):
        builder.build(DUMMY_DATA, "brats2021", tmp_path / "out", run=run)

    def elsewhere(function, items, label):
        if label == "Writing shards":
            shutil.rmtree(unfinished(tmp_path / "out2"))
        return [function(item) for item in items]

    with pytest.raises(OSError, match=r"is not there on .*: data_dir has to lie"):
        builder.build(DUMMY_DATA, "brats2021", tmp_path / "out2", run=elsewhere)


def test_a_folder_that_is_no_whole_dataset(tmp_path):
    (tmp_path / "brats_slices" / "1.0.0").mkdir(parents=True)
    with pytest.raises(ValueError, match=r"1\.0\.0 is no complete dataset"):
        builder.build(DUMMY_DATA, "brats2021", tmp_path, num_workers=1)


def test_what_a_piece_says(tmp_path, caplog):
    caplog.set_level(logging.INFO, "tfds_brats")
    piece(DUMMY_DATA, tmp_path, 0, 2)
    assert "Piece 0 of 2: 3 shards, 3 to be written." in caplog.messages
    assert caplog.messages[-1].startswith("2 of 5 shards are missing")
    for number, count in [(2, 2), (-1, 2), (0, 0)]:
        with pytest.raises(ValueError, match="piece must be from 0"):
            piece(DUMMY_DATA, tmp_path, number, count)
