"""The accelerator's benchmark: how its stages are run, and the whole command at tiny sizes."""

import dataclasses
import os
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import numpy as np
import pytest

from benchmarks.accelerator import __main__ as command
from benchmarks.accelerator import kernels, processes, report, stages, train_step
from benchmarks.accelerator.record import OutOfTime, Record, read_record, write_record
from benchmarks.accelerator.sizes import SIZES
from benchmarks.accelerator.stages import Stage, UnusableError, run_stages

ROOT = Path(__file__).resolve().parent.parent.parent


@pytest.fixture
def child(tmp_path, monkeypatch):
    """Makes every stage's process run this code instead; `record` is the stage's record."""

    def set_code(code: str) -> None:
        prepared = (
            "import signal, sys, time\n"
            "from pathlib import Path\n"
            "from benchmarks.accelerator.record import Record\n"
            "name, folder, config, seconds, share = sys.argv[1:]\n"
            "record = Record(Path(folder), name, float(seconds), float(share))\n"
        )
        path = tmp_path / "child.py"
        path.write_text(prepared + code)
        monkeypatch.setattr(processes, "CHILD", (sys.executable, str(path)))

    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setattr(stages, "_LEAST_SECONDS", 0.05)
    monkeypatch.setattr(stages, "_GRACE_SECONDS", 0.5)
    return set_code


def run(folder, *shares, minutes=1.0, rest=False):
    """Runs stages of these names and shares; their records."""
    chosen = [Stage(name, share, takes_the_rest=rest) for name, share in shares]
    ended = list(run_stages(chosen, folder, "tiny", time.monotonic() + 60 * minutes))
    assert [stage.name for stage in ended] == [name for name, _ in shares]
    return [read_record(folder, name) for name, _ in shares]


def test_a_stage_that_fails_says_so_and_the_next_runs(tmp_path, child):
    child(
        "if name == 'machine': sys.exit('no driver')\n"
        "record.add('unit', {'value': 1}); record.end('finished')\n"
    )
    failed, finished = run(tmp_path, ("machine", 1), ("kernels", 1))
    assert (failed["state"], failed["error"]) == ("failed", "exit code 1: no driver")
    assert finished["state"] == "finished" and finished["units"] == {"unit": {"value": 1}}
    line = report.stage_line("machine", failed, tmp_path)
    assert line.startswith("- **1. Machine** (failed after") and "no driver" in line


def test_what_is_there_is_not_done_again_and_failures_are(tmp_path, child):
    child(
        "record.unit(name, lambda: {'value': len(record.units)})\n"
        "record.end('finished' if name == 'machine' else 'failed', 'a reason')\n"
    )
    run(tmp_path, ("machine", 1), ("kernels", 1))
    child("record.add('again', {}); record.end('finished')\n")
    machine, kernels_ = run(tmp_path, ("machine", 1), ("kernels", 1))
    assert list(machine["units"]) == ["machine"]
    assert list(kernels_["units"]) == ["kernels", "again"]


def test_a_stage_is_cut_off_and_what_it_had_is_kept(tmp_path, child):
    """Even one that does not listen to SIGTERM, as a compiler."""
    child(
        "signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
        "record.unit('first', lambda: {'value': 1})\n"
        "time.sleep(60)\n"
    )
    (cut,) = run(tmp_path, ("machine", 3 / 60))
    assert cut["state"] == "cut off" and cut["units"]["first"]["value"] == 1
    # All of its share is used up: it is not run again.
    assert cut["seconds"] >= 3
    child("record.end('finished')\n")
    assert run(tmp_path, ("machine", 3 / 60))[0]["state"] == "cut off"
    # With more of a share, or as the last one, it goes on.
    assert run(tmp_path, ("machine", 1))[0]["state"] == "finished"


def test_calls_share_the_time_of_a_stage(tmp_path, child):
    """Stopped by the end of a call, it gets the rest of its share in the next."""
    child("Path(folder, 'given').open('a').write(f'{float(seconds)} '); record.end('cut off')\n")
    write_record(tmp_path, "machine", {**read_record(tmp_path, "machine"), "seconds": 50.0})
    run(tmp_path, ("machine", 1))
    run(tmp_path, ("machine", 1), minutes=0.1)
    run(tmp_path, ("machine", 1), minutes=5, rest=True)
    first, second, third = map(float, (tmp_path / "given").read_text().split())
    assert 8 < first <= 10 and 4 < second <= 6 and 290 < third <= 300


def test_no_time_is_no_start(tmp_path, child):
    child("record.end('finished')\n")
    (record,) = run(tmp_path, ("machine", 1), minutes=0)
    assert record["state"] == "new"
    assert "not started" in report.stage_line("machine", record, tmp_path)


def test_another_card_or_other_sizes_are_refused(tmp_path, child, monkeypatch):
    child("record.end('finished')\n")
    run(tmp_path, ("machine", 1))
    with pytest.raises(UnusableError, match=r"--config=tiny.*choose another --output"):
        list(run_stages([Stage("machine", 1)], tmp_path, "full", time.monotonic() + 60))
    monkeypatch.setattr(stages, "card_and_driver", lambda: ", NVIDIA H100, driver 1")
    with pytest.raises(UnusableError, match="H100"):
        run(tmp_path, ("machine", 1))


def test_full_sizes_need_an_accelerator(tmp_path, child):
    child("record.add('machine', {'platform': 'cpu'}); record.end('finished')\n")
    with pytest.raises(UnusableError, match=r"--config=tiny"):
        list(run_stages([Stage("machine", 1)], tmp_path, "full", time.monotonic() + 60))
    assert not (tmp_path / "machine.json").exists()


def test_units_are_measured_once_and_failures_are_results(tmp_path):
    record = Record(tmp_path, "machine", 60, 60)
    assert (
        record.unit("nan", lambda: {"value": float("nan"), "array": np.float32(2)})["value"] is None
    )
    failure = record.unit("bad", lambda: {}["absent"])
    assert failure["error"] == "KeyError: 'absent'"
    again = Record(tmp_path, "machine", 60, 60)
    assert again.unit("nan", lambda: pytest.fail("measured twice"))["array"] == 2
    out_of_time = Record(tmp_path, "machine", -1, 60)
    with pytest.raises(OutOfTime):
        out_of_time.unit("new", lambda: {})
    out_of_time.end("finished")
    assert read_record(tmp_path, "machine")["state"] == "finished"
    # A file that is damaged is no result.
    (tmp_path / "machine.json").write_text("{")
    assert read_record(tmp_path, "machine")["state"] == "new"


def test_a_stage_of_which_nothing_succeeded_has_failed(tmp_path):
    record = Record(tmp_path, "machine", 60, 60)
    record.unit("bad", lambda: {}["absent"])
    record.end("finished")
    assert read_record(tmp_path, "machine")["state"] == "failed"
    assert not Record(tmp_path, "machine", 60, 60).units


@pytest.mark.parametrize("minutes", ["0", "-3", "nan", "inf", "many"])
def test_unusable_minutes_are_refused(minutes, tmp_path, capsys):
    with pytest.raises(SystemExit) as ending:
        command.main([f"--minutes={minutes}", f"--output={tmp_path / 'out'}"])
    assert ending.value.code == 2 and "--minutes" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_folder_that_cannot_be_written_to_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(SystemExit, match=r"cannot write to .*file.*--output"):
        command.main(["--minutes=1", "--config=tiny", f"--output={tmp_path / 'file'}"])


PROGRAM = """\
HloModule jit_step
fused {
  ROOT %add.9 = f32[2]{0} add(%p, %p), metadata={op_name="jit(step)/optimizer/add"}
}
ENTRY main {
  %cudnn-conv.1 = (bf16[2,8]{1,0}, u8[0]{0}) custom-call(%a, %b), custom_call_target="__cudnn$conv", \
metadata={op_name="jit(step)/jvp(UNet)/input_blocks_1_0/in_layers_2/conv_general_dilated"}
  %fusion.2 = bf16[2]{0} fusion(%a), kind=kLoop, \
metadata={op_name="jit(step)/transpose(jvp(UNet))/output_blocks_3_0/out_layers_0/mul"}
  %gemm_fusion.3 = bf16[2]{0} fusion(%a), \
metadata={op_name="jit(step)/jvp(UNet)/middle_block_1/qkv/dot_general"}
  %copy.4 = bf16[2]{0} copy(%a), metadata={op_name="jit(step)/jvp(UNet)/input_blocks_1_0/in_layers_2/x"}
  %loop_add_fusion.5 = f32[2]{0} fusion(%a), calls=%fused, metadata={op_name="jit(step)/optimizer/add"}
  %while.6 = (s32[], /*index=1*/f32[2]{0}) while(%t), metadata={op_name="jit(step)/preprocessing/while"}
  %f.7 = f32[2]{0} fusion(%a), metadata={op_name="jit(step)/preprocessing/vmap()/mul"}
  %f.8 = f32[2]{0} fusion(%a), metadata={op_name="jit(step)/vmap(jit(_normal))/mul"}
  %f.9 = f32[2]{0} fusion(%a), metadata={op_name="jit(step)/jvp(UNet)/time_embed_0/dot_general"}
}
"""


def test_kernels_are_told_apart_by_what_they_were_made_from():
    events = [
        kernels.Event("sm90_xmma_fprop", "cudnn-conv.1", 6.0),
        kernels.Event("sm90_xmma_fprop", "cudnn-conv.1", 2.0),
        kernels.Event("fusion_2", "", 1.0),
        kernels.Event("nvjet", "gemm_fusion.3", 0.5),
        kernels.Event("copy_4", "", 0.25),
        kernels.Event("loop_add_fusion_5", "", 2.0),
        kernels.Event("while.6", "while.6", 100.0),
        kernels.Event("f_7", "f.7", 0.5),
        kernels.Event("f_8", "f.8", 0.5),
        kernels.Event("f_9", "f.9", 0.5),
        kernels.Event("cudnn::ops::nchwToNhwcKernel", "", 0.25),
        kernels.Event("flash_fprop_f16", "", 0.5),
        kernels.Event("mystery", "", 1.0),
    ]
    found = kernels.summarize(events, kernels.read_program(PROGRAM), num_steps=2)
    assert found["categories"] == {
        "convolutions": 4.0,
        "norms and activations": 0.5,
        "attention": 0.5,
        "copies and transposes": 0.25,
        "optimizer": 1.0,
        "preprocessing": 0.25,
        "other parts of the network": 0.25,
        "noise and loss": 0.25,
        "unknown": 0.5,
    }
    assert found["busy_seconds"] == 7.5
    first = found["kernels"][0]
    assert (first["name"], first["seconds"], first["calls"]) == ("sm90_xmma_fprop", 4.0, 1.0)


def row(seconds, low, high, ratio=1.0, ratios=(1.0, 1.0), **more):
    return {
        "clock": "wall",
        "wall_seconds": seconds,
        "wall_range": [low, high],
        "wall_ratio": ratio,
        "wall_ratio_range": list(ratios),
        "compile_seconds": 60.0,
        "peak_bytes": 5e9,
        **more,
    }


def test_the_report_says_what_won_and_whether_goals_are_reached(tmp_path):
    def put(name, units):
        write_record(
            tmp_path, name, {**read_record(tmp_path, name), "state": "finished", "units": units}
        )

    put("machine", {"bfloat16 8192": {"best": 800e12, "matmul_size": 8192}})
    rows = {
        "JAX": row(0.005, 0.004, 0.008),
        "torch.compile": row(0.006, 0.005, 0.009, 1.2, (1.1, 1.3)),
    }
    network = {
        "parameters": 150e6,
        "image_size": 256,
        "dtype": "bfloat16",
        "flops": {"train_step": 1.65e12},
    }
    put("train_step", {"network": network, "in turn": {"batch": 16, "rows": rows, "failures": {}}})
    alternatives = {
        title: {"clock": "wall", "rows": {"alternative": row(1, 1, 1, ratio, span)}}
        | {"relative_l2": 1e-3, "alternative_peak_bytes": 1e9, "default_peak_bytes": 2e9}
        for title, ratio, span in (
            ("one", 0.8, (0.7, 0.9)),
            ("two", 0.99, (0.9, 1.1)),
            ("three", 1.2, (1.1, 1.3)),
        )
    }
    skipped = {"four": {"skipped": "no GPU"}, "five": {"error": "RuntimeError: crashed"}}
    put("implementations", {"defaults": {"attention": "xla"}, **alternatives, **skipped})
    report.write_report(tmp_path)
    text = (tmp_path / "report.md").read_text()
    # 200 images/s of 1.65 TFLOP against 800 TFLOP/s.
    assert "| JAX, in turn | 16 | 200 [125, 250] | 41.2% | 1 [1, 1] | 5.0 | 60 |" in text
    assert "share of the peak at least 0.4: 0.41, reached" in text
    assert "torch.compile's time over JAX's at least 1: 1.20, reached" in text
    assert "faster than the defaults: one (1.25 x as fast)" in text
    for words in ("| 0.8 [0.7, 0.9] | faster |", "no difference", "slower", "skipped: no GPU"):
        assert words in text
    assert "- five: RuntimeError: crashed" in text
    assert "**8. The accelerator model**: not started" in text
    assert len(text.splitlines()) < 200


@pytest.mark.parametrize("name", report.TITLES)
def test_numbers_that_make_no_sense_do_not_end_the_command(name, tmp_path):
    """Such as a profile without kernels."""
    profile = {"batch": 1, "wall_seconds": 1.0, "busy_seconds": 0.0, "kernels": []}
    profile["categories"] = dict.fromkeys(kernels.CATEGORIES, 0.0)
    rate = {"images_per_second": {"one batch again": 0.0}, "wall_range": [0, 0], "wall_seconds": 0}
    record = {**read_record(tmp_path, name), "state": "finished"}
    record["units"] = {"profile": profile, "in turn": rate, "export": {"bytes": None}}
    write_record(tmp_path, name, record)
    report.write_report(tmp_path)
    assert report.stage_line(name, record, tmp_path) in (tmp_path / "report.md").read_text()


def test_a_batch_that_leaves_pytorch_no_memory_is_halved(monkeypatch):
    batches = []

    def compared(sizes, batch):
        batches.append(batch)
        if batch == 8:
            raise RuntimeError("RESOURCE_EXHAUSTED: Out of memory")
        failures = {"PyTorch eager": "OutOfMemoryError: CUDA out of memory."} if batch == 4 else {}
        return {"batch": batch, "rows": {}, "failures": failures}

    monkeypatch.setattr(train_step, "_compared", compared)
    monkeypatch.setattr(train_step, "free_pytorch", lambda: None)
    found = train_step._in_turn(dataclasses.replace(SIZES["tiny"], batch=8))
    assert batches == [8, 4, 2] and found["batch"] == 2 and not found["failures"]


def test_the_whole_command_at_tiny_sizes(tmp_path):
    """Twice: the second time there is nothing left to do. In processes of its own, without PyTorch."""
    ours = {name for name in os.environ if name.startswith("JAX_")} | {"XLA_FLAGS"}
    environment = {name: value for name, value in os.environ.items() if name not in ours}
    environment["JAX_PLATFORMS"] = "cpu"
    out = tmp_path / "out"
    arguments = ["--minutes=20", "--config=tiny", f"--output={out}"]

    def call():
        done = subprocess.run(
            [sys.executable, "-m", "benchmarks.accelerator", *arguments],
            cwd=ROOT,
            env=environment,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr
        # JAX warns of a fork where it has computed before.
        assert "os.fork" not in done.stderr
        return done.stdout

    call()
    records = {stage.name: read_record(out, stage.name) for stage in stages.STAGES}
    assert {name: record["state"] for name, record in records.items()} == dict.fromkeys(
        records, "finished"
    )
    errors = [u["error"] for r in records.values() for u in r["units"].values() if "error" in u]
    assert not errors
    assert records["resume"]["units"]["deterministic"]["resumed_is_identical"]
    profile = records["kernels"]["units"]["profile"]
    assert profile["categories"]["convolutions"] > 0 and profile["categories"]["optimizer"] > 0
    text = (out / "report.md").read_text()
    assert all(title in text for title in report.TITLES.values()) and "failed" not in text
    with zipfile.ZipFile(out / "results.zip") as archive:
        names = archive.namelist()
    assert {"report.md", "train_step.json", "pictures/figure_3.png"} <= set(names)
    with zipfile.ZipFile(out / "model.zip") as archive:
        assert "model/model.safetensors" in archive.namelist()
    results = [path for path in out.rglob("*") if path.is_file() and "work" not in path.parts]
    assert all(path.stat().st_size < 10e6 for path in results)

    before = {path: path.stat().st_mtime_ns for path in out.glob("*.json")}
    assert "at most" not in call()
    assert {path: path.stat().st_mtime_ns for path in out.glob("*.json")} == before


def test_killed_it_takes_its_stage_with_it(tmp_path):
    arguments = ["--minutes=1", "--config=tiny", f"--output={tmp_path / 'out'}"]
    process = subprocess.Popen(
        [sys.executable, "-m", "benchmarks.accelerator", *arguments],
        cwd=ROOT,
        env={**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": ""},
        stdout=subprocess.PIPE,
        start_new_session=True,
    )
    assert process.stdout is not None
    process.stdout.readline()
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    # For the imports that the stages share.
    deadline = time.monotonic() + 120
    while not (started := children.read_text().split()):
        assert time.monotonic() < deadline
    (stage,) = map(int, started)
    # Once it runs Python, it watches its parent.
    while (
        not (tmp_path / "out" / "machine.json").exists()
        or "running" not in (tmp_path / "out" / "machine.json").read_text()
    ):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    process.kill()
    process.wait()
    while Path(f"/proc/{stage}/stat").exists() and " Z " not in _state(stage):
        assert time.monotonic() < deadline
        time.sleep(0.1)


def _state(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return " Z "
