"""Mix-up and CutMix: what becomes of the images, of their labels, and of what is learnt from them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from orc_jax import parallel
from orc_jax.data.mixing import Mixed, Mixing, mix
from orc_jax.data.types import Images
from orc_jax.losses import cross_entropy
from orc_jax.methods import METHODS
from orc_jax.run import abstract_state
from orc_jax.step import make_train_step, seen
from orc_jax.testing import assert_resumes, build_run
from orc_jax.verbs import Context
from tests.helpers import each_method
from tests.methods.test_every_method import for_method

COUNT, SHAPE = 8, (10, 6, 3)
# Image i has the value i in all pixels, so that one sees what a pixel is made of.
IMAGES = np.arange(COUNT, dtype=np.uint8)[:, None, None, None] * np.full((1, *SHAPE), 20, np.uint8)
EXAMPLES = Images(IMAGES, np.arange(COUNT, dtype=np.int32))


def mixed(mixing, seeds=400, examples=EXAMPLES):
    """Batches mixed with many keys: images, labels, shares."""

    def one(key):
        images, of = mix(mixing, key, Images(*map(jnp.asarray, examples)), jnp.arange(COUNT), lambda x, axis: x)
        return images, of.labels, of.share

    keys = jax.random.split(jax.random.key(0), seeds)
    return (np.asarray(x) for x in jax.jit(jax.vmap(one))(keys))


@pytest.mark.parametrize("alpha", [0.5, 1.0, 4.0])
def test_mix_up(alpha):
    images, labels, share = mixed(Mixing(mixup=alpha))
    assert images.dtype == np.float32 and (np.sort(labels, 1) == np.arange(COUNT)).all(), "each is mixed in once"
    own, other = IMAGES[None].astype(float), IMAGES[labels]
    ratio = share[:, None, None, None, None]
    np.testing.assert_allclose(images, ratio * own + (1 - ratio) * other, atol=1e-3)
    assert len(np.unique(labels, axis=0)) > 390
    np.testing.assert_allclose(share.mean(), 0.5, atol=0.05)
    np.testing.assert_allclose(share.var(), 1 / (4 * (2 * alpha + 1)), rtol=0.2)


def test_cutmix():
    """The share is what can be seen; the box is that of torchvision, and is anywhere."""
    images, labels, share = mixed(Mixing(cutmix=1.0))
    assert images.dtype == np.uint8
    pasted = images == IMAGES[labels]
    kept = images == IMAGES[None]
    assert (pasted | kept).all()
    strange = labels != np.arange(COUNT)
    visible = kept[..., 0].mean((2, 3))
    np.testing.assert_allclose(visible[strange], np.broadcast_to(share[:, None], strange.shape)[strange], atol=1e-6)
    # By the reference's definition, drawn by NumPy: half sides are rounded down, and the box ends at the edges.
    rng, expected = np.random.default_rng(0), []
    for _ in range(4000):
        half = 0.5 * np.sqrt(1 - rng.uniform())
        (top, bottom), (left, right) = (
            np.clip(center + np.array([-1, 1]) * int(half * side), 0, side)
            for side, center in ((side, rng.integers(side)) for side in SHAPE[:2])
        )
        expected.append(1 - (bottom - top) * (right - left) / (SHAPE[0] * SHAPE[1]))
    np.testing.assert_allclose([share.mean(), share.std()], [np.mean(expected), np.std(expected)], atol=0.04)
    everywhere = pasted[strange][..., 0].mean(0)
    assert everywhere.min() > 0.05


def test_with_both_a_batch_gets_one_of_them():
    images, labels, share = mixed(Mixing(1.0, 1.0))
    own, other = IMAGES[None].astype(float), IMAGES[labels].astype(float)
    ratio = share[:, None, None, None, None]
    blended = np.isclose(images, ratio * own + (1 - ratio) * other, atol=1e-3).all((1, 2, 3, 4))
    cut = ((images == own) | (images == other)).all((1, 2, 3, 4))
    assert (blended | cut).all() and 0.4 < cut.mean() < 0.6 and share.min() >= 0


def test_views_are_mixed_alike():
    views = Images(np.stack([IMAGES, IMAGES + 100]), EXAMPLES.labels)
    images, *_ = mixed(Mixing(0.0, 1.0), 5, views)
    np.testing.assert_array_equal(images[:, 0] + 100, images[:, 1])


def test_labels_are_smoothed_and_mixed_as_by_pytorch(config, toy):
    torch = pytest.importorskip("torch")
    config.method, config.label_smoothing = "independent", 0.1
    setup = build_run(config, toy, axis_name=None).setup
    logits, labels, others = (
        jax.random.normal(jax.random.key(0), (2, 5, 3)),
        jnp.array([0, 1, 2, 2, 1]),
        jnp.arange(5) % 3,
    )
    context = Context(setup, jnp.int32(0), jax.random.key(0))
    given, targets = torch.tensor(np.array(logits)), torch.tensor(np.array(labels)).long()

    def expected(targets, smoothing):
        losses = [
            torch.nn.functional.cross_entropy(z, targets, reduction="none", label_smoothing=smoothing) for z in given
        ]
        return torch.stack(losses).numpy()

    np.testing.assert_allclose(context.label_loss(logits, labels), expected(targets, 0.1), rtol=1e-5)
    one_hot = [np.eye(3)[np.asarray(x)] for x in (labels, others)]
    targets = torch.tensor(0.7 * one_hot[0] + 0.3 * one_hot[1]).float()
    context = context._replace(mixed=Mixed(others, jnp.float32(0.7)))
    np.testing.assert_allclose(context.label_loss(logits, labels), expected(targets, 0.1), rtol=1e-5)
    np.testing.assert_allclose(context.by_labels(cross_entropy, logits, labels), expected(targets, 0.0), rtol=1e-5)


def traced(config, toy):
    """The step of a config, as text."""
    run = build_run(config, toy, axis_name=None)
    step, batch = make_train_step(run.setup, run.method.iterate), jax.ShapeDtypeStruct((16,), np.int32)
    return str(jax.make_jaxpr(step)(abstract_state(run), jax.tree.map(jax.typeof, toy.train), batch))


@pytest.mark.parametrize("method", each_method())
def test_every_method_learns_from_smoothed_labels_and_says_what_it_decides_by_them(method, config, toy):
    for_method(config, method)
    plain = traced(config, toy)
    config.label_smoothing = 0.1
    assert (traced(config, toy) != plain) == (method != "simkd")  # which learns from no labels
    decided = METHODS[method](["resnet20"] * 4).decided_by_labels
    assert bool(decided) == (method in ("orc", "switokd", "kdcl", "crd"))
    if decided:
        config.kdcl.target = "mean"  # the one option with which one of them decides nothing
    if not decided or method == "kdcl":
        config.mixup, config.cutmix = 0.2, 1.0
        assert "random_bits" in traced(config, toy)


def test_one_device_mixes_as_four(config, toy):
    config.method, config.mixup, config.cutmix, config.flip = "independent", 0.8, 1.0, True
    examples, step = Images(toy.train.images[:16], toy.train.labels[:16]), np.int32(3)
    alone, split = (build_run(config, toy, axis_name=axis).setup for axis in (None, parallel.AXIS))
    images, mixed = seen(alone, np.uint32(0), step, examples)
    shares = jax.tree.map(lambda x: parallel.shard(x, 4), examples)
    of_four = jax.pmap(lambda share: seen(split, np.uint32(0), step, share), parallel.AXIS)(shares)
    np.testing.assert_array_equal(np.asarray(of_four[0]).reshape(images.shape), images)
    np.testing.assert_array_equal(np.asarray(of_four[1].labels).reshape(-1), mixed.labels)
    np.testing.assert_array_equal(of_four[1].share, [mixed.share] * 4)


@pytest.mark.slow
def test_a_run_goes_on_with_what_it_had(config, tmp_path):
    config.method, config.num_networks, config.label_smoothing = "independent", 1, 0.1
    config.mixup, config.cutout, config.random_erasing, config.color_jitter = 0.8, 3, 0.5, (0.4, 0.4, 0.0, 0.0)
    assert_resumes(config, tmp_path)
