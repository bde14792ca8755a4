"""Noise schedules and timesteps against guided-diffusion's tables and their own definitions."""

import numpy as np
import pytest

from mbti_jax.diffusion.schedule import (
    Schedule,
    cubic_timesteps,
    ddim_timesteps,
    make_schedule,
    sampling_timesteps,
    trailing_timesteps,
)

SCHEDULES = ("linear", "cosine")


def schedule_goldens(goldens):
    files = sorted(goldens.glob("schedule*.npz"))
    assert files, f"no schedule*.npz in {goldens}"
    for file in files:
        with np.load(file) as arrays:
            yield file.name, dict(arrays)


def test_parity_of_tables_with_guided_diffusion(goldens):
    for file, golden in schedule_goldens(goldens):
        names = sorted({key.split("/")[0] for key in golden if key.endswith("/betas")})
        assert names, f"{file} holds no schedule"
        for name in names:
            schedule = make_schedule(name, len(golden[f"{name}/betas"]))
            for table in ("betas", "alphas_cumprod"):
                value = getattr(schedule, table)
                assert value.dtype == np.float64
                np.testing.assert_allclose(
                    value, golden[f"{name}/{table}"], rtol=1e-10, err_msg=f"{file}: {name} {table}"
                )


def test_parity_of_timesteps_with_guided_diffusion(goldens):
    for file, golden in schedule_goldens(goldens):
        kept = {k.split("/ddim")[1]: v for k, v in golden.items() if k.startswith("timesteps/ddim")}
        assert kept, f"{file} holds no timesteps"
        for steps, ascending in kept.items():
            timesteps = sampling_timesteps(int(steps), spacing="ddim")
            np.testing.assert_array_equal(timesteps, ascending[::-1])


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize("num_timesteps", [50, 1000, 4000])
def test_noise_grows_to_almost_nothing_but_noise(name, num_timesteps):
    alphas_cumprod = make_schedule(name, num_timesteps).alphas_cumprod
    assert np.all(np.diff(alphas_cumprod) < 0)
    assert alphas_cumprod[0] > 1 - 1000 * 3e-4 / num_timesteps
    assert 0 < alphas_cumprod[-1] < 1e-4


def test_schedule_rejects_what_is_not_a_schedule():
    with pytest.raises(ValueError, match=r"'sigmoid'.*cosine.*linear"):
        make_schedule("sigmoid")
    with pytest.raises(ValueError, match="more than 20 timesteps"):
        make_schedule("linear", 20)
    with pytest.raises(ValueError, match="at least 1"):
        make_schedule("cosine", 0)
    with pytest.raises(ValueError, match="shape"):
        Schedule(np.zeros((2, 2)))


def test_schedule_cannot_be_changed_through_its_source():
    betas = np.full(10, 0.1)
    schedule = Schedule(betas)
    betas[:] = 0.5
    assert np.all(schedule.betas == 0.1)
    with pytest.raises(ValueError, match="read-only"):
        schedule.betas[0] = 0.5


@pytest.mark.parametrize("num_timesteps", [1, 7, 1000])
def test_trailing_starts_at_the_last_timestep_and_descends(num_timesteps):
    for num_steps in range(1, num_timesteps + 1):
        timesteps = trailing_timesteps(num_steps, num_timesteps)
        assert np.issubdtype(timesteps.dtype, np.integer)
        assert len(timesteps) == num_steps
        assert timesteps[0] == num_timesteps - 1
        assert timesteps[-1] >= 0
        assert np.all(np.diff(timesteps) < 0)
        # Even: no timestep is further than a half from where equal spacing would put it.
        even = np.linspace(num_timesteps, num_timesteps / num_steps, num_steps) - 1
        assert np.max(np.abs(timesteps - even)) <= 0.5 + 1e-9


def test_trailing_known_values():
    # Lin et al. 2024, table 2, gives T = 1000, n = 10, counted from 1: 1000, 900, ..., 100.
    np.testing.assert_array_equal(sampling_timesteps(10) + 1, np.arange(1000, 0, -100))
    np.testing.assert_array_equal(trailing_timesteps(1), [999])
    np.testing.assert_array_equal(trailing_timesteps(1000), np.arange(999, -1, -1))


@pytest.mark.parametrize("num_timesteps", [1, 7, 200, 1000])
def test_cubic_starts_at_the_last_timestep_and_comes_closer(num_timesteps):
    for num_steps in range(1, num_timesteps + 1):
        timesteps = cubic_timesteps(num_steps, num_timesteps)
        assert len(timesteps) == num_steps
        assert timesteps[0] == num_timesteps - 1
        assert timesteps[-1] >= 0
        assert np.all(np.diff(timesteps) < 0)
        cubes = num_timesteps * (np.arange(num_steps, 0, -1) / num_steps) ** 3
        # At the end there is no room: timesteps are whole numbers.
        room = timesteps > num_steps
        assert np.max(np.abs(timesteps + 1 - cubes)[room], initial=0) <= 0.5
    assert cubic_timesteps(2, 1000).tolist() == [999, 124]
    assert cubic_timesteps(5, 1000).tolist() == [999, 511, 215, 63, 7]


@pytest.mark.parametrize("spacing", [trailing_timesteps, cubic_timesteps, ddim_timesteps])
@pytest.mark.parametrize("num_steps", [-1, 0, 1001])
def test_number_of_steps_outside_the_process_is_an_error(spacing, num_steps):
    with pytest.raises(ValueError, match="between 1 and 1000"):
        spacing(num_steps, 1000)


def test_ddim_spacing_without_a_stride_is_an_error():
    # Strides 2 and 3 leave 500 and 334 of 1000 timesteps, so nothing in between can be had.
    for num_steps in (333, 400, 501, 999):
        with pytest.raises(ValueError, match=f"No integer stride leaves exactly {num_steps} "):
            ddim_timesteps(num_steps, 1000)


def test_unknown_spacing_is_an_error():
    with pytest.raises(ValueError, match=r"Unknown spacing 'leading'.*cubic.*ddim.*trailing"):
        sampling_timesteps(50, spacing="leading")
