"""What a program that only inpaints loads with `mbti_jax`: no web page, no tools for training data."""

import json
import subprocess
import sys

from conftest import ROOT

HEAVY = ("gradio", "grain", "nilearn", "tensorflow_datasets")
PROGRAM = """
import json, sys
import mbti_jax
names = [getattr(mbti_jax, name) for name in mbti_jax.__all__]
print(json.dumps(sorted({name.partition(".")[0] for name in sys.modules})))
"""


def test_the_names_of_the_package_load_nothing_that_painting_does_not_need():
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], cwd=ROOT, capture_output=True, text=True, check=True
    )
    loaded = json.loads(done.stdout.splitlines()[-1])
    assert "jax" in loaded
    assert not set(HEAVY) & set(loaded)
