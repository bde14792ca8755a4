"""The benchmark of a process's start, and where the command line keeps compiled programs."""

import platform

import pytest

from benchmarks import start
from mbti_jax import cli

STAGES = ("import", "load", "first slice", "second slice")


def process(hits, misses, seconds=1.0):
    clocks = {stage: seconds for stage in STAGES}
    return {"hits": hits, "misses": misses, "cpu_seconds": clocks, "wall_seconds": clocks}


def test_the_table_has_medians_of_both_clocks():
    filled = [process(2, 0, seconds) for seconds in (1, 9, 2)]
    table = start.format_report({"num_steps": 3, "empty": process(0, 2, 4), "filled": filled})
    assert "| first slice | 4.0 (4.0) | 2.0 (2.0) |" in table


@pytest.mark.parametrize(("hits", "misses"), [(1, 1), (1, 0), (2, 1)])
def test_programs_compiled_again_are_an_error(hits, misses):
    start.check_hits(process(0, 2), [process(2, 0)])
    with pytest.raises(RuntimeError, match="of 2 programs that were kept"):
        start.check_hits(process(0, 2), [process(2, 0), process(hits, misses)])


def test_each_kind_of_processor_has_compiled_programs_of_its_own(monkeypatch):
    here = cli._compilation_cache()
    assert cli._compilation_cache() == here
    monkeypatch.setattr(platform, "machine", lambda: "riscv64")
    assert cli._compilation_cache() != here
    assert cli._compilation_cache().parent == here.parent
