"""Training counts pixels and slices, inference millimeters: sizes and distances are recorded."""

import dataclasses
import json

import pytest
from tiny import tiny_settings

from tfds_brats.reading import SUMMARY_FILE


def data_of(folder, **summary):
    (folder / SUMMARY_FILE).write_text(json.dumps(summary))
    return dataclasses.replace(tiny_settings().data, dataset=str(folder))


@pytest.mark.parametrize(
    ("spacing", "size"), [([1.0, 1.0], 1.0), ([2.0, 2.0], 2.0), ([0.995, 1.001], 0.998)]
)
def test_the_size_of_a_pixel_comes_from_the_dataset_into_the_contract(tmp_path, spacing, size):
    data = data_of(tmp_path, spacing_mm=spacing)
    assert data.pixel_size_mm() == pytest.approx(size)
    settings = dataclasses.replace(tiny_settings(), data=data)
    contract = settings.contract("f00d", data.pixel_size_mm())
    assert contract["data"]["pixel_size_mm"] == pytest.approx(size)


def test_a_dataset_that_does_not_say_it_is_of_unknown_size(tmp_path):
    assert data_of(tmp_path, convention="brats2021").pixel_size_mm() is None
    assert tiny_settings().contract("f00d")["data"]["pixel_size_mm"] is None


@pytest.mark.parametrize("spacing", [None, [1.0, 1.02], [0.5, 1.0]])
def test_pixels_of_several_sizes_are_refused(tmp_path, spacing):
    with pytest.raises(ValueError, match=rf"^{tmp_path}: pixels .*resample"):
        data_of(tmp_path, spacing_mm=spacing).pixel_size_mm()


def test_the_distance_of_slices_comes_from_the_dataset_into_the_contract(tmp_path):
    data = data_of(tmp_path, spacing_mm=[1.0, 1.0], slice_distance_mm=[1.5])
    settings = dataclasses.replace(tiny_settings(), data=data)
    contract = settings.contract("f00d", 1.0, data.slice_distance_mm(1))
    assert contract["data"]["slice_distance_mm"] == 1.5
    unknown = data_of(tmp_path, spacing_mm=[1.0, 1.0]).slice_distance_mm(1)
    assert unknown is None and "slice_distance_mm" not in settings.contract("f00d")["data"]


def test_neighbors_at_several_distances_are_refused(tmp_path):
    data = data_of(tmp_path, slice_distance_mm=None)
    assert data.slice_distance_mm(0) is None
    with pytest.raises(
        ValueError, match=rf"^{tmp_path}: the distances .* set model.neighbors to 0"
    ):
        data.slice_distance_mm(1)
