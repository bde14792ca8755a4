"""Where the tests find the real cases and the reference numbers, and how JAX runs in them."""

import os
from pathlib import Path

# Four simulated devices, set before JAX starts: the sharding tests need several, and every other test
# must not care how many there are.
os.environ.setdefault("JAX_PLATFORMS", "cpu")
# Most of the tests' time is compilation, which this level takes two fifths from.
os.environ["XLA_FLAGS"] = (
    "--xla_backend_optimization_level=0 "
    + os.environ.get("XLA_FLAGS", "")
    + " --xla_force_host_platform_device_count=4"
)

import numpy as np
import pytest
from jaxtyping import install_import_hook
from PIL import Image

# Shapes and types of arrays that these modules annotate are checked at every call (or trace). Before
# anything imports them; whole numbers are real numbers (PEP 484). `diffusion.sampling` checks itself,
# and tests put networks of their own into `models.pipeline`.
DIFFUSION = ("condition", "guidance", "noise", "processes", "samplers", "schedule")
CHECKED = (
    *(f"diffusion.{name}" for name in DIFFUSION),
    *("rois", "models.blocks", "models.contract", "models.unet"),
    *("data.augment", "data.crop", "data.preprocess"),
)
install_import_hook(
    [f"mbti_jax.{name}" for name in CHECKED],
    "beartype.beartype(conf=beartype.BeartypeConf(is_pep484_tower=True))",
)

ROOT = Path(__file__).resolve().parent.parent


def _folder(variable: str, default: str) -> Path:
    folder = Path(os.environ.get(variable, ROOT / default))
    if not folder.is_dir():
        pytest.skip(f"{variable}: {folder} is not a folder")
    return folder


@pytest.fixture(scope="session")
def real_cases() -> Path:
    """Folder with real case folders (`MBTI_REAL_CASES`, default ../shared/cases)."""
    return _folder("MBTI_REAL_CASES", "../shared/cases")


@pytest.fixture(scope="session", params=["bundled", "external"])
def goldens(request) -> Path:
    """Folder with reference numbers; a test that uses it runs on both.

    The small ones are part of the repository. Larger ones, of the authors' published network, lie
    outside (`MBTI_GOLDENS`, default ../shared/goldens) and are skipped where they are absent.
    """
    if request.param == "bundled":
        return ROOT / "tests" / "data" / "goldens"
    return _folder("MBTI_GOLDENS", "../shared/goldens")


@pytest.fixture
def case_files(tmp_path) -> list[Path]:
    """The four sequences of a synthetic case of BraTS 2021, with its segmentation next to them."""
    from synthetic_cases import SUFFIXES, write_case

    subject = "BraTS2021_00001"
    folder = write_case(tmp_path / "in", subject)
    return [folder / f"{subject}{suffix}.nii.gz" for suffix in SUFFIXES.values()]


@pytest.fixture
def png(tmp_path) -> Path:
    """A gray slice of 16 bits."""
    from tiny_inpainter import make_slice

    path = tmp_path / "slice.png"
    Image.fromarray(make_slice(dtype=np.uint16)).save(path)
    return path


@pytest.fixture(scope="module")
def cluster():
    """`ray.cluster_utils.Cluster` of two nodes; a test may take one of them away."""
    from ray_cluster import cluster_of

    with cluster_of(2) as cluster:
        yield cluster


@pytest.fixture
def one_subject_in_a_shard(monkeypatch) -> None:
    """Of the dummy cases three shards of training, one of validation, and one of test."""
    monkeypatch.setattr("tfds_brats.shards._SUBJECTS_PER_SHARD", 1)


@pytest.fixture(scope="session")
def whole(tmp_path_factory) -> dict[str, str]:
    """The digests of the files of such a dataset that one process builds by itself."""
    from small_shards import DUMMY_DATA, digests

    from tfds_brats import builder

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("tfds_brats.shards._SUBJECTS_PER_SHARD", 1)
        folder = tmp_path_factory.mktemp("whole")
        return digests(builder.build(DUMMY_DATA, "brats2021", folder, num_workers=1))
