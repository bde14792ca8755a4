"""Options of the console command: what they set, and how they are refused."""

import ast
import runpy
import sys
import textwrap

import pytest
from conftest import ROOT

from mbti_jax.commands import config_text, options

CONFIGS = {path.stem: path for path in sorted((ROOT / "configs").glob("*.py"))}


def load(command: str):
    return runpy.run_path(str(CONFIGS[command]))["get_config"]()


def parse(command: str, *arguments: str) -> dict:
    line = options.parse(command, CONFIGS[command], load(command), arguments)
    return dict(line.values) | ({} if line.workdir is None else {"workdir": line.workdir})


def refusal(command: str, *arguments: str) -> str:
    with pytest.raises(SystemExit) as ending:
        parse(command, *arguments)
    (line,) = str(ending.value.code).splitlines()
    return line


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ("-i DIR -c brats2021 --remove -o out", {"tumor": "remove", "source": "DIR"}),
        ("-i DIR --grow 3 --samples 4", {"tumor": "grow", "step_mm": "3", "num_samples": "4"}),
        ("-i DIR --shrink 1.5", {"tumor": "shrink", "step_mm": "1.5"}),
        ("-i a.png -m m.png --tissue edema", {"image": "a.png", "roi": "m.png"}),
        ("-i a.PNG --tissue edema", {"image": "a.PNG", "roi_labels": "edema"}),
        ("-i t1=a=b.nii t2=c.nii", {"images.t1": "a=b.nii", "images.t2": "c.nii"}),
        ("-i t1=a.nii seg=s.nii -c brats2021 --grow 2", {"images.seg": "s.nii", "tumor": "grow"}),
        ("-i DIR --random --seed=3 --model M", {"seed": "3", "checkpoint": "M"}),
        ("-i DIR --remove --mean", {"estimate": "mean"}),
        ("--config.num_steps=5 --num_samples 2", {"num_steps": "5", "num_samples": "2"}),
        ("--blend --dilate_mm 0 --guidance_weight -1", {"blend": "True", "guidance_weight": "-1"}),
    ],
)
def test_what_options_of_inpaint_set(arguments, expected):
    values = parse("inpaint", *arguments.split())
    assert expected.items() <= values.items()


def test_lists_are_written_with_commas():
    given = "--box normal,edema --subjects 001,002 --slices 80,81 --guidance_interval 0.2,0.8"
    values = parse("inpaint", *given.split())
    assert {name: ast.literal_eval(text) for name, text in values.items()} == {
        "box": ("normal", "edema"),
        "subjects": ("001", "002"),
        "slices": (80, 81),
        "guidance_interval": (0.2, 0.8),
    }
    # The names of figures look like numbers.
    assert parse("figures", "--figures", "3,1b")["figures"] == "('3', '1b')"
    assert parse("figures", "--figures=3,4")["figures"] == "('3', '4')"
    assert parse("inpaint", "--box=('normal',)")["box"] == "('normal',)"


def test_short_options_of_other_commands():
    assert parse("data", "-i", "A", "-c", "msd", "-o", "B") == {
        "source": "A",
        "convention": "msd",
        "workdir": "B",
    }
    assert parse("serve", "--model", "M") == {"checkpoint": "M"}
    assert parse("train", "--output", "B", "--model.dtype", "float32") == {
        "workdir": "B",
        "model.dtype": "float32",
    }


@pytest.mark.parametrize(
    ("command", "arguments", "parts"),
    [
        ("train", "--batch_sise 3", ["--batch_sise", "did you mean --batch_size?"]),
        ("train", "--model.model_chanels=3", ["did you mean --model.model_channels?"]),
        ("train", "--dropuot=3", ["did you mean --model.dropout?"]),
        ("train", "--xyzzy", ["no option --xyzzy (see mbti train --help)"]),
        ("train", "batch_size=3", ["'batch_size=3'", "--FIELD VALUE"]),
        ("train", "--seed", ["--seed", "expected one argument"]),
        ("inpaint", "-i A -m B --remove", ["--remove", "not allowed with", "--mask"]),
        ("inpaint", "--remove --move", ["--move", "not allowed with", "--remove"]),
        ("inpaint", "-i A --source B", ["--source", "not allowed with", "--input"]),
        ("inpaint", "-i t1=A t1=B", ["t1 is given twice"]),
        ("inpaint", "-i x-t1n.nii.gz y_FLAIR.nii z.nii", ["t1=x-t1n", "flair=y_", "SEQUENCE=z"]),
        ("inpaint", "-i x_t1.nii", ["say which sequence", "-i t1=x_t1.nii"]),
        ("inpaint", "-i t1=a y_t2.nii", ["say which sequence", "-i t1=a t2=y_t2.nii"]),
        ("inpaint", "-i t1=a t1c=b", ["no sequence 't1c'", "did you mean -i t1=a t1ce=b?"]),
        ("inpaint", "-i q=x_FLAIR.nii", ["no sequence 'q'", "-i flair=x_FLAIR.nii?"]),
    ],
)
def test_a_mistake_is_answered_with_what_was_meant(command, arguments, parts):
    line = refusal(command, *arguments.split())
    for part in parts:
        assert part in line


def test_paths_are_looked_for_with_the_nearest_that_is_there(tmp_path):
    (tmp_path / "cases").mkdir()
    config = load("inpaint")
    config.source = str(tmp_path / "cases")
    options.check_existing(config)
    for name, value, way in (
        ("source", tmp_path / "case" / "a", f"did you mean {tmp_path}/cases?"),
        ("checkpoint", "fantom", "did you mean phantom?"),
        ("checkpoint", tmp_path / "qq" / "x", "phantom or phantom_single, the bundled models"),
        ("roi", tmp_path / "nothing-like-it", "is not there"),
    ):
        config = load("inpaint")
        config[name] = str(value)
        with pytest.raises(SystemExit, match=f"--config.{name}: {value} is not there") as ending:
            options.check_existing(config)
        assert way in str(ending.value.code)
    # A name that stands for those of the cases.
    config = load("inpaint")
    config.roi = "rois/{subject}.nii.gz"
    options.check_existing(config)
    with pytest.raises(SystemExit, match="`mbti data` makes a dataset"):
        config = load("train")
        config.data.dataset = str(tmp_path / "none-such")
        options.check_existing(config)


def test_fields_that_name_paths_are_fields():
    for command, names in options._EXISTING.items():
        known = {name for name, *_ in config_text.fields(load(command))}
        assert {*names} <= known, command


def test_a_wrong_path_is_answered_before_jax_is_imported(capsys, monkeypatch):
    import subprocess

    program = (
        "import sys\nfrom mbti_jax import cli\ntry: cli.main()\nfinally:"
        " print(sorted({n.partition('.')[0] for n in sys.modules} & {'jax', 'flax', 'numpy'}))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, "inpaint", "-i", "t1=/nowhere.nii", "--tissue", "edema"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert "-i t1: /nowhere.nii is not there" in done.stderr
    assert done.stdout == "[]\n"


def test_comments_are_the_meaning_of_what_they_stand_above(tmp_path):
    path = tmp_path / "some.py"
    path.write_text(
        textwrap.dedent("""
        def get_config():
            config = ConfigDict()
            # Folder.
            config.workdir = ""

            # What these two are,
            # in two lines.
            config.a = 1
            config.group = ConfigDict({"x": 1})
            # Another.
            config.b = ConfigDict(
                {
                    # Inside.
                    "y": 2,
                }
            )

            config.c = 3
            return config
        """)
    )
    two = "What these two are, in two lines."
    assert config_text.meanings(path) == {
        "workdir": "Folder.",
        "a": two,
        "group": two,
        "group.x": two,
        "b": "Another.",
        "b.y": "Inside.",
        "c": "",
    }


@pytest.mark.parametrize("command", CONFIGS)
def test_every_field_has_a_comment_that_says_what_it_means(command):
    said = config_text.meanings(CONFIGS[command])
    named = [name for name, *_ in config_text.fields(load(command)) if name != "task"]
    assert [name for name in named if not said.get(name)] == []


@pytest.mark.parametrize(
    ("arguments", "text", "expected"),
    [
        ("-i DIR --remove", "--config.tumor needs; --config.source=DIR", "--remove needs; -i DIR"),
        ("--source=DIR", "give --config.source=DIR.", "give --source=DIR."),
        ("--grow 0", "--config.step_mm must be above 0", "--grow must be above 0"),
        ("--mean", "--config.estimate is not for it", "--mean is not for it"),
        ("-i t1=A", "--config.images.t1: A is not there", "-i t1: A is not there"),
        ("-i t1=A seg=B", "--config.images.seg: B is not there", "-i seg: B is not there"),
        ("-m A", "--config.roi_labels=edema", "--tissue=edema"),
        ("", "raise --config.model.width", "raise --model.width"),
    ],
)
def test_messages_name_fields_as_they_were_typed(arguments, text, expected):
    line = options.parse("inpaint", CONFIGS["inpaint"], load("inpaint"), arguments.split())
    assert options.as_typed(text, line.options) == expected
