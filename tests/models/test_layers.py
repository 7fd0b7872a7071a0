"""The layers that all backbones share follow PyTorch's conventions."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from orc_jax.models import layers
from orc_jax.models.layers import BatchNorm, make_layers


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


def test_batch_norm_of_what_is_constant():
    """The 1e-5 below the root keeps it finite, and one pixel alone has a variance of 0, not of 0 / 0."""
    layer = BatchNorm(1)
    np.testing.assert_array_equal(layer(jnp.full((2, 1, 1, 1), 3.0)), 0.0)
    layer.use_running_average = True
    layer.mean[...], layer.var[...] = jnp.zeros(1), jnp.zeros(1)
    np.testing.assert_allclose(layer(jnp.ones((1, 1, 1, 1))), 1e-5**-0.5, rtol=1e-5)
    alone = BatchNorm(1)
    alone(jnp.full((1, 1, 1, 1), 3.0))
    np.testing.assert_allclose([alone.mean[0], alone.var[0]], [0.3, 0.9], rtol=1e-6)


def test_statistics_get_no_gradient():
    """They are moved, not learnt."""

    def moved(x):
        layer = BatchNorm(1)
        layer(x)
        return layer.mean[0] + layer.var[0]

    np.testing.assert_array_equal(jax.grad(moved)(jnp.arange(4.0).reshape(4, 1, 1, 1)), 0.0)


def test_batch_norm_keeps_float32_statistics_in_bfloat16():
    x = 100.0 + jax.random.normal(jax.random.key(0), (64, 4, 4, 1))
    layer = BatchNorm(1, dtype=jnp.bfloat16)
    assert layer(x).dtype == jnp.bfloat16
    np.testing.assert_allclose(layer.mean[...], [0.1 * x.mean()], rtol=1e-5)


def test_convolution_padding_is_symmetric_at_stride_two():
    layer = make_layers(jnp.float32, None, nnx.Rngs(0)).conv(1, 1, 3, strides=2)
    layer.kernel[...] = jnp.zeros((3, 3, 1, 1)).at[0, 0].set(1.0)  # looks one pixel up and to the left
    image = jnp.arange(16.0).reshape(1, 4, 4, 1)
    np.testing.assert_array_equal(layer(image)[0, ..., 0], [[0, 0], [0, 5]])


def test_what_the_layers_of_a_network_share():
    """Activations of one type, classifiers in float32 whatever they are; a bias only where there is an initializer."""
    make = make_layers(jnp.bfloat16, "devices", nnx.Rngs(0), kernel_init=nnx.initializers.ones)
    plain, biased = make.conv(4, 4, 3, groups=2), make.conv(2, 4, 1, bias_init=nnx.initializers.constant(7.0))
    assert plain.bias is None and plain.kernel.shape == (3, 3, 2, 4) and plain.feature_group_count == 2
    np.testing.assert_array_equal(biased.bias[...], 7.0)
    np.testing.assert_array_equal(plain.kernel[...], 1.0)
    assert plain(jnp.ones((1, 4, 4, 4))).dtype == jnp.bfloat16
    norm, linear = make.norm(4), make.linear(4, 2)
    assert norm.axis_name == "devices" and norm.dtype == jnp.bfloat16
    assert linear(jnp.ones((1, 4), jnp.bfloat16)).dtype == jnp.float32


def test_lists_of_layers_are_applied_in_turn():
    add, double = (lambda x: x + 1), (lambda x: 2 * x)
    assert layers.apply(nnx.List([add, nnx.List([double, nnx.List([])]), add]), 3) == 9


def test_poolings():
    image = -jnp.arange(1.0, 17.0).reshape(1, 4, 4, 1)
    np.testing.assert_array_equal(layers.max_pool(image, 2, strides=2)[0, ..., 0], [[-1, -3], [-9, -11]])
    # With padding, windows start one pixel before the image; what is there never wins, even against negative numbers.
    pooled = layers.max_pool(image, 3, strides=2, padding=1)[0, ..., 0]
    np.testing.assert_array_equal(pooled, [[-1, -2], [-5, -6]])
    many = jnp.full((1, 64, 64, 2), 1.01, jnp.bfloat16)
    mean = layers.global_average_pool(many)
    assert mean.shape == (1, 2) and mean.dtype == jnp.float32
    np.testing.assert_allclose(mean, float(many[0, 0, 0, 0]), rtol=1e-6)


def test_pytorchs_uniform_distribution():
    init = functools.partial(layers.torch_uniform(16), jax.random.key(0), (50, 40))
    values = np.asarray(init())
    np.testing.assert_allclose([values.min(), values.max()], [-0.25, 0.25], rtol=0.02)
    np.testing.assert_allclose([values.mean(), values.std()], [0.0, 0.25 / 3**0.5], rtol=0.05, atol=0.01)
    assert init(jnp.bfloat16).dtype == jnp.bfloat16
