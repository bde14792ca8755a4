"""The training step: independent of devices, of microbatches and of what lies outside the ROI."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from scipy import stats
from tiny import tiny_examples, tiny_settings

from mbti_jax import sharding
from mbti_jax.data import loader
from mbti_jax.data.augment import Augmentation
from mbti_jax.diffusion.condition import Condition
from mbti_jax.diffusion.noise import start_noise
from mbti_jax.diffusion.output import Output
from mbti_jax.diffusion.processes import Gaussian
from mbti_jax.diffusion.schedule import make_schedule
from mbti_jax.fields import FieldError
from mbti_jax.models.losses import losses
from mbti_jax.models.parameters import init_params
from mbti_jax.models.pipeline import Inputs, Pipeline, example_keys
from mbti_jax.rois.kinds import NUM_KINDS
from mbti_jax.training.state import create_state
from mbti_jax.training.step import make_train_step
from mbti_jax.training.validation import make_validation_step

BATCH = 10  # Divided neither by 3 or 4 devices nor by an accumulation of 4.
OPTIMIZER = optax.adam(1e-3)
# Compiling is nearly all that this file does.
jit = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})


@functools.cache
def pipeline() -> Pipeline:
    return dataclasses.replace(tiny_settings(), label_weight=0.5).pipeline()


@functools.cache
def initial_state():
    """Numpy arrays: one compilation for every mesh, and nothing that a test could donate."""
    init = jit(lambda key: create_state(init_params(pipeline().model, key), OPTIMIZER))
    return jax.device_get(init(jax.random.key(3)))


def ten_losses(devices: int, accumulation: int, fully_sharded: bool = False) -> np.ndarray:
    """Loss and label loss of ten steps."""
    mesh = sharding.make_mesh(jax.devices()[:devices])
    shardings = sharding.state_sharding(mesh, initial_state(), fully_sharded=fully_sharded)
    state = jax.device_put(initial_state(), shardings)
    step = jit(
        make_train_step(
            pipeline(), OPTIMIZER, jax.random.key(4), ema_decay=0.99, accumulation=accumulation
        ),
        out_shardings=(shardings, sharding.replicated(mesh)),
    )
    batches = loader.training_batches(
        tiny_examples(),
        seed=3,
        batch_size=BATCH,
        padded_size=sharding.padded_batch_size(BATCH, mesh, accumulation),
        num_threads=0,
    )
    losses = []
    for _ in range(10):
        state, metrics = step(state, sharding.put_batch(next(batches), mesh))
        losses.append([metrics["loss"], metrics["label_loss"]])
    split = [not leaf.sharding.is_fully_replicated for leaf in jax.tree.leaves(state)]
    assert any(split) == fully_sharded
    assert not all(split)
    return np.array(losses, np.float64)


@functools.cache
def reference_losses() -> np.ndarray:
    return ten_losses(devices=1, accumulation=1)


# An update is one compilation, so each setting tries several things at once: the two meshes, the three
# accumulations and a split state all have to agree with the plainest run.
@pytest.mark.parametrize(
    ("devices", "accumulation", "fully_sharded"), [(4, 2, True), (3, 4, False)]
)
def test_first_ten_losses_depend_neither_on_devices_nor_on_microbatches(
    devices, accumulation, fully_sharded, monkeypatch
):
    # The largest array of the tiny network has 1,536 elements.
    monkeypatch.setattr(sharding, "_MIN_SHARDED_ELEMENTS", 512)
    losses = ten_losses(devices, accumulation, fully_sharded)
    np.testing.assert_allclose(losses, reference_losses(), rtol=1e-4)
    assert (
        np.ptp(losses, axis=0).min() > 1e-3
    )  # The batches differ, so equal losses mean equal batches.


def random_inputs(seed: int, size: int, batch: int) -> Inputs:
    """Random images; ROI masks of which channel 0 is never all of the image."""
    rng = np.random.default_rng(seed)
    masks = np.zeros((batch, size, size, 5), np.float32)
    masks[..., 0] = rng.random((batch, size, size)) < 0.3
    masks[..., 2] = rng.random((batch, size, size)) < 0.1
    return Inputs(
        x_0=jnp.asarray(rng.normal(size=(batch, size, size, 1)), jnp.float32),
        condition=Condition(jnp.asarray(masks), jnp.asarray([[2.0, 1, 2, 1, 1]] * batch)),
        labels=jnp.asarray(rng.integers(0, 4, (batch, size, size)), jnp.uint8),
    )


@dataclasses.dataclass(frozen=True)
class ShiftedTarget(Gaussian):
    """A process whose target is moved by `shift` [B, H, W, C]; the network's input is not."""

    shift: jax.Array | None = None

    def target(self, x_0, eps, t):
        return super().target(x_0, eps, t) + self.shift


def test_the_target_outside_the_roi_changes_neither_loss_nor_gradients():
    inputs = random_inputs(seed=0, size=16, batch=6)
    roi = np.asarray(inputs.condition.roi)
    keys = jax.random.split(jax.random.key(1), len(roi))

    @jit
    def loss_and_grads(params, shift):
        process = ShiftedTarget(pipeline().process.schedule, "v", shift)
        shifted = dataclasses.replace(pipeline(), process=process)
        terms = jax.value_and_grad(shifted.loss_terms, has_aux=True)
        return terms(params, inputs, jnp.ones(len(roi)), keys)

    # The last convolution starts at zero, which would hide the gradients of all the others.
    rng = np.random.default_rng(2)
    params = jax.tree.map(
        lambda p: p + 0.1 * rng.normal(size=p.shape).astype(np.float32), initial_state().params
    )
    reference = loss_and_grads(params, np.zeros_like(inputs.x_0))
    assert all(np.abs(g).max() > 0 for g in jax.tree.leaves(reference[1]))
    noise = rng.normal(scale=1e3, size=inputs.x_0.shape).astype(np.float32)
    outside = loss_and_grads(params, np.where(roi, 0, noise))
    jax.tree.map(np.testing.assert_array_equal, outside, reference)
    inside = loss_and_grads(params, np.where(roi, noise, 0))
    assert inside[0][0] > 2 * reference[0][0]


class PixelwiseNetwork:
    """Stands in for the UNet: predicts `w` times each pixel of x_t, and notes what it was given."""

    def apply(self, variables, x, t, condition, deterministic, rngs):
        assert deterministic
        assert rngs is None
        self.seen = (x, t, condition)
        return Output(variables["params"]["w"] * x)


SCHEDULE = make_schedule("cosine", 1000)


@jit
def pixelwise_terms(inputs: Inputs, weight: jax.Array, drop_rate: float):
    """`loss_terms` and its gradient for w = 0.5, and what the network saw."""
    network = PixelwiseNetwork()
    pipeline = Pipeline(network, Gaussian(SCHEDULE, "eps"), None, 4, drop_rate)
    keys = jax.random.split(jax.random.key(5), len(weight))

    def loss(params):
        total, terms = pipeline.loss_terms(params, inputs, weight, keys)
        return total, (terms, network.seen)

    (total, (terms, seen)), grads = jax.value_and_grad(loss, has_aux=True)({"w": 0.5})
    return (total, terms, grads), seen


def test_loss_terms_are_those_of_an_explicit_loop():
    inputs = random_inputs(seed=1, size=4, batch=300)
    weight = np.array([1, 1, 0] * 100, np.float32)
    (total, (sums, counts, _), _), (x, t, condition) = pixelwise_terms(inputs, weight, 0.0)
    x, t, x_0 = np.asarray(x, np.float64), np.asarray(t), np.asarray(inputs.x_0, np.float64)
    np.testing.assert_array_equal(condition.roi_masks, inputs.condition.roi_masks)
    expected_sums, expected_counts = np.zeros(4), np.zeros(4)
    for b in range(300):
        inside = np.asarray(inputs.condition.roi[b, ..., 0])
        x_t = x[b, ..., 0]
        np.testing.assert_array_equal(x_t[~inside], x_0[b, ..., 0][~inside])
        abar = SCHEDULE.alphas_cumprod[t[b]]
        eps = (x_t - np.sqrt(abar) * x_0[b, ..., 0]) / np.sqrt(1 - abar)
        error = (0.5 * x_t - eps)[inside]
        expected_sums[t[b] // 250] += weight[b] * (error**2).sum()
        expected_counts[t[b] // 250] += weight[b] * inside.sum()
    np.testing.assert_allclose(sums, expected_sums, rtol=1e-3)
    np.testing.assert_array_equal(counts, expected_counts)
    np.testing.assert_allclose(total, expected_sums.sum(), rtol=1e-3)
    assert t.min() < 50
    assert 950 <= t.max() < 1000


class LabelingNetwork:
    """Stands in for the UNet: an image of zeros, and logits that depend on each pixel of x_t."""

    def apply(self, variables, x, t, condition, deterministic, rngs):
        self.seen = (x, t)
        factors = jnp.array([0.0, 1.0, -2.0, 3.0]) * variables["params"]["w"]
        return Output(jnp.zeros_like(x), x[..., :1] * factors)


def test_label_terms_are_those_of_an_explicit_loop():
    """Two sequences, every label and the cavity, free-form ROIs and boxes, padding."""
    rng = np.random.default_rng(6)
    batch, size, weight = 200, 4, np.array([1, 0] * 100, np.float32)
    labels = rng.integers(0, 5, (batch, size, size))
    kind = rng.integers(0, 5, batch)
    masks = np.zeros((batch, size, size, 5), np.float32)
    masks[np.arange(batch), :2, :, kind] = 1
    classes = np.ones((batch, 5), np.float32)
    is_box = np.arange(batch) % 3 == 0
    classes[np.arange(batch), kind] = np.where(is_box, 3, 2)
    x_0 = rng.standard_normal((batch, size, size, 2)).astype(np.float32)
    inputs = Inputs(x_0, Condition(masks, classes), labels.astype(np.uint8))
    keys, process = jax.random.split(jax.random.key(5), batch), Gaussian(SCHEDULE, "x_0")

    @jit
    def terms(params, label_weight):
        network = LabelingNetwork()
        pipeline = Pipeline(network, process, None, size, 0.1, label_weight)
        total, terms = pipeline.loss_terms(params, inputs, weight, keys)
        return total, (terms, network.seen)

    total, (terms_found, (x, t)) = terms({"w": 1.0}, 0.3)
    x, t = np.asarray(x, np.float64), np.asarray(t)
    cross_entropy, pixels, confusion = np.zeros(4), np.zeros(4), np.zeros((2, 4, 4))
    for b, y, x_ in np.ndindex(batch, 2, size):
        truth, quarter = labels[b, y, x_], t[b] // 250
        if truth == 4:
            continue
        logits = x[b, y, x_, 0] * np.array([0, 1, -2, 3])
        cross_entropy[quarter] += weight[b] * (np.log(np.exp(logits).sum()) - logits[truth])
        pixels[quarter] += weight[b]
        requested = kind[b] == 0 or (kind[b] != 4 and not is_box[b])
        if quarter == 0:
            confusion[int(requested), truth, logits.argmax()] += weight[b]
    np.testing.assert_allclose(terms_found.labels.cross_entropy, cross_entropy, rtol=1e-4)
    np.testing.assert_array_equal(terms_found.labels.pixels, pixels)
    np.testing.assert_array_equal(terms_found.labels.confusion, confusion)
    # Once for each of the two sequences, as the squared errors are.
    expected = terms_found.sums.sum() + 0.3 * 2 * cross_entropy.sum()
    np.testing.assert_allclose(total, expected, rtol=1e-4)
    means = losses(terms_found)
    np.testing.assert_allclose(means["label_loss"], cross_entropy.sum() / pixels.sum(), rtol=1e-4)
    decided = confusion[0]
    dice = 2 * decided[2, 2] / (decided[2].sum() + decided[:, 2].sum())
    np.testing.assert_allclose(means["label_dice_edema"], dice, rtol=1e-5)
    assert terms({"w": 1.0}, 0.0)[0] == terms_found.sums.sum()


def test_without_label_weight_there_is_no_head_and_the_contract_is_the_old_one():
    settings = tiny_settings()
    contract = settings.contract("")
    assert "label_weight" not in contract and "label_head" not in contract["model"]
    assert not Pipeline.from_contract(contract).model.label_head
    with_head = dataclasses.replace(settings, label_weight=0.1).contract("")
    assert with_head["label_weight"] == 0.1
    assert Pipeline.from_contract(with_head).model.label_head
    with pytest.raises(ValueError, match="label_weight must lie in"):
        Pipeline.from_contract({**contract, "label_weight": -1.0})


def test_context_and_padding_examples_weigh_nothing():
    """With a network that looks at single pixels, nothing outside the ROI may matter at all."""
    inputs = random_inputs(seed=2, size=4, batch=300)
    irrelevant = ~np.asarray(inputs.condition.roi)
    irrelevant[200:] = True
    weight = (np.arange(300) < 200).astype(np.float32)

    def terms(shift):
        return pixelwise_terms(inputs._replace(x_0=inputs.x_0 + shift), weight, 0.0)[0]

    reference = terms(np.zeros_like(irrelevant, np.float32))
    changed = terms(np.where(irrelevant, 100, 0).astype(np.float32))
    jax.tree.map(np.testing.assert_array_equal, changed, reference)
    changed = terms(np.where(irrelevant, 0, 1).astype(np.float32))
    assert changed[2]["w"] != reference[2]["w"]


@pytest.mark.parametrize("rate", [0.0, 0.3, 1.0])
def test_the_condition_is_dropped_at_its_rate(rate):
    inputs = random_inputs(seed=3, size=4, batch=300)
    _, (_, _, condition) = pixelwise_terms(inputs, np.ones(300, np.float32), rate)
    null = (np.asarray(condition.class_vector) == 0).all(-1)
    np.testing.assert_array_equal(
        condition.class_vector[~null], inputs.condition.class_vector[~null]
    )
    # Five standard deviations of a binomial.
    assert abs(null.mean() - rate) <= 5 * np.sqrt(rate * (1 - rate) / 300)


def test_a_rate_in_percent_is_refused():
    contract = tiny_settings().contract("")
    contract["diffusion"]["drop_condition"] = 10.0
    with pytest.raises(ValueError, match=r"drop_condition must lie in \[0, 1\], not 10"):
        Pipeline.from_contract(contract)


def test_keys_of_examples_follow_from_step_and_position_alone():
    key = jax.random.key(0)
    longer = jax.random.key_data(example_keys(key, 7, 12))
    np.testing.assert_array_equal(longer[:10], jax.random.key_data(example_keys(key, 7, 10)))
    other_step = jax.random.key_data(example_keys(key, 8, 12))
    assert len(np.unique(np.concatenate([longer, other_step]), axis=0)) == 24


def test_validation_uses_the_same_noise_every_time():
    batch = loader.stack([tiny_examples()[i] for i in range(BATCH)])
    step = jit(make_validation_step(pipeline(), jax.random.key(8)))
    params = initial_state().params
    first, again, other = (step(params, batch, number) for number in (0, 0, 1))
    jax.tree.map(np.testing.assert_array_equal, first, again)
    assert not np.array_equal(first[0], other[0])
    # A network that starts as zero leaves the noise itself, whose mean square is 1.
    sums, counts, labels = first
    assert abs(sums.sum() / counts.sum() - 1) < 5 * np.sqrt(2 / counts.sum())
    # Of four labels it knows nothing either.
    np.testing.assert_allclose(labels.cross_entropy, np.log(4) * labels.pixels, rtol=1e-5)


def stacks(batch):
    """A pipeline whose network sees neighbors, and examples whose neighbors are copies of them."""
    tiny = tiny_settings()
    model = {**tiny.model, "neighbors": 1}
    seeing = Pipeline.of(vars(tiny.data), model, tiny.diffusion, tiny.tasks)
    rng = np.random.default_rng(0)
    codes = rng.integers(1, 1000, (batch, 40, 40, 1)).astype(np.uint16)
    labels = np.zeros((batch, 40, 40), np.uint8)
    labels[::2, 16:24, 12:24] = 2
    present = np.ones((batch, 2), np.float32)
    present[0, 1] = 0
    examples = {
        "codes": codes,
        "labels": labels,
        "weight": np.ones(batch, np.float32),
        "gain": np.full((batch, 1), 2e-3, np.float32),
        "bias": np.full((batch, 1), -1, np.float32),
        "neighbor_codes": np.stack([codes, codes], axis=1),
        "neighbor_labels": np.stack([labels, labels], axis=1),
        "neighbor_present": present,
    }
    return seeing, examples


@pytest.mark.parametrize("z_sigma", [0.0, 2.0])
def test_neighbors_move_with_their_slice_and_are_noised_like_it(z_sigma):
    """Neighbors that are copies of the slice stay copies; noise of the same t comes into their ROIs."""
    batch = 64
    seeing, examples = stacks(batch)
    seeing = dataclasses.replace(seeing, z_sigma=z_sigma)
    present = examples["neighbor_present"]
    keys = jax.random.split(jax.random.key(0), batch)
    inputs = jit(functools.partial(seeing.prepare, augmented=True))(examples, keys)
    neighbors = inputs.condition.neighbors
    assert neighbors is not None
    tumor = inputs.condition.roi_masks[..., 1:]
    for place in range(2):
        np.testing.assert_array_equal(neighbors.images[:, place], inputs.x_0)
        # What is healthy may end, or grow.
        np.testing.assert_array_equal(neighbors.roi_masks[:, place, ..., 1:], tumor)
    assert (neighbors.present <= present).all()
    # 20% alone, and 5% of the others.
    assert 0.1 < 1 - np.mean(neighbors.present) < 0.4

    seen = []

    class Spy:
        """A network that returns its image, and notes what it was given."""

        label_head, neighbors = False, 1

        def apply(self, variables, x_t, t, condition, **options):
            seen.append((x_t, t, condition.neighbors.images))
            return Output(x_t)

    spied = dataclasses.replace(seeing, model=Spy())
    spied.loss_terms({}, inputs, jnp.ones(batch), keys)
    ((x_t, t, noised),) = jax.device_get(seen)
    stack = np.concatenate([x_t[:, None], noised], axis=1)
    x_0 = np.stack([inputs.x_0] * 3, axis=1)
    own = np.asarray(inputs.condition.roi)[:, None]
    roi = np.broadcast_to(np.concatenate([own, neighbors.roi], axis=1), stack.shape)
    np.testing.assert_array_equal(stack[~roi], x_0[~roi])
    a, s = (f(t)[:, None, None, None, None] for f in (seeing.process.alpha, seeing.process.sigma))
    eps = (stack - a * x_0) / s
    assert stats.kstest(eps[:, 1:][roi[:, 1:]], "norm").pvalue > 1e-3
    # Of its own and the slices below and above: independent of each other, or as slices start from noise
    # in sampling.
    shared = roi.all(1)
    correlations = np.corrcoef([eps[:, place][shared] for place in range(3)])
    sampled, _ = start_noise(0, np.zeros(3, int), [1, 0, 2], (256, 256, 1), z_sigma)
    expected = np.corrcoef(np.reshape(sampled, (3, -1)))
    assert np.abs(correlations - expected).max() < 5 / np.sqrt(min(shared.sum(), 256**2))


@pytest.mark.parametrize("mirror", [False, True])
def test_an_update_sees_a_part_of_what_it_would_see_of_the_whole(mirror):
    """Images, ROIs, labels and neighbors of a part are cut out of the whole at one place."""
    batch, (height, width) = 16, (6, 8)
    seeing, examples = stacks(batch)
    whole = dataclasses.replace(seeing, model=seeing.model.clone(mirror=mirror, label_head=True))
    how = Augmentation(crop_height=height, crop_width=width)
    parts = dataclasses.replace(whole, augmentation=how)
    keys = jax.random.split(jax.random.key(2), batch)

    def planes(pipeline, augmented=True):
        """All that an update sees, [B, H, W, ...]."""
        x_0, condition, labels = jit(functools.partial(pipeline.prepare, augmented=augmented))(
            examples, keys
        )
        neighbors = condition.neighbors
        around = np.concatenate([neighbors.images, neighbors.roi_masks], -1)
        around = np.moveaxis(around, 1, -1)
        around = around.reshape(*around.shape[:3], -1)
        return np.concatenate([condition.roi_masks, x_0, labels[..., None], around], -1)

    full, cut = planes(whole), planes(parts)
    assert cut.shape == (batch, height, width, full.shape[-1])
    windows = np.lib.stride_tricks.sliding_window_view(full, (height, width), (1, 2))
    windows = np.moveaxis(windows, 3, -1)
    same = (windows == cut[:, None, None]).all((3, 4, 5))
    assert same.any((1, 2)).all()
    roi, middle = full[..., :NUM_KINDS].any((1, 3)), (full.shape[2] - width) // 2
    if mirror:
        assert same[:, :, middle].any(1).all()
        # An ROI at the side may lie outside the middle columns.
        roi = roi[:, middle : middle + width]
    np.testing.assert_array_equal(cut[..., :NUM_KINDS].any((1, 2, 3)), roi.any(1))
    # Validation sees whole slices.
    np.testing.assert_array_equal(planes(parts, augmented=False), planes(whole, augmented=False))


@pytest.mark.parametrize(
    ("crop", "problem"),
    [({"crop_height": 3}, "multiple of 2"), ({"crop_width": 18}, "at most image_size, 16")],
)
def test_parts_that_the_network_cannot_take_are_refused(crop, problem):
    with pytest.raises(FieldError, match=f"augmentation.{next(iter(crop))} must be .*{problem}"):
        dataclasses.replace(tiny_settings(), augmentation=Augmentation(**crop))


def test_validation_shows_all_neighbors():
    """Its loss is that of a network that sees them: none is left out, and what they show is there."""
    seeing, examples = stacks(16)

    class Shown:
        """A network that predicts, everywhere, how many images of neighbors it was shown."""

        label_head = False
        neighbors = 1

        def apply(self, variables, x_t, t, condition, **options):
            around = condition.neighbors
            shown = around.present * (around.images.std((2, 3, 4)) > 0.01)
            return Output(jnp.broadcast_to(1e4 * shown.sum(1)[:, None, None, None], x_t.shape))

    spied = dataclasses.replace(seeing, model=Shown())
    step = jit(make_validation_step(spied, jax.random.key(0)))
    # Beside such predictions, the noise that is to be predicted does not matter.
    for present, seen in ((examples["neighbor_present"] * 0, 0), (np.ones((16, 2), np.float32), 2)):
        terms = step({}, {**examples, "neighbor_present": present}, 0)
        root = np.sqrt(terms.sums.sum() / terms.counts.sum()) / 1e4
        assert root == pytest.approx(seen, abs=1e-3)
