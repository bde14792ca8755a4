"""The whole sampler against a model whose answer is known: Gaussian images, given their context."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from loose_arrays import make_sampler

from mbti_jax.diffusion.condition import Condition
from mbti_jax.diffusion.noise import noise_for
from mbti_jax.diffusion.output import Output
from mbti_jax.diffusion.processes import Gaussian, RectifiedFlow
from mbti_jax.diffusion.samplers.driver import Batch, Sampler, Surroundings
from mbti_jax.diffusion.sampling import Sampling
from mbti_jax.diffusion.schedule import cubic_timesteps, make_schedule, trailing_timesteps


@pytest.fixture(autouse=True)
def strict_types():
    with jax.numpy_dtype_promotion("strict"), jax.numpy_rank_promotion("raise"):
        yield


class GaussianImage:
    """Images of 4 x 4 pixels with two correlated sequences; the roi is what has to be inferred.

    x ~ N(mu, Sigma). Given the pixels c outside the roi, those inside are N(m, S) with
    m = mu_r + K (c - mu_c), K = Sigma_rc Sigma_cc^-1 and S = Sigma_rr - K Sigma_cr. The best guess of
    them from c and x_t = a x_0 + s eps is m + G_t (x_t - a m), G_t = a S (a^2 S + s^2 I)^-1.
    """

    def __init__(self, process):
        rng = np.random.default_rng(4)
        place = np.stack(np.mgrid[:4, :4], axis=-1).reshape(-1, 2)
        distance = np.linalg.norm(place[:, None] - place, axis=-1)
        sigma = 0.25 * np.kron(np.exp(-distance / 2), [[1, 0.6], [0.6, 1]])
        mu = rng.uniform(-0.8, 0.8, 32)
        self.roi_masks = np.zeros((1, 4, 4, 5), np.float32)
        self.roi_masks[0, 1:3, 1:3, 1] = self.roi_masks[0, 2, 2:4, 3] = 1
        self.inside = np.repeat(self.roi_masks.max(axis=-1).ravel() > 0, 2)
        image = rng.multivariate_normal(mu, sigma).astype(np.float32)
        self.context = image.reshape(1, 4, 4, 2)
        r, c, a, s, gains, k, mu = self._solve(process, mu, sigma, image)

        def network(params, x, t, class_vector):
            """The exact prediction, from the image outside the roi as the sampler shows it."""
            x_t = x[..., :2].reshape(-1, 32)
            mean = mu[None, r] + (x_t[:, c] - mu[None, c]) @ k.T
            error = x_t[:, r] - a[t] * mean
            x_0 = mean + jnp.einsum("brq,bq->br", gains[t], error)
            eps = (x_t[:, r] - a[t] * x_0) / s[t]
            made = process.target(x_0, eps, t)
            return jnp.full_like(x_t, 7.0).at[:, r].set(made).reshape(-1, 4, 4, 2)

        self.sampler = make_sampler(network, process)

    def _solve(self, process, mu, sigma, image):
        """Conditions on `image` outside of `inside`; what a network needs to know of it, as arrays."""
        r, c = self.inside.nonzero()[0], (~self.inside).nonzero()[0]
        k = sigma[np.ix_(r, c)] @ np.linalg.inv(sigma[np.ix_(c, c)])
        self.mean = mu[r] + k @ (image[c] - mu[c])
        self.covariance = sigma[np.ix_(r, r)] - k @ sigma[np.ix_(c, r)]
        # x_T starts at N(0, I) where training ended at N(a x_0, s^2 I): the mean is off by this much.
        times = np.arange(process.num_timesteps)
        a, s = (x(times)[:, None, None] for x in (process.alpha, process.sigma))
        self.alphas = a.ravel() ** 2
        self.start_error = a.min() * np.abs(self.mean).max()
        total = a**2 * self.covariance + s**2 * np.eye(len(r))
        self.gains = a * self.covariance @ np.linalg.inv(total)

        gains, k, mu = (jnp.asarray(array, jnp.float32) for array in (self.gains, k, mu))
        a, s = (jnp.asarray(x[:, :, 0], jnp.float32) for x in (a, s))
        return r, c, a, s, gains, k, mu

    def sample(self, x_T, keys, **options):
        """Pixels inside the roi [B, d] that the sampler makes from x_T [B, 4, 4, 2]."""
        batch = len(x_T)
        context, roi_masks = (np.repeat(a, batch, axis=0) for a in (self.context, self.roi_masks))
        class_vector = np.ones((batch, 5), np.float32)
        out = self.sampler(
            (), x_T, context, roi_masks, class_vector, keys, weight=0.4, chunk=1000, **options
        )
        return np.asarray(out, np.float64).reshape(-1, 32)[:, self.inside]

    def moments_of_ddim(self, timesteps, eta):
        """Mean and covariance that DDIM with these steps gives, by its recursion in float64."""
        mean, covariance = np.zeros(len(self.mean)), np.eye(len(self.mean))
        alphas = self.alphas
        for t, t_prev in zip(timesteps, [*timesteps[1:], None], strict=True):
            alpha, alpha_prev = alphas[t], 1.0 if t_prev is None else alphas[t_prev]
            sigma = eta * np.sqrt((1 - alpha_prev) / (1 - alpha) * (1 - alpha / alpha_prev))
            eps_scale = np.sqrt((1 - alpha_prev - sigma**2) / (1 - alpha))
            x_0_scale = np.sqrt(alpha_prev) - eps_scale * np.sqrt(alpha)
            factor = x_0_scale * self.gains[t] + eps_scale * np.eye(len(mean))
            shift = x_0_scale * (self.mean - np.sqrt(alpha) * self.gains[t] @ self.mean)
            mean = factor @ mean + shift
            covariance = factor @ covariance @ factor.T + sigma**2 * np.eye(len(mean))
        return mean, covariance


@pytest.fixture(scope="module", params=["linear", "cosine"])
def gaussian(request):
    return GaussianImage(Gaussian(make_schedule(request.param)))


def relative_error(value, reference):
    return np.linalg.norm(value - reference) / np.linalg.norm(reference)


def test_deterministic_sampler_gives_the_conditional_gaussian(gaussian):
    """x_T -> x_0 is affine here, so a basis of x_T tells its mean and covariance without sampling."""
    size = len(gaussian.mean)
    x_T = np.zeros((size + 1, 32), np.float32)
    x_T[1 + np.arange(size), gaussian.inside.nonzero()[0]] = 1
    _, keys = noise_for(0, range(size + 1), [0] * (size + 1), ())
    errors = {}
    for steps in (1, 25, 50, 100, 200, 1000):
        timesteps = trailing_timesteps(steps)
        out = gaussian.sample(x_T.reshape(-1, 4, 4, 2), keys, timesteps=timesteps, eta=0.0)
        mean, covariance = out[0], (out[1:] - out[0]).T @ (out[1:] - out[0])
        ddim_mean, ddim_covariance = gaussian.moments_of_ddim(timesteps, 0.0)
        np.testing.assert_allclose(mean, ddim_mean, rtol=0, atol=2e-3)
        np.testing.assert_allclose(covariance, ddim_covariance, rtol=0, atol=1e-3)
        np.testing.assert_allclose(mean, gaussian.mean, rtol=0, atol=2e-3 + gaussian.start_error)
        errors[steps] = relative_error(covariance, gaussian.covariance)
    # DDIM is a first-order method: twice the steps, half the error.
    assert errors[1000] < 0.01
    for steps in (25, 50, 100):
        assert 1.6 < errors[steps] / errors[2 * steps] < 2.2, errors


@pytest.mark.parametrize(
    ("process", "method"),
    [
        (Gaussian(make_schedule("linear"), "v"), "unipc"),
        (RectifiedFlow("v"), "unipc"),
        (RectifiedFlow("v"), "dpmpp_2m"),
        (RectifiedFlow("v"), "heun"),
    ],
)
def test_methods_of_second_order_give_it_in_few_steps(process, method):
    """Mean and covariance of the affine map x_T -> x_0, as above, at 40 steps; DDIM is off by 5%."""
    gaussian = GaussianImage(process)
    size = len(gaussian.mean)
    x_T = np.zeros((size + 1, 32), np.float32)
    x_T[1 + np.arange(size), gaussian.inside.nonzero()[0]] = 1
    _, keys = noise_for(0, range(size + 1), [0] * (size + 1), ())
    x_T, t = x_T.reshape(-1, 4, 4, 2), cubic_timesteps(40)
    out = gaussian.sample(x_T, keys, timesteps=t, method=method)
    mean, covariance = out[0], (out[1:] - out[0]).T @ (out[1:] - out[0])
    np.testing.assert_allclose(mean, gaussian.mean, rtol=0, atol=2e-3 + gaussian.start_error)
    assert relative_error(covariance, gaussian.covariance) < 0.01


@pytest.mark.parametrize(("steps", "eta"), [(20, 0.5), (20, 1.0), (1000, 1.0)])
def test_ancestral_sampler_gives_the_conditional_gaussian(gaussian, steps, eta):
    count = 4096
    x_T, keys = noise_for(1, range(count), [0] * count, (4, 4, 2))
    timesteps = trailing_timesteps(steps)
    out = gaussian.sample(x_T, keys, timesteps=timesteps, eta=eta)
    mean, covariance = out.mean(axis=0), np.cov(out.T)
    ddim_mean, ddim_covariance = gaussian.moments_of_ddim(timesteps, eta)
    variance = np.diag(ddim_covariance)
    mean_error = np.sqrt(variance / count)
    covariance_error = np.sqrt((np.outer(variance, variance) + ddim_covariance**2) / count)
    assert np.all(np.abs(mean - ddim_mean) < 4.5 * mean_error + 1e-4)
    assert np.all(np.abs(covariance - ddim_covariance) < 4.5 * covariance_error + 1e-4)
    error = relative_error(covariance, gaussian.covariance)
    if steps == 1000:
        # What 1000 steps leave of the discretisation, 0.02 at most, is less than 4096 samples show.
        assert relative_error(ddim_covariance, gaussian.covariance) < 0.02
        assert np.all(np.abs(mean - gaussian.mean) < 4.5 * mean_error + gaussian.start_error)
        assert error < 0.02 + 2 * np.linalg.norm(covariance_error) / np.linalg.norm(covariance)
    else:
        assert error > 0.1


class GaussianStack(GaussianImage):
    """The same for three slices of 3 x 3 pixels, correlated along z, each of which sees the others.

    In `still`, if it is a slice's number, nothing is to be inferred.
    """

    def __init__(self, process, still):
        rng = np.random.default_rng(5)
        place = np.stack(np.mgrid[:3, :3], axis=-1).reshape(-1, 2)
        distance = np.linalg.norm(place[:, None] - place, axis=-1)
        along_z = 0.8 ** np.abs(np.subtract.outer(range(3), range(3)))
        sigma, mu = 0.25 * np.kron(along_z, np.exp(-distance / 2)), rng.uniform(-0.8, 0.8, 27)
        masks = np.zeros((3, 3, 3, 5), np.float32)
        masks[0, 1:, 1:, 1] = masks[1, 1, :, 3] = masks[2, :2, 1:, 1] = 1
        if still is not None:
            masks[still] = 0
        self.masks, self.inside = masks, masks.max(axis=-1).ravel() > 0
        self.still, self.sampled = still, [k for k in range(3) if k != still]
        image = rng.multivariate_normal(mu, sigma).astype(np.float32)
        self.images = image.reshape(3, 3, 3, 1)
        r, c, a, _, gains, k, mu = self._solve(process, mu, sigma, image)

        def apply(params, x_t, t, condition):
            """x_0 of a slice, from the images outside the rois and x_t of all three inside."""
            around = condition.neighbors
            # How many slices there are below says which one it is.
            below = jnp.sum(around.present[:, :2], axis=1).astype(jnp.int32)
            shown = jnp.concatenate(
                [around.images[:, :2], x_t[:, None], around.images[:, 2:]], axis=1
            )
            x_t = jax.vmap(lambda five, k: jax.lax.dynamic_slice_in_dim(five, 2 - k, 3))(
                shown, below
            )
            x_t = x_t.reshape(-1, 27)
            mean = mu[None, r] + (x_t[:, c] - mu[None, c]) @ k.T
            x_0 = mean + jnp.einsum("brq,bq->br", gains[t], x_t[:, r] - a[t] * mean)
            volume = jnp.full_like(x_t, 7.0).at[:, r].set(x_0).reshape(-1, 3, 3, 3, 1)
            return Output(jax.vmap(lambda slices, k: slices[k])(volume, below))

        self.sampler = Sampler(apply, process)

    def sample(self, x_T, sampling, batch_size):
        """The pixels inside [samples, d] that become of x_T [samples, 27], in batches of any size."""
        count, slices = len(x_T), len(self.sampled)
        examples = [(i, k) for i in range(count) for k in self.sampled]
        number = {example: row for row, example in enumerate(examples)}
        number |= {(i, self.still): len(examples) for i in range(count)}
        around = [[number.get((i, k + d), -1) for d in (-2, -1, 1, 2)] for i, k in examples]
        still = self.images[[k for k in range(3) if k == self.still]]
        noise = x_T.reshape(count, 3, 3, 3, 1)
        batches = []
        for first in range(0, len(examples), batch_size):
            i, k = np.array(examples[first : first + batch_size]).T
            condition = Condition(self.masks[k], np.ones((len(k), 5), np.float32))
            _, keys = noise_for(0, i, k, ())
            batches.append(Batch(noise[i, k], self.images[k], condition, keys))
        made = self.sampler.together((), batches, Surroundings(np.array(around), still), sampling)
        out = np.repeat(self.images[None], count, axis=0)
        painted = np.concatenate([batch.x_0 for batch in made])
        out[:, self.sampled] = painted.reshape(count, slices, 3, 3, 1)
        np.testing.assert_array_equal(
            out.reshape(count, 27)[:, ~self.inside], [self.images.ravel()[~self.inside]] * count
        )
        return out.reshape(count, 27)[:, self.inside].astype(np.float64)


@pytest.mark.parametrize("still", [None, 0])
def test_slices_that_see_each_other_give_the_conditional_gaussian_of_the_volume(still):
    process = Gaussian(make_schedule("linear"), "x_0")
    stack = GaussianStack(process, still)
    size = len(stack.mean)
    x_T = np.zeros((size + 1, 27), np.float32)
    x_T[1 + np.arange(size), stack.inside.nonzero()[0]] = 1
    # Of (11 + 1) 3 and (7 + 1) 2 examples; batches end within stacks.
    batch_size = 9 if still is None else 4

    def moments(method, timesteps):
        sampling = Sampling(sampler=method, spacing=tuple(timesteps), guidance=0.4)
        out = stack.sample(x_T, sampling, batch_size)
        return out[0], (out[1:] - out[0]).T @ (out[1:] - out[0])

    mean, covariance = moments("ddim", trailing_timesteps(25))
    expected = stack.moments_of_ddim(trailing_timesteps(25), 0.0)
    np.testing.assert_allclose(mean, expected[0], rtol=0, atol=2e-3)
    np.testing.assert_allclose(covariance, expected[1], rtol=0, atol=1e-3)
    for method in ("unipc", "heun"):
        mean, covariance = moments(method, cubic_timesteps(40))
        np.testing.assert_allclose(mean, stack.mean, rtol=0, atol=2e-3 + stack.start_error)
        assert relative_error(covariance, stack.covariance) < 0.01
    # Slices that did not see each other's noise would be independent.
    last = np.repeat(range(3), 9)[stack.inside] == 2
    assert np.abs(stack.covariance[np.ix_(last, ~last)]).max() > 0.02


@pytest.mark.parametrize("still", [None, 0])
def test_slices_show_each_other_no_noise_for_an_estimate_of_the_mean(still):
    """The last estimate of a volume from any noise is that of zeros, which is the mean of all."""
    stack = GaussianStack(Gaussian(make_schedule("linear"), "x_0"), still)
    x_T = np.random.default_rng(5).standard_normal((4, 27)).astype(np.float32)
    sampling = Sampling(sampler="ddim", guidance=0.0, estimate="mean", mean_passes=1)
    made = stack.sample(x_T, sampling, 4)
    np.testing.assert_array_equal(made, [made[0]] * 4)
    np.testing.assert_allclose(made[0], stack.mean, rtol=0, atol=0.02)
