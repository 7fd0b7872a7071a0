"""The convolution with its own batching rule equals JAX's, forward and backward, in either order with vmap."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from orc_jax.models.conv import convolution_for, depthwise

CASES = {
    "plain": {},
    "stride": {"window_strides": (2, 2)},
    "stride, larger kernel": {"window_strides": (2, 3), "kernel": (4, 5), "padding": ((2, 1), (0, 2))},
    "1x1, stride": {"window_strides": (2, 2), "kernel": (1, 1), "padding": ((0, 0), (0, 0))},
    "valid": {"padding": "VALID"},
    "same": {"padding": "SAME", "window_strides": (2, 2)},
    "uneven padding": {"padding": ((1, 2), (0, 1))},
    "kernel dilation": {"rhs_dilation": (2, 1)},
    "image dilation": {"lhs_dilation": (1, 2)},
    "groups": {"feature_group_count": 2},
    "two features a channel": {"feature_group_count": 4, "window_strides": (2, 2)},
    "depthwise": {"feature_group_count": 4, "features": 4},
    "depthwise, stride": {"feature_group_count": 4, "features": 4, "window_strides": (2, 2)},
    "depthwise, uneven": {"feature_group_count": 4, "features": 4, "padding": ((0, 2), (1, 0)), "kernel": (2, 3)},
    "depthwise, dilation": {"feature_group_count": 4, "features": 4, "rhs_dilation": (2, 1)},
    "grouped 1x1": {"feature_group_count": 2, "kernel": (1, 1), "padding": ((0, 0), (0, 0))},
    "grouped 1x1, stride": {"feature_group_count": 2, "kernel": (1, 1), "window_strides": (2, 2)},
}
NUMBERS = ("NHWC", "HWIO", "NHWC")


def operands(groups, members=3, kernel=(3, 3), features=8):
    keys = jax.random.split(jax.random.key(0), 3)
    images = jax.random.normal(keys[0], (members, 2, 7, 6, 4))
    kernels = jax.random.normal(keys[1], (members, *kernel, 4 // groups, features))
    return images, kernels


def pair(options, platform="cpu"):
    """Our convolution for a platform and JAX's with the same options."""
    options = {"window_strides": (1, 1), "padding": ((1, 1), (1, 1)), "dimension_numbers": NUMBERS} | options
    ours = lambda x, w: convolution_for(platform)(x, w, **options)  # noqa: E731
    jaxs = lambda x, w: lax.conv_general_dilated(x, w, **options)  # noqa: E731
    return ours, jaxs


def one_by_one(f, *batched):
    return jax.tree.map(lambda *x: jnp.stack(x), *(f(*(x[i] for x in batched)) for i in range(len(batched[0]))))


def close(actual, expected):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-4, atol=2e-4), actual, expected)


@pytest.mark.parametrize(
    "case, platform", [*((case, "cpu") for case in CASES), ("stride", "gpu"), ("depthwise", "tpu")]
)
def test_vmapped_convolution_and_gradients_equal_the_members(case, platform):
    options = dict(CASES[case])
    shape = {name: options.pop(name) for name in ("kernel", "features") if name in options}
    images, kernels = operands(options.get("feature_group_count", 1), **shape)
    ours, jaxs = pair(options, platform)
    # A quadratic loss, so that the gradients depend on the values.
    loss = lambda conv: lambda x, w: jnp.square(conv(x, w)).sum()  # noqa: E731
    expected = one_by_one(jaxs, images, kernels)
    gradients = one_by_one(jax.grad(loss(jaxs), (0, 1)), images, kernels)
    close(jax.vmap(ours)(images, kernels), expected)
    close(jax.vmap(jax.grad(loss(ours), (0, 1)))(images, kernels), gradients)
    outside = jax.grad(lambda x, w: loss(jax.vmap(ours))(x, w), (0, 1))
    close(jax.jit(outside)(images, kernels), gradients)


def lowered(function, *args):
    return jax.jit(function).lower(*args).as_text()


WRITTEN_OUT = "inlineable"  # marks the function that is the kernel's gradient
GROUPED = ("feature_group_count = 3", "batch_group_count = 3")


@pytest.mark.parametrize(
    "platform, written_out, grouped", [("cpu", 1, 0), ("gpu", 0, 0), ("tpu", 0, 1), ("other", 0, 0)]
)
def test_the_platform_decides_how_a_pool_is_written(platform, written_out, grouped):
    """On CPU one by one with gradients written out, on a GPU one by one, on a TPU as vmap has it; equal in value."""
    images, kernels = operands(1)
    ours, jaxs = pair({"window_strides": (2, 2)}, platform)
    loss = lambda conv: lambda x, w: jnp.square(conv(x, w)).sum()  # noqa: E731
    gradients = jax.vmap(jax.grad(loss(ours), (0, 1)))
    program = lowered(lambda x, w: gradients(x, w), images, kernels)
    assert (WRITTEN_OUT in program) == written_out
    assert any(text in program for text in GROUPED) == grouped
    close(gradients(images, kernels), one_by_one(jax.grad(loss(jaxs), (0, 1)), images, kernels))


@pytest.mark.parametrize("platform", ["cpu", "gpu", "tpu"])
def test_precision_is_that_of_the_gradients_too(platform):
    images, kernels = operands(1)
    ours, _ = pair({"precision": jax.lax.Precision.HIGHEST}, platform)
    program = lowered(jax.grad(lambda x, w: jnp.square(ours(x, w)).sum(), (0, 1)), images[0], kernels[0])
    assert program.count("stablehlo.convolution") == 3
    assert program.count("precision_config = [#stablehlo<precision HIGHEST>, #stablehlo<precision HIGHEST>]") == 3
    images, kernels = operands(2, kernel=(1, 1))
    options = {"feature_group_count": 2, "padding": ((0, 0), (0, 0)), "precision": jax.lax.Precision.HIGHEST}
    ours, _ = pair(options, platform)
    program = lowered(lambda x, w: ours(x, w), images[0], kernels[0])
    assert "stablehlo.dot_general" in program and "precision = [HIGHEST, HIGHEST]" in program


def test_explicit_shardings_are_refused():
    images, kernels = operands(1)
    ours, _ = pair({"out_sharding": "any"})
    with pytest.raises(ValueError, match="out_sharding: explicit shardings are not supported"):
        ours(images[0], kernels[0])


@pytest.mark.parametrize("in_axes", [(None, 0), (0, None)])
def test_shared_operand(in_axes):
    images, kernels = operands(1)
    ours, jaxs = pair({})
    args = [x if axis == 0 else x[0] for x, axis in zip((images, kernels), in_axes, strict=True)]
    loss = lambda conv: lambda x, w: jnp.square(jax.vmap(conv, in_axes)(x, w)).sum()  # noqa: E731
    close(jax.vmap(ours, in_axes)(*args), jax.vmap(jaxs, in_axes)(*args))
    close(jax.grad(loss(ours), (0, 1))(*args), jax.grad(loss(jaxs), (0, 1))(*args))


def test_nested_vmap():
    images, kernels = operands(1, members=4)
    images, kernels = images.reshape(2, 2, *images.shape[1:]), kernels.reshape(2, 2, *kernels.shape[1:])
    ours, jaxs = pair({})
    close(jax.vmap(jax.vmap(ours))(images, kernels), jax.vmap(jax.vmap(jaxs))(images, kernels))


@pytest.mark.parametrize("case", ["depthwise", "depthwise, stride", "grouped 1x1"])
def test_grouped_convolutions_need_no_convolution_instruction(case):
    """Compilers do badly with grouped convolutions and worse with their gradients, in a single network already."""
    options = {name: value for name, value in CASES[case].items() if name not in ("kernel", "features")}
    shape = {name: CASES[case][name] for name in ("kernel", "features") if name in CASES[case]}
    images, kernels = operands(options["feature_group_count"], **shape)
    ours, _ = pair(options)
    step = jax.grad(lambda x, w: jnp.square(jax.vmap(ours)(x, w)).sum(), (0, 1))
    assert "stablehlo.convolution" not in lowered(step, images, kernels)


def test_depthwise_sums_in_float32():
    """257 is no bfloat16: a sum in bfloat16 would lose the ones."""
    images = jnp.ones((1, 3, 3, 1), jnp.bfloat16)
    kernel = jnp.ones((3, 3, 1, 1), jnp.bfloat16).at[0, 0].set(256.0)
    total = depthwise(images, kernel, (1, 1), ((0, 0), (0, 0)))
    assert total.dtype == jnp.bfloat16 and float(total[0, 0, 0, 0]) == 264.0
