"""Settings of the engine, and shares of an array of jobs."""

import itertools

import pytest

from mbti_jax.engine.settings import EngineSettings, RaySettings, Share
from mbti_jax.fields import FieldError


@pytest.mark.parametrize("pieces", range(12))
@pytest.mark.parametrize("count", [1, 2, 5, 9])
def test_shares_are_all_pieces_once_and_differ_by_one_at_most(pieces, count):
    shares = [Share(n, count).of(range(pieces)) for n in range(count)]
    assert [*itertools.chain(*shares)] == [*range(pieces)]
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


def slurm(task, first, count, step=1):
    return {
        "SLURM_ARRAY_TASK_ID": str(task),
        "SLURM_ARRAY_TASK_MIN": str(first),
        "SLURM_ARRAY_TASK_COUNT": str(count),
        "SLURM_ARRAY_TASK_STEP": str(step),
    }


@pytest.mark.parametrize(
    ("fields", "environment", "share"),
    [
        ({}, slurm(3, 1, 8), None),
        ({"piece": "2", "pieces": 5}, slurm(3, 1, 8), (2, 5)),
        ({"piece": "merge"}, slurm(3, 1, 8), None),
        # --array=0-7, --array=1-8, --array=1-8:2 (four tasks), and tasks 3 and 5 of eight again.
        ({"piece": "auto"}, slurm(3, 0, 8), (3, 8)),
        ({"piece": "auto"}, slurm(8, 1, 8), (7, 8)),
        ({"piece": "auto"}, slurm(5, 1, 4, step=2), (2, 4)),
        ({"piece": "auto", "pieces": 8}, slurm(5, 3, 2, step=2), (5, 8)),
        ({"piece": "auto", "pieces": 3}, {"JOB_COMPLETION_INDEX": "2"}, (2, 3)),
    ],
)
def test_the_share_of_a_job(fields, environment, share):
    assert EngineSettings(**fields).share(environment) == share


@pytest.mark.parametrize(
    ("fields", "environment", "message"),
    [
        ({"piece": "auto"}, {}, "piece is auto, but neither SLURM_ARRAY_TASK_ID nor"),
        ({"piece": "auto"}, {"JOB_COMPLETION_INDEX": "0"}, "^pieces has to be given: as many as"),
        ({"piece": "auto"}, slurm(9, 1, 3), "makes it 8, which is not from 0 to 2"),
        ({"piece": "auto"}, slurm(4, 1, 4, step=2), "SLURM_ARRAY_TASK_ID=4 is not a step of 2"),
        ({"piece": "auto", "pieces": 3}, slurm(3, 1, 3), "is not from 0 to 2: let an array"),
        ({"piece": "auto"}, slurm("", 1, 3), "SLURM_ARRAY_TASK_ID is '' and no number"),
    ],
)
def test_an_environment_that_does_not_say_it(fields, environment, message):
    with pytest.raises(FieldError, match=message):
        EngineSettings(**fields).share(environment)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"engine": "slurm"}, "^engine must be one of local, ray, not 'slurm'"),
        ({"engine": "ray", "piece": "1", "pieces": 2}, "^piece is for engine=local; ray shares"),
        ({"pieces": 2}, "^piece has to be given with pieces=2"),
        ({"piece": "-1", "pieces": 2}, "^piece must be a number, auto or merge, not '-1'"),
        ({"piece": "2", "pieces": 2}, "^piece must be a whole number from 0 to 1, not 2"),
        ({"piece": "2"}, "^pieces must be a whole number from 1"),
    ],
)
def test_settings_that_do_not_fit(fields, message):
    with pytest.raises(FieldError, match=message):
        EngineSettings(**fields)


@pytest.mark.parametrize("fields", [{"cpus": 0}, {"workers": -1}, {"retries": 1.5}])
def test_settings_of_ray(fields):
    with pytest.raises(FieldError, match=f"^{next(iter(fields))} must"):
        RaySettings(**fields)
