"""The command `data` on a simulated cluster and in pieces: the bytes of a local build, whatever dies."""

from concurrent.futures import ThreadPoolExecutor

import pytest
import slow_shards
from ml_collections import ConfigDict
from ray_cluster import NODE, gone, kill_driver, lose_node_of, wait_until
from small_shards import DUMMY_DATA, digests

from configs.data import get_config
from mbti_jax.commands import data
from mbti_jax.engine.work import PieceError
from mbti_jax.fields import FieldError
from tfds_brats import dataset
from tfds_brats.reading import SliceSource

pytestmark = pytest.mark.usefixtures("one_subject_in_a_shard")


def config_of(**fields) -> ConfigDict:
    config = get_config()
    config.update({"source": str(DUMMY_DATA), "convention": "brats2021", **fields})
    return config


def test_pieces_of_a_slurm_array(tmp_path, whole, monkeypatch):
    config = config_of(piece="auto", num_workers=1)
    monkeypatch.setenv("SLURM_ARRAY_TASK_COUNT", "2")
    monkeypatch.setenv("SLURM_ARRAY_TASK_MIN", "1")
    for task in ("1", "2"):
        monkeypatch.setenv("SLURM_ARRAY_TASK_ID", task)
        data.main(config, str(tmp_path))
    assert digests(tmp_path / "brats_slices" / "1.0.0") == whole
    # Of what is there already, the merge makes nothing new.
    data.main(config_of(piece="merge"), str(tmp_path))
    assert len(SliceSource(tmp_path, "train")) == 12


def test_fields_that_do_not_go_together(tmp_path):
    for fields, name in [
        ({"engine": "ray", "num_workers": 2}, "num_workers"),
        ({"engine": "ray", "piece": "0", "pieces": 2}, "piece"),
        ({"piece": "2", "pieces": 2}, "piece"),
        ({"pieces": 2}, "piece"),
    ]:
        with pytest.raises(FieldError, match=f"^{name} "):
            data.main(config_of(**fields), str(tmp_path))
    assert not list(tmp_path.iterdir())


def test_a_shard_that_every_worker_dies_of(tmp_path, whole, monkeypatch):
    """All others are written, and the next call writes it alone."""

    def run_pieces(work, items, settings, label):
        for item in items:
            if str(item).startswith("brats_slices-validation"):
                yield item, PieceError(f"{item}: its worker died 3 times")
            else:
                yield item, work.function(work.make_context(), item)

    monkeypatch.setattr(data, "run_pieces", run_pieces)
    problem = r"1 of 5 pieces .* such as brats_slices-validation\S+: its worker died 3 times"
    with pytest.raises(ChildProcessError, match=problem):
        data.main(config_of(engine="ray"), str(tmp_path))
    parts = [*(tmp_path / "brats_slices" / "incomplete.shards" / "parts").iterdir()]
    assert len(parts) == 4
    data.main(config_of(num_workers=1), str(tmp_path))
    assert digests(tmp_path / "brats_slices" / "1.0.0") == whole


def test_a_node_is_lost_in_the_middle(cluster, tmp_path, whole, monkeypatch):
    """Of three; what was begun there is done by the others, and nothing else is done twice."""
    monkeypatch.setattr(dataset, "write_shard", slow_shards.write_shard)
    cluster.add_node(**NODE)
    cluster.wait_for_nodes()

    def lose() -> None:
        try:
            # Of all but the first of a split, it is certain that they wait.
            wait_until(lambda: [*tmp_path.glob("at.train-2.*")])
            lose_node_of(cluster, next(tmp_path.glob("at.train-2.*")))
        finally:
            # Whatever went wrong, nothing waits for ever.
            (tmp_path / "go").touch()

    config = config_of(engine="ray")
    config.ray.address = cluster.address
    with ThreadPoolExecutor() as pool:
        done = pool.submit(lose)
        data.main(config, str(tmp_path))
        done.result()
    assert digests(tmp_path / "brats_slices" / "1.0.0") == whole
    begun = sorted(path.name.split(".")[1] for path in tmp_path.glob("at.*"))
    assert set(begun) == {"train-0", "train-1", "train-2", "validation-0", "test-0"}
    assert len(begun) <= 6


def test_the_driver_is_killed_and_started_again(cluster, tmp_path, whole):
    """On two nodes; complete shards are not touched by the second one."""
    fields = {"source": DUMMY_DATA, "convention": "brats2021", "engine": "ray"}
    fields["ray.address"] = cluster.address
    unfinished = tmp_path / "brats_slices" / "incomplete.shards"

    def is_in_the_middle() -> bool:
        begun = [*tmp_path.glob("at.train-[12].*")]
        return len(begun) == 2 and bool([*unfinished.glob("parts/*.json")])

    kill_driver("data.py", fields, tmp_path, is_in_the_middle, "-m", "slow_shards")
    # Ray ends them once it misses the driver.
    gone([*tmp_path.glob("at.*")])
    complete = [unfinished / "dataset" / path.stem for path in unfinished.glob("parts/*.json")]
    before = {path.name: path.stat().st_mtime_ns for path in complete}
    assert 1 <= len(before) <= 3
    config = config_of(engine="ray")
    config.ray.address = cluster.address
    data.main(config, str(tmp_path))
    made = tmp_path / "brats_slices" / "1.0.0"
    assert digests(made) == whole
    assert {name: (made / name).stat().st_mtime_ns for name in before} == before
