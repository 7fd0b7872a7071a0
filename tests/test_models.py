"""Every registered backbone: exact parameter counts (trainable, as the field's tables give them), and conventions."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from orc_jax.models import MODELS, ladder
from orc_jax.models.layers import BatchNorm
from orc_jax.pool import make_network
from tests.conftest import TINY

# Trainable parameters for 100 and for 10 classes, from the PyTorch classes. A block of each stage more adds 97,216 to
# the plain networks (4,640 + 18,560 + 74,016) and 1,550,080 to the "x4" ones.
PUBLISHED = {
    "resnet8": (83_892, 78_042),
    "resnet14": (181_108, 175_258),
    "resnet20": (278_324, 272_474),
    "resnet26": (375_540, 369_690),
    "resnet32": (472_756, 466_906),
    "resnet38": (569_972, 564_122),
    "resnet44": (667_188, 661_338),
    "resnet50": (764_404, 758_554),
    "resnet56": (861_620, 855_770),
    "resnet110": (1_736_564, 1_730_714),
    "resnet8x4": (1_233_540, 1_210_410),
    "resnet32x4": (7_433_860, 7_410_730),
}
COUNTS = {f"resnet{6 * n + 2}": tuple(c + 97_216 * (n - 1) for c in PUBLISHED["resnet8"]) for n in range(1, 19)}
COUNTS |= {f"resnet{6 * n + 2}x4": tuple(c + 1_550_080 * (n - 1) for c in PUBLISHED["resnet8x4"]) for n in range(1, 6)}


def abstract_init(name, num_classes):
    return jax.eval_shape(make_network(name, num_classes, 3, "float32", None).init, jax.random.key(0))


def size(tree):
    return sum(x.size for x in jax.tree.leaves(tree))


def test_every_registered_model_is_in_the_table():
    assert set(COUNTS) == set(MODELS) - set(TINY)
    assert {name: COUNTS[name] for name in PUBLISHED} == PUBLISHED


@pytest.mark.parametrize("name", COUNTS)
def test_parameter_counts(name):
    assert tuple(size(abstract_init(name, classes)[0]) for classes in (100, 10)) == COUNTS[name]


def test_names_are_those_of_the_pytorch_state_dicts():
    params, batch_stats = abstract_init("resnet8x4", 100)
    # The stem of the x4 networks is 32, so their first stage has a projection shortcut too.
    assert params["conv1.kernel"].shape == (3, 3, 3, 32)
    assert params["layer1.0.downsample.0.kernel"].shape == (1, 1, 32, 64)
    assert params["layer3.0.conv2.kernel"].shape == (3, 3, 256, 256)
    assert params["fc.kernel"].shape == (256, 100)
    assert batch_stats["layer2.0.downsample.1.var"].shape == (128,)
    assert size(batch_stats) == 2_752  # "BN-stat floats" of the PyTorch class


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_logits_are_float32_and_the_last_stage_is_a_quarter(dtype):
    network = make_network("resnet8", 7, 1, dtype, None)
    params, batch_stats = network.init(jax.random.key(0))
    images = jnp.ones((2, 28, 20, 1))
    (logits, features), moved = network.train(params, batch_stats, images)
    assert logits.shape == (2, 7) and logits.dtype == jnp.float32
    assert features.shape == (2, 64) and features.dtype == jnp.float32
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves((params, moved)))


def test_initial_distributions():
    params, _ = make_network("resnet56", 100, 3, "float32", None).init(jax.random.key(1))
    kernel = np.asarray(params["layer3.4.conv1.kernel"])  # He fan-out: sqrt(2 / (3 * 3 * 64))
    np.testing.assert_allclose(kernel.std(), np.sqrt(2 / (9 * 64)), rtol=0.02)
    assert np.abs(kernel).max() > 3.5 * kernel.std()  # not truncated
    weight = np.asarray(params["fc.kernel"])  # PyTorch's default: U(-1/8, 1/8)
    np.testing.assert_allclose([weight.min(), weight.max(), weight.std()], [-1 / 8, 1 / 8, 1 / 8 / 3**0.5], rtol=0.02)
    assert np.abs(params["fc.bias"]).max() <= 1 / 8


def test_batch_norm_follows_pytorch():
    """Golden, from the definition: biased variance to normalise, unbiased in the running value, momentum 0.1."""
    x = np.random.default_rng(0).normal(3.0, 2.0, (4, 2, 3, 5)).astype(np.float32)
    layer = BatchNorm(5)
    layer.scale[...], layer.bias[...] = jnp.arange(1.0, 6.0), jnp.arange(5.0)
    flat = x.reshape(-1, 5).astype(np.float64)
    expected = (x - flat.mean(0)) / np.sqrt(flat.var(0) + 1e-5) * np.arange(1, 6) + np.arange(5)
    np.testing.assert_allclose(layer(jnp.asarray(x)), expected, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(layer.mean[...], 0.1 * flat.mean(0), rtol=1e-5)
    np.testing.assert_allclose(layer.var[...], 0.9 + 0.1 * flat.var(0, ddof=1), rtol=1e-5)
    layer.use_running_average = True
    mean, var = np.asarray(layer.mean[...]), np.asarray(layer.var[...])
    expected = (x - mean) / np.sqrt(var + 1e-5) * np.arange(1, 6) + np.arange(5)
    np.testing.assert_allclose(layer(jnp.asarray(x)), expected, rtol=1e-4, atol=1e-4)


def test_batch_norm_keeps_float32_statistics_in_bfloat16():
    x = 100.0 + jax.random.normal(jax.random.key(0), (64, 4, 4, 1))
    layer = BatchNorm(1, dtype=jnp.bfloat16)
    assert layer(x).dtype == jnp.bfloat16
    np.testing.assert_allclose(layer.mean[...], [0.1 * x.mean()], rtol=1e-5)


def test_convolution_padding_is_symmetric_at_stride_two():
    from orc_jax.models.layers import conv

    layer = conv(1, 1, 3, strides=2, rngs=nnx.Rngs(0))
    layer.kernel[...] = jnp.zeros((3, 3, 1, 1)).at[0, 0].set(1.0)  # looks one pixel up and to the left
    image = jnp.arange(16.0).reshape(1, 4, 4, 1)
    np.testing.assert_array_equal(layer(image)[0, ..., 0], [[0, 0], [0, 5]])


def test_ladder():
    assert ladder("resnet56", "resnet20", 3) == ("resnet44", "resnet32", "resnet26")
    assert ladder("resnet20", "resnet8", 3) == ("resnet14", "resnet14", "resnet8")
    assert ladder("resnet32x4", "resnet8x4", 2) == ("resnet20x4", "resnet14x4")
    assert ladder("resnet20", "resnet20", 2) == ("resnet20", "resnet20")
    assert ladder("resnet32x4", "resnet20", 2) == ("resnet20", "resnet20")  # no ladder between families
    assert ladder("resnet56", "resnet20", 0) == ()
